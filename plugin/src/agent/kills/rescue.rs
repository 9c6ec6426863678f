//! Raises the limit of a container that is OOM-killed repeatedly.

use std::sync::Arc;

use plimsoll_core::incident::Incident;
use plimsoll_core::pod::CgroupPath;
use plimsoll_core::policy::rescue::{History, Rescue, RescueDecision};
use plimsoll_core::units::Bytes;
use tracing::debug;

use super::{RAISE_RETRY, Watcher, is_due, now};
use crate::agent::reconciler::WorkItem;
use crate::state::container::Container;
use crate::state::rescues::is_rescue_wanted;

impl Watcher {
    /// Asks the reconcile task to raise a container's limit if `oomRescue` requires this. Later
    /// containers with the same name also get the raised limit.
    pub(super) fn raise_if_due(&mut self, path: &CgroupPath, container: &Arc<Container>) {
        if self.containers.settings().observes() {
            return self.plan(path, container, now());
        }
        let Some(limit) = self.decide_raise(path, container, now()) else { return };
        // This send cannot fail, because the receiver exists until the program ends.
        let _ = self.work.send(WorkItem::higher_limit(container, limit));
    }

    /// Reports the raise that the plugin would make if it were not in observe mode.
    pub(super) fn plan(&mut self, path: &CgroupPath, container: &Container, now: u64) {
        let settings = self.containers.settings();
        let (Some(rescue), Some(asked)) =
            (settings.config.oom_rescue.as_ref(), container.asked.bytes())
        else {
            return;
        };
        let own_ceiling = container.overrides.oom_rescue;
        let Some(pod) = self.counted.pods.get(path) else { return };
        let Some(history) = pod.histories.get(&container.name) else { return };
        let is_reported = pod
            .last_reported
            .get(&container.name)
            .is_some_and(|reported| !is_due(reported.planned, now));
        let (kills, window) = (history.kills(rescue.window, now), rescue.window);
        if is_reported
            || kills < rescue.kills as usize
            || own_ceiling == Some(None)
            || self.is_bounded_by_its_pod(container)
        {
            return;
        }
        let free = self.free(container);
        let page = settings.node.page_size;
        // Decide with a copy of the kill history, so that the plugin does not store the decision.
        let what =
            match history.clone().judge(rescue, asked, own_ceiling.flatten(), free, page, now) {
                RescueDecision::NotYet => return,
                RescueDecision::Raise(desired) => {
                    Incident::Rescued { asked, observed: asked, desired, kills, window }
                }
                RescueDecision::AtCeiling(ceiling) => {
                    Incident::AtCeiling { observed: asked, ceiling, free, kills, window }
                }
            };
        self.last_reported(path, &container.name).planned = Some(now);
        self.reports.report_planned(&container.into(), &what);
    }

    /// Returns the raised limit for a container if `oomRescue` requires a higher limit.
    pub(super) fn decide_raise(
        &mut self,
        path: &CgroupPath,
        container: &Container,
        now: u64,
    ) -> Option<Bytes> {
        if !is_rescue_wanted(&self.containers, container) {
            return None;
        }
        let settings = self.containers.settings();
        let rescue = settings.config.oom_rescue.as_ref()?;
        let asked = container.asked.bytes()?;
        let pod = self.counted.pods.get(path)?;
        let kills = pod.histories.get(&container.name)?.kills(rescue.window, now);
        let reported = pod.last_reported.get(&container.name).copied().unwrap_or_default();
        let rescued = pod.histories.get(&container.name).and_then(History::rescued);
        if let Some(Rescue { limit, .. }) = rescued
            && container.started
            && container.limit.is_same(asked.into(), settings.node.page_size)
            && reported.raised.is_none_or(|raised| now.saturating_sub(raised) >= RAISE_RETRY)
        {
            // The runtime has not set the requested limit.
            self.last_reported(path, &container.name).raised = Some(now);
            return Some(limit);
        }
        if kills < rescue.kills as usize
            || !is_due(reported.ceiling, now)
            || self.is_bounded_by_its_pod(container)
        {
            return None;
        }
        let free = self.free(container);
        let own_ceiling = container.overrides.oom_rescue.flatten();
        let history = self.counted.pods.get_mut(path)?.histories.get_mut(&container.name)?;
        let limit = history.rescued().map_or(asked, |rescued| rescued.limit);
        let page = settings.node.page_size;
        // The last raised limit is not in force yet, or the plugin has deferred the limit that the
        // user asks for.
        if !container.limit.is_same(limit.into(), page) {
            return None;
        }
        let window = rescue.window;
        let (raised, incident) = match history.judge(rescue, asked, own_ceiling, free, page, now) {
            RescueDecision::NotYet => return None,
            RescueDecision::Raise(desired) => {
                self.publish(path, &container.name);
                self.last_reported(path, &container.name).raised = Some(now);
                let raise = Incident::Rescued { asked, observed: limit, desired, kills, window };
                (Some(desired), raise)
            }
            RescueDecision::AtCeiling(ceiling) => {
                self.last_reported(path, &container.name).ceiling = Some(now);
                let observed = limit;
                (None, Incident::AtCeiling { observed, ceiling, free, kills, window })
            }
        };
        self.reports.report(&container.into(), &incident);
        self.store();
        raised
    }

    /// Returns whether the pod's own limit prevents a raise. If the pod's own limit prevents the
    /// raise, logs this.
    pub(super) fn is_bounded_by_its_pod(&self, container: &Container) -> bool {
        let is_bounded = self.levels.has_own_memory_limit(&container.sandbox);
        if is_bounded {
            debug!(
                pod = container.pod,
                container = container.name,
                "the pod has pod-level limits, which stay"
            );
        }
        is_bounded
    }

    /// Returns the part of node allocatable that is free for a raise of this container's limit.
    /// Subtracts the requests of all containers, including this container, and the increases by
    /// other raised limits. Returns zero if node allocatable is unknown.
    pub(super) fn free(&self, container: &Container) -> Bytes {
        let Some(allocatable) = self.containers.settings().node.allocatable else {
            return Bytes::ZERO;
        };
        let request = |container: &Container| {
            let record = self.containers.record(container);
            self.containers
                .decide(container, &record)
                .request
                .map_or(Bytes::ZERO, |request| request.bytes)
        };
        let mut all = self.containers.all();
        all.retain(|other| self.levels.is_alive(other));
        let others = all
            .iter()
            .filter(|other| (&other.uid, &other.name) != (&container.uid, &container.name));
        let requests =
            others.map(|other| request(other)).fold(request(container), Bytes::saturating_add);
        allocatable
            .saturating_sub(requests)
            .saturating_sub(self.rescues.raised_by_others(container))
    }
}
