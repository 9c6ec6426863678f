//! The kubelet's checkpoint entry for one pod.

use plimsoll_core::units::{Bytes, MilliCpu};

/// The kubelet's checkpoint entry for one pod.
#[derive(Debug)]
pub struct PodRecord {
    /// Entries of the containers, with the containers' names. `None` means that the entry is
    /// unreadable. A pod has few containers, so a list is smaller than a map and as fast.
    pub(super) containers: Box<[(Box<str>, Option<Entry>)]>,
    pub(super) pod_level: PodLevel,
}

impl PodRecord {
    /// Returns the pod-level resources in the entry.
    pub fn pod_level(&self) -> PodLevel {
        self.pod_level
    }

    /// Returns the limits of a container. Returns `None` if the container has no readable entry.
    pub fn limits(&self, container: &str) -> Option<RecordedLimits> {
        let (_, entry) = self.containers.iter().find(|(name, _)| **name == *container)?;
        entry.map(|entry| RecordedLimits { memory: entry.limit, cpu: entry.cpu_limit })
    }

    /// Returns the names of the containers, including those with unreadable entries. Before
    /// Kubernetes 1.35, init containers that are no sidecars are missing. Ephemeral containers are
    /// always missing.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.containers.iter().map(|(name, _)| &**name)
    }
}

/// Limits in a checkpoint entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordedLimits {
    /// Memory limit; `None` if not given.
    pub memory: Option<Bytes>,
    /// CPU limit; `None` if not given.
    pub cpu: Option<MilliCpu>,
}

/// Pod-level resources (`spec.resources`, Kubernetes 1.34) in the checkpoint entry of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PodLevel {
    /// The entry has no pod-level resources. The pod may still have pod-level resources, because
    /// the kubelet stores them only with the gate InPlacePodLevelResourcesVerticalScaling (on by
    /// default since 1.36).
    #[default]
    Unrecorded,
    /// The pod has these pod-level resources and no others.
    Recorded {
        /// Limits of the whole pod.
        limits: RecordedLimits,
        /// Memory request of the whole pod; `None` if not given.
        memory_request: Option<Bytes>,
    },
    /// The pod-level resources in the entry are unreadable.
    Unreadable,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) request: Option<Bytes>,
    pub(super) limit: Option<Bytes>,
    pub(super) cpu_limit: Option<MilliCpu>,
}
