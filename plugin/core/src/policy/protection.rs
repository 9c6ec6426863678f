//! Amount of protected memory.

use serde::{Deserialize, Serialize};

use crate::units::{Bytes, Limit};

/// Amount of protected memory, for one container or for all containers below a cgroup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protection {
    /// Protection by `memory.min`.
    pub min: Bytes,
    /// Protection by `memory.low`.
    pub low: Bytes,
}

impl Protection {
    /// Returns the protection that these file values give. `max` becomes [`Bytes::MAX`].
    pub fn of_files(min: Limit, low: Limit) -> Self {
        let bytes = |limit: Limit| limit.bytes().unwrap_or(Bytes::new(u64::MAX));
        Self { min: bytes(min), low: bytes(low) }
    }

    /// Returns, for each file, the larger of the two values.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self { min: self.min.max(other.min), low: self.low.max(other.low) }
    }
}
