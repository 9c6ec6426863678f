//! Pods and containers as their author specifies them.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// 1 MiB in bytes.
pub const MIB: u64 = 1 << 20;

/// The QoS class of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    /// Every container has limits for CPU and memory that equal its requests.
    Guaranteed,
    /// At least one container has a request or a limit, but the pod is not guaranteed.
    Burstable,
    /// No container has a request or a limit.
    BestEffort,
}

impl Qos {
    /// Returns the part of cgroup names that stands for the class.
    pub fn name(self) -> &'static str {
        match self {
            Qos::Guaranteed => "guaranteed",
            Qos::Burstable => "burstable",
            Qos::BestEffort => "besteffort",
        }
    }
}

/// A container to run, as the pod's author specifies it.
#[derive(Clone, Debug, Default)]
pub struct ContainerSpec {
    /// The container's name in the pod.
    pub name: String,
    /// Memory request in bytes.
    pub memory_request: Option<u64>,
    /// Memory limit in bytes.
    pub memory_limit: Option<u64>,
    /// CPU request in thousandths of a processor.
    pub cpu_request: Option<u64>,
    /// CPU limit in thousandths of a processor.
    pub cpu_limit: Option<u64>,
    /// Unified cgroup values in the CRI request, as the kubelet's own MemoryQoS sends them.
    pub unified: BTreeMap<String, String>,
    /// The oom_score_adj to use instead of the result of the kubelet's formula.
    pub oom_score_adj: Option<i64>,
}

impl ContainerSpec {
    /// Returns a container without requests and limits.
    pub fn new(name: &str) -> ContainerSpec {
        ContainerSpec { name: name.to_owned(), ..ContainerSpec::default() }
    }

    /// Sets the memory request.
    pub fn request(mut self, bytes: u64) -> Self {
        self.memory_request = Some(bytes);
        self
    }

    /// Sets the memory limit.
    pub fn limit(mut self, bytes: u64) -> Self {
        self.memory_limit = Some(bytes);
        self
    }

    /// Sets the CPU request and limit to the same value, which a guaranteed pod needs.
    pub fn cpu(mut self, thousandths: u64) -> Self {
        self.cpu_request = Some(thousandths);
        self.cpu_limit = Some(thousandths);
        self
    }

    /// Adds a unified cgroup value to the CRI request.
    pub fn unified(mut self, key: &str, value: impl ToString) -> Self {
        self.unified.insert(key.to_owned(), value.to_string());
        self
    }

    /// Returns the memory request.
    ///
    /// If the container has only a limit, this function returns the limit, as the API server does.
    pub fn effective_request(&self) -> Option<u64> {
        self.memory_request.or(self.memory_limit)
    }

    pub(super) fn effective_cpu_request(&self) -> Option<u64> {
        self.cpu_request.or(self.cpu_limit)
    }

    /// Returns the resources as `ResourceRequirements` in a checkpoint.
    pub(super) fn resources(&self) -> Value {
        let list = |cpu: Option<u64>, memory: Option<u64>| {
            let mut list = Map::new();
            list.extend(cpu.map(|cpu| ("cpu".to_owned(), json!(format!("{cpu}m")))));
            list.extend(memory.map(|memory| ("memory".to_owned(), json!(quantity(memory)))));
            list
        };
        let mut resources = Map::new();
        for (name, list) in [
            ("limits", list(self.cpu_limit, self.memory_limit)),
            ("requests", list(self.effective_cpu_request(), self.effective_request())),
        ] {
            if !list.is_empty() {
                resources.insert(name.to_owned(), list.into());
            }
        }
        resources.into()
    }
}

/// A pod to run.
#[derive(Clone, Debug)]
pub struct PodSpec {
    /// The pod's name in the namespace `default`.
    pub name: String,
    /// The pod's annotations.
    pub annotations: BTreeMap<String, String>,
    /// The memory overhead of the pod's runtime class in bytes, in addition to the containers.
    pub overhead: u64,
    /// The pod's containers.
    pub containers: Vec<ContainerSpec>,
}

impl PodSpec {
    /// Returns a pod without containers.
    pub fn new(name: &str) -> PodSpec {
        PodSpec {
            name: name.to_owned(),
            annotations: BTreeMap::new(),
            overhead: 0,
            containers: Vec::new(),
        }
    }

    /// Adds an annotation.
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Sets the memory overhead. The overhead is added to the pod's request. If the pod has a
    /// limit, the overhead is also added to the limit.
    pub fn overhead(mut self, bytes: u64) -> Self {
        self.overhead = bytes;
        self
    }

    /// Adds a container.
    pub fn container(mut self, container: ContainerSpec) -> Self {
        self.containers.push(container);
        self
    }

    /// Returns the QoS class that the API server computes.
    pub fn qos(&self) -> Qos {
        let unset =
            |c: &ContainerSpec| c.effective_request().or(c.effective_cpu_request()).is_none();
        let equal = |c: &ContainerSpec| {
            c.memory_limit.is_some()
                && c.cpu_limit.is_some()
                && c.effective_request() == c.memory_limit
                && c.effective_cpu_request() == c.cpu_limit
        };
        if self.containers.iter().all(unset) {
            Qos::BestEffort
        } else if self.containers.iter().all(equal) {
            Qos::Guaranteed
        } else {
            Qos::Burstable
        }
    }

    /// Returns the pod's memory limit with the overhead, if every container has a memory limit.
    pub fn memory_limit(&self) -> Option<u64> {
        let limits: Option<u64> =
            self.containers.iter().map(|container| container.memory_limit).sum();
        limits.map(|limits| limits + self.overhead)
    }
}

/// Returns a number of bytes as a quantity in canonical form.
///
/// The quantity has the largest binary unit that divides the number of bytes.
pub fn quantity(bytes: u64) -> String {
    for (unit, size) in [("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)] {
        if bytes > 0 && bytes.is_multiple_of(size) {
            return format!("{}{unit}", bytes / size);
        }
    }
    bytes.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_in_canonical_form() {
        for (bytes, text) in [
            (0, "0"),
            (1, "1"),
            (1024, "1Ki"),
            (MIB * 1536, "1536Mi"),
            (1 << 30, "1Gi"),
            (1000, "1000"),
        ] {
            assert_eq!(quantity(bytes), text);
        }
    }

    #[test]
    fn the_class_follows_requests_and_limits() {
        let pod = |container| PodSpec::new("p").container(container);
        assert_eq!(pod(ContainerSpec::new("c")).qos(), Qos::BestEffort);
        assert_eq!(pod(ContainerSpec::new("c").request(1)).qos(), Qos::Burstable);
        assert_eq!(pod(ContainerSpec::new("c").limit(1)).qos(), Qos::Burstable);
        assert_eq!(pod(ContainerSpec::new("c").limit(1).cpu(1)).qos(), Qos::Guaranteed);
        assert_eq!(pod(ContainerSpec::new("c").request(1).limit(2).cpu(1)).qos(), Qos::Burstable);
    }
}
