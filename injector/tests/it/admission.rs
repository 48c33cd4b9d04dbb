//! Reviews and their answers.

#[path = "../../../inject/tests/cases/mod.rs"]
mod cases;

use crate::api::Api;
use crate::client::{self, Sender, post, send};
use crate::{Replica, Time, eventually, rules};
use axum::body::Body;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use freeboard_inject::object::{self, LABEL};
use freeboard_inject::stream;
use freeboard_injector::review::{self, Rules};
use serde_json::{Value, json};
use std::fs;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

const UID: &str = "705ab4f5-6393-11e8-b7cc-42010a800002";

/// As the API server of Kubernetes 1.33 writes it for a pod of a ReplicaSet.
pub(crate) fn review(object: Value) -> Value {
    let kind = json!({"group": "", "version": "v1", "kind": "Pod"});
    let resource = json!({"group": "", "version": "v1", "resource": "pods"});
    json!({
        "kind": "AdmissionReview",
        "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": UID,
            "kind": kind,
            "resource": resource,
            "requestKind": kind,
            "requestResource": resource,
            "namespace": "shop",
            "operation": "CREATE",
            "userInfo": {
                "username": "system:serviceaccount:kube-system:replicaset-controller",
                "uid": "f1a7ab32-6b5d-4d9e-9f2b-2a5a1d0ff4b5",
                "groups": ["system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"],
                "extra": {"authentication.kubernetes.io/credential-id": ["JTI=a2bd2e5a-8c87-43a2-8b4c-4f6a1f2f0a5e"]}
            },
            "object": object,
            "oldObject": null,
            "dryRun": false,
            "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"}
        }
    })
}

/// A pod of a ReplicaSet that asks for Freeboard.
pub(crate) fn pod() -> Value {
    json!({
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": {
            "generateName": "web-7c9fd8c5b-",
            "creationTimestamp": null,
            "labels": {"app": "web", "pod-template-hash": "7c9fd8c5b", LABEL: "enabled"},
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-7c9fd8c5b",
                "uid": "0f4b2c3e-1c0d-4f5a-9a51-7b7c0a7b8f10", "controller": true, "blockOwnerDeletion": true
            }]
        },
        "spec": {
            "containers": [{
                "name": "app", "image": "shop/web:1", "resources": {"limits": {"memory": "200Mi"}},
                "volumeMounts": [{
                    "name": "kube-api-access-x", "readOnly": true,
                    "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"
                }],
                "terminationMessagePath": "/dev/termination-log", "imagePullPolicy": "IfNotPresent"
            }],
            "volumes": [{"name": "kube-api-access-x", "projected": {"sources": [], "defaultMode": 420}}],
            "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler"
        },
        "status": {}
    })
}

/// An injector and a connection to it.
struct Asked {
    api: Api,
    replica: Replica,
    sender: Sender,
}

impl Asked {
    async fn start(rules: Rules) -> Asked {
        let (api, time) = (Api::start().await, Time::default());
        let replica = Replica::start(&api, &time, rules).await;
        replica.ready().await;
        let stream = client::tls(replica.webhook, &api.bundle().unwrap(), &time).await.unwrap();
        Asked { api, replica, sender: client::http(stream).await }
    }

    /// The answer, which lets the pod through.
    async fn ask(&mut self, body: impl Into<Body>) -> Value {
        let (status, answer) = send(&mut self.sender, post(body)).await;
        assert_eq!(status, 200);
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        assert_eq!(answer["apiVersion"], "admission.k8s.io/v1");
        assert_eq!(answer["kind"], "AdmissionReview");
        assert_eq!(answer["response"]["allowed"], true);
        answer["response"].clone()
    }

    async fn ask_for(&mut self, review: &Value) -> Value {
        let response = self.ask(review.to_string()).await;
        assert_eq!(response["uid"], UID);
        response
    }

    /// What is told of admissions with these labels.
    async fn count(&self, labels: &str) -> u64 {
        let (_, text) = client::get(self.replica.plain, "/metrics").await;
        let start = format!("freeboard_injector_admissions_total{{{labels}}} ");
        text.lines().find_map(|line| line.strip_prefix(&start)).map_or(0, |count| count.parse().unwrap())
    }
}

/// What becomes of an object by a response's patch.
fn patched(object: &Value, response: &Value) -> Value {
    let mut object = object.clone();
    if let Some(text) = response["patch"].as_str() {
        assert_eq!(response["patchType"], "JSONPatch");
        let patch: json_patch::Patch = serde_json::from_slice(&STANDARD.decode(text).unwrap()).unwrap();
        json_patch::patch(&mut object, &patch).unwrap();
    }
    object
}

