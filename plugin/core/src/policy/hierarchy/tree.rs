//! Protection that containers need, and the resulting protection of the cgroups above them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::sums::{Share, Shares, Sum, total};
use crate::pod::{CgroupPath, PodPlace, QosClass};
use crate::policy::protection::Protection;
use crate::units::Bytes;

/// Desired protection of a cgroup above the containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Level {
    /// The cgroup of a pod, the cgroup of a class, kubepods, or a cgroup above kubepods.
    pub cgroup: CgroupPath,
    /// The desired values of the cgroup's files.
    pub protection: Protection,
}

/// Pod that gets less protection than it needs, because node allocatable is too small.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortfall {
    /// The pod's cgroup.
    pub pod: CgroupPath,
    /// The protection that the pod needs.
    pub asked: Protection,
    /// The protection that the pod gets.
    pub gets: Protection,
}

/// Protection that all containers need, and the resulting desired values of the cgroups above them.
///
/// Each method that changes the tree returns the cgroups whose desired values changed, parents
/// before children. A new cgroup counts as changed even without protection, because its files may
/// hold old values. The running time of a call depends on the number of pods only if the pods need
/// more protection than the budget allows.
///
/// [`Tree::remove_pod`] removes a pod, but the pod's ancestors stay in the tree forever. If there
/// are several kubepods cgroups, they share one budget.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    budget: Option<Bytes>,
    pods: HashMap<CgroupPath, Pod>,
    /// Desired values of the cgroups of classes, of kubepods and of the cgroups above it, as sums.
    above: HashMap<CgroupPath, Sum>,
    /// The cgroups of all pods. A node usually has one.
    kubepods: BTreeSet<CgroupPath>,
    /// The pod of each container.
    containers: HashMap<String, CgroupPath>,
    /// Sum of `memory.min` and `memory.low` that all Guaranteed pods need.
    guaranteed: u128,
    /// Sum of `memory.min` and `memory.low` that all other pods need.
    others: u128,
}

#[derive(Clone, Debug)]
struct Pod {
    place: PodPlace,
    containers: HashMap<String, Protection>,
    overhead: Protection,
    /// Protection that the pod's own request needs, with the overhead. The containers' requests are
    /// a part of it.
    own: Protection,
    /// Upper bound of the protection that the pod needs. Derived from the pod's memory limit.
    cap: Option<Bytes>,
    /// Sum of the protection that the containers and the overhead need.
    asked: Sum,
    gets: Protection,
}

impl Tree {
    /// Creates a tree without pods. `budget` is node allocatable. `None` means that the budget is
    /// unknown and does not limit the protection.
    pub fn new(budget: Option<Bytes>) -> Self {
        Self { budget, ..Self::default() }
    }

    /// Replaces the budget (node allocatable).
    pub fn set_budget(&mut self, budget: Option<Bytes>) -> Vec<Level> {
        let change = self.begin();
        self.budget = budget;
        self.finish(change)
    }

    /// Sets the protection that a container needs. Adds the container's pod if the tree does not
    /// have it. If the container was in another pod, moves it to this pod.
    pub fn claim(&mut self, pod: &PodPlace, container: &str, claim: Protection) -> Vec<Level> {
        let mut change = self.begin();
        if self.containers.get(container) != Some(pod.cgroup()) {
            self.forget(container, &mut change);
            self.containers.insert(container.to_owned(), pod.cgroup().clone());
        }
        self.edit(pod, &mut change, |pod| {
            let last = pod.containers.insert(container.to_owned(), claim);
            pod.asked.replace(last.unwrap_or_default(), claim);
        });
        self.finish(change)
    }

    /// Returns the protection that a container needs.
    pub fn claim_of(&self, container: &str) -> Option<Protection> {
        self.pods.get(self.containers.get(container)?)?.containers.get(container).copied()
    }

    /// Returns the ID of every container in the tree, in no particular order.
    pub fn containers(&self) -> impl Iterator<Item = &str> {
        self.containers.keys().map(String::as_str)
    }

    /// Returns the cgroup of every known pod, in no particular order.
    pub fn pods(&self) -> impl Iterator<Item = &CgroupPath> {
        self.pods.keys()
    }

    /// Returns the pod of a container in the tree.
    pub fn pod_of(&self, container: &str) -> Option<&CgroupPath> {
        self.containers.get(container)
    }

    /// Returns whether this is the cgroup of a known pod.
    pub fn is_pod(&self, cgroup: &CgroupPath) -> bool {
        self.pods.contains_key(cgroup)
    }

    /// Removes a container, if the tree has it.
    pub fn release(&mut self, container: &str) -> Vec<Level> {
        let mut change = self.begin();
        self.forget(container, &mut change);
        self.finish(change)
    }

