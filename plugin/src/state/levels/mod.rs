//! Protection of the cgroups above containers, and of the reserved cgroups outside kubepods.
//!
//! [`Tree`] computes the desired values of each cgroup above containers from the containers'
//! protection claims. A protection claim is the protection that a container needs from the cgroups
//! above it. This module writes the values to the cgroup files. A write takes microseconds, so
//! every ancestor cgroup has its new values before the plugin answers the event. If the cgroup
//! belongs to a systemd unit, the plugin also sends the values to systemd
//! ([`Levels::next_lasting`]).
//!
//! The plugin raises parents before their children, and lowers parents after their children.
//! Therefore no child loses protection during these writes.
//!
//! [`Originals`] stores the values that a cgroup had before the plugin first changed them. The
//! plugin restores the original values when the cgroup needs no more protection.

mod apply;
mod check;
mod kind;
mod lasting;
mod pod_limits;
mod query;
mod sandbox;
mod settle;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex};

use plimsoll_core::pod::CgroupPath;
use plimsoll_core::policy::contention::Contention;
use plimsoll_core::policy::hierarchy::{PodPlace, Tree};
use plimsoll_core::policy::{Policy, Protection};
use plimsoll_core::units::{Knob, Limit, PageSize};
use tokio::sync::Notify;
use tracing::warn;

pub use self::check::{CheckNext, Checked};
pub use self::kind::LevelKind;
pub use self::lasting::PersistentValues;
pub use self::pod_limits::LimitRaise;
use self::sandbox::Origins;
pub use self::sandbox::Sandbox;
use crate::cgroup::{Cgroup, CgroupError, CgroupRoot};
use crate::config::Reserved;
use crate::lock;
use crate::state::brake::Tally;
use crate::state::container::Container;
use crate::state::originals::Originals;
use crate::state::settings::Settings;

/// Files that the plugin writes in the cgroups above containers.
const KNOBS: [Knob; 2] = [Knob::Min, Knob::Low];

/// The cgroups above containers, and the reserved cgroups.
#[derive(Debug)]
pub struct Levels {
    root: Arc<CgroupRoot>,
    page_size: PageSize,
    originals: Arc<Mutex<Originals>>,
    /// Counts of repairs and conflicts for the automatic brake.
    brake: Arc<Tally>,
    state: Mutex<State>,
    /// Values to send to systemd, by cgroup. Newer values replace older ones.
    lasting: Mutex<BTreeMap<CgroupPath, PersistentValues>>,
    lasting_changed: Notify,
    /// Notifies the reconcile task that the protection of other pods has changed, or that a file
    /// needs a quick retry.
    shares_changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    tree: Tree,
    /// Sandboxes of the pods, by sandbox ID.
    sandboxes: HashMap<String, Sandbox>,
    reserved: Vec<Reserved>,
    /// Values of each cgroup's files when the plugin last read or wrote them.
    in_force: HashMap<CgroupPath, InForce>,
    /// Whether the plugin must not lower any value, because the tree does not contain all
    /// containers yet.
    hold: bool,
    /// Whether the plugin does not repair changes by other programs (`repair: false`).
    leaves_changes: bool,
    /// Files that another program has changed with `repair: false`, with the inode and the desired
    /// value. The plugin does not write these files until their desired values change.
    left: HashMap<(CgroupPath, Knob), (u64, Limit)>,
    raising: Raising,
    /// Policy for the memory of whole pods.
    policy: Policy,
    /// Pod limits that another program has lowered with `repair: false`, with the inode and the
    /// desired limit. A memory limit is in bytes, and a CPU limit in microseconds per second.
    left_limits: HashMap<(CgroupPath, &'static str), (u64, u64)>,
    /// Repair history of each file. A new desired value does not start a new history, because each
    /// new pod changes the desired value.
    contention: Contention<(CgroupPath, Knob), ()>,
    /// Repair history of each limit of a pod. A new desired limit starts a new history, because the
    /// user has asked for the new limit.
    limits: Contention<(CgroupPath, &'static str), u64>,
    /// Number of synchronizations with the runtime.
    synchronized: u64,
    /// Values that the plugin has sent to systemd: the last confirmed value and the unconfirmed
    /// values. systemd may write these values to the files later, when the plugin desires another
    /// value.
    sent_to_systemd: HashMap<CgroupPath, Vec<Protection>>,
    /// Origins of the pods' limits, by sandbox ID.
    origins: HashMap<String, Origins>,
    /// Number of failures for each file that the plugin could not write, and for each cgroup that
    /// it could not read (`None`). The plugin logs only the first failure.
    failing: HashMap<(CgroupPath, Option<Knob>), u32>,
    /// Pods that the log has reported because they get less protection than they need.
    short: HashSet<CgroupPath>,
    originals_failing: bool,
}

/// Way in which the plugin handles pod limits below the sum of the containers' limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Raising {
    /// The plugin raises the limits.
    #[default]
    Done,
    /// Observe mode: the plugin only reports that it would raise the limits.
    Planned,
    /// The plugin leaves the limits unchanged.
    Off,
}

impl Raising {
    fn of(settings: &Settings) -> Self {
        match settings.config.raise_pod_limits && !settings.is_restored {
            false => Self::Off,
            true if settings.enforces() => Self::Done,
            true => Self::Planned,
        }
    }
}

impl State {
    /// Returns whether the plugin must not write the file, because another program has changed it
    /// and `desired` is still the same.
    fn is_left(&self, file: &(CgroupPath, Knob), inode: u64, desired: Limit) -> bool {
        self.left.get(file) == Some(&(inode, desired))
    }

