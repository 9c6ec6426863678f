//! Containers of the node: their known state and their desired values.
//!
//! Event handlers and the reconcile task use the same function to compute desired values:
//! [`Containers::decide`].

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use plimsoll_core::pod::{CgroupPath, PodUid, QosClass, Request, Resources};
use plimsoll_core::policy::hierarchy::PodPlace;
use plimsoll_core::policy::pod_limit::{Member, PodLimitRecord, RecordedLimit};
use plimsoll_core::policy::resize::Limits;
use plimsoll_core::policy::{self, Decision, Desired, Node, Policy, Reason, Setting};
use plimsoll_core::requests::annotation::Overrides;
use plimsoll_core::requests::{self, Known, Notice};
use plimsoll_core::units::{Bytes, CpuMax, CpuShares, Knob, Limit, MilliCpu};
use tokio::sync::watch;
use tracing::warn;

use crate::cgroup::{CgroupError, CgroupRoot};
use crate::config::{Config, Mode, NodeAllocatable, Owner, Reserved};
use crate::kubelet::checkpoint::{Checkpoints, Moment, PodLevel, Recorded, RecordedLimits};
use crate::kubelet::node::NodeMemory;
use crate::lock;
use crate::state::brake;
use crate::state::guard_record;
use crate::state::originals::{DIRECTORY, Originals, Target, Values};

/// Container as reported by the runtime.
#[derive(Clone, Debug, PartialEq)]
pub struct Container {
    /// ID in the runtime.
    pub id: String,
    /// Name in its pod.
    pub name: String,
    /// Namespace and name of its pod, as `namespace/name`.
    pub pod: String,
    /// UID of its pod.
    pub uid: PodUid,
    /// ID of its pod's sandbox.
    pub sandbox: String,
    /// Memory limit that the container should have. The create request or the last update asked for
    /// it, or the plugin chose another limit instead.
    pub limit: Limit,
    /// Memory limit that the user asks for.
    pub asked: Limit,
    /// Identifier of the update that set the limit; 0 for the create request.
    pub revision: u64,
    /// CPU limit from the create request or the last update.
    pub cpu: CpuMax,
    /// CPU shares from the create request or the last update. They divide CPU time among competing
    /// cgroups.
    pub cpu_shares: CpuShares,
    /// Swap limit that the container should keep after the last update. With `None`, any value is
    /// accepted.
    pub swap_max: Option<Bytes>,
    /// `unified` map that the CRI client sent with the create request or the last update.
    pub unified: HashMap<String, String>,
    /// Overrides from the annotations of its pod.
    pub overrides: Overrides,
    /// Its `oom_score_adj`.
    pub oom_score_adj: Option<i64>,
    /// Last operation of the kubelet on the container. This operation decides which record of the
    /// kubelet is correct: after an update the kubelet needs a moment to record that it has acted
    /// on the update.
    pub moment: Moment,
    /// Whether the container was started, so that it has a cgroup.
    pub started: bool,
    /// Whether processes were seen in its cgroup. If so, the container has ended once the cgroup is
    /// gone.
    ///
    /// With Kata and gVisor this field stays false. All processes of a pod are then in the cgroup
    /// of its sandbox, and only the runtime reports the end of a container.
    pub has_had_processes: bool,
    /// Phase of its last update.
    pub update: Update,
    /// Raised `memory.high` while the container is released from the policy's `memory.high`
    /// (`throttleDeadline`).
    pub released: Option<Limit>,
    /// Its cgroup. `None` if the runtime reported no path or an invalid path.
    pub cgroup: Option<CgroupPath>,
    /// Place of its pod in the hierarchy. `None` if the pod's cgroup was not created by a kubelet.
    pub place: Option<PodPlace>,
    /// Original `memory.high` during a limit decrease, until the plugin has read back the desired
    /// value. It is the desired value itself where the policy leaves `memory.high` alone.
    pub high_before: Option<Limit>,
}

/// Phase of a container's last update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Update {
    /// No update is pending. Either there was none, or its result was read back, or it did not take
    /// place.
    Over,
    /// The runtime is about to apply the update with this number. The files may hold a mix of old
    /// and new values.
    UnderWay(u64),
    /// The runtime reports that it has applied the update.
    Made,
}

impl Update {
    /// Update that this plugin is about to request from the runtime.
    pub const OURS: Self = Self::UnderWay(u64::MAX);
}

