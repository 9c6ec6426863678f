//! Protection of all levels from kubepods down to the containers: desired values of the ancestor
//! cgroups, and effective protection in the kernel.
//!
//! A container's `memory.min` and `memory.low` protect at most as much as its pod, its class's
//! cgroup and kubepods do. All amounts are bytes. The kernel rounds each file down to pages, but a
//! parent never falls short. The children's rounded values never add up to more than their rounded
//! sum.
//!
//! # Desired values of each level
//!
//! [`Tree`] keeps the claims. `memory.min` and `memory.low` have separate sums:
//!
//! - A pod gets the sum of its containers' claims plus its overhead (from the RuntimeClass). A
//!   limit of the pod's own bounds this sum, because the kubelet gives that whole limit to each
//!   container without a limit.
//! - The cgroup of a class (Burstable, BestEffort) gets the sum of its pods.
//! - kubepods gets the sum of `memory.min` **and** `memory.low` below it as its `memory.min`. This
//!   is Kubernetes' tiered rule: no process outside kubepods may use memory promised to pods.
//! - kubepods also gets the sum of `memory.low` below it as its `memory.low`. The kernel
//!   distributes `memory.min` and `memory.low` separately, so 0 here would make every `memory.low`
//!   below ineffective.
//!
//! The protection of all pods, `memory.min` plus `memory.low`, never exceeds the budget (node
//! allocatable):
//!
//! - Guaranteed pods come first. If they alone claim more than the budget, each gets a share in
//!   proportion to its claim. Other pods then get nothing.
//! - Burstable and BestEffort pods share the rest. If they claim more than the rest, each gets a
//!   share in proportion to its claim.
//! - A pod's shares of `memory.min` and `memory.low` are each rounded down to a byte. The ancestors
//!   add up the pods' shares, so that the sums are exact at every level.
//!
//! Without a budget, [`Bytes::MAX`] is the budget.
//!
//! A container's own files keep its full claim, even where its pod gets less. The kernel bounds the
//! children's protection by their parent's effective protection. The kernel distributes this
//! protection by how much of its claim each child uses at the time, which is better than any fixed
//! distribution.
//!
//! Sources: KEP-2570 of Kubernetes ("Support Memory QoS with cgroups v2", as of 1.36) for the sums.
//! The kernel's `Documentation/admin-guide/cgroup-v2.rst` defines `memory.min`, `memory.low` and
//! `memory_recursiveprot`. The budget is this plugin's addition.
//!
//! # Effective protection in the kernel
//!
//! [`effective`] follows `effective_protection` in the kernel's `mm/page_counter.c` (formerly in
//! `mm/memcontrol.c`) for one cgroup and one file. [`effective_tree`] applies the rule to a whole
//! tree. [`Standing`] classifies the effect of the written values. The kernel counts in pages, so
//! its values may differ by less than one page for each level.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::pod::CgroupPath;
use crate::pod::QosClass;
use crate::policy::Protection;
use crate::units::Bytes;

/// Position of a pod in the cgroup tree: its cgroup and the ancestors up to kubepods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodPlace {
    cgroup: CgroupPath,
    class: QosClass,
    class_cgroup: Option<CgroupPath>,
    kubepods: CgroupPath,
}

impl PodPlace {
    /// Creates the place of a pod of `class` with this cgroup. Guaranteed pods lie directly in
    /// kubepods, other pods in their class's cgroup. Returns `None` if the path has too few parts.
    pub fn new(cgroup: CgroupPath, class: QosClass) -> Option<Self> {
        let parent = cgroup.parent()?;
        let (class_cgroup, kubepods) = match class {
            QosClass::Guaranteed => (None, parent),
            QosClass::Burstable | QosClass::BestEffort => {
                let kubepods = parent.parent()?;
                (Some(parent), kubepods)
            }
        };
        Some(Self { cgroup, class, class_cgroup, kubepods })
    }

    /// Returns the pod's cgroup.
    pub fn cgroup(&self) -> &CgroupPath {
        &self.cgroup
    }

    /// Returns the pod's class.
    pub const fn class(&self) -> QosClass {
        self.class
    }

    /// Returns the cgroup of the pod's class. Guaranteed pods have none.
    pub fn class_cgroup(&self) -> Option<&CgroupPath> {
        self.class_cgroup.as_ref()
    }

    /// Returns the cgroup of all pods.
    pub fn kubepods(&self) -> &CgroupPath {
        &self.kubepods
    }
}

/// Desired protection of a cgroup above the containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Level {
    /// The cgroup: of a pod, of a class, or kubepods.
    pub cgroup: CgroupPath,
    /// The desired values of its files.
    pub protection: Protection,
}

/// Pod with less protection than its claim, because the budget is too small.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortfall {
    /// The pod's cgroup.
    pub pod: CgroupPath,
    /// The pod's claim.
    pub asked: Protection,
    /// The pod's share.
    pub gets: Protection,
}

/// Claims of all containers, and the resulting desired values of the cgroups above them.
///
/// Each changing method returns the levels with a new desired value, parents before children. The
/// first appearance of a level counts as a change even without protection, because the files may
/// hold old values. The cost of a call does not depend on the number of pods, unless the pods claim
/// more than the budget.
///
/// The tree keeps a pod until [`Tree::remove_pod`], and the pod's ancestors forever. Several
/// kubepods cgroups share one budget.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    budget: Option<Bytes>,
    pods: HashMap<CgroupPath, Pod>,
    /// Sums for kubepods and the cgroups of classes, which are their desired values.
    above: HashMap<CgroupPath, Sum>,
    /// The pod of each container.
    containers: HashMap<String, CgroupPath>,
    /// Sum of `memory.min` and `memory.low` that all Guaranteed pods claim.
    guaranteed: u128,
    /// Sum of `memory.min` and `memory.low` that all other pods claim.
    others: u128,
}

#[derive(Clone, Debug)]
struct Pod {
    place: PodPlace,
    containers: HashMap<String, Protection>,
    overhead: Protection,
    /// Upper bound of the pod's claim, from the pod's memory limit.
    cap: Option<Bytes>,
    /// Sum of the claims of the containers and the overhead.
    asked: Sum,
    gets: Protection,
}

impl Tree {
    /// Creates a tree without pods. The budget is node allocatable. `None` means that the budget is
    /// unknown and does not bound the claims.
    pub fn new(budget: Option<Bytes>) -> Self {
        Self { budget, ..Self::default() }
    }

    /// Replaces the budget.
    pub fn set_budget(&mut self, budget: Option<Bytes>) -> Vec<Level> {
        let change = self.begin();
        self.budget = budget;
        self.finish(change)
    }

    /// Sets a container's claim and adds its pod to the tree if needed. A container that was in
    /// another pod moves.
    pub fn claim(&mut self, pod: &PodPlace, container: &str, claim: Protection) -> Vec<Level> {
        let mut change = self.begin();
        if self.containers.get(container) != Some(&pod.cgroup) {
            self.forget(container, &mut change);
            self.containers.insert(container.to_owned(), pod.cgroup.clone());
        }
        self.edit(pod, &mut change, |pod| {
            let last = pod.containers.insert(container.to_owned(), claim);
            pod.asked.replace(last.unwrap_or_default(), claim);
        });
        self.finish(change)
    }

    /// Returns a container's claim.
    pub fn claim_of(&self, container: &str) -> Option<Protection> {
        self.pods.get(self.containers.get(container)?)?.containers.get(container).copied()
    }

