//! Deferred limit decreases, which the plugin retries in the background (`shrink: defer`).
//!
//! The plugin does nothing to a container while the limit is out of reach, or while the container
//! already stalls on memory. Otherwise each pass reclaims memory for up to three tenths of a
//! second. There is about one pass per second. Once the usage fits, the plugin asks the runtime to
//! set the limit. The limit counts as applied when it was read back.

use std::sync::Arc;
use std::time::Duration;

use plimsoll_core::incident::{Incident, LowerLimit};
use plimsoll_core::policy::resize::{self, Cut, STALLED};
use plimsoll_core::units::{Knob, Limit};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tracing::debug;

use crate::agent::cut::{Attempted, Cuts};
use crate::agent::reconciler::Work;
use crate::cgroup::{CgroupError, CgroupRoot};
use crate::report::Reports;
use crate::state::container::{Container, Update};
use crate::state::containers::Containers;
use crate::state::deferred::{Deferral, DeferredLimits};

/// Pause between two passes over the deferred limits.
const EVERY: Duration = Duration::from_secs(1);

/// Time for one attempt to prepare a container's limit decrease.
const BUDGET: Duration = Duration::from_millis(300);

/// Time after which the plugin asks the runtime again for a limit that is not set.
const PATIENCE: Duration = Duration::from_secs(30);

/// The task that retries deferred limit decreases.
#[derive(Debug)]
pub struct Deferrals {
    root: Arc<CgroupRoot>,
    containers: Arc<Containers>,
    cuts: Arc<Cuts>,
    reports: Arc<Reports>,
    work: mpsc::UnboundedSender<Work>,
    deferred: Arc<DeferredLimits>,
}

impl Deferrals {
    /// Creates the task. The reconcile task gets the requests for the runtime through `work`.
    pub fn new(
        root: Arc<CgroupRoot>,
        containers: Arc<Containers>,
        cuts: Arc<Cuts>,
        reports: Arc<Reports>,
        work: mpsc::UnboundedSender<Work>,
        deferred: Arc<DeferredLimits>,
    ) -> Self {
        Self { root, containers, cuts, reports, work, deferred }
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
                self.attend(&id, deferral).await;
            }
            sleep(EVERY).await;
        }
    }

    async fn attend(&self, id: &str, deferral: Deferral) {
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

    /// Tries the limit once. Returns whether the limit is settled.
    async fn try_once(
        &self,
        container: &Container,
        deferral: Deferral,
    ) -> Result<bool, CgroupError> {
        let Some(path) = &container.cgroup else { return Ok(true) };
        let cgroup = self.root.cgroup(path)?;
        let Deferral { limit, since, patience, asked } = deferral;
        let page = self.containers.settings().node.page_size;
        let in_force = cgroup.read(Knob::Max)?;
        if in_force <= Limit::Bytes(limit).floor_to(page) {
            self.reports.tell(
                &container.into(),
                &Incident::CutApplied { desired: limit, observed: in_force },
            );
            return Ok(true);
        }
        let now = Instant::now();
        if asked.is_some_and(|asked| now.duration_since(asked) < PATIENCE) {
            return Ok(false);
        }
        let usage = cgroup.usage_in_parts()?;
        // A plugin that no longer enforces drops the limit and reports this.
        if now.duration_since(since) >= patience || !self.containers.settings().enforces() {
            self.reports.tell(
                &container.into(),
                &Incident::CutGivenUp(LowerLimit { limit: limit.into(), in_force, usage }),
            );
            return Ok(true);
        }
        // Without memory.pressure the plugin tries as well, because each pass reclaims little.
        let is_of_use = match resize::cut(limit, &usage) {
            Cut::Kills => false,
            Cut::Reclaim => cgroup.pressure().map_or(0.0, |pressure| pressure.percent) < STALLED,
            Cut::Fits => true,
        };
        if is_of_use {
            let lowered = Container { limit: Limit::Bytes(limit), ..container.clone() };
            match self.cuts.make_room(&lowered, Update::OURS, BUDGET).await? {
                Attempted::Made => {
                    self.deferred.set_asked(&container.id, now);
                    // The receiver lives as long as the program.
                    let _ = self.work.send(Work::limit(container, limit));
                }
                Attempted::NotMade { .. } | Attempted::Busy { .. } => {
                    _ = self.work.send(Work::Container(container.id.clone()))
                }
                Attempted::NoCut => {}
            }
        }
        Ok(false)
    }
}
