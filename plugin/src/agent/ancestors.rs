//! Protection of the cgroups above the containers, and of the reserved cgroups outside kubepods.
//!
//! [`Tree`] computes the desired value of each level. This module writes the values to the cgroup
//! files. A write takes microseconds, so every ancestor cgroup holds its new value before the
//! plugin answers the event. If systemd owns the cgroup, systemd also gets the value
//! ([`Ancestors::make_last`]).
//!
//! The plugin raises parents before their children, and lowers them after their children. No child
//! loses protection in between.
//!
//! [`Originals`] records the values of a cgroup before its first change. The plugin restores these
//! values when it no longer protects anything in the cgroup.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt as _;
use plimsoll_core::incident::Incident;
use plimsoll_core::outcome::Outcome;
use plimsoll_core::pod::{CgroupPath, PodCgroup, PodUid, QosClass};
use plimsoll_core::policy::contention::{Contention, Verdict};
use plimsoll_core::policy::hierarchy::{Level, PodPlace, Tree};
use plimsoll_core::policy::pod_limit::{Evidence, Origin, Unit};
use plimsoll_core::policy::resize::Raise;
use plimsoll_core::policy::{self, Policy, Protection};
use plimsoll_core::requests;
use plimsoll_core::requests::annotation::Overrides;
use plimsoll_core::units::{Bytes, CPU_MAX, CpuMax, Knob, Limit, PageSize};
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::cgroup::systemd::{Lasting, Systemd, SystemdError};
use crate::cgroup::{Cgroup, CgroupError, CgroupRoot};
use crate::config::Reserved;
use crate::lock;
use crate::report::{Reports, status};
use crate::state::brake::Cause;
use crate::state::container::Container;
use crate::state::originals::{Originals, RaisedLimit, Target, Values};
use crate::state::pod_view::PodView;
use crate::state::settings::Settings;

/// Maximum number of concurrent calls to systemd.
const CALLS: usize = 8;

/// Maximum number of cgroups that the plugin writes before it answers an event. If all pods
/// together ask for more than the budget, each new or removed pod changes the shares of all others.
/// The reconcile task writes those shares later.
const AT_ONCE: usize = 8;

/// Maximum number of quick retries for a file that fails. They happen within seconds. Afterwards
/// the plugin retries with the next event.
const TRIES: u32 = 10;

/// Maximum number of unconfirmed values per cgroup that the plugin remembers. systemd may still
/// write these values to the files.
const LATE: usize = 4;

/// Maximum number of pods that one report of shortfalls names.
const NAMED: usize = 20;

/// Files that the plugin sets above the containers.
const KNOBS: [Knob; 2] = [Knob::Min, Knob::Low];

/// The cgroups above the containers, and the reserved cgroups.
#[derive(Debug)]
pub struct Ancestors {
    root: Arc<CgroupRoot>,
    page_size: PageSize,
    originals: Arc<Mutex<Originals>>,
    reports: Arc<Reports>,
    state: Mutex<State>,
    /// Values to send to systemd, by cgroup. A newer value replaces an older one.
    lasting: Mutex<BTreeMap<CgroupPath, Last>>,
    lasting_changed: Notify,
    /// Signal: the shares of pods have changed, or a file needs a quick retry.
    shares_changed: Notify,
}

/// Values that systemd should keep for one cgroup.
#[derive(Clone, Copy, Debug)]
struct Last {
    protection: Protection,
    /// Raised limits. If this is `Some`, systemd should also keep the limits that the files hold.
    raise: Option<Raise>,
}