    /// Sets the protection that a pod's overhead needs. Adds the pod if the tree does not have it.
    pub fn set_overhead(&mut self, pod: &PodPlace, overhead: Protection) -> Vec<Level> {
        let mut change = self.begin();
        self.edit(pod, &mut change, |pod| {
            pod.asked.replace(pod.overhead, overhead);
            pod.overhead = overhead;
        });
        self.finish(change)
    }

    /// Sets the protection that a pod's own request needs, with the pod's overhead. Does nothing
    /// for an unknown pod.
    pub fn set_own(&mut self, pod: &CgroupPath, own: Protection) -> Vec<Level> {
        let Some(place) =
            self.pods.get(pod).filter(|pod| pod.own != own).map(|pod| pod.place.clone())
        else {
            return Vec::new();
        };
        let mut change = self.begin();
        self.edit(&place, &mut change, |pod| pod.own = own);
        self.finish(change)
    }

    /// Sets the upper bound of the protection that a pod needs. `None` removes the upper bound.
    /// Does nothing for an unknown pod.
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

    /// Removes a pod with its containers. The tree keeps the cgroups above the pod. Does nothing
    /// for an unknown pod.
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

    /// Returns the desired protection of every known cgroup above containers, parents before
    /// children.
    pub fn levels(&self) -> Vec<Level> {
        let above = self.above.iter().map(|(cgroup, sum)| (cgroup, sum.protection()));
        let pods = self.pods.iter().map(|(cgroup, pod)| (cgroup, pod.gets));
        // The order by path puts a parent before its descendants.
        let levels: BTreeMap<_, _> = above.chain(pods).collect();
        levels
            .into_iter()
            .map(|(cgroup, protection)| Level { cgroup: cgroup.clone(), protection })
            .collect()
    }

    /// Returns the cgroup of all pods. If there are several, returns the one whose path comes
    /// first.
    pub fn kubepods(&self) -> Option<&CgroupPath> {
        self.kubepods.first()
    }

    /// Returns whether this is a cgroup of all pods.
    pub fn is_kubepods(&self, cgroup: &CgroupPath) -> bool {
        self.kubepods.contains(cgroup)
    }

    /// Returns whether the cgroup is above kubepods. Such a cgroup may belong to other programs,
    /// too: its values must be at least the desired ones.
    pub fn is_above_kubepods(&self, cgroup: &CgroupPath) -> bool {
        self.kubepods.iter().any(|kubepods| kubepods.is_below(cgroup))
    }

    /// Returns whether any pod gets less protection than it needs, because all pods together need
    /// more than the budget.
    pub fn is_short(&self) -> bool {
        let shares = self.shares();
        shares.guaranteed.is_short() || shares.others.is_short()
    }

    /// Returns the pods that get less protection than they need, sorted by path.
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

    fn begin(&self) -> TreeChange {
        TreeChange { shares: self.shares(), before: BTreeMap::new(), pods: Vec::new() }
    }

    /// Updates the protection of the pods that the current call changed. Updates all pods of a
    /// class if the budget now covers a different part of their needs.
    fn finish(&mut self, mut change: TreeChange) -> Vec<Level> {
        let shares = self.shares();
        let is_other = |class| !shares.of(class).is_same_for_all(change.shares.of(class));
        // The share of a class changes only if all pods together need more than the budget, before
        // or after the call.
        if is_other(QosClass::Guaranteed) || is_other(QosClass::Burstable) {
            let places = self.pods.values().map(|pod| &pod.place);
            change.pods = places
                .filter(|place| is_other(place.class()))
                .cloned()
                .chain(change.pods)
                .collect();
        }
        for place in std::mem::take(&mut change.pods) {
            let Some(pod) = self.pods.get(place.cgroup()) else { continue };
            let (last, gets) = (pod.gets, shares.of(place.class()).part(pod.asks_for()));
            if gets != last {
                self.note(place.cgroup(), &mut change);
                self.replace_above(&place, last, gets, &mut change);
                self.pods.entry(place.cgroup().clone()).and_modify(|pod| pod.gets = gets);
            }
        }
        let changed = change.before.into_iter().filter_map(|(cgroup, before)| {
            let protection = self.desired(&cgroup)?;
            (before != Some(protection)).then_some(Level { cgroup, protection })
        });
        changed.collect()
    }

