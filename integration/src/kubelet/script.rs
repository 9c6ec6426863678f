//! Parts of the scripts that the double runs on the node.

use std::fmt::Write;

use serde_json::Value;

/// Returns a script that starts a transient slice with the properties that the kubelet requests.
///
/// `systemctl start` waits for the job that `StartTransientUnit` began.
pub(super) fn start_slice(name: &str, properties: &[(&str, &str, &str)]) -> String {
    let mut script = format!(
        "busctl call org.freedesktop.systemd1 /org/freedesktop/systemd1 \
         org.freedesktop.systemd1.Manager \
         StartTransientUnit 'ssa(sv)a(sa(sv))' {name} replace {} DefaultDependencies b false \
         MemoryAccounting b true CPUAccounting b true TasksAccounting b true",
        4 + properties.len()
    );
    for (property, signature, value) in properties {
        let _ = write!(script, " {property} {signature} {value}");
    }
    let _ = writeln!(script, " 0 >/dev/null\nsystemctl start {name}");
    script
}

/// Returns a script that makes a cgroup.
///
/// The script enables the controllers that the kubelet enables for child cgroups.
pub(super) fn make_group(path: &str) -> String {
    format!("mkdir -p {path}; echo '+cpu +memory +pids' > {path}/cgroup.subtree_control\n")
}

pub(super) fn put(script: &mut String, path: &str, content: &Value) {
    let _ = writeln!(script, "cat > {path} <<'END-OF-JSON'\n{content}\nEND-OF-JSON");
}

pub(super) fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Returns a script that stops and removes sandboxes, with up to five attempts.
///
/// containerd fails (`ttrpc: closed`) to stop a container whose process has just ended. The kubelet
/// retries later, so the script retries too. One request stops all sandboxes. On a busy machine
/// this request takes longer than other requests.
pub(super) fn remove_sandboxes(request: &str) -> String {
    format!(
        "for attempt in 1 2 3 4 last; do
             if cri {request}; then break; fi
             [ $attempt != last ]
         done"
    )
}
