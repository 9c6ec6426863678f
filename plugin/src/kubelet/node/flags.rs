//! Flags of the kubelet that override its configuration file.
//!
//! Source: `kubeletConfigFlagPrecedence` in `cmd/kubelet/app/server.go` and `AddKubeletConfigFlags`
//! in `cmd/kubelet/app/options/options.go` of Kubernetes.

use plimsoll_core::units::excerpt;
use serde_json::{Map, Value};

use crate::kubelet::process::values;

/// Flags with a list of pairs, each with the field in the configuration and the character between
/// name and value.
const PAIRS: [(&str, &str, char); 3] = [
    ("--system-reserved", "systemReserved", '='),
    ("--kube-reserved", "kubeReserved", '='),
    ("--eviction-hard", "evictionHard", '<'),
];

/// Writes the values of the flags into the fields of the configuration. Returns a description of
/// each flag whose value is malformed.
pub(super) fn apply(flags: &[String], config: &mut Map<String, Value>) -> Vec<String> {
    let mut problems = Vec::new();
    for (flag, field, separator) in PAIRS {
        let mut pairs = Map::new();
        let mut is_given = false;
        for value in values(flags, flag) {
            is_given = true;
            for pair in value.split(',').filter(|pair| !pair.trim().is_empty()) {
                match pair.split_once(separator) {
                    Some((name, value)) => {
                        pairs.insert(name.trim().to_owned(), value.trim().into());
                    }
                    None => problems.push(format!(
                        "the kubelet's flag {flag}: expected NAME{separator}VALUE, found '{}'",
                        excerpt(pair)
                    )),
                }
            }
        }
        if is_given {
            config.insert(field.to_owned(), Value::Object(pairs));
        }
    }
    if let Some(list) = values(flags, "--enforce-node-allocatable").last() {
        let list: Vec<Value> = list.split(',').map(Value::from).collect();
        config.insert("enforceNodeAllocatable".to_owned(), Value::Array(list));
    }
    problems.extend(apply_gates(flags, config));
    problems
}

/// Adds the feature gates of the flags to those of the configuration.
fn apply_gates(flags: &[String], config: &mut Map<String, Value>) -> Vec<String> {
    let mut problems = Vec::new();
    let lists = values(flags, "--feature-gates");
    let pairs = lists.flat_map(|list| list.split(',')).filter_map(|gate| gate.split_once('='));
    for (name, value) in pairs {
        match boolean(value) {
            Some(value) => {
                let gates = config.entry("featureGates").or_insert(Value::Null);
                if !gates.is_object() {
                    *gates = Value::Object(Map::new());
                }
                gates[name.trim()] = value.into();
            }
            None => problems.push(format!(
                "the kubelet's flag --feature-gates sets {} to {}, expected true or false",
                excerpt(name.trim()),
                excerpt(value)
            )),
        }
    }
    problems
}

/// Parses a boolean as Go's `strconv.ParseBool` does.
fn boolean(text: &str) -> Option<bool> {
    match text.trim() {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn applied(config: Value, flags: &[&str]) -> (Value, Vec<String>) {
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let Value::Object(mut config) = config else { panic!() };
        let problems = apply(&flags, &mut config);
        (Value::Object(config), problems)
    }

    #[test]
    fn flags_replace_fields_and_add_gates() {
        let config = json!({
            "systemReserved": {"memory": "1Gi", "cpu": "1"},
            "evictionHard": {"memory.available": "1Gi"},
            "featureGates": {"A": true, "B": true},
        });
        let flags = [
            "--system-reserved",
            "memory=2Gi",
            "--eviction-hard=nodefs.available<10%,memory.available<5%",
            "--feature-gates=B=false",
            "--feature-gates=MemoryQoS=T",
            "--enforce-node-allocatable=pods,system-reserved",
        ];
        let expected = json!({
            "systemReserved": {"memory": "2Gi"},
            "evictionHard": {"memory.available": "5%", "nodefs.available": "10%"},
            "featureGates": {"A": true, "B": false, "MemoryQoS": true},
            "enforceNodeAllocatable": ["pods", "system-reserved"],
        });
        assert_eq!(applied(config, &flags), (expected, Vec::new()));
        assert_eq!(applied(json!({}), &["--eviction-hard="]).0, json!({"evictionHard": {}}));
        assert_eq!(
            applied(json!({"featureGates": null}), &["--feature-gates=A=0"]).0,
            json!({"featureGates": {"A": false}})
        );
    }

    #[test]
    fn malformed_flags_are_described() {
        let (_, problems) =
            applied(json!({}), &["--kube-reserved=1Gi", "--feature-gates=MemoryQoS=no"]);
        assert_eq!(
            problems,
            [
                "the kubelet's flag --kube-reserved: expected NAME=VALUE, found '1Gi'",
                "the kubelet's flag --feature-gates sets MemoryQoS to no, expected true or false",
            ]
        );
    }

    #[test]
    fn booleans_have_the_forms_of_go() {
        for value in ["1", "t", "T", "TRUE", "true", "True"] {
            assert_eq!(boolean(value), Some(true), "{value}");
        }
        for value in ["0", "f", "F", "FALSE", "false", "False"] {
            assert_eq!(boolean(value), Some(false), "{value}");
        }
        for value in ["", "no", "fALSE", "off"] {
            assert_eq!(boolean(value), None, "{value}");
        }
    }
}