    /// Edits a pod. First adds the pod if the tree does not have it.
    fn edit(&mut self, place: &PodPlace, change: &mut TreeChange, edit: impl FnOnce(&mut Pod)) {
        let mut pod = self.withdraw(place.cgroup(), change).unwrap_or_else(|| Pod::new(place));
        // The caller may pass a different QoS class than before.
        pod.place = place.clone();
        edit(&mut pod);
        *self.asked_by(place.class()) += total(pod.asks_for());
        self.replace_above(place, Protection::default(), pod.gets, change);
        change.pods.push(place.clone());
        self.pods.insert(place.cgroup().clone(), pod);
    }

    /// Removes a pod from every sum. The pod's protection is zero until [`Tree::finish`] sets it.
    fn withdraw(&mut self, cgroup: &CgroupPath, change: &mut TreeChange) -> Option<Pod> {
        self.note(cgroup, change);
        let mut pod = self.pods.remove(cgroup)?;
        *self.asked_by(pod.place.class()) -= total(pod.asks_for());
        let gets = std::mem::take(&mut pod.gets);
        self.replace_above(&pod.place, gets, pod.gets, change);
        Some(pod)
    }

    fn forget(&mut self, container: &str, change: &mut TreeChange) {
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
        change: &mut TreeChange,
    ) {
        if let Some(class) = place.class_cgroup() {
            self.note(class, change);
            self.above.entry(class.clone()).or_default().replace(last, new);
        }
        if !self.kubepods.contains(place.kubepods()) {
            self.kubepods.insert(place.kubepods().clone());
        }
        for cgroup in place.kubepods().lineage() {
            self.note(&cgroup, change);
            let sum = self.above.entry(cgroup).or_default();
            sum.replace(last, new);
            sum.replace_min(last.low, new.low);
        }
    }

    /// Stores the desired value that a cgroup had before the current call. A second call for the
    /// same cgroup changes nothing.
    fn note(&self, cgroup: &CgroupPath, change: &mut TreeChange) {
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
            own: Protection::default(),
            cap: None,
            asked: Sum::default(),
            gets: Protection::default(),
        }
    }

    /// Returns the protection that the pod needs: the sum or the pod's own request, whichever is
    /// larger, but at most `cap`.
    fn asks_for(&self) -> Protection {
        let Protection { min, low } = self.asked.protection().max(self.own);
        match self.cap {
            Some(cap) => Protection { min: min.min(cap), low: low.min(cap.saturating_sub(min)) },
            None => Protection { min, low },
        }
    }
}

/// Data of one call that changes the tree.
struct TreeChange {
    /// The shares of the budget before the call.
    shares: Shares,
    /// The desired values that the affected cgroups had before the call.
    before: BTreeMap<CgroupPath, Option<Protection>>,
    /// The pods that the call changed.
    pods: Vec<PodPlace>,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::super::testing::{
        amount, amounts, besteffort, burstable, guaranteed, path, place, places, protection,
    };
    use super::*;

    /// Formats each cgroup as `path min low`.
    fn shown(levels: &[Level]) -> Vec<String> {
        let line = |Level { cgroup, protection }: &Level| {
            format!("{cgroup} {} {}", protection.min, protection.low)
        };
        levels.iter().map(line).collect()
    }

