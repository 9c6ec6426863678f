//! The containers of the node: what is known of each, and what it should have.
//!
//! Events and the reconcile task come to the same values by the same way: [`Containers::decide`].

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::warn;

use crate::cgroup::{CgroupError, CgroupPath, CgroupRoot, Knob};
use crate::config::{Config, Mode, NodeAllocatable, Owner, Reserved};
use crate::core::pod::{PodUid, QosClass, Request, Resources};
use crate::core::policy::hierarchy::PodPlace;
use crate::core::policy::pod_limit::{Member, PodLimitRecord, RecordedLimit};
use crate::core::policy::resize::Limits;
use crate::core::policy::{self, Decision, Desired, Node, Policy, Reason, Setting};
use crate::core::requests::annotation::Overrides;
use crate::core::requests::{self, Known, Notice};
use crate::core::units::{Bytes, CpuMax, CpuShares, Limit, MilliCpu, PageSize};
use crate::kubelet::checkpoint::{Checkpoints, Moment, PodLevel, Recorded, RecordedLimits};
use crate::kubelet::node::NodeMemory;
use crate::lock;
use crate::state::brake;
use crate::state::originals::{DIRECTORY, Originals, Target, Values};

/// A container as the runtime told of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Container {
    /// Its id in the runtime.
    pub id: String,
    /// Its name in its pod.
    pub name: String,
    /// Namespace and name of its pod, as `namespace/name`.
    pub pod: String,
    /// Its pod's uid.
    pub uid: PodUid,
    /// The id of its pod's sandbox.
    pub sandbox: String,
    /// Its limit: asked for at create or by the last update, or what it is to have instead.
    pub limit: Limit,
    /// What its user asks for.
    pub asked: Limit,
    /// Which update its limit came with.
    pub revision: u64,
    /// How much processor time it may use: asked for at create or by the last update.
    pub cpu: CpuMax,
    /// Its part of the processor time that is contended for: asked for at create or by the last update.
    pub cpu_shares: CpuShares,
    /// How much swap the last update was to leave it with; `None` is whatever there is.
    pub swap_max: Option<Bytes>,
    /// The unified map that the CRI client sent with the create or the last update.
    pub unified: HashMap<String, String>,
    /// What its pod's annotations ask for.
    pub overrides: Overrides,
    /// Its `oom_score_adj`.
    pub oom_score_adj: Option<i64>,
    /// The last thing that the kubelet did to it, which decides what record is right: after an update it takes the kubelet
    /// a moment to write down that it has acted on it.
    pub moment: Moment,
    /// It was started, so it has a cgroup.
    pub started: bool,
    /// Its cgroup was seen with processes, so that it has ended once the cgroup is gone. With Kata and gVisor that never is so: all
    /// processes of a pod are in the cgroup of its sandbox, and only the runtime tells when a container has ended.
    pub has_had_processes: bool,
    /// What has come of its last update.
    pub update: Update,
    /// `memory.high` while it is released from where the policy has it.
    pub released: Option<Limit>,
    /// Its cgroup; `None` if the runtime gave none, or none that can be used.
    pub cgroup: Option<CgroupPath>,
    /// Where its pod is; `None` where no kubelet made the pod's cgroup.
    pub place: Option<PodPlace>,
    /// `memory.high` before it was lowered for a cut, until it was read back. What it is to have where the policy leaves it alone.
    pub high_before: Option<Limit>,
}

/// What has come of a container's last update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Update {
    /// There was none, or it was read back, or has not come about.
    Over,
    /// The runtime is about to make the one with this number, so that the container's files are neither as before nor as after.
    UnderWay(u64),
    /// The runtime says that it has made it.
    Made,
}

impl Update {
    /// One that this plugin is about to ask the runtime for.
    pub const OURS: Self = Self::UnderWay(u64::MAX);
}

/// What a container should have.
#[derive(Clone, Debug, PartialEq)]
pub struct Decided {
    /// Its QoS class.
    pub class: QosClass,
    /// Its request; `None` is unknown.
    pub request: Option<Request>,
    /// The values.
    pub desired: Desired,
    /// What somebody should hear of.
    pub notices: Vec<Notice>,
    /// What the files held before this plugin changed them; `None` if it never has.
    pub before: Option<Values>,
    /// `memory.high` while it is released from where the policy has it.
    pub released: Option<Limit>,
    /// `memory.high` before it was lowered for a cut, until it was read back. What it is to have where the policy leaves it alone.
    pub high_before: Option<Limit>,
}

impl Container {
    /// The kubelet's QoS class; `None` where no kubelet made the pod's cgroup.
    pub fn class(&self) -> Option<QosClass> {
        self.place.as_ref().map(PodPlace::class)
    }

