//! A second plugin on a node.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::machine::Node;
use crate::placement::journal::wait_for_journal;
use crate::placement::upload::upload;

const CLAIMER_UNIT: &str = "claimer";

/// A regular expression for the runtime's log line after a synchronisation with the second plugin.
const CLAIMER_SYNCHRONISED: &str = "#[0-9]+: .*10-claimer";

/// Starts a second plugin on the node. This plugin sets `key` of every new container to `value`.
///
/// The plugin has the index 10, so the runtime calls it before Plimsoll. [`unclaim`] stops the
/// plugin. `program` is the path of the binary that cargo builds from `src/bin/claimer.rs`:
/// `env!("CARGO_BIN_EXE_claimer")`.
pub fn claim(node: &Node, program: &Path, key: &str, value: &str) -> Result<()> {
    // Remove debug information, which is most of the program and would take long to send.
    let stripped = tempfile::tempdir().context("creating a directory")?;
    let small = stripped.path().join("claimer");
    let status =
        Command::new("strip").arg("--strip-debug").arg("-o").args([&small, program]).status();
    let status = status.context("starting strip: are binutils installed?")?;
    ensure!(status.success(), "strip could not read {}", program.display());
    let binary = upload(node, &small)?;
    let start = format!(
        "systemd-run --quiet --collect --unit {CLAIMER_UNIT} {binary} --key {key} --value {value}"
    );
    wait_for_journal(node, node.runtime().unit(), CLAIMER_SYNCHRONISED, &start)
        .context("starting a second plugin")
}

/// Stops the second plugin.
pub fn unclaim(node: &Node) -> Result<()> {
    node.run(&format!("systemctl stop {CLAIMER_UNIT}")).context("stopping the second plugin")?;
    Ok(())
}