    #[test]
    fn a_pod_limit_caps_protection_low_first() {
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
    fn a_pods_own_request_exceeds_the_sum() {
        let mut tree = Tree::new(None);
        let pod = burstable("pod1");
        assert!(tree.set_own(pod.cgroup(), protection(0, 100)).is_empty());
        tree.claim(&pod, "a", protection(0, 30));
        let own = tree.set_own(pod.cgroup(), protection(0, 100));
        assert_eq!(
            shown(&own),
            ["/kubepods 100 100", "/kubepods/burstable 0 100", "/kubepods/burstable/pod1 0 100"]
        );
        assert!(tree.claim(&pod, "b", protection(0, 60)).is_empty());
        tree.claim(&pod, "b", protection(0, 90));
        assert_eq!(tree.desired(pod.cgroup()), Some(protection(0, 120)));
        tree.set_cap(pod.cgroup(), Some(Bytes::new(110)));
        assert_eq!(tree.desired(pod.cgroup()), Some(protection(0, 110)));
        for container in ["a", "b"] {
            tree.release(container);
        }
        assert_eq!(tree.desired(pod.cgroup()), Some(protection(0, 100)));
        tree.set_own(pod.cgroup(), protection(0, 0));
        assert_eq!(tree.desired(pod.cgroup()), Some(protection(0, 0)));
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
    fn parents_of_a_removed_pod_stay_known() {
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
    fn a_qos_class_change_moves_existing_claims() {
        let mut tree = Tree::new(Some(Bytes::new(150)));
        tree.claim(&place("x/y/a", QosClass::Burstable), "1", protection(0, 100));
        tree.claim(&place("x/y/b", QosClass::Burstable), "2", protection(0, 100));
        assert_eq!(
            shown(&tree.levels()),
            ["/x 150 150", "/x/y 0 150", "/x/y/a 0 75", "/x/y/b 0 75"]
        );
        // x/y is now the kubepods cgroup of the first pod and the class cgroup of the second pod.
        tree.set_overhead(&place("x/y/a", QosClass::Guaranteed), protection(0, 0));
        assert_eq!(
            shown(&tree.levels()),
            ["/x 150 150", "/x/y 100 150", "/x/y/a 0 100", "/x/y/b 0 50"]
        );
    }

    #[test]
    fn cgroups_above_kubepods_get_its_values() {
        let mut tree = Tree::new(None);
        let claimed =
            tree.claim(&place("a/b/kubepods/pod1", QosClass::Guaranteed), "1", protection(5, 2));
        let expected = ["/a 7 2", "/a/b 7 2", "/a/b/kubepods 7 2", "/a/b/kubepods/pod1 5 2"];
        assert_eq!(shown(&claimed), expected);
        assert_eq!(tree.kubepods(), Some(&path("a/b/kubepods")));
        assert!(tree.is_kubepods(&path("a/b/kubepods")));
        for (cgroup, is_above) in [
            ("a", true),
            ("a/b", true),
            ("a/b/kubepods", false),
            ("a/b/kube", false),
            ("a/b/kubepods/pod1", false),
        ] {
            assert_eq!(tree.is_above_kubepods(&path(cgroup)), is_above, "{cgroup}");
        }
        // Another kubepods below the same cgroup root.
        tree.claim(&place("a/kubepods/pod2", QosClass::Guaranteed), "2", protection(10, 0));
        assert_eq!(tree.desired(&path("a")), Some(protection(17, 2)));
        assert_eq!(tree.desired(&path("a/b")), Some(protection(7, 2)));
        tree.remove_pod(&path("a/b/kubepods/pod1"));
        assert_eq!(tree.desired(&path("a")), Some(protection(10, 0)));
        assert_eq!(tree.desired(&path("a/b")), Some(protection(0, 0)));
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
    fn other_classes_share_the_remaining_budget() {
        let mut tree = Tree::new(Some(Bytes::new(1000)));
        tree.claim(&guaranteed("g"), "1", protection(700, 0));
        tree.claim(&burstable("a"), "2", protection(0, 200));
        assert!(tree.shortfalls().is_empty());
        // Pods `a` and `b` need 400, but only 300 of the budget are left.
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
        // A Guaranteed pod takes the whole budget, so all other pods get nothing until its removal.
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
    fn guaranteed_pods_share_a_short_budget_proportionally() {
        let mut tree = Tree::new(Some(Bytes::new(100)));
        tree.claim(&burstable("a"), "1", protection(0, 50));
        tree.claim(&guaranteed("g"), "2", protection(200, 0));
        // The shares 66.6 and 33.3 are rounded down.
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
    fn overflowing_sums_are_shared_and_released_exactly() {
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

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            6 => (0..6usize, 0..10u8, amounts())
                .prop_map(|(pod, container, claim)| Event::Claim(pod, container, claim)),
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
        fn updates_return_changes_and_match_recomputation(
            events in prop::collection::vec(event(), 0..60),
        ) {
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
                    prop_assert_eq!(
                        tree.pods().any(|known| known == place.cgroup()),
                        model.overheads.contains_key(&pod)
                    );
                }
                for container in 0..10u8 {
                    let container = container.to_string();
                    prop_assert_eq!(
                        tree.claim_of(&container),
                        model.containers.get(&container).map(|(_, claim)| *claim)
                    );
                }
            }
        }

        #[test]
        fn levels_stay_within_parents_and_budget(
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
            prop_assert!(
                model.overheads.keys().map(|pod| total(gets(*pod))).sum::<u128>()
                    <= u128::from(budget.get())
            );
            let mut below: BTreeMap<CgroupPath, Sum> = BTreeMap::new();
            for Level { cgroup, protection } in tree.levels() {
                if let Some(parent) = cgroup.parent() {
                    below.entry(parent).or_default().replace(Protection::default(), protection);
                }
            }
            for (parent, sum) in below {
                let parent = tree.desired(&parent).unwrap();
                prop_assert!(
                    sum.min <= u128::from(parent.min.get())
                        && sum.low <= u128::from(parent.low.get())
                );
            }
            // Guaranteed pods get all that they need if the budget allows it, and no pod gets less
            // than it needs unless the budget is too small.
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
                prop_assert_eq!(
                    short.contains(places()[*pod].cgroup()),
                    total(gets(*pod)) < asked(*pod)
                );
            }
        }
    }
}
