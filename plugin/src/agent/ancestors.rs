//! The cgroups above the containers, and those beside the pods that are protected: what each should have, and writing it.
//!
//! [`Tree`] says what a level should have. Here it is written: to the file at once, which takes microseconds, so that an
//! event is in every ancestor before it is answered; and, where systemd owns the cgroup, it is handed on to be made to
//! last ([`Ancestors::make_last`]).
//!
//! Parents are raised before, and lowered after, what lies in them, so that no child's protection is lost meanwhile.
//!
//! What a cgroup held before its first change is remembered ([`Originals`]), and is what it gets back when nothing below it
//! is to be protected any more.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt as _;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::cgroup::systemd::{Lasting, Systemd, SystemdError};
use crate::cgroup::{CPU_MAX, Cgroup, CgroupError, CgroupPath, CgroupRoot, Knob};
use crate::config::Reserved;
use crate::core::outcome::Outcome;
use crate::core::pod::{PodCgroup, PodUid, QosClass};
use crate::core::policy::contention::{Contention, Verdict};
use crate::core::policy::hierarchy::{Level, PodPlace, Tree};
use crate::core::policy::pod_limit::{Evidence, Origin, Unit};
use crate::core::policy::resize::Raise;
use crate::core::policy::{self, Policy, Protection};
use crate::core::requests;
use crate::core::requests::annotation::Overrides;
use crate::core::units::{Bytes, CpuMax, Limit, PageSize};
use crate::lock;
use crate::report::{Reports, What, status};
use crate::state::brake::Cause;
use crate::state::containers::{Container, PodView, Settings};
use crate::state::originals::{Originals, RaisedLimit, Target, Values};

/// How many calls to systemd are under way at a time.
const CALLS: usize = 8;

/// How many levels are brought to their values within an event. Where pods share what is not enough, each one that comes or
/// goes changes the share of all others, which is left to a task.
const AT_ONCE: usize = 8;

/// How often a file that cannot be used is tried again within seconds. After that it waits for the next event.
const TRIES: u32 = 10;

/// How many values that systemd was told in vain may still come.
const LATE: usize = 4;

/// How many pods that get less than they ask for are named at a time.
const NAMED: usize = 20;

/// The files that are set above containers.
const KNOBS: [Knob; 2] = [Knob::Min, Knob::Low];

/// The levels above the containers.
#[derive(Debug)]
pub struct Ancestors {
    root: Arc<CgroupRoot>,
    page_size: PageSize,
    originals: Arc<Mutex<Originals>>,
    reports: Arc<Reports>,
    state: Mutex<State>,
    /// What systemd has to be told, by cgroup: only the last value counts.
    lasting: Mutex<BTreeMap<CgroupPath, Last>>,
    lasting_changed: Notify,
    /// The shares of pods have changed.
    shares_changed: Notify,
}

/// What systemd has to be told of a cgroup.
#[derive(Clone, Copy, Debug)]
struct Last {
    protection: Protection,
    /// And that its limits were raised.
    raise: Option<Raise>,
}

#[derive(Debug, Default)]
struct State {
    tree: Tree,
    /// The pods' sandboxes, by id.
    sandboxes: HashMap<String, Sandbox>,
    reserved: Vec<Reserved>,
    /// What the files hold, as far as it is known.
    in_force: HashMap<CgroupPath, InForce>,
    /// Nothing is lowered: not all that is on the node is in the tree yet.
    hold: bool,
    /// Another program's changes stay (`repair: false`).
    leaves_changes: bool,
    /// Files that were left as another program set them: the cgroup's inode, and what they should hold. They are left until
    /// they should hold something else.
    left: HashMap<(CgroupPath, Knob), (u64, Limit)>,
    raising: Raising,
    /// The same of limits of pods, by file: what they should be is a number of bytes, or microseconds of each second.
    left_limits: HashMap<(CgroupPath, &'static str), (u64, u64)>,
    /// By file, whatever it should hold: that changes with every pod.
    contention: Contention<(CgroupPath, Knob), ()>,
    /// The same of limits of pods, by what they should be: another one is another request of a user's.
    limits: Contention<(CgroupPath, &'static str), u64>,
    /// How often the runtime has told of everything.
    synchronized: u64,
    /// What systemd was told last, and what it is being told. It writes that to the files in its own time, when there may be
    /// something newer.
    told: HashMap<CgroupPath, Vec<Protection>>,
    /// The origins of pods' limits, by sandbox.
    origins: HashMap<String, Origins>,
    /// How often a file could not be written, or a cgroup not be read. It is said only once.
    failing: HashMap<(CgroupPath, Option<Knob>), u32>,
    /// Pods of which it was said that they get less than they ask for.
    short: HashSet<CgroupPath>,
    originals_failing: bool,
}

/// Whether the limits of pods are raised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Raising {
    /// They are.
    #[default]
    Done,
    /// Observe mode: it is reported that they would be.
    Planned,
    /// They are left as they are.
    Off,
}

impl Raising {
    fn of(settings: &Settings) -> Self {
        match settings.config.raise_pod_limits && !settings.stand_aside {
            false => Self::Off,
            true if settings.enforces() => Self::Done,
            true => Self::Planned,
        }
    }
}

impl State {
    /// Whether a file was left as another program set it, and should still hold what it should have held then.
    fn is_left(&self, file: &(CgroupPath, Knob), inode: u64, desired: Limit) -> bool {
        self.left.get(file) == Some(&(inode, desired))
    }

    /// The cgroups that should have something, parents first among those of pods.
    fn cgroups(&self) -> Vec<CgroupPath> {
        let levels = self.tree.levels().into_iter().map(|level| level.cgroup);
        levels.chain(self.reserved.iter().map(|reserved| reserved.cgroup.clone())).collect()
    }
}

/// Whether this is one of the cgroups that should have something.
fn is_ours(tree: &Tree, reserved: &[Reserved], cgroup: &CgroupPath) -> bool {
    tree.desired(cgroup).is_some() || reserved.iter().any(|reserved| reserved.cgroup == *cgroup)
}

/// The origins of a pod's limits, as far as they were ever proven.
#[derive(Clone, Copy, Debug, Default)]
struct Origins {
    memory: Origin,
    cpu: Origin,
    /// It was said that the pod's limits are tighter, and why they stay.
    is_said: bool,
}

impl Origins {
    /// The most that a pod may ask for, with its overhead: its own limit, if it has one.
    fn cap(&self, overhead: Bytes) -> Option<Bytes> {
        match self.memory {
            Origin::Own(own) => Some(Bytes::new(own).saturating_add(overhead)),
            Origin::Sum | Origin::Unknown => None,
        }
    }
}

/// A pod, for as long as the runtime has a sandbox for it.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// Its id in the runtime.
    pub id: String,
    /// Where its pod is.
    pub place: PodPlace,
    /// What the pod takes beyond its containers, by its runtime class.
    pub overhead: Bytes,
    /// The same of processor time per second, in microseconds.
    pub cpu_overhead: u64,
    /// The limits that the runtime's client gave the pod, without overhead; `None` is none, or not told by this runtime.
    pub memory_limit: Option<Bytes>,
    /// The same of processor time per second, in microseconds.
    pub cpu_limit: Option<u64>,
    /// What the pod's annotations ask for.
    pub overrides: Overrides,
}

