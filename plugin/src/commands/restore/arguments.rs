//! Command lines of `plimsoll restore` and `plimsoll reset-brake`.

use std::path::PathBuf;

use clap::Args;

/// Restore the values that the plugin changed.
#[derive(Args)]
#[command(
    long_about = "\
Restore the original values of containers, of the cgroups above them and of the cgroups beside the
pods. The command also restores the container runtime's stored values. It does not change CPU
values and memory.max of containers, and it restarts no container. Each change is printed as
CGROUP FILE: BEFORE -> NOW.

The command works whether the plugin runs or not. Afterwards the plugin sets nothing, even if it
restarts, until 'plimsoll restore --undo' or a reboot. 'plimsoll uninstall' calls this command
first. A second call changes nothing.",
    after_long_help = "\
Examples:
  plimsoll restore
  plimsoll restore --undo"
)]
pub(crate) struct Restore {
    /// Allow the plugin to set values again
    #[arg(long)]
    pub(in crate::commands) undo: bool,

    /// NRI socket of the container runtime
    #[arg(long, value_name = "PATH", default_value = nri::DEFAULT_SOCKET)]
    pub(in crate::commands) socket: PathBuf,

    /// Root of the node's file system, with /proc, /run, /sys/fs/cgroup and /var/lib/kubelet
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub(in crate::commands) host: PathBuf,
}

/// Allow the plugin to write again after it stopped by itself.
#[derive(Args)]
#[command(
    long_about = "\
Release the automatic brake, so that the plugin writes again. The brake stops all writes, as in
observe mode, when the counts of repairs, conflicts with other writers or OOM kills exceed the
bounds in the configuration (brake). Find the cause first: 'plimsoll status' and the log name it.",
    after_long_help = "\
Examples:
  plimsoll reset-brake"
)]
pub(crate) struct ResetBrake {
    /// Root of the node's file system, with the plugin's directory run/plimsoll
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub(in crate::commands) host: PathBuf,
}
