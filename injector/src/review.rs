//! From the bytes of an AdmissionReview to those of its answer. Every answer lets the pod through.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use freeboard_inject::object::{self, LABEL, Name};
use freeboard_inject::report::Report;
use freeboard_inject::{Options, Reason};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";
/// Kubernetes may cut a longer warning.
const MOST_CHARACTERS: usize = 256;
/// The kubelet's own pods, which the API server only mirrors.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// The function from a pod to a pod.
pub type Inject = fn(&Value, &Options) -> Result<(Value, Report), String>;

/// Which pods get what.
#[derive(Clone)]
pub struct Rules {
    /// What they get.
    pub options: Options,
    /// Also importers of KubeVirt's CDI, which nobody can label but through their DataVolume.
    pub with_cdi: bool,
    /// [`freeboard_inject::pod::inject`].
    pub inject: Inject,
}

impl Rules {
    fn ask_for(&self, pod: &Value) -> bool {
        let labels = &pod["metadata"]["labels"];
        let is_importer = labels["cdi.kubevirt.io"] == "importer" && labels["app"] == "containerized-data-importer";
        let is_asked = object::is_labelled(pod) || (self.with_cdi && is_importer && labels[LABEL].is_null());
        is_asked && pod["metadata"]["annotations"][MIRROR].is_null()
    }
}

/// What became of a review.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The pod gets Freeboard.
    Injected,
    /// It has had it already.
    Already,
    /// It cannot have it.
    Skipped(Reason),
    /// Nobody asked for it, or this is no new pod.
    NotAsked,
    /// Something is wrong.
    Failed(Failure),
}

/// What can be wrong. As text, a word for machines.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Failure {
    /// The request is no AdmissionReview.
    Malformed,
    /// It is longer than any pod.
    TooLarge,
    /// It did not come to its end in time.
    TimedOut,
    /// The pod is not built as one.
    BadPod,
    /// There is a fault in this program.
    Panicked,
}

impl Failure {
    /// All there are.
    pub const ALL: [Failure; 5] =
        [Failure::Malformed, Failure::TooLarge, Failure::TimedOut, Failure::BadPod, Failure::Panicked];
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// The controller of a pod, which is told what became of it.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Owner {
    /// Group and version.
    pub api_version: String,
    /// Such as ReplicaSet.
    pub kind: String,
    /// In the pod's namespace.
    pub name: String,
    /// Tells it from another by that name.
    pub uid: String,
    #[serde(default)]
    controller: Option<bool>,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// What was decided.
    pub outcome: Outcome,
    /// Who asked for what, and what was done, in one line; empty where nobody asked for anything.
    pub said: String,
    /// Whom to tell, and the namespace. None where nothing may be left behind.
    pub owner: Option<(String, Owner)>,
    /// An AdmissionReview.
    pub body: Vec<u8>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Review {
    api_version: String,
    kind: String,
    request: Request,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    uid: String,
    kind: Kind,
    #[serde(default)]
    sub_resource: String,
    operation: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    dry_run: Option<bool>,
    #[serde(default)]
    object: Value,
}

#[derive(PartialEq, Deserialize)]
struct Kind {
    group: String,
    version: String,
    kind: String,
}

impl Request {
    fn is_new_pod(&self) -> bool {
        let Kind { group, version, kind } = &self.kind;
        (group.as_str(), version.as_str(), kind.as_str()) == ("", "v1", "Pod")
            && self.operation == "CREATE"
            && self.sub_resource.is_empty()
    }

    /// The pod as people find it: what a controller makes has no name yet.
    fn place(&self) -> String {
        format!("{}/{}", self.namespace, Name::of(&self.object).name)
    }

