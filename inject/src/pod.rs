//! The patch: what makes a pod one with Freeboard in it, and its inverse. `deploy/pod.yaml` is what it yields.

use crate::options::{Mode, Options};
use crate::report::{Reason, Report, Skip};
use crate::shape::{self, items};
use crate::{preload, quantity};
use serde_json::{Map, Value, json};

/// The annotation that says that a pod was injected, and how. Without it nothing in a pod is ours.
pub const STATUS: &str = "freeboard.dev/status";

/// The container's, and the start of the volumes'.
const NAME: &str = "freeboard";
const LIB_VOLUME: &str = "freeboard-lib";
const REGION_VOLUME: &str = "freeboard-region";
const CONFIG_VOLUME: &str = "freeboard-config";
const VOLUMES: [&str; 3] = [LIB_VOLUME, REGION_VOLUME, CONFIG_VOLUME];

/// Everything of ours in a container's file system.
const ROOT: &str = "/freeboard";
const LIB: &str = "/freeboard/lib";
const REGION: &str = "/freeboard/region";
const CONFIG: &str = "/freeboard/config";
const SOCKET: &str = "/freeboard/region/socket";
const LIBRARY: &str = "/freeboard/lib/libfreeboard.so";
const PROGRAM: &str = "/freeboard/lib/freeboard";
const WORKLOAD: &str = "/freeboard/config/workload.toml";

const PRELOAD_VARIABLE: &str = "LD_PRELOAD";
const REGION_VARIABLE: &str = "FREEBOARD_REGION";
const SOCKET_VARIABLE: &str = "FREEBOARD_SOCKET";
const STDIO_VARIABLE: &str = "FREEBOARD_DEEP";

/// The sidecar's memory, requested and at most.
const MEMORY: &str = "32Mi";
/// What it asks for of a CPU.
const CPU: &str = "10m";
/// What it asks for and gets at most where it needs a limit: 5 ms in each 100.
const CPU_LIMIT: &str = "50m";
/// The image's user, who is not root.
const USER: i64 = 65532;

/// The pod with Freeboard in it, and what was done. A pod that has it already gets what the options ask for now; one
/// that has exactly that comes back as it is.
///
/// # Errors
/// The path of what is not as it must be in a pod.
pub fn inject(pod: &Value, options: &Options) -> Result<(Value, Report), String> {
    shape::check(pod)?;
    let mut fresh = pod.clone();
    remove(&mut fresh);
    let report = survey(&fresh, options);
    if report.injected.is_empty() {
        return Ok((fresh, report));
    }
    add(&mut fresh, &report, options);
    // the same but for the order of its keys: the order that is there
    let patched = if fresh == *pod { pod.clone() } else { fresh };
    Ok((patched, report))
}

/// The pod without Freeboard: as it was before [`inject`], but for lists and maps that were there and empty.
///
/// # Errors
/// The path of what is not as it must be in a pod.
pub fn uninject(pod: &Value) -> Result<Value, String> {
    shape::check(pod)?;
    let mut fresh = pod.clone();
    remove(&mut fresh);
    Ok(fresh)
}

/// Whether [`inject`] made it what it is.
pub fn is_injected(pod: &Value) -> bool {
    !pod["metadata"]["annotations"][STATUS].is_null()
}

/// Which containers can be served, and why not the others.
fn survey(pod: &Value, options: &Options) -> Report {
    let spec = &pod["spec"];
    if let Some(reason) = against_the_pod(spec, options) {
        return Report::skipped(reason);
    }
    let mut report = Report::default();
    for container in items(&spec["containers"]) {
        let name = text(&container["name"]);
        if !options.containers.is_empty() && !options.containers.iter().any(|one| one == name) {
            continue;
        }
        match against_the_container(spec, container, options) {
            None => report.injected.push(name.into()),
            Some(reason) => report.skipped.push(Skip { container: Some(name.into()), reason }),
        }
    }
    if report == Report::default() { Report::skipped(Reason::NoSuchContainer) } else { report }
}