    /// Returns every container with a claim, in no particular order.
    pub fn containers(&self) -> impl Iterator<Item = &str> {
        self.containers.keys().map(String::as_str)
    }

    /// Returns the cgroup of every known pod, in no particular order.
    pub fn pods(&self) -> impl Iterator<Item = &CgroupPath> {
        self.pods.keys()
    }

    /// Returns the pod to which a container's claim belongs.
    pub fn pod_of(&self, container: &str) -> Option<&CgroupPath> {
        self.containers.get(container)
    }

    /// Returns whether this is the cgroup of a known pod.
    pub fn is_pod(&self, cgroup: &CgroupPath) -> bool {
        self.pods.contains_key(cgroup)
    }

    /// Removes a container's claim, if there is one.
    pub fn release(&mut self, container: &str) -> Vec<Level> {
        let mut change = self.begin();
        self.forget(container, &mut change);
        self.finish(change)
    }

    /// Sets the claim of a pod's overhead and adds the pod to the tree if needed.
    pub fn set_overhead(&mut self, pod: &PodPlace, overhead: Protection) -> Vec<Level> {
        let mut change = self.begin();
        self.edit(pod, &mut change, |pod| {
            pod.asked.replace(pod.overhead, overhead);
            pod.overhead = overhead;
        });
        self.finish(change)
    }

    /// Sets the upper bound of a pod's claim. `None` removes the bound. An unknown pod is ignored.
    pub fn set_cap(&mut self, pod: &CgroupPath, cap: Option<Bytes>) -> Vec<Level> {
        let Some(place) =
            self.pods.get(pod).filter(|pod| pod.cap != cap).map(|pod| pod.place.clone())
        else {
            return Vec::new();
        };
        let mut change = self.begin();
        self.edit(&place, &mut change, |pod| pod.cap = cap);
        self.finish(change)
    }

    /// Removes a pod with its containers. The tree keeps the levels above. An unknown pod is
    /// ignored.
    pub fn remove_pod(&mut self, pod: &CgroupPath) -> Vec<Level> {
        let mut change = self.begin();
        if let Some(pod) = self.withdraw(pod, &mut change) {
            for container in pod.containers.keys() {
                self.containers.remove(container);
            }
        }
        self.finish(change)
    }

    /// Returns the desired protection of this cgroup, or `None` if the cgroup is not known.
    pub fn desired(&self, cgroup: &CgroupPath) -> Option<Protection> {
        let pod = self.pods.get(cgroup).map(|pod| pod.gets);
        pod.or_else(|| self.above.get(cgroup).map(|sum| sum.protection()))
    }

    /// Returns the desired protection of every known level, parents before children.
    pub fn levels(&self) -> Vec<Level> {
        let above = self.above.iter().map(|(cgroup, sum)| (cgroup, sum.protection()));
        let pods = self.pods.iter().map(|(cgroup, pod)| (cgroup, pod.gets));
        // Sorted by path, a parent comes before its descendants.
        let levels: BTreeMap<_, _> = above.chain(pods).collect();
        levels
            .into_iter()
            .map(|(cgroup, protection)| Level { cgroup: cgroup.clone(), protection })
            .collect()
    }

    /// Returns the cgroup of all pods. If there are several, returns the first by path.
    pub fn kubepods(&self) -> Option<&CgroupPath> {
        let is_top = |cgroup: &&CgroupPath| {
            cgroup.parent().is_none_or(|parent| !self.above.contains_key(&parent))
        };
        self.above.keys().filter(is_top).min()
    }

    /// Returns whether any pod gets less than its claim, because all claims together exceed the
    /// budget.
    pub fn is_short(&self) -> bool {
        let shares = self.shares();
        shares.guaranteed.is_short() || shares.others.is_short()
    }

    /// Returns the pods that get less than their claims, sorted by path.
    pub fn shortfalls(&self) -> Vec<Shortfall> {
        if !self.is_short() {
            return Vec::new();
        }
        let pods = self.pods.iter().map(|(cgroup, pod)| (cgroup, pod.asks_for(), pod.gets));
        let short = pods.filter(|(_, asked, gets)| asked != gets);
        let mut short: Vec<_> =
            short.map(|(pod, asked, gets)| Shortfall { pod: pod.clone(), asked, gets }).collect();
        short.sort_by(|one, other| one.pod.cmp(&other.pod));
        short
    }

    fn shares(&self) -> Shares {
        let budget = u128::from(self.budget.unwrap_or(Bytes::MAX).get());
        let guaranteed = Share { asked: self.guaranteed, granted: self.guaranteed.min(budget) };
        let others =
            Share { asked: self.others, granted: self.others.min(budget - guaranteed.granted) };
        Shares { guaranteed, others }
    }

    fn begin(&self) -> Change {
        Change { shares: self.shares(), before: BTreeMap::new(), pods: Vec::new() }
    }

    /// Updates the shares of all touched pods. If the share of a class changed, all pods of that
    /// class are updated.
    fn finish(&mut self, mut change: Change) -> Vec<Level> {
        let shares = self.shares();
        let is_other = |class| !shares.of(class).is_same_for_all(change.shares.of(class));
        // Only over-commitment makes a visit of every pod necessary.
        if is_other(QosClass::Guaranteed) || is_other(QosClass::Burstable) {
            let places = self.pods.values().map(|pod| &pod.place);
            change.pods =
                places.filter(|place| is_other(place.class)).cloned().chain(change.pods).collect();
        }
        for place in std::mem::take(&mut change.pods) {
            let Some(pod) = self.pods.get(&place.cgroup) else { continue };
            let (last, gets) = (pod.gets, shares.of(place.class).part(pod.asks_for()));
            if gets != last {
                self.note(&place.cgroup, &mut change);
                self.replace_above(&place, last, gets, &mut change);
                self.pods.entry(place.cgroup).and_modify(|pod| pod.gets = gets);
            }
        }
        let changed = change.before.into_iter().filter_map(|(cgroup, before)| {
            let protection = self.desired(&cgroup)?;
            (before != Some(protection)).then_some(Level { cgroup, protection })
        });
        changed.collect()
    }

    /// Edits a pod and adds it to the tree if needed.
    fn edit(&mut self, place: &PodPlace, change: &mut Change, edit: impl FnOnce(&mut Pod)) {
        let mut pod = self.withdraw(&place.cgroup, change).unwrap_or_else(|| Pod::new(place));
        // The caller may pass another class than before.
        pod.place = place.clone();
        edit(&mut pod);
        *self.asked_by(place.class) += total(pod.asks_for());
        self.replace_above(place, Protection::default(), pod.gets, change);
        change.pods.push(place.clone());
        self.pods.insert(place.cgroup.clone(), pod);
    }

    /// Removes a pod from every sum. The pod's share is zero until [`Tree::finish`] sets it.
    fn withdraw(&mut self, cgroup: &CgroupPath, change: &mut Change) -> Option<Pod> {
        self.note(cgroup, change);
        let mut pod = self.pods.remove(cgroup)?;
        *self.asked_by(pod.place.class) -= total(pod.asks_for());
        let gets = std::mem::take(&mut pod.gets);
        self.replace_above(&pod.place, gets, pod.gets, change);
        Some(pod)
    }

    fn forget(&mut self, container: &str, change: &mut Change) {
        let Some(pod) = self.containers.remove(container).and_then(|pod| self.pods.get(&pod))
        else {
            return;
        };
        let place = pod.place.clone();
        self.edit(&place, change, |pod| {
            let last = pod.containers.remove(container);
            pod.asked.replace(last.unwrap_or_default(), Protection::default());
        });
    }

