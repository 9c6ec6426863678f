//! The nodes that the tests of one test binary share.
//!
//! A node is started when a test first needs it. One test uses a node at a time.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use crate::machine::Node;
use crate::placement::Mode;
use crate::runtime::{Driver, Runtime};

/// The maximum number of running nodes.
///
/// Each node needs a processor of its own, and the host may have only two processors.
const MOST_NODES: usize = 2;

/// The installation of the plugin that a test needs on its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plugin {
    /// No plugin, as the tests of the control group need.
    Absent,
    /// The plugin with this configuration. `Mode` says whether the runtime or systemd starts it.
    Installed(Mode, String),
}

pub(super) struct Member {
    pub(super) node: Node,
    pub(super) driver: Driver,
    pub(super) plugin: Plugin,
}

impl Member {
    /// Returns the most expensive preparation that this node needs for a case.
    pub(super) fn misfit(&self, needs: &Needs) -> Misfit {
        if self.node.runtime() != needs.runtime {
            Misfit::Runtime
        } else if self.node.runtime().has_one_driver() && self.driver != needs.driver {
            Misfit::Driver
        } else if self.plugin != needs.plugin {
            Misfit::Plugin
        } else {
            Misfit::Nothing
        }
    }
}

/// The preparation that a node needs for a case. The variants are in the order of rising cost.
/// `Runtime` needs a new node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Misfit {
    Nothing,
    Plugin,
    Driver,
    Runtime,
}

/// The properties that a case requires of its node.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Needs {
    pub(super) runtime: Runtime,
    pub(super) driver: Driver,
    pub(super) plugin: Plugin,
}

/// The machine that a case waits for.
pub(super) enum Wanted {
    Node(Needs),
    /// The cluster, which the module `cluster` starts.
    Cluster,
}

struct Fleet {
    idle: Vec<Member>,
    in_use: usize,
    is_cluster_in_use: bool,
    /// The cases that may not run yet, in the order of their arrival.
    waiting: Vec<(ThreadId, Wanted)>,
}

static FLEET: Mutex<Fleet> = Mutex::new(Fleet {
    idle: Vec::new(),
    in_use: 0,
    is_cluster_in_use: false,
    waiting: Vec::new(),
});

/// Notified whenever another case may become the next case to run.
static CHANGED: Condvar = Condvar::new();

impl Fleet {
    /// Returns the index of the idle node that needs the least preparation, and this preparation.
    ///
    /// The index is `None` if no idle node has the runtime.
    fn best(&self, needs: &Needs) -> (Misfit, Option<usize>) {
        let fitting =
            self.idle.iter().enumerate().map(|(index, member)| (member.misfit(needs), Some(index)));
        let fitting = fitting.filter(|(misfit, _)| *misfit < Misfit::Runtime);
        fitting.min_by_key(|(misfit, _)| *misfit).unwrap_or((Misfit::Runtime, None))
    }

    /// Returns whether the case of this thread is the next case to run.
    ///
    /// A case for the cluster comes first, because the cluster's cases cannot run in parallel and
    /// together take longest. After these cases, the next case is the case whose best idle node
    /// needs the least preparation.
    fn is_next(&self, case: ThreadId) -> bool {
        let may_run = self.waiting.iter().filter_map(|(thread, wanted)| match wanted {
            Wanted::Cluster if self.is_cluster_in_use => None,
            Wanted::Cluster => Some((thread, None)),
            Wanted::Node(needs) => Some((thread, Some(self.best(needs).0))),
        });
        let next = may_run.min_by_key(|(_, misfit)| *misfit);
        self.in_use < MOST_NODES && next.is_some_and(|(thread, _)| *thread == case)
    }
}

/// The permission to run a machine. Dropping this value returns the permission.
pub(crate) struct Place {
    /// The node, if an idle node was assigned or the case has returned its node.
    pub(super) member: Option<Member>,
    is_of_cluster: bool,
}

impl Place {
    /// Waits for the permission to use the cluster, which one case has at a time.
    pub(crate) fn for_cluster() -> Place {
        Place::take(Wanted::Cluster)
    }

    /// Waits until another machine may run and this case is the next case to run.
    ///
    /// If there are more threads than machines, cases that can share a node run one after another.
    pub(super) fn take(wanted: Wanted) -> Place {
        let case = thread::current().id();
        let mut fleet = fleet();
        fleet.waiting.push((case, wanted));
        let mut fleet = CHANGED
            .wait_while(fleet, |fleet| !fleet.is_next(case))
            .unwrap_or_else(PoisonError::into_inner);
        let index = fleet.waiting.iter().position(|(thread, _)| *thread == case);
        let (_, wanted) = fleet.waiting.remove(index.expect("only this thread removes it"));
        fleet.in_use += 1;
        let mut place = Place { member: None, is_of_cluster: false };
        match wanted {
            Wanted::Node(needs) => {
                place.member = fleet.best(&needs).1.map(|index| fleet.idle.swap_remove(index));
            }
            Wanted::Cluster => (fleet.is_cluster_in_use, place.is_of_cluster) = (true, true),
        }
        if place.member.is_none() && fleet.idle.len() + fleet.in_use > MOST_NODES {
            fleet.idle.pop(); // ends an idle node, so that a new one may start
        }
        CHANGED.notify_all();
        place
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut fleet = fleet();
        fleet.in_use -= 1;
        fleet.is_cluster_in_use &= !self.is_of_cluster;
        fleet.idle.extend(self.member.take());
        CHANGED.notify_all();
    }
}

/// Returns whether a case waits for the cluster.
pub(crate) fn is_cluster_wanted() -> bool {
    fleet().waiting.iter().any(|(_, wanted)| matches!(wanted, Wanted::Cluster))
}

/// Locks the fleet.
///
/// Every change leaves the state consistent, so the state is valid even if the lock is poisoned.
fn fleet() -> MutexGuard<'static, Fleet> {
    FLEET.lock().unwrap_or_else(PoisonError::into_inner)
}
