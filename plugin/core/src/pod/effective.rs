//! Requests of a whole pod, as the API server and the scheduler compute them.
//!
//! Source: `AggregateContainerRequests` in `k8s.io/component-helpers/resource/helpers.go`, and
//! `defaultPodRequests` in `pkg/apis/core/v1/defaults.go` of Kubernetes.

use super::qos::SpecResources;
use crate::units::{Bytes, MilliCpu};

/// Role of a container in the sum of a pod's requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainerRole {
    /// The container ends before the ordinary containers start.
    Init,
    /// The init container keeps running (`restartPolicy: Always`).
    Sidecar,
    /// An ordinary container.
    Ordinary,
}

impl SpecResources {
    /// Sets the missing requests of a whole pod, as the API server does if the pod has limits of
    /// its own. A missing request becomes the sum of the containers' requests. If no container has
    /// the request, it becomes the pod's limit.
    ///
    /// `containers` are the pod's containers with their defaults, init containers first.
    #[must_use]
    pub fn with_pod_defaults(self, containers: &[(ContainerRole, Self)]) -> Self {
        if self.cpu_limit.is_none() && self.memory_limit.is_none() {
            return self;
        }
        let amount = |of: fn(&Self) -> Option<u64>| {
            effective(containers.iter().map(|(role, resources)| (*role, of(resources))))
        };
        let cpu = amount(|resources| resources.cpu_request.map(MilliCpu::get));
        let memory = amount(|resources| resources.memory_request.map(Bytes::get));
        Self {
            cpu_request: self.cpu_request.or(cpu.map(MilliCpu::new)).or(self.cpu_limit),
            memory_request: self.memory_request.or(memory.map(Bytes::new)).or(self.memory_limit),
            ..self
        }
    }
}

/// Returns the request of all containers together, or `None` if no container has the request. Init
/// containers run one after the other, beside the sidecars that started before them.
fn effective(containers: impl Iterator<Item = (ContainerRole, Option<u64>)>) -> Option<u64> {
    let (mut running, mut sidecars, mut most, mut any) = (0_u64, 0_u64, 0_u64, false);
    for (role, request) in containers {
        any |= request.is_some();
        let request = request.unwrap_or(0);
        match role {
            ContainerRole::Ordinary => running = running.saturating_add(request),
            ContainerRole::Sidecar => {
                running = running.saturating_add(request);
                sidecars = sidecars.saturating_add(request);
                most = most.max(sidecars);
            }
            ContainerRole::Init => most = most.max(sidecars.saturating_add(request)),
        }
    }
    any.then(|| running.max(most))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(request: Option<u64>, limit: Option<u64>) -> SpecResources {
        SpecResources {
            memory_request: request.map(Bytes::new),
            memory_limit: limit.map(Bytes::new),
            ..SpecResources::default()
        }
    }

    #[test]
    fn init_containers_count_beside_earlier_sidecars() {
        use ContainerRole::{Init, Ordinary, Sidecar};
        for (containers, expected) in [
            (&[][..], None),
            (&[(Ordinary, None)], None),
            (&[(Ordinary, Some(0))], Some(0)),
            (&[(Ordinary, Some(3)), (Ordinary, None), (Ordinary, Some(4))], Some(7)),
            (&[(Init, Some(10)), (Ordinary, Some(3))], Some(10)),
            (&[(Sidecar, Some(5)), (Init, Some(10)), (Ordinary, Some(3))], Some(15)),
            (&[(Init, Some(10)), (Sidecar, Some(5)), (Ordinary, Some(3))], Some(10)),
            (&[(Init, Some(1)), (Sidecar, Some(5)), (Ordinary, Some(3))], Some(8)),
        ] {
            assert_eq!(effective(containers.iter().copied()), expected, "{containers:?}");
        }
    }

    #[test]
    fn a_missing_pod_request_is_the_sum() {
        let containers = [(ContainerRole::Ordinary, memory(Some(128), None))];
        let pod = |request, limit| memory(request, limit).with_pod_defaults(&containers);
        assert_eq!(pod(None, Some(1024)), memory(Some(128), Some(1024)));
        assert_eq!(pod(Some(256), Some(1024)), memory(Some(256), Some(1024)));
        assert_eq!(pod(None, None), memory(None, None), "a pod without limits has no defaults");
        let without = [(ContainerRole::Ordinary, memory(None, None))];
        let pod = memory(None, Some(1024)).with_pod_defaults(&without);
        assert_eq!(pod, memory(Some(1024), Some(1024)));
    }
}
