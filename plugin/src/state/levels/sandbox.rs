//! The sandbox of a pod, and the origin of the pod's limits.

use plimsoll_core::policy::hierarchy::PodPlace;
use plimsoll_core::policy::pod_limit::Origin;
use plimsoll_core::policy::{self, Policy, Protection};
use plimsoll_core::requests;
use plimsoll_core::requests::annotation::Overrides;
use plimsoll_core::units::Bytes;

/// Origins of a pod's limits that the plugin has proved, and the pod's own request.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Origins {
    pub(super) memory: Origin,
    pub(super) cpu: Origin,
    /// Memory request of the whole pod, as far as the plugin knows.
    pub(super) own_request: Option<Bytes>,
    /// Whether the log has explained why the plugin does not raise the pod's low limits.
    pub(super) is_said: bool,
}

impl Origins {
    /// Returns the maximum protection that the pod can need: its pod-level memory limit plus its
    /// overhead. Returns `None` unless the plugin knows that the pod has a pod-level memory limit.
    pub(super) fn cap(&self, overhead: Bytes) -> Option<Bytes> {
        match self.memory {
            Origin::Own(own) => Some(Bytes::new(own).saturating_add(overhead)),
            Origin::Sum | Origin::Unknown => None,
        }
    }
}

/// Sandbox of a pod. The plugin keeps this data as long as the runtime has the sandbox.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// ID of the sandbox in the runtime.
    pub id: String,
    /// The pod's cgroup and the cgroups above it.
    pub place: PodPlace,
    /// Memory overhead of the pod, from its RuntimeClass.
    pub overhead: Bytes,
    /// CPU overhead of the pod, in microseconds per second.
    pub cpu_overhead: u64,
    /// Memory limit that the kubelet gave the pod, without overhead. `None` if there is no limit,
    /// or if the runtime does not report it.
    pub memory_limit: Option<Bytes>,
    /// CPU limit that the kubelet gave the pod, without overhead. The unit is microseconds per
    /// second.
    pub cpu_limit: Option<u64>,
    /// Overrides from the pod's annotations.
    pub overrides: Overrides,
}

impl Sandbox {
    /// Returns the protection that the pod's overhead needs.
    pub(super) fn protection(&self, node: &Policy) -> Protection {
        self.protection_of(self.overhead, node)
    }

    /// Returns the protection that the pod's own memory request needs, with the overhead.
    pub(super) fn own_protection(&self, request: Option<Bytes>, node: &Policy) -> Protection {
        request.map_or_else(Protection::default, |request| {
            self.protection_of(request.saturating_add(self.overhead), node)
        })
    }

    fn protection_of(&self, bytes: Bytes, node: &Policy) -> Protection {
        let (policy, _) = requests::overridden(node, &self.overrides);
        policy::pod_protection(bytes, self.place.class(), &policy)
    }
}