impl Sandbox {
    fn protection(&self, node: &Policy) -> Protection {
        let (policy, _) = requests::overridden(node, &self.overrides);
        policy::overhead(self.overhead, self.place.class(), &policy)
    }
}

/// What the files of a cgroup hold.
#[derive(Clone, Copy, Debug)]
struct InForce {
    inode: u64,
    min: Limit,
    low: Limit,
}

impl InForce {
    fn read(cgroup: &Cgroup) -> Result<Self, CgroupError> {
        Ok(Self {
            inode: cgroup.inode()?,
            min: cgroup.read(Knob::Min)?,
            low: cgroup.read(Knob::Low)?,
        })
    }

    fn get(&self, knob: Knob) -> Limit {
        if knob == Knob::Low { self.low } else { self.min }
    }

    fn set(&mut self, knob: Knob, value: Limit) {
        *(if knob == Knob::Low { &mut self.low } else { &mut self.min }) = value;
    }
}

/// A change of one file.
#[derive(Clone, Debug)]
struct Change {
    cgroup: CgroupPath,
    knob: Knob,
    from: Limit,
    to: Limit,
}

impl Change {
    fn raises(&self) -> bool {
        self.to > self.from
    }
}

/// A limit that was raised: its file, what that held, and what it was read back to hold.
type Raised = (&'static str, String, String);

/// What [`Ancestors::check`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checked {
    /// All is as it should be, or is left as it is.
    Settled,
    /// To be looked at again after this time.
    Again(Duration),
    /// There is no such cgroup any more.
    Gone,
}

impl Ancestors {
    /// No pods yet.
    pub fn new(
        root: Arc<CgroupRoot>,
        page_size: PageSize,
        originals: Arc<Mutex<Originals>>,
        reports: Arc<Reports>,
    ) -> Self {
        Self {
            root,
            page_size,
            originals,
            reports,
            state: Mutex::default(),
            lasting: Mutex::default(),
            lasting_changed: Notify::new(),
            shares_changed: Notify::new(),
        }
    }

    /// Bounds the sum of all protection, and protects cgroups beside the pods. What those leave of all memory is not promised to
    /// pods a second time.
    pub fn set_node(&self, settings: &Settings) {
        let allocatable = settings.node.allocatable;
        let budget = settings.budget();
        if let (Some(allocatable), Some(budget)) = (allocatable, budget)
            && budget < allocatable
        {
            warn!(
                "systemReserved, kubeReserved and nodeGuard leave {} of all memory, which is less than node allocatable, {}; that much \
                 at most is protected for pods",
                budget.quantity(),
                allocatable.quantity()
            );
        }
        let mut state = lock(&self.state);
        state.leaves_changes = !settings.config.repair;
        if !state.leaves_changes {
            state.left.clear();
            state.left_limits.clear();
        }
        state.raising = Raising::of(settings);
        let former = std::mem::replace(&mut state.reserved, settings.reserved());
        let mut levels: Vec<_> =
            former.iter().chain(&state.reserved).map(|reserved| reserved.cgroup.clone()).collect();
        levels.extend(state.tree.set_budget(budget).into_iter().map(|level| level.cgroup));
        self.apply(&mut state, levels);
    }

    /// A pod's sandbox is there.
    pub fn sandbox(&self, sandbox: Sandbox, policy: &Policy) {
        let mut state = lock(&self.state);
        let levels = state.tree.set_overhead(&sandbox.place, sandbox.protection(policy));
        let pod = sandbox.place.cgroup().clone();
        // It is the first of a new pod, whose cgroups may be new, too.
        for level in &levels {
            state.in_force.remove(&level.cgroup);
        }
        state.sandboxes.insert(sandbox.id.clone(), sandbox);
        self.apply_levels(&mut state, levels, Some(&pod));
    }

    /// These are all sandboxes that there are. Nothing is lowered from now on until [`Ancestors::settle`]: what is known of
    /// containers is not all.
    pub fn synchronize(&self, sandboxes: Vec<Sandbox>) {
        let mut state = lock(&self.state);
        state.synchronized += 1;
        state.hold = true;
        state.sandboxes =
            sandboxes.into_iter().map(|sandbox| (sandbox.id.clone(), sandbox)).collect();
        let State { sandboxes, origins, .. } = &mut *state;
        origins.retain(|sandbox, _| sandboxes.contains_key(sandbox));
    }

    /// The pods that have a sandbox.
    pub fn pods(&self) -> HashSet<PodUid> {
        let state = lock(&self.state);
        let pods = state
            .sandboxes
            .values()
            .filter_map(|sandbox| PodCgroup::parse(sandbox.place.cgroup().as_str()));
        pods.map(|pod| pod.uid).collect()
    }

    /// Whether there is a sandbox with this id.
    pub fn is_sandbox(&self, id: &str) -> bool {
        lock(&self.state).sandboxes.contains_key(id)
    }

    /// A pod's sandbox has ended. A pod may get another one.
    pub fn sandbox_ended(&self, id: &str) {
        let mut state = lock(&self.state);
        state.origins.remove(id);
        let Some(Sandbox { place, .. }) = state.sandboxes.remove(id) else { return };
        if state.sandboxes.values().any(|other| other.place.cgroup() == place.cgroup()) {
            return;
        }
        let levels = state.tree.remove_pod(place.cgroup());
        // Below the levels that change, and so first to be lowered.
        self.apply(&mut state, vec![place.cgroup().clone()]);
        self.apply_levels(&mut state, levels, None);
    }

    /// A container is to have this much.
    pub fn claim(&self, place: &PodPlace, id: &str, claim: Protection) {
        let mut state = lock(&self.state);
        let levels = state.tree.claim(place, id, claim);
        self.apply_levels(&mut state, levels, Some(place.cgroup()));
    }

    /// A container is about to have this much: what it has now counts until it is known that it has.
    pub fn claim_at_least(&self, place: &PodPlace, id: &str, claim: Protection) {
        let mut state = lock(&self.state);
        let now = state.tree.claim_of(id).unwrap_or_default();
        let levels = state.tree.claim(place, id, claim.max(now));
        self.apply_levels(&mut state, levels, Some(place.cgroup()));
    }

    /// A container is about to have its limits: those of its pod are raised to what its containers may then use together, where
    /// they are known to be the sum of their limits. They are never lowered: that is the kubelet's.
    pub fn raise_limits(&self, container: &Container, pod: &PodView) {
        self.raise_where_allowed(container, pod, false);
    }