    /// Returns all managed cgroups: first those of the tree, parents before their children, then
    /// the reserved cgroups and their ancestors, parents before their children.
    fn cgroups(&self) -> Vec<CgroupPath> {
        let levels = self.tree.levels().into_iter().map(|level| level.cgroup);
        let reserved = with_ancestors(&self.reserved);
        let reserved = reserved.into_iter().filter(|cgroup| self.tree.desired(cgroup).is_none());
        levels.chain(reserved).collect()
    }

    /// Returns whether this is a reserved cgroup.
    fn is_reserved(&self, cgroup: &CgroupPath) -> bool {
        self.reserved.iter().any(|reserved| reserved.cgroup == *cgroup)
    }

    /// Returns whether the plugin manages the cgroup only because of cgroups below it: kubepods, or
    /// a reserved cgroup.
    fn is_ancestor(&self, cgroup: &CgroupPath) -> bool {
        let is_above = || {
            self.tree.is_above_kubepods(cgroup)
                || self.reserved.iter().any(|reserved| reserved.cgroup.is_below(cgroup))
        };
        let is_own =
            self.is_reserved(cgroup) || self.tree.is_pod(cgroup) || self.tree.is_kubepods(cgroup);
        !is_own && is_above()
    }
}

/// Returns whether the plugin manages the cgroup.
fn is_ours(tree: &Tree, reserved: &[Reserved], cgroup: &CgroupPath) -> bool {
    let is_reserved =
        |reserved: &Reserved| reserved.cgroup == *cgroup || reserved.cgroup.is_below(cgroup);
    tree.desired(cgroup).is_some() || reserved.iter().any(is_reserved)
}

/// Returns the reserved cgroups and their ancestors, parents before their children.
fn with_ancestors(reserved: &[Reserved]) -> BTreeSet<CgroupPath> {
    reserved.iter().flat_map(|reserved| reserved.cgroup.lineage()).collect()
}

/// Values in the files of a cgroup.
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

impl Levels {
    /// Creates the state of a node without pods.
    pub fn new(
        root: Arc<CgroupRoot>,
        page_size: PageSize,
        originals: Arc<Mutex<Originals>>,
        brake: Arc<Tally>,
    ) -> Self {
        Self {
            root,
            page_size,
            originals,
            brake,
            state: Mutex::default(),
            lasting: Mutex::default(),
            lasting_changed: Notify::new(),
            shares_changed: Notify::new(),
        }
    }

