//! The kubelet's record of one pod.

use plimsoll_core::units::{Bytes, MilliCpu};

/// The kubelet's record of one pod.
#[derive(Debug)]
pub struct PodRecord {
    /// Containers by name. `None` is an unreadable record. A pod has few containers, so a list is
    /// smaller than a map and as fast.
    pub(super) containers: Box<[(Box<str>, Option<Entry>)]>,
    pub(super) pod_level: PodLevel,
}

impl PodRecord {
    /// Returns the record of the pod-level limits.
    pub fn pod_level(&self) -> PodLevel {
        self.pod_level
    }

    /// Returns the limits of a container. Returns `None` if the container has no readable record.
    pub fn limits(&self, container: &str) -> Option<RecordedLimits> {
        let (_, entry) = self.containers.iter().find(|(name, _)| **name == *container)?;
        entry.map(|entry| RecordedLimits { memory: entry.limit, cpu: entry.cpu_limit })
    }

    /// Returns the names of the containers, including those with unreadable records. Before
    /// Kubernetes 1.35, plain init containers are missing. Ephemeral containers are always missing.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.containers.iter().map(|(name, _)| &**name)
    }
}

/// Limits in a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordedLimits {
    /// Memory limit; `None` if not given.
    pub memory: Option<Bytes>,
    /// CPU limit; `None` if not given.
    pub cpu: Option<MilliCpu>,
}

/// Record of pod-level resources (`spec.resources`, Kubernetes 1.34).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PodLevel {
    /// The record has no pod-level resources. The pod may still have pod-level resources. The
    /// kubelet records them only with the gate InPlacePodLevelResourcesVerticalScaling (on by
    /// default since 1.36).
    #[default]
    Unrecorded,
    /// The pod has these pod-level limits and no others.
    Limits(RecordedLimits),
    /// The record of the pod-level resources is unreadable.
    Unreadable,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) request: Option<Bytes>,
    pub(super) limit: Option<Bytes>,
    pub(super) cpu_limit: Option<MilliCpu>,
}
