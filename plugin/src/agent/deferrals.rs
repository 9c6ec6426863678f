//! Deferred limit decreases, which the plugin retries in the background (`shrink: defer`).
//!
//! The plugin makes about one pass per second. In each pass, the plugin reclaims memory of each
//! container for up to three tenths of a second. The plugin skips a container if no reclaim can
//! lower its usage to the limit, or if the container already stalls on memory. Once the usage is
//! low enough, the plugin asks the runtime to set the limit. The limit counts as applied once
//! `memory.max` has the new value.

use std::sync::Arc;
use std::time::Duration;

use plimsoll_core::incident::{Incident, LowerLimit};
use plimsoll_core::policy::limit_decrease::{self, DecreaseCheck, STALLED};
use plimsoll_core::units::{Knob, Limit};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tracing::debug;

use crate::agent::decrease::{DecreaseResult, LimitDecreases};
use crate::agent::reconciler::WorkItem;
use crate::cgroup::{CgroupError, CgroupRoot};
use crate::report::Reports;
use crate::state::container::Container;
use crate::state::containers::Containers;
use crate::state::deferred::{Deferral, DeferredLimits};
use crate::state::update_phase::Party;

/// Pause between two passes over the deferred limits.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Maximum time for one attempt to prepare a container's limit decrease.
const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(300);

/// Time after which the plugin repeats a request for a limit that the runtime has not set.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// The task that retries deferred limit decreases.
#[derive(Debug)]
pub struct Deferrals {
    root: Arc<CgroupRoot>,
    containers: Arc<Containers>,
    decreases: Arc<LimitDecreases>,
    reports: Arc<Reports>,
    work: mpsc::UnboundedSender<WorkItem>,
    deferred: Arc<DeferredLimits>,
}

impl Deferrals {
    /// Creates the task. The task sends its requests for the runtime over `work` to the reconcile
    /// task.
    pub fn new(
        root: Arc<CgroupRoot>,
        containers: Arc<Containers>,
        decreases: Arc<LimitDecreases>,
        reports: Arc<Reports>,
        work: mpsc::UnboundedSender<WorkItem>,
        deferred: Arc<DeferredLimits>,
    ) -> Self {
        Self { root, containers, decreases, reports, work, deferred }
    }

    /// Runs forever.
    pub async fn run(self) {
        loop {
            let waiting = self.deferred.all();
            if waiting.is_empty() {
                self.deferred.added().await;
                continue;
            }
            for (id, deferral) in waiting {
                self.retry(&id, deferral).await;
            }
            sleep(RETRY_INTERVAL).await;
        }
    }

    async fn retry(&self, id: &str, deferral: Deferral) {
        let container = self.containers.get(id);
        let settled = match &container {
            Some(container) => match self.try_once(container, deferral).await {
                Ok(settled) => settled,
                Err(CgroupError::Gone(_)) => true,
                Err(error) => {
                    debug!(pod = container.pod, container = container.name, %error, "cannot try \
                        the deferred limit");
                    false
                }
            },
            None => true,
        };
        if settled {
            self.deferred.settle(id, deferral);
        }
    }

