//! Bounds of the automatic brake.

use std::time::Duration;

/// Bounds of the brake (`brake` in the configuration): the highest counts within [`Bounds::window`]
/// with which the plugin still writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Number of repairs, at least 1.
    pub repairs: u32,
    /// Number of values left to another writer, at least 1.
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
