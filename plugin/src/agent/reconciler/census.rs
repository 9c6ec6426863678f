//! Searches the cgroup tree for containers that the runtime has not reported, and for reserved
//! cgroups that do not exist.

use plimsoll_core::pod::{CgroupPath, PodCgroup};
use plimsoll_core::units::Bytes;
use tokio::time::Instant;
use tracing::warn;

use super::Reconciler;
use super::unknown_cgroups::{CensusDecision, UNKNOWN_CGROUP_DELAY};
use super::work::WorkItem;
use crate::cgroup::{CgroupError, CgroupRoot};
use crate::kubelet::kubepods::{self, CgroupSearch, id_in};

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
    /// cgroup, and once in ten minutes for all cgroups.
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
