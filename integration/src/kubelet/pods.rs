//! Runs, resizes and removes single pods and containers.

use std::fmt::Write;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::kubelet::double::{CONTROL, Kubelet, MESSAGES};
use crate::kubelet::pod::{Container, Pod};
use crate::kubelet::spec::{ContainerSpec, PodSpec};
use crate::probe::{cgroup, crictl};

impl Kubelet<'_> {
    /// Runs a pod and waits until its workloads answer.
    pub fn run_pod(&mut self, spec: PodSpec) -> Result<Pod> {
        let handler = self.driver;
        let (uid, pod_cgroup, mut script) = self.admit(&spec);
        self.write_checkpoint(&mut script, "allocated_pods_state", &self.allocated)?;
        let sandbox = self.put_sandbox_message(&mut script, &spec, &uid, &pod_cgroup);
        let _ = writeln!(script, "pod=$(cri run {handler} {sandbox})\necho $pod");
        for container in &spec.containers {
            self.start_container(&mut script, &spec, &uid, container)?;
        }
        let output =
            self.node.run(&script).with_context(|| format!("running pod {}", spec.name))?;
        let mut ids = output.stdout.lines();
        let sandbox = ids.next().context("the script must print the ID of the sandbox")?.to_owned();
        let containers: Vec<Container> = spec
            .containers
            .iter()
            .zip(ids)
            .map(|(spec, id)| self.container(&uid, &pod_cgroup, &spec.name, id))
            .collect();
        Ok(Pod { spec, uid, sandbox, cgroup: pod_cgroup, containers })
    }

    /// Runs one more container in a pod, as the kubelet runs init and ephemeral containers.
    ///
    /// The pod's class, limit and specification do not change.
    pub fn run_container(&mut self, pod: &mut Pod, spec: &ContainerSpec) -> Result<()> {
        let mut script = format!("pod={}\n", pod.sandbox);
        self.allocated[&pod.uid]["ContainerResources"][&spec.name] = spec.resources();
        self.write_checkpoint(&mut script, "allocated_pods_state", &self.allocated)?;
        self.start_container(&mut script, &pod.spec, &pod.uid, spec)?;
        let output = self.node.run(&script);
        let output = output
            .with_context(|| format!("running container {} in pod {}", spec.name, pod.spec.name))?;
        pod.containers.push(self.container(
            &pod.uid,
            &pod.cgroup,
            &spec.name,
            output.stdout.trim(),
        ));
        Ok(())
    }

    /// Stops and removes one container of a pod. The pod keeps running with the same specification.
    pub fn remove_container(&mut self, pod: &mut Pod, name: &str) -> Result<()> {
        crictl::remove(self.node, &pod.container(name)?.id)
            .with_context(|| format!("removing container {name} of pod {}", pod.spec.name))?;
        pod.containers.retain(|container| container.name != name);
        Ok(())
    }

    /// Resizes the memory of one container in place, with the kubelet's steps in the same order.
    ///
    /// If the runtime's update fails, this function returns the error and omits the later steps, as
    /// the kubelet does.
    pub fn resize(
        &mut self,
        pod: &mut Pod,
        container: &str,
        request: Option<u64>,
        limit: Option<u64>,
    ) -> Result<()> {
        let id = pod.container(container)?.id.clone();
        let before = pod.spec.memory_limit();
        let mut spec = pod.spec.clone();
        let target = spec
            .containers
            .iter_mut()
            .find(|c| c.name == container)
            .with_context(|| format!("pod {} has no container {container}", pod.spec.name))?;
        target.memory_request = request;
        target.memory_limit = limit;
        let resources = target.resources();
        let after = spec.memory_limit();

        let mut script = String::new();
        self.allocated[&pod.uid]["ContainerResources"][container] = resources.clone();
        self.write_checkpoint(&mut script, "allocated_pods_state", &self.allocated)?;
        let pod_limit = self.pod_limit(&pod.cgroup, after);
        let grows = after.unwrap_or(cgroup::MAX) > before.unwrap_or(cgroup::MAX);
        if grows {
            script.push_str(&pod_limit);
        }
        // In CRI, 0 leaves the limit unchanged. The kubelet cannot remove a limit in place either.
        let _ = writeln!(script, "cri update {id} {}", limit.unwrap_or(0));
        if !grows && after != before {
            script.push_str(&pod_limit);
        }
        self.actuated[&pod.uid]["ContainerResources"][container] = resources;
        self.write_checkpoint(&mut script, "actuated_pods_state", &self.actuated)?;
        self.node
            .run(&script)
            .with_context(|| format!("resizing container {container} of pod {}", pod.spec.name))?;
        pod.spec = spec;
        Ok(())
    }

    /// Adds a pod to the allocated resources.
    ///
    /// Returns the pod's UID, its cgroup and the script that makes the cgroup.
    pub(super) fn admit(&mut self, spec: &PodSpec) -> (String, String, String) {
        self.pods_made += 1;
        let uid = uid(&spec.name, self.pods_made);
        let cgroup = self.pod_cgroup(spec.qos(), &uid);
        let all: Map<String, Value> =
            spec.containers.iter().map(|c| (c.name.clone(), c.resources())).collect();
        self.allocated.insert(uid.clone(), json!({ "ContainerResources": all }));
        let script = self.make_pod_cgroup(spec, &cgroup);
        (uid, cgroup, script)
    }

    /// Adds to the script the commands that start a container in the sandbox `$pod`.
    ///
    /// The commands write the checkpoint of the actuated resources, create the container and start
    /// the container. Then the commands wait for the workload and print the container's ID.
    fn start_container(
        &mut self,
        script: &mut String,
        pod: &PodSpec,
        uid: &str,
        spec: &ContainerSpec,
    ) -> Result<()> {
        let message = self.put_container_message(script, pod, uid, spec);
        let entry = self.actuated.entry(uid).or_insert_with(|| json!({ "ContainerResources": {} }));
        entry["ContainerResources"][&spec.name] = spec.resources();
        self.write_checkpoint(script, "actuated_pods_state", &self.actuated)?;
        let _ = writeln!(
            script,
            "id=$(cri start $pod {MESSAGES}/{uid}/pod.json {message})\n\
             workload call {CONTROL}/{uid}/{} ping >/dev/null\necho $id",
            spec.name
        );
        Ok(())
    }

    pub(super) fn container(&self, uid: &str, pod_cgroup: &str, name: &str, id: &str) -> Container {
        Container {
            name: name.to_owned(),
            cgroup: self.container_cgroup(pod_cgroup, id),
            control: format!("{CONTROL}/{uid}/{name}"),
            id: id.to_owned(),
        }
    }
}

/// Returns a UID for a pod in the API server's format.
///
/// The same arguments always give the same UID.
fn uid(name: &str, turn: u32) -> String {
    let digest = Sha256::digest(format!("{name} {turn}"));
    let hex: String = digest[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}
