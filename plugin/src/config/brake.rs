//! Limits at which the automatic brake stops the plugin from writing.

use std::time::Duration;

/// Limits of the brake (`brake` in the configuration). If one of the counts within
/// [`Bounds::window`] exceeds its limit, the plugin stops writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Maximum number of repairs, at least 1.
    pub repairs: u32,
    /// Maximum number of values that the plugin stopped repairing, because another program kept
    /// changing them. At least 1.
    pub conflicts: u32,
    /// Maximum number of OOM kills because of limits that the plugin set, at least 1.
    pub kills: u32,
    /// Time window in which the plugin counts these events.
    pub window: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { repairs: 500, conflicts: 50, kills: 20, window: Duration::from_secs(600) }
    }
}