    /// Tries once to apply a deferred limit. Returns true if the plugin has applied the limit or
    /// given it up, so that no further try follows.
    async fn try_once(
        &self,
        container: &Container,
        deferral: Deferral,
    ) -> Result<bool, CgroupError> {
        let Some(path) = &container.cgroup else { return Ok(true) };
        let cgroup = self.root.cgroup(path)?;
        let Deferral { limit, since, timeout } = deferral;
        let page = self.containers.settings().node.page_size;
        let in_force = cgroup.read(Knob::Max)?;
        if in_force <= Limit::Bytes(limit).floor_to(page) {
            self.reports.report(
                &container.into(),
                &Incident::CutApplied { desired: limit, observed: in_force },
            );
            return Ok(true);
        }
        let now = Instant::now();
        let requested = container.phase.limit_requested();
        if requested.is_some_and(|requested| now.duration_since(requested) < REQUEST_TIMEOUT) {
            return Ok(false);
        }
        let usage = cgroup.usage_in_parts()?;
        // After the timeout, or when enforce mode ends, stop trying and report this.
        if now.duration_since(since) >= timeout || !self.containers.settings().enforces() {
            self.reports.report(
                &container.into(),
                &Incident::CutGivenUp(LowerLimit { limit: limit.into(), in_force, usage }),
            );
            return Ok(true);
        }
        // Also try if the kernel has no memory.pressure, because each pass reclaims little memory.
        let is_of_use = match limit_decrease::check_decrease(limit, &usage) {
            DecreaseCheck::Kills => false,
            DecreaseCheck::Reclaim => {
                cgroup.pressure().map_or(0.0, |pressure| pressure.percent) < STALLED
            }
            DecreaseCheck::Fits => true,
        };
        if is_of_use {
            let lowered = Container { limit: Limit::Bytes(limit), ..container.clone() };
            match self.decreases.prepare(&lowered, Party::Plugin, ATTEMPT_TIMEOUT).await? {
                // This send cannot fail, because the receiver exists until the program ends.
                DecreaseResult::Prepared => {
                    _ = self.work.send(WorkItem::prepared_limit(container, limit))
                }
                DecreaseResult::WouldKill { .. } | DecreaseResult::Busy { .. } => {
                    _ = self.work.send(WorkItem::Container(container.id.clone()))
                }
                DecreaseResult::NoDecrease => {}
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use plimsoll_core::units::Bytes;

    use super::*;
    use crate::state::testing::{POD, TestNode};

    /// Tries a deferred limit of 100 MiB for a container with 200 MiB. Returns the result of
    /// `try_once`, and the work for the reconcile task.
    async fn try_limit(node: &TestNode, since: Instant) -> (bool, Option<WorkItem>) {
        let (work, mut todo) = mpsc::unbounded_channel();
        let (root, containers) = (node.root.clone(), node.containers.clone());
        let decreases = Arc::new(LimitDecreases::new(root.clone(), containers.clone()));
        let task =
            Deferrals::new(root, containers, decreases, Arc::default(), work, Arc::default());
        let limit = Bytes::new(100 << 20);
        let deferral = Deferral { limit, since, timeout: Duration::from_secs(60) };
        let container = node.containers.get("1").unwrap();
        let settled = task.try_once(&container, deferral).await.unwrap();
        (settled, todo.try_recv().ok())
    }

    #[tokio::test]
    async fn a_reachable_limit_is_prepared_then_requested() {
        let node = TestNode::new("");
        let container = node.run("1", 200, 50);
        let (settled, work) = try_limit(&node, Instant::now()).await;
        assert!(!settled, "the limit is not in force yet");
        assert_eq!(work, Some(WorkItem::prepared_limit(&container, Bytes::new(100 << 20))));
        assert_eq!(node.get(&format!("{POD}/1"), "memory.high"), (50 << 20).to_string());
    }

    #[tokio::test]
    async fn an_unreachable_limit_leaves_memory_high_unchanged() {
        let node = TestNode::new("");
        node.run("1", 200, 150);
        assert_eq!(try_limit(&node, Instant::now()).await, (false, None));
        assert_eq!(node.get(&format!("{POD}/1"), "memory.high"), "max");
    }

    #[tokio::test]
    async fn a_limit_in_force_is_settled() {
        let node = TestNode::new("");
        node.run("1", 100, 50);
        assert_eq!(try_limit(&node, Instant::now()).await, (true, None));
    }

    #[tokio::test(start_paused = true)]
    async fn an_unreachable_limit_expires_after_its_timeout() {
        let node = TestNode::new("");
        node.run("1", 200, 150);
        let since = Instant::now();
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(try_limit(&node, since).await, (true, None));
    }

    #[tokio::test]
    async fn observe_mode_gives_the_limit_up() {
        let node = TestNode::new("mode: observe");
        node.run("1", 200, 50);
        assert_eq!(try_limit(&node, Instant::now()).await, (true, None));
    }
}
