//! Finds new OOM kills by the counters in a pod's cgroup files, and reports them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use plimsoll_core::incident::{Incident, IncidentKind, Subject};
use plimsoll_core::pod::{CgroupPath, PodCgroup};
use tracing::{debug, warn};

use super::{DECREASE_KILL_WINDOW, Total, Watcher, is_due, now, times_reached};
use crate::agent::reconciler::guard;
use crate::cgroup::{CgroupError, CgroupRoot};
use crate::report::Report;
use crate::report::metrics::{By, OfKill};
use crate::state::brake::Cause;
use crate::state::container::Container;
use crate::state::kill_counts::Rest;
use crate::state::kill_counts::{Counts, Killed, Pod};

/// Returns the kill counts of the pod's containers, and the IDs of the containers whose cgroups no
/// longer exist.
fn read_containers(root: &CgroupRoot, pod: &Pod) -> (Vec<(String, Counts)>, Vec<String>) {
    let (mut counts, mut gone) = (Vec::new(), Vec::new());
    for (id, running) in &pod.running {
        match root.cgroup(&running.cgroup).and_then(|cgroup| cgroup.events()) {
            Ok(events) => counts.push((id.clone(), events.into())),
            Err(CgroupError::Gone(_)) => gone.push(id.clone()),
            Err(error) => {
                debug!(cgroup = %running.cgroup, %error, "cannot read the kills of a container")
            }
        }
    }
    (counts, gone)
}

impl Watcher {
    /// Returns the pods that the plugin must check even without an inotify event. If the kernel has
    /// counted a new kill below kubepods, returns all pods.
    pub(super) fn suspects(&mut self) -> Vec<CgroupPath> {
        let mut has_more = false;
        for (top, total) in &mut self.totals {
            let count = self
                .root
                .cgroup(top)
                .and_then(|top| top.events())
                .map(Counts::from)
                .unwrap_or_default();
            has_more |= std::mem::replace(&mut total.kills, count) != count;
        }
        if has_more { self.counted.pods.keys().cloned().collect() } else { Vec::new() }
    }

    /// Checks a pod for kills, and forgets the containers in `ended`. Returns `false` if the pod no
    /// longer exists.
    pub(super) fn check_pod(&mut self, path: &CgroupPath, ended: &BTreeSet<String>) -> bool {
        let Some(pod) = self.counted.pods.get_mut(path) else {
            return self.root.cgroup(path).is_ok();
        };
        let before = (pod.accounted, pod.limits_reached);
        // Read the containers' counts before the pod's counts, because the kernel counts a kill
        // first in the container and then in the pod.
        let (counts, gone) = read_containers(&self.root, pod);
        let events = match self.root.cgroup(path).and_then(|pod| pod.events()) {
            Ok(events) => events,
            Err(CgroupError::Gone(_)) => return false,
            Err(error) => {
                debug!(cgroup = %path, %error, "cannot read the kills of a pod");
                return true;
            }
        };
        let mut killed: Vec<_> =
            counts.into_iter().filter_map(|(id, counts)| pod.account(id, counts)).collect();
        match pod.attribute_rest(events.into(), &gone) {
            Rest::None => {}
            Rest::Of(last) => killed.push(last),
            Rest::Later => _ = self.again.insert(path.clone()),
            Rest::Unknown { processes, might_be } => warn!(
                cgroup = %path,
                processes,
                might_be,
                "the kernel OOM-killed processes of the pod, in an unknown container"
            ),
        }
        gone.iter().chain(ended).for_each(|id| _ = pod.running.remove(id));
        if pod.running.is_empty() {
            // The runtime may be about to remove the pod.
            self.again.insert(path.clone());
        }
        killed.retain(|killed| killed.times > 0);
        let is_by_its_limit = pod.was_limit_reached(events.oom, &killed, now());
        let has_changed = (pod.accounted, pod.limits_reached) != before;
        let forgotten =
            if is_by_its_limit { self.add_to_histories(path, &killed) } else { Vec::new() };
        forgotten.iter().for_each(|name| self.publish(path, name));
        if has_changed {
            // Store the counts before the plugin reports them.
            self.store();
        }
        for killed in killed {
            let by_ours = self.kills_by_our_limits(path, &killed, is_by_its_limit);
            // The brake counts only kills that happened while this process ran.
            if killed.is_recent {
                (0..by_ours).for_each(|_| self.reports.brake.count(Cause::Kills, Instant::now()));
            }
            self.on_killed(path, &killed, is_by_its_limit);
        }
        true
    }