#[derive(Debug, Default)]
struct State {
    tree: Tree,
    /// Sandboxes of the pods, by sandbox ID.
    sandboxes: HashMap<String, Sandbox>,
    reserved: Vec<Reserved>,
    /// Values that the files are known to hold.
    in_force: HashMap<CgroupPath, InForce>,
    /// Whether the plugin must not lower any value, because the tree does not contain all
    /// containers yet.
    hold: bool,
    /// Whether the plugin leaves changes by other programs in place (`repair: false`).
    leaves_changes: bool,
    /// Files that the plugin leaves as another program set them, with the cgroup's inode and the
    /// desired value. The plugin leaves a file until the desired value changes.
    left: HashMap<(CgroupPath, Knob), (u64, Limit)>,
    raising: Raising,
    /// Limits of pods that the plugin leaves as another program set them, with the pod cgroup's
    /// inode and the desired limit. The limit is in bytes for memory, and in microseconds per
    /// second for CPU.
    left_limits: HashMap<(CgroupPath, &'static str), (u64, u64)>,
    /// Repair history of each file. A new desired value does not start a new history, because each
    /// new pod changes the desired value.
    contention: Contention<(CgroupPath, Knob), ()>,
    /// Repair history of each limit of a pod. A new desired limit starts a new history, because it
    /// comes from a new request of the user.
    limits: Contention<(CgroupPath, &'static str), u64>,
    /// Number of synchronizations with the runtime.
    synchronized: u64,
    /// Values that the plugin has sent to systemd: the last confirmed one and the unconfirmed ones.
    /// The files may get these values later, when a newer value is desired.
    told: HashMap<CgroupPath, Vec<Protection>>,
    /// Origins of the pods' limits, by sandbox ID.
    origins: HashMap<String, Origins>,
    /// Number of failures to write a file, or to read a cgroup (`None`). Only the first failure is
    /// logged.
    failing: HashMap<(CgroupPath, Option<Knob>), u32>,
    /// Pods that the log has named because they get less than they ask for.
    short: HashSet<CgroupPath>,
    originals_failing: bool,
}

/// Handling of pod limits that are lower than what the containers may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Raising {
    /// The plugin raises them.
    #[default]
    Done,
    /// Observe mode: the plugin only reports that it would raise them.
    Planned,
    /// The plugin leaves them unchanged.
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
    /// Returns whether the plugin leaves the file to another program, and `desired` is unchanged
    /// since then.
    fn is_left(&self, file: &(CgroupPath, Knob), inode: u64, desired: Limit) -> bool {
        self.left.get(file) == Some(&(inode, desired))
    }

    /// Returns all managed cgroups: the levels of the tree with parents first, then the reserved
    /// cgroups.
    fn cgroups(&self) -> Vec<CgroupPath> {
        let levels = self.tree.levels().into_iter().map(|level| level.cgroup);
        levels.chain(self.reserved.iter().map(|reserved| reserved.cgroup.clone())).collect()
    }
}

/// Returns whether the plugin manages the cgroup.
fn is_ours(tree: &Tree, reserved: &[Reserved], cgroup: &CgroupPath) -> bool {
    tree.desired(cgroup).is_some() || reserved.iter().any(|reserved| reserved.cgroup == *cgroup)
}

/// Origins of a pod's limits, as far as evidence has proven them.
#[derive(Clone, Copy, Debug, Default)]
struct Origins {
    memory: Origin,
    cpu: Origin,
    /// Whether the log has explained why the pod's low limits stay.
    is_said: bool,
}

impl Origins {
    /// Returns the most that the pod may claim: its own memory limit plus its overhead. Returns
    /// `None` if the pod is not known to have its own limit.
    fn cap(&self, overhead: Bytes) -> Option<Bytes> {
        match self.memory {
            Origin::Own(own) => Some(Bytes::new(own).saturating_add(overhead)),
            Origin::Sum | Origin::Unknown => None,
        }
    }
}

/// The sandbox of a pod, kept as long as the runtime has the sandbox.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// ID of the sandbox in the runtime.
    pub id: String,
    /// The pod's cgroup and the cgroups above it.
    pub place: PodPlace,
    /// Memory that the pod uses beyond its containers, from its RuntimeClass.
    pub overhead: Bytes,
    /// CPU time that the pod uses beyond its containers, in microseconds per second.
    pub cpu_overhead: u64,
    /// Memory limit that the kubelet gave the pod, without overhead. `None` if there is no limit,
    /// or if the runtime does not report it.
    pub memory_limit: Option<Bytes>,
    /// CPU limit that the kubelet gave the pod, without overhead. The unit is microseconds per
    /// second.
    pub cpu_limit: Option<u64>,
    /// Overrides from the pod's annotations.
    pub overrides: Overrides,
}

impl Sandbox {
    fn protection(&self, node: &Policy) -> Protection {
        let (policy, _) = requests::overridden(node, &self.overrides);
        policy::overhead(self.overhead, self.place.class(), &policy)
    }
}

/// Values that the files of a cgroup hold.
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