/// Desired state of a container.
#[derive(Clone, Debug, PartialEq)]
pub struct Decided {
    /// QoS class of the pod.
    pub class: QosClass,
    /// Memory request; `None` if unknown.
    pub request: Option<Request>,
    /// Desired values of the policy.
    pub desired: Desired,
    /// Problems to report in the log.
    pub notices: Vec<Notice>,
    /// Original values of the files. `None` if this plugin never changed them.
    pub before: Option<Values>,
    /// Raised `memory.high` while the container is released from the policy's `memory.high`
    /// (`throttleDeadline`).
    pub released: Option<Limit>,
    /// Original `memory.high` during a limit decrease, until the plugin has read back the desired
    /// value. It is the desired value itself where the policy leaves `memory.high` alone.
    pub high_before: Option<Limit>,
}

impl Container {
    /// Returns the kubelet's QoS class. Returns `None` if the pod's cgroup was not created by a
    /// kubelet.
    pub fn class(&self) -> Option<QosClass> {
        self.place.as_ref().map(PodPlace::class)
    }

    /// Returns whether the container has not started yet or has not ended.
    pub fn is_alive(&self, root: &CgroupRoot) -> bool {
        let is_gone =
            |cgroup: &CgroupPath| matches!(root.cgroup(cgroup), Err(CgroupError::Gone(_)));
        !(self.started && self.has_had_processes && self.cgroup.as_ref().is_some_and(is_gone))
    }

    /// Returns the limits that the container should have.
    pub fn limits(&self) -> Limits {
        Limits { memory: self.limit, cpu: self.cpu.rate() }
    }

    /// Returns the limits that the container would have if it had the memory limit that its user
    /// asks for.
    pub fn asked_limits(&self) -> Limits {
        Limits { memory: self.asked, ..self.limits() }
    }
}

impl Decided {
    /// Returns the desired value of a file. Returns `None` if the file is to be left alone.
    ///
    /// If the policy has no value for a file, the original value is desired. If this plugin never
    /// changed the file, it is left alone.
    pub fn value(&self, knob: Knob) -> Option<Limit> {
        let (decision, value) = match knob {
            Knob::Min => (&self.desired.min, self.desired.min_value()),
            Knob::Low => (&self.desired.low, self.desired.low_value()),
            Knob::High => (&self.desired.high, self.desired.high_value()),
            Knob::Max => return None,
        };
        match decision.reason {
            Reason::NothingReserved | Reason::NoThrottling => self.before?.get(knob).or(value),
            _ if knob == Knob::High => value.max(self.released).or(self.high_before),
            _ => value,
        }
    }

    /// Returns the desired values of the files, without the files that are to be left alone.
    pub fn values(&self) -> Vec<(Knob, Limit)> {
        KNOBS.into_iter().filter_map(|knob| Some((knob, self.value(knob)?))).collect()
    }

    /// Returns whether the container is unmanaged: the policy has no value for it, but this plugin
    /// has changed it before.
    pub fn is_let_go(&self) -> bool {
        let Desired { min, low, high, .. } = &self.desired;
        let has_no_say = |decision: &Decision| {
            matches!(decision.reason, Reason::NothingReserved | Reason::NoThrottling)
        };
        self.before.is_some() && [min, low, high].into_iter().all(has_no_say)
    }

    /// Returns what the policy wants for a file.
    pub fn setting(&self, knob: Knob) -> Setting {
        match knob {
            Knob::Min => self.desired.min.setting,
            Knob::Low => self.desired.low.setting,
            Knob::High => self.desired.high.setting,
            Knob::Max => Setting::LeaveAlone,
        }
    }
}

/// Evidence about a pod's limits from outside its cgroup: the kubelet's record and the containers
/// that have not ended.
#[derive(Clone, Debug)]
pub struct PodView {
    /// Memory, in bytes.
    pub memory: (PodLimitRecord, Vec<Member>),
    /// CPU time per second, in microseconds.
    pub cpu: (PodLimitRecord, Vec<Member>),
}

/// Files that this plugin sets by its policy.
pub const KNOBS: [Knob; 3] = [Knob::Min, Knob::Low, Knob::High];

/// Marker file, relative to the root of the node's file system. While it exists the plugin manages
/// nothing. `plimsoll restore` creates it.
pub const STAND_ASIDE: &str = "run/plimsoll/restored";

/// Returns whether [`STAND_ASIDE`] exists on the node whose file system is at `host`.
///
/// # Errors
///
/// Fails if the operating system cannot look for the file.
pub fn is_restored(host: &Path) -> io::Result<bool> {
    match host.join(STAND_ASIDE).try_exists() {
        // A parent of the marker file is no directory, so there is no marker file.
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(false),
        result => result,
    }
}

