//! Running pods and containers.

use anyhow::{Context, Result, ensure};

use crate::kubelet::spec::{ContainerSpec, PodSpec};
use crate::machine::Node;

/// A running pod.
#[derive(Clone, Debug)]
pub struct Pod {
    /// The pod's specification. A resize changes the specification.
    pub spec: PodSpec,
    /// The pod's UID.
    pub uid: String,
    /// The runtime's ID of the pod's sandbox.
    pub sandbox: String,
    /// The path of the pod's cgroup below the cgroup root.
    pub cgroup: String,
    /// The containers in the order of the specification.
    pub containers: Vec<Container>,
}

impl Pod {
    /// Returns the container called `name`.
    pub fn container(&self, name: &str) -> Result<&Container> {
        let found = self.containers.iter().find(|container| container.name == name);
        found.with_context(|| format!("pod {} has no container {name}", self.spec.name))
    }

    /// Returns the sum of the specified requests of the running containers, plus the overhead.
    pub fn live_request(&self) -> u64 {
        let runs = |spec: &&ContainerSpec| {
            self.containers.iter().any(|container| container.name == spec.name)
        };
        let requests =
            self.spec.containers.iter().filter(runs).filter_map(ContainerSpec::effective_request);
        requests.sum::<u64>() + self.spec.overhead
    }
}

/// A running container.
#[derive(Clone, Debug)]
pub struct Container {
    /// The container's name in the pod.
    pub name: String,
    /// The runtime's ID of the container.
    pub id: String,
    /// The path of the container's cgroup below the cgroup root.
    pub cgroup: String,
    /// The directory on the node through which the workload receives commands.
    pub control: String,
}

impl Container {
    /// Sends a command to the workload (see `src/bin/workload.rs`) and returns the answer.
    ///
    /// The answer is `ok ...`, `error ...`, or `gone` if the workload ended before it answered.
    pub fn call(&self, node: &Node, command: &str) -> Result<String> {
        let output = node.try_run(&format!("workload call {} {command}", self.control))?;
        let answer = output.stdout.trim_end().to_owned();
        ensure!(
            !answer.is_empty(),
            "no answer to {command:?} from container {} ({}): {}",
            self.name,
            output.status,
            output.stderr.trim_end()
        );
        Ok(answer)
    }
}
