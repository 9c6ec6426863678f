//! Where the plugin runs on a node: launched by the runtime, or on its own under systemd.
//!
//! Every step here waits for the runtime to log that it has synchronised with the plugin.

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

/// The configuration file: the runtime's drop-in, which the plugin reads itself when it is external.
pub const CONFIG: &str = "/etc/nri/conf.d/90-plimsoll.conf";

/// Where the external plugin's program is on the node, which is also the command line.
pub const EXTERNAL_BINARY: &str = "/usr/local/bin/plimsoll";
const LAUNCHED_BINARY: &str = "/opt/nri/plugins/90-plimsoll";
const CLAIMER_UNIT: &str = "claimer";
const UNIT: &str = "/etc/systemd/system/plimsoll.service";
/// The unit as it is shipped.
const UNIT_TEXT: &str = include_str!("../../deploy/plimsoll.service");

/// What the runtime logs of a plugin, launched or external, that it has synchronised with and calls from now on: a line of
/// the list of its plugins, in every version from NRI 0.6.
const SYNCHRONISED: &str = "#[0-9]+: .*90-plimsoll";
/// The same for a second plugin.
const CLAIMER_SYNCHRONISED: &str = "#[0-9]+: .*10-claimer";

/// Who starts the plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// The runtime, from its plugin directory.
    Launched,
    /// systemd.
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

/// Builds the plugin as it is released, once for each process, and returns the binary's path.
pub fn build() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| build_once().map_err(|error| format!("{error:#}")));
    built.clone().map_err(|error| anyhow!(error))
}

fn build_once() -> Result<PathBuf> {
    let output = run(&mut Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../hack/build")))?;
    Ok(PathBuf::from(output.trim_end()))
}

/// The program of a plugin that is placed so.
pub const fn binary(mode: Mode) -> &'static str {
    match mode {
        Mode::Launched => LAUNCHED_BINARY,
        Mode::External => EXTERNAL_BINARY,
    }
}

/// Packs the plugin as it is released, into `directory`: `plimsoll_VERSION_ARCHITECTURE.deb`, `….oci.tar` and so on. The times in
/// there are `epoch`, in seconds since 1970.
pub fn package(directory: &Path, epoch: u64) -> Result<()> {
    run(Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../hack/package"))
        .arg(build()?)
        .arg(directory)
        .env("SOURCE_DATE_EPOCH", epoch.to_string()))?;
    Ok(())
}

/// Puts the plugin on the node with `config`, in place of any that is there, and waits until the runtime knows it.
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

/// Gives the plugin, launched or external, another configuration, and waits until it is in force.
pub fn configure(node: &Node, config: &str) -> Result<()> {
    let new = format!("{CONFIG}.new");
    node.write_file(&new, config, 0o644)?;
    let script = format!("mv {new} {CONFIG}");
    // A launched one has none of its own.
    let units = format!("plimsoll --unit {}", node.runtime().unit());
    wait_for_journal(node, &units, "configuration changed", &script)
        .context("changing the configuration")
}

/// Takes the plugin off the node, if it is there, with what it knows.
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

/// The script that restarts the runtime, without a plugin to wait for, and waits until it answers.
pub fn bare_restart(node: &Node) -> String {
    format!("systemctl restart {}; cri version", node.runtime().unit())
}

/// Restarts the runtime below running containers, and waits for the plugin to be back.
pub fn restart_runtime(node: &Node) -> Result<()> {
    until_synchronised(node, &format!("systemctl restart {}", node.runtime().unit()))
        .context("restarting the runtime")
}

/// Has a runtime that knows one cgroup driver at a time work with this one. There must be no pods.
pub fn switch_driver(node: &Node, driver: Driver) -> Result<()> {
    let (file, content) = node.runtime().driver_configuration(driver);
    node.write_file(file, content, 0o644)?;
    node.run(&bare_restart(node)).with_context(|| format!("switching to the driver {driver}"))?;
    Ok(())
}

/// Restarts the external plugin, and waits for it to be back.
pub fn restart_plugin(node: &Node) -> Result<()> {
    until_synchronised(node, "systemctl restart plimsoll").context("restarting the plugin")
}

/// Runs a script on the node that has to lead to a new synchronisation with the plugin, and waits for that.
pub fn until_synchronised(node: &Node, script: &str) -> Result<()> {
    wait_for_journal(node, node.runtime().unit(), SYNCHRONISED, script)
}

/// The external plugin's messages. A node's journal goes on from case to case: `skip` as many as there were before.
pub fn journal(node: &Node, skip: usize) -> Result<Vec<String>> {
    let output = node.run("journalctl --unit plimsoll --output cat")?.stdout;
    Ok(output.lines().skip(skip).map(str::to_owned).collect())
}

/// The place in the node's journal after which it is new.
pub fn cursor(node: &Node) -> Result<String> {
    Ok(node.run(CURSOR)?.stdout.trim().to_owned())
}

/// Waits until the runtime has synchronised with the plugin after that place in the journal.
pub fn until_synchronised_since(node: &Node, cursor: &str) -> Result<()> {
    wait_since(node, cursor, node.runtime().unit(), SYNCHRONISED, "")
        .context("waiting for the plugin")
}

const CURSOR: &str =
    "journalctl --quiet --lines 1 --show-cursor --output cat | sed -n 's/^-- cursor: //p'";

/// Runs a script on the node, then waits until the journal of `unit` has a line, written since, that matches the
/// extended regular expression `pattern`.
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

/// Tells if containerd stands still in a request of a plugin to update containers (containerd/containerd#13733), which without
/// containerd/nri#301 it may do for ever: its stacks have that in them, and still have some seconds later.
pub fn is_stuck(node: &Node) -> Option<String> {
    if node.runtime().unit() != "containerd" {
        return None;
    }
    const REQUEST: &str = "adaptation.(*Adaptation).updateContainers";
    let dump = "systemctl kill --kill-whom main --signal USR1 containerd";
    // Each of them is one line.
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

/// Puts a second plugin on the node, which sets `key` of every container created from now on to `value`, and is asked before
/// ours (its index is 10). [`unclaim`] takes it off again. `program` is that of `src/bin/claimer.rs`, which cargo has built
/// for the test: `env!("CARGO_BIN_EXE_claimer")`.
pub fn claim(node: &Node, program: &Path, key: &str, value: &str) -> Result<()> {
    // What debuggers want is most of it, and would take long to send.
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

/// Ends the second plugin.
pub fn unclaim(node: &Node) -> Result<()> {
    node.run(&format!("systemctl stop {CLAIMER_UNIT}")).context("ending the second plugin")?;
    Ok(())
}

/// A program's place on the node; it is sent only once.
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
