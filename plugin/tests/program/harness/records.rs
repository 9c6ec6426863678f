//! The checkpoint files of the kubelet on a node.

use crate::harness::node::Node;

impl Node {
    /// Writes a checkpoint file of the kubelet. Each element of `requests` is a pod UID, a
    /// container name and a memory request in bytes.
    pub fn checkpoint(&self, file: &str, requests: &[(&str, &str, i64)]) {
        let mut entries = serde_json::Map::new();
        for (uid, container, request) in requests {
            let resources = serde_json::json!({ "requests": { "memory": request.to_string() } });
            let entry = serde_json::json!({ "ContainerResources": { *container: resources } });
            entries.insert((*uid).to_owned(), entry);
        }
        let data = serde_json::json!({ "entries": entries }).to_string();
        let checkpoint = serde_json::json!({ "data": data, "checksum": 1 }).to_string();
        self.replace(&format!("host/var/lib/kubelet/{file}"), &checkpoint);
    }

    /// Writes both checkpoint files of the kubelet for a pod that has its own memory limit
    /// (`spec.resources`).
    pub fn checkpoint_with_pod_limit(
        &self,
        uid: &str,
        request: &str,
        limit: &str,
        pod_limit: &str,
    ) {
        let app =
            serde_json::json!({ "requests": { "memory": request }, "limits": { "memory": limit } });
        self.checkpoint_of_pod(
            uid,
            &serde_json::json!({ "app": app }),
            &serde_json::json!({ "limits": { "memory": pod_limit } }),
        );
    }

    /// Writes both checkpoint files of the kubelet for a pod whose containers have these limits in
    /// MiB. 0 means no limit. The checkpoint has no pod-level resources, as in Kubernetes 1.34.
    pub fn checkpoint_with_limits(&self, uid: &str, limits: &[(&str, i64)]) {
        let of_container = |(name, limit): &(&str, i64)| {
            let limits = if *limit > 0 {
                serde_json::json!({ "limits": { "memory": format!("{limit}Mi") } })
            } else {
                serde_json::json!({})
            };
            ((*name).to_owned(), limits)
        };
        let containers: serde_json::Map<_, _> = limits.iter().map(of_container).collect();
        self.checkpoint_of_pod(uid, &containers.into(), &serde_json::Value::Null);
    }

    /// Writes both checkpoint files of the kubelet for one pod.
    pub fn checkpoint_of_pod(
        &self,
        uid: &str,
        containers: &serde_json::Value,
        pod_level: &serde_json::Value,
    ) {
        let entry = serde_json::json!({ "entries": { uid: {
            "ContainerResources": containers,
            "PodLevelResources": pod_level,
        } } });
        let checkpoint =
            serde_json::json!({ "data": entry.to_string(), "checksum": 1 }).to_string();
        for file in ["actuated_pods_state", "allocated_pods_state"] {
            self.replace(&format!("host/var/lib/kubelet/{file}"), &checkpoint);
        }
    }
}
