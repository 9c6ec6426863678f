//! Sources of a container's memory request.
//!
//! No runtime sends the memory request to plugins. [`resolve()`] uses the first of these sources
//! that determines the request:
//!
//! 1. **The kubelet's checkpoint** (`checkpoint` in the plugin). Only the checkpoint has the exact
//!    request after a resize. Only the checkpoint has the containers' requests in a pod with
//!    pod-level resources, because the class of this pod does not determine them. If the checkpoint
//!    entry has only a limit, the request equals the limit, as in the API server. If the entry has
//!    neither, the request is 0.
//! 2. **The QoS class**, where it determines the request: a Guaranteed container requests its
//!    limit, and a BestEffort container requests 0. The class comes from the kubelet, so it is more
//!    reliable than an annotation by the pod's author. The class does not determine the request of
//!    a Guaranteed container without a limit, which exists only in a pod with pod-level resources.
//! 3. **`memory.min` or `memory.low` in the unified map** that the kubelet sends with the
//!    container. The kubelet sends these values only with its MemoryQoS feature.
//! 4. **The annotation** `memory-request` ([`annotation`]), if it is certain that no checkpoint has
//!    an entry for the container. The plugin lowers the value to the upper bound from
//!    `oom_score_adj` ([`oom_score_adj::at_most`]) and to node allocatable. Without these upper
//!    bounds, a pod's author could get protection that the scheduler did not account for. The
//!    plugin ignores the annotation while it cannot read a checkpoint, which may have an entry.
//! 5. **`oom_score_adj`**, from which the plugin computes a lower and an upper bound of the request
//!    ([`oom_score_adj`]).
//!
//! If no source determines the request, it is unknown. An unknown request differs from a request of
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
