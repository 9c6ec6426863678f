//! Installs the plugin on a node: launched by the runtime, or external under systemd.
//!
//! Each function that starts the plugin waits until the runtime logs that it has synchronised with
//! the plugin.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, bail, ensure};
use sha2::{Digest, Sha256};

use crate::image::run;
use crate::kubelet::Driver;
use crate::node::Node;

/// The path of the configuration file, which is the runtime's drop-in file for the plugin.
///
/// An external plugin reads the file itself.
pub const CONFIG: &str = "/etc/nri/conf.d/90-plimsoll.conf";

/// The path of the external plugin's program on the node, which is also its command line.
pub const EXTERNAL_BINARY: &str = "/usr/local/bin/plimsoll";
const LAUNCHED_BINARY: &str = "/opt/nri/plugins/90-plimsoll";
const CLAIMER_UNIT: &str = "claimer";
const UNIT: &str = "/etc/systemd/system/plimsoll.service";
/// The published systemd unit.
const UNIT_TEXT: &str = include_str!("../../deploy/plimsoll.service");

/// A regular expression for the runtime's log line after a synchronisation with the plugin.
///
/// The line is part of the list of plugins that the runtime calls from now on. It is the same for
/// launched and external plugins and for every version from NRI 0.6.
const SYNCHRONISED: &str = "#[0-9]+: .*90-plimsoll";
/// The same for the second plugin.
const CLAIMER_SYNCHRONISED: &str = "#[0-9]+: .*10-claimer";

/// The placement of the plugin, which determines the program that starts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// The runtime starts the plugin from its plugin directory.
    Launched,
    /// systemd starts the plugin as a service.
    External,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Launched => "launched",
            Mode::External => "external",
        })
    }
}

/// Builds the release version of the plugin once per process and returns the path of the binary.
pub fn build() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| build_once().map_err(|error| format!("{error:#}")));
    built.clone().map_err(|error| anyhow!(error))
}

fn build_once() -> Result<PathBuf> {
    let output = run(&mut Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../hack/build")))?;
    Ok(PathBuf::from(output.trim_end()))
}

/// Returns the path of the plugin's program on the node for this placement.
pub const fn binary(mode: Mode) -> &'static str {
    match mode {
        Mode::Launched => LAUNCHED_BINARY,
        Mode::External => EXTERNAL_BINARY,
    }
}

/// Makes the release packages of the plugin in `directory`.
///
/// They include `plimsoll_VERSION_ARCHITECTURE.deb` and `….oci.tar`. All file times in them
/// are `epoch`, in seconds since 1970.
pub fn package(directory: &Path, epoch: u64) -> Result<()> {
    run(Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../hack/package"))
        .arg(build()?)
        .arg(directory)
        .env("SOURCE_DATE_EPOCH", epoch.to_string()))?;
    Ok(())
}

/// Installs the plugin with `config` on the node and replaces any installed plugin.
///
/// Returns when the runtime has synchronised with the plugin.
pub fn install(node: &Node, mode: Mode, config: &str) -> Result<()> {
    remove(node)?;
    let binary = upload(node, &build()?)?;
    node.write_file(CONFIG, config, 0o644)?;
    let start = match mode {
        Mode::Launched => {
            format!(
                "install -D -m 755 {binary} {LAUNCHED_BINARY}\nsystemctl restart {}",
                node.runtime().unit()
            )
        }
        Mode::External => {
            node.write_file(UNIT, UNIT_TEXT, 0o644)?;
            format!(
                "install -D -m 755 {binary} {EXTERNAL_BINARY}\nsystemctl daemon-reload\nsystemctl start plimsoll"
            )
        }
    };
    until_synchronised(node, &start).with_context(|| format!("installing the plugin, {mode}"))
}

/// Replaces the configuration of a launched or external plugin and waits until the plugin uses it.
pub fn configure(node: &Node, config: &str) -> Result<()> {
    let new = format!("{CONFIG}.new");
    node.write_file(&new, config, 0o644)?;
    let script = format!("mv {new} {CONFIG}");
    // A launched plugin has no unit of its own, so its messages are in the journal of the runtime.
    let units = format!("plimsoll --unit {}", node.runtime().unit());
    wait_for_journal(node, &units, "configuration changed", &script)
        .context("changing the configuration")
}

/// Removes the plugin and its state from the node, if it is installed.
pub fn remove(node: &Node) -> Result<()> {
    node.run(&format!(
        "if [ -e {UNIT} ]; then
             systemctl stop plimsoll; rm -f {UNIT} {EXTERNAL_BINARY} {CONFIG}; systemctl daemon-reload
         fi
         if [ -e {LAUNCHED_BINARY} ]; then
             rm -f {LAUNCHED_BINARY} {CONFIG}; {}
         fi
         rm -rf /run/plimsoll
         rmdir /etc/nri/conf.d /etc/nri 2>/dev/null || true",
        bare_restart(node)
    ))
    .context("removing the plugin")?;
    Ok(())
}

/// Returns a script that restarts the runtime and waits until the runtime answers.
///
/// The script does not wait for a plugin.
pub fn bare_restart(node: &Node) -> String {
    format!("systemctl restart {}; cri version", node.runtime().unit())
}

/// Restarts the runtime while containers run and waits until the plugin is synchronised again.
pub fn restart_runtime(node: &Node) -> Result<()> {
    until_synchronised(node, &format!("systemctl restart {}", node.runtime().unit()))
        .context("restarting the runtime")
}