/// The pods in a stream, each as an API server would have it.
fn pods(text: &str) -> Vec<Value> {
    let mut pods = Vec::new();
    stream::edit(text, None, &mut |object| {
        if let Some(template) = object::pod_path(object).and_then(|path| object.pointer(path)) {
            let mut pod = template.clone();
            pod["apiVersion"] = json!("v1");
            pod["kind"] = json!("Pod");
            pod["metadata"]["generateName"] = json!("web-");
            pod["metadata"]["labels"][LABEL] = json!("enabled");
            pods.push(pod);
        }
        Ok(())
    })
    .unwrap();
    pods
}

#[tokio::test]
async fn a_pod_becomes_what_freeboard_inject_makes_of_it() {
    let mut injected = 0;
    for (name, path) in cases::cases() {
        let text = fs::read_to_string(&path).unwrap();
        let by_hand = pods(&fs::read_to_string(path.with_file_name(format!("{name}.injected.yaml"))).unwrap());
        let mut asked = Asked::start(Rules { options: cases::options(&text), ..rules() }).await;
        for (pod, want) in pods(&text).iter().zip(&by_hand) {
            let response = asked.ask_for(&review(pod.clone())).await;
            assert_eq!(patched(pod, &response), *want, "{name}");
            assert_eq!(response["patch"].is_null(), pod == want, "{name}");
            // asked once more, as after another webhook has changed the pod
            let again = asked.ask_for(&review(want.clone())).await;
            assert_eq!(again["patch"], Value::Null, "{name}");
            injected += usize::from(pod != want);
        }
        assert_eq!(asked.count(r#"result="injected",reason="""#).await > 0, pods(&text) != by_hand, "{name}");
    }
    assert!(injected > 20, "{injected}");
}

#[tokio::test]
async fn what_nobody_asked_for_is_left_alone() {
    let mut asked = Asked::start(rules()).await;
    let with = |pointer: &str, value: Value| {
        let mut review = review(pod());
        *review.pointer_mut(pointer).expect(pointer) = value;
        review
    };
    let mut mirror = pod();
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "8d0f"});
    let mut exec = with("/request/operation", json!("CONNECT"));
    exec["request"]["subResource"] = json!("exec");
    let mut deleted = with("/request/operation", json!("DELETE"));
    deleted["request"]["object"] = Value::Null;
    let label = "/request/object/metadata/labels/freeboard.dev~1inject";
    for review in [
        with("/request/operation", json!("UPDATE")),
        deleted,
        exec,
        with("/request/kind/kind", json!("Deployment")),
        with("/request/kind/group", json!("metrics.k8s.io")),
        with(label, json!("disabled")),
        with("/request/object/metadata", json!({"name": "bare"})),
        with("/request/object/metadata", json!("odd")),
        with("/request/object", json!([])),
        review(mirror),
    ] {
        assert_eq!(asked.ask_for(&review).await, json!({"uid": UID, "allowed": true}), "{review}");
    }
    assert_eq!(asked.count(r#"result="not-asked",reason="""#).await, 10);
    assert!(asked.api.events().is_empty());
}

#[tokio::test]
async fn importers_are_known_by_their_own_labels_where_that_is_asked_for() {
    let mut importer = pod();
    importer["metadata"]["name"] = json!("importer-disk");
    let prometheus = ("prometheus.cdi.kubevirt.io", "true");
    let labels = [("app", "containerized-data-importer"), ("cdi.kubevirt.io", "importer"), prometheus];
    importer["metadata"]["labels"] = labels.iter().map(|(key, value)| (key.to_string(), json!(value))).collect();
    let mut switched_off = importer.clone();
    switched_off["metadata"]["labels"][LABEL] = json!("disabled");
    let mut uploader = importer.clone();
    uploader["metadata"]["labels"]["cdi.kubevirt.io"] = json!("cdi-upload-server");
    for (with_cdi, pod, is_injected) in [
        (true, &importer, true),
        (true, &switched_off, false),
        (true, &uploader, false),
        (true, &pod(), true),
        (false, &importer, false),
    ] {
        let mut asked = Asked::start(Rules { with_cdi, ..rules() }).await;
        let response = asked.ask_for(&review(pod.clone())).await;
        assert_eq!(response["patch"].is_string(), is_injected, "{with_cdi} {pod}");
    }
}

#[tokio::test]
async fn whatever_is_wrong_the_pod_is_let_through_with_a_warning() {
    let mut asked = Asked::start(rules()).await;
    let whole = review(pod()).to_string();
    let mut bad_pod = review(pod());
    bad_pod["request"]["object"]["spec"]["containers"] = json!(["a\nb"]);
    let mut older = review(pod());
    older["apiVersion"] = json!("admission.k8s.io/v1beta1");
    let mut without_operation = review(pod());
    without_operation["request"].as_object_mut().unwrap().remove("operation");
    let deep = whole.replace("\"status\":{}", &format!("\"status\":{}{}", "[".repeat(500), "]".repeat(500)));
    let large = whole.replace("shop/web:1", &"x".repeat(5 << 20));
    for (reason, body, uid, words) in [
        ("malformed", String::new(), "", "not an AdmissionReview: EOF"),
        ("malformed", "\u{0}".into(), "", "not an AdmissionReview: "),
        ("malformed", "{}".into(), "", "missing field `apiVersion`"),
        ("malformed", whole[..whole.len() / 2].into(), UID, "EOF while parsing"),
        ("malformed", deep, UID, "recursion limit"),
        ("malformed", older.to_string(), UID, "mend: set admissionReviewVersions: [v1]"),
        ("malformed", without_operation.to_string(), UID, "missing field `operation`"),
        (
            "bad-pod",
            bad_pod.to_string(),
            UID,
            "shop/web-7c9fd8c5b-: spec.containers[0] is not a map; mend: make it one",
        ),
        ("too-large", large, UID, "more than 4 MiB; mend: make the pod smaller"),
    ] {
        let response = asked.ask(body).await;
        let warning = response["warnings"][0].as_str().unwrap();
        assert!(warning.contains(words) && warning.contains(reason), "{reason}: {warning}");
        assert!(warning.len() <= 256 && !warning.contains('\n'), "{warning}");
        assert_eq!((&response["uid"], &response["patch"]), (&json!(uid), &Value::Null), "{reason}");
    }
    assert_eq!(asked.count(r#"result="failed",reason="malformed""#).await, 7);
    assert_eq!(asked.count(r#"result="failed",reason="bad-pod""#).await, 1);
    assert_eq!(asked.count(r#"result="failed",reason="too-large""#).await, 1);
    // and goes on
    assert!(asked.ask_for(&review(pod())).await["patch"].is_string());
}

/// A review that is cut anywhere, or has any byte of it changed, whichever way it is then read.
#[test]
fn whatever_a_review_becomes_the_pod_is_let_through() {
    let whole = review(pod()).to_string().into_bytes();
    let rules = rules();
    let is_let_through = |body: &[u8]| {
        let answer: Value = serde_json::from_slice(&review::answer(body, &rules).body).unwrap();
        answer["response"]["allowed"] == true && answer["response"]["uid"].is_string()
    };
    for place in 0..whole.len() {
        assert!(is_let_through(&whole[..place]), "cut at {place}");
        let mut changed = whole.clone();
        changed[place] = b"\"{[9\0\xff"[place % 6];
        assert!(is_let_through(&changed), "changed at {place}");
    }
}

#[tokio::test]
async fn a_panic_lets_its_pod_through_and_ends_nothing() {
    let mut asked = Asked::start(Rules { inject: |_, _| panic!("on purpose"), ..rules() }).await;
    for _ in 0..2 {
        let response = asked.ask_for(&review(pod())).await;
        assert!(response["warnings"][0].as_str().unwrap().contains("panicked: the injector has a fault"));
    }
    assert_eq!(asked.count(r#"result="failed",reason="panicked""#).await, 2);
}

/// A body whose parts come as they are sent.
fn in_parts() -> (mpsc::Sender<Bytes>, Body) {
    struct Parts(mpsc::Receiver<Bytes>);
    impl hyper::body::Body for Parts {
        type Data = Bytes;
        type Error = std::convert::Infallible;
        fn poll_frame(
            mut self: std::pin::Pin<&mut Self>,
            context: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, Self::Error>>> {
            self.0.poll_recv(context).map(|part| part.map(|part| Ok(hyper::body::Frame::data(part))))
        }
    }
    let (sender, parts) = mpsc::channel(2);
    (sender, Body::new(Parts(parts)))
}

#[tokio::test]
async fn who_does_not_finish_a_request_is_answered_in_time() {
    let mut asked = Asked::start(rules()).await;
    let whole = review(pod()).to_string();
    let (parts, body) = in_parts();
    parts.send(whole[..whole.len() / 2].to_owned().into()).await.unwrap();
    let begin = Instant::now();
    let response = asked.ask(body).await;
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    assert_eq!(response["uid"], UID);
    assert!(response["warnings"][0].as_str().unwrap().contains("timed-out: it did not come whole within 3 s"));
    assert_eq!(asked.count(r#"result="failed",reason="timed-out""#).await, 1);
}

#[tokio::test]
async fn what_is_under_way_at_the_end_is_answered() {
    let Asked { api, replica, mut sender } = Asked::start(rules()).await;
    let (webhook, plain) = (replica.webhook, replica.plain);
    let whole = review(pod()).to_string();
    let (parts, body) = in_parts();
    parts.send(whole[..9].to_owned().into()).await.unwrap();
    let asking = tokio::spawn(async move { send(&mut sender, post(body)).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    let running = replica.end();
    eventually("no longer ready", async || client::get(plain, "/readyz").await.0 == 503).await;
    // nobody may have heard yet: new connections are taken
    let time = Time::default();
    client::tls(webhook, &api.bundle().unwrap(), &time).await.unwrap();
    eventually("closed", async || tokio::net::TcpStream::connect(webhook).await.is_err()).await;
    assert!(!running.is_finished());
    parts.send(whole[9..].to_owned().into()).await.unwrap();
    drop(parts);
    let (status, answer) = asking.await.unwrap();
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    assert!(status == 200 && answer["response"]["patch"].is_string());
    tokio::time::timeout(Duration::from_secs(5), running).await.expect("it ends").unwrap();
}

#[tokio::test]
async fn owners_are_told_once_and_nobody_waits_for_it() {
    let mut asked = Asked::start(rules()).await;
    let mut skipped = review(pod());
    skipped["request"]["object"]["spec"]["containers"][0]["resources"] = json!({});
    let response = asked.ask_for(&skipped).await;
    let why = "app (no-memory-limit; mend: set resources.limits.memory, or ask with --without-limit)";
    assert_eq!(response["warnings"], json!([format!("Freeboard leaves alone: {why}")]));
    assert_eq!(asked.count(r#"result="skipped",reason="no-memory-limit""#).await, 1);
    for _ in 0..3 {
        asked.ask_for(&review(pod())).await;
    }
    eventually("told", async || asked.api.events().len() == 2).await;
    let of = |events: &[Value], reason: &str| events.iter().find(|event| event["reason"] == reason).cloned().unwrap();
    let events = asked.api.events();
    let event = of(&events, "FreeboardSkipped");
    let want = format!("pod shop/web-7c9fd8c5b-: left alone: {why}");
    assert_eq!((&event["message"], &event["type"]), (&json!(want), &json!("Warning")));
    let owner = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-7c9fd8c5b", "namespace": "shop",
        "uid": "0f4b2c3e-1c0d-4f5a-9a51-7b7c0a7b8f10"});
    assert_eq!((&event["involvedObject"], &event["metadata"]["namespace"]), (&owner, &json!("shop")));
    let event = of(&events, "FreeboardInjected");
    assert_eq!(
        (&event["message"], &event["type"]),
        (&json!("pod shop/web-7c9fd8c5b-: injected: app"), &json!("Normal"))
    );

    // a dry run, a node's pod and one of nobody's leave nothing behind
    let another = |change: fn(&mut Value)| {
        let mut review = review(pod());
        review["request"]["object"]["metadata"]["ownerReferences"][0]["uid"] = json!("another");
        change(&mut review);
        review
    };
    for review in [
        another(|review| review["request"]["dryRun"] = json!(true)),
        another(|review| review["request"]["object"]["metadata"]["ownerReferences"][0]["kind"] = json!("Node")),
        another(|review| review["request"]["object"]["metadata"]["ownerReferences"][0]["controller"] = json!(false)),
        another(|review| review["request"]["object"]["metadata"]["ownerReferences"] = Value::Null),
    ] {
        assert!(asked.ask_for(&review).await["patch"].is_string());
    }
    // nor is anything lost where the API server takes none
    asked.api.state().is_down = true;
    assert!(asked.ask_for(&another(|_| ())).await["patch"].is_string());
    let told = "freeboard_injector_events_total{result=\"failed\"} 1";
    let plain = asked.replica.plain;
    eventually("counted", async || client::get(plain, "/metrics").await.1.contains(told)).await;
    assert_eq!(asked.api.events().len(), 2);
}

#[tokio::test]
async fn health_and_metrics_are_told_without_tls() {
    let asked = Asked::start(rules()).await;
    let plain = asked.replica.plain;
    assert_eq!(client::get(plain, "/healthz").await, (200, "ok\n".into()));
    assert_eq!(client::get(plain, "/mutate").await.0, 404);
    let (_, text) = client::get(plain, "/metrics").await;
    let expiry = Time::default().now_s() + freeboard_injector::certificates::LIFETIME_S;
    let version = env!("CARGO_PKG_VERSION");
    for line in [
        format!("freeboard_injector_certificate_expiry_timestamp_seconds {expiry}"),
        format!("freeboard_injector_cluster_seen_timestamp_seconds {}", Time::default().now_s()),
        format!("freeboard_injector_build_info{{version=\"{version}\"}} 1"),
        "# TYPE freeboard_injector_admissions counter".into(),
        "# EOF".into(),
    ] {
        assert!(text.lines().any(|one| one == line), "{line} is not in:\n{text}");
    }
}
