//! Tests of the managed cgroups with a test double of systemd.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use plimsoll_core::pod::{CgroupPath, QosClass};
use plimsoll_core::policy::Protection;
use plimsoll_core::policy::hierarchy::PodPlace;
use plimsoll_core::units::{Bytes, Knob, Limit, PageSize};

use super::{CheckNext, Levels};
use crate::agent::systemd::keep_values;
use crate::cgroup::systemd::fake::{Host, Mood, POD};
use crate::config::Config;
use crate::lock;
use crate::state::originals::{Originals, Target, Values};
use crate::state::settings::Settings;
use crate::state::testing::TestNode;

const KUBEPODS: &str = "kubepods.slice";

/// A host with systemd, and a Guaranteed pod whose slice is a unit.
struct Arranged {
    host: Host,
    place: PodPlace,
    levels: Arc<Levels>,
    originals: Arc<Mutex<Originals>>,
}

impl Arranged {
    fn new() -> Self {
        let host = Host::new().with_bus();
        for cgroup in [KUBEPODS, POD] {
            host.cgroup(cgroup, &[("memory.min", "0"), ("memory.low", "0")]);
        }
        let originals = Arc::new(Mutex::new(Originals::none(host.directory.path())));
        let place = PodPlace::new(path(POD), QosClass::Guaranteed).unwrap();
        let levels = Arc::new(Levels::new(
            Arc::new(host.root()),
            PageSize::KIB4,
            originals.clone(),
            Arc::default(),
        ));
        Self { host, place, levels, originals }
    }

    fn make_last(&self) {
        let root = Arc::new(self.host.root());
        tokio::spawn(keep_values(self.levels.clone(), root, self.host.systemd()));
    }

    fn claim(&self, min: u64) {
        let claim = Protection { min: Bytes::new(min), low: Bytes::ZERO };
        self.levels.claim_if(&self.place, "app", claim, || true);
    }

    fn write(&self, min: u64) {
        self.host.cgroup(POD, &[("memory.min", &min.to_string())]);
    }

    fn check(&self) -> CheckNext {
        self.levels.check(&path(POD), &[Knob::Min]).next
    }

    fn min(&self) -> Limit {
        self.host.root().cgroup(&path(POD)).unwrap().read(Knob::Min).unwrap()
    }