    /// Somebody has written a pod's limit. It is raised again as [`Self::raise_limits`] does, but not for ever: the time to
    /// try again after, if it is too early.
    pub fn raise_limits_again(&self, container: &Container, pod: &PodView) -> Option<Duration> {
        self.raise_where_allowed(container, pod, true)
    }

    fn raise_where_allowed(
        &self,
        container: &Container,
        pod: &PodView,
        is_touched: bool,
    ) -> Option<Duration> {
        let place = container.place.as_ref()?;
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        let sandbox = state.sandboxes.get(&container.sandbox);
        let overhead = sandbox.map_or(Bytes::ZERO, |sandbox| sandbox.overhead);
        let (memory_in_force, cpu_in_force) = match self.limits(place.cgroup()) {
            Ok(in_force) => in_force,
            // It is made with its first container.
            Err(CgroupError::Gone(_)) => (None, None),
            Err(error) => {
                cannot_raise(container, place.cgroup(), &error);
                return None;
            }
        };
        let memory = Evidence {
            record: pod.memory.0,
            members: &pod.memory.1,
            in_force: memory_in_force.map(Bytes::get),
            at_creation: sandbox.and_then(|sandbox| sandbox.memory_limit).map(Bytes::get),
            overhead: overhead.get(),
            unit: Unit::Bytes(self.page_size.get()),
        };
        let cpu = Evidence {
            record: pod.cpu.0,
            members: &pod.cpu.1,
            in_force: cpu_in_force,
            at_creation: sandbox.and_then(|sandbox| sandbox.cpu_limit),
            overhead: sandbox.map_or(0, |sandbox| sandbox.cpu_overhead),
            unit: Unit::Rate,
        };
        let before = state.origins.get(&container.sandbox).copied().unwrap_or_default();
        let mut origins =
            Origins { memory: memory.origin(before.memory), cpu: cpu.origin(before.cpu), ..before };
        let is_tight = |evidence: &Evidence<'_>, origin| {
            origin == Origin::Unknown
                && evidence
                    .in_force
                    .zip(evidence.needed())
                    .is_some_and(|(now, needed)| now < needed)
        };
        if !before.is_said && (is_tight(&memory, origins.memory) || is_tight(&cpu, origins.cpu)) {
            origins.is_said = true;
            // As a rule it is meant so.
            info!(
                pod = container.pod,
                container = container.name,
                cgroup = %place.cgroup(),
                memory = memory.in_force,
                memory_needed = memory.needed(),
                cpu = cpu.in_force,
                cpu_needed = cpu.needed(),
                "the pod's limit is tighter than what its containers may use, and is left: neither the kubelet's record, nor what the \
                 runtime tells of the pod, nor its history proves that it is the sum of their limits. Said once"
            );
        }
        if state.sandboxes.contains_key(&container.sandbox) {
            state.origins.insert(container.sandbox.clone(), origins);
        }
        // A Guaranteed pod requests what it is limited to, whoever gave it the limit.
        let is_all_requested =
            place.class() == QosClass::Guaranteed && origins.memory == Origin::Unknown;
        let cap = origins.cap(overhead).or(memory_in_force.filter(|_| is_all_requested));
        let levels = state.tree.set_cap(place.cgroup(), cap);
        self.apply_levels(state, levels, Some(place.cgroup()));
        let to =
            |evidence: &Evidence<'_>, origin| evidence.needed().filter(|_| origin == Origin::Sum);
        let mut raise = Raise {
            memory: to(&memory, origins.memory).map(Bytes::new),
            cpu: to(&cpu, origins.cpu),
        };
        let mut again = None;
        // Memory and processor time have nothing to do with each other.
        if state.raising == Raising::Done {
            let memory = raise.memory.map(|to| to.floor_to(self.page_size));
            if let (Some(observed), Some(desired)) = (memory_in_force, memory)
                && observed < desired
            {
                let file = (place.cgroup().clone(), Knob::Max.file_name());
                let [now, to] = [observed, desired].map(Limit::Bytes);
                let is_lowered = is_touched || self.was_raised(&file, |raised: Limit| raised >= to);
                let contended = |repairs| What::Contended {
                    knob: Knob::Max,
                    desired: to,
                    observed: now,
                    repairs,
                };
                if let Err(wait) = self.may_raise(state, file, is_lowered, desired.get(), contended)
                {
                    (raise.memory, again) = (None, wait);
                }
            }
            if let (Some(observed), Some(desired)) = (cpu_in_force, raise.cpu)
                && observed < desired
            {
                let file = (place.cgroup().clone(), CPU_MAX);
                let [now, to] = [observed, desired].map(|rate| CpuMax::NONE.with_rate(rate));
                let is_lowered = self.was_raised(&file, |raised: CpuMax| {
                    raised.rate().is_none_or(|rate| rate >= desired)
                });
                let contended =
                    |repairs| What::CpuContended { desired: to, observed: now, repairs };
                if self.may_raise(state, file, is_lowered, desired, contended).is_err() {
                    raise.cpu = None;
                }
            }
        }
        let (raised, result) = self.raise(state, place.cgroup(), raise);
        for (file, observed, desired) in &raised {
            let (desired, observed) = (desired.clone(), observed.clone());
            let what = What::PodRaised { knob: file, desired, observed };
            if state.raising == Raising::Planned {
                self.reports.tell_planned(&container.into(), &what);
            } else {
                self.reports.tell(&container.into(), &what);
            }
        }
        match result {
            Ok(()) | Err(CgroupError::Gone(_)) => {}
            Err(error) => cannot_raise(container, place.cgroup(), &error),
        }
        again
    }

    /// Whether a pod's limit may be raised to what is `desired`. Where another program has lowered it, it is raised only so often.
    /// Otherwise the time to try again after, if there is one.
    fn may_raise(
        &self,
        state: &mut State,
        file: (CgroupPath, &'static str),
        is_lowered: bool,
        desired: u64,
        contended: impl FnOnce(u32) -> What,
    ) -> Result<(), Option<Duration>> {
        let pod = &file.0;
        if state.leaves_changes {
            let inode = self.root.cgroup(pod).and_then(|cgroup| cgroup.inode()).unwrap_or_default();
            if is_lowered {
                debug!(cgroup = %pod, knob = file.1, desired, "left as another program set it");
                state.left_limits.insert(file.clone(), (inode, desired));
            }
            let is_left = state.left_limits.get(&file) == Some(&(inode, desired));
            return if is_left { Err(None) } else { Ok(()) };
        }
        let now = Instant::now().into_std();
        if !is_lowered && !state.limits.is_left(&file, &desired, now) {
            return Ok(());
        }
        match state.limits.judge(file.clone(), desired, is_lowered, now) {
            Verdict::Repair => {
                self.reports.brake.count(Cause::Repairs, now);
                Ok(())
            }
            Verdict::Wait(wait) => Err(Some(wait)),
            Verdict::GiveUp => {
                self.reports.tell(&pod.into(), &contended(state.limits.repairs(&file)));
                Err(None)
            }
            Verdict::Leave => Err(None),
        }
    }

    /// Whether a file was raised to a value like this before. Where it is lower, somebody has lowered it.
    fn was_raised<V: FromStr>(
        &self,
        file: &(CgroupPath, &'static str),
        is_it: impl Fn(V) -> bool,
    ) -> bool {
        let (pod, file) = file;
        let Ok(inode) = self.root.cgroup(pod).and_then(|cgroup| cgroup.inode()) else {
            return false;
        };
        let originals = lock(&self.originals);
        let mut limits = originals.raised_limits().iter();
        limits.any(|limit| {
            (&limit.cgroup, limit.inode, limit.file.as_str()) == (pod, inode, *file)
                && limit.to.parse().is_ok_and(&is_it)
        })
    }

    /// Tells that a file is left to whoever keeps changing it.
    fn tell_contended(
        &self,
        state: &State,
        file: &(CgroupPath, Knob),
        desired: Limit,
        observed: Limit,
    ) {
        let (cgroup, knob) = file;
        let repairs = state.contention.repairs(file);
        self.reports
            .tell(&cgroup.into(), &What::Contended { knob: *knob, desired, observed, repairs });
    }

    /// The limits in force of memory, and of processor time per second in microseconds; `None` is no limit.
    fn limits(&self, cgroup: &CgroupPath) -> Result<(Option<Bytes>, Option<u64>), CgroupError> {
        let cgroup = self.root.cgroup(cgroup)?;
        let cpu = match cgroup.cpu_max() {
            // There is no such limit then.
            Err(CgroupError::Unsupported { .. }) => None,
            cpu => cpu?.rate(),
        };
        Ok((cgroup.read(Knob::Max)?.bytes(), cpu))
    }

    /// Whether the pod of a sandbox is known to have a memory limit of its own.
    pub fn has_own_memory_limit(&self, sandbox: &str) -> bool {
        lock(&self.state)
            .origins
            .get(sandbox)
            .is_some_and(|origins| matches!(origins.memory, Origin::Own(_)))
    }

    /// It has not started yet, or not ended.
    pub fn is_alive(&self, container: &Container) -> bool {
        container.is_alive(&self.root)
    }

    /// Raises a pod's limits, and tells which files were, also where another one could not be.
    fn raise(
        &self,
        state: &mut State,
        pod: &CgroupPath,
        raise: Raise,
    ) -> (Vec<Raised>, Result<(), CgroupError>) {
        let mut raised = Vec::new();
        if state.raising == Raising::Off {
            return (raised, Ok(()));
        }
        let result = self.raise_files(pod, &raise, state.raising, &mut raised);
        if !raised.is_empty()
            && state.raising == Raising::Done
            && let Ok(in_force) = self.root.cgroup(pod).and_then(|open| InForce::read(&open))
        {
            for (file, from, to) in raised.iter().cloned() {
                let limit = RaisedLimit {
                    cgroup: pod.clone(),
                    inode: in_force.inode,
                    file: file.to_owned(),
                    from,
                    to,
                };
                let remembered = lock(&self.originals).remember_raised(limit);
                self.complain(state, remembered);
            }
            self.tell_systemd(state, pod, &in_force, Some(raise));
        }
        (raised, result)
    }

    fn raise_files(
        &self,
        pod: &CgroupPath,
        raise: &Raise,
        raising: Raising,
        raised: &mut Vec<Raised>,
    ) -> Result<(), CgroupError> {
        if *raise == Raise::NONE {
            return Ok(());
        }
        let cgroup = self.root.cgroup(pod)?;
        if let Some(memory) = raise.memory
            && let Limit::Bytes(observed) = cgroup.read(Knob::Max)?
            && observed < memory.floor_to(self.page_size)
        {
            let mut desired = Limit::Bytes(memory);
            if raising == Raising::Done {
                cgroup.write(Knob::Max, desired)?;
                desired = cgroup.read(Knob::Max)?;
            }
            raised.push((Knob::Max.file_name(), observed.to_string(), desired.to_string()));
        }
        if let Some(cpu) = raise.cpu {
            let observed = match cgroup.cpu_max() {
                // There is no such limit then.
                Err(CgroupError::Unsupported { .. }) => return Ok(()),
                observed => observed?,
            };
            if let Some(rate) = observed.rate()
                && rate < cpu
            {
                let mut desired = observed.with_rate(cpu);
                if raising == Raising::Done {
                    cgroup.set_cpu_max(desired)?;
                    desired = cgroup.cpu_max()?;
                }
                raised.push((CPU_MAX, observed.to_string(), desired.to_string()));
            }
        }
        Ok(())
    }

    /// Limits of pods that were raised.
    pub fn raised_limits(&self) -> Vec<RaisedLimit> {
        lock(&self.originals).raised_limits().to_vec()
    }

    /// What the files of a cgroup's limits hold is to last, where systemd owns the cgroup.
    pub fn make_limits_last(&self, cgroup: &CgroupPath) {
        let state = lock(&self.state);
        if let Ok(in_force) = self.root.cgroup(cgroup).and_then(|open| InForce::read(&open)) {
            self.tell_systemd(&state, cgroup, &in_force, Some(Raise::NONE));
        }
    }

    /// A container has ended.
    pub fn release(&self, id: &str) {
        let mut state = lock(&self.state);
        let pod = state.tree.pod_of(id).cloned();
        let levels = state.tree.release(id);
        self.apply_levels(&mut state, levels, pod.as_ref());
    }

    /// How often the runtime has told of everything.
    pub fn synchronized(&self) -> u64 {
        lock(&self.state).synchronized
    }

    /// All is known: brings every level to what it should have, and what is no level any more to what it had.
    ///
    /// Containers that are not among the given ones are forgotten. `synchronized` is what [`Ancestors::synchronized`] said
    /// before they were looked at: if the runtime has never told of anything, or has done so again since, all is not known.
    pub fn settle(&self, containers: &HashSet<String>, policy: &Policy, synchronized: u64) {
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        if synchronized == 0 || state.synchronized != synchronized {
            return;
        }
        let gone: Vec<_> = state
            .tree
            .containers()
            .filter(|id| !containers.contains(*id))
            .map(str::to_owned)
            .collect();
        for id in gone {
            state.tree.release(&id);
        }
        let mut pods: HashSet<_> = state.tree.pods().cloned().collect();
        for sandbox in state.sandboxes.values() {
            state.tree.set_overhead(&sandbox.place, sandbox.protection(policy));
            pods.remove(sandbox.place.cgroup());
        }
        for pod in pods {
            state.tree.remove_pod(&pod);
        }
        state.hold = false;
        // What is believed may be wrong by now.
        state.in_force.clear();
        let mut cgroups = state.cgroups();
        let known: HashSet<_> = cgroups.iter().cloned().collect();
        let changed_once = {
            let originals = lock(&self.originals);
            let cgroups = originals.targets().filter_map(|target| match target {
                Target::Cgroup(path, _) if !known.contains(path) => Some(path.clone()),
                _ => None,
            });
            cgroups.collect::<Vec<_>>()
        };
        cgroups.extend(changed_once);
        self.apply(state, cgroups);
        self.report_shortfalls(state);
    }

    /// Forgets what is about containers other than these, and about cgroups that are gone.
    pub fn prune(&self, containers: &HashSet<String>) {
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        if state.synchronized == 0 {
            return;
        }
        let now = Instant::now().into_std();
        state.contention.forget_quiet(now);
        state.limits.forget_quiet(now);
        let State { tree, in_force, failing, reserved, told, left, left_limits, .. } = state;
        let is_ours = |cgroup: &CgroupPath| is_ours(tree, reserved, cgroup);
        in_force.retain(|cgroup, _| is_ours(cgroup));
        told.retain(|cgroup, _| is_ours(cgroup));
        left.retain(|(cgroup, _), _| is_ours(cgroup));
        left_limits.retain(|(cgroup, _), _| is_ours(cgroup));
        failing.retain(|(cgroup, _), _| is_ours(cgroup));
        let root = &self.root;
        let kept = lock(&self.originals).retain(|target| match target {
            Target::Container(id) => containers.contains(id),
            // In doubt it is kept.
            Target::Cgroup(path, inode) => {
                match root.cgroup(path).and_then(|cgroup| cgroup.inode()) {
                    Ok(now) => now == *inode,
                    Err(error) => !matches!(error, CgroupError::Gone(_)),
                }
            }
        });
        self.complain(state, kept);
    }

    /// The cgroups that should have something.
    pub fn cgroups(&self) -> Vec<CgroupPath> {
        lock(&self.state).cgroups()
    }

    /// The cgroups that should have something, with what each is; parents first among those of pods.
    pub fn levels(&self) -> Vec<(Level, status::Level)> {
        self.levels_of(&lock(&self.state))
    }

    fn levels_of(&self, state: &State) -> Vec<(Level, status::Level)> {
        let of_pods = state.tree.levels().into_iter().map(|level| {
            let kind =
                match level.cgroup.parent().filter(|parent| state.tree.desired(parent).is_some()) {
                    _ if state.tree.is_pod(&level.cgroup) => status::Level::Pod,
                    Some(_) => status::Level::Class,
                    None => status::Level::Kubepods,
                };
            (level, kind)
        });
        // The same one may be named for the system and for Kubernetes.
        let named: BTreeSet<_> = state.reserved.iter().map(|reserved| &reserved.cgroup).collect();
        let reserved = named.into_iter().map(|cgroup| {
            let [min, low] = self.wanted(state, cgroup);
            (
                Level { cgroup: cgroup.clone(), protection: Protection { min, low } },
                status::Level::Reserved,
            )
        });
        of_pods.chain(reserved).collect()
    }

    /// The values that the cgroups would have if the plugin did not only observe: by the claims of all containers, each with its pod's place
    /// and its id. In the same order as [`Self::levels`].
    pub fn planned_levels<'c>(
        &self,
        settings: &Settings,
        claims: impl Iterator<Item = (&'c PodPlace, &'c str, Protection)>,
    ) -> Vec<(Level, status::Level)> {
        let mut planned = {
            let state = lock(&self.state);
            let (sandboxes, origins) = (state.sandboxes.clone(), state.origins.clone());
            let (tree, reserved) = (Tree::new(settings.budget()), settings.planned_reserved());
            State { tree, sandboxes, origins, reserved, ..State::default() }
        };
        for sandbox in planned.sandboxes.values() {
            planned.tree.set_overhead(&sandbox.place, sandbox.protection(&settings.config.policy));
        }
        for (place, id, claim) in claims {
            planned.tree.claim(place, id, claim);
        }
        for (id, origins) in &planned.origins {
            if let Some(Sandbox { place, overhead, .. }) = planned.sandboxes.get(id) {
                planned.tree.set_cap(place.cgroup(), origins.cap(*overhead));
            }
        }
        self.levels_of(&planned)
    }

    /// The cgroup of all pods, once there was one.
    pub fn kubepods(&self) -> Option<CgroupPath> {
        lock(&self.state).tree.kubepods().cloned()
    }

    /// Whether this is one of the cgroups that should have something.
    pub fn contains(&self, cgroup: &CgroupPath) -> bool {
        let state = lock(&self.state);
        is_ours(&state.tree, &state.reserved, cgroup)
    }

    /// The cgroups beside the pods that are to be protected.
    pub fn reserved(&self) -> Vec<CgroupPath> {
        lock(&self.state).reserved.iter().map(|reserved| reserved.cgroup.clone()).collect()
    }

    /// Whether this is one of the cgroups that the operator names.
    pub fn is_reserved(&self, cgroup: &CgroupPath) -> bool {
        lock(&self.state).reserved.iter().any(|reserved| reserved.cgroup == *cgroup)
    }

    /// Compares a level with the kernel and repairs it. `touched`: the files that somebody has written to.
    pub fn check(&self, cgroup: &CgroupPath, touched: &[Knob]) -> Checked {
        let mut state = lock(&self.state);
        let state = &mut *state;
        let believed = state.in_force.get(cgroup).copied();
        let observed = self.root.cgroup(cgroup).and_then(|open| InForce::read(&open));
        let observed = match observed {
            Ok(observed) => observed,
            Err(error) => {
                state.in_force.remove(cgroup);
                return match error {
                    CgroupError::Gone(_) => Checked::Gone,
                    error => {
                        self.failed(state, cgroup, None, &error);
                        Checked::Settled
                    }
                };
            }
        };
        state.in_force.insert(cgroup.clone(), observed);
        let mut checked = Checked::Settled;
        state.failing.remove(&(cgroup.clone(), None));
        let wanted = self.changes(state, cgroup, &observed);
        for knob in KNOBS {
            // What is as it should be does not fail any more.
            if !wanted.iter().any(|change| change.knob == knob) {
                state.failing.remove(&(cgroup.clone(), Some(knob)));
            }
        }
        let (mut changes, mut repairs) = (Vec::new(), Vec::new());
        for change in wanted {
            if state.failing.contains_key(&(cgroup.clone(), Some(change.knob))) {
                // An attempt that fails is a write, too, to whoever watches.
                if !touched.contains(&change.knob) {
                    changes.push(change);
                }
                continue;
            }
            let key = (cgroup.clone(), change.knob);
            let is_foreign = believed.is_some_and(|before| {
                before.inode == observed.inode && before.get(change.knob) == change.to
            });
            let late = |told: &Protection| {
                let told = if change.knob == Knob::Low { told.low } else { told.min };
                change.from == Limit::Bytes(told)
            };
            if state.told.get(cgroup).is_some_and(|told| told.iter().any(late)) {
                debug!(%cgroup, knob = change.knob.file_name(), "systemd was late with an earlier value");
                changes.push(change);
                continue;
            }
            if state.leaves_changes && is_foreign {
                debug!(%cgroup, knob = change.knob.file_name(), observed = %change.from, "left as another program set it");
                state.left.insert(key, (observed.inode, change.to));
                continue;
            }
            match state.contention.judge(
                key.clone(),
                (),
                touched.contains(&change.knob),
                Instant::now().into_std(),
            ) {
                Verdict::Repair => {
                    repairs.push(change.clone());
                    changes.push(change);
                }
                Verdict::Wait(wait) => checked = Checked::Again(wait),
                Verdict::GiveUp => self.tell_contended(state, &key, change.to, change.from),
                Verdict::Leave => {}
            }
        }
        self.write(state, changes);
        for Change { cgroup, knob, from, to } in repairs {
            if state.in_force.get(&cgroup).is_some_and(|in_force| in_force.get(knob) == to) {
                self.reports
                    .tell(&(&cgroup).into(), &What::Repaired { knob, desired: to, observed: from });
            }
        }
        checked
    }

    /// Makes the values of cgroups that systemd owns last; a task of its own, as systemd takes its time.
    ///
    /// The files hold them already, so nothing is lost by that, unless systemd cannot be reached: then files are all there
    /// is, and are repaired when they are seen to change.
    pub async fn make_last(self: Arc<Self>, systemd: Systemd) {
        let mut failing = HashSet::new();
        loop {
            let lasting = self.next_lasting().await;
            let calls = lasting.into_iter().map(|(cgroup, last)| {
                let (ancestors, systemd) = (&self, &systemd);
                async move {
                    // By now there may be something newer.
                    let newer = lock(&ancestors.lasting).remove(&cgroup);
                    let last = newer
                        .map_or(last, |newer| Last { raise: newer.raise.or(last.raise), ..newer });
                    lock(&ancestors.state)
                        .told
                        .entry(cgroup.clone())
                        .or_default()
                        .push(last.protection);
                    let result = match ancestors.root.cgroup(&cgroup) {
                        Ok(open) => systemd.set(&open, last.protection, last.raise.is_some()).await,
                        Err(_) => Ok(Lasting::NoUnit),
                    };
                    ancestors.told(&cgroup, last, &result);
                    (cgroup, last, result)
                }
            });
            let done: Vec<_> = futures::stream::iter(calls).buffer_unordered(CALLS).collect().await;
            let mut pause = None;
            for (cgroup, last, result) in done {
                match result {
                    Ok(lasting) => {
                        debug!(%cgroup, ?lasting, "systemd");
                        if failing.remove(&cgroup) && failing.is_empty() {
                            info!("systemd keeps the values of its cgroups again");
                        }
                    }
                    Err(error) => {
                        if failing.is_empty() {
                            warn!(
                                %cgroup,
                                %error,
                                "systemd does not keep the values of its cgroups; they are written to the files alone, and \
                                 repaired when they change. Said once"
                            );
                        }
                        failing.insert(cgroup.clone());
                        if let Some(again) = again(&error) {
                            // Unless there is something newer.
                            lock(&self.lasting)
                                .entry(cgroup)
                                .and_modify(|newer| newer.raise = newer.raise.or(last.raise))
                                .or_insert(last);
                            pause = pause.max(Some(again));
                        }
                    }
                }
            }
            if let Some(pause) = pause {
                tokio::time::sleep(pause).await;
                self.lasting_changed.notify_one();
            }
        }
    }

    /// systemd has taken, or not taken, what it was told.
    fn told(&self, cgroup: &CgroupPath, last: Last, result: &Result<Lasting, SystemdError>) {
        let mut state = lock(&self.state);
        match result {
            Ok(set @ (Lasting::Set | Lasting::Unchanged)) => {
                state.told.insert(cgroup.clone(), vec![last.protection]);
                if *set == Lasting::Set {
                    // It has written this to the files, where there may have been something newer.
                    state.in_force.remove(cgroup);
                    self.apply(&mut state, vec![cgroup.clone()]);
                }
                // It may have written former limits before it knew of these.
                // Whoever asked for it was told already.
                if let Some(raise) = last.raise {
                    let _ = self.raise(&mut state, cgroup, raise);
                }
            }
            // It may do so yet.
            Err(SystemdError::Timeout { .. } | SystemdError::Lost { .. }) => {
                if let Some(told) = state.told.get_mut(cgroup) {
                    let surplus = told.len().saturating_sub(LATE);
                    told.drain(..surplus);
                }
            }
            // What the files hold does not come from there.
            Ok(Lasting::NoUnit) | Err(_) => _ = state.told.remove(cgroup),
        }
    }

    async fn next_lasting(&self) -> BTreeMap<CgroupPath, Last> {
        loop {
            let changed = self.lasting_changed.notified();
            let lasting = std::mem::take(&mut *lock(&self.lasting));
            if !lasting.is_empty() {
                return lasting;
            }
            changed.await;
        }
    }

    /// Brings what an event has changed to its values: the levels above the event's pod now, the shares of other pods soon.
    fn apply_levels(&self, state: &mut State, levels: Vec<Level>, pod: Option<&CgroupPath>) {
        let mut cgroups: Vec<_> = levels.into_iter().map(|level| level.cgroup).collect();
        if cgroups.len() > AT_ONCE {
            cgroups.retain(|cgroup| Some(cgroup) == pod || !state.tree.is_pod(cgroup));
            self.shares_changed.notify_one();
        } else if state.tree.is_short() || !state.short.is_empty() {
            self.shares_changed.notify_one();
        }
        self.apply(state, cgroups);
    }

    /// Waits until the shares of pods have changed.
    pub async fn shares_changed(&self) {
        self.shares_changed.notified().await;
    }

    /// Brings all cgroups to what they should have, some at a time, and reports whose shares have changed.
    pub async fn share(&self) {
        for cgroups in self.cgroups().chunks(AT_ONCE) {
            self.apply(&mut lock(&self.state), cgroups.to_vec());
            // Events do not wait for all of it.
            tokio::task::yield_now().await;
        }
        let mut state = lock(&self.state);
        if !state.hold {
            self.report_shortfalls(&mut state);
        }
    }

    /// Brings cgroups, given parents first, to what they should have.
    fn apply(&self, state: &mut State, cgroups: Vec<CgroupPath>) {
        let mut changes = Vec::new();
        for cgroup in cgroups {
            let observed = match state.in_force.get(&cgroup) {
                Some(observed) => *observed,
                None => match self.root.cgroup(&cgroup).and_then(|open| InForce::read(&open)) {
                    Ok(observed) => {
                        state.failing.remove(&(cgroup.clone(), None));
                        state.in_force.insert(cgroup.clone(), observed);
                        observed
                    }
                    Err(error) => {
                        self.failed(state, &cgroup, None, &error);
                        continue;
                    }
                },
            };
            changes.extend(self.changes(state, &cgroup, &observed));
        }
        self.write(state, changes);
    }

    /// What nothing is wanted of, and has back what it had, is left alone from then on.
    fn let_go(&self, state: &mut State, cgroup: &CgroupPath) {
        let Some(in_force) = state.in_force.get(cgroup).copied() else { return };
        if self.wanted(state, cgroup) != [Bytes::ZERO; 2] {
            return;
        }
        let target = Target::Cgroup(cgroup.clone(), in_force.inode);
        let mut originals = lock(&self.originals);
        let is_back = |values: Values| {
            KNOBS.into_iter().all(|knob| values.get(knob) == Some(in_force.get(knob)))
        };
        if originals.get(&target).is_some_and(is_back) {
            let result = originals.restored(&target);
            drop(originals);
            self.complain(state, result);
        }
    }

    fn wanted(&self, state: &State, cgroup: &CgroupPath) -> [Bytes; 2] {
        let reserved = state.reserved.iter().filter(|reserved| reserved.cgroup == *cgroup);
        let reserved =
            reserved.fold(Bytes::ZERO, |sum, reserved| sum.saturating_add(reserved.memory));
        let desired = state.tree.desired(cgroup).unwrap_or_default();
        [reserved.max(desired.min), desired.low]
    }

    /// What has to change for a cgroup to have what it should.
    fn changes(&self, state: &State, cgroup: &CgroupPath, observed: &InForce) -> Vec<Change> {
        let targets = KNOBS.into_iter().zip(self.targets(state, cgroup, observed));
        let changes = targets.map(|(knob, to)| Change {
            cgroup: cgroup.clone(),
            knob,
            from: observed.get(knob),
            to,
        });
        let is_left = |change: &Change| {
            state.is_left(&(cgroup.clone(), change.knob), observed.inode, change.to)
        };
        let is_due = |change: &Change| {
            change.from != change.to && (change.raises() || !state.hold) && !is_left(change)
        };
        changes.filter(is_due).collect()
    }

    /// What the files of a cgroup should hold.
    fn targets(&self, state: &State, cgroup: &CgroupPath, observed: &InForce) -> [Limit; 2] {
        let wanted = self.wanted(state, cgroup);
        [0, 1].map(|index| {
            if wanted[index] > Bytes::ZERO {
                return Limit::Bytes(wanted[index].floor_to(self.page_size));
            }
            let target = Target::Cgroup(cgroup.clone(), observed.inode);
            match lock(&self.originals).get(&target) {
                Some(values) => values.get(KNOBS[index]).unwrap_or(Limit::Bytes(Bytes::ZERO)),
                // It was never changed.
                None => observed.get(KNOBS[index]),
            }
        })
    }

    /// Writes changes that were found parents first, in the order that loses no child's protection.
    fn write(&self, state: &mut State, changes: Vec<Change>) {
        let (raising, mut lowering): (Vec<_>, Vec<_>) =
            changes.into_iter().partition(Change::raises);
        lowering.reverse();
        for change in raising.into_iter().chain(lowering) {
            let Change { cgroup, knob, from, to } = &change;
            match self.write_one(state, &change) {
                Ok(()) => {
                    self.let_go(state, cgroup);
                    state.failing.remove(&(cgroup.clone(), Some(*knob)));
                    debug!(%cgroup, knob = knob.file_name(), desired = %to, observed = %from, "written");
                }
                Err(error) => {
                    state.in_force.remove(cgroup);
                    self.failed(state, cgroup, Some(&change), &error);
                }
            }
        }
    }

    fn write_one(&self, state: &mut State, change: &Change) -> Result<(), CgroupError> {
        let cgroup = self.root.cgroup(&change.cgroup)?;
        let inode = cgroup.inode()?;
        let in_force = match state.in_force.get(&change.cgroup) {
            Some(in_force) if in_force.inode == inode => *in_force,
            // Another one with its path.
            _ => InForce::read(&cgroup)?,
        };
        let target = Target::Cgroup(change.cgroup.clone(), inode);
        let values = Values { min: Some(in_force.min), low: Some(in_force.low), high: None };
        let remembered = lock(&self.originals).remember(target, values);
        self.complain(state, remembered);
        cgroup.write(change.knob, change.to)?;
        let mut in_force = in_force;
        in_force.set(change.knob, change.to);
        state.in_force.insert(change.cgroup.clone(), in_force);
        self.tell_systemd(state, &change.cgroup, &in_force, None);
        Ok(())
    }

    /// systemd is to be told of a cgroup, if it may be its own: not of what the files hold, since one of them may be about to
    /// be repaired.
    fn tell_systemd(
        &self,
        state: &State,
        cgroup: &CgroupPath,
        in_force: &InForce,
        raise: Option<Raise>,
    ) {
        if ![".slice", ".scope", ".service"].iter().any(|suffix| cgroup.name().ends_with(suffix)) {
            return;
        }
        let [mut min, mut low] = self.targets(state, cgroup, in_force);
        if state.hold {
            (min, low) = (min.max(in_force.min), low.max(in_force.low));
        }
        let protection = Protection::of_files(min, low);
        let mut lasting = lock(&self.lasting);
        let last = lasting.entry(cgroup.clone()).or_insert(Last { protection, raise });
        *last = Last { protection, raise: raise.or(last.raise) };
        self.lasting_changed.notify_one();
    }

    /// Something of a cgroup cannot be read or written: it is said once, and tried again soon.
    fn failed(
        &self,
        state: &mut State,
        cgroup: &CgroupPath,
        change: Option<&Change>,
        error: &CgroupError,
    ) {
        if let CgroupError::Gone(_) = error {
            // A pod's cgroup may be made with its first container, and goes before the runtime tells.
            debug!(%cgroup, "no such cgroup");
            return;
        }
        let failures =
            state.failing.entry((cgroup.clone(), change.map(|change| change.knob))).or_default();
        *failures += 1;
        if *failures <= TRIES {
            self.shares_changed.notify_one();
        }
        if *failures == 1 {
            warn!(
                %cgroup,
                knob = change.map(|change| change.knob.file_name()),
                desired = change.map(|change| tracing::field::display(change.to)),
                observed = change.map(|change| tracing::field::display(change.from)),
                %error,
                outcome = %Outcome::of(error),
                "what lies in this cgroup may not be protected; it is tried again soon, and then with every event. If that \
                 does not help, see whether cgroupfs is mounted read-write here, and the plugin runs as root. Said once"
            );
        }
    }

    fn complain(&self, state: &mut State, result: io::Result<()>) {
        if let Err(error) = &result
            && !state.originals_failing
        {
            warn!(%error, "cannot write down what cgroups held before; 'plimsoll restore' will not know it after a restart");
        }
        state.originals_failing = result.is_err();
    }

    fn report_shortfalls(&self, state: &mut State) {
        let shortfalls = state.tree.shortfalls();
        let (old, new): (Vec<_>, Vec<_>) =
            shortfalls.into_iter().partition(|shortfall| state.short.contains(&shortfall.pod));
        for shortfall in new.iter().take(NAMED) {
            warn!(
                cgroup = %shortfall.pod,
                asked_min = shortfall.asked.min.quantity(),
                gets_min = shortfall.gets.min.quantity(),
                asked_low = shortfall.asked.low.quantity(),
                gets_low = shortfall.gets.low.quantity(),
                "pods ask for more protection than node allocatable; this one gets less than it asks for"
            );
        }
        if new.len() > NAMED {
            warn!("and {} more pods get less protection than they ask for", new.len() - NAMED);
        }
        let short: HashSet<_> = old.into_iter().chain(new).map(|shortfall| shortfall.pod).collect();
        for pod in state.short.difference(&short).take(NAMED) {
            info!(cgroup = %pod, "the pod gets all that it asks for again, or is gone");
        }
        state.short = short;
    }
}

