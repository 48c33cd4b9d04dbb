//! Where the pod stands in what a cluster knows.

use serde_json::Value;
use std::fmt;

/// The label that opts a pod in, and its value: labels travel from a KubeVirt DataVolume to its importer, annotations
/// do not.
pub const LABEL: &str = "freeboard.dev/inject";
const ENABLED: &str = "enabled";

/// An object as people name it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Name {
    /// As in `kind:`.
    pub kind: String,
    /// As in `metadata.name`, or `metadata.generateName`.
    pub name: String,
}

impl Name {
    /// The name of an object.
    pub fn of(object: &Value) -> Name {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let metadata = &object["metadata"];
        let name = if metadata["name"].is_string() { &metadata["name"] } else { &metadata["generateName"] };
        Name { kind: text(&object["kind"]), name: text(name) }
    }

    /// Takes `KIND/NAME`.
    ///
    /// # Errors
    /// It is not written so.
    pub fn parse(text: &str) -> Result<Name, String> {
        match text.split_once('/') {
            Some((kind, name)) if !kind.is_empty() && !name.is_empty() => {
                Ok(Name { kind: kind.into(), name: name.into() })
            }
            _ => Err("no object; mend: write KIND/NAME, such as Deployment/writer".into()),
        }
    }

    /// Whether both are the same object. Nobody writes the kind's capitals.
    pub fn is(&self, other: &Name) -> bool {
        self.kind.eq_ignore_ascii_case(&other.kind) && self.name == other.name
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.name)
    }
}

/// Where the pod stands in an object of this kind, as a JSON pointer. `None`: it has none that we know.
pub fn pod_path(object: &Value) -> Option<&'static str> {
    let version = object["apiVersion"].as_str()?;
    let group = version.split_once('/').map_or("", |(group, _)| group);
    match (group, object["kind"].as_str()?) {
        ("", "Pod") => Some(""),
        ("", "PodTemplate") => Some("/template"),
        ("", "ReplicationController")
        | ("apps", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet")
        | ("batch", "Job") => Some("/spec/template"),
        ("batch", "CronJob") => Some("/spec/jobTemplate/spec/template"),
        _ => None,
    }
}

/// Whether the label on the object or on its pod asks for Freeboard.
pub fn is_labelled(object: &Value) -> bool {
    let asks = |holder: &Value| holder["metadata"]["labels"][LABEL] == ENABLED;
    asks(object) || pod_path(object).and_then(|path| object.pointer(path)).is_some_and(asks)
}

/// Calls for each object of a document: a List's items, else the document itself.
pub fn each(document: &mut Value, call: &mut dyn FnMut(&mut Value)) {
    let is_list = document["kind"].as_str().is_some_and(|kind| kind.ends_with("List"));
    match document.get_mut("items") {
        Some(Value::Array(items)) if is_list => items.iter_mut().for_each(|item| each(item, call)),
        _ => call(document),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_kubernetes_own_kinds_are_looked_into() {
        let path = |version: &str, kind: &str| pod_path(&json!({"apiVersion": version, "kind": kind}));
        assert_eq!(path("v1", "Pod"), Some(""));
        assert_eq!(path("batch/v1", "CronJob"), Some("/spec/jobTemplate/spec/template"));
        assert_eq!(path("batch.volcano.sh/v1alpha1", "Job"), None);
        assert_eq!(path("v1", "Service"), None);
        assert_eq!(pod_path(&json!("text")), None);
    }

    #[test]
    fn objects_are_named_as_people_do() {
        let writer = Name::of(&json!({"kind": "Deployment", "metadata": {"name": "writer"}}));
        assert!(Name::parse("deployment/writer").unwrap().is(&writer));
        assert!(!Name::parse("pod/writer").unwrap().is(&writer));
        assert_eq!(Name::of(&json!({"metadata": {"generateName": "importer-"}})).name, "importer-");
        assert!(Name::parse("writer").is_err());
    }
}