/// A raised limit: file name, value before the raise and value read back. In observe mode the last
/// one is the desired value.
type Raised = (&'static str, String, String);

/// Result of [`Ancestors::check`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checked {
    /// The cgroup has its desired values, or the plugin leaves them as they are.
    Settled,
    /// The cgroup must be checked again after this time.
    Again(Duration),
    /// The cgroup no longer exists.
    Gone,
}

impl Ancestors {
    /// Creates the state of a node without pods.
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

    /// Applies new settings: the budget for the protection of all pods, and the reserved cgroups.
    /// The budget excludes memory that is reserved for these cgroups, so no memory is promised
    /// twice.
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

    /// Adds the sandbox of a pod.
    pub fn sandbox(&self, sandbox: Sandbox, policy: &Policy) {
        let mut state = lock(&self.state);
        let levels = state.tree.set_overhead(&sandbox.place, sandbox.protection(policy));
        let pod = sandbox.place.cgroup().clone();
        // The pod may be new. Its cgroups may then also be new, so their known values do not count.
        for level in &levels {
            state.in_force.remove(&level.cgroup);
        }
        state.sandboxes.insert(sandbox.id.clone(), sandbox);
        self.apply_levels(&mut state, levels, Some(&pod));
    }

    /// Replaces all sandboxes by those that the runtime reported. The plugin lowers no value until
    /// [`Ancestors::settle`], because it does not know all containers yet.
    pub fn synchronize(&self, sandboxes: Vec<Sandbox>) {
        let mut state = lock(&self.state);
        state.synchronized += 1;
        state.hold = true;
        state.sandboxes =
            sandboxes.into_iter().map(|sandbox| (sandbox.id.clone(), sandbox)).collect();
        let State { sandboxes, origins, .. } = &mut *state;
        origins.retain(|sandbox, _| sandboxes.contains_key(sandbox));
    }

    /// Returns the UIDs of the pods that have a sandbox.
    pub fn pods(&self) -> HashSet<PodUid> {
        let state = lock(&self.state);
        let pods = state
            .sandboxes
            .values()
            .filter_map(|sandbox| PodCgroup::parse(sandbox.place.cgroup().as_str()));
        pods.map(|pod| pod.uid).collect()
    }

    /// Returns whether there is a sandbox with this ID.
    pub fn is_sandbox(&self, id: &str) -> bool {
        lock(&self.state).sandboxes.contains_key(id)
    }

    /// Removes a sandbox that has ended. The pod stays known if it has another sandbox.
    pub fn sandbox_ended(&self, id: &str) {
        let mut state = lock(&self.state);
        state.origins.remove(id);
        let Some(Sandbox { place, .. }) = state.sandboxes.remove(id) else { return };
        if state.sandboxes.values().any(|other| other.place.cgroup() == place.cgroup()) {
            return;
        }
        let levels = state.tree.remove_pod(place.cgroup());
        // The pod's cgroup lies below the changed levels, so it must be lowered first.
        self.apply(&mut state, vec![place.cgroup().clone()]);
        self.apply_levels(&mut state, levels, None);
    }

    /// Sets a container's claim.
    pub fn claim(&self, place: &PodPlace, id: &str, claim: Protection) {
        let mut state = lock(&self.state);
        let levels = state.tree.claim(place, id, claim);
        self.apply_levels(&mut state, levels, Some(place.cgroup()));
    }

    /// Raises a container's claim to `claim`. A larger current claim counts until the container's
    /// new values are verified.
    pub fn claim_at_least(&self, place: &PodPlace, id: &str, claim: Protection) {
        let mut state = lock(&self.state);
        let now = state.tree.claim_of(id).unwrap_or_default();
        let levels = state.tree.claim(place, id, claim.max(now));
        self.apply_levels(&mut state, levels, Some(place.cgroup()));
    }

    /// Raises the limits of a pod before one of its containers gets its own limits. The new limits
    /// are the sum of what the containers may then use. A pod limit is raised only if its origin is
    /// known to be such a sum. The plugin never lowers a pod limit, because this is the kubelet's
    /// task.
    pub fn raise_limits(&self, container: &Container, pod: &PodView) {
        self.raise_where_allowed(container, pod, false);
    }

