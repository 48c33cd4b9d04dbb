//! Whether a pod is built as one: what the patch looks into is there, and of its kind. `null` is as good as nothing, as
//! everywhere in Kubernetes.

use serde_json::Value;

/// Looks at all that the patch and its inverse go through.
///
/// # Errors
/// The path of what is not as it must be, and what it must be.
pub fn check(pod: &Value) -> Result<(), String> {
    optional(pod, "", "metadata", "a map", Value::is_object)?;
    optional(&pod["metadata"], "metadata.", "annotations", "a map", Value::is_object)?;
    let spec = &pod["spec"];
    required("spec", spec, "a map", Value::is_object)?;
    let containers = &spec["containers"];
    required("spec.containers", containers, "a list", Value::is_array)?;
    for list in ["containers", "initContainers"] {
        objects(spec, "spec.", list)?;
        for (index, one) in items(&spec[list]).iter().enumerate() {
            container(one, &format!("spec.{list}[{index}]."))?;
        }
    }
    objects(spec, "spec.", "volumes")?;
    for map in ["securityContext", "os", "nodeSelector"] {
        optional(spec, "spec.", map, "a map", Value::is_object)?;
    }
    resources(spec, "spec.")
}

fn container(container: &Value, place: &str) -> Result<(), String> {
    for list in ["command", "args", "envFrom"] {
        optional(container, place, list, "a list", Value::is_array)?;
    }
    objects(container, place, "env")?;
    objects(container, place, "volumeMounts")?;
    optional(container, place, "securityContext", "a map", Value::is_object)?;
    resources(container, place)
}

fn resources(holder: &Value, place: &str) -> Result<(), String> {
    optional(holder, place, "resources", "a map", Value::is_object)?;
    for part in ["requests", "limits"] {
        optional(&holder["resources"], &format!("{place}resources."), part, "a map", Value::is_object)?;
    }
    Ok(())
}

/// A list of maps that each have a name.
fn objects(holder: &Value, place: &str, key: &str) -> Result<(), String> {
    optional(holder, place, key, "a list", Value::is_array)?;
    for (index, item) in items(&holder[key]).iter().enumerate() {
        required(&format!("{place}{key}[{index}]"), item, "a map", Value::is_object)?;
        required(&format!("{place}{key}[{index}].name"), &item["name"], "a text", Value::is_string)?;
    }
    Ok(())
}

fn optional(
    holder: &Value,
    place: &str,
    key: &str,
    kind: &str,
    is_kind: impl Fn(&Value) -> bool,
) -> Result<(), String> {
    let value = &holder[key];
    if value.is_null() { Ok(()) } else { required(&format!("{place}{key}"), value, kind, is_kind) }
}

fn required(path: &str, value: &Value, kind: &str, is_kind: impl Fn(&Value) -> bool) -> Result<(), String> {
    if value.is_null() {
        Err(format!("{path} is missing; mend: give it, {kind}"))
    } else if is_kind(value) {
        Ok(())
    } else {
        Err(format!("{path} is not {kind}; mend: make it one"))
    }
}

/// The items of a list, none where there is no list.
pub fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_place_and_the_mend_are_named() {
        let app = json!({"name": "app"});
        let cases = [
            (json!({}), "spec is missing; mend: give it, a map"),
            (json!({"spec": []}), "spec is not a map; mend: make it one"),
            (json!({"spec": {"containers": null}}), "spec.containers is missing; mend: give it, a list"),
            (json!({"spec": {"containers": [app, 1]}}), "spec.containers[1] is not a map; mend: make it one"),
            (
                json!({"spec": {"containers": [{"name": "app", "env": [{"name": 1}]}]}}),
                "spec.containers[0].env[0].name is not a text; mend: make it one",
            ),
            (
                json!({"spec": {"containers": [app], "initContainers": [{"name": "a", "resources": {"limits": 1}}]}}),
                "spec.initContainers[0].resources.limits is not a map; mend: make it one",
            ),
        ];
        for (pod, want) in cases {
            assert_eq!(check(&pod).unwrap_err(), want);
        }
        let nulls = json!({"metadata": null, "spec": {"containers": [{"name": "app", "env": null}], "volumes": null}});
        assert_eq!(check(&nulls), Ok(()));
    }
}
