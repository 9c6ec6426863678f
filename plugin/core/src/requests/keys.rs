//! Keys of the pod annotations that the plugin reads.

/// Domain at the end of each key's prefix (the part before the `/`).
pub const DOMAIN: &str = "plimsoll.nri.io";

pub(super) const MEMORY_REQUEST: &str = "memory-request.plimsoll.nri.io";
pub(super) const THROTTLING_FACTOR: &str = "throttling-factor.plimsoll.nri.io";
pub(super) const RESERVATION: &str = "reservation.plimsoll.nri.io";
pub(super) const OOM_RESCUE: &str = "oom-rescue.plimsoll.nri.io";

/// All keys.
pub(super) const KEYS: [&str; 4] = [MEMORY_REQUEST, THROTTLING_FACTOR, RESERVATION, OOM_RESCUE];
