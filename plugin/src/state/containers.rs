//! Containers of the node: their known state and their desired values.
//!
//! Event handlers and the reconcile task use the same function to compute desired values:
//! [`Containers::decide`].

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use plimsoll_core::pod::Resources;
use plimsoll_core::policy::limit_decrease::Limits;
use plimsoll_core::policy::{self, Policy};
use plimsoll_core::requests::{self, RequestFacts};
use plimsoll_core::units::{Bytes, CpuMax, Limit};
use tokio::sync::watch;
use tracing::warn;

use crate::kubelet::checkpoint::RecordSearch;
use crate::lock;
use crate::state::container::{Container, DesiredState};
use crate::state::originals::{Originals, Target, Values};
use crate::state::records::Records;
use crate::state::settings::Settings;
use crate::state::traffic::{Event, Traffic};
use crate::state::update_phase::{Party, UpdateId, UpdatePhase};

/// All containers, and the data from which the plugin computes their desired values.
#[derive(Debug)]
pub struct Containers {
    known: Mutex<Index>,
    settings: RwLock<Arc<Settings>>,
    settings_changed: watch::Sender<()>,
    /// Access to the kubelet's checkpoint entries.
    pub records: Records,
    originals: Arc<Mutex<Originals>>,
    /// How often the plugin has added or replaced a container so far.
    insertions: AtomicU64,
    /// Number of updates so far.
    updates: AtomicU64,
    /// Whether the log has reported a failure to store original values.
    has_logged_failure: AtomicBool,
    traffic: Arc<Mutex<Traffic>>,
}

#[derive(Debug, Default)]
struct Index {
    by_id: HashMap<String, Arc<Container>>,
    /// IDs of the containers in a sandbox, by the ID of the sandbox.
    by_sandbox: HashMap<String, Vec<String>>,
    /// Each container's last intended limits, by sandbox ID and container name. Includes ended
    /// containers.
    last_limits: HashMap<String, HashMap<String, Limits>>,
}

impl Index {
    fn insert(&mut self, container: Arc<Container>) {
        let last = self.last_limits.entry(container.sandbox.clone()).or_default();
        last.insert(container.name.clone(), container.limits());
        if let Some(before) = self.by_id.insert(container.id.clone(), container.clone())
            && before.sandbox == container.sandbox
        {
            return;
        }
        self.by_sandbox.entry(container.sandbox.clone()).or_default().push(container.id.clone());
    }

    fn remove(&mut self, id: &str) {
        let Some(container) = self.by_id.remove(id) else { return };
        if let Some(ids) = self.by_sandbox.get_mut(&container.sandbox) {
            ids.retain(|other| other != id);
            if ids.is_empty() {
                self.by_sandbox.remove(&container.sandbox);
            }
        }
    }
}

impl Containers {
    /// Creates an instance without containers.
    pub fn new(settings: Settings, records: Records, originals: Arc<Mutex<Originals>>) -> Self {
        let settings = RwLock::new(Arc::new(settings));
        Self {
            known: Mutex::default(),
            settings,
            settings_changed: watch::Sender::new(()),
            records,
            originals,
            insertions: AtomicU64::new(1),
            updates: AtomicU64::new(0),
            has_logged_failure: AtomicBool::default(),
            traffic: Arc::default(),
        }
    }

    /// Registers an event from the runtime. The event counts as being answered until the returned
    /// value is dropped.
    pub fn event(&self) -> Event {
        lock(&self.traffic).under_way += 1;
        Event(self.traffic.clone())
    }

    /// Returns the minimum time to wait until the runtime has sent no event for the duration
    /// `quiet`.
    pub fn until_quiet(&self, quiet: Duration) -> Duration {
        let traffic = lock(&self.traffic);
        if traffic.under_way > 0 {
            return quiet;
        }
        traffic.last.map_or(Duration::ZERO, |last| quiet.saturating_sub(last.elapsed()))
    }

