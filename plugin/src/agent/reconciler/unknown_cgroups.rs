//! Decides when the plugin reconnects to the runtime because of unknown cgroups. The runtime has
//! not reported the containers of these cgroups.

use std::collections::HashMap;
use std::time::Duration;

use plimsoll_core::pod::CgroupPath;
use tokio::time::Instant;

/// Delay before the plugin inspects a cgroup whose container the runtime has not reported. The
/// runtime reports the end of a container shortly before it removes the cgroup. The runtime may
/// report a container late if it created the container during the synchronization.
pub(super) const UNKNOWN_CGROUP_DELAY: Duration = Duration::from_secs(10);

/// Minimum time between two reconnections because of unknown cgroups. After a reconnection, the
/// runtime reports all containers and the plugin checks all of them. The plugin also checks all
/// containers periodically, with the same interval.
const RECONNECT_INTERVAL: Duration = Duration::from_secs(600);

/// Cgroups of containers that the runtime has not reported.
#[derive(Debug, Default)]
pub(super) struct UnknownCgroups {
    /// Whether the plugin has reconnected to the runtime since it found the cgroup.
    has_reconnected: HashMap<CgroupPath, bool>,
    /// Time of the last reconnection because of an unknown cgroup.
    last: Option<Instant>,
}

/// Decision on an unknown cgroup.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum CensusDecision {
    /// Inspect the cgroup again after this time.
    Wait(Duration),
    /// Reconnect to the runtime.
    Reconnect,
    /// The runtime has not reported the container after a reconnection either.
    Leave,
}

impl UnknownCgroups {
    /// Decides what to do about a cgroup that is unknown now. One reconnection is for all cgroups
    /// that were found before.
    pub(super) fn judge(&mut self, cgroup: &CgroupPath, now: Instant) -> CensusDecision {
        match self.has_reconnected.get(cgroup) {
            None => {
                // The runtime may have reported the end of the container, and may be about to
                // remove the cgroup.
                self.has_reconnected.insert(cgroup.clone(), false);
                return CensusDecision::Wait(UNKNOWN_CGROUP_DELAY);
            }
            Some(true) => return CensusDecision::Leave,
            Some(false) => {}
        }
        let next = self.last.map_or(now, |last| last + RECONNECT_INTERVAL);
        if now < next {
            return CensusDecision::Wait(next - now);
        }
        self.last = Some(now);
        self.has_reconnected.values_mut().for_each(|has_reconnected| *has_reconnected = true);
        CensusDecision::Reconnect
    }

    /// Forgets a cgroup that was removed.
    pub(super) fn remove(&mut self, cgroup: &CgroupPath) {
        self.has_reconnected.remove(cgroup);
    }

    /// Forgets the cgroups for which `is_kept` returns false.
    pub(super) fn retain(&mut self, is_kept: impl Fn(&CgroupPath) -> bool) {
        self.has_reconnected.retain(|cgroup, _| is_kept(cgroup));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_cgroups_share_one_reconnection_per_interval() {
        let path = |id: &str| CgroupPath::parse(&format!("kubepods/poda/{id}")).unwrap();
        let [first, second, later] = ["1", "2", "3"].map(path);
        let mut unknown = UnknownCgroups::default();
        let start = Instant::now();
        for cgroup in [&first, &second] {
            assert_eq!(unknown.judge(cgroup, start), CensusDecision::Wait(UNKNOWN_CGROUP_DELAY));
        }
        let reconnected = start + UNKNOWN_CGROUP_DELAY;
        assert_eq!(unknown.judge(&first, reconnected), CensusDecision::Reconnect);
        assert_eq!(unknown.judge(&second, reconnected), CensusDecision::Leave);
        let found = reconnected + Duration::from_secs(60);
        assert_eq!(unknown.judge(&later, found), CensusDecision::Wait(UNKNOWN_CGROUP_DELAY));
        let next = reconnected + RECONNECT_INTERVAL;
        assert_eq!(unknown.judge(&later, found), CensusDecision::Wait(next - found));
        assert_eq!(unknown.judge(&later, next), CensusDecision::Reconnect);
        assert_eq!(unknown.judge(&later, next), CensusDecision::Leave);
        unknown.remove(&later);
        assert_eq!(unknown.judge(&later, next), CensusDecision::Wait(UNKNOWN_CGROUP_DELAY));
    }
}