    /// Adds kills to the containers' kill histories. Starts a new history if the user now asks for
    /// another limit. Returns the names of the containers with a new history.
    ///
    /// A kill of unknown time counts from the earliest time at which the kernel can have counted
    /// it. So such a kill causes a rescue only if it is certain to lie in the rescue's window.
    fn add_to_histories(&mut self, path: &CgroupPath, killed: &[Killed]) -> Vec<String> {
        let page = self.containers.settings().node.page_size;
        let now = now();
        let Some(pod) = self.counted.pods.get_mut(path) else { return Vec::new() };
        let mut forgotten = Vec::new();
        for Killed { id, name, times, is_recent, .. } in killed {
            let history = pod.histories.entry(name.clone()).or_default();
            if let Some(container) = self.containers.get(id)
                && history.asks_for(container.asked, page)
            {
                forgotten.push(name.clone());
            }
            history.killed(*times, if *is_recent { now } else { self.away_since });
        }
        forgotten
    }

    /// Reports a container's kills, and raises its limit if `oomRescue` requires this.
    pub(super) fn on_killed(&mut self, path: &CgroupPath, killed: &Killed, is_by_its_limit: bool) {
        let Some(pod) = self.counted.pods.get_mut(path) else { return };
        let settings = self.containers.settings();
        let rescue = settings.config.oom_rescue.unwrap_or_default();
        let now = now();
        let mut kills =
            pod.histories.get(&killed.name).map_or(0, |history| history.kills(rescue.window, now));
        // Kills of unknown time may lie outside the window, but the report must not omit them.
        if is_by_its_limit && !killed.is_recent {
            kills = kills.max(usize::try_from(killed.times).unwrap_or(usize::MAX));
        }
        // The runtime may have created a new container with this name, or may have reported the end
        // of the killed container.
        let is_it = |container: &Arc<Container>| {
            container.name == killed.name
                && container.place.as_ref().is_some_and(|place| place.cgroup() == path)
        };
        let container = self
            .containers
            .all()
            .into_iter()
            .filter(is_it)
            .max_by_key(|container| container.id != killed.id);
        let container = container.or_else(|| killed.container.clone());
        let by = if is_by_its_limit { By::limit } else { By::node };
        self.reports.metrics.oom_kills.get_or_create(&OfKill { by }).inc_by(killed.times);
        if is_due(self.last_reported(path, &killed.name).kills, now) {
            self.last_reported(path, &killed.name).kills = Some(now);
            let subject = match &container {
                Some(container) => container.as_ref().into(),
                None => {
                    let uid = PodCgroup::parse(path.as_str()).map(|pod| pod.uid);
                    Subject { uid, container: Some(killed.name.clone()), ..Subject::default() }
                }
            };
            let limit = container.as_ref().map(|container| container.limit);
            let what = Incident::Killed {
                limit,
                by_own_limit: is_by_its_limit,
                kills,
                window: rescue.window,
            };
            self.reports.report(&Subject { cgroup: Some(path.clone()), ..subject }, &what);
        }
        if let Some(container) = container {
            self.raise_if_due(path, &container);
        }
    }

    /// Returns how many of these kills the plugin's limits have caused. The plugin's limits are the
    /// node guard's limit, and a deferred limit that the plugin set shortly before the kill.
    pub(super) fn kills_by_our_limits(
        &mut self,
        path: &CgroupPath,
        killed: &Killed,
        is_by_its_limit: bool,
    ) -> u64 {
        if !is_by_its_limit {
            let times = self.limit_of_all_reached();
            return if guard::is_in_force(&self.root, &self.levels) { times } else { 0 };
        }
        let Some(pod) = PodCgroup::parse(path.as_str()) else { return 0 };
        let is_ours = |report: &Report| {
            report.kind == IncidentKind::CutApplied && report.is_within(DECREASE_KILL_WINDOW)
        };
        if self.reports.of_container(&pod.uid, &killed.name).iter().any(is_ours) {
            killed.times
        } else {
            0
        }
    }

    /// Returns how often the usage of all pods reached the limit of kubepods since the last call.
    /// Ignores a memory shortage of the whole node, during which the kernel also kills in pods.
    pub(super) fn limit_of_all_reached(&mut self) -> u64 {
        let root = &self.root;
        let since = |(kubepods, total): (&CgroupPath, &mut Total)| {
            let now = times_reached(root, kubepods)?;
            Some(now.saturating_sub(total.reached.replace(now)?))
        };
        self.totals.iter_mut().filter_map(since).sum()
    }
}
