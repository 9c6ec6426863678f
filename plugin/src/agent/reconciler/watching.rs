//! Watches cgroups, and schedules a check of each cgroup that changes.

use std::time::Duration;

use plimsoll_core::pod::CgroupPath;
use tracing::{debug, warn};

use super::unknown_cgroups::UNKNOWN_CGROUP_DELAY;
use super::work::WorkItem;
use super::{CHECK_INTERVAL, DueChecks, Reconciler};
use crate::cgroup::systemd;
use crate::cgroup::watch::CgroupChange;
use crate::state::container::Container;

impl Reconciler {
    pub(super) fn on_change(&mut self, change: Option<CgroupChange>, due: &mut DueChecks) {
        match change {
            Some(CgroupChange::Written(path, knob)) => {
                if let Some(id) = self.by_cgroup.get(&path) {
                    due.containers.insert(id.clone(), true);
                } else if self.levels.contains(&path) {
                    due.cgroups.entry(path).or_default().push(knob);
                }
            }
            Some(CgroupChange::Removed(path)) => due.removed.push(path),
            // The runtime usually also reports the container of a new cgroup.
            Some(CgroupChange::Made(path)) if self.levels.contains(&path) => {
                _ = due.cgroups.entry(path).or_default()
            }
            Some(CgroupChange::Made(path)) => {
                self.schedule(UNKNOWN_CGROUP_DELAY, WorkItem::UnknownCgroup(path))
            }
            Some(CgroupChange::Overflow) => self.check_everything(due),
            None => {
                warn!(
                    "cannot watch cgroups any longer; the plugin finds changes by other programs \
                     only every {CHECK_INTERVAL:?}"
                );
                self.watch = None;
            }
        }
    }

    pub(super) fn on_removed(&mut self, cgroup: &CgroupPath) {
        self.remove_drop_ins(cgroup);
        let id = self.by_cgroup.get(cgroup).cloned();
        self.unwatch(cgroup);
        self.unknown_cgroups.remove(cgroup);
        self.standings.remove(cgroup);
        // Another cgroup with the same path may exist now.
        match id.and_then(|id| self.containers.get(&id)) {
            Some(container)
                if container.cgroup.as_ref() == Some(cgroup)
                    && (!container.started || container.has_had_processes)
                    && self.root.cgroup(cgroup).is_err() =>
            {
                self.on_ended(&container);
            }
            Some(container) => {
                self.schedule(Duration::ZERO, WorkItem::Container(container.id.clone()))
            }
            None if self.levels.contains(cgroup) => {
                self.schedule(Duration::ZERO, WorkItem::Cgroup(cgroup.clone()))
            }
            None => {}
        }
    }

    /// Removes the drop-ins that systemd keeps for the unit of a removed cgroup. Otherwise the next
    /// unit with the same name would inherit the drop-ins.
    pub(super) fn remove_drop_ins(&self, cgroup: &CgroupPath) {
        match systemd::remove_drop_ins(self.root.host(), &self.root, cgroup) {
            Ok(false) => {}
            Ok(true) => debug!(%cgroup, "removed the drop-ins of a unit that is gone"),
            Err(error) => {
                warn!(%cgroup, %error, "cannot remove the drop-ins of a unit that is gone")
            }
        }
    }

    pub(super) fn watch_container(&mut self, container: &Container) {
        if let Some(place) = &container.place {
            for cgroup in [Some(place.kubepods()), place.class_cgroup(), Some(place.cgroup())]
                .into_iter()
                .flatten()
            {
                self.watch_cgroup(cgroup);
            }
        }
        if let Some(cgroup) = &container.cgroup
            && self.by_cgroup.get(cgroup) != Some(&container.id)
        {
            for cgroup in [Some(cgroup.clone()), cgroup.subgroup()].into_iter().flatten() {
                self.watch_cgroup(&cgroup);
                self.by_cgroup.insert(cgroup, container.id.clone());
            }
        }
    }

    pub(super) fn watch_cgroup(&mut self, cgroup: &CgroupPath) {
        let Some(watch) = &mut self.watch else { return };
        match watch.add(&self.root, cgroup) {
            // Another program may have written the files before the watch began.
            Ok(true) if self.levels.contains(cgroup) => {
                self.schedule(Duration::ZERO, WorkItem::Cgroup(cgroup.clone()));
            }
            Ok(_) => {}
            Err(error) => debug!(
                %cgroup,
                %error,
                "cannot watch the cgroup; the plugin finds changes by other programs only every \
                 {CHECK_INTERVAL:?}"
            ),
        }
    }

    pub(super) fn unwatch(&mut self, cgroup: &CgroupPath) {
        for cgroup in [Some(cgroup.clone()), cgroup.subgroup()].into_iter().flatten() {
            self.by_cgroup.remove(&cgroup);
            if let Some(watch) = &mut self.watch {
                watch.remove(&cgroup);
            }
        }
    }
}