/// Node-wide input of all decisions.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Configuration in force.
    pub config: Config,
    /// Memory available to all pods together, and the page size.
    pub node: Node,
    /// Total memory.
    pub mem_total: Option<Bytes>,
    /// Total memory without hugepages.
    pub usable: Option<Bytes>,
    /// Whether `plimsoll restore` was called, so that the plugin manages nothing.
    pub stand_aside: bool,
    /// Reason why the brake was applied; `None` if it is not applied.
    pub brake: Option<String>,
}

impl Settings {
    /// Returns whether the plugin acts: it sets values, raises limits and refuses limit decreases.
    pub fn enforces(&self) -> bool {
        !self.stand_aside && self.mode() == Mode::Enforce
    }

    /// Returns whether the plugin only reports what it would do.
    pub fn observes(&self) -> bool {
        !self.stand_aside && self.mode() == Mode::Observe
    }

    /// Returns the mode in force: the configured mode, or observe if the brake is applied.
    pub fn mode(&self) -> Mode {
        if self.brake.is_some() { Mode::Observe } else { self.config.mode }
    }

    /// Returns the policy for writing files. While the plugin does not act, this policy has no
    /// value for any file.
    pub fn policy(&self) -> Policy {
        if self.enforces() { self.config.policy } else { Policy::OFF }
    }

    /// Returns the cgroups besides the pods that the plugin protects.
    pub fn reserved(&self) -> Vec<Reserved> {
        if self.enforces() { self.planned_reserved() } else { Vec::new() }
    }

    /// Returns the cgroups besides the pods that the plugin would protect if it acted.
    pub fn planned_reserved(&self) -> Vec<Reserved> {
        if self.stand_aside {
            return Vec::new();
        }
        match self.config.node_guard {
            // A quarter is left for the kernel and for processes outside system.slice, such as
            // sessions. If all of it were protected for services, the kernel could not reclaim
            // their page cache in it. A node ran out of memory this way.
            Some(kept)
                if self.config.reserved.is_empty() && self.planned_guard_line().is_some() =>
            {
                let memory = Bytes::new(kept.get() / 4 * 3);
                vec![Reserved { owner: Owner::System, cgroup: CgroupPath::system_slice(), memory }]
            }
            _ => self.config.reserved.clone(),
        }
    }

    /// Returns the limit of all pods together in whole pages (`nodeGuard`). Returns `None` if there
    /// is no such limit or the limit would leave nothing for pods. Also returns `None` while the
    /// plugin does not act.
    pub fn guard_line(&self) -> Option<Bytes> {
        self.planned_guard_line().filter(|_| self.enforces())
    }

    /// Returns the configured limit of all pods together, whether the plugin acts or not.
    pub fn planned_guard_line(&self) -> Option<Bytes> {
        let kept = self.config.node_guard.filter(|_| !self.stand_aside)?;
        let line = self.usable?.saturating_sub(kept).floor_to(self.node.page_size);
        (line > Bytes::ZERO).then_some(line)
    }

    /// Returns the memory that may be promised to pods: total memory without hugepages and without
    /// the memory kept from pods.
    pub fn left_for_pods(&self) -> Option<Bytes> {
        if self.stand_aside {
            return self.usable;
        }
        let left = self.usable?.saturating_sub(self.config.reserved_in_all());
        Some(self.planned_guard_line().map_or(left, |line| left.min(line)))
    }

    /// Returns the upper bound of the protection of all pods together. `None` means that the bound
    /// is unknown and not applied.
    pub fn budget(&self) -> Option<Bytes> {
        let allocatable = self.node.allocatable?;
        Some(self.left_for_pods().map_or(allocatable, |left| allocatable.min(left)))
    }

    /// Determines the settings of the node whose file system is at `host`. Also returns the facts
    /// about its memory, for the log.
    pub fn discover(config: Config, host: &Path) -> (Self, NodeMemory) {
        let page_size = crate::cgroup::page_size();
        let memory = NodeMemory::discover(host, page_size, guard_record::read(host));
        let allocatable = match config.node_allocatable {
            NodeAllocatable::Auto => memory.allocatable,
            NodeAllocatable::Fixed(bytes) => Some(bytes),
        };
        let stand_aside = is_restored(host).unwrap_or_else(|error| {
            warn!(%error, "cannot find out whether 'plimsoll restore' was called, by /{STAND_ASIDE}: in doubt nothing is set");
            true
        });
        let brake = match brake::Record::load(host) {
            Ok(record) => record.map(|record| record.to_string()),
            // If the record is unreadable, write nothing.
            Err(error) => {
                Some(format!("its record {DIRECTORY}/{} cannot be read: {error}", brake::FILE))
            }
        };
        let node = Node { allocatable, page_size };
        (
            Self {
                config,
                node,
                mem_total: memory.mem_total,
                usable: memory.usable,
                stand_aside,
                brake,
            },
            memory,
        )
    }
}

