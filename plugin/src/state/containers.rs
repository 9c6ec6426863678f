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
use plimsoll_core::policy::resize::Limits;
use plimsoll_core::policy::{self, Policy};
use plimsoll_core::requests::{self, RequestFacts};
use plimsoll_core::units::{Bytes, CpuMax, Limit};
use tokio::sync::watch;
use tracing::warn;

use crate::kubelet::checkpoint::RecordSearch;
use crate::lock;
use crate::state::container::{Container, Decided, Update};
use crate::state::originals::{Originals, Target, Values};
use crate::state::records::Records;
use crate::state::settings::Settings;
use crate::state::traffic::{Event, Traffic};

/// All containers, with the data that their desired values depend on.
#[derive(Debug)]
pub struct Containers {
    known: Mutex<Index>,
    settings: RwLock<Arc<Settings>>,
    settings_changed: watch::Sender<()>,
    /// The kubelet's records.
    pub records: Records,
    originals: Arc<Mutex<Originals>>,
    /// Number of generations so far.
    generations: AtomicU64,
    /// Whether a failure to record original values was already reported.
    has_complained: AtomicBool,
    traffic: Arc<Mutex<Traffic>>,
}

#[derive(Debug, Default)]
struct Index {
    by_id: HashMap<String, Arc<Container>>,
    /// IDs of the containers in a sandbox, by the ID of the sandbox.
    by_sandbox: HashMap<String, Vec<String>>,
    /// Last limits that each container of a sandbox should have had, by container name. Ended
    /// containers are included.
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
            generations: AtomicU64::new(1),
            has_complained: AtomicBool::default(),
            traffic: Arc::default(),
        }
    }

    /// Registers an event from the runtime. The event counts as being answered until the returned
    /// value is dropped.
    pub fn event(&self) -> Event {
        lock(&self.traffic).under_way += 1;
        Event(self.traffic.clone())
    }

    /// Returns the shortest time to wait until the runtime has sent no event for `quiet`.
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
        let container = Arc::new(Container { generation: self.next_generation(), ..container });
        lock(&self.known).insert(container.clone());
        container
    }

    /// Replaces all containers. `sandboxes` are the IDs of the sandboxes that the runtime has.
    pub fn replace(
        &self,
        containers: impl IntoIterator<Item = Container>,
        sandboxes: &HashSet<String>,
    ) {
        let mut guard = lock(&self.known);
        // Keep the last limits, because the runtime does not report a container that is just being
        // restarted. A sandbox may have gone while the runtime was not connected.
        let mut last_limits = std::mem::take(&mut guard.last_limits);
        last_limits.retain(|sandbox, _| sandboxes.contains(sandbox));
        let mut known = Index { last_limits, ..Index::default() };
        for mut container in containers {
            if let Some(before) = guard.by_id.get(&container.id) {
                container.keep_after_reconnect(before);
            }
            container.generation = self.next_generation();
            known.insert(Arc::new(container));
        }
        *guard = known;
    }

    /// Records that a container was started.
    pub fn started(&self, id: &str) {
        self.decide_anew(id, |container| container.started = true);
    }

    /// Records that there are processes in a container's cgroup.
    pub fn set_has_had_processes(&self, id: &str) {
        self.change(id, |container| container.has_had_processes = true);
    }

    /// Sets the phase of a container's update.
    pub fn set_update(&self, id: &str, update: Update) {
        self.decide_anew(id, |container| container.update = update);
    }

    /// Sets the phase of a container's update to `to` if it is `from`. Returns whether it was
    /// `from`.
    pub fn swap_update(&self, id: &str, from: Update, to: Update) -> bool {
        let mut is_swapped = false;
        self.decide_anew(id, |container| {
            is_swapped = container.update == from;
            if is_swapped {
                container.update = to;
            }
        });
        is_swapped
    }

    /// Sets the swap limit that a container should keep after its update.
    pub fn set_swap_max(&self, id: &str, swap_max: Option<Bytes>) {
        self.change(id, |container| container.swap_max = swap_max);
    }

    /// Returns whether no event and no decision has changed the container since this state.
    pub fn is_current(&self, container: &Container) -> bool {
        self.get(&container.id).is_some_and(|now| now.generation == container.generation)
    }

    /// Forgets the original `memory.high`, because `memory.high` has its desired value again. Does
    /// nothing if there was another event meanwhile.
    pub fn forget_high_before(&self, container: &Container) {
        self.change(&container.id, |now| {
            if now.generation == container.generation {
                now.high_before = None;
            }
        });
    }

    /// Records the original `memory.high` before a limit decrease lowers it. `None` means that
    /// `memory.high` has its desired value again.
    pub fn set_high_before(&self, id: &str, high: Option<Limit>) {
        self.decide_anew(id, |container| container.high_before = high);
    }

    /// Records the limits read back from a container's cgroup and ends its update. `None` means
    /// that a limit is as expected. Does nothing if there was another event meanwhile.
    pub fn read_back(&self, container: &Container, memory: Option<Limit>, cpu: Option<CpuMax>) {
        self.change(&container.id, |now| {
            if now.update == container.update && !matches!(now.update, Update::UnderWay(_)) {
                now.update = Update::Over;
                now.limit = memory.unwrap_or(now.limit);
                now.cpu = cpu.unwrap_or(now.cpu);
            }
        });
    }

    /// Changes a container in a way that may change its desired values.
    fn decide_anew(&self, id: &str, change: impl FnOnce(&mut Container)) {
        self.change(id, |container| {
            let before = container.clone();
            change(container);
            if *container != before {
                container.generation = self.next_generation();
            }
        });
    }

    fn next_generation(&self) -> u64 {
        self.generations.fetch_add(1, Ordering::Relaxed)
    }

    fn change(&self, id: &str, change: impl FnOnce(&mut Container)) {
        if let Some(known) = lock(&self.known).by_id.get_mut(id) {
            let mut changed = (**known).clone();
            change(&mut changed);
            if changed != **known {
                *known = Arc::new(changed);
            }
        }
    }

    /// Records the raised `memory.high` of a released container. `None` ends the release.
    pub fn release(&self, id: &str, released: Option<Limit>) {
        self.decide_anew(id, |container| container.released = released);
    }

    /// Records the raised `memory.high` as [`Self::release`] does, unless there was another event
    /// since `container`. Returns whether the value was recorded.
    pub fn release_if_current(&self, container: &Container, released: Option<Limit>) -> bool {
        let mut is_current = false;
        self.decide_anew(&container.id, |now| {
            is_current = now.generation == container.generation;
            if is_current {
                now.released = released;
            }
        });
        is_current
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
    /// changed them.
    pub fn before(&self, id: &str) -> Option<Values> {
        lock(&self.originals).get(&Target::Container(id.to_owned()))
    }

    /// Records the original values of a container's files before this plugin changes them. Only the
    /// first call has an effect.
    pub fn remember(&self, container: &Container, before: Values) {
        let result =
            lock(&self.originals).remember(Target::Container(container.id.clone()), before);
        self.complain(container, result);
    }

    /// Records that a container has its original values again and is unmanaged.
    pub fn restored(&self, container: &Container) {
        let result = lock(&self.originals).restored(&Target::Container(container.id.clone()));
        self.complain(container, result);
    }

    fn complain(&self, container: &Container, result: io::Result<()>) {
        if let Err(error) = result
            && !self.has_complained.swap(true, Ordering::Relaxed)
        {
            warn!(
                pod = container.pod,
                container = container.name,
                %error,
                "cannot write down what containers held before; 'plimsoll restore' will not know \
                 it after a restart. Said once"
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

    /// Returns the last limits that the container with this name in this sandbox should have had.
    pub fn last_limits(&self, sandbox: &str, name: &str) -> Option<Limits> {
        lock(&self.known).last_limits.get(sandbox)?.get(name).copied()
    }

    /// Returns whether each of these names is the name of a container that this sandbox has or had.
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

    /// Returns the kubelet's records of a container and its pod. The caller may block.
    pub fn record(&self, container: &Container) -> RecordSearch {
        self.records.wait(&container.uid, &container.name, container.moment)
    }

    /// Returns the desired state of a container, given the kubelet's record of it. While the plugin
    /// does not act, the original values are desired.
    pub fn decide(&self, container: &Container, recorded: &RecordSearch) -> Decided {
        let planned = self.plan(container, recorded);
        let settings = self.settings();
        if settings.enforces() {
            return planned;
        }
        let resources = Resources { request: planned.request, limit: container.limit };
        let desired = policy::desired(&resources, planned.class, &settings.node, &Policy::OFF);
        Decided { desired, ..planned }
    }

    /// Returns the desired state of a container by the node's policy, whether the plugin acts or
    /// not.
    pub fn plan(&self, container: &Container, recorded: &RecordSearch) -> Decided {
        let settings = self.settings();
        let resolution = requests::resolve(&RequestFacts {
            class: container.class(),
            limit: container.limit,
            unified: &container.unified,
            overrides: &container.overrides,
            oom_score_adj: container.oom_score_adj,
            mem_total: settings.mem_total,
            allocatable: settings.node.allocatable,
            record: recorded
                .as_ref()
                .map(|found| found.record.as_ref())
                .map_err(|inconclusive| *inconclusive),
        });
        let (policy, overruled) = if settings.stand_aside {
            (Policy::OFF, Vec::new())
        } else {
            requests::overridden(&settings.config.policy, &container.overrides)
        };
        let resources = Resources { request: resolution.request, limit: container.limit };
        let mut notices = resolution.notices;
        notices.extend(overruled);
        Decided {
            class: resolution.class,
            request: resolution.request,
            desired: policy::desired(&resources, resolution.class, &settings.node, &policy),
            notices,
            before: self.before(&container.id),
            released: container.released,
            high_before: container.high_before,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::testing::{TestNode, container};

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
        containers.forget_high_before(&state);
        assert!(containers.is_current(&state));
        containers.release("1", Some(limit(90)));
        assert!(!containers.is_current(&state));
        let state = containers.get("1").unwrap();
        containers.set_update("1", Update::Made);
        assert!(!containers.is_current(&state));
    }

    #[test]
    fn an_outdated_check_forgets_no_original_high() {
        let TestNode { containers, .. } = &TestNode::new("");
        let before = containers.insert(container("1", 100));
        containers.set_high_before("1", Some(Limit::Max));
        containers.forget_high_before(&before);
        assert_eq!(containers.get("1").unwrap().high_before, Some(Limit::Max));
        let now = containers.get("1").unwrap();
        containers.forget_high_before(&now);
        assert_eq!(containers.get("1").unwrap().high_before, None);
    }

    #[test]
    fn a_reconnection_keeps_what_the_runtime_cannot_know() {
        for (asked, kept) in [(100, Some(limit(90))), (120, None)] {
            let TestNode { containers, .. } = &TestNode::new("");
            containers.insert(container("1", 100));
            containers.set_high_before("1", Some(Limit::Max));
            containers.set_has_had_processes("1");
            containers.release("1", Some(limit(90)));
            containers.replace([container("1", asked)], &sandboxes());
            let now = containers.get("1").unwrap();
            assert_eq!((now.high_before, now.has_had_processes), (Some(Limit::Max), true));
            assert_eq!(now.released, kept, "the user asks for {asked} MiB");
        }
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
    fn limits_in_force_are_adopted_after_the_update_only() {
        let TestNode { containers, .. } = &TestNode::new("");
        containers.insert(container("1", 100));
        containers.set_update("1", Update::Made);
        let made = containers.get("1").unwrap();
        containers.set_update("1", Update::UnderWay(7));
        containers.read_back(&made, Some(limit(50)), None);
        assert_eq!(containers.get("1").unwrap().limit, limit(100));
        containers.set_update("1", Update::Made);
        containers.read_back(&made, Some(limit(50)), None);
        let now = containers.get("1").unwrap();
        assert_eq!((now.limit, now.update), (limit(50), Update::Over));
    }
}
