//! Notices about requests and annotations, for the operator or the pod's owner.

use std::fmt;

use super::keys::{DOMAIN, KEYS};
use crate::pod::{Provenance, Request};
use crate::policy::ReservationPolicy;
use crate::units::Bytes;

/// Notice for the operator or the pod's owner about a problem that does not stop the plugin.
/// `Display` writes one sentence for the log; the caller adds the names of pod and container.
#[derive(Clone, Debug, PartialEq)]
pub enum Notice {
    /// An annotation has an invalid value, so the plugin ignores the annotation.
    InvalidAnnotation {
        /// The annotation's key.
        key: String,
        /// The expected and the found value.
        error: String,
    },
    /// An annotation in this plugin's domain is unknown and has no effect.
    UnknownAnnotation {
        /// The annotation's key, shortened.
        key: String,
    },
    /// There are more unknown annotations, which the plugin does not list.
    MoreUnknownAnnotations {
        /// Number of unknown annotations that are not listed.
        count: usize,
    },
    /// The plugin ignores the annotated memory request, because another source has priority.
    AnnotationOutranked {
        /// The better source.
        by: Provenance,
    },
    /// The plugin ignores the annotated memory request, because it cannot read the kubelet's
    /// checkpoint.
    AnnotationUnconfirmed,
    /// The annotated memory request exceeds the upper bound that follows from `oom_score_adj`, so
    /// the plugin uses this upper bound.
    AnnotationAboveOomScore {
        /// The annotated request.
        requested: Bytes,
        /// The upper bound that follows from `oom_score_adj`.
        at_most: Bytes,
    },
    /// The annotated memory request exceeds node allocatable, so the plugin uses node allocatable.
    AnnotationAboveAllocatable {
        /// The annotated request.
        requested: Bytes,
        /// Node allocatable.
        allocatable: Bytes,
    },
    /// The annotation asks for a stronger reservation than the node's policy, so the node's policy
    /// applies.
    ReservationAboveNode {
        /// The annotated policy.
        asked: ReservationPolicy,
        /// The node's policy.
        allowed: ReservationPolicy,
    },
    /// The annotation asks for throttling on a node without throttling.
    ThrottlingOff,
    /// The request exceeds the limit, so the plugin uses the limit as the request.
    RequestAboveLimit {
        /// The request.
        request: Request,
        /// The limit.
        limit: Bytes,
    },
    /// A value in OCI's `unified` map is not a number of bytes, so the plugin ignores the value.
    InvalidUnified {
        /// The key.
        key: &'static str,
        /// The expected and the found value.
        error: String,
    },
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidAnnotation { key, error } => {
                write!(f, "annotation {key}: {error}; it is ignored")
            }
            Self::UnknownAnnotation { key } => write!(
                f,
                "annotation {key} is unknown and has no effect; expected {}, each alone or \
                 followed by /pod or /container.<name>",
                KEYS.join(", ")
            ),
            Self::MoreUnknownAnnotations { count } => {
                write!(f, "{count} more annotations of {DOMAIN} are unknown and have no effect")
            }
            Self::AnnotationOutranked { by } => {
                write!(
                    f,
                    "annotation memory-request is ignored, because a better source has the \
                     request ({by})"
                )
            }
            Self::AnnotationUnconfirmed => f.write_str(
                "annotation memory-request is ignored while the kubelet's checkpoint cannot be \
                 read: it may have the request, which outranks the annotation",
            ),
            Self::AnnotationAboveOomScore { requested, at_most } => write!(
                f,
                "annotation memory-request {} exceeds what the kubelet's oom_score_adj allows, \
                 {}, which is used",
                requested.quantity(),
                at_most.quantity()
            ),
            Self::AnnotationAboveAllocatable { requested, allocatable } => write!(
                f,
                "annotation memory-request {} exceeds node allocatable {}, which is used",
                requested.quantity(),
                allocatable.quantity()
            ),
            Self::ReservationAboveNode { asked, allowed } => write!(
                f,
                "annotation reservation asks for {asked}, but this node allows at most {allowed}, \
                 which is used"
            ),
            Self::ThrottlingOff => f.write_str(
                "annotation throttling-factor has no effect, because memoryThrottlingFactor is \
                 null on this node",
            ),
            Self::RequestAboveLimit { request, limit } => {
                write!(f, "request {request} exceeds the limit {}, which is used", limit.quantity())
            }
            Self::InvalidUnified { key, error } => {
                write!(f, "unified {key}: {error}; it is ignored")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hint_names_every_annotation() {
        let hint = Notice::UnknownAnnotation { key: "x".to_owned() }.to_string();
        for key in ["memory-request", "throttling-factor", "reservation", "oom-rescue"] {
            assert!(hint.contains(&format!("{key}.{DOMAIN}")), "{key}: {hint}");
        }
    }
}