    /// Applies new settings: the reserved cgroups, and the budget, which is the maximum protection
    /// of all pods together. The budget excludes the memory of the reserved cgroups, so the plugin
    /// does not protect the same memory twice.
    pub fn set_node(&self, settings: &Settings) {
        let allocatable = settings.node.allocatable;
        let budget = settings.budget();
        if let (Some(allocatable), Some(budget)) = (allocatable, budget)
            && budget < allocatable
        {
            warn!(
                "systemReserved, kubeReserved and nodeGuard leave {} of all memory, which is less \
                 than node allocatable, {}; that much at most is protected for pods",
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
        state.policy = settings.policy();
        let former = std::mem::replace(&mut state.reserved, settings.reserved());
        let mut levels: Vec<_> =
            with_ancestors(&former).union(&with_ancestors(&state.reserved)).cloned().collect();
        levels.extend(state.tree.set_budget(budget).into_iter().map(|level| level.cgroup));
        self.apply_cgroups(&mut state, levels);
    }

    /// Adds the sandbox of a pod.
    pub fn sandbox(&self, sandbox: Sandbox, policy: &Policy) {
        let mut state = lock(&self.state);
        let levels = state.tree.set_overhead(&sandbox.place, sandbox.protection(policy));
        let pod = sandbox.place.cgroup().clone();
        // A new pod may have new cgroups, so forget the values of former cgroups with the same
        // paths.
        for level in &levels {
            state.in_force.remove(&level.cgroup);
        }
        state.sandboxes.insert(sandbox.id.clone(), sandbox);
        self.apply_levels(&mut state, levels, Some(&pod));
    }

    /// Replaces all sandboxes by the sandboxes that the runtime reported. Until [`Levels::settle`],
    /// the plugin lowers no value, because it does not know all containers.
    ///
    /// `replace_containers` replaces the containers. While it runs, no other thread can settle or
    /// prune: with the former containers, that thread would lower the values of live containers and
    /// forget their original values.
    pub fn synchronize(&self, sandboxes: Vec<Sandbox>, replace_containers: impl FnOnce()) {
        let mut state = lock(&self.state);
        replace_containers();
        state.synchronized += 1;
        state.hold = true;
        state.sandboxes =
            sandboxes.into_iter().map(|sandbox| (sandbox.id.clone(), sandbox)).collect();
        let State { sandboxes, origins, .. } = &mut *state;
        origins.retain(|sandbox, _| sandboxes.contains_key(sandbox));
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
        // The pod's cgroup is below the other changed cgroups, so lower the pod's values first.
        self.apply_cgroups(&mut state, vec![place.cgroup().clone()]);
        self.apply_levels(&mut state, levels, None);
    }

    /// Sets a container's protection claim if `is_current` returns true. While `is_current` runs,
    /// no other thread can set a claim. Therefore this claim never overwrites the claim from a
    /// newer event for the container.
    pub fn claim_if(
        &self,
        place: &PodPlace,
        id: &str,
        claim: Protection,
        is_current: impl FnOnce() -> bool,
    ) {
        self.change_claim(place, id, |_| is_current().then_some(claim));
    }

    /// Raises a container's protection claim to `claim`. A larger current claim stays until the
    /// plugin has verified the container's new values.
    pub fn claim_at_least(&self, place: &PodPlace, id: &str, claim: Protection) {
        self.claim_at_least_if(place, id, claim, || true);
    }

    /// Raises a container's protection claim as [`Self::claim_at_least`] does, if `is_current`
    /// returns true.
    pub fn claim_at_least_if(
        &self,
        place: &PodPlace,
        id: &str,
        claim: Protection,
        is_current: impl FnOnce() -> bool,
    ) {
        self.change_claim(place, id, |now| is_current().then(|| claim.max(now)));
    }

    /// Sets a container's protection claim to the claim that `change` returns for the current
    /// claim. If `change` returns `None`, the claim does not change. While `change` runs, no other
    /// thread can set a claim.
    fn change_claim(
        &self,
        place: &PodPlace,
        id: &str,
        change: impl FnOnce(Protection) -> Option<Protection>,
    ) {
        let mut state = lock(&self.state);
        let now = state.tree.claim_of(id).unwrap_or_default();
        if let Some(claim) = change(now) {
            let levels = state.tree.claim(place, id, claim);
            self.apply_levels(&mut state, levels, Some(place.cgroup()));
        }
    }

    /// Returns false only if the container has certainly ended.
    pub fn is_alive(&self, container: &Container) -> bool {
        container.is_alive(&self.root)
    }

    /// Removes the protection claim of a container that has ended.
    pub fn release(&self, id: &str) {
        let mut state = lock(&self.state);
        let pod = state.tree.pod_of(id).cloned();
        let levels = state.tree.release(id);
        self.apply_levels(&mut state, levels, pod.as_ref());
    }
}

#[cfg(test)]
mod tests;