    fn owner(&self) -> Option<(String, Owner)> {
        let references = self.object["metadata"]["ownerReferences"].as_array()?;
        let mut owners = references.iter().filter_map(|one| Owner::deserialize(one).ok());
        let owner = owners.find(|owner| owner.controller == Some(true))?;
        (self.dry_run != Some(true)).then(|| (self.namespace.clone(), owner))
    }
}

#[cfg(panic = "abort")]
compile_error!("a panic would end the program, not let its pod through; mend: build it in its own workspace");

/// Decides on a review.
pub fn answer(body: &[u8], rules: &Rules) -> Answer {
    catch_unwind(AssertUnwindSafe(|| decide(body, rules)))
        .unwrap_or_else(|_| failed(body, Failure::Panicked, "the injector has a fault; mend: report what its log says"))
}

/// Lets a pod through because of what is wrong, which is said in one line with its mend. `body` is what has come of the
/// request: its head says whom the answer is for.
pub fn failed(body: &[u8], failure: Failure, what: &str) -> Answer {
    let said = clean(&format!("a pod is let through without Freeboard: {failure}: {what}"));
    let body = respond(&uid_in(body), None, Some(&said));
    Answer { outcome: Outcome::Failed(failure), said, owner: None, body }
}

fn decide(body: &[u8], rules: &Rules) -> Answer {
    let malformed = |what: &str| failed(body, Failure::Malformed, what);
    let review: Review = match serde_json::from_slice(body) {
        Ok(review) => review,
        Err(error) => return malformed(&format!("not an AdmissionReview: {error}; mend: see who asks /mutate")),
    };
    if (review.api_version.as_str(), review.kind.as_str()) != (API_VERSION, KIND) {
        return malformed("not an AdmissionReview of admission.k8s.io/v1; mend: set admissionReviewVersions: [v1]");
    }
    let request = review.request;
    if !request.is_new_pod() || !rules.ask_for(&request.object) {
        let body = respond(&request.uid, None, None);
        return Answer { outcome: Outcome::NotAsked, said: String::new(), owner: None, body };
    }
    let place = request.place();
    let (patched, report) = match (rules.inject)(&request.object, &rules.options) {
        Ok(done) => done,
        Err(what) => return failed(body, Failure::BadPod, &format!("{place}: {what}")),
    };
    let patch = json_patch::diff(&request.object, &patched);
    let outcome = match report.skipped.first() {
        _ if !report.injected.is_empty() && patch.is_empty() => Outcome::Already,
        Some(skip) if report.injected.is_empty() => Outcome::Skipped(skip.reason),
        _ => Outcome::Injected,
    };
    let left_alone = report.left_alone();
    let mut said = format!("pod {place}:");
    if !report.injected.is_empty() {
        said += &format!(" injected: {};", report.injected.join(", "));
    }
    if !left_alone.is_empty() {
        said += &format!(" left alone: {left_alone};");
    }
    let said = clean(said.trim_end_matches(';'));
    let warning = (!left_alone.is_empty()).then(|| clean(&format!("Freeboard leaves alone: {left_alone}")));
    let patch = (!patch.is_empty()).then_some(&patch);
    let body = respond(&request.uid, patch, warning.as_deref());
    Answer { outcome, said, owner: request.owner(), body }
}

fn respond(uid: &str, patch: Option<&json_patch::Patch>, warning: Option<&str>) -> Vec<u8> {
    let mut response = json!({"uid": uid, "allowed": true});
    if let Some(patch) = patch {
        response["patchType"] = json!("JSONPatch");
        response["patch"] = STANDARD.encode(json!(patch).to_string()).into();
    }
    if let Some(warning) = warning {
        response["warnings"] = json!([warning]);
    }
    json!({"apiVersion": API_VERSION, "kind": KIND, "response": response}).to_string().into_bytes()
}

/// Whom to answer where the rest cannot be read: the API server writes it first.
fn uid_in(body: &[u8]) -> String {
    let head = String::from_utf8_lossy(&body[..body.len().min(4096)]);
    let value = head.split_once("\"uid\"").map_or("", |(_, rest)| rest.trim_start());
    let text = value.strip_prefix(':').map_or("", |rest| rest.trim_start());
    let uid = text.strip_prefix('"').and_then(|rest| rest.split_once('"'));
    uid.map_or("", |(uid, _)| uid).to_owned()
}

/// One line that is not too long, whatever a pod's author made its name of.
fn clean(text: &str) -> String {
    text.chars().take(MOST_CHARACTERS).map(|one| if one.is_control() { ' ' } else { one }).collect()
}
