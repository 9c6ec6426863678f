//! The kubelet's configuration file and its drop-ins, as one JSON object.
//!
//! Source: `loadConfigFile` and `mergeKubeletConfigurations` in `cmd/kubelet/app/server.go` of
//! Kubernetes.

use std::path::Path;

use serde_json::{Map, Value};
use walkdir::WalkDir;

use crate::host::files::{below, follow_link, read};
use crate::yaml::{self, describe};

/// Threshold that the kubelet uses if its configuration file has no `evictionHard`.
const DEFAULT_EVICTION: &str = "100Mi";

/// Maximum number of files in the directory with drop-ins.
const MOST_DROP_INS: usize = 1000;

/// A file of the kubelet that cannot be used: its path on the node, and the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unusable {
    pub(super) path: String,
    pub(super) why: String,
}

/// Reads the kubelet's configuration file. Returns `None` if the file does not exist.
pub(super) fn read_main(host: &Path, path: &str) -> Result<Option<Map<String, Value>>, Unusable> {
    let Some(mut config) = read_object(host, path)? else { return Ok(None) };
    add_default_eviction(&mut config);
    Ok(Some(config))
}

/// Adds the default of the hard eviction threshold for memory. The kubelet does so before it merges
/// the drop-ins.
pub(super) fn add_default_eviction(config: &mut Map<String, Value>) {
    let is_merged = config.get("mergeDefaultEvictionSettings") == Some(&Value::Bool(true));
    match config.get_mut("evictionHard") {
        Some(Value::Object(list)) if is_merged => {
            list.entry("memory.available").or_insert_with(|| DEFAULT_EVICTION.into());
        }
        None | Some(Value::Null) => {
            let mut list = Map::new();
            list.insert("memory.available".to_owned(), DEFAULT_EVICTION.into());
            config.insert("evictionHard".to_owned(), Value::Object(list));
        }
        Some(_) => {}
    }
}

/// Merges the drop-ins in a directory into the configuration, in the order of their paths. Returns
/// the paths of the drop-ins. A missing directory has no drop-ins.
pub(super) fn merge_drop_ins(
    host: &Path,
    directory: &str,
    config: &mut Map<String, Value>,
) -> Result<Vec<String>, Unusable> {
    let inside = follow_link(host, &below(host, directory));
    let mut paths = Vec::new();
    if !inside.exists() {
        return Ok(paths);
    }
    for entry in WalkDir::new(&inside).sort_by_file_name() {
        let entry = entry.map_err(|error| {
            let why =
                error.io_error().map_or_else(|| "a loop of links".to_owned(), ToString::to_string);
            Unusable { path: directory.to_owned(), why }
        })?;
        let name = entry.path().strip_prefix(&inside).unwrap_or(entry.path()).to_string_lossy();
        if entry.file_type().is_dir() || !name.ends_with(".conf") {
            continue;
        }
        let path = format!("{}/{name}", directory.trim_end_matches('/'));
        if paths.len() == MOST_DROP_INS {
            let why = format!("expected at most {MOST_DROP_INS} files");
            return Err(Unusable { path: directory.to_owned(), why });
        }
        let unusable = |why: String| Unusable { path: path.clone(), why };
        let Some(patch) = read_object(host, &path)? else {
            return Err(unusable("the file does not exist".to_owned()));
        };
        // The kubelet does not start with such a file.
        if !patch.contains_key("apiVersion") || !patch.contains_key("kind") {
            return Err(unusable("expected apiVersion and kind, found no such fields".to_owned()));
        }
        merge_patch(config, patch);
        paths.push(path);
    }
    Ok(paths)
}

/// Applies a JSON merge patch (RFC 7396).
fn merge_patch(target: &mut Map<String, Value>, patch: Map<String, Value>) {
    for (name, value) in patch {
        match value {
            Value::Null => _ = target.remove(&name),
            Value::Object(patch) => {
                let inner = target.entry(name).or_insert(Value::Null);
                if !inner.is_object() {
                    *inner = Value::Object(Map::new());
                }
                if let Value::Object(inner) = inner {
                    merge_patch(inner, patch);
                }
            }
            value => _ = target.insert(name, value),
        }
    }
}

