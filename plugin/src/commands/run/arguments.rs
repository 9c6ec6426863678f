//! Command line of `plimsoll run`.

use std::path::PathBuf;

use clap::Args;

use crate::report::log::LogFormat;

/// Run the plugin; also without any argument when a container runtime launches it.
#[derive(Args)]
#[command(
    long_about = "\
Run the plugin. It connects to the container runtime, sets the values of containers that are created or updated, brings \
those that run to theirs, and reconnects when the runtime restarts. Stop it with SIGTERM or SIGINT; containers keep \
their values. SIGHUP has it read its configuration again. SIGUSR2 has it start anew in the same process, from what is in \
the program's file by then.

Configuration comes from --config, or else from the runtime's drop-in: /etc/nri/conf.d/90-plimsoll.conf or plimsoll.conf. \
Changes of the file take effect at once. An empty file means the defaults at the start, and changes nothing later. See plimsoll check --help for the fields.

A container runtime launches what it finds in /opt/nri/plugins by the name 90-plimsoll, hands over the drop-in, and needs no \
arguments; messages then go to the journal.",
    after_long_help = "\
Examples:
  plimsoll run
  plimsoll run --config /etc/plimsoll.yaml --socket /run/nri/nri.sock"
)]
pub(crate) struct Run {
    /// The configuration file; without it, the runtime's drop-in, if there is one
    #[arg(long, value_name = "FILE")]
    pub(in crate::commands) config: Option<PathBuf>,

    /// The container runtime's NRI socket
    #[arg(long, value_name = "PATH", default_value = nri::DEFAULT_SOCKET)]
    pub(in crate::commands) socket: PathBuf,

    /// The form of messages
    #[arg(long, value_name = "FORMAT", value_enum, default_value = "text")]
    pub(in crate::commands) log_format: LogFormat,

    /// Where the node's file system is: its /proc, /run, /sys/fs/cgroup and /var/lib/kubelet
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub(in crate::commands) host: PathBuf,
}
