//! Searches the cgroup tree for containers that the runtime has not reported, and for reserved
//! cgroups that do not exist.

use std::collections::HashMap;
use std::time::Duration;

use plimsoll_core::pod::{CgroupPath, PodCgroup};
use plimsoll_core::units::Bytes;
use tokio::time::Instant;
use tracing::warn;

use super::work::WorkItem;
use super::{CHECK_INTERVAL, Reconciler, UNKNOWN_CGROUP_DELAY};
use crate::cgroup::{CgroupError, CgroupRoot};
use crate::kubelet::kubepods::{self, CgroupSearch, id_in};

/// Minimum time between two reconnections because of unknown cgroups. After a reconnection, the
/// runtime reports all containers and the plugin checks all of them, as in the periodic check.
const RECONNECT_INTERVAL: Duration = CHECK_INTERVAL;

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
enum CensusDecision {
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
    fn judge(&mut self, cgroup: &CgroupPath, now: Instant) -> CensusDecision {
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

/// Returns the child cgroups of a cgroup. Returns an empty list if the cgroup cannot be read.
fn children(root: &CgroupRoot, cgroup: &CgroupPath) -> Vec<CgroupPath> {
    root.cgroup(cgroup).and_then(|cgroup| cgroup.children()).unwrap_or_default()
}

impl Reconciler {
    /// Searches the cgroup tree for containers that the runtime has not reported. Schedules an
    /// inspection of their cgroups after a delay, because the runtime may soon report such a
    /// container or remove its cgroup.
    pub(super) fn find_unknown_cgroups(&mut self) {
        let CgroupSearch { found, problems } =
            kubepods::containers(&self.root, self.levels.kubepods());
        for (_, cgroup) in found {
            if !self.is_known(&cgroup) {
                self.schedule(UNKNOWN_CGROUP_DELAY, WorkItem::UnknownCgroup(cgroup));
            }
        }
        let is_incomplete = !problems.is_empty();
        if is_incomplete && !self.is_search_incomplete {
            let error = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
            warn!(
                error,
                "cannot search for containers that the runtime has not reported. Logged once"
            );
        }
        self.is_search_incomplete = is_incomplete;
        for cgroup in self.levels.reserved() {
            if !self.missing_reserved.contains(&cgroup) && self.is_gone(&cgroup) {
                // The kubelet may create the cgroup soon, because it starts after the runtime.
                self.schedule(UNKNOWN_CGROUP_DELAY, WorkItem::UnknownCgroup(cgroup));
            }
        }
        let mut missing = std::mem::take(&mut self.missing_reserved);
        missing.retain(|cgroup| self.is_gone(cgroup));
        self.missing_reserved = missing;
    }

    /// Inspects a cgroup. If the runtime has not reported the cgroup's container, the plugin
    /// reconnects, and the runtime then reports all containers. The plugin reconnects only once per
    /// cgroup, and once in [`RECONNECT_INTERVAL`] for all cgroups.
    pub(super) fn inspect_unknown_cgroup(&mut self, cgroup: CgroupPath) {
        if self.levels.is_reserved(&cgroup) {
            return self.warn_missing_reserved(cgroup);
        }
        if PodCgroup::parse(cgroup.as_str()).is_some() {
            // The plugin has not watched the cgroup of this pod before, so inspect its child
            // cgroups now.
            for child in children(&self.root, &cgroup) {
                self.inspect_unknown_cgroup(child);
            }
            return;
        }
        let of_pod = cgroup.parent().is_some_and(|pod| PodCgroup::parse(pod.as_str()).is_some());
        if !of_pod || self.is_known(&cgroup) || !self.is_in_use(&cgroup) {
            return;
        }
        match self.unknown_cgroups.judge(&cgroup, Instant::now()) {
            CensusDecision::Wait(delay) => self.schedule(delay, WorkItem::UnknownCgroup(cgroup)),
            CensusDecision::Leave => {}
            CensusDecision::Reconnect => {
                warn!(
                    %cgroup,
                    "the runtime has not reported the container in this cgroup; the plugin \
                     reconnects to the runtime"
                );
                self.runtime.reconnect();
            }
        }
    }

    /// Warns once that a reserved cgroup does not exist, so the plugin cannot protect the services
    /// in this cgroup.
    pub(super) fn warn_missing_reserved(&mut self, cgroup: CgroupPath) {
        // If the user names no cgroup, the node guard's task warns about the default cgroup.
        let is_named = !self.containers.settings().config.reserved.is_empty();
        if is_named && self.is_gone(&cgroup) && self.missing_reserved.insert(cgroup.clone()) {
            warn!(
                %cgroup,
                "systemReservedCgroup or kubeReservedCgroup names a cgroup that does not exist, \
                 so the plugin cannot protect its services; name the cgroup that contains the \
                 services. Logged once"
            );
        }
    }

    pub(super) fn is_gone(&self, cgroup: &CgroupPath) -> bool {
        matches!(self.root.cgroup(cgroup), Err(CgroupError::Gone(_)))
    }

    pub(super) fn is_known(&self, cgroup: &CgroupPath) -> bool {
        let id = id_in(cgroup.name());
        self.containers.get(id).is_some()
            || self.levels.is_sandbox(id)
            || self.by_cgroup.contains_key(cgroup)
    }

    pub(super) fn is_in_use(&self, cgroup: &CgroupPath) -> bool {
        self.root
            .cgroup(cgroup)
            .and_then(|cgroup| cgroup.usage())
            .is_ok_and(|usage| usage > Bytes::ZERO)
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