    /// It has not started yet, or not ended.
    pub fn is_alive(&self, root: &CgroupRoot) -> bool {
        let is_gone =
            |cgroup: &CgroupPath| matches!(root.cgroup(cgroup), Err(CgroupError::Gone(_)));
        !(self.started && self.has_had_processes && self.cgroup.as_ref().is_some_and(is_gone))
    }

    /// What it may use.
    pub fn limits(&self) -> Limits {
        Limits { memory: self.limit, cpu: self.cpu.rate() }
    }

    /// What it could use if it had what its user asks for.
    pub fn asked_limits(&self) -> Limits {
        Limits { memory: self.asked, ..self.limits() }
    }
}

impl Decided {
    /// The value that a file should have; `None` is to be left alone.
    ///
    /// Where the policy has no say in a file, that is what it held before this plugin changed it, if it did.
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

    /// The values that its files should have; those that are to be left alone are not among them.
    pub fn values(&self) -> Vec<(Knob, Limit)> {
        KNOBS.into_iter().filter_map(|knob| Some((knob, self.value(knob)?))).collect()
    }

    /// Nothing is wanted of the container, which this plugin has changed before.
    pub fn is_let_go(&self) -> bool {
        let Desired { min, low, high, .. } = &self.desired;
        let has_no_say = |decision: &Decision| {
            matches!(decision.reason, Reason::NothingReserved | Reason::NoThrottling)
        };
        self.before.is_some() && [min, low, high].into_iter().all(has_no_say)
    }

    /// What to do with a file.
    pub fn setting(&self, knob: Knob) -> Setting {
        match knob {
            Knob::Min => self.desired.min.setting,
            Knob::Low => self.desired.low.setting,
            Knob::High => self.desired.high.setting,
            Knob::Max => Setting::LeaveAlone,
        }
    }
}

/// What is known of a pod's limits beside its cgroup: the kubelet's record and the containers that live.
#[derive(Clone, Debug)]
pub struct PodView {
    /// Memory, in bytes.
    pub memory: (PodLimitRecord, Vec<Member>),
    /// Processor time per second, in microseconds.
    pub cpu: (PodLimitRecord, Vec<Member>),
}

/// The files that this plugin sets.
pub const KNOBS: [Knob; 3] = [Knob::Min, Knob::Low, Knob::High];

/// A file whose being there, beneath the node's file system, means that nothing is wanted of anybody: `plimsoll restore` was
/// called.
pub const STAND_ASIDE: &str = "run/plimsoll/restored";

/// Whether [`STAND_ASIDE`] is there on the node whose file system is at `host`.
///
/// # Errors
///
/// When it cannot be found out.
pub fn is_restored(host: &Path) -> io::Result<bool> {
    match host.join(STAND_ASIDE).try_exists() {
        // A directory on the way to it is a file.
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(false),
        result => result,
    }
}

/// The node's side of a decision.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The configuration in force.
    pub config: Config,
    /// What pods may use altogether, and the page size.
    pub node: Node,
    /// All memory.
    pub mem_total: Option<Bytes>,
    /// All memory less hugepages.
    pub usable: Option<Bytes>,
    /// `plimsoll restore` was called: nothing is wanted of anybody.
    pub stand_aside: bool,
    /// The reason why the brake was applied; `None` where it was not.
    pub brake: Option<String>,
}

impl Settings {
    /// Whether the plugin acts: it sets values, raises limits and refuses limit decreases.
    pub fn enforces(&self) -> bool {
        !self.stand_aside && self.mode() == Mode::Enforce
    }

    /// Whether the plugin only reports what it would do.
    pub fn observes(&self) -> bool {
        !self.stand_aside && self.mode() == Mode::Observe
    }

    /// The mode in force: the configured one, unless the brake was applied.
    pub fn mode(&self) -> Mode {
        if self.brake.is_some() { Mode::Observe } else { self.config.mode }
    }

    /// The policy by which files are written: nothing is wanted of any file while the plugin does not act.
    pub fn policy(&self) -> Policy {
        if self.enforces() { self.config.policy } else { Policy::OFF }
    }

    /// The cgroups to protect beside the pods.
    pub fn reserved(&self) -> Vec<Reserved> {
        if self.enforces() { self.planned_reserved() } else { Vec::new() }
    }

