//! Reads YAML.

use serde_json::Value;

/// Returns the value of a text with one document.
pub fn yaml(text: &str) -> Value {
    let [value] = <[Value; 1]>::try_from(plimsoll::yaml::values(text).unwrap()).unwrap();
    value
}
