//! The messages to the runtime about sandboxes and containers.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use crate::image;
use crate::kubelet::double::{CONTROL, Kubelet, MESSAGES};
use crate::kubelet::script::put;
use crate::kubelet::spec::{ContainerSpec, PodSpec, Qos};

/// The oom_score_adj of containers in guaranteed pods.
const GUARANTEED_OOM_SCORE_ADJ: i64 = -997;

impl Kubelet<'_> {
    /// Returns the oom_score_adj that results from the kubelet's formula.
    pub fn oom_score_adj(&self, qos: Qos, container: &ContainerSpec) -> i64 {
        match qos {
            Qos::Guaranteed => GUARANTEED_OOM_SCORE_ADJ,
            Qos::BestEffort => 1000,
            Qos::Burstable => {
                let request = container.effective_request().unwrap_or(0);
                let share = (1000 * request / self.capacity).try_into().unwrap_or(1000);
                (1000_i64 - share).clamp(1000 + GUARANTEED_OOM_SCORE_ADJ, 999)
            }
        }
    }

    /// Adds to the script the commands that write the sandbox's message to a file on the node.
    ///
    /// Returns the path of the file.
    pub(super) fn put_sandbox_message(
        &self,
        script: &mut String,
        spec: &PodSpec,
        uid: &str,
        cgroup: &str,
    ) -> String {
        let directory = format!("{MESSAGES}/{uid}");
        let _ = writeln!(script, "mkdir -p {directory}");
        let message = format!("{directory}/pod.json");
        put(script, &message, &sandbox_message(spec, uid, cgroup));
        message
    }

    /// Adds to the script the commands that write a container's message to a file on the node.
    ///
    /// The commands also make the directory through which the workload receives commands. Returns
    /// the path of the file.
    pub(super) fn put_container_message(
        &self,
        script: &mut String,
        pod: &PodSpec,
        uid: &str,
        spec: &ContainerSpec,
    ) -> String {
        let control = format!("{CONTROL}/{uid}/{}", spec.name);
        let _ = writeln!(script, "rm -rf {control}; mkdir -p {control}; mkfifo {control}/started");
        let message = format!("{MESSAGES}/{uid}/{}.json", spec.name);
        put(script, &message, &self.container_message(pod, uid, spec, &control));
        message
    }

    fn container_message(
        &self,
        pod: &PodSpec,
        uid: &str,
        container: &ContainerSpec,
        control: &str,
    ) -> Value {
        let name = &container.name;
        let mut unified: Map<String, Value> =
            container.unified.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
        if self.group_kill {
            unified.entry("memory.oom.group").or_insert(json!("1"));
        }
        let oom_score_adj =
            container.oom_score_adj.unwrap_or_else(|| self.oom_score_adj(pod.qos(), container));
        let shares = container.effective_cpu_request().map_or(2, |cpu| (cpu * 1024 / 1000).max(2));
        let mut resources = json!({
            "cpu_period": 100_000,
            "cpu_shares": shares,
            "oom_score_adj": oom_score_adj,
            "unified": unified,
        });
        if let Some(cpu) = container.cpu_limit {
            resources["cpu_quota"] = json!(cpu * 100);
        }
        if let Some(limit) = container.memory_limit {
            // A swap limit that equals the memory limit allows no swap, like NoSwap in the kubelet.
            resources["memory_limit_in_bytes"] = json!(limit);
            resources["memory_swap_limit_in_bytes"] = json!(limit);
        }
        json!({
            "metadata": { "name": name, "attempt": 0 },
            "image": { "image": image::WORKLOAD },
            "labels": {
                "io.kubernetes.container.name": name,
                "io.kubernetes.pod.name": pod.name,
                "io.kubernetes.pod.namespace": "default",
                "io.kubernetes.pod.uid": uid,
            },
            "annotations": { "io.kubernetes.container.restartCount": "0" },
            "mounts": [{ "container_path": "/control", "host_path": control }],
            "log_path": format!("{name}.log"),
            "linux": {
                "resources": resources,
                "security_context": { "namespace_options": namespaces() },
            },
        })
    }
}

/// Returns the namespaces of sandbox and containers.
///
/// The network namespace is the node's, so that no CNI plugin is needed.
fn namespaces() -> Value {
    // In CRI, 0 is the pod's namespace, 1 is the container's own namespace and 2 is the node's.
    json!({ "network": 2, "pid": 1, "ipc": 0 })
}

fn sandbox_message(spec: &PodSpec, uid: &str, pod_cgroup: &str) -> Value {
    let mut annotations: Map<String, Value> =
        spec.annotations.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
    annotations.insert("kubernetes.io/config.source".to_owned(), json!("api"));
    let overhead = match spec.overhead {
        0 => json!({}),
        bytes => json!({ "memory_limit_in_bytes": bytes }),
    };
    // Sum the existing limits, even if another container has no limit.
    let mut resources = json!({ "cpu_period": 100_000 });
    let sum = |limit: fn(&ContainerSpec) -> Option<u64>| {
        spec.containers.iter().filter_map(limit).sum::<u64>()
    };
    for (name, limit) in [
        ("memory_limit_in_bytes", sum(|container| container.memory_limit)),
        ("cpu_quota", sum(|container| container.cpu_limit) * 100),
    ] {
        if limit > 0 {
            resources[name] = json!(limit);
        }
    }
    json!({
        "metadata": { "name": spec.name, "namespace": "default", "uid": uid, "attempt": 0 },
        "labels": {
            "io.kubernetes.pod.name": spec.name,
            "io.kubernetes.pod.namespace": "default",
            "io.kubernetes.pod.uid": uid,
        },
        "annotations": annotations,
        "log_directory": format!("/var/log/pods/default_{}_{uid}", spec.name),
        "linux": {
            "cgroup_parent": format!("/{pod_cgroup}"),
            "overhead": overhead,
            "resources": resources,
            "security_context": { "namespace_options": namespaces() },
        },
    })
}