fn against_the_pod(spec: &Value, options: &Options) -> Option<Reason> {
    if spec["os"]["name"] == "windows" || spec["nodeSelector"]["kubernetes.io/os"] == "windows" {
        return Some(Reason::Windows);
    }
    let names = |list: &str, taken: &[&str]| items(&spec[list]).iter().any(|item| taken.contains(&text(&item["name"])));
    if names("containers", &[NAME]) || names("initContainers", &[NAME]) || names("volumes", &VOLUMES) {
        return Some(Reason::NameTaken);
    }
    (options.mode == Mode::Sidecar && !has_room(spec)).then_some(Reason::LimitsTooSmall)
}

/// Whether the sidecar fits into the pod's own limits and requests (`spec.resources`), as the API server adds them up.
fn has_room(spec: &Value) -> bool {
    let sidecar = json!({"restartPolicy": "Always", "resources": resources(spec)});
    let stays = |container: &&Value| container["restartPolicy"] == "Always";
    let sidecars = items(&spec["initContainers"]).iter().filter(stays).chain([&sidecar]);
    let all: Vec<_> = items(&spec["containers"]).iter().chain(sidecars).collect();
    ["cpu", "memory"].iter().all(|resource| {
        let of_pod = |part: &str| quantity::nano(&spec["resources"][part][resource]).unwrap_or(i128::MAX);
        let all = all.iter().filter_map(|container| requested(container, resource)).fold(0, i128::saturating_add);
        let most = quantity::nano(&sidecar["resources"]["limits"][resource]).unwrap_or(0);
        most <= of_pod("limits") && all <= of_pod("requests")
    })
}

/// What a container requests: its limit, if it says nothing else.
fn requested(container: &Value, resource: &str) -> Option<i128> {
    let resources = &container["resources"];
    let of = |part: &str| quantity::nano(&resources[part][resource]);
    of("requests").or_else(|| of("limits"))
}

fn against_the_container(spec: &Value, container: &Value, options: &Options) -> Option<Reason> {
    let has_limit = |holder: &Value| !holder["resources"]["limits"]["memory"].is_null();
    if !options.without_limit && !has_limit(container) && !has_limit(spec) {
        return Some(Reason::NoMemoryLimit);
    }
    let is_inside = |path: &str| path == ROOT || path.strip_prefix(ROOT).is_some_and(|rest| rest.starts_with('/'));
    if items(&container["volumeMounts"]).iter().any(|mount| is_inside(text(&mount["mountPath"]))) {
        return Some(Reason::PathTaken);
    }
    let variable = |name: &str| items(&container["env"]).iter().rfind(|one| one["name"] == name);
    if variable(REGION_VARIABLE).or_else(|| variable(SOCKET_VARIABLE)).is_some() {
        return Some(Reason::VariableTaken);
    }
    if options.mode == Mode::Run {
        return items(&container["command"]).is_empty().then_some(Reason::NoCommand);
    }
    let is_reference = match variable(PRELOAD_VARIABLE) {
        Some(one) => !one["valueFrom"].is_null(),
        // what env says goes before what envFrom brings
        None => items(&container["envFrom"]).iter().any(|from| PRELOAD_VARIABLE.starts_with(text(&from["prefix"]))),
    };
    is_reference.then_some(Reason::PreloadFromReference)
}

