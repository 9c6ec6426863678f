//! The nodes that the tests of one test binary share.
//!
//! A node is started when a test first needs it. One test uses a node at a time.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Instant;

use anyhow::{Result, anyhow};

use crate::cache::progress;
use crate::durations;
use crate::kubelet::{self, Driver};
use crate::node::Node;
use crate::placement::{self, Mode};
use crate::runtime::Runtime;
use crate::support;

/// The maximum number of running nodes.
///
/// Each node needs a processor of its own, and the host may have only two processors.
const MOST_NODES: usize = 2;

/// The installation of the plugin that a test needs on its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plugin {
    /// No plugin. The control group needs such nodes.
    Absent,
    /// The plugin with this placement and configuration.
    Installed(Mode, String),
}

struct Member {
    node: Node,
    driver: Driver,
    plugin: Plugin,
}

impl Member {
    /// Returns the most expensive preparation that this node needs for a case.
    fn misfit(&self, needs: &Needs) -> Misfit {
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

/// The preparation that a node needs for a case, the cheapest first. `Runtime` needs a new node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Misfit {
    Nothing,
    Plugin,
    Driver,
    Runtime,
}

/// The requirements of a case for its node.
#[derive(Clone, PartialEq, Eq)]
struct Needs {
    runtime: Runtime,
    driver: Driver,
    plugin: Plugin,
}

/// The machine that a case waits for.
enum Wanted {
    Node(Needs),
    /// The cluster, which `cluster.rs` starts.
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
/// Notified whenever another case may be the next one to run.
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

    /// Returns whether the case of this thread is the next one to run.
    ///
    /// A case for the cluster comes first, because these cases form the longest sequence that
    /// cannot run in parallel. Otherwise the case whose best idle node needs the least preparation
    /// is next.
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

/// Runs a test case on a node with this runtime, cgroup driver and plugin installation, without
/// pods.
///
/// Two kinds of failure do not count as a test result. The virtual machine can die, which is the
/// emulator's fault. containerd can hang in the bug that containerd/nri#301 fixes. In both
/// situations the reason is printed and the case runs once more on a new node.
///
/// Every other failure panics and discards the node, so that the next case gets a fresh one. A case
/// that changes the plugin's configuration or placement must undo the change before the case ends.
pub fn on_node(
    runtime: Runtime,
    driver: Driver,
    plugin: &Plugin,
    case: impl Fn(&Node, Driver) -> Result<()>,
) {
    support::begin().expect("a file for what passes");
    let needs = Needs { runtime, driver, plugin: plugin.clone() };
    for last in [false, true] {
        let place = Place::take(Wanted::Node(needs.clone()));
        let started = Instant::now();
        let prepared = Cell::new(None);
        let outcome = attempt(place, &needs, &|node, driver| {
            prepared.set(Some(started.elapsed()));
            case(node, driver)
        });
        let verdict = match &outcome {
            Ok(()) => "passed",
            Err((Some(_), _)) if !last => "its node did not last",
            Err(_) => "failed",
        };
        let took = started.elapsed();
        durations::note(runtime.name(), verdict, took, prepared.get().unwrap_or(took));
        let (fate, error) = match outcome {
            Ok(()) => return,
            Err(failed) => failed,
        };
        match fate {
            Some(fate) if !last => progress(&format!(
                "the {runtime} node did not last for a case, which runs once more: {fate}\nthe case had failed with: {error:#}"
            )),
            _ => panic!("on the {runtime} node: {error:?}"),
        }
    }
}

/// The permission to run a machine. Dropping this value returns the permission.
pub(crate) struct Place {
    /// The node, if an idle one was assigned or the case has returned its node.
    member: Option<Member>,
    is_of_cluster: bool,
}

impl Place {
    /// Waits for the permission to use the cluster, which one case has at a time.
    pub(crate) fn for_cluster() -> Place {
        Place::take(Wanted::Cluster)
    }