    /// Returns the settings in force.
    pub fn settings(&self) -> Arc<Settings> {
        self.settings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the settings.
    pub fn set_settings(&self, settings: Settings) {
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(settings);
        self.settings_changed.send_replace(());
    }

    /// Returns a receiver that is notified of every change of the settings.
    pub fn settings_changed(&self) -> watch::Receiver<()> {
        self.settings_changed.subscribe()
    }

    /// Adds a container or replaces its state.
    pub fn insert(&self, container: Container) -> Arc<Container> {
        let container = Arc::new(self.numbered(container));
        lock(&self.known).insert(container.clone());
        container
    }

    /// Adds a container that was created without this plugin, or before the plugin was restarted.
    pub fn insert_found(&self, container: Container) -> Arc<Container> {
        self.insert(self.restarted(container))
    }

    fn numbered(&self, mut container: Container) -> Container {
        container.phase.insert(self.insertions.fetch_add(1, Ordering::Relaxed));
        container
    }

    /// Returns `container` with the stored value of `memory.high` from before a limit decrease.
    fn restarted(&self, container: Container) -> Container {
        let high = lock(&self.originals).high_during_decrease(&container.id);
        Container { phase: UpdatePhase::restart(high), ..container }
    }

    /// Replaces all containers. `sandboxes` are the IDs of the sandboxes that the runtime reported.
    pub fn replace(
        &self,
        containers: impl IntoIterator<Item = Container>,
        sandboxes: &HashSet<String>,
    ) {
        let containers: Vec<_> =
            containers.into_iter().map(|container| self.restarted(container)).collect();
        let mut guard = lock(&self.known);
        // Keep the last limits of containers in the reported sandboxes, because the runtime does
        // not report a container while that container restarts. Other sandboxes may have ended
        // while the runtime was not connected.
        let mut last_limits = std::mem::take(&mut guard.last_limits);
        last_limits.retain(|sandbox, _| sandboxes.contains(sandbox));
        let mut known = Index { last_limits, ..Index::default() };
        for mut container in containers {
            if let Some(before) = guard.by_id.get(&container.id) {
                container.keep_after_reconnect(before);
            }
            known.insert(Arc::new(self.numbered(container)));
        }
        *guard = known;
    }

    /// Records that a container was started.
    pub fn started(&self, id: &str) {
        self.change(id, |container| {
            container.started = true;
            container.phase.outdate();
        });
    }

    /// Records that the plugin has seen processes in a container's cgroup.
    pub fn set_has_had_processes(&self, id: &str) {
        self.change(id, |container| container.has_had_processes = true);
    }

    /// Returns the identifier of the next update.
    pub fn next_update(&self) -> UpdateId {
        UpdateId::new(self.updates.fetch_add(1, Ordering::Relaxed))
    }

    /// Applies an event to the phase of a container's updates. Returns the value that `event`
    /// returns, or `None` for an unknown container.
    pub fn on_phase<R>(&self, id: &str, event: impl FnOnce(&mut UpdatePhase) -> R) -> Option<R> {
        self.change(id, |container| event(&mut container.phase))
    }

    /// Applies an event to the phase of a container's updates if no other event has changed the
    /// container since the caller got `container`.
    pub fn on_current_phase<R>(
        &self,
        container: &Container,
        event: impl FnOnce(&mut UpdatePhase) -> R,
    ) -> Option<R> {
        let event =
            |phase: &mut UpdatePhase| phase.is_current(&container.phase).then(|| event(phase));
        self.on_phase(&container.id, event).flatten()
    }

    /// Records the accepted update with this identifier. `revise` sets the container's new limits.
    /// Returns the container. Returns `None` if the plugin has removed the container meanwhile.
    pub fn accept(
        &self,
        id: &str,
        update: UpdateId,
        sets_limit: bool,
        revise: impl FnOnce(&mut Container),
    ) -> Option<Arc<Container>> {
        let mut known = lock(&self.known);
        let stored = known.by_id.get_mut(id)?;
        let container = Arc::make_mut(stored);
        revise(container);
        container.phase.accept(update, sets_limit);
        let container = stored.clone();
        known.insert(container.clone());
        Some(container)
    }

    /// Stores the value of `memory.high` before a limit decrease lowers it, so that the next plugin
    /// process can restore the value. `high` is the value in force. Returns the value to restore.
    /// If an earlier decrease has already lowered it, this is the value before that decrease.
    /// Returns `None` if the decrease must wait.
    pub fn begin_decrease(&self, container: &Container, by: Party, high: Limit) -> Option<Limit> {
        let begin = |phase: &mut UpdatePhase| {
            let is_begun = phase.begin_decrease(by, high);
            phase.original_high().filter(|_| is_begun)
        };
        let original = self.on_phase(&container.id, begin).flatten()?;
        let result = lock(&self.originals).begin_decrease(&container.id, original);
        self.log_failure(container, result);
        Some(original)
    }

    /// Records that the container's files have the desired values. Returns whether the plugin had
    /// written some of these values. Does nothing if another event has changed the container
    /// meanwhile.
    pub fn settle(&self, container: &Container, desired_state: &DesiredState) -> bool {
        let values = desired_state.stored_values();
        let settled = self.on_current_phase(container, |phase| phase.settle(values));
        if settled.is_some() && container.phase.original_high().is_some() {
            let result = lock(&self.originals).end_decrease(&container.id);
            self.log_failure(container, result);
        }
        settled.unwrap_or(false)
    }

    /// Returns whether no event and no decision has changed the container since the caller got
    /// `container`.
    pub fn is_current(&self, container: &Container) -> bool {
        self.get(&container.id).is_some_and(|now| now.phase.is_current(&container.phase))
    }

    /// Sets the swap limit that a container should keep after its update.
    pub fn set_swap_max(&self, id: &str, swap_max: Option<Bytes>) {
        self.change(id, |container| container.swap_max = swap_max);
    }

    /// Records the limits that the plugin has read back from a container's cgroup, and ends the
    /// container's update. `None` means that the container keeps its limit. Does nothing if another
    /// event has changed the container meanwhile.
    pub fn read_back(&self, container: &Container, memory: Option<Limit>, cpu: Option<CpuMax>) {
        self.change(&container.id, |now| {
            if now.phase.is_current(&container.phase) {
                now.phase.limits_read_back(memory.is_some());
                now.limit = memory.unwrap_or(now.limit);
                now.cpu = cpu.unwrap_or(now.cpu);
            }
        });
    }

    fn change<R>(&self, id: &str, change: impl FnOnce(&mut Container) -> R) -> Option<R> {
        let mut known = lock(&self.known);
        known.by_id.get_mut(id).map(|container| change(Arc::make_mut(container)))
    }

    /// Forgets a container.
    pub fn remove(&self, id: &str) {
        lock(&self.known).remove(id);
    }

    /// Returns the container with this ID.
    pub fn get(&self, id: &str) -> Option<Arc<Container>> {
        lock(&self.known).by_id.get(id).cloned()
    }

    /// Returns the original values of a container's files. Returns `None` if this plugin never
    /// changed the files.
    pub fn before(&self, id: &str) -> Option<Values> {
        lock(&self.originals).get(&Target::Container(id.to_owned()))
    }

    /// Stores the original values of a container's files, before this plugin changes the files.
    /// Only the first call has an effect.
    pub fn remember(&self, container: &Container, before: Values) {
        let result =
            lock(&self.originals).remember(Target::Container(container.id.clone()), before);
        self.log_failure(container, result);
    }

    /// Records that a container has its original values again and is unmanaged.
    pub fn restored(&self, container: &Container) {
        let result = lock(&self.originals).restored(&Target::Container(container.id.clone()));
        self.log_failure(container, result);
    }

    fn log_failure(&self, container: &Container, result: io::Result<()>) {
        if let Err(error) = result
            && !self.has_logged_failure.swap(true, Ordering::Relaxed)
        {
            warn!(
                pod = container.pod,
                container = container.name,
                %error,
                "cannot store the original values of containers; 'plimsoll restore' will not \
                 know them after a restart. Logged once"
            );
        }
    }

    /// Forgets the containers of a sandbox. Returns their IDs.
    pub fn remove_sandbox(&self, sandbox: &str) -> Vec<String> {
        let mut known = lock(&self.known);
        known.last_limits.remove(sandbox);
        let ended = known.by_sandbox.remove(sandbox).unwrap_or_default();
        for id in &ended {
            known.by_id.remove(id);
        }
        ended
    }

    /// Returns the containers of a sandbox.
    pub fn in_sandbox(&self, sandbox: &str) -> Vec<Arc<Container>> {
        let known = lock(&self.known);
        let ids = known.by_sandbox.get(sandbox).into_iter().flatten();
        ids.filter_map(|id| known.by_id.get(id).cloned()).collect()
    }

    /// Returns the last intended limits of the container with this name in the sandbox.
    pub fn last_limits(&self, sandbox: &str, name: &str) -> Option<Limits> {
        lock(&self.known).last_limits.get(sandbox)?.get(name).copied()
    }

    /// Returns whether the sandbox has or had a container with each of these names.
    pub fn knows_names<'n>(&self, sandbox: &str, mut names: impl Iterator<Item = &'n str>) -> bool {
        let known = lock(&self.known);
        let last_limits = known.last_limits.get(sandbox);
        names.all(|name| last_limits.is_some_and(|limits| limits.contains_key(name)))
    }

