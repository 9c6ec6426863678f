//! The node guard (`nodeGuard`): a memory limit for all pods together.

use serde::{Deserialize, Serialize};

use crate::pod::CgroupPath;
use crate::units::{Bytes, Limit};

/// Change that the node guard made to the memory limit of kubepods (all pods). The plugin stores
/// the change in a file, so that a restarted plugin or `plimsoll restore` can undo the change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardRecord {
    /// Cgroup that the node guard has changed.
    pub cgroup: CgroupPath,
    /// Inode of the cgroup.
    pub inode: u64,
    /// Value that `memory.max` would have without the node guard.
    pub before: Limit,
    /// Limits that the node guard has set. While the plugin changes the limit, the list contains
    /// both the old and the new limit.
    #[serde(rename = "lines")]
    pub limits: Vec<Bytes>,
}

impl GuardRecord {
    /// Path of the file that stores the change, relative to the root of the node's file system.
    pub const PATH: &str = "run/plimsoll/guard";

    /// Returns whether `observed` is a limit that the node guard has set.
    pub fn is_ours(&self, observed: Limit) -> bool {
        self.limits.iter().any(|limit| observed == Limit::Bytes(*limit))
    }

    /// Returns the limit that kubepods would have without the node guard. `observed` is the current
    /// limit of kubepods.
    pub fn without(&self, observed: Limit) -> Limit {
        if self.is_ours(observed) { self.before } else { observed }
    }
}

/// Action of the plugin on `memory.max` of kubepods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuardStep {
    /// Leave the file, because the file already has the right value.
    Nothing,
    /// Set the limit to `limit`. Without the node guard, the file would hold `before`.
    Set {
        /// Limit to set.
        limit: Bytes,
        /// Value that the file would hold without the node guard.
        before: Limit,
    },
    /// Restore the value that the file would hold without the node guard.
    PutBack(Limit),
    /// Delete the stored change, because another program has changed `memory.max` since then.
    Forget,
}

/// Decides what the plugin should do with `memory.max` of kubepods. `limit` is the limit that the
/// node guard should set, or `None` for no limit.
pub fn guard_step(
    limit: Option<Bytes>,
    observed: Limit,
    record: Option<&GuardRecord>,
) -> GuardStep {
    let ours = record.filter(|record| record.is_ours(observed));
    let before = ours.map_or(observed, |record| record.before);
    match limit {
        Some(limit) if Limit::Bytes(limit) < before => {
            if observed == Limit::Bytes(limit) && ours.is_some() {
                GuardStep::Nothing
            } else {
                GuardStep::Set { limit, before }
            }
        }
        _ if ours.is_some() => GuardStep::PutBack(before),
        _ if record.is_some() => GuardStep::Forget,
        _ => GuardStep::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn bytes(mib: u64) -> Bytes {
        Bytes::new(mib * MIB)
    }

    fn limit(mib: u64) -> Limit {
        Limit::Bytes(bytes(mib))
    }

    fn record(before: Limit, limit: u64) -> GuardRecord {
        GuardRecord {
            cgroup: CgroupPath::parse("kubepods").unwrap(),
            inode: 7,
            before,
            limits: vec![bytes(limit)],
        }
    }

    #[test]
    fn the_guard_only_lowers_the_observed_limit() {
        assert_eq!(
            guard_step(Some(bytes(900)), Limit::Max, None),
            GuardStep::Set { limit: bytes(900), before: Limit::Max }
        );
        assert_eq!(
            guard_step(Some(bytes(900)), limit(1000), None),
            GuardStep::Set { limit: bytes(900), before: limit(1000) }
        );
        assert_eq!(guard_step(Some(bytes(900)), limit(800), None), GuardStep::Nothing);
        assert_eq!(
            guard_step(Some(bytes(900)), limit(900), None),
            GuardStep::Nothing,
            "the kubelet itself set this limit"
        );
        assert_eq!(guard_step(None, limit(800), None), GuardStep::Nothing);
    }

    #[test]
    fn restore_replaces_only_the_guards_own_limit() {
        let set = record(limit(1000), 900);
        assert_eq!(guard_step(Some(bytes(900)), limit(900), Some(&set)), GuardStep::Nothing);
        assert_eq!(guard_step(None, limit(900), Some(&set)), GuardStep::PutBack(limit(1000)));
        assert_eq!(guard_step(None, limit(800), Some(&set)), GuardStep::Forget);
        assert_eq!(guard_step(None, limit(1000), Some(&set)), GuardStep::Forget);
    }

    #[test]
    fn a_changed_guard_keeps_the_original_limit() {
        let set = record(limit(1000), 900);
        assert_eq!(
            guard_step(Some(bytes(950)), limit(900), Some(&set)),
            GuardStep::Set { limit: bytes(950), before: limit(1000) }
        );
        assert_eq!(
            guard_step(Some(bytes(850)), limit(900), Some(&set)),
            GuardStep::Set { limit: bytes(850), before: limit(1000) }
        );
        assert_eq!(
            guard_step(Some(bytes(1100)), limit(900), Some(&set)),
            GuardStep::PutBack(limit(1000))
        );
    }

    #[test]
    fn a_new_kubelet_limit_replaces_the_original() {
        let set = record(limit(1000), 900);
        // The kubelet was restarted and now reserves a different amount of memory.
        assert_eq!(
            guard_step(Some(bytes(900)), limit(1200), Some(&set)),
            GuardStep::Set { limit: bytes(900), before: limit(1200) }
        );
        assert_eq!(guard_step(Some(bytes(900)), limit(700), Some(&set)), GuardStep::Forget);
    }

    #[test]
    fn both_limits_are_own_during_a_change() {
        let changing =
            GuardRecord { limits: vec![bytes(900), bytes(850)], ..record(limit(1000), 0) };
        for held in [limit(900), limit(850)] {
            assert_eq!(guard_step(None, held, Some(&changing)), GuardStep::PutBack(limit(1000)));
            assert_eq!(changing.without(held), limit(1000));
        }
        // The plugin sets the limit again, so that the stored change contains only one limit.
        assert_eq!(
            guard_step(Some(bytes(850)), limit(900), Some(&changing)),
            GuardStep::Set { limit: bytes(850), before: limit(1000) }
        );
    }
}