    /// Waits until another machine may run and this case is the next one.
    ///
    /// With more threads than machines, cases with the same needs follow each other.
    fn take(wanted: Wanted) -> Place {
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
/// A poisoned lock is fine, because the state behind the lock is consistent at any time.
fn fleet() -> MutexGuard<'static, Fleet> {
    FLEET.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs the case once.
///
/// After a failure the node does not return to the fleet. If the machine ended or containerd hangs,
/// the error includes the reason.
fn attempt(
    mut place: Place,
    needs: &Needs,
    case: &impl Fn(&Node, Driver) -> Result<()>,
) -> Result<(), (Option<String>, anyhow::Error)> {
    let mut member = match place.member.take() {
        Some(member) => member,
        None => match Node::start(needs.runtime) {
            Ok(node) => Member { node, driver: Driver::Systemd, plugin: Plugin::Absent },
            Err(error) => return Err((None, error)),
        },
    };
    let driver = needs.driver;
    let placement = match &needs.plugin {
        Plugin::Absent => "without".to_owned(),
        Plugin::Installed(mode, _) => mode.to_string(),
    };
    let outcome = prepare(&mut member, needs)
        .and_then(|()| guarded(|| case(&member.node, driver)))
        .and_then(|()| support::passed(&member.node, driver, &placement, None));
    match outcome {
        Ok(()) => {
            place.member = Some(member);
            Ok(())
        }
        Err(error) => {
            let said =
                member.node.run("journalctl --unit plimsoll --output short-precise | tail -n 60");
            if let Ok(said) = said {
                println!("the plugin's journal ends with:\n{}", said.stdout);
            }
            let fate = member.node.fate().or_else(|| placement::is_stuck(&member.node));
            Err((fate, error))
        }
    }
}

fn prepare(member: &mut Member, needs: &Needs) -> Result<()> {
    kubelet::clear(&member.node)?;
    if member.misfit(needs) == Misfit::Driver {
        placement::remove(&member.node)?;
        member.plugin = Plugin::Absent;
        placement::switch_driver(&member.node, needs.driver)?;
        member.driver = needs.driver;
    }
    if member.misfit(needs) == Misfit::Plugin {
        match &needs.plugin {
            Plugin::Absent => placement::remove(&member.node)?,
            Plugin::Installed(mode, config) => placement::install(&member.node, *mode, config)?,
        }
        member.plugin = needs.plugin.clone();
    }
    Ok(())
}

/// Turns a panic of the case into an error, because a dead node may be the cause.
///
/// The panic hook has already printed the panic.
fn guarded(case: impl Fn() -> Result<()>) -> Result<()> {
    panic::catch_unwind(AssertUnwindSafe(case)).unwrap_or_else(|payload| {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or(payload.downcast_ref::<&str>().copied());
        Err(anyhow!("the case panicked: {}", text.unwrap_or("without a message")))
    })
}

/// Declares tests for combinations of runtime, cgroup driver and placement.
///
/// The name of a test contains its combination: `containerd_2_1::systemd::launched::a_sentence`.
///
/// The macro takes the names of functions `fn(&Node, Driver) -> Result<()>` in the calling module.
/// It has three forms:
///
/// - `node_tests!(control: { a_sentence, .. })` runs each test without the plugin.
/// - `node_tests!(plugin: { .. })` runs each test twice: with a launched and with an external
///   plugin.
/// - `node_tests!(external: { .. })` runs each test with an external plugin only. It is for tests
///   whose outcome does not depend on the placement.
///
/// The forms `plugin` and `external` also need `fn config() -> String` in the calling module.
///
/// The group of a test determines its nodes:
///
/// - The first group has tests whose outcome has differed between runtimes or drivers. Its nodes
///   are containerd 1.7 with cgroupfs and CRI-O with systemd. These two nodes differ most in
///   kernel, NRI, OCI runtime and driver.
/// - `every: { .. }` has tests of what each runtime must do. Its nodes have each runtime with one
///   driver.
/// - `once: { .. }` has tests for one node: CRI-O with systemd.
///
/// With the feature `every-combination` all tests run on all nodes.
#[macro_export]
macro_rules! node_tests {
    (
        $kind:ident: { $($name:ident),* $(,)? }
        $(, every: { $($every:ident),* $(,)? })?
        $(, once: { $($once:ident),* $(,)? })?
    ) => {
        mod containerd_1_7 {
            $crate::node_tests!(@driver Containerd17 cgroupfs Cgroupfs $kind [$($name)* $($($every)*)?; $($($once)*)?]);
            $crate::node_tests!(@driver Containerd17 systemd Systemd $kind [; $($name)* $($($every)*)? $($($once)*)?]);
        }
        mod containerd_2_1 {
            $crate::node_tests!(@driver Containerd21 systemd Systemd $kind [$($($every)*)?; $($name)* $($($once)*)?]);
            $crate::node_tests!(@driver Containerd21 cgroupfs Cgroupfs $kind [; $($name)* $($($every)*)? $($($once)*)?]);
        }
        mod containerd_2_4 {
            $crate::node_tests!(@driver Containerd24 cgroupfs Cgroupfs $kind [$($($every)*)?; $($name)* $($($once)*)?]);
            $crate::node_tests!(@driver Containerd24 systemd Systemd $kind [; $($name)* $($($every)*)? $($($once)*)?]);
        }
        mod crio_1_36 {
            $crate::node_tests!(@driver Crio136 systemd Systemd $kind [$($name)* $($($every)*)? $($($once)*)?;]);
            $crate::node_tests!(@driver Crio136 cgroupfs Cgroupfs $kind [; $($name)* $($($every)*)? $($($once)*)?]);
        }
    };
    (@driver $runtime:ident $module:ident $driver:ident control $names:tt) => {
        mod $module {
            $crate::node_tests!(@cases $runtime $driver ($crate::fleet::Plugin::Absent) [super::super] $names);
        }
    };
    (@driver $runtime:ident $module:ident $driver:ident plugin $names:tt) => {
        mod $module {
            mod launched {
                $crate::node_tests!(@cases $runtime $driver ($crate::fleet::Plugin::Installed(
                    $crate::placement::Mode::Launched, super::super::super::config()
                )) [super::super::super] $names);
            }
            $crate::node_tests!(@external $runtime $driver $names);
        }
    };
    (@driver $runtime:ident $module:ident $driver:ident external $names:tt) => {
        mod $module {
            $crate::node_tests!(@external $runtime $driver $names);
        }
    };
    (@external $runtime:ident $driver:ident $names:tt) => {
        mod external {
            $crate::node_tests!(@cases $runtime $driver ($crate::fleet::Plugin::Installed(
                $crate::placement::Mode::External, super::super::super::config()
            )) [super::super::super] $names);
        }
    };
    (@cases $runtime:ident $driver:ident $plugin:tt $up:tt [$($name:ident)*; $($rest:ident)*]) => {
        $( $crate::node_tests!(@case $runtime $driver $plugin $up $name); )*
        $(
            #[cfg(feature = "every-combination")]
            $crate::node_tests!(@case $runtime $driver $plugin $up $rest);
        )*
    };
    (@case $runtime:ident $driver:ident $plugin:tt [$($up:tt)*] $name:ident) => {
        #[test]
        fn $name() {
            let (runtime, driver) = ($crate::runtime::Runtime::$runtime, $crate::kubelet::Driver::$driver);
            $crate::fleet::on_node(runtime, driver, &$plugin, $($up)*::$name);
        }
    };
}