    /// Returns the values of MemoryMin that systemd has received, oldest first.
    fn sent(&self) -> Vec<u64> {
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
            "{what}: memory.min is {}, systemd received {:?}",
            self.min(),
            self.sent()
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
async fn claims_change_only_under_their_condition() {
    let arranged = Arranged::new();
    let claim = |min| Protection { min: Bytes::new(min), low: Bytes::ZERO };
    let Arranged { levels, place, .. } = &arranged;
    levels.claim_if(place, "app", claim(8192), || false);
    levels.claim_at_least_if(place, "app", claim(8192), || false);
    assert_eq!(arranged.min(), bytes(0));
    levels.claim_at_least_if(place, "app", claim(8192), || true);
    assert_eq!(arranged.min(), bytes(8192));
    levels.claim_at_least(place, "app", claim(4096));
    assert_eq!(arranged.min(), bytes(8192), "a larger claim stays");
    levels.claim_at_least(place, "app", claim(16384));
    assert_eq!(arranged.min(), bytes(16384));
    levels.claim_if(place, "app", claim(4096), || true);
    assert_eq!(arranged.min(), bytes(4096));
}

#[tokio::test]
async fn systemd_receives_desired_values_not_foreign_writes() {
    let arranged = Arranged::new();
    // The time between two repairs decides whether the plugin repairs, so stop the clock.
    tokio::time::pause();
    arranged.claim(8192);
    for _ in 0..2 {
        arranged.write(4096);
        assert_eq!(arranged.check(), CheckNext::Settled);
        assert_eq!(arranged.min(), bytes(8192));
    }
    // The third repair must wait.
    arranged.write(4096);
    assert!(matches!(arranged.check(), CheckNext::Again(_)));
    tokio::time::resume();
    arranged.make_last();
    arranged.until("sent", || !arranged.sent().is_empty()).await;
    assert_eq!(arranged.sent(), [8192]);
}

#[tokio::test]
async fn no_values_are_forgotten_during_a_synchronization() {
    let arranged = Arranged::new();
    let target = Target::Container("app".to_owned());
    let known = Values { min: Some(bytes(0)), low: Some(bytes(0)), high: Some(Limit::Max) };
    lock(&arranged.originals).remember(target.clone(), known).unwrap();
    let is_replaced = AtomicBool::new(false);
    let levels = &arranged.levels;
    std::thread::scope(|threads| {
        levels.synchronize(Vec::new(), || {
            let (done, pruned) = std::sync::mpsc::channel();
            let is_replaced = &is_replaced;
            threads.spawn(move || {
                levels.prune(|_| is_replaced.load(Ordering::SeqCst));
                let _ = done.send(());
            });
            let waited = pruned.recv_timeout(Duration::from_millis(100));
            assert_eq!(waited, Err(RecvTimeoutError::Timeout), "the other thread must wait");
            is_replaced.store(true, Ordering::SeqCst);
        });
    });
    assert_eq!(lock(&arranged.originals).get(&target), Some(known));
}

#[tokio::test]
async fn a_new_cgroup_is_no_foreign_change() {
    let arranged = Arranged::new();
    arranged.claim(8192);
    assert_eq!(arranged.min(), bytes(8192));
    let removed = arranged.host.directory.path().join("cgroup").join(POD);
    // The former cgroup keeps its inode number, so the new cgroup gets another one.
    std::fs::rename(&removed, removed.with_extension("former")).unwrap();
    arranged.host.cgroup(POD, &[("memory.min", "0"), ("memory.low", "0")]);
    let incidents = arranged.levels.check(&path(POD), &[Knob::Min]).incidents;
    assert_eq!((arranged.min(), incidents.len()), (bytes(8192), 0), "{incidents:?}");
    arranged.write(4096);
    let incidents = arranged.levels.check(&path(POD), &[Knob::Min]).incidents;
    assert_eq!((arranged.min(), incidents.len()), (bytes(8192), 1), "{incidents:?}");
}

#[tokio::test]
async fn foreign_writes_count_while_systemd_is_late() {
    let arranged = Arranged::new();
    arranged.host.fake().mood = Mood::Late;
    arranged.make_last();
    arranged.claim(8192);
    arranged.until("sent", || !arranged.sent().is_empty()).await;
    tokio::time::pause();
    for repairs in 1..=2 {
        arranged.write(0);
        arranged.check();
        assert_eq!(
            lock(&arranged.levels.state).contention.repairs(&(path(POD), Knob::Min)),
            repairs
        );
    }
    arranged.write(0);
    assert!(matches!(arranged.check(), CheckNext::Again(_)));
}

#[tokio::test]
async fn late_systemd_writes_are_replaced_without_contention() {
    let arranged = Arranged::new();
    arranged.host.fake().mood = Mood::Late;
    let writes = arranged.host.fake().writes.clone();
    arranged.make_last();
    let values = [8192, 4096, 16384, 12288];
    arranged.claim(values[0]);
    for (index, newer) in values.into_iter().enumerate().skip(1) {
        arranged.until("sent", || arranged.sent().len() == index).await;
        arranged.claim(newer);
        assert_eq!(arranged.min(), bytes(newer));
        writes.add_permits(1);
        // Only the second round checks the file, as the plugin does after an inotify event. The
        // plugin may not have handled systemd's answer yet.
        if index == 2 {
            arranged.until("late", || arranged.min() != bytes(newer)).await;
            assert_eq!(arranged.check(), CheckNext::Settled);
        }
        arranged.until("newer", || arranged.sent().last() == Some(&newer)).await;
        assert_eq!(arranged.min(), bytes(newer));
    }
    writes.add_permits(1);
    arranged.until("sent all", || writes.available_permits() == 0).await;
    assert_eq!(arranged.sent(), values);
    assert_eq!(lock(&arranged.levels.state).contention.repairs(&(path(POD), Knob::Min)), 0);
}

/// Cgroups of a test node that has no systemd.
struct Tree {
    node: TestNode,
    levels: Arc<Levels>,
}

impl Tree {
    /// Creates these cgroups, each with its `memory.min`.
    fn new(cgroups: &[(&str, u64)]) -> Self {
        let node = TestNode::new("");
        for (cgroup, min) in cgroups {
            node.set(cgroup, "memory.min", min);
            node.set(cgroup, "memory.low", 0);
        }
        let levels = node.levels(Arc::default());
        Self { node, levels }
    }

    fn claim(&self, pod: &str, min: u64) {
        let place = PodPlace::new(path(pod), QosClass::Guaranteed).unwrap();
        let claim = Protection { min: Bytes::new(min), low: Bytes::ZERO };
        self.levels.claim_if(&place, "app", claim, || true);
    }

    fn reserve(&self, config: &str) {
        let config = Config::parse(config.as_bytes(), "test").unwrap();
        let host = self.node.host.path();
        self.levels.set_node(&Settings::without_memory(config, host));
    }

    fn mins<const N: usize>(&self, cgroups: [&str; N]) -> [u64; N] {
        cgroups.map(|cgroup| self.node.get(cgroup, "memory.min").parse().unwrap())
    }
}

#[tokio::test]
async fn cgroups_above_kubepods_are_raised_and_restored() {
    const CGROUPS: [&str; 4] = ["a", "a/b", "a/b/kubepods", "a/b/kubepods/pod1"];
    let tree = Tree::new(&CGROUPS.map(|cgroup| (cgroup, if cgroup == "a" { 12288 } else { 0 })));
    tree.claim("a/b/kubepods/pod1", 8192);
    assert_eq!(tree.mins(CGROUPS), [12288, 8192, 8192, 8192], "a larger value stays");
    tree.claim("a/b/kubepods/pod1", 16384);
    assert_eq!(tree.mins(CGROUPS), [16384; 4]);
    tree.node.set("a/b", "memory.min", 0);
    assert_eq!(tree.levels.check(&path("a/b"), &[Knob::Min]).next, CheckNext::Settled);
    assert_eq!(tree.mins(CGROUPS), [16384; 4], "another program's write is repaired");
    tree.claim("a/b/kubepods/pod1", 0);
    assert_eq!(tree.mins(CGROUPS), [12288, 0, 0, 0]);
}

#[tokio::test]
async fn reserved_memory_is_added_to_parent_cgroups() {
    const CGROUPS: [&str; 5] = ["s", "s/k", "s/r", "s/k/kubepods", "s/k/kubepods/pod1"];
    let tree = Tree::new(&CGROUPS.map(|cgroup| (cgroup, 0)));
    let reserved = "systemReserved: {memory: 4Mi}\nsystemReservedCgroup: /s/r\n";
    tree.reserve(reserved);
    let mi = 1 << 20;
    assert_eq!(tree.mins(CGROUPS), [4 * mi, 0, 4 * mi, 0, 0]);
    tree.claim("s/k/kubepods/pod1", 2 * mi);
    assert_eq!(tree.mins(CGROUPS), [6 * mi, 2 * mi, 4 * mi, 2 * mi, 2 * mi]);
    tree.reserve("systemReserved: {memory: 4Mi}\nsystemReservedCgroup: /s\n");
    assert_eq!(tree.mins(CGROUPS), [6 * mi, 2 * mi, 0, 2 * mi, 2 * mi]);
    tree.reserve("{}");
    assert_eq!(tree.mins(CGROUPS), [2 * mi, 2 * mi, 0, 2 * mi, 2 * mi]);
}