fn cannot_raise(container: &Container, cgroup: &CgroupPath, error: &CgroupError) {
    warn!(
        pod = container.pod,
        container = container.name,
        %cgroup,
        %error,
        outcome = %Outcome::of(error),
        "cannot raise the pod's limits, which may be tighter than what its containers may use"
    );
}

/// When to try again what failed; `None` where that is no use.
fn again(error: &SystemdError) -> Option<Duration> {
    match error {
        SystemdError::Paused { pause, .. } => Some(*pause),
        SystemdError::Connect { .. } | SystemdError::Timeout { .. } | SystemdError::Lost { .. } => {
            Some(Duration::from_secs(1))
        }
        SystemdError::Denied { .. } | SystemdError::Failed { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::systemd::fake::{Host, Mood, POD};
    use crate::core::pod::QosClass;

    const KUBEPODS: &str = "kubepods.slice";

    /// A guaranteed pod, whose slice is a unit, on a host with a systemd.
    struct Arranged {
        host: Host,
        place: PodPlace,
        ancestors: Arc<Ancestors>,
    }

    impl Arranged {
        fn new() -> Self {
            let host = Host::new().with_bus();
            for cgroup in [KUBEPODS, POD] {
                host.cgroup(cgroup, &[("memory.min", "0"), ("memory.low", "0")]);
            }
            let originals = Arc::new(Mutex::new(Originals::none(host.directory.path())));
            let place = PodPlace::new(path(POD), QosClass::Guaranteed).unwrap();
            let ancestors = Arc::new(Ancestors::new(
                Arc::new(host.root()),
                PageSize::KIB4,
                originals,
                Arc::default(),
            ));
            Self { host, place, ancestors }
        }

        fn make_last(&self) {
            tokio::spawn(self.ancestors.clone().make_last(self.host.systemd()));
        }

        fn claim(&self, min: u64) {
            self.ancestors.claim(
                &self.place,
                "app",
                Protection { min: Bytes::new(min), low: Bytes::ZERO },
            );
        }

        fn write(&self, min: u64) {
            self.host.cgroup(POD, &[("memory.min", &min.to_string())]);
        }

        fn check(&self) -> Checked {
            self.ancestors.check(&path(POD), &[Knob::Min])
        }

        fn min(&self) -> Limit {
            self.host.root().cgroup(&path(POD)).unwrap().read(Knob::Min).unwrap()
        }

        /// What systemd was told of memory.min, one after the other.
        fn told(&self) -> Vec<u64> {
            let settings = |call: &(_, _, Vec<(String, u64)>)| {
                call.2.iter().find(|(name, _)| name == "MemoryMin").map(|(_, value)| *value)
            };
            self.host.fake().set.iter().filter_map(settings).collect()
        }

        async fn until(&self, what: &str, is_so: impl Fn() -> bool) {
            let looks = async {
                while !is_so() {
                    tokio::task::yield_now().await;
                }
            };
            let looked = tokio::time::timeout(Duration::from_secs(30), looks).await;
            assert!(
                looked.is_ok(),
                "{what}: memory.min is {}, systemd was told {:?}",
                self.min(),
                self.told()
            );
        }
    }

    fn path(path: &str) -> CgroupPath {
        CgroupPath::parse(path).unwrap()
    }

    fn bytes(bytes: u64) -> Limit {
        Limit::Bytes(Bytes::new(bytes))
    }

    #[tokio::test]
    async fn systemd_is_never_told_what_somebody_else_wrote() {
        let arranged = Arranged::new();
        // How soon one repair follows another decides what is repaired.
        tokio::time::pause();
        arranged.claim(8192);
        for _ in 0..2 {
            arranged.write(4096);
            assert_eq!(arranged.check(), Checked::Settled);
            assert_eq!(arranged.min(), bytes(8192));
        }
        // Left for a while.
        arranged.write(4096);
        assert!(matches!(arranged.check(), Checked::Again(_)));
        tokio::time::resume();
        arranged.make_last();
        arranged.until("told", || !arranged.told().is_empty()).await;
        assert_eq!(arranged.told(), [8192]);
    }

    #[tokio::test]
    async fn a_foreign_write_counts_while_systemd_is_told() {
        let arranged = Arranged::new();
        arranged.host.fake().mood = Mood::Late;
        arranged.make_last();
        arranged.claim(8192);
        arranged.until("told", || !arranged.told().is_empty()).await;
        tokio::time::pause();
        for repairs in 1..=2 {
            arranged.write(0);
            arranged.check();
            assert_eq!(
                lock(&arranged.ancestors.state).contention.repairs(&(path(POD), Knob::Min)),
                repairs
            );
        }
        arranged.write(0);
        assert!(matches!(arranged.check(), Checked::Again(_)));
    }

    #[tokio::test]
    async fn what_systemd_writes_late_does_not_outlast_what_is_newer_and_is_nobody_elses() {
        let arranged = Arranged::new();
        arranged.host.fake().mood = Mood::Late;
        let writes = arranged.host.fake().writes.clone();
        arranged.make_last();
        let values = [8192, 4096, 16384, 12288];
        arranged.claim(values[0]);
        for (index, newer) in values.into_iter().enumerate().skip(1) {
            arranged.until("told", || arranged.told().len() == index).await;
            arranged.claim(newer);
            assert_eq!(arranged.min(), bytes(newer));
            writes.add_permits(1);
            // Nobody checks it, or the watch does, before or after systemd is known to be done.
            if index == 2 {
                arranged.until("late", || arranged.min() != bytes(newer)).await;
                assert_eq!(arranged.check(), Checked::Settled);
            }
            arranged.until("newer", || arranged.told().last() == Some(&newer)).await;
            assert_eq!(arranged.min(), bytes(newer));
        }
        writes.add_permits(1);
        arranged.until("told all", || writes.available_permits() == 0).await;
        assert_eq!(arranged.told(), values);
        assert_eq!(lock(&arranged.ancestors.state).contention.repairs(&(path(POD), Knob::Min)), 0);
    }
}
