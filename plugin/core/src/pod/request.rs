//! Memory request of a container, and the source from which the plugin got it.

use std::fmt;

use crate::units::{Bytes, Limit};

/// Memory request of a container: lower bound, upper bound and source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The request in bytes. If the exact request is unknown, this is the lower bound, so that the
    /// plugin never protects more memory than requested.
    pub bytes: Bytes,
    /// The upper bound of the request. Equals `bytes` if the request is exact.
    pub at_most: Bytes,
    /// The source of the request.
    pub provenance: Provenance,
}

impl Request {
    /// Creates a request of exactly this amount.
    pub const fn exact(bytes: Bytes, provenance: Provenance) -> Self {
        Self { bytes, at_most: bytes, provenance }
    }

    /// Returns the number of bytes by which the true request may exceed `bytes`.
    pub const fn error_bound(&self) -> Bytes {
        self.at_most.saturating_sub(self.bytes)
    }

    /// Returns the request, but lowers each bound to at most `ceiling`.
    #[must_use]
    pub fn capped(self, ceiling: Bytes) -> Self {
        Self { bytes: self.bytes.min(ceiling), at_most: self.at_most.min(ceiling), ..self }
    }
}

/// Writes, for example, `128Mi (annotation)` or `62Mi to 64Mi (oom-score-adj)`.
impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.bytes.quantity())?;
        if self.at_most != self.bytes {
            write!(f, " to {}", self.at_most.quantity())?;
        }
        write!(f, " ({})", self.provenance)
    }
}

/// Source of a memory request. `Display` writes a stable lowercase label for logs and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Provenance {
    /// The kubelet's checkpoint. The request is exact.
    Checkpoint(CheckpointFile),
    /// `memory.min` or `memory.low` in OCI's `unified` map from the kubelet. The request is exact.
    Unified,
    /// The pod's annotation `memory-request.plimsoll.nri.io`. The request is exact, but the author
    /// of the pod may have made a mistake.
    Annotation,
    /// The QoS class: a Guaranteed container requests its limit, and a BestEffort container
    /// requests 0. The request is exact.
    QosClass,
    /// The container's `oom_score_adj`, from which the plugin computes a lower and an upper bound.
    /// The bounds differ by a thousandth of the node's memory, or by up to three thousandths for
    /// the values 3 and 999.
    OomScoreAdj,
    /// The pod's own specification, which only `plimsoll explain` reads. The request is exact.
    PodSpec,
}

impl Provenance {
    /// Returns the label for logs and metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Checkpoint(CheckpointFile::Actuated) => "checkpoint-actuated",
            Self::Checkpoint(CheckpointFile::Allocated) => "checkpoint-allocated",
            Self::Checkpoint(CheckpointFile::StatusManager) => "checkpoint-status-manager",
            Self::Unified => "unified",
            Self::Annotation => "annotation",
            Self::QosClass => "qos-class",
            Self::OomScoreAdj => "oom-score-adj",
            Self::PodSpec => "pod-spec",
        }
    }
}

impl fmt::Display for Provenance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// Checkpoint file in which the kubelet stores the resources of containers. The files lie in the
/// kubelet's root directory (`/var/lib/kubelet`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CheckpointFile {
    /// `actuated_pods_state` (1.33 and later): written just before the kubelet creates a container.
    Actuated,
    /// `allocated_pods_state` (1.33 and later): the kubelet writes it when it admits a pod or
    /// accepts a resize.
    Allocated,
    /// `pod_status_manager_state` (1.32): the kubelet writes it only with the alpha feature gate
    /// for in-place resize.
    StatusManager,
}

impl CheckpointFile {
    /// Returns the name of the file.
    pub const fn file_name(self) -> &'static str {
        match self {
            Self::Actuated => "actuated_pods_state",
            Self::Allocated => "allocated_pods_state",
            Self::StatusManager => "pod_status_manager_state",
        }
    }
}

/// Memory request and limit of one container, if the plugin knows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resources {
    /// The request. `None` means an unknown request, not a request of 0.
    pub request: Option<Request>,
    /// The limit (`memory.max`).
    pub limit: Limit,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_shows_its_error() {
        let mib = |amount: u64| Bytes::new(amount << 20);
        assert_eq!(
            Request::exact(mib(128), Provenance::Annotation).to_string(),
            "128Mi (annotation)"
        );
        let vague =
            Request { bytes: mib(62), at_most: mib(64), provenance: Provenance::OomScoreAdj };
        assert_eq!(vague.to_string(), "62Mi to 64Mi (oom-score-adj)");
        assert_eq!(vague.error_bound(), mib(2));
        assert_eq!(vague.capped(mib(63)).at_most, mib(63));
    }
}
