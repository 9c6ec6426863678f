//! Converts the JSON of a pod or pod template into typed fields, as Kubernetes does.

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Map, Value};

use crate::commands::explain::model::Mistake;
use crate::yaml::{self, WrongType};

/// Fields that map names to texts. A null value is an empty text.
const TEXTS: [&str; 3] = ["annotations", "labels", "nodeSelector"];

/// Fields that map names to quantities. A null value is 0.
const QUANTITIES: [&str; 3] = ["requests", "limits", "overhead"];

/// Converts a template into a pod. Ignores fields that a pod does not have.
pub(super) fn read_pod(mut template: Value) -> Result<Pod, Mistake> {
    replace_nulls("", &mut template);
    yaml::typed(&template)
        .map_err(|error: WrongType| Mistake::of_pod(&error.pointer, error.to_string()))
}

/// Replaces each null value as Go's JSON decoder does: by the empty value of the field's type. A
/// null field of a structure counts as absent.
fn replace_nulls(name: &str, value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let in_place = match name {
                _ if TEXTS.contains(&name) => Some(Value::from("")),
                _ if QUANTITIES.contains(&name) => Some(Value::from("0")),
                _ => None,
            };
            match in_place {
                Some(empty) => {
                    let nulls = fields.values_mut().filter(|value| value.is_null());
                    nulls.for_each(|value| *value = empty.clone());
                }
                None => fields.retain(|_, value| !value.is_null()),
            }
            fields.iter_mut().for_each(|(name, value)| replace_nulls(name, value));
        }
        Value::Array(items) => {
            let is_of_objects = items.iter().any(Value::is_object);
            for item in items {
                match item {
                    Value::Null if is_of_objects => *item = Value::Object(Map::new()),
                    Value::Null => *item = Value::from(""),
                    item => replace_nulls("", item),
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn null_becomes_the_empty_value() {
        let pod = json!({
            "metadata": {"labels": {"a": null}, "name": null},
            "spec": {
                "nodeName": null,
                "tolerations": [null, {"key": "a"}],
                "containers": [{
                    "name": "a",
                    "args": [null],
                    "env": null,
                    "resources": {"requests": {"memory": null}, "limits": null},
                }],
            },
        });
        let pod = read_pod(pod).map_err(|mistake| mistake.problem).unwrap();
        let labels = pod.metadata.labels.unwrap();
        assert_eq!((labels["a"].as_str(), pod.metadata.name), ("", None));
        let spec = pod.spec.unwrap();
        assert_eq!(spec.tolerations.unwrap().len(), 2);
        let container = &spec.containers[0];
        assert_eq!(container.args, Some(vec![String::new()]));
        let resources = container.resources.as_ref().unwrap();
        assert_eq!(resources.requests.as_ref().unwrap()["memory"].0, "0");
        assert_eq!(resources.limits, None);
    }

    #[test]
    fn wrong_types_are_described_in_plain_words() {
        for (container, pointer, problem) in [
            (json!({"tty": 3}), "/tty", "expected true or false, found the number 3"),
            (json!({"name": true}), "/name", "expected a text (put quotes around it), found true"),
            (json!({"args": "x"}), "/args", "expected a list, found 'x'"),
            (
                json!({"ports": [{"containerPort": "x"}]}),
                "/ports/0/containerPort",
                "expected a whole number, found 'x'",
            ),
            (json!({"resources": []}), "/resources", "expected a mapping, found a list"),
            (
                json!({"resources": {"limits": {"memory": []}}}),
                "/resources/limits/memory",
                "expected a quantity such as 128Mi, found a list",
            ),
            (
                json!({"livenessProbe": {"httpGet": {"port": []}}}),
                "/livenessProbe/httpGet/port",
                "expected a number or a text, found a list",
            ),
        ] {
            let template = json!({"spec": {"containers": [container]}});
            let mistake = read_pod(template).unwrap_err();
            assert_eq!(mistake.pointer, format!("/spec/containers/0{pointer}"));
            let field = pointer[1..].replace("/0/", "[0].").replace('/', ".");
            assert_eq!(mistake.problem, format!("spec.containers[0].{field}: {problem}"));
        }
    }
}
