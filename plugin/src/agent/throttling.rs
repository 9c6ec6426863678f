//! Releases containers from throttling if they stall at `memory.high` while the node has spare
//! memory. For this, the plugin raises the container's `memory.high` in steps.
//!
//! The plugin runs costly checks only while the kernel throttles a container. The `memory.events`
//! of kubepods shows throttling in any pod.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use plimsoll_core::incident::{HighChange, Incident};
use plimsoll_core::pod::CgroupPath;
use plimsoll_core::policy::hierarchy::PodPlace;
use plimsoll_core::policy::limit_decrease::ThrottleState;
use plimsoll_core::units::{Bytes, Knob, Limit};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::warn;

use crate::agent::reconciler::WorkItem;
use crate::cgroup::{CgroupError, CgroupRoot, Events};
use crate::kubelet::node::MemInfo;
use crate::report::Reports;
use crate::state::container::{Container, DesiredState};
use crate::state::containers::Containers;
use crate::state::update_phase::UpdatePhase;

/// Interval of the check for throttled containers.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// Time for which a container must stall at a raised `memory.high` before the next raise.
const STEP_DELAY: Duration = Duration::from_secs(10);

/// The plugin restores the policy's `memory.high` of a released container once the usage has stayed
/// well below this value for this multiple of `throttleDeadline`.
const RESTORE_FACTOR: u32 = 2;

/// Divisor of the node's memory: one twentieth of the memory must stay available.
const SPARE_DIVISOR: u64 = 20;

/// The task that raises `memory.high` of stalled containers (`throttleDeadline`).
#[derive(Debug)]
pub struct ThrottleRelease {
    containers: Arc<Containers>,
    root: Arc<CgroupRoot>,
    reports: Arc<Reports>,
    work: mpsc::UnboundedSender<WorkItem>,
    /// Last `high` counts from the `memory.events` of kubepods and pods.
    events: HashMap<CgroupPath, u64>,
    watched: HashMap<String, Watched>,
    /// Whether the log has reported that the kernel has no `memory.pressure`.
    is_blind: bool,
}

/// A container that stalls at `memory.high`, or that the plugin has released from throttling.
#[derive(Debug, Default)]
struct Watched {
    pinned_since: Option<Instant>,
    well_below_since: Option<Instant>,
    is_released: bool,
}