/// Switches a runtime that has one cgroup driver at a time to this driver.
///
/// The node must not have pods.
pub fn switch_driver(node: &Node, driver: Driver) -> Result<()> {
    let (file, content) = node.runtime().driver_configuration(driver);
    node.write_file(file, content, 0o644)?;
    node.run(&bare_restart(node)).with_context(|| format!("switching to the driver {driver}"))?;
    Ok(())
}

/// Restarts the external plugin and waits until it is synchronised again.
pub fn restart_plugin(node: &Node) -> Result<()> {
    until_synchronised(node, "systemctl restart plimsoll").context("restarting the plugin")
}

/// Runs a script on the node and waits for the new synchronisation that the script must cause.
pub fn until_synchronised(node: &Node, script: &str) -> Result<()> {
    wait_for_journal(node, node.runtime().unit(), SYNCHRONISED, script)
}

/// Returns the external plugin's messages without the first `skip` ones.
///
/// A node's journal continues from case to case, so a case skips the messages of earlier cases.
pub fn journal(node: &Node, skip: usize) -> Result<Vec<String>> {
    let output = node.run("journalctl --unit plimsoll --output cat")?.stdout;
    Ok(output.lines().skip(skip).map(str::to_owned).collect())
}

/// Returns a cursor for the current end of the node's journal.
pub fn cursor(node: &Node) -> Result<String> {
    Ok(node.run(CURSOR)?.stdout.trim().to_owned())
}

/// Waits until the runtime has synchronised with the plugin after this cursor of the journal.
pub fn until_synchronised_since(node: &Node, cursor: &str) -> Result<()> {
    wait_since(node, cursor, node.runtime().unit(), SYNCHRONISED, "")
        .context("waiting for the plugin")
}

const CURSOR: &str =
    "journalctl --quiet --lines 1 --show-cursor --output cat | sed -n 's/^-- cursor: //p'";

/// Runs a script on the node and then waits for a new line in the journal of `unit`.
///
/// The line must match the extended regular expression `pattern`.
pub fn wait_for_journal(node: &Node, unit: &str, pattern: &str, script: &str) -> Result<()> {
    wait_since(node, &format!("$({CURSOR})"), unit, pattern, script)
}

fn wait_since(node: &Node, cursor: &str, unit: &str, pattern: &str, script: &str) -> Result<()> {
    const SECONDS: u32 = 60;
    let output = node.try_run(&format!(
        "cursor=\"{cursor}\"
         {script}
         exec 3< <(exec journalctl --unit {unit} --after-cursor \"$cursor\" --output cat --no-tail --follow 2>/dev/null)
         follower=$!
         status=0
         timeout {SECONDS} grep -E -q -m 1 '{pattern}' <&3 || status=$?
         kill $follower
         if [ $status != 0 ]; then
             echo 'no line matched {pattern} within {SECONDS} s; the journal since:'
             journalctl --after-cursor \"$cursor\" --output cat | tail -n 40
         fi >&2
         exit $status"
    ))?;
    if !output.status.success() {
        bail!("waiting for {unit} ({}): {}", output.status, output.stderr.trim_end());
    }
    Ok(())
}

/// Returns a description if containerd hangs in a plugin's request to update containers.
///
/// containerd/containerd#13733 describes the hang. Without the fix in containerd/nri#301 it may
/// last forever. containerd hangs if two dumps of its stacks some seconds apart contain the
/// request.
pub fn is_stuck(node: &Node) -> Option<String> {
    if node.runtime().unit() != "containerd" {
        return None;
    }
    const REQUEST: &str = "adaptation.(*Adaptation).updateContainers";
    let dump = "systemctl kill --kill-whom main --signal USR1 containerd";
    // Each stack in the request has one such line in the journal.
    let found = || -> Option<u64> {
        let count =
            format!("journalctl --unit containerd --output cat | grep -cF '{REQUEST}' || true");
        node.run(&count).ok()?.stdout.trim().parse().ok()
    };
    let dumped = |script: &str| {
        wait_for_journal(node, "containerd", "END goroutine stack dump", script).ok()?;
        found()
    };
    let (before, first, second) = (found()?, dumped(dump)?, dumped(&format!("sleep 5; {dump}"))?);
    (before < first && first < second).then(|| format!("containerd stands still in {REQUEST}"))
}

/// Starts a second plugin on the node that sets `key` of every new container to `value`.
///
/// The plugin has the index 10, so the runtime calls it before Plimsoll. [`unclaim`] stops it.
/// `program` is the program of `src/bin/claimer.rs`, which cargo builds for the test:
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
    node.run(&format!("systemctl stop {CLAIMER_UNIT}")).context("ending the second plugin")?;
    Ok(())
}

/// Returns the path of a program on the node. A program that the node lacks is copied first.
pub(crate) fn upload(node: &Node, local: &Path) -> Result<String> {
    let binary = fs::read(local).with_context(|| format!("reading {}", local.display()))?;
    let digest: String =
        Sha256::digest(&binary)[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    let name = local.file_name().unwrap_or_default().to_string_lossy();
    let path = format!("/var/cache/{name}-{digest}");
    if !node.try_run(&format!("test -e {path}"))?.status.success() {
        node.write_file(&path, binary, 0o755)?;
    }
    Ok(path)
}
