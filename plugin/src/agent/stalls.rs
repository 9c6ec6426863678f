//! Containers that stand at `memory.high` for good while the node has memory to spare are released, in steps.
//!
//! What costs something is done only while somebody is held back: that is seen in one file for all pods.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{error, warn};

use crate::agent::reconcile::Work;
use crate::cgroup::{CgroupError, CgroupPath, CgroupRoot, Events, Knob};
use crate::core::policy::hierarchy::PodPlace;
use crate::core::policy::resize::Throttled;
use crate::core::units::{Bytes, Limit};
use crate::kubelet::node::MemInfo;
use crate::report::{Line, Reports, What};
use crate::state::containers::{Container, Containers};

/// How often to look whether anybody is held back.
const EVERY: Duration = Duration::from_secs(5);

/// How long a released container may stand at its new line before the next step.
const NEXT_STEP: Duration = Duration::from_secs(10);

/// How many times as long as the deadline a released container has to be well below its line for that to be put back.
const QUIET: u32 = 2;

/// What part of all memory has to stay available.
const SPARE: u64 = 20;

/// The task.
#[derive(Debug)]
pub struct Stalls {
    containers: Arc<Containers>,
    root: Arc<CgroupRoot>,
    reports: Arc<Reports>,
    work: mpsc::UnboundedSender<Work>,
    /// How often kubepods and pods were held back.
    events: HashMap<CgroupPath, u64>,
    watched: HashMap<String, Watched>,
    /// The kernel keeps no account of pressure.
    is_blind: bool,
}

/// A container that stands at its line, or was released from it.
#[derive(Debug, Default)]
struct Watched {
    pinned_since: Option<Instant>,
    well_below_since: Option<Instant>,
    is_released: bool,
}

impl Stalls {
    /// Nobody is watched yet. What is released is brought to its new value by the reconcile task, through `work`.
    pub fn new(
        containers: Arc<Containers>,
        root: Arc<CgroupRoot>,
        reports: Arc<Reports>,
        work: mpsc::UnboundedSender<Work>,
    ) -> Self {
        Self {
            containers,
            root,
            reports,
            work,
            events: HashMap::new(),
            watched: HashMap::new(),
            is_blind: false,
        }
    }