    fn replace_above(
        &mut self,
        place: &PodPlace,
        last: Protection,
        new: Protection,
        change: &mut Change,
    ) {
        if let Some(class) = &place.class_cgroup {
            self.note(class, change);
            self.above.entry(class.clone()).or_default().replace(last, new);
        }
        self.note(&place.kubepods, change);
        let kubepods = self.above.entry(place.kubepods.clone()).or_default();
        kubepods.replace(last, new);
        kubepods.replace_min(last.low, new.low);
    }

    /// Records the desired value of a level before the call, once per call.
    fn note(&self, cgroup: &CgroupPath, change: &mut Change) {
        if !change.before.contains_key(cgroup) {
            change.before.insert(cgroup.clone(), self.desired(cgroup));
        }
    }

    fn asked_by(&mut self, class: QosClass) -> &mut u128 {
        match class {
            QosClass::Guaranteed => &mut self.guaranteed,
            QosClass::Burstable | QosClass::BestEffort => &mut self.others,
        }
    }
}

impl Pod {
    fn new(place: &PodPlace) -> Self {
        Self {
            place: place.clone(),
            containers: HashMap::new(),
            overhead: Protection::default(),
            cap: None,
            asked: Sum::default(),
            gets: Protection::default(),
        }
    }

    /// Returns the pod's claim: the sum, bounded by the cap.
    fn asks_for(&self) -> Protection {
        let Protection { min, low } = self.asked.protection();
        match self.cap {
            Some(cap) => Protection { min: min.min(cap), low: low.min(cap.saturating_sub(min)) },
            None => Protection { min, low },
        }
    }
}

/// State kept during one call.
struct Change {
    /// The shares before the call.
    shares: Shares,
    /// The desired values of the touched levels before the call.
    before: BTreeMap<CgroupPath, Option<Protection>>,
    /// The touched pods.
    pods: Vec<PodPlace>,
}

/// Exact sum of protections. A node has too few containers and pods for an overflow.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    min: u128,
    low: u128,
}

impl Sum {
    /// Replaces one addend.
    fn replace(&mut self, last: Protection, new: Protection) {
        self.replace_min(last.min, new.min);
        self.low = self.low + u128::from(new.low.get()) - u128::from(last.low.get());
    }

    fn replace_min(&mut self, last: Bytes, new: Bytes) {
        self.min = self.min + u128::from(new.get()) - u128::from(last.get());
    }

    /// Returns the sum, where each part is at most [`Bytes::MAX`].
    fn protection(&self) -> Protection {
        Protection { min: saturated(self.min), low: saturated(self.low) }
    }
}

fn saturated(bytes: u128) -> Bytes {
    u64::try_from(bytes).map_or(Bytes::MAX, Bytes::new)
}

fn total(protection: Protection) -> u128 {
    u128::from(protection.min.get()) + u128::from(protection.low.get())
}

/// Part of a group's total claim that the group gets.
#[derive(Clone, Copy, PartialEq)]
struct Share {
    asked: u128,
    granted: u128,
}

impl Share {
    fn is_short(self) -> bool {
        self.granted < self.asked
    }

    /// Returns whether both shares give the same protection to every possible claim.
    fn is_same_for_all(self, other: Self) -> bool {
        self == other || !self.is_short() && !other.is_short()
    }

    /// Returns the part for a pod with this claim. Both factors are below 2^63, so the product
    /// cannot overflow.
    fn part(self, asked: Protection) -> Protection {
        if !self.is_short() {
            return asked;
        }
        let part = |bytes: Bytes| saturated(u128::from(bytes.get()) * self.granted / self.asked);
        Protection { min: part(asked.min), low: part(asked.low) }
    }
}

struct Shares {
    guaranteed: Share,
    others: Share,
}

impl Shares {
    fn of(&self, class: QosClass) -> Share {
        match class {
            QosClass::Guaranteed => self.guaranteed,
            QosClass::Burstable | QosClass::BestEffort => self.others,
        }
    }
}

/// Inputs for the effective protection of one cgroup by one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The cgroup's usage (`memory.current`).
    pub usage: Bytes,
    /// The parent's usage.
    pub parent_usage: Bytes,
    /// The value of the cgroup's file.
    pub setting: Bytes,
    /// The parent's effective protection by the same file.
    pub parent_effective: Bytes,
    /// Protected usage of all children of the parent, including this cgroup: the sum of the lesser
    /// of usage and setting.
    pub siblings_protected: Bytes,
    /// Whether cgroup2 is mounted with `memory_recursiveprot`.
    pub recursive: bool,
}

/// Computes the effective protection of a cgroup by one file, as the kernel does.
///
/// The rule does not apply to direct children of the cgroup where reclaim starts. Their files
/// protect with their full values.
///
/// - A child's protected usage is the lesser of its usage and its setting. If the parent's
///   effective protection covers the protected usage of all children, each child gets its own.
///   Otherwise the children share the parent's protection in proportion to their protected usage.
/// - With `memory_recursiveprot`, the children also share the parent's unclaimed protection. The
///   shares are in proportion to the usage beyond each child's claim.
///
/// The result can exceed the usage only if the parent's protection exceeds the parent's usage. Then
/// the whole usage is protected.
pub fn effective(step: &Step) -> Bytes {
    let [usage, parent_usage, setting, parent_effective, siblings_protected] = [
        step.usage,
        step.parent_usage,
        step.setting,
        step.parent_effective,
        step.siblings_protected,
    ]
    .map(|bytes| u128::from(bytes.get()));
    let protected = usage.min(setting);
    if siblings_protected > parent_effective {
        return saturated(protected * parent_effective / siblings_protected);
    }
    // If the usages were read at different times, the parent's usage can be less than the
    // children's.
    if step.recursive && parent_usage > siblings_protected {
        let unclaimed = parent_effective - siblings_protected;
        return saturated(
            protected + unclaimed * (usage - protected) / (parent_usage - siblings_protected),
        );
    }
    saturated(protected)
}

/// Values read from one cgroup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The values of its files.
    pub setting: Protection,
    /// Its usage (`memory.current`).
    pub usage: Bytes,
}

/// Computes how much of each cgroup's usage is effectively protected during reclaim that starts in
/// `root`. The cause of reclaim is a cgroup's `memory.max`. With `None` the cause is memory
/// pressure on the whole node.
///
/// `observed` must contain all cgroups between `root` and the cgroups of interest, with all their
/// siblings. The result omits a cgroup if `observed` lacks one of its ancestors below `root`. A
/// cgroup without usage has no protection, because the kernel skips it.
pub fn effective_tree(
    root: Option<&CgroupPath>,
    observed: &BTreeMap<CgroupPath, Observed>,
    recursive: bool,
) -> BTreeMap<CgroupPath, Protection> {
    let mut claimed: HashMap<CgroupPath, Sum> = HashMap::new();
    for (cgroup, Observed { setting, usage }) in observed {
        if let Some(parent) = cgroup.parent() {
            let protected =
                Protection { min: setting.min.min(*usage), low: setting.low.min(*usage) };
            claimed.entry(parent).or_default().replace(Protection::default(), protected);
        }
    }
    // The kernel's own values, from which the children's values follow. Paths are sorted, so a
    // parent comes before its children.
    let mut found: BTreeMap<CgroupPath, Protection> = BTreeMap::new();
    for (cgroup, &Observed { setting, usage }) in observed {
        let parent = cgroup.parent();
        let protection = if parent.as_ref() == root {
            setting
        } else {
            let Some(parent) = parent else { continue };
            let (Some(above), Some(given)) = (observed.get(&parent), found.get(&parent)) else {
                continue;
            };
            let siblings = claimed.get(&parent).copied().unwrap_or_default().protection();
            let step = |setting, parent_effective, siblings_protected| {
                let parent_usage = above.usage;
                effective(&Step {
                    usage,
                    parent_usage,
                    setting,
                    parent_effective,
                    siblings_protected,
                    recursive,
                })
            };
            Protection {
                min: step(setting.min, given.min, siblings.min),
                low: step(setting.low, given.low, siblings.low),
            }
        };
        found.insert(cgroup.clone(), protection);
    }
    for (cgroup, protection) in &mut found {
        let usage = observed.get(cgroup).map_or(Bytes::ZERO, |observed| observed.usage);
        *protection = Protection { min: protection.min.min(usage), low: protection.low.min(usage) };
    }
    found
}