    /// The cgroups that would be protected beside the pods, whether the plugin acts or not.
    pub fn planned_reserved(&self) -> Vec<Reserved> {
        if self.stand_aside {
            return Vec::new();
        }
        match self.config.node_guard {
            // The rest is for the kernel itself and for what runs elsewhere, such as sessions: were all of it promised to
            // services, their page cache could take what nobody can give back (seen on a node: it ran out of memory).
            Some(kept)
                if self.config.reserved.is_empty() && self.planned_guard_line().is_some() =>
            {
                let memory = Bytes::new(kept.get() / 4 * 3);
                vec![Reserved { owner: Owner::System, cgroup: CgroupPath::system_slice(), memory }]
            }
            _ => self.config.reserved.clone(),
        }
    }

    /// What all pods together may use, in whole pages (`nodeGuard`); `None` if that is not bounded, or nothing would be left.
    pub fn guard_line(&self) -> Option<Bytes> {
        self.planned_guard_line().filter(|_| self.enforces())
    }

    /// The limit of all pods together by the configuration, whether the plugin acts or not.
    pub fn planned_guard_line(&self) -> Option<Bytes> {
        let kept = self.config.node_guard.filter(|_| !self.stand_aside)?;
        let line = self.usable?.saturating_sub(kept).floor_to(self.node.page_size);
        (line > Bytes::ZERO).then_some(line)
    }

    /// What may be promised to pods: all memory less what is kept from them.
    pub fn left_for_pods(&self) -> Option<Bytes> {
        if self.stand_aside {
            return self.usable;
        }
        let left = self.usable?.saturating_sub(self.config.reserved_in_all());
        Some(self.planned_guard_line().map_or(left, |line| left.min(line)))
    }

    /// The most that is protected for pods altogether; `None` is unknown, and bounds nothing.
    pub fn budget(&self) -> Option<Bytes> {
        let allocatable = self.node.allocatable?;
        Some(self.left_for_pods().map_or(allocatable, |left| allocatable.min(left)))
    }

