//! The nodes of a test binary: started when first needed, shared by its tests, each used by one test at a time.

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

/// How many nodes are up at a time: each wants a processor to itself, and the machine may have no more than two.
const MOST_NODES: usize = 2;

/// What a test finds on its node besides the runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plugin {
    /// No plugin: the control group.
    Absent,
    /// The plugin with this configuration.
    Installed(Mode, String),
}

struct Member {
    node: Node,
    driver: Driver,
    plugin: Plugin,
}

impl Member {
    /// How much has to be done until this node is as a case needs it, from nothing to what only a new node mends.
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

/// The preparation that a node lacks for a case, the cheapest first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Misfit {
    Nothing,
    Plugin,
    Driver,
    Runtime,
}

/// A case's requirements of a node.
#[derive(Clone, PartialEq, Eq)]
struct Needs {
    runtime: Runtime,
    driver: Driver,
    plugin: Plugin,
}

/// The machine that a case waits for.
enum Wanted {
    Node(Needs),
    /// The cluster, which is not for this module to start.
    Cluster,
}

struct Fleet {
    idle: Vec<Member>,
    in_use: usize,
    is_cluster_in_use: bool,
    /// Cases that may not run yet, in the order in which they came.
    waiting: Vec<(ThreadId, Wanted)>,
}

static FLEET: Mutex<Fleet> = Mutex::new(Fleet {
    idle: Vec::new(),
    in_use: 0,
    is_cluster_in_use: false,
    waiting: Vec::new(),
});
/// Another case may be the next one.
static CHANGED: Condvar = Condvar::new();

impl Fleet {
    /// The idle node that fits best, unless none has the runtime.
    fn best(&self, needs: &Needs) -> (Misfit, Option<usize>) {
        let fitting =
            self.idle.iter().enumerate().map(|(index, member)| (member.misfit(needs), Some(index)));
        let fitting = fitting.filter(|(misfit, _)| *misfit < Misfit::Runtime);
        fitting.min_by_key(|(misfit, _)| *misfit).unwrap_or((Misfit::Runtime, None))
    }

    /// Whether the case of this thread is the next one: the one of a cluster, as they are the longest row of cases that run one
    /// after the other, or else the one to whose needs an idle node is nearest.
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

/// Runs a test's case on a node with `runtime` without pods and with `plugin` in place, whose runtime has `driver`.
///
/// A guest that dies is the emulator's fault, and a containerd that stands still in what containerd/nri#301 mends is its own, not a
/// verdict: the reason is printed and the case runs once more on a new node. Every other failure panics, and takes the node away, so
/// that the next case finds a fresh one. A case that changes the plugin's configuration or placement has to undo that before it ends.
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

/// The right to have a machine at work.
pub(crate) struct Place {
    /// The node, if there is one already.
    member: Option<Member>,
    is_of_cluster: bool,
}

impl Place {
    /// Waits for the only place from which the cluster may be used.
    pub(crate) fn for_cluster() -> Place {
        Place::take(Wanted::Cluster)
    }

    /// Waits until a machine may be at work, and until this case is the next one: with more threads than machines, cases that need the
    /// same follow each other.
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
            fleet.idle.pop(); // makes room for the one to be started
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

/// Whether a case waits for the cluster.
pub(crate) fn is_cluster_wanted() -> bool {
    fleet().waiting.iter().any(|(_, wanted)| matches!(wanted, Wanted::Cluster))
}

/// The state behind the lock is whole at any time, so a panic of another holder does not matter.
fn fleet() -> MutexGuard<'static, Fleet> {
    FLEET.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs the case once. After a failure, which comes with the machine's fate, the node does not go back to the fleet.
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

/// Turns a failed assertion into an error, since the node's death may be behind it; the panic hook has printed it.
fn guarded(case: impl Fn() -> Result<()>) -> Result<()> {
    panic::catch_unwind(AssertUnwindSafe(case)).unwrap_or_else(|payload| {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or(payload.downcast_ref::<&str>().copied());
        Err(anyhow!("the case panicked: {}", text.unwrap_or("without a message")))
    })
}

/// Declares tests for every combination of runtime, cgroup driver and placement, named after these:
/// `containerd_2_1::systemd::launched::a_sentence`.
///
/// `node_tests!(control: { a_sentence, .. })`, `node_tests!(plugin: { .. })` and `node_tests!(external: { .. })` take the
/// names of functions `fn(&Node, Driver) -> Result<()>` in the calling module; the latter two need `fn config() -> String`
/// beside them. `external` leaves out the plugin that the runtime launches, for what does not depend on it; `plugin` has it with one
/// of the cgroup drivers, as it does not depend on that.
///
/// Which node meets which:
/// - the first ones have come out differently on runtimes or drivers: they are met by the two nodes that differ most, in kernel, NRI,
///   OCI runtime and driver: containerd 1.7 with cgroupfs and CRI-O with systemd;
/// - `every: { .. }` are what each runtime has to do, with one driver each;
/// - `once: { .. }` are met by CRI-O with systemd.
///
/// With the feature `every-combination` all are met by all.
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