/// Effect of the values written in a cgroup's files.
///
/// `Display` writes one lowercase word for logs and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// The files claim no protection.
    Unclaimed,
    /// At least nine tenths of the claimed usage is effectively protected. The threshold is below 1
    /// because usages read one after another do not add up exactly. A cgroup without usage also
    /// counts as protected.
    Protected,
    /// At least one tenth of the claimed usage is effectively protected, but less than nine tenths.
    Partly,
    /// Less than one tenth of the claimed usage is effectively protected, usually nothing.
    Inert,
}

impl Standing {
    /// All standings, for messages and tests.
    pub const ALL: [Self; 4] = [Self::Unclaimed, Self::Protected, Self::Partly, Self::Inert];

    /// Classifies a cgroup by its settings, its usage and its effective protection from
    /// [`effective_tree`]. A file's claimed usage is the lesser of its setting and the usage. The
    /// worse result of both files counts.
    pub fn of(setting: Protection, usage: Bytes, effective: Protection) -> Self {
        let knob = |setting: Bytes, effective: Bytes| {
            if setting == Bytes::ZERO {
                return Self::Unclaimed;
            }
            let due = u128::from(setting.min(usage).get());
            match u128::from(effective.get()) * 10 {
                tenths if tenths >= due * 9 => Self::Protected,
                tenths if tenths >= due => Self::Partly,
                _ => Self::Inert,
            }
        };
        knob(setting.min, effective.min).max(knob(setting.low, effective.low))
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unclaimed => "unclaimed",
            Self::Protected => "protected",
            Self::Partly => "partly",
            Self::Inert => "inert",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn path(path: &str) -> CgroupPath {
        CgroupPath::parse(path).unwrap()
    }

    fn protection(min: u64, low: u64) -> Protection {
        Protection { min: Bytes::new(min), low: Bytes::new(low) }
    }

    fn place(cgroup: &str, class: QosClass) -> PodPlace {
        PodPlace::new(path(cgroup), class).unwrap()
    }

    fn guaranteed(name: &str) -> PodPlace {
        place(&format!("kubepods/{name}"), QosClass::Guaranteed)
    }

    fn burstable(name: &str) -> PodPlace {
        place(&format!("kubepods/burstable/{name}"), QosClass::Burstable)
    }

    fn besteffort(name: &str) -> PodPlace {
        place(&format!("kubepods/besteffort/{name}"), QosClass::BestEffort)
    }

    /// Formats levels as `path min low`.
    fn shown(levels: &[Level]) -> Vec<String> {
        let line = |Level { cgroup, protection }: &Level| {
            format!("{cgroup} {} {}", protection.min, protection.low)
        };
        levels.iter().map(line).collect()
    }

    #[test]
    fn a_pod_asks_for_no_more_than_its_own_limit() {
        let mut tree = Tree::new(None);
        let pod = guaranteed("pod1");
        for container in ["a", "b"] {
            tree.claim(&pod, container, protection(100, 50));
        }
        tree.set_overhead(&pod, protection(10, 0));
        assert_eq!(
            shown(&tree.set_cap(pod.cgroup(), Some(Bytes::new(250)))),
            ["/kubepods 250 40", "/kubepods/pod1 210 40"]
        );
        assert_eq!(
            shown(&tree.set_cap(pod.cgroup(), Some(Bytes::new(110)))),
            ["/kubepods 110 0", "/kubepods/pod1 110 0"]
        );
        assert!(tree.set_cap(pod.cgroup(), Some(Bytes::new(110))).is_empty());
        tree.release("b");
        assert_eq!(tree.desired(pod.cgroup()), Some(protection(110, 0)));
        assert_eq!(
            shown(&tree.set_cap(pod.cgroup(), None)),
            ["/kubepods 160 50", "/kubepods/pod1 110 50"]
        );
        assert!(tree.set_cap(guaranteed("other").cgroup(), Some(Bytes::ZERO)).is_empty());
    }

    #[test]
    fn a_pod_lies_in_its_class_and_that_in_kubepods() {
        let pod = place("kubepods.slice/kubepods-burstable.slice/pod.slice", QosClass::Burstable);
        assert_eq!(pod.class_cgroup(), Some(&path("kubepods.slice/kubepods-burstable.slice")));
        assert_eq!(pod.kubepods(), &path("kubepods.slice"));
        let pod = place("custom/kubepods/pod1", QosClass::Guaranteed);
        assert_eq!(pod.class_cgroup(), None);
        assert_eq!((pod.kubepods(), pod.class()), (&path("custom/kubepods"), QosClass::Guaranteed));
        assert_eq!(pod.cgroup(), &path("custom/kubepods/pod1"));
        for (cgroup, class) in [
            ("pod1", QosClass::Guaranteed),
            ("pod1", QosClass::Burstable),
            ("burstable/pod1", QosClass::Burstable),
            ("besteffort/pod1", QosClass::BestEffort),
        ] {
            assert_eq!(PodPlace::new(path(cgroup), class), None, "{cgroup}");
        }
    }

    #[test]
    fn a_claim_is_added_up_to_kubepods() {
        let mut tree = Tree::new(None);
        assert_eq!(
            shown(&tree.claim(&burstable("a"), "1", protection(0, 100))),
            ["/kubepods 100 100", "/kubepods/burstable 0 100", "/kubepods/burstable/a 0 100"]
        );
        assert_eq!(
            shown(&tree.claim(&burstable("a"), "2", protection(10, 20))),
            ["/kubepods 130 120", "/kubepods/burstable 10 120", "/kubepods/burstable/a 10 120"]
        );
        assert_eq!(
            shown(&tree.set_overhead(&burstable("a"), protection(0, 5))),
            ["/kubepods 135 125", "/kubepods/burstable 10 125", "/kubepods/burstable/a 10 125"]
        );
        assert_eq!(
            shown(&tree.claim(&guaranteed("b"), "3", protection(1000, 0))),
            ["/kubepods 1135 125", "/kubepods/b 1000 0"]
        );
        assert_eq!(
            shown(&tree.claim(&burstable("a"), "1", protection(0, 50))),
            ["/kubepods 1085 75", "/kubepods/burstable 10 75", "/kubepods/burstable/a 10 75"]
        );
        assert_eq!(tree.claim_of("1"), Some(protection(0, 50)));
        assert_eq!(
            shown(&tree.levels()),
            [
                "/kubepods 1085 75",
                "/kubepods/b 1000 0",
                "/kubepods/burstable 10 75",
                "/kubepods/burstable/a 10 75"
            ]
        );
        assert_eq!(tree.desired(&path("kubepods/b")), Some(protection(1000, 0)));
        assert_eq!(tree.desired(&path("kubepods/besteffort")), None);
    }

    #[test]
    fn what_changes_nothing_returns_nothing() {
        let mut tree = Tree::new(Some(Bytes::new(1000)));
        tree.claim(&burstable("a"), "1", protection(0, 100));
        assert!(tree.claim(&burstable("a"), "1", protection(0, 100)).is_empty());
        assert!(tree.claim(&burstable("a"), "2", protection(0, 0)).is_empty());
        assert!(tree.set_overhead(&burstable("a"), protection(0, 0)).is_empty());
        assert!(tree.release("unknown").is_empty());
        assert!(tree.remove_pod(&path("kubepods/burstable/unknown")).is_empty());
        assert!(tree.remove_pod(&path("kubepods/burstable")).is_empty());
        assert!(tree.set_budget(Some(Bytes::new(100))).is_empty());
        assert!(tree.set_budget(None).is_empty());
        assert_eq!(tree.claim_of("unknown"), None);
    }

    #[test]
    fn levels_become_known_with_nothing_to_protect() {
        let mut tree = Tree::new(Some(Bytes::ZERO));
        assert_eq!(
            shown(&tree.claim(&besteffort("a"), "1", protection(0, 0))),
            ["/kubepods 0 0", "/kubepods/besteffort 0 0", "/kubepods/besteffort/a 0 0"]
        );
        assert_eq!(tree.kubepods().map(CgroupPath::as_str), Some("kubepods"));
        assert_eq!(
            shown(&tree.set_overhead(&guaranteed("b"), protection(0, 0))),
            ["/kubepods/b 0 0"]
        );
    }

    #[test]
    fn what_is_above_a_removed_pod_stays_known() {
        let mut tree = Tree::new(None);
        tree.claim(&burstable("a"), "1", protection(0, 100));
        tree.claim(&burstable("a"), "2", protection(0, 100));
        assert_eq!(
            shown(&tree.release("1")),
            ["/kubepods 100 100", "/kubepods/burstable 0 100", "/kubepods/burstable/a 0 100"]
        );
        assert_eq!(
            shown(&tree.remove_pod(&path("kubepods/burstable/a"))),
            ["/kubepods 0 0", "/kubepods/burstable 0 0"]
        );
        assert_eq!(tree.claim_of("2"), None);
        assert!(tree.release("2").is_empty());
        assert_eq!(shown(&tree.levels()), ["/kubepods 0 0", "/kubepods/burstable 0 0"]);
    }

    #[test]
    fn a_container_claimed_under_another_pod_moves() {
        let mut tree = Tree::new(None);
        tree.claim(&burstable("a"), "1", protection(0, 100));
        assert_eq!(
            shown(&tree.claim(&guaranteed("b"), "1", protection(70, 0))),
            [
                "/kubepods 70 0",
                "/kubepods/b 70 0",
                "/kubepods/burstable 0 0",
                "/kubepods/burstable/a 0 0"
            ]
        );
        assert_eq!(tree.claim_of("1"), Some(protection(70, 0)));
    }

    #[test]
    fn a_pod_said_to_be_of_another_class_takes_its_claims_along() {
        let mut tree = Tree::new(Some(Bytes::new(150)));
        tree.claim(&place("x/y/a", QosClass::Burstable), "1", protection(0, 100));
        tree.claim(&place("x/y/b", QosClass::Burstable), "2", protection(0, 100));
        assert_eq!(
            shown(&tree.levels()),
            ["/x 150 150", "/x/y 0 150", "/x/y/a 0 75", "/x/y/b 0 75"]
        );
        // x/y is now kubepods for the first pod, and the class cgroup for the second.
        tree.set_overhead(&place("x/y/a", QosClass::Guaranteed), protection(0, 0));
        assert_eq!(
            shown(&tree.levels()),
            ["/x 50 50", "/x/y 100 150", "/x/y/a 0 100", "/x/y/b 0 50"]
        );
    }

    #[test]
    fn each_cgroup_driver_has_its_own_sums() {
        let mut tree = Tree::new(None);
        tree.claim(&burstable("a"), "1", protection(0, 100));
        let slice = place(
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podb.slice",
            QosClass::Burstable,
        );
        assert_eq!(
            shown(&tree.claim(&slice, "2", protection(1, 2))),
            [
                "/kubepods.slice 3 2",
                "/kubepods.slice/kubepods-burstable.slice 1 2",
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podb.slice 1 2"
            ]
        );
        assert_eq!(tree.desired(&path("kubepods")), Some(protection(100, 100)));
    }

    #[test]
    fn the_rest_is_shared_by_burstable_pods_when_guaranteed_ones_fit() {
        let mut tree = Tree::new(Some(Bytes::new(1000)));
        tree.claim(&guaranteed("g"), "1", protection(700, 0));
        tree.claim(&burstable("a"), "2", protection(0, 200));
        assert!(tree.shortfalls().is_empty());
        // The pods claim 400, and 300 are left.
        assert_eq!(
            shown(&tree.claim(&besteffort("b"), "3", protection(100, 100))),
            [
                "/kubepods 1000 225",
                "/kubepods/besteffort 75 75",
                "/kubepods/besteffort/b 75 75",
                "/kubepods/burstable 0 150",
                "/kubepods/burstable/a 0 150"
            ]
        );
        let short =
            |pod: &PodPlace, asked, gets| Shortfall { pod: pod.cgroup().clone(), asked, gets };
        assert_eq!(
            tree.shortfalls(),
            [
                short(&besteffort("b"), protection(100, 100), protection(75, 75)),
                short(&burstable("a"), protection(0, 200), protection(0, 150))
            ]
        );
        assert_eq!(tree.claim_of("2"), Some(protection(0, 200)));
        // A Guaranteed pod displaces all other pods until it is removed.
        assert_eq!(
            shown(&tree.claim(&guaranteed("h"), "4", protection(300, 0))),
            [
                "/kubepods 1000 0",
                "/kubepods/besteffort 0 0",
                "/kubepods/besteffort/b 0 0",
                "/kubepods/burstable 0 0",
                "/kubepods/burstable/a 0 0",
                "/kubepods/h 300 0"
            ]
        );
        tree.remove_pod(&path("kubepods/h"));
        assert_eq!(
            shown(&tree.release("3")),
            [
                "/kubepods 900 200",
                "/kubepods/besteffort 0 0",
                "/kubepods/besteffort/b 0 0",
                "/kubepods/burstable 0 200",
                "/kubepods/burstable/a 0 200"
            ]
        );
    }

    #[test]
    fn guaranteed_pods_share_the_budget_when_they_exceed_it() {
        let mut tree = Tree::new(Some(Bytes::new(100)));
        tree.claim(&burstable("a"), "1", protection(0, 50));
        tree.claim(&guaranteed("g"), "2", protection(200, 0));
        // Shares are rounded down: 66.6 and 33.3.
        tree.claim(&guaranteed("h"), "3", protection(100, 0));
        assert_eq!(
            shown(&tree.levels()),
            [
                "/kubepods 99 0",
                "/kubepods/burstable 0 0",
                "/kubepods/burstable/a 0 0",
                "/kubepods/g 66 0",
                "/kubepods/h 33 0"
            ]
        );
        assert_eq!(
            shown(&tree.set_budget(Some(Bytes::new(350)))),
            [
                "/kubepods 350 50",
                "/kubepods/burstable 0 50",
                "/kubepods/burstable/a 0 50",
                "/kubepods/g 200 0",
                "/kubepods/h 100 0"
            ]
        );
    }

    #[test]
    fn sums_beyond_the_largest_amount_are_shared_exactly() {
        let max = Bytes::MAX.get();
        let mut tree = Tree::new(None);
        for container in 0..40 {
            tree.claim(&burstable("a"), &container.to_string(), protection(u64::MAX, u64::MAX));
            tree.claim(&guaranteed("g"), &format!("g{container}"), protection(u64::MAX, u64::MAX));
        }
        assert_eq!(tree.desired(&path("kubepods/g")), Some(protection(max / 2, max / 2)));
        assert_eq!(tree.desired(&path("kubepods")), Some(protection(max - 1, max / 2)));
        for container in 0..40 {
            tree.release(&container.to_string());
            tree.release(&format!("g{container}"));
        }
        assert!(tree.levels().iter().all(|level| level.protection == Protection::default()));
    }

    /// Reference model of [`Tree`] that recomputes all values.
    #[derive(Clone, Debug, Default)]
    struct Model {
        budget: Option<Bytes>,
        containers: BTreeMap<String, (usize, Protection)>,
        overheads: BTreeMap<usize, Protection>,
        above: BTreeSet<CgroupPath>,
    }

    fn places() -> Vec<PodPlace> {
        let slice = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pode.slice";
        vec![
            guaranteed("a"),
            guaranteed("b"),
            burstable("c"),
            burstable("d"),
            place(slice, QosClass::Burstable),
            besteffort("f"),
        ]
    }

    impl Model {
        fn know(&mut self, pod: usize) {
            self.overheads.entry(pod).or_default();
            let place = &places()[pod];
            self.above.extend(place.class_cgroup().cloned());
            self.above.insert(place.kubepods().clone());
        }

        fn asked(&self, pod: usize) -> [u128; 2] {
            let claims =
                self.containers.values().filter(|(of, _)| *of == pod).map(|(_, claim)| claim);
            let sum = |knob: fn(&Protection) -> Bytes| {
                let sum: u128 = claims
                    .clone()
                    .chain([&self.overheads[&pod]])
                    .map(|p| u128::from(knob(p).get()))
                    .sum();
                sum.min(u128::from(Bytes::MAX.get()))
            };
            [sum(|p| p.min), sum(|p| p.low)]
        }

        fn levels(&self) -> BTreeMap<CgroupPath, Protection> {
            let places = places();
            let of_class = |first: bool| {
                let pods = self
                    .overheads
                    .keys()
                    .filter(|pod| (places[**pod].class() == QosClass::Guaranteed) == first);
                pods.map(|pod| self.asked(*pod).iter().sum::<u128>()).sum::<u128>()
            };
            let budget = u128::from(self.budget.unwrap_or(Bytes::MAX).get());
            let (first, others) = (of_class(true), of_class(false));
            let mut sums: BTreeMap<_, _> =
                self.above.iter().map(|cgroup| (cgroup.clone(), [0, 0])).collect();
            for &pod in self.overheads.keys() {
                let place = &places[pod];
                let (rest, asked) = match place.class() {
                    QosClass::Guaranteed => (budget, first),
                    _ => (budget.saturating_sub(first), others),
                };
                let [min, low] = self
                    .asked(pod)
                    .map(|part| if asked > rest { part * rest / asked } else { part });
                sums.insert(place.cgroup().clone(), [min, low]);
                let mut add = |cgroup: &CgroupPath, amounts: [u128; 2]| {
                    let sum = sums.get_mut(cgroup).unwrap();
                    *sum = [sum[0] + amounts[0], sum[1] + amounts[1]];
                };
                place.class_cgroup().into_iter().for_each(|class| add(class, [min, low]));
                add(place.kubepods(), [min + low, low]);
            }
            let exact = |bytes: u128| u64::try_from(bytes).unwrap();
            sums.into_iter()
                .map(|(cgroup, [min, low])| (cgroup, protection(exact(min), exact(low))))
                .collect()
        }
    }

    #[derive(Clone, Debug)]
    enum Event {
        Claim(usize, u8, Protection),
        Release(u8),
        Overhead(usize, Protection),
        Remove(usize),
        Budget(Option<Bytes>),
    }

    fn amount() -> impl Strategy<Value = Bytes> {
        prop_oneof![4 => 0..100u64, 1 => Just(0), 1 => any::<u64>(), 1 => Just(u64::MAX)]
            .prop_map(Bytes::new)
    }

    fn amounts() -> impl Strategy<Value = Protection> {
        (amount(), amount()).prop_map(|(min, low)| Protection { min, low })
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            6 => (0..6usize, 0..10u8, amounts()).prop_map(|(pod, container, claim)| Event::Claim(pod, container, claim)),
            3 => (0..10u8).prop_map(Event::Release),
            1 => (0..6usize, amounts()).prop_map(|(pod, overhead)| Event::Overhead(pod, overhead)),
            1 => (0..6usize).prop_map(Event::Remove),
            1 => proptest::option::of((0..600u64).prop_map(Bytes::new)).prop_map(Event::Budget),
        ]
    }

