//! The plugin's requests to the runtime to change a container's memory limit.

use std::time::Duration;

use plimsoll_core::units::{Bytes, Knob, Limit};

use super::compare::Write;
use super::updater::PendingUpdate;
use super::work::WorkItem;
use super::{DueChecks, LIMIT_RETRY_DELAY, Reconciler};
use crate::state::container::Container;
use crate::state::update_phase::{LimitRequest, UpdatePhase};

impl Reconciler {
    /// Requests the user's limit again, because the runtime has handled the user's update before an
    /// older request of the plugin.
    pub(super) fn request_again(&mut self, container: &Container, in_force: Limit) {
        match container.limit {
            Limit::Bytes(limit) if container.limit > in_force => {
                self.schedule(Duration::ZERO, WorkItem::higher_limit(container, limit));
            }
            Limit::Bytes(limit) => {
                let timeout = self.containers.settings().config.shrink_deadline;
                self.deferred.put(&container.id, limit, timeout);
            }
            // The plugin never asks the runtime for an unlimited memory.max, so do nothing.
            Limit::Max => {}
        }
    }

    /// Asks the runtime to change the memory limit of a running container.
    pub(super) fn request_limit(&mut self, work: WorkItem, due: &mut DueChecks) {
        let WorkItem::Limit { id, limit, origin, is_prepared } = &work else { return };
        let now = tokio::time::Instant::now();
        let begin = |phase: &mut UpdatePhase| phase.begin_limit_request(*origin, *is_prepared, now);
        match self.containers.on_phase(id, begin) {
            Some(LimitRequest::Send) => {}
            Some(LimitRequest::Wait) => return self.schedule(LIMIT_RETRY_DELAY, work),
            Some(LimitRequest::Drop) => {
                // A prepared decrease may have lowered memory.high.
                due.containers.entry(id.clone()).or_default();
                return;
            }
            None => return,
        }
        let Some(container) = self.containers.get(id) else { return };
        if !is_prepared {
            self.raise_pod_for(&container, *limit);
        }
        let cgroup = container.cgroup.as_ref().and_then(|cgroup| self.root.cgroup(cgroup).ok());
        let in_force = cgroup.as_ref().and_then(|cgroup| cgroup.read(Knob::Max).ok());
        let swap_max = cgroup.and_then(|cgroup| cgroup.swap_max().ok()).and_then(Limit::bytes);
        let observed = in_force.unwrap_or(container.limit);
        let write = Write { knob: Knob::Max, observed, desired: Limit::Bytes(*limit) };
        // The plugin requests limits only in enforce mode. The updater sends attempt 2 in a
        // separate request, so that the runtime gives the reason of a failure.
        let pending = PendingUpdate {
            container,
            writes: vec![write],
            is_limit_request: true,
            attempt: 2,
            queued_at: now,
            swap_max,
            enforces: true,
            is_foreign: false,
        };
        // This send cannot fail, because the receiver exists until this task ends.
        let _ = self.updater.send(vec![pending]);
    }

    /// Raises the limits of a container's pod before the plugin raises the container's limit to
    /// `limit`. A lower limit of the pod would make `limit` useless.
    fn raise_pod_for(&self, container: &Container, limit: Bytes) {
        let raised = Container { limit: Limit::Bytes(limit), ..container.clone() };
        let record = self.containers.record(container);
        let is_alive = |other: &Container| self.levels.is_alive(other);
        let pod = self.containers.view_pod_of(&raised, None, &record, is_alive);
        let raise = self.levels.raise_limits(&raised, &pod, false);
        self.reports.report_all(raise.incidents);
    }
}
