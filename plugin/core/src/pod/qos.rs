//! Quality of service class of a pod.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::units::{Bytes, MilliCpu};

/// Quality of service class of a pod, as Kubernetes defines it.
///
/// `Display` writes the name that the Kubernetes API uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum QosClass {
    /// Every container has a CPU limit and a memory limit, and its requests equal its limits.
    Guaranteed,
    /// At least one container has a request or a limit, but the pod is not Guaranteed.
    Burstable,
    /// No container has a request or a limit.
    BestEffort,
}

impl QosClass {
    /// Returns the class of a pod from the CPU and memory requests and limits of its containers.
    ///
    /// Follows `ComputePodQOS` in Kubernetes' `pkg/apis/core/v1/helper/qos`. Init containers count,
    /// but ephemeral containers do not. A request or a limit of zero counts as not set.
    ///
    /// The caller must first set missing requests to the limits, as the API server does.
    pub fn from_resources<'a>(containers: impl IntoIterator<Item = &'a SpecResources>) -> Self {
        let mut any = false;
        let mut every_limit_given = true;
        let (mut cpu_requests, mut cpu_limits) = (0u128, 0u128);
        let (mut memory_requests, mut memory_limits) = (0u128, 0u128);
        for container in containers {
            let [cpu_request, cpu_limit] = [container.cpu_request, container.cpu_limit]
                .map(|amount| amount.map_or(0, MilliCpu::get));
            let [memory_request, memory_limit] = [container.memory_request, container.memory_limit]
                .map(|amount| amount.map_or(0, Bytes::get));
            any |= [cpu_request, cpu_limit, memory_request, memory_limit]
                .iter()
                .any(|&amount| amount != 0);
            every_limit_given &= cpu_limit != 0 && memory_limit != 0;
            cpu_requests += u128::from(cpu_request);
            cpu_limits += u128::from(cpu_limit);
            memory_requests += u128::from(memory_request);
            memory_limits += u128::from(memory_limit);
        }
        if !any {
            Self::BestEffort
        } else if every_limit_given
            && cpu_requests == cpu_limits
            && memory_requests == memory_limits
        {
            Self::Guaranteed
        } else {
            Self::Burstable
        }
    }
}

impl fmt::Display for QosClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        })
    }
}

/// Requests and limits from a pod's specification. They belong either to one container or to a
/// whole pod (pod-level resources). `None` means not set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpecResources {
    /// CPU request.
    pub cpu_request: Option<MilliCpu>,
    /// CPU limit.
    pub cpu_limit: Option<MilliCpu>,
    /// Memory request.
    pub memory_request: Option<Bytes>,
    /// Memory limit.
    pub memory_limit: Option<Bytes>,
}

impl SpecResources {
    /// Sets missing requests to the limits, as the API server does when it stores a pod.
    #[must_use]
    pub fn with_defaults(self) -> Self {
        Self {
            cpu_request: self.cpu_request.or(self.cpu_limit),
            memory_request: self.memory_request.or(self.memory_limit),
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stated(cpu: (u64, u64), memory: (u64, u64)) -> SpecResources {
        let some = |amount: u64| (amount != 0).then_some(amount);
        SpecResources {
            cpu_request: some(cpu.0)
                .map(|milli| MilliCpu::from_quantity(&format!("{milli}m")).unwrap()),
            cpu_limit: some(cpu.1)
                .map(|milli| MilliCpu::from_quantity(&format!("{milli}m")).unwrap()),
            memory_request: some(memory.0).map(Bytes::new),
            memory_limit: some(memory.1).map(Bytes::new),
        }
    }

    #[test]
    fn the_class_follows_from_requests_and_limits() {
        let guaranteed = stated((100, 100), (64, 64));
        let nothing = SpecResources::default();
        for (containers, class) in [
            (vec![], QosClass::BestEffort),
            (vec![nothing], QosClass::BestEffort),
            (vec![guaranteed], QosClass::Guaranteed),
            (vec![guaranteed, guaranteed], QosClass::Guaranteed),
            (vec![guaranteed, nothing], QosClass::Burstable),
            (vec![stated((0, 0), (64, 64))], QosClass::Burstable),
            (vec![stated((100, 0), (0, 0))], QosClass::Burstable),
            (vec![stated((0, 0), (32, 64))], QosClass::Burstable),
            (vec![stated((50, 100), (64, 64))], QosClass::Burstable),
            (vec![stated((0, 100), (0, 64)).with_defaults()], QosClass::Guaranteed),
        ] {
            assert_eq!(QosClass::from_resources(&containers), class, "{containers:?}");
        }
    }
}