/// Puts everything in.
fn add(pod: &mut Value, report: &Report, options: &Options) {
    let skipped: Map<_, _> =
        report.skipped.iter().filter_map(|skip| Some((skip.container.clone()?, json!(skip.reason)))).collect();
    let mut status = json!({"mode": options.mode, "containers": report.injected});
    if !skipped.is_empty() {
        status["skipped"] = Value::Object(skipped);
    }
    let annotations = map(map(pod, "metadata"), "annotations");
    annotations[STATUS] = status.to_string().into();

    let helper = helper(&pod["spec"], report, options);
    let spec = &mut pod["spec"];
    list(spec, "initContainers").insert(0, helper);
    for container in list(spec, "containers") {
        if report.injected.iter().any(|name| container["name"] == *name.as_str()) {
            serve(container, options);
        }
    }
    let volumes = list(spec, "volumes");
    volumes.push(json!({"name": LIB_VOLUME, "emptyDir": {"sizeLimit": "16Mi"}}));
    if options.mode == Mode::Library {
        return;
    }
    volumes.push(json!({"name": REGION_VOLUME, "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}}));
    if let Some(name) = &options.config_map {
        volumes.push(json!({"name": CONFIG_VOLUME, "configMap": {"name": name}}));
    }
}

/// The container that brings the library, and stays as the sidecar.
fn helper(spec: &Value, report: &Report, options: &Options) -> Value {
    let mut helper = json!({"name": NAME, "image": options.image, "imagePullPolicy": "IfNotPresent"});
    let mut mounts = vec![mount(LIB_VOLUME, LIB, false)];
    if options.mode == Mode::Sidecar {
        let mut args = vec![
            "sidecar".to_owned(),
            format!("--region={REGION}"),
            format!("--socket={SOCKET}"),
            format!("--install-lib={LIB}"),
        ];
        mounts.push(mount(REGION_VOLUME, REGION, false));
        if options.config_map.is_some() {
            args.push(format!("--config={WORKLOAD}"));
            mounts.push(mount(CONFIG_VOLUME, CONFIG, true));
        }
        helper["restartPolicy"] = json!("Always");
        helper["args"] = json!(args);
        // the socket is there when all else is: the library and the region
        helper["startupProbe"] =
            json!({"exec": {"command": ["freeboard", "ready", SOCKET]}, "periodSeconds": 1, "failureThreshold": 30});
    } else {
        helper["args"] = json!(["install", LIB]);
    }
    helper["resources"] = resources(spec);
    helper["securityContext"] = security_context(spec, report);
    helper["volumeMounts"] = json!(mounts);
    helper
}

/// Small, and with limits of everything where the pod is Guaranteed, so that it stays so.
fn resources(spec: &Value) -> Value {
    if is_guaranteed(spec) {
        let both = json!({"cpu": CPU_LIMIT, "memory": MEMORY});
        json!({"requests": both, "limits": both})
    } else {
        json!({"requests": {"cpu": CPU, "memory": MEMORY}, "limits": {"memory": MEMORY}})
    }
}

/// Whether Kubernetes gives the pod the class Guaranteed by its containers: limits of CPU and memory for each, and no
/// other requests.
fn is_guaranteed(spec: &Value) -> bool {
    let mut all = items(&spec["containers"]).iter().chain(items(&spec["initContainers"]));
    all.all(|container| {
        ["cpu", "memory"].iter().all(|resource| {
            let limit = quantity::nano(&container["resources"]["limits"][resource]);
            limit.is_some_and(|limit| limit > 0) && limit == requested(container, resource)
        })
    })
}

/// What the restricted Pod Security Standard asks for, as the user that the application has: the pod's, or what its
/// container sets. Where the image sets it, or the cluster will, ours does, too; for root it is the image's.
fn security_context(spec: &Value, report: &Report) -> Value {
    let mut context = json!({
        "runAsNonRoot": true,
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    let containers = items(&spec["containers"]);
    let first = containers.iter().find(|one| report.injected.iter().any(|name| one["name"] == *name.as_str()));
    let own = first.map_or(&Value::Null, |container| &container["securityContext"]);
    let id = |key: &str| if own[key].is_null() { &spec["securityContext"][key] } else { &own[key] };
    if id("runAsUser") == 0 {
        context["runAsUser"] = json!(USER);
        context["runAsGroup"] = json!(USER);
    } else {
        for key in ["runAsUser", "runAsGroup"] {
            if !own[key].is_null() {
                context[key] = own[key].clone();
            }
        }
    }
    context
}

/// Has a container of the application's use what the helper brings.
fn serve(container: &mut Value, options: &Options) {
    let is_run = options.mode == Mode::Run;
    if is_run {
        let mut command = vec![PROGRAM.to_owned(), "run".into(), "--quiet".into(), format!("--region={REGION}")];
        if options.config_map.is_some() {
            command.push(format!("--config={WORKLOAD}"));
        }
        command.push("--".into());
        list(container, "command").splice(0..0, command.into_iter().map(Value::from));
    }
    let env = list(container, "env");
    if !is_run {
        match env.iter_mut().rfind(|one| one["name"] == PRELOAD_VARIABLE) {
            Some(one) => one["value"] = preload::merge(LIBRARY, text(&one["value"])).into(),
            None => env.push(variable(PRELOAD_VARIABLE, LIBRARY)),
        }
    }
    if options.mode == Mode::Sidecar {
        env.extend([variable(REGION_VARIABLE, REGION), variable(SOCKET_VARIABLE, SOCKET)]);
    }
    if !options.stdio && !env.iter().any(|one| one["name"] == STDIO_VARIABLE) {
        env.push(variable(STDIO_VARIABLE, "0"));
    }
    if env.is_empty() {
        remove_key(container, "env");
    }
    let mounts = list(container, "volumeMounts");
    mounts.push(mount(LIB_VOLUME, LIB, true));
    if options.mode != Mode::Library {
        // under `freeboard run` the region is made by the container itself
        mounts.push(mount(REGION_VOLUME, REGION, !is_run));
    }
    if is_run && options.config_map.is_some() {
        mounts.push(mount(CONFIG_VOLUME, CONFIG, true));
    }
}

/// Takes everything out that [`add`] put in.
fn remove(pod: &mut Value) {
    if !is_injected(pod) {
        return;
    }
    let metadata = map(pod, "metadata");
    remove_key(map(metadata, "annotations"), STATUS);
    drop_if_empty(metadata, "annotations");
    drop_if_empty(pod, "metadata");
    let spec = &mut pod["spec"];
    take(spec, "initContainers", |container| container["name"] == NAME);
    take(spec, "volumes", |volume| VOLUMES.contains(&text(&volume["name"])));
    for container in list(spec, "containers") {
        if items(&container["volumeMounts"]).iter().any(|mount| mount["name"] == LIB_VOLUME) {
            no_longer_serve(container);
        }
    }
}

/// The inverse of [`serve`].
fn no_longer_serve(container: &mut Value) {
    take(container, "volumeMounts", |mount| VOLUMES.contains(&text(&mount["name"])));
    let command = list(container, "command");
    if command.first().is_some_and(|program| program == PROGRAM)
        && let Some(end) = command.iter().position(|word| word == "--")
    {
        command.drain(..=end);
    }
    drop_if_empty(container, "command");
    let env = list(container, "env");
    // ours is the last; one before the others is the application's
    if env.last() == Some(&variable(STDIO_VARIABLE, "0")) {
        env.pop();
    }
    env.retain_mut(|one| match text(&one["name"]) {
        REGION_VARIABLE | SOCKET_VARIABLE => false,
        PRELOAD_VARIABLE if one["value"].is_string() => match preload::take_out(LIBRARY, text(&one["value"])) {
            Some(rest) => {
                one["value"] = rest.into();
                true
            }
            None => false,
        },
        _ => true,
    });
    drop_if_empty(container, "env");
}

fn variable(name: &str, value: &str) -> Value {
    json!({"name": name, "value": value})
}

fn mount(volume: &str, path: &str, is_readonly: bool) -> Value {
    let mut mount = json!({"name": volume, "mountPath": path});
    if is_readonly {
        mount["readOnly"] = json!(true);
    }
    mount
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// A list in a map, made if it is missing. What is there is one: [`shape::check`].
fn list<'v>(holder: &'v mut Value, key: &str) -> &'v mut Vec<Value> {
    let value = &mut holder[key];
    if value.is_null() {
        *value = json!([]);
    }
    value.as_array_mut().expect("a list, as shape::check saw")
}

/// A map in a map, the same way.
fn map<'v>(holder: &'v mut Value, key: &str) -> &'v mut Value {
    let value = &mut holder[key];
    if value.is_null() {
        *value = json!({});
    }
    value
}

/// Takes items out of a list, and the list with the last of them.
fn take(holder: &mut Value, key: &str, is_taken: impl Fn(&Value) -> bool) {
    list(holder, key).retain(|item| !is_taken(item));
    drop_if_empty(holder, key);
}

fn drop_if_empty(holder: &mut Value, key: &str) {
    let is_empty = match &holder[key] {
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    };
    if is_empty {
        remove_key(holder, key);
    }
}

fn remove_key(holder: &mut Value, key: &str) {
    if let Some(map) = holder.as_object_mut() {
        // the others keep their order
        map.shift_remove(key);
    }
}