    /// Raises the limits of a pod as [`Self::raise_limits`] does, after another program has written
    /// one of them. Repeated raises back off. Returns the time to wait if the next raise is not due
    /// yet.
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
            // The pod's cgroup may not exist before the pod's first container.
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
            // This is no warning, because a low pod limit is usually intended.
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
        // A Guaranteed pod requests as much as its limit. Its limit therefore caps the claim, even
        // if the origin of the limit is unknown.
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
        // Memory and CPU are independent: a contended limit of one does not stop the other.
        if state.raising == Raising::Done {
            let memory = raise.memory.map(|to| to.floor_to(self.page_size));
            if let (Some(observed), Some(desired)) = (memory_in_force, memory)
                && observed < desired
            {
                let file = (place.cgroup().clone(), Knob::Max.file_name());
                let [now, to] = [observed, desired].map(Limit::Bytes);
                let is_lowered = is_touched || self.was_raised(&file, |raised: Limit| raised >= to);
                let contended = |repairs| Incident::Contended {
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
                    |repairs| Incident::CpuContended { desired: to, observed: now, repairs };
                if self.may_raise(state, file, is_lowered, desired, contended).is_err() {
                    raise.cpu = None;
                }
            }
        }
        let (raised, result) = self.raise(state, place.cgroup(), raise);
        for (file, observed, desired) in &raised {
            let (desired, observed) = (desired.clone(), observed.clone());
            let what = Incident::PodRaised { knob: file, desired, observed };
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

    /// Decides whether a pod's limit may be raised to `desired`. If another program has lowered the
    /// limit, repeated raises back off and then stop. Returns the time to wait in `Err` if a later
    /// try is useful.
    fn may_raise(
        &self,
        state: &mut State,
        file: (CgroupPath, &'static str),
        is_lowered: bool,
        desired: u64,
        contended: impl FnOnce(u32) -> Incident,
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

    /// Returns whether the plugin has raised the file to a value for which `is_it` is true. If the
    /// file holds less now, another program has lowered it.
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

    /// Reports that the plugin leaves a file to the program that keeps changing it.
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
            .tell(&cgroup.into(), &Incident::Contended { knob: *knob, desired, observed, repairs });
    }

    /// Returns the limits in force: memory, and CPU time in microseconds per second. `None` is no
    /// limit.
    fn limits(&self, cgroup: &CgroupPath) -> Result<(Option<Bytes>, Option<u64>), CgroupError> {
        let cgroup = self.root.cgroup(cgroup)?;
        let cpu = match cgroup.cpu_max() {
            // Without the CPU controller there is no CPU limit.
            Err(CgroupError::Unsupported { .. }) => None,
            cpu => cpu?.rate(),
        };
        Ok((cgroup.read(Knob::Max)?.bytes(), cpu))
    }

    /// Returns whether the pod of this sandbox is known to have its own memory limit.
    pub fn has_own_memory_limit(&self, sandbox: &str) -> bool {
        lock(&self.state)
            .origins
            .get(sandbox)
            .is_some_and(|origins| matches!(origins.memory, Origin::Own(_)))
    }

    /// Returns whether the container has not started yet, or has not ended yet.
    pub fn is_alive(&self, container: &Container) -> bool {
        container.is_alive(&self.root)
    }

    /// Raises a pod's limits. Returns the raised files, even if another file could not be written.
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
                // Without the CPU controller there is no CPU limit.
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

    /// Returns the limits of pods that the plugin has raised.
    pub fn raised_limits(&self) -> Vec<RaisedLimit> {
        lock(&self.originals).raised_limits().to_vec()
    }

    /// Makes systemd keep the limits that the cgroup's files hold, if systemd owns the cgroup.
    pub fn make_limits_last(&self, cgroup: &CgroupPath) {
        let state = lock(&self.state);
        if let Ok(in_force) = self.root.cgroup(cgroup).and_then(|open| InForce::read(&open)) {
            self.tell_systemd(&state, cgroup, &in_force, Some(Raise::NONE));
        }
    }

    /// Removes the claim of a container that has ended.
    pub fn release(&self, id: &str) {
        let mut state = lock(&self.state);
        let pod = state.tree.pod_of(id).cloned();
        let levels = state.tree.release(id);
        self.apply_levels(&mut state, levels, pod.as_ref());
    }

    /// Returns the number of synchronizations with the runtime.
    pub fn synchronized(&self) -> u64 {
        lock(&self.state).synchronized
    }

    /// Writes the desired values of all levels. Restores the original values of cgroups that the
    /// plugin has changed earlier and no longer manages.
    ///
    /// The caller has examined all containers. Claims of containers outside `containers` are
    /// dropped. `synchronized` is the result of [`Ancestors::synchronized`] before the caller
    /// examined the containers. Without a synchronization or after a newer one, not all containers
    /// are known. The call then does nothing.
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
        // Other programs may have changed the files, so read them again.
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

    /// Forgets containers that are not in `containers`, and cgroups that no longer exist.
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
            // Keep the original values if it is unknown whether the cgroup exists.
            Target::Cgroup(path, inode) => {
                match root.cgroup(path).and_then(|cgroup| cgroup.inode()) {
                    Ok(now) => now == *inode,
                    Err(error) => !matches!(error, CgroupError::Gone(_)),
                }
            }
        });
        self.complain(state, kept);
    }

