//! Command lines of `plimsoll restore` and `plimsoll reset-brake`.

use std::path::PathBuf;

use clap::Args;

/// Put everything back to what it would be without the plugin.
#[derive(Args)]
#[command(
    long_about = "\
Give every running container, and every cgroup above the containers or beside the pods, back what it held before the plugin \
changed it; the container runtime's stored values, too. Processor values and memory.max are not touched, and no container is \
restarted. Prints what was changed, as CGROUP FILE: BEFORE -> NOW.

Works with the plugin running or not. From then on the plugin sets nothing, also after a restart, until --undo or the next \
boot. plimsoll uninstall calls this first. Calling it again does no harm.",
    after_long_help = "\
Examples:
  plimsoll restore
  plimsoll restore --undo"
)]
pub(crate) struct Restore {
    /// Let the plugin set values again
    #[arg(long)]
    pub(in crate::commands) undo: bool,

    /// The container runtime's NRI socket
    #[arg(long, value_name = "PATH", default_value = nri::DEFAULT_SOCKET)]
    pub(in crate::commands) socket: PathBuf,

    /// Where the node's file system is: its /proc, /run, /sys/fs/cgroup and /var/lib/kubelet
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub(in crate::commands) host: PathBuf,
}

/// Let the plugin act again after it has stopped by itself.
#[derive(Args)]
#[command(
    long_about = "\
Let the plugin act again after the automatic brake was applied. The plugin stops writing, as in observe mode, when repairs, \
conflicts with other writers, or kills by limits that it has set exceed the bounds in its configuration (brake). Find out first \
why there were so many: plimsoll status and the log name the cause.",
    after_long_help = "\
Examples:
  plimsoll reset-brake"
)]
pub(crate) struct ResetBrake {
    /// Where the node's file system is, in which the plugin's directory is run/plimsoll
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub(in crate::commands) host: PathBuf,
}
