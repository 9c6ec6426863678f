//! Limits that could not be set without a kill, tried again in the background (`shrink: defer`).
//!
//! A container is left alone as long as the limit cannot be reached, or it waits for memory already. What can be reclaimed is, for
//! three tenths of each second. Once the limit fits, the runtime is asked for it, and it counts when it is read back.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep};
use tracing::debug;

use crate::agent::cut::{Attempted, Cuts};
use crate::agent::reconcile::Work;
use crate::cgroup::{CgroupError, CgroupRoot, Knob};
use crate::core::policy::resize::{self, Cut, STALLED};
use crate::core::units::{Bytes, Limit};
use crate::lock;
use crate::report::{LowerLimit, Reports, What};
use crate::state::containers::{Container, Containers, Update};

/// How often limits are tried.
const EVERY: Duration = Duration::from_secs(1);

/// How long room is made for one at a time.
const BUDGET: Duration = Duration::from_millis(300);

/// How long the runtime has for what it was asked.
const PATIENCE: Duration = Duration::from_secs(30);

/// Limits that wait.
#[derive(Debug)]
pub struct Deferrals {
    root: Arc<CgroupRoot>,
    containers: Arc<Containers>,
    cuts: Arc<Cuts>,
    reports: Arc<Reports>,
    work: mpsc::UnboundedSender<Work>,
    /// By container.
    waiting: Mutex<HashMap<String, Deferral>>,
    changed: Notify,
}

/// A limit that waits.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Deferral {
    limit: Bytes,
    since: Instant,
    patience: Duration,
    /// When the runtime was last asked for it.
    asked: Option<Instant>,
}

impl Deferrals {
    /// Nothing waits. What is due is done by the reconcile task, through `work`.
    pub fn new(
        root: Arc<CgroupRoot>,
        containers: Arc<Containers>,
        cuts: Arc<Cuts>,
        reports: Arc<Reports>,
        work: mpsc::UnboundedSender<Work>,
    ) -> Self {
        Self {
            root,
            containers,
            cuts,
            reports,
            work,
            waiting: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// A container is to have this limit, once it can, or never after so long.
    pub fn put(&self, id: &str, limit: Bytes, patience: Duration) {
        let new = Deferral { limit, since: Instant::now(), patience, asked: None };
        let mut waiting = lock(&self.waiting);
        // Whoever asks for the same again does not make it wait longer.
        let same = waiting.get(id).filter(|before| before.limit == limit).copied();
        let deferral = same.map_or(new, |before| Deferral { patience, ..before });
        waiting.insert(id.to_owned(), deferral);
        drop(waiting);
        self.changed.notify_one();
    }

    /// A container's limit waits.
    pub fn is_waiting(&self, id: &str) -> bool {
        lock(&self.waiting).contains_key(id)
    }

    /// A container's limit does not wait any more.
    pub fn forget(&self, id: &str) {
        lock(&self.waiting).remove(id);
    }

    /// Works for ever.
    pub async fn run(self: Arc<Self>) {
        loop {
            let waiting: Vec<_> =
                lock(&self.waiting).iter().map(|(id, deferral)| (id.clone(), *deferral)).collect();
            if waiting.is_empty() {
                self.changed.notified().await;
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
                    debug!(pod = container.pod, container = container.name, %error, "cannot try the deferred limit");
                    false
                }
            },
            None => true,
        };
        let mut waiting = lock(&self.waiting);
        // Unless there was another update meanwhile.
        let same = waiting
            .get(id)
            .is_some_and(|now| now.limit == deferral.limit && now.since == deferral.since);
        if same && settled {
            waiting.remove(id);
        }
    }

    /// Whether nothing is left to do.
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
            self.reports
                .tell(&container.into(), &What::CutApplied { desired: limit, observed: in_force });
            return Ok(true);
        }
        let now = Instant::now();
        if asked.is_some_and(|asked| now.duration_since(asked) < PATIENCE) {
            return Ok(false);
        }
        let usage = cgroup.usage_in_parts()?;
        // A plugin that does not act any more forgets the limit, and says so.
        if now.duration_since(since) >= patience || !self.containers.settings().enforces() {
            self.reports.tell(
                &container.into(),
                &What::CutGivenUp(LowerLimit { limit: limit.into(), in_force, usage }),
            );
            return Ok(true);
        }
        // Where the kernel does not tell of pressure, it is little at a time in any case.
        let is_of_use = match resize::cut(limit, &usage) {
            Cut::Kills => false,
            Cut::Reclaim => cgroup.pressure().map_or(0.0, |pressure| pressure.percent) < STALLED,
            Cut::Fits => true,
        };
        if is_of_use {
            let lowered = Container { limit: Limit::Bytes(limit), ..container.clone() };
            match self.cuts.make_room(&lowered, Update::OURS, BUDGET).await? {
                Attempted::Made => {
                    if let Some(deferral) = lock(&self.waiting).get_mut(&container.id) {
                        deferral.asked = Some(now);
                    }
                    // The task ends only with the program.
                    let _ = self.work.send(Work::limit(container, limit));
                }
                Attempted::NotMade { .. } => {
                    _ = self.work.send(Work::Container(container.id.clone()))
                }
                Attempted::NoCut => {}
            }
        }
        Ok(false)
    }
}