/// All containers, with the data that their desired values depend on.
#[derive(Debug)]
pub struct Containers {
    known: Mutex<Index>,
    settings: RwLock<Arc<Settings>>,
    settings_changed: watch::Sender<()>,
    checkpoints: Mutex<Checkpoints>,
    originals: Arc<Mutex<Originals>>,
    /// Whether a failure to record original values was already reported.
    has_complained: AtomicBool,
    traffic: Arc<Mutex<Traffic>>,
}

/// The runtime's events, as far as this plugin receives them.
#[derive(Debug, Default)]
struct Traffic {
    under_way: usize,
    last: Option<Instant>,
}

/// Event that is being answered, until this value is dropped.
#[derive(Debug)]
pub struct Event(Arc<Mutex<Traffic>>);

impl Drop for Event {
    fn drop(&mut self) {
        let mut traffic = lock(&self.0);
        traffic.under_way -= 1;
        traffic.last = Some(Instant::now());
    }
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
    pub fn new(
        settings: Settings,
        checkpoints: Checkpoints,
        originals: Arc<Mutex<Originals>>,
    ) -> Self {
        let (settings, checkpoints) = (RwLock::new(Arc::new(settings)), Mutex::new(checkpoints));
        Self {
            known: Mutex::default(),
            settings,
            settings_changed: watch::Sender::new(()),
            checkpoints,
            originals,
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
        let container = Arc::new(container);
        lock(&self.known).insert(container.clone());
        container
    }

    /// Replaces all containers.
    pub fn replace(&self, containers: impl IntoIterator<Item = Container>) {
        let mut guard = lock(&self.known);
        // Keep the last limits, because the runtime does not report a container that is just being
        // restarted.
        let last_limits = std::mem::take(&mut guard.last_limits);
        let mut known = Index { last_limits, ..Index::default() };
        containers.into_iter().for_each(|container| known.insert(Arc::new(container)));
        *guard = known;
    }

    /// Records that a container was started.
    pub fn started(&self, id: &str) {
        self.change(id, |container| container.started = true);
    }

    /// Records that there are processes in a container's cgroup.
    pub fn set_has_had_processes(&self, id: &str) {
        self.change(id, |container| container.has_had_processes = true);
    }

    /// Sets the phase of a container's update.
    pub fn set_update(&self, id: &str, update: Update) {
        self.change(id, |container| container.update = update);
    }

    /// Sets the phase of a container's update to `to` if it is `from`. Returns whether it was
    /// `from`.
    pub fn swap_update(&self, id: &str, from: Update, to: Update) -> bool {
        let mut is_swapped = false;
        self.change(id, |container| {
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

    /// Records the original `memory.high` before a limit decrease lowers it. `None` means that
    /// `memory.high` has its desired value again.
    pub fn set_high_before(&self, id: &str, high: Option<Limit>) {
        self.change(id, |container| container.high_before = high);
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
        self.change(id, |container| container.released = released);
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
                "cannot write down what containers held before; 'plimsoll restore' will not know it after a restart. Said once"
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

    /// Returns the IDs of all containers.
    pub fn ids(&self) -> Vec<String> {
        lock(&self.known).by_id.keys().cloned().collect()
    }

    /// Returns all containers.
    pub fn all(&self) -> Vec<Arc<Container>> {
        lock(&self.known).by_id.values().cloned().collect()
    }

    /// Looks up the kubelet's records of a container and its pod. Reads only files that have
    /// changed, which is rare. Logs the problems of these files.
    pub fn record(&self, uid: &PodUid, name: &str, moment: Moment) -> Recorded {
        let lookup = lock(&self.checkpoints).lookup(uid, name, moment);
        for problem in lookup.problems {
            warn!(%problem, "kubelet checkpoint");
        }
        lookup.found
    }

    /// Returns the problems of the kubelet's records, as of the last look-up.
    pub fn record_problems(&self) -> Vec<String> {
        lock(&self.checkpoints).problems()
    }

    /// Returns the kubelet's records of a container and its pod if no file has to be read. This is
    /// fast enough for an event handler.
    pub fn fresh_record(&self, uid: &PodUid, name: &str, moment: Moment) -> Option<Recorded> {
        // Another thread may hold the lock while it reads a large file.
        self.checkpoints.try_lock().ok()?.lookup_unchanged(uid, name, moment)
    }

    /// Collects the evidence about the limits of a container's pod.
    ///
    /// `recorded` is the kubelet's record of the pod. `former` is the last limits that the
    /// container should have had. `others` are the other containers of the pod that have not ended.
    pub fn view_pod(
        &self,
        container: &Container,
        former: Option<Limits>,
        others: &[Arc<Container>],
        recorded: &Recorded,
    ) -> PodView {
        let pod = recorded.as_ref().ok().and_then(|found| found.pod.clone());
        // The kubelet records an update of a container only after the update is done. So each
        // container needs the record for its own last operation.
        let recorded_limits = |other: &Container| {
            let found = if other.moment == container.moment {
                None
            } else {
                self.fresh_record(&other.uid, &other.name, other.moment).and_then(Result::ok)
            };
            let pod = found.and_then(|found| found.pod).or_else(|| pod.clone());
            pod.and_then(|pod| pod.limits(&other.name))
        };
        let (mut memory, mut cpu) = (Vec::new(), Vec::new());
        let mut add = |member: &Container, former: Option<Limits>| {
            let Limits { memory: limit, cpu: rate } = member.limits();
            let (limit, asked) = (bytes(limit), bytes(member.asked));
            let recorded = recorded_limits(member);
            let of = |amount: fn(RecordedLimits) -> Option<u64>| match recorded.map(amount) {
                None => RecordedLimit::NoRecord,
                Some(None) => RecordedLimit::NoLimit,
                Some(Some(limit)) => RecordedLimit::Limit(limit),
            };
            memory.push(Member {
                limit,
                asked,
                former: former
                    .and_then(|former| bytes(former.memory))
                    .filter(|former| Some(*former) != asked),
                recorded: of(|limits| limits.memory.map(Bytes::get)),
            });
            cpu.push(Member {
                limit: rate,
                asked: rate,
                former: former.and_then(|former| former.cpu).filter(|former| Some(*former) != rate),
                recorded: of(|limits| limits.cpu.map(MilliCpu::rate)),
            });
        };
        add(container, former);
        others.iter().for_each(|other| add(other, None));
        let [of_memory, of_cpu] = match (&pod, recorded) {
            (_, Err(_)) => [PodLimitRecord::Unreadable; 2],
            (None, Ok(_)) => [PodLimitRecord::Absent; 2],
            (Some(pod), Ok(_)) => {
                let known = lock(&self.known);
                let names = known.last_limits.get(&container.sandbox);
                let is_complete =
                    pod.names().all(|name| names.is_some_and(|names| names.contains_key(name)));
                let all = |is_limited: fn(RecordedLimits) -> bool| {
                    pod.names().all(|name| pod.limits(name).is_some_and(is_limited))
                };
                let (memory_limited, cpu_limited) =
                    (all(|limits| limits.memory.is_some()), all(|limits| limits.cpu.is_some()));
                let record =
                    |own, all_limited| PodLimitRecord::Present { own, is_complete, all_limited };
                match pod.pod_level() {
                    PodLevel::Unreadable => [PodLimitRecord::Unreadable; 2],
                    PodLevel::Unrecorded => {
                        [record(None, memory_limited), record(None, cpu_limited)]
                    }
                    PodLevel::Limits(RecordedLimits { memory, cpu }) => {
                        let (memory, cpu) = (memory.map(Bytes::get), cpu.map(MilliCpu::rate));
                        [record(Some(memory), memory_limited), record(Some(cpu), cpu_limited)]
                    }
                }
            }
        };
        PodView { memory: (of_memory, memory), cpu: (of_cpu, cpu) }
    }

    /// Returns the desired state of a container, given the kubelet's record of it. While the plugin
    /// does not act, the original values are desired.
    pub fn decide(&self, container: &Container, recorded: &Recorded) -> Decided {
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
    pub fn plan(&self, container: &Container, recorded: &Recorded) -> Decided {
        let settings = self.settings();
        let resolution = requests::resolve(&Known {
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

fn bytes(limit: Limit) -> Option<u64> {
    limit.bytes().map(Bytes::get)
}