    fn apply(tree: &mut Tree, model: &mut Model, event: Event) -> Vec<Level> {
        let places = places();
        match event {
            Event::Claim(pod, container, claim) => {
                model.know(pod);
                model.containers.insert(container.to_string(), (pod, claim));
                tree.claim(&places[pod], &container.to_string(), claim)
            }
            Event::Release(container) => {
                model.containers.remove(&container.to_string());
                tree.release(&container.to_string())
            }
            Event::Overhead(pod, overhead) => {
                model.know(pod);
                model.overheads.insert(pod, overhead);
                tree.set_overhead(&places[pod], overhead)
            }
            Event::Remove(pod) => {
                model.overheads.remove(&pod);
                model.containers.retain(|_, (of, _)| *of != pod);
                tree.remove_pod(places[pod].cgroup())
            }
            Event::Budget(budget) => {
                model.budget = budget;
                tree.set_budget(budget)
            }
        }
    }

    fn as_map(levels: Vec<Level>) -> BTreeMap<CgroupPath, Protection> {
        levels.into_iter().map(|level| (level.cgroup, level.protection)).collect()
    }

    proptest! {
        #[test]
        fn sums_are_those_computed_anew_and_what_changed_is_returned(events in prop::collection::vec(event(), 0..60)) {
            let (mut tree, mut model) = (Tree::new(None), Model::default());
            for event in events {
                let before = as_map(tree.levels());
                let returned = apply(&mut tree, &mut model, event);
                let after = tree.levels();
                let mut changed = after.clone();
                changed.retain(|level| before.get(&level.cgroup) != Some(&level.protection));
                prop_assert_eq!(returned, changed);
                for (at, level) in after.iter().enumerate() {
                    prop_assert_eq!(tree.desired(&level.cgroup), Some(level.protection));
                    if let Some(parent) = level.cgroup.parent() {
                        prop_assert!(after[..at].iter().any(|level| level.cgroup == parent));
                    }
                }
                prop_assert_eq!(as_map(after), model.levels());
                let known: BTreeSet<_> = tree.containers().map(str::to_owned).collect();
                prop_assert!(known.iter().eq(model.containers.keys()));
                for (pod, place) in places().iter().enumerate() {
                    prop_assert_eq!(tree.pods().any(|known| known == place.cgroup()), model.overheads.contains_key(&pod));
                }
                for container in 0..10u8 {
                    let container = container.to_string();
                    prop_assert_eq!(tree.claim_of(&container), model.containers.get(&container).map(|(_, claim)| *claim));
                }
            }
        }

        #[test]
        fn no_level_has_more_than_its_parent_and_all_pods_no_more_than_the_budget(
            events in prop::collection::vec(event(), 0..60),
            budget in amount(),
        ) {
            let (mut tree, mut model) = (Tree::new(None), Model::default());
            for event in events {
                apply(&mut tree, &mut model, event);
            }
            tree.set_budget(Some(budget));
            model.budget = Some(budget);
            let gets = |pod: usize| tree.desired(places()[pod].cgroup()).unwrap();
            prop_assert!(model.overheads.keys().map(|pod| total(gets(*pod))).sum::<u128>() <= u128::from(budget.get()));
            let mut below: BTreeMap<CgroupPath, Sum> = BTreeMap::new();
            for Level { cgroup, protection } in tree.levels() {
                if let Some(parent) = cgroup.parent() {
                    below.entry(parent).or_default().replace(Protection::default(), protection);
                }
            }
            for (parent, sum) in below {
                let parent = tree.desired(&parent).unwrap();
                prop_assert!(sum.min <= u128::from(parent.min.get()) && sum.low <= u128::from(parent.low.get()));
            }
            // Guaranteed pods keep their claims if they fit, and no pod gets less without need.
            let asked = |pod: usize| model.asked(pod).iter().sum::<u128>();
            let of_first = |first| {
                let pods = model.overheads.keys().copied();
                pods.filter(move |pod| (places()[*pod].class() == QosClass::Guaranteed) == first)
            };
            let first: u128 = of_first(true).map(asked).sum();
            let all: u128 = first + of_first(false).map(asked).sum::<u128>();
            if first <= u128::from(budget.get()) {
                prop_assert!(of_first(true).all(|pod| total(gets(pod)) == asked(pod)));
            } else {
                prop_assert!(of_first(false).all(|pod| total(gets(pod)) == 0));
            }
            let short: BTreeSet<_> = tree.shortfalls().into_iter().map(|short| short.pod).collect();
            prop_assert_eq!(tree.is_short(), all > u128::from(budget.get()));
            prop_assert_eq!(short.is_empty(), all <= u128::from(budget.get()));
            for pod in model.overheads.keys() {
                prop_assert_eq!(short.contains(places()[*pod].cgroup()), total(gets(*pod)) < asked(*pod));
            }
        }
    }