    /// Takes the node whose file system is at `host`, and tells what was chosen for the log.
    pub fn discover(config: Config, host: &Path) -> (Self, NodeMemory) {
        let page_size = PageSize::of_this_machine();
        let memory = NodeMemory::discover(host, page_size);
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
            // In doubt nothing is written.
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

/// All containers, and what decides about them.
#[derive(Debug)]
pub struct Containers {
    known: Mutex<Index>,
    settings: RwLock<Arc<Settings>>,
    settings_changed: watch::Sender<()>,
    checkpoints: Mutex<Checkpoints>,
    originals: Arc<Mutex<Originals>>,
    /// It was said that what containers held before cannot be written down.
    has_complained: AtomicBool,
    traffic: Arc<Mutex<Traffic>>,
}

/// The runtime's events, as far as they reach this plugin.
#[derive(Debug, Default)]
struct Traffic {
    under_way: usize,
    last: Option<Instant>,
}

/// An event that is being answered.
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
    /// The ids of a pod's containers, by that of its sandbox.
    by_sandbox: HashMap<String, Vec<String>>,
    /// What containers of a sandbox were last to have, by name, also those that have ended.
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
    /// No containers yet.
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

    /// The runtime has sent an event, which is being answered for as long as what is returned is kept.
    pub fn event(&self) -> Event {
        lock(&self.traffic).under_way += 1;
        Event(self.traffic.clone())
    }

    /// How long it will be, at least, until the runtime has been quiet for `quiet`.
    pub fn until_quiet(&self, quiet: Duration) -> Duration {
        let traffic = lock(&self.traffic);
        if traffic.under_way > 0 {
            return quiet;
        }
        traffic.last.map_or(Duration::ZERO, |last| quiet.saturating_sub(last.elapsed()))
    }

    /// What decides at the moment.
    pub fn settings(&self) -> Arc<Settings> {
        self.settings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Decides by other settings from now on.
    pub fn set_settings(&self, settings: Settings) {
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(settings);
        self.settings_changed.send_replace(());
    }

    /// Tells of every change of the settings.
    pub fn settings_changed(&self) -> watch::Receiver<()> {
        self.settings_changed.subscribe()
    }

    /// Remembers a container, or what has changed about it.
    pub fn insert(&self, container: Container) -> Arc<Container> {
        let container = Arc::new(container);
        lock(&self.known).insert(container.clone());
        container
    }

    /// Remembers these and forgets all others.
    pub fn replace(&self, containers: impl IntoIterator<Item = Container>) {
        let mut guard = lock(&self.known);
        // What is down at the moment comes again.
        let last_limits = std::mem::take(&mut guard.last_limits);
        let mut known = Index { last_limits, ..Index::default() };
        containers.into_iter().for_each(|container| known.insert(Arc::new(container)));
        *guard = known;
    }

    /// A container was started.
    pub fn started(&self, id: &str) {
        self.change(id, |container| container.started = true);
    }

    /// There are processes in a container's cgroup.
    pub fn set_has_had_processes(&self, id: &str) {
        self.change(id, |container| container.has_had_processes = true);
    }

    /// A container's update has come so far.
    pub fn set_update(&self, id: &str, update: Update) {
        self.change(id, |container| container.update = update);
    }

    /// The same, unless it has come further than `from`. Tells whether it was so.
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

    /// A container's update is to leave it with so much swap.
    pub fn set_swap_max(&self, id: &str, swap_max: Option<Bytes>) {
        self.change(id, |container| container.swap_max = swap_max);
    }

    /// `memory.high` of a container is about to be lowered from this for a cut, or is as it should be again.
    pub fn set_high_before(&self, id: &str, high: Option<Limit>) {
        self.change(id, |container| container.high_before = high);
    }

    /// A container's limits were read back, and are others than those known. Unless there was another event meanwhile.
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

    /// Releases a container from `memory.high` as far as this, or no longer.
    pub fn release(&self, id: &str, released: Option<Limit>) {
        self.change(id, |container| container.released = released);
    }

    /// Forgets a container.
    pub fn remove(&self, id: &str) {
        lock(&self.known).remove(id);
    }

    /// The container with this id.
    pub fn get(&self, id: &str) -> Option<Arc<Container>> {
        lock(&self.known).by_id.get(id).cloned()
    }

    /// What a container's files held before this plugin changed them; `None` if it never has.
    pub fn before(&self, id: &str) -> Option<Values> {
        lock(&self.originals).get(&Target::Container(id.to_owned()))
    }

    /// This plugin is about to change a container's files, which hold this. Only the first time counts.
    pub fn remember(&self, container: &Container, before: Values) {
        let result =
            lock(&self.originals).remember(Target::Container(container.id.clone()), before);
        self.complain(container, result);
    }

    /// A container has back what it had, and is left alone.
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

    /// Forgets the containers of a sandbox, and tells which.
    pub fn remove_sandbox(&self, sandbox: &str) -> Vec<String> {
        let mut known = lock(&self.known);
        known.last_limits.remove(sandbox);
        let ended = known.by_sandbox.remove(sandbox).unwrap_or_default();
        for id in &ended {
            known.by_id.remove(id);
        }
        ended
    }

    /// The containers of a sandbox.
    pub fn in_sandbox(&self, sandbox: &str) -> Vec<Arc<Container>> {
        let known = lock(&self.known);
        let ids = known.by_sandbox.get(sandbox).into_iter().flatten();
        ids.filter_map(|id| known.by_id.get(id).cloned()).collect()
    }

    /// What the container of this name was last to have in this sandbox.
    pub fn last_limits(&self, sandbox: &str, name: &str) -> Option<Limits> {
        lock(&self.known).last_limits.get(sandbox)?.get(name).copied()
    }

    /// The ids of all containers.
    pub fn ids(&self) -> Vec<String> {
        lock(&self.known).by_id.keys().cloned().collect()
    }

    /// All containers.
    pub fn all(&self) -> Vec<Arc<Container>> {
        lock(&self.known).by_id.values().cloned().collect()
    }

    /// The kubelet's records of a container and its pod. Reads files, though rarely: only when they have changed. Logs what
    /// is wrong with them.
    pub fn record(&self, uid: &PodUid, name: &str, moment: Moment) -> Recorded {
        let lookup = lock(&self.checkpoints).lookup(uid, name, moment);
        for problem in lookup.problems {
            warn!(%problem, "kubelet checkpoint");
        }
        lookup.found
    }

    /// What could not be read of the kubelet's records when they were looked at last.
    pub fn record_problems(&self) -> Vec<String> {
        lock(&self.checkpoints).problems()
    }

    /// The kubelet's records of a container and its pod, if no file need be read for them: quick enough for an event.
    pub fn fresh_record(&self, uid: &PodUid, name: &str, moment: Moment) -> Option<Recorded> {
        // Somebody else may be reading a large file meanwhile.
        self.checkpoints.try_lock().ok()?.lookup_unchanged(uid, name, moment)
    }

    /// What is known of the limits of a container's pod, of which `recorded` is the kubelet's record. `former` are the limits that
    /// the container was last to have, and `others` the other containers of the pod that live.
    pub fn view_pod(
        &self,
        container: &Container,
        former: Option<Limits>,
        others: &[Arc<Container>],
        recorded: &Recorded,
    ) -> PodView {
        let pod = recorded.as_ref().ok().and_then(|found| found.pod.clone());
        // The kubelet writes down that a container was updated only when that is done.
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

    /// What a container's files should hold, given what is known of the kubelet's record of it. While the plugin does not act,
    /// that is what they held before the plugin changed them.
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

    /// What a container's files would hold by the node's policy, whether the plugin acts or not.
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
