//! Runs test cases on the nodes of the fleet.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::time::Instant;

use anyhow::{Result, anyhow};

use crate::fleet::durations::{self, Outcome};
use crate::fleet::queue::{Member, Misfit, Needs, Place, Plugin, Wanted};
use crate::fleet::support;
use crate::kubelet;
use crate::machine::Node;
use crate::placement;
use crate::runtime::{Driver, Runtime};
use crate::tools::progress::progress;

/// Runs a test case on a node with this runtime, cgroup driver and plugin installation, without
/// pods.
///
/// Two kinds of failure do not count as a test result. The virtual machine can die because of the
/// emulator. containerd can hang because of the bug that containerd/nri#301 fixes. In both
/// situations this function prints the reason and runs the case once more on a new node.
///
/// For every other failure, this function panics and discards the node, so that the next case gets
/// a fresh node. A case that changes the plugin's configuration or placement must undo the change
/// before the case ends.
pub fn on_node(
    runtime: Runtime,
    driver: Driver,
    plugin: &Plugin,
    case: impl Fn(&Node, Driver) -> Result<()>,
) {
    support::begin().expect("the file of passed cases cannot be created");
    let needs = Needs { runtime, driver, plugin: plugin.clone() };
    for last in [false, true] {
        let place = Place::take(Wanted::Node(needs.clone()));
        let started = Instant::now();
        let prepared = Cell::new(None);
        let outcome = attempt(place, &needs, &|node, driver| {
            prepared.set(Some(started.elapsed()));
            case(node, driver)
        });
        let has_node_died = matches!(outcome, Err((Some(_), _)));
        let verdict = Outcome::new(outcome.is_ok(), has_node_died, last);
        let took = started.elapsed();
        durations::note(runtime.name(), verdict, took, prepared.get().unwrap_or(took));
        let (fate, error) = match outcome {
            Ok(()) => return,
            Err(failed) => failed,
        };
        match fate {
            Some(fate) if !last => progress(&format!(
                "the {runtime} node died during a case, which runs once more: {fate}\n\
                 the case failed with: {error:#}"
            )),
            _ => panic!("on the {runtime} node: {error:?}"),
        }
    }
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