    const MIB: u64 = 1 << 20;

    /// Builds observed values from rows of path, `memory.min`, `memory.low` and usage, in MiB.
    fn observed(rows: &[(&str, u64, u64, u64)]) -> BTreeMap<CgroupPath, Observed> {
        let row = |&(cgroup, min, low, usage): &(&str, u64, u64, u64)| {
            (
                path(cgroup),
                Observed {
                    setting: protection(min * MIB, low * MIB),
                    usage: Bytes::new(usage * MIB),
                },
            )
        };
        rows.iter().map(row).collect()
    }

    /// Returns the cgroup's effective `memory.min` in whole MiB.
    fn min_of(rows: &[(&str, u64, u64, u64)], recursive: bool, cgroup: &str) -> u64 {
        effective_tree(None, &observed(rows), recursive)[&path(cgroup)].min.get() / MIB
    }

    #[test]
    fn the_kernels_examples_come_out_as_it_says() {
        // Example in mm/memcontrol.c of 5.x: a parent has 2 GiB. Its children claim 3, 1, 0 and 10
        // GiB and use 2, 2, 2 and 0 GiB. The first two get 1.3 and 0.6 GiB.
        let step = |usage: u64, setting: u64| Step {
            usage: Bytes::new(usage),
            parent_usage: Bytes::new(6000),
            setting: Bytes::new(setting),
            parent_effective: Bytes::new(2000),
            siblings_protected: Bytes::new(3000),
            recursive: false,
        };
        for (usage, setting, expected) in
            [(2000, 3000, 1333), (2000, 1000, 666), (2000, 0, 0), (0, 10_000, 0)]
        {
            assert_eq!(effective(&step(usage, setting)), Bytes::new(expected), "{usage} {setting}");
        }
        // Example for memory_recursiveprot in the same file: a parent has 2 GiB, and its children
        // claim 1 and 0 GiB. In balance the children use 1.5 and 0.5 GiB, and all of that is
        // protected.
        for (usage, setting, plain, recursive) in [(1500, 1000, 1000, 1500), (500, 0, 0, 500)] {
            let step = |recursive| Step {
                usage: Bytes::new(usage),
                parent_usage: Bytes::new(2000),
                setting: Bytes::new(setting),
                parent_effective: Bytes::new(2000),
                siblings_protected: Bytes::new(1000),
                recursive,
            };
            assert_eq!(effective(&step(false)), Bytes::new(plain));
            assert_eq!(effective(&step(true)), Bytes::new(recursive));
        }
    }

