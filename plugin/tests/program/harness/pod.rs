//! Pods as the runtime reports them.

use std::collections::HashMap;

use nri::api::{
    self, ContainerState, LinuxContainer, LinuxMemory, LinuxPodSandbox, LinuxResources,
    OptionalInt, OptionalInt64, PodSandbox,
};

pub const MIB: i64 = 1 << 20;

/// A pod with one container.
#[derive(Clone)]
pub struct Pod {
    pub sandbox: PodSandbox,
    pub container: api::Container,
}

impl Pod {
    pub fn new(class: &str, uid: &str, limit: i64) -> Self {
        let parent = match class {
            "guaranteed" => format!("/kubepods/pod{uid}"),
            class => format!("/kubepods/{class}/pod{uid}"),
        };
        let mut sandbox = PodSandbox {
            id: format!("sandbox-{uid}"),
            uid: uid.into(),
            name: uid.into(),
            ..Default::default()
        };
        sandbox.namespace = "default".into();
        let linux = LinuxPodSandbox { cgroup_parent: parent.clone(), ..Default::default() };
        sandbox.linux = Some(linux).into();
        let mut container =
            api::Container { id: format!("id-{uid}"), name: "app".into(), ..Default::default() };
        container.pod_sandbox_id = sandbox.id.clone();
        container.state = ContainerState::CONTAINER_RUNNING.into();
        let linux = LinuxContainer {
            resources: Some(memory_limit(limit)).into(),
            oom_score_adj: Some(OptionalInt { value: 999, ..Default::default() }).into(),
            cgroups_path: format!("{parent}/{}", container.id),
            ..Default::default()
        };
        container.linux = Some(linux).into();
        Self { sandbox, container }
    }

    pub fn annotate(mut self, key: &str, value: &str) -> Self {
        self.sandbox.annotations.insert(key.into(), value.into());
        self
    }

    /// Sets the `oom_score_adj` that the kubelet gives a Burstable container with this memory
    /// request on a node with 8 GiB.
    pub fn scored(mut self, request: i64) -> Self {
        self.linux().oom_score_adj.as_mut().unwrap().value = 1000 - 1000 * request / (8 << 30);
        self
    }

    pub fn cgroup(&self) -> String {
        self.sandbox.linux.cgroup_parent.trim_start_matches('/').to_owned()
    }

    /// Sets the pod limits that the runtime's client passes when it creates the sandbox.
    pub fn created_with(mut self, resources: LinuxResources) -> Self {
        self.sandbox.linux.as_mut().unwrap().pod_resources = Some(resources).into();
        self
    }

    pub fn overhead(mut self, bytes: i64) -> Self {
        self.sandbox.linux.as_mut().unwrap().pod_overhead = Some(memory_limit(bytes)).into();
        self
    }

    pub fn linux(&mut self) -> &mut LinuxContainer {
        self.container.linux.as_mut().unwrap()
    }
}

pub fn memory_limit(limit: i64) -> LinuxResources {
    let limit = Some(OptionalInt64 { value: limit, ..Default::default() }).into();
    LinuxResources {
        memory: Some(LinuxMemory { limit, ..Default::default() }).into(),
        ..Default::default()
    }
}

pub fn unified(pairs: &[(&str, i64)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), value.to_string())).collect()
}