/// Reads a file with a `KubeletConfiguration` in YAML or JSON. Returns `None` if the file does not
/// exist.
fn read_object(host: &Path, path: &str) -> Result<Option<Map<String, Value>>, Unusable> {
    let unusable = |why: String| Unusable { path: path.to_owned(), why };
    let text = read(&follow_link(host, &below(host, path))).map_err(|error| unusable(error.why))?;
    let Some(text) = text else { return Ok(None) };
    let documents = yaml::values(&text)
        .map_err(|error| unusable(format!("line {}: expected {error}", error.place.line)))?;
    match documents.into_iter().next() {
        None | Some(Value::Null) => Ok(Some(Map::new())),
        Some(Value::Object(config)) => match config.get("kind").and_then(Value::as_str) {
            None | Some("KubeletConfiguration") => Ok(Some(config)),
            Some(kind) => {
                let found = describe(&kind.into());
                Err(unusable(format!("expected kind KubeletConfiguration, found {found}")))
            }
        },
        Some(other) => {
            let found = describe(&other);
            Err(unusable(format!("expected a KubeletConfiguration, found {found}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use serde_json::json;

    use super::*;

    const HEADER: &str = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
    const DIRECTORY: &str = "/etc/kubernetes/kubelet.conf.d";

    fn host(files: &[(&str, &str)]) -> tempfile::TempDir {
        let host = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = below(host.path(), path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        host
    }

    fn merged(main: &str, drop_ins: &[(&str, &str)]) -> Result<Value, Unusable> {
        let drop_ins: Vec<_> = drop_ins
            .iter()
            .map(|(name, text)| (format!("{DIRECTORY}/{name}"), format!("{HEADER}{text}")))
            .collect();
        let files = drop_ins.iter().map(|(path, text)| (path.as_str(), text.as_str()));
        let host = host(&files.chain([("/main", main)]).collect::<Vec<_>>());
        let mut config = read_main(host.path(), "/main")?.unwrap();
        merge_drop_ins(host.path(), DIRECTORY, &mut config)?;
        config.retain(|name, _| name != "apiVersion" && name != "kind");
        Ok(Value::Object(config))
    }

    #[test]
    fn drop_ins_are_merged_in_order() {
        let drop_ins = [
            ("10-a.conf", "systemReserved: {memory: 2Gi}\nfeatureGates: {A: true, B: true}\n"),
            ("20/a.conf", "systemReserved: {cpu: 1}\nfeatureGates: {A: null}\n"),
            ("20/b.yaml", "systemReserved: {memory: 9Gi}\n"),
            ("30.conf", "kubeReserved: null\nenforceNodeAllocatable: [none]\n"),
        ];
        let main = "kubeReserved: {memory: 1Gi}\nsystemReserved: {memory: 1Gi}\n\
                    enforceNodeAllocatable: [pods]\nevictionHard: {}\n";
        assert_eq!(
            merged(main, &drop_ins),
            Ok(json!({
                "systemReserved": {"memory": "2Gi", "cpu": 1},
                "featureGates": {"B": true},
                "enforceNodeAllocatable": ["none"],
                "evictionHard": {},
            }))
        );
    }

    #[test]
    fn eviction_defaults_come_before_drop_ins() {
        let eviction = |main: &str, drop_in: &str| {
            let merged = merged(main, &[("1.conf", drop_in)]).unwrap();
            merged.get("evictionHard").cloned()
        };
        let default = json!({"memory.available": "100Mi"});
        assert_eq!(eviction("", ""), Some(default.clone()));
        assert_eq!(eviction("evictionHard: null", ""), Some(default.clone()));
        assert_eq!(eviction("evictionHard: {a: 1%}", ""), Some(json!({"a": "1%"})));
        assert_eq!(
            eviction("evictionHard: {a: 1%}\nmergeDefaultEvictionSettings: true", ""),
            Some(json!({"a": "1%", "memory.available": "100Mi"}))
        );
        assert_eq!(
            eviction("", "evictionHard: {a: 1%}"),
            Some(json!({"a": "1%", "memory.available": "100Mi"}))
        );
        assert_eq!(eviction("", "evictionHard: null"), None);
    }

    #[test]
    fn unusable_files_are_named() {
        let why = |main: &str| merged(main, &[]).unwrap_err().why;
        assert_eq!(
            why("a: [1\n"),
            "line 1: expected a comma or a closing bracket in a list or \
                                    mapping in brackets"
        );
        assert_eq!(why("kind: Pod"), "expected kind KubeletConfiguration, found 'Pod'");
        assert_eq!(why("- a"), "expected a KubeletConfiguration, found a list");
        let host = host(&[("/d/1.conf", "kind: KubeletConfiguration")]);
        let mut config = Map::new();
        let error = merge_drop_ins(host.path(), "/d", &mut config).unwrap_err();
        assert_eq!(error.path, "/d/1.conf");
        assert_eq!(error.why, "expected apiVersion and kind, found no such fields");
        assert_eq!(read_main(host.path(), "/missing"), Ok(None));
        assert_eq!(merge_drop_ins(host.path(), "/missing", &mut config), Ok(Vec::new()));
    }

    #[test]
    fn absolute_links_stay_on_the_host() {
        let host = host(&[("/real", "systemReserved: {memory: 1Gi}")]);
        symlink("/real", host.path().join("main")).unwrap();
        let config = read_main(host.path(), "/main").unwrap().unwrap();
        assert_eq!(config["systemReserved"], json!({"memory": "1Gi"}));
    }
}