    /// Returns all managed cgroups.
    pub fn cgroups(&self) -> Vec<CgroupPath> {
        lock(&self.state).cgroups()
    }

    /// Returns all managed cgroups with their values and kinds. Among the cgroups of pods, parents
    /// come first.
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
        // The configuration may name one cgroup for both the system and Kubernetes.
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

    /// Returns the values that the cgroups would have in enforce mode, in the order of
    /// [`Self::levels`]. `claims` are the claims of all containers, each with its pod's place and
    /// the container ID.
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

    /// Returns the cgroup of all pods, if a pod was seen.
    pub fn kubepods(&self) -> Option<CgroupPath> {
        lock(&self.state).tree.kubepods().cloned()
    }

    /// Returns whether the plugin manages the cgroup.
    pub fn contains(&self, cgroup: &CgroupPath) -> bool {
        let state = lock(&self.state);
        is_ours(&state.tree, &state.reserved, cgroup)
    }

    /// Returns the reserved cgroups, which lie outside kubepods.
    pub fn reserved(&self) -> Vec<CgroupPath> {
        lock(&self.state).reserved.iter().map(|reserved| reserved.cgroup.clone()).collect()
    }

    /// Returns whether the cgroup is a reserved one, named in the configuration or chosen by
    /// `nodeGuard`.
    pub fn is_reserved(&self, cgroup: &CgroupPath) -> bool {
        lock(&self.state).reserved.iter().any(|reserved| reserved.cgroup == *cgroup)
    }