    #[test]
    fn the_tree_of_the_kernels_selftest_is_divided_by_use() {
        // Source: tools/testing/selftests/cgroup/test_memcontrol.c, test_memcg_protection.
        let rows = [
            ("a", 50, 0, 150),
            ("a/b", 50, 0, 150),
            ("a/b/c", 75, 0, 50),
            ("a/b/d", 25, 0, 50),
            ("a/b/e", 0, 0, 50),
            ("a/b/f", 500, 0, 0),
        ];
        for recursive in [false, true] {
            for (cgroup, expected) in
                [("a", 50), ("a/b", 50), ("a/b/c", 33), ("a/b/d", 16), ("a/b/e", 0), ("a/b/f", 0)]
            {
                assert_eq!(min_of(&rows, recursive, cgroup), expected, "{cgroup}");
            }
        }
    }

    #[test]
    fn protection_needs_every_level_unless_it_is_recursive() {
        // Measured results: a container uses 100 MiB, and the memory pressure comes from outside
        // kubepods.
        const CONTAINER: &str = "kubepods/burstable/pod/container";
        for (kubepods, class, pod, container, plain, recursive) in [
            (100, 100, 100, 100, 100, 100),
            (0, 0, 0, 100, 0, 0),
            (0, 0, 100, 100, 0, 0),
            (0, 100, 100, 100, 0, 0),
            (50, 100, 100, 100, 50, 50),
            (100, 0, 0, 0, 0, 100),
            (100, 0, 0, 100, 0, 100),
            (100, 0, 100, 100, 0, 100),
            (100, 100, 100, 0, 0, 100),
        ] {
            let rows = [
                ("kubepods", kubepods, 0, 100),
                ("kubepods/burstable", class, 0, 100),
                ("kubepods/burstable/pod", pod, 0, 100),
                (CONTAINER, container, 0, 100),
            ];
            assert_eq!(min_of(&rows, false, CONTAINER), plain, "{rows:?}");
            assert_eq!(min_of(&rows, true, CONTAINER), recursive, "{rows:?}");
        }
    }

    #[test]
    fn where_reclaim_starts_its_own_files_play_no_part() {
        let rows = [
            ("kubepods", 0, 0, 100),
            ("kubepods/burstable", 0, 80, 100),
            ("kubepods/burstable/pod", 0, 90, 100),
        ];
        let found = effective_tree(Some(&path("kubepods")), &observed(&rows), false);
        assert_eq!(found.get(&path("kubepods")), None);
        assert_eq!(found[&path("kubepods/burstable/pod")], protection(0, 80 * MIB));
        let found = effective_tree(None, &observed(&rows), false);
        assert_eq!(found[&path("kubepods/burstable/pod")], Protection::default());
    }

