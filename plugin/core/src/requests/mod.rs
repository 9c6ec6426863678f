//! Sources of a container's memory request.
//!
//! No runtime delivers the request. [`resolve()`] uses the first source that has an answer, in this
//! order:
//!
//! 1. **The kubelet's checkpoint** (`checkpoint` in the plugin). Only the checkpoint has the exact
//!    request after a resize. Only the checkpoint has the request in a pod with pod-level
//!    resources, whose class does not determine the containers' requests. A record without a
//!    request is also an answer. The request then equals the limit, as the API server defaults it.
//!    Without a limit the request is 0.
//! 2. **The QoS class**, where it determines the request: a Guaranteed container requests its
//!    limit, a BestEffort container 0. The class comes from the kubelet and so outranks a pod
//!    author's annotation. The class does not answer for a Guaranteed container without a limit,
//!    which exists only with pod-level resources.
//! 3. **`memory.min` or `memory.low` in the unified map** that the kubelet sends with the
//!    container. The kubelet sends them only with its MemoryQoS feature.
//! 4. **The annotation** `memory-request` ([`annotation`]), if certainly no checkpoint has a
//!    record. The value is at most what `oom_score_adj` allows ([`oom_score_adj::at_most`]), and at
//!    most node allocatable. Without these bounds, a pod's author could claim protection that the
//!    scheduler did not account for. While a checkpoint cannot be read, the plugin ignores the
//!    annotation, because a record may exist.
//! 5. **`oom_score_adj`, inverted** ([`oom_score_adj`]), with its error bound.
//!
//! If no source has an answer, the request is unknown. An unknown request differs from a request of
//! 0.

pub mod annotation;
mod keys;
mod notice;
pub mod oom_score_adj;
mod record;
mod resolve;

pub use self::annotation::overridden;
pub use self::notice::Notice;
pub use self::record::{Inconclusive, Record};
pub use self::resolve::{RequestFacts, Resolution, resolve};
