//! The plugin on a node.

use std::fmt;

use anyhow::{Context, Result};

use crate::machine::Node;
use crate::placement::build::build;
use crate::placement::journal::{until_synchronised, wait_for_journal};
use crate::placement::upload::upload;
use crate::runtime::Driver;

/// The path of the configuration file, which is the runtime's drop-in file for the plugin.
///
/// An external plugin reads the file itself.
pub const CONFIG: &str = "/etc/nri/conf.d/90-plimsoll.conf";

/// The path of the external plugin's program on the node. The path is also the whole command line.
pub const EXTERNAL_BINARY: &str = "/usr/local/bin/plimsoll";

const LAUNCHED_BINARY: &str = "/opt/nri/plugins/90-plimsoll";

const UNIT: &str = "/etc/systemd/system/plimsoll.service";

/// The published systemd unit.
const UNIT_TEXT: &str = include_str!("../../../deploy/plimsoll.service");

/// The placement of the plugin, which determines whether the runtime or systemd starts the plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// The runtime starts the plugin from the runtime's plugin directory.
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

/// Returns the path of the plugin's program on the node for this placement.
pub const fn binary(mode: Mode) -> &'static str {
    match mode {
        Mode::Launched => LAUNCHED_BINARY,
        Mode::External => EXTERNAL_BINARY,
    }
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
                "install -D -m 755 {binary} {EXTERNAL_BINARY}\n\
                 systemctl daemon-reload\nsystemctl start plimsoll"
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

/// If the plugin is installed, removes the plugin and its state from the node.
pub fn remove(node: &Node) -> Result<()> {
    node.run(&format!(
        "if [ -e {UNIT} ]; then
             systemctl stop plimsoll
             rm -f {UNIT} {EXTERNAL_BINARY} {CONFIG}
             systemctl daemon-reload
         fi
         if [ -e {LAUNCHED_BINARY} ]; then
             rm -f {LAUNCHED_BINARY} {CONFIG}; {}
         fi
         rm -rf /run/plimsoll
         rmdir /etc/nri/conf.d /etc/nri 2>/dev/null || true",
        restart_script(node)
    ))
    .context("removing the plugin")?;
    Ok(())
}

/// Returns a script that restarts the runtime and waits until the runtime answers.
///
/// The script does not wait for a plugin.
pub fn restart_script(node: &Node) -> String {
    format!("systemctl restart {}; cri version", node.runtime().unit())
}

/// Restarts the runtime while containers run and waits until the plugin is synchronised again.
pub fn restart_runtime(node: &Node) -> Result<()> {
    until_synchronised(node, &format!("systemctl restart {}", node.runtime().unit()))
        .context("restarting the runtime")
}

/// Changes the cgroup driver of a runtime that has only one driver at a time.
///
/// The node must not have pods.
pub fn switch_driver(node: &Node, driver: Driver) -> Result<()> {
    let (file, content) = node.runtime().driver_configuration(driver);
    node.write_file(file, content, 0o644)?;
    node.run(&restart_script(node)).with_context(|| format!("switching to the driver {driver}"))?;
    Ok(())
}

/// Restarts the external plugin and waits until it is synchronised again.
pub fn restart_plugin(node: &Node) -> Result<()> {
    until_synchronised(node, "systemctl restart plimsoll").context("restarting the plugin")
}