    #[test]
    fn without_its_ancestors_nothing_is_said_of_a_cgroup() {
        let rows = [("a", 10, 0, 10), ("b/c", 10, 0, 10), ("b/c/d", 10, 0, 10)];
        let found = effective_tree(None, &observed(&rows), true);
        assert_eq!(found.into_keys().collect::<Vec<_>>(), [path("a")]);
    }

    #[test]
    fn unused_protection_of_a_cgroup_is_its_siblings() {
        let rows = [("a", 100, 0, 100), ("a/b", 100, 0, 10), ("a/c", 100, 0, 90)];
        assert_eq!(min_of(&rows, false, "a/b"), 10);
        assert_eq!(min_of(&rows, false, "a/c"), 90);
    }

    #[test]
    fn the_standing_is_the_worse_of_both_files() {
        for (setting, usage, effective, expected) in [
            ((0, 0), 100, (0, 0), Standing::Unclaimed),
            ((0, 0), 100, (100, 100), Standing::Unclaimed),
            ((100, 0), 0, (0, 0), Standing::Protected),
            ((100, 0), 50, (50, 0), Standing::Protected),
            ((100, 0), 200, (90, 0), Standing::Protected),
            ((100, 0), 200, (89, 0), Standing::Partly),
            ((100, 0), 200, (10, 0), Standing::Partly),
            ((100, 0), 200, (9, 0), Standing::Inert),
            ((100, 0), 200, (0, 100), Standing::Inert),
            ((100, 100), 200, (100, 0), Standing::Inert),
            ((0, 100), 200, (0, 50), Standing::Partly),
            ((u64::MAX, u64::MAX), u64::MAX, (u64::MAX, u64::MAX), Standing::Protected),
        ] {
            let pair = |(min, low)| protection(min, low);
            let found = Standing::of(pair(setting), Bytes::new(usage), pair(effective));
            assert_eq!(found, expected, "{setting:?} {usage} {effective:?}");
        }
        assert_eq!(
            Standing::ALL.map(|standing| standing.to_string()),
            ["unclaimed", "protected", "partly", "inert"]
        );
    }

    /// Generates a tree with consistent usages: each cgroup uses what its children use, plus an
    /// amount of its own.
    fn consistent() -> impl Strategy<Value = BTreeMap<CgroupPath, Observed>> {
        let amount = || prop_oneof![2 => 0..200u64, 1 => Just(0), 1 => 0..1u64 << 58];
        let row = || (amount(), amount(), amount());
        prop::collection::vec(
            (row(), prop::collection::vec((row(), prop::collection::vec(row(), 0..4)), 0..4)),
            1..3,
        )
        .prop_map(|tops| {
            let mut rows = BTreeMap::new();
            let mut put = |cgroup: &str, (min, low, own): (u64, u64, u64), below: u64| {
                let usage = Bytes::new(own + below);
                rows.insert(path(cgroup), Observed { setting: protection(min, low), usage });
                own + below
            };
            for (t, (top, middles)) in tops.into_iter().enumerate() {
                let mut in_top = 0;
                for (m, (middle, leaves)) in middles.into_iter().enumerate() {
                    let in_middle = leaves.into_iter().enumerate();
                    let in_middle =
                        in_middle.map(|(l, leaf)| put(&format!("{t}/{m}/{l}"), leaf, 0)).sum();
                    in_top += put(&format!("{t}/{m}"), middle, in_middle);
                }
                put(&t.to_string(), top, in_top);
            }
            rows
        })
    }

    proptest! {
        #[test]
        fn effective_protection_exceeds_neither_usage_nor_what_the_parent_has(
            observed in consistent(),
            recursive in any::<bool>(),
        ) {
            let found = effective_tree(None, &observed, recursive);
            prop_assert_eq!(found.len(), observed.len());
            let mut below: BTreeMap<CgroupPath, Sum> = BTreeMap::new();
            for (cgroup, effective) in &found {
                let Observed { setting, usage } = observed[cgroup];
                prop_assert!(effective.min <= usage && effective.low <= usage);
                if !recursive {
                    prop_assert!(effective.min <= setting.min && effective.low <= setting.low);
                }
                if let Some(parent) = cgroup.parent() {
                    below.entry(parent).or_default().replace(Protection::default(), *effective);
                }
            }
            for (parent, sum) in below {
                let parent = found[&parent];
                prop_assert!(sum.min <= u128::from(parent.min.get()), "{sum:?} {parent:?}");
                prop_assert!(sum.low <= u128::from(parent.low.get()), "{sum:?} {parent:?}");
            }
        }

        #[test]
        fn below_a_parent_with_nothing_every_claim_is_inert(mut observed in consistent()) {
            let parents: Vec<_> = observed.keys().filter(|cgroup| cgroup.parent().is_none()).cloned().collect();
            for parent in parents {
                observed.get_mut(&parent).unwrap().setting = Protection::default();
            }
            for (cgroup, effective) in effective_tree(None, &observed, false) {
                prop_assert_eq!(effective, Protection::default());
                let Observed { setting, usage } = observed[&cgroup];
                let claims = setting != Protection::default();
                if claims && usage > Bytes::ZERO {
                    prop_assert_eq!(Standing::of(setting, usage, effective), Standing::Inert);
                }
            }
        }

        #[test]
        fn what_the_tree_asks_for_protects_every_container(
            claims in prop::collection::vec((0..6usize, (0..1000u64, 0..1000u64), 0..3000u64), 1..12),
        ) {
            let mut tree = Tree::new(None);
            let mut observed: BTreeMap<CgroupPath, Observed> = BTreeMap::new();
            let mut containers = Vec::new();
            for (at, (pod, (min, low), usage)) in claims.into_iter().enumerate() {
                let (place, setting, usage) = (&places()[pod], protection(min, low), Bytes::new(usage));
                tree.claim(place, &at.to_string(), setting);
                let cgroup = place.cgroup().join(&at.to_string()).unwrap();
                let mut above = cgroup.parent();
                while let Some(cgroup) = above {
                    let level = observed.entry(cgroup.clone()).or_default();
                    level.usage = level.usage.saturating_add(usage);
                    above = cgroup.parent();
                }
                observed.insert(cgroup.clone(), Observed { setting, usage });
                containers.push(cgroup);
            }
            for Level { cgroup, protection } in tree.levels() {
                observed.get_mut(&cgroup).unwrap().setting = protection;
            }
            let found = effective_tree(None, &observed, false);
            for container in containers {
                let Observed { setting, usage } = observed[&container];
                let due = Protection { min: setting.min.min(usage), low: setting.low.min(usage) };
                prop_assert_eq!(found[&container], due);
            }
        }

        #[test]
        fn no_amounts_are_too_large(
            amounts in prop::collection::vec((amounts(), amount()), 6),
            step in prop::array::uniform5(amount()),
            recursive in any::<bool>(),
        ) {
            let [usage, parent_usage, setting, parent_effective, siblings_protected] = step;
            effective(&Step { usage, parent_usage, setting, parent_effective, siblings_protected, recursive });
            let paths = ["a", "a/b", "a/c", "a/b/d", "a/b/e", "f/g"];
            let rows = paths.into_iter().zip(&amounts);
            let observed = rows.map(|(at, &(setting, usage))| (path(at), Observed { setting, usage })).collect();
            for (cgroup, effective) in effective_tree(None, &observed, recursive) {
                let Observed { setting, usage } = observed[&cgroup];
                prop_assert!(effective.min <= usage && effective.low <= usage);
                Standing::of(setting, usage, effective);
            }
        }
    }
}
