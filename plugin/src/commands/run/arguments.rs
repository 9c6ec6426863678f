//! Command line of `plimsoll run`.

use std::path::PathBuf;

use clap::Args;

use crate::report::log::LogFormat;

/// Run the plugin. A container runtime that launches the program gives no arguments.
#[derive(Args)]
#[command(
    long_about = "\
Run the plugin. It connects to the container runtime, sets the values of new, updated and running
containers, and reconnects when the runtime restarts.

SIGTERM and SIGINT stop the plugin; containers keep their values. SIGHUP makes the plugin read its
configuration again. SIGUSR2 starts the program's file again in the same process, for an update.

The configuration comes from --config. Without --config, it comes from the runtime's drop-in:
/etc/nri/conf.d/90-plimsoll.conf or plimsoll.conf. A change of the file takes effect at once. An
empty file means the defaults at the start, and changes nothing later. The fields are in
'plimsoll check --help'.

A container runtime launches the program as /opt/nri/plugins/90-plimsoll. The runtime passes the
drop-in and needs no arguments. Messages then go to the journal.",
    after_long_help = "\
Examples:
  plimsoll run
  plimsoll run --config /etc/plimsoll.yaml --socket /run/nri/nri.sock"
)]
pub(crate) struct Run {
    /// Configuration file; by default, the runtime's drop-in
    #[arg(long, value_name = "FILE")]
    pub(in crate::commands) config: Option<PathBuf>,

    /// NRI socket of the container runtime
    #[arg(long, value_name = "PATH", default_value = nri::DEFAULT_SOCKET)]
    pub(in crate::commands) socket: PathBuf,

    /// Format of log messages
    #[arg(long, value_name = "FORMAT", value_enum, default_value = "text")]
    pub(in crate::commands) log_format: LogFormat,

    /// Root of the node's file system, with /proc, /run, /sys/fs/cgroup and /var/lib/kubelet
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub(in crate::commands) host: PathBuf,
}