impl ThrottleRelease {
    /// Creates the task, which watches no container yet. Over `work`, this task asks the reconcile
    /// task to write each new `memory.high`.
    pub fn new(
        containers: Arc<Containers>,
        root: Arc<CgroupRoot>,
        reports: Arc<Reports>,
        work: mpsc::UnboundedSender<WorkItem>,
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

    /// Runs forever, in a thread that may block: there may be many files, and the kubelet's
    /// checkpoint may be large.
    pub async fn run(mut self) {
        let mut ticks = interval(CHECK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let settings = self.containers.settings();
            let Some(deadline) = settings.config.throttle_deadline.filter(|_| settings.enforces())
            else {
                self.end_all_releases();
                continue;
            };
            let throttled_pods = self.throttled_pods();
            if !throttled_pods.is_empty() || !self.watched.is_empty() {
                self.check_pods(&throttled_pods, deadline);
            }
        }
    }

    /// Returns the pods in which the kernel has throttled a container since the last check.
    fn throttled_pods(&mut self) -> HashSet<CgroupPath> {
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
        let throttled_pods =
            pods.into_iter().filter(|pod| self.has_more_events(pod)).cloned().collect();
        self.events.retain(|cgroup, _| self.root.cgroup(cgroup).is_ok());
        throttled_pods
    }

    /// Returns whether the kernel has throttled any process in the cgroup since the last check. The
    /// first check counts all earlier throttling.
    fn has_more_events(&mut self, cgroup: &CgroupPath) -> bool {
        let events = self.root.cgroup(cgroup).and_then(|cgroup| cgroup.events());
        let Ok(Events { high, .. }) = events else { return false };
        self.events.insert(cgroup.clone(), high).map_or(high > 0, |before| before != high)
    }

    fn check_pods(&mut self, throttled_pods: &HashSet<CgroupPath>, deadline: Duration) {
        let now = Instant::now();
        let mut spare = self.spare();
        let mut watched = std::mem::take(&mut self.watched);
        for container in self.containers.all() {
            let is_throttled = container
                .place
                .as_ref()
                .is_some_and(|place| throttled_pods.contains(place.cgroup()));
            let mut state = match watched.remove(&container.id) {
                Some(state) if state.is_released == container.phase.released().is_some() => state,
                // An update has ended the release from throttling, so watch the container like a
                // new container.
                Some(_) => Watched::default(),
                None if is_throttled => Watched::default(),
                None => continue,
            };
            let throttled = match self.throttle_state(&container) {
                Ok(Some(throttled)) => throttled,
                Ok(None) => {
                    self.end_release(&container);
                    continue;
                }
                Err(CgroupError::Gone(_)) => continue,
                Err(error) => {
                    self.warn_if_blind(&error);
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
            let delay = if state.is_released { STEP_DELAY } else { deadline };
            let is_over = |since: Option<Instant>, delay| {
                since.is_some_and(|since| now.duration_since(since) >= delay)
            };
            if is_over(state.pinned_since, delay)
                && let Some((high, step)) = throttled.release(spare)
            {
                spare = spare.saturating_sub(step);
                self.set_release(&container, &throttled, Some(high));
                state = Watched { is_released: true, ..Watched::default() };
            } else if is_over(state.well_below_since, deadline.saturating_mul(RESTORE_FACTOR)) {
                self.set_release(&container, &throttled, None);
                continue;
            }
            if state.is_released || state.pinned_since.is_some() {
                self.watched.insert(container.id.clone(), state);
            }
        }
    }

    /// Ends the release from throttling if the policy no longer has a `memory.high` for the
    /// container.
    fn end_release(&self, container: &Container) {
        if container.phase.released().is_some()
            && self.containers.on_current_phase(container, UpdatePhase::end_release).is_some()
        {
            self.queue_check(container);
        }
    }

    /// Warns once if the kernel has no `memory.pressure`.
    fn warn_if_blind(&mut self, error: &CgroupError) {
        if let CgroupError::Unsupported { file: "memory.pressure", .. } = error
            && !std::mem::replace(&mut self.is_blind, true)
        {
            warn!(
                "the kernel has no memory.pressure, so the plugin releases no container from \
                 memory.high; boot with psi=1"
            );
        }
    }

    /// Returns the data that shows whether a container stalls at `memory.high`. Returns `None` if
    /// no `memory.high` can throttle it.
    fn throttle_state(&self, container: &Container) -> Result<Option<ThrottleState>, CgroupError> {
        let Some(path) = &container.cgroup else { return Ok(None) };
        let cgroup = self.root.cgroup(path)?;
        let high = cgroup.read(Knob::High)?;
        if high == Limit::Max && container.phase.released().is_none() {
            return Ok(None);
        }
        // The plugin raises memory.high only if its policy has set the value.
        let record = self.containers.record(container);
        let desired_state = self.containers.decide(container, &record);
        let desired_state =
            DesiredState { high: desired_state.high.without_release(), ..desired_state };
        let Some(policy_high) = desired_state.value(Knob::High).and_then(Limit::bytes) else {
            return Ok(None);
        };
        let max = cgroup.read(Knob::Max)?.bytes().or(self.containers.settings().node.allocatable);
        let max = max.unwrap_or(Bytes::MAX);
        Ok(Some(ThrottleState {
            usage: cgroup.usage()?,
            policy_high,
            high,
            max,
            stalled: cgroup.pressure()?.percent,
        }))
    }

    /// Returns how much memory the plugin may give to containers that it releases from throttling.
    fn spare(&self) -> Bytes {
        let meminfo = fs::read_to_string(self.root.host().join("proc/meminfo")).unwrap_or_default();
        let spare = |meminfo: MemInfo| {
            meminfo.available.saturating_sub(Bytes::new(meminfo.total.get() / SPARE_DIVISOR))
        };
        MemInfo::parse(&meminfo).map_or(Bytes::ZERO, spare)
    }

    fn end_all_releases(&mut self) {
        for (id, _) in self.watched.drain().filter(|(_, watched)| watched.is_released) {
            self.containers.on_phase(&id, UpdatePhase::end_release);
            let _ = self.work.send(WorkItem::Container(id));
        }
    }

    fn set_release(
        &self,
        container: &Container,
        throttled: &ThrottleState,
        released: Option<Limit>,
    ) {
        let &ThrottleState { policy_high, high: observed, usage, stalled, .. } = throttled;
        let desired = released.unwrap_or(policy_high.into());
        let change = HighChange { desired, observed, usage, stalled };
        let what =
            if released.is_some() { Incident::Released(change) } else { Incident::PutBack(change) };
        // The user may have updated the container meanwhile.
        let set = |phase: &mut UpdatePhase| match released {
            Some(high) => phase.release(high),
            None => phase.end_release(),
        };
        if self.containers.on_current_phase(container, set).is_some() {
            self.reports.report(&container.into(), &what);
            self.queue_check(container);
        }
    }

    /// Asks the reconcile task to write the container's new `memory.high`.
    fn queue_check(&self, container: &Container) {
        // This send cannot fail, because the receiver exists until the program ends.
        let _ = self.work.send(WorkItem::Container(container.id.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::testing::{POD, TestNode, container};
    use crate::state::update_phase::UpdateId;

    const DEADLINE: Duration = Duration::from_secs(30);

    /// A test node with a container that stalls at the policy's `memory.high`.
    struct Stalled {
        node: TestNode,
        throttle_release: ThrottleRelease,
        todo: mpsc::UnboundedReceiver<WorkItem>,
        policy_high: Limit,
    }

    impl Stalled {
        fn new() -> Self {
            let node = TestNode::new("");
            node.run("1", 400, 0);
            // The kubelet gives this oom_score_adj to a container that requests about 100 MiB of 8
            // GiB.
            let container =
                Container { started: true, oom_score_adj: Some(987), ..container("1", 400) };
            let container = node.containers.insert(container);
            let record = node.containers.record(&container);
            let policy_high =
                node.containers.decide(&container, &record).value(Knob::High).unwrap();
            let cgroup = format!("{POD}/1");
            for file in ["memory.high", "memory.current"] {
                node.set(&cgroup, file, policy_high);
            }
            node.set(&cgroup, "memory.pressure", "full avg10=99.00 avg60=0.00 avg300=0.00 total=1");
            let (work, todo) = mpsc::unbounded_channel();
            let (containers, root) = (node.containers.clone(), node.root.clone());
            let throttle_release = ThrottleRelease::new(containers, root, Arc::default(), work);
            Self { node, throttle_release, todo, policy_high }
        }

        fn check_pods(&mut self) {
            let throttled_pods = HashSet::from([CgroupPath::parse(POD).unwrap()]);
            self.throttle_release.check_pods(&throttled_pods, DEADLINE);
        }

        fn released(&self) -> Option<Limit> {
            self.node.containers.get("1").unwrap().phase.released()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn stalled_containers_are_released_at_the_deadline() {
        let mut stalled = Stalled::new();
        stalled.check_pods();
        tokio::time::advance(DEADLINE - Duration::from_secs(1)).await;
        stalled.check_pods();
        assert_eq!(stalled.released(), None);
        tokio::time::advance(Duration::from_secs(1)).await;
        stalled.check_pods();
        assert!(stalled.released() > Some(stalled.policy_high), "{:?}", stalled.released());
        assert_eq!(stalled.todo.try_recv(), Ok(WorkItem::Container("1".to_owned())));
    }

    #[tokio::test(start_paused = true)]
    async fn reduced_pressure_restarts_the_release_deadline() {
        let mut stalled = Stalled::new();
        stalled.check_pods();
        let pressure =
            |percent: &str| format!("full avg10={percent} avg60=0.00 avg300=0.00 total=1");
        stalled.node.set(&format!("{POD}/1"), "memory.pressure", pressure("0.00"));
        stalled.check_pods();
        stalled.node.set(&format!("{POD}/1"), "memory.pressure", pressure("99.00"));
        tokio::time::advance(DEADLINE).await;
        stalled.check_pods();
        assert_eq!(stalled.released(), None, "the deadline begins again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_release_never_overwrites_a_newer_update() {
        let mut stalled = Stalled::new();
        let before = stalled.node.containers.get("1").unwrap();
        let throttled = stalled.throttle_release.throttle_state(&before).unwrap().unwrap();
        let announce = |phase: &mut UpdatePhase| phase.announce(UpdateId::new(1));
        stalled.node.containers.on_phase("1", announce);
        stalled.throttle_release.set_release(&before, &throttled, Some(Limit::Max));
        assert_eq!(stalled.released(), None);
        assert!(stalled.todo.try_recv().is_err());
    }
}