    /// Works for ever.
    pub async fn run(mut self) {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let settings = self.containers.settings();
            let Some(deadline) = settings.config.throttle_deadline.filter(|_| settings.enforces())
            else {
                self.put_all_back();
                continue;
            };
            // The kubelet's checkpoint may be large, and the files many.
            let looked = tokio::task::spawn_blocking(move || {
                let held_back = self.held_back();
                if !held_back.is_empty() || !self.watched.is_empty() {
                    self.look(&held_back, deadline);
                }
                self
            });
            match looked.await {
                Ok(looked) => self = looked,
                Err(error) => {
                    error!(%error, "looking for containers that stand at memory.high failed; it is not done any more");
                    return;
                }
            }
        }
    }

    /// The pods that were held back since the last look.
    fn held_back(&mut self) -> HashSet<CgroupPath> {
        let containers = self.containers.all();
        let places: Vec<_> =
            containers.iter().filter_map(|container| container.place.as_ref()).collect();
        let tops: HashSet<_> = places.iter().map(|place| place.kubepods()).collect();
        let tops: HashSet<_> = tops.into_iter().filter(|top| self.has_more_events(top)).collect();
        if tops.is_empty() {
            return HashSet::new();
        }
        let pods: HashSet<_> = places
            .into_iter()
            .filter(|place| tops.contains(place.kubepods()))
            .map(PodPlace::cgroup)
            .collect();
        let held_back = pods.into_iter().filter(|pod| self.has_more_events(pod)).cloned().collect();
        self.events.retain(|cgroup, _| self.root.cgroup(cgroup).is_ok());
        held_back
    }

    /// Whether what lies in a cgroup was held back since the last look, or ever at the first one.
    fn has_more_events(&mut self, cgroup: &CgroupPath) -> bool {
        let events = self.root.cgroup(cgroup).and_then(|cgroup| cgroup.events());
        let Ok(Events { high, .. }) = events else { return false };
        self.events.insert(cgroup.clone(), high).map_or(high > 0, |before| before != high)
    }

    fn look(&mut self, held_back: &HashSet<CgroupPath>, deadline: Duration) {
        let now = Instant::now();
        let mut spare = self.spare();
        let mut watched = std::mem::take(&mut self.watched);
        for container in self.containers.all() {
            let is_held_back =
                container.place.as_ref().is_some_and(|place| held_back.contains(place.cgroup()));
            let mut state = match watched.remove(&container.id) {
                Some(state) if state.is_released == container.released.is_some() => state,
                // It was updated, and is as any other.
                Some(_) => Watched::default(),
                None if is_held_back => Watched::default(),
                None => continue,
            };
            let throttled = match self.throttled(&container) {
                Ok(Some(throttled)) => throttled,
                Ok(None) | Err(CgroupError::Gone(_)) => continue,
                Err(error) => {
                    if let CgroupError::Unsupported { file: "memory.pressure", .. } = error
                        && !std::mem::replace(&mut self.is_blind, true)
                    {
                        warn!(
                            "the kernel does not tell of memory.pressure, so nobody is released from memory.high; boot with psi=1"
                        );
                    }
                    self.watched.insert(container.id.clone(), state);
                    continue;
                }
            };
            let since = |since: Option<Instant>, is_so: bool| {
                if is_so { since.or(Some(now)) } else { None }
            };
            state.pinned_since = since(state.pinned_since, throttled.is_pinned());
            state.well_below_since =
                since(state.well_below_since, state.is_released && throttled.is_well_below());
            let patience = if state.is_released { NEXT_STEP } else { deadline };
            let is_over = |since: Option<Instant>, patience| {
                since.is_some_and(|since| now.duration_since(since) >= patience)
            };
            if is_over(state.pinned_since, patience)
                && let Some((high, step)) = throttled.release(spare)
            {
                spare = spare.saturating_sub(step);
                self.set(&container, &throttled, Some(high));
                state = Watched { is_released: true, ..Watched::default() };
            } else if is_over(state.well_below_since, deadline.saturating_mul(QUIET)) {
                self.set(&container, &throttled, None);
                continue;
            }
            if state.is_released || state.pinned_since.is_some() {
                self.watched.insert(container.id.clone(), state);
            }
        }
    }

    /// `None` if it has no line to stand at.
    fn throttled(&self, container: &Container) -> Result<Option<Throttled>, CgroupError> {
        let Some(path) = &container.cgroup else { return Ok(None) };
        let cgroup = self.root.cgroup(path)?;
        let high = cgroup.read(Knob::High)?;
        if high == Limit::Max && container.released.is_none() {
            return Ok(None);
        }
        // Only what the policy has set is this plugin's to raise.
        let record = self.containers.record(&container.uid, &container.name, container.moment);
        let decided =
            self.containers.decide(&Container { released: None, ..container.clone() }, &record);
        let Some(line) = decided.value(Knob::High).and_then(Limit::bytes) else { return Ok(None) };
        let max = cgroup.read(Knob::Max)?.bytes().or(self.containers.settings().node.allocatable);
        let max = max.unwrap_or(Bytes::MAX);
        Ok(Some(Throttled {
            usage: cgroup.usage()?,
            line,
            high,
            max,
            stalled: cgroup.pressure()?.percent,
        }))
    }

    /// How much memory the node could do without.
    fn spare(&self) -> Bytes {
        let meminfo = fs::read_to_string(self.root.host().join("proc/meminfo")).unwrap_or_default();
        let spare = |meminfo: MemInfo| {
            meminfo.available.saturating_sub(Bytes::new(meminfo.total.get() / SPARE))
        };
        MemInfo::parse(&meminfo).map_or(Bytes::ZERO, spare)
    }

    fn put_all_back(&mut self) {
        for (id, _) in self.watched.drain().filter(|(_, watched)| watched.is_released) {
            self.containers.release(&id, None);
            let _ = self.work.send(Work::Container(id));
        }
    }

    fn set(&self, container: &Container, throttled: &Throttled, released: Option<Limit>) {
        let &Throttled { line, high: observed, usage, stalled, .. } = throttled;
        let desired = released.unwrap_or(line.into());
        let line = Line { desired, observed, usage, stalled };
        let what = if released.is_some() { What::Released(line) } else { What::PutBack(line) };
        self.reports.tell(&container.into(), &what);
        self.containers.release(&container.id, released);
        // The task ends only with the program.
        let _ = self.work.send(Work::Container(container.id.clone()));
    }
}