    /// Returns the IDs of all containers.
    pub fn ids(&self) -> Vec<String> {
        lock(&self.known).by_id.keys().cloned().collect()
    }

    /// Returns all containers.
    pub fn all(&self) -> Vec<Arc<Container>> {
        lock(&self.known).by_id.values().cloned().collect()
    }

    /// Returns the kubelet's checkpoint entries of a container and its pod. The call may block.
    pub fn record(&self, container: &Container) -> RecordSearch {
        self.records.wait(&container.uid, &container.name, container.moment)
    }

    /// Returns the desired state of a container, given the kubelet's checkpoint entry of the
    /// container. Outside enforce mode, the original values count as the desired values.
    pub fn decide(&self, container: &Container, recorded: &RecordSearch) -> DesiredState {
        let planned = self.plan(container, recorded);
        let settings = self.settings();
        if settings.enforces() {
            return planned;
        }
        let resources = Resources { request: planned.request, limit: container.limit };
        let desired = policy::desired(&resources, planned.class, &settings.node, &Policy::OFF);
        DesiredState { desired, ..planned }
    }

    /// Returns the desired state that the configured policy gives a container in enforce mode, even
    /// if the plugin is in another mode.
    pub fn plan(&self, container: &Container, recorded: &RecordSearch) -> DesiredState {
        let settings = self.settings();
        let resolution = requests::resolve(&RequestFacts {
            class: container.class(),
            limit: container.limit,
            unified: &container.unified,
            overrides: &container.overrides,
            oom_score_adj: container.oom_score_adj,
            mem_total: settings.mem_total(),
            allocatable: settings.node.allocatable,
            record: recorded
                .as_ref()
                .map(|found| found.record.as_ref())
                .map_err(|inconclusive| *inconclusive),
        });
        let (policy, overruled) = if settings.is_restored {
            (Policy::OFF, Vec::new())
        } else {
            requests::overridden(&settings.config.policy, &container.overrides)
        };
        let resources = Resources { request: resolution.request, limit: container.limit };
        let mut notices = resolution.notices;
        notices.extend(overruled);
        DesiredState {
            class: resolution.class,
            request: resolution.request,
            desired: policy::desired(&resources, resolution.class, &settings.node, &policy),
            notices,
            before: self.before(&container.id),
            high: container.phase.high(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::testing::{TestNode, container};
    use crate::state::update_phase::UpdateResult;

    fn limit(mib: u64) -> Limit {
        Limit::Bytes(Bytes::new(mib << 20))
    }

    fn sandboxes() -> HashSet<String> {
        HashSet::from(["sandbox".to_owned()])
    }

    #[test]
    fn only_events_and_decisions_outdate_a_state() {
        let TestNode { containers, .. } = &TestNode::new("");
        let state = containers.insert(container("1", 100));
        containers.set_has_had_processes("1");
        containers.set_swap_max("1", Some(Bytes::ZERO));
        assert!(containers.is_current(&state));
        containers.on_phase("1", |phase| phase.release(limit(90)));
        assert!(!containers.is_current(&state));
        let state = containers.get("1").unwrap();
        containers.on_phase("1", UpdatePhase::applied);
        assert!(!containers.is_current(&state));
    }

    #[test]
    fn an_outdated_check_forgets_no_original_high() {
        let TestNode { containers, .. } = &TestNode::new("");
        let before = containers.insert(container("1", 100));
        let desired_state = containers.decide(&before, &containers.record(&before));
        assert_eq!(containers.begin_decrease(&before, Party::User, limit(90)), Some(limit(90)));
        // The file now has the lowered value.
        assert_eq!(containers.begin_decrease(&before, Party::User, limit(50)), Some(limit(90)));
        containers.settle(&before, &desired_state);
        let original = || containers.get("1").unwrap().phase.original_high();
        assert_eq!(original(), Some(limit(90)));
        containers.settle(&containers.get("1").unwrap(), &desired_state);
        assert_eq!(original(), None);
    }

    #[test]
    fn original_high_survives_a_restart_during_decrease() {
        let node = TestNode::new("");
        let before = node.containers.insert(container("1", 100));
        node.containers.begin_decrease(&before, Party::User, limit(90));
        let restarted = || {
            let containers = node.restart();
            containers.replace([container("1", 100)], &sandboxes());
            let original = containers.get("1").unwrap().phase.original_high();
            (containers, original)
        };
        let (containers, original) = restarted();
        assert_eq!(original, Some(limit(90)));
        let now = containers.get("1").unwrap();
        containers.settle(&now, &containers.decide(&now, &containers.record(&now)));
        assert_eq!(restarted().1, None, "the decrease has ended");
    }

    #[test]
    fn a_reconnection_keeps_state_unknown_to_runtime() {
        for (asked, kept) in [(100, Some(limit(90))), (120, None)] {
            let TestNode { containers, .. } = &TestNode::new("");
            let before = containers.insert(container("1", 100));
            containers.begin_decrease(&before, Party::User, Limit::Max);
            containers.set_has_had_processes("1");
            containers.on_phase("1", |phase| phase.release(limit(90)));
            containers.replace([container("1", asked)], &sandboxes());
            let now = containers.get("1").unwrap();
            let held = (now.phase.original_high(), now.has_had_processes);
            assert_eq!(held, (Some(Limit::Max), true));
            assert_eq!(now.phase.released(), kept, "the user asks for {asked} MiB");
        }
    }

    #[test]
    fn updating_a_removed_container_adds_nothing() {
        let TestNode { containers, .. } = &TestNode::new("");
        let container = containers.insert(container("1", 100));
        containers.remove("1");
        let update = containers.next_update();
        assert!(containers.accept(&container.id, update, true, |_| {}).is_none());
        assert!(containers.get("1").is_none());
    }

    #[test]
    fn last_limits_go_with_their_sandbox() {
        let TestNode { containers, .. } = &TestNode::new("");
        containers.insert(container("1", 100));
        containers.remove("1");
        containers.replace([], &sandboxes());
        assert!(containers.last_limits("sandbox", "name-1").is_some());
        assert!(containers.knows_names("sandbox", ["name-1"].into_iter()));
        containers.replace([], &HashSet::new());
        assert_eq!(containers.last_limits("sandbox", "name-1"), None);
    }

    #[test]
    fn read_back_limits_wait_for_pending_updates() {
        let TestNode { containers, .. } = &TestNode::new("");
        containers.insert(container("1", 100));
        containers.on_phase("1", UpdatePhase::applied);
        let made = containers.get("1").unwrap();
        let update = containers.next_update();
        containers.on_phase("1", |phase| phase.announce(update));
        containers.read_back(&made, Some(limit(50)), None);
        assert_eq!(containers.get("1").unwrap().limit, limit(100));
        containers.on_phase("1", UpdatePhase::applied);
        containers.read_back(&containers.get("1").unwrap(), Some(limit(50)), None);
        let now = containers.get("1").unwrap();
        assert_eq!((now.limit, now.phase.result()), (limit(50), Some(UpdateResult::ReadBack)));
    }
}
