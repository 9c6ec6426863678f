//! Bounds of the automatic brake.

use std::time::Duration;

/// Bounds of the brake (`brake` in the configuration). If a count within [`Bounds::window`] exceeds
/// its bound, the plugin stops writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Number of repairs, at least 1.
    pub repairs: u32,
    /// Number of values that the plugin left as another program set them, at least 1.
    pub conflicts: u32,
    /// Number of kills by limits that the plugin has set, at least 1.
    pub kills: u32,
    /// Time window of the counts.
    pub window: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { repairs: 500, conflicts: 50, kills: 20, window: Duration::from_secs(600) }
    }
}