    /// Compares a cgroup with the kernel and repairs it. `touched` lists the files for which
    /// inotify reported a write.
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
            // A file with the desired value no longer counts as failing.
            if !wanted.iter().any(|change| change.knob == knob) {
                state.failing.remove(&(cgroup.clone(), Some(knob)));
            }
        }
        let (mut changes, mut repairs) = (Vec::new(), Vec::new());
        for change in wanted {
            if state.failing.contains_key(&(cgroup.clone(), Some(change.knob))) {
                // inotify also reports the plugin's own failed write. Such a report must not cause
                // another retry.
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
                self.reports.tell(
                    &(&cgroup).into(),
                    &Incident::Repaired { knob, desired: to, observed: from },
                );
            }
        }
        checked
    }

    /// Makes systemd keep the values of the cgroups that it owns. This is a separate task, because
    /// systemd may answer slowly.
    ///
    /// The files hold the values already, so a slow answer loses no protection. If systemd is
    /// unreachable, only the files hold the values. The plugin then repairs them when it sees a
    /// change.
    pub async fn make_last(self: Arc<Self>, systemd: Systemd) {
        let mut failing = HashSet::new();
        loop {
            let lasting = self.next_lasting().await;
            let calls = lasting.into_iter().map(|(cgroup, last)| {
                let (ancestors, systemd) = (&self, &systemd);
                async move {
                    // A newer value may have arrived, which replaces this one.
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
                            // Keep a newer value if there is one.
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

    /// Handles systemd's answer for a cgroup.
    fn told(&self, cgroup: &CgroupPath, last: Last, result: &Result<Lasting, SystemdError>) {
        let mut state = lock(&self.state);
        match result {
            Ok(set @ (Lasting::Set | Lasting::Unchanged)) => {
                state.told.insert(cgroup.clone(), vec![last.protection]);
                if *set == Lasting::Set {
                    // systemd has written this value to the files, where a newer value may be
                    // desired now.
                    state.in_force.remove(cgroup);
                    self.apply(&mut state, vec![cgroup.clone()]);
                }
                // systemd may have written older limits before it got these, so raise the limits
                // again. The first raise has been reported already.
                if let Some(raise) = last.raise {
                    let _ = self.raise(&mut state, cgroup, raise);
                }
            }
            // systemd may still write these values later.
            Err(SystemdError::Timeout { .. } | SystemdError::Lost { .. }) => {
                if let Some(told) = state.told.get_mut(cgroup) {
                    let surplus = told.len().saturating_sub(LATE);
                    told.drain(..surplus);
                }
            }
            // systemd has not accepted the value, so values in the files do not come from systemd.
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

    /// Writes the levels that an event has changed. The levels above the event's pod are written
    /// now. The reconcile task writes the shares of the other pods soon.
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

    /// Waits until the shares of pods have changed, or a file needs a quick retry.
    pub async fn shares_changed(&self) {
        self.shares_changed.notified().await;
    }

    /// Writes the desired values of all managed cgroups in batches. Then reports the pods that
    /// newly get less than they ask for, or get all of it again.
    pub async fn share(&self) {
        for cgroups in self.cgroups().chunks(AT_ONCE) {
            self.apply(&mut lock(&self.state), cgroups.to_vec());
            // Event handlers may take the lock between two batches.
            tokio::task::yield_now().await;
        }
        let mut state = lock(&self.state);
        if !state.hold {
            self.report_shortfalls(&mut state);
        }
    }

    /// Writes the desired values of `cgroups`, which the caller passes with parents first.
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

    /// Stops managing a cgroup that has no desired value and holds its original values.
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

    /// Returns the changes that give a cgroup its desired values.
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

    /// Returns the values that the cgroup's `memory.min` and `memory.low` should hold.
    fn targets(&self, state: &State, cgroup: &CgroupPath, observed: &InForce) -> [Limit; 2] {
        let wanted = self.wanted(state, cgroup);
        [0, 1].map(|index| {
            if wanted[index] > Bytes::ZERO {
                return Limit::Bytes(wanted[index].floor_to(self.page_size));
            }
            let target = Target::Cgroup(cgroup.clone(), observed.inode);
            match lock(&self.originals).get(&target) {
                Some(values) => values.get(KNOBS[index]).unwrap_or(Limit::Bytes(Bytes::ZERO)),
                // The plugin has never changed the cgroup.
                None => observed.get(KNOBS[index]),
            }
        })
    }

    /// Writes `changes` in an order in which no child loses protection. The caller passes parents
    /// first.
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
            // Another cgroup has the same path now.
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

    /// Queues the desired values of a cgroup for systemd, if a systemd unit may own the cgroup. The
    /// values in the files do not count, because the plugin may be about to repair a file.
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

    /// Handles a cgroup that cannot be read or written: logs the first failure, and requests a
    /// quick retry.
    fn failed(
        &self,
        state: &mut State,
        cgroup: &CgroupPath,
        change: Option<&Change>,
        error: &CgroupError,
    ) {
        if let CgroupError::Gone(_) = error {
            // The runtime may create a pod's cgroup with the first container. It may remove the
            // cgroup before it reports the end of the pod.
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
                outcome = %Outcome::from(error),
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
        outcome = %Outcome::from(error),
        "cannot raise the pod's limits, which may be tighter than what its containers may use"
    );
}

/// Returns the delay before the next try of a failed call; `None` if a retry is useless.
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
    use plimsoll_core::pod::QosClass;

    use super::*;
    use crate::cgroup::systemd::fake::{Host, Mood, POD};

    const KUBEPODS: &str = "kubepods.slice";

    /// A host with systemd, and a Guaranteed pod whose slice is a unit.
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

        /// Returns the values of MemoryMin that systemd has received, oldest first.
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
        // The time between two repairs decides whether the plugin repairs, so stop the clock.
        tokio::time::pause();
        arranged.claim(8192);
        for _ in 0..2 {
            arranged.write(4096);
            assert_eq!(arranged.check(), Checked::Settled);
            assert_eq!(arranged.min(), bytes(8192));
        }
        // The third repair must wait.
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
            // Only the second round checks the file as the watch does. The plugin may not have
            // handled systemd's answer yet.
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
