//! Whatever a pod looks like: a second pass changes nothing, `uninject` gives it back, and what is not ours stays.

use freeboard_inject::{Mode, Options, pod};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Now and then one of the values, else none.
fn maybe(values: Vec<Value>) -> impl Strategy<Value = Value> {
    prop_oneof![Just(Value::Null), proptest::sample::select(values)]
}

/// A map of what there is of these.
fn map(fields: Vec<(&'static str, BoxedStrategy<Value>)>) -> BoxedStrategy<Value> {
    let (keys, values): (Vec<_>, Vec<_>) = fields.into_iter().unzip();
    let of = move |values: Vec<Value>| {
        keys.iter()
            .zip(values)
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key.to_string(), value))
            .collect()
    };
    values.prop_map(move |values| Value::Object(of(values))).boxed()
}

/// A list that is not empty, or none.
fn list(item: BoxedStrategy<Value>, most: usize) -> BoxedStrategy<Value> {
    let list = proptest::collection::vec(item, 0..=most);
    list.prop_map(|list| if list.is_empty() { Value::Null } else { Value::Array(list) }).boxed()
}

fn variable() -> BoxedStrategy<Value> {
    let values = vec!["", "/a.so", "/a.so:/b.so", "/a.so /b.so", ":", " /a.so", "x:/a.so "];
    let preload = proptest::sample::select(values).prop_map(|value| json!({"name": "LD_PRELOAD", "value": value}));
    let others = [
        json!({"name": "A", "value": "yes"}),
        json!({"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}),
        json!({"name": "LD_PRELOAD", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}}),
        json!({"name": "FREEBOARD_DEEP", "value": "1"}),
        json!({"name": "FREEBOARD_REGION", "value": "/run"}),
    ];
    prop_oneof![2 => preload, 3 => proptest::sample::select(others.to_vec())].boxed()
}

fn container() -> BoxedStrategy<Value> {
    let names = ["app", "proxy", "logs", "freeboard"].map(Value::from);
    let quantities =
        || maybe(vec![json!("1"), json!(1), json!("500m"), json!("64Mi"), json!("1Gi"), json!("nonsense")]).boxed();
    let amounts = || map(vec![("cpu", quantities()), ("memory", quantities())]);
    let mounts =
        ["/data", "/freeboard", "/freeboard/lib", "/freeboards"].map(|path| json!({"name": "data", "mountPath": path}));
    map(vec![
        ("unknown", maybe(vec![json!({"deep": [1.5, null]})]).boxed()),
        ("name", proptest::sample::select(names.to_vec()).boxed()),
        ("command", maybe(vec![json!(["sh", "-c", "true"]), json!(["--", "x"])]).boxed()),
        ("env", list(variable(), 4)),
        ("envFrom", maybe(vec![json!([{"prefix": "L"}]), json!([{"prefix": "X"}])]).boxed()),
        ("resources", map(vec![("limits", amounts()), ("requests", amounts())])),
        ("securityContext", maybe(vec![json!({"runAsUser": 0}), json!({"runAsUser": 7, "runAsGroup": 8})]).boxed()),
        ("volumeMounts", list(proptest::sample::select(mounts.to_vec()).boxed(), 2)),
        ("restartPolicy", maybe(vec![json!("Always")]).boxed()),
    ])
}

/// As the API server has it: no two by one name.
fn of_different_names(mut containers: Vec<Value>) -> Value {
    let mut names = Vec::new();
    containers.retain(|one| {
        let is_new = !names.contains(&one["name"]);
        names.push(one["name"].clone());
        is_new
    });
    Value::Array(containers)
}

fn any_pod() -> BoxedStrategy<Value> {
    let containers = proptest::collection::vec(container(), 1..4).prop_map(of_different_names).boxed();
    let annotations = maybe(vec![json!({"a": "b"})]).boxed();
    let volumes = ["data", "more", "freeboard-lib"].map(|name| json!({"name": name, "emptyDir": {}}));
    let spec = map(vec![
        ("initContainers", list(container(), 2)),
        ("containers", containers),
        ("volumes", list(proptest::sample::select(volumes.to_vec()).boxed(), 2)),
        ("resources", maybe(vec![json!({"limits": {"memory": "2Gi"}}), json!({"requests": {"memory": 1}})]).boxed()),
        ("securityContext", maybe(vec![json!({"runAsUser": 0}), json!({"runAsUser": 7})]).boxed()),
        ("os", maybe(vec![json!({"name": "linux"}), json!({"name": "windows"})]).boxed()),
    ]);
    let metadata = map(vec![("name", Just(json!("x")).boxed()), ("annotations", annotations)]);
    map(vec![("metadata", metadata), ("spec", spec), ("unknown", maybe(vec![json!(1)]).boxed())])
}

fn any_options() -> impl Strategy<Value = Options> {
    let mode = prop_oneof![3 => Just(Mode::Sidecar), 1 => Just(Mode::Library), 1 => Just(Mode::Run)];
    (mode, any::<[bool; 4]>()).prop_map(|(mode, [stdio, without_limit, has_config, is_one])| Options {
        mode,
        stdio,
        without_limit,
        config_map: has_config.then(|| "workload".into()),
        containers: if is_one { vec!["app".into()] } else { Vec::new() },
        ..Options::default()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_goes_in_comes_out(pod in any_pod(), options in any_options(), other in any_options()) {
        let (injected, report) = pod::inject(&pod, &options).unwrap();
        prop_assert_eq!(pod::is_injected(&injected), !report.injected.is_empty());
        prop_assert_eq!(pod::uninject(&injected).unwrap(), pod.clone());
        // as texts: the order of the keys, too
        let (again, same) = pod::inject(&injected, &options).unwrap();
        prop_assert_eq!(again.to_string(), injected.to_string());
        prop_assert_eq!(same, report.clone());
        prop_assert_eq!(pod::inject(&injected, &other).unwrap().0, pod::inject(&pod, &other).unwrap().0);

        // never in containers; first where it is
        let names = |pod: &Value, list: &str| -> Vec<Value> {
            pod["spec"][list].as_array().into_iter().flatten().map(|one| one["name"].clone()).collect()
        };
        prop_assert_eq!(names(&injected, "containers"), names(&pod, "containers"));
        let helper = usize::from(!report.injected.is_empty());
        prop_assert_eq!(&names(&injected, "initContainers")[helper..], &names(&pod, "initContainers")[..]);
    }
}
