//! The command `plimsoll doctor`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::commands::doctor::facts::NodeFacts;
use crate::commands::failure::Failure;
use crate::commands::output::print;

/// Check whether this node can run the plugin, and say what to change.
#[derive(Args)]
#[command(
    long_about = "\
Check everything that the plugin needs of a node. Each check prints one finding: the mark ok, \
warning, unknown or failed, the observed state, and what to do. A check is unknown, and never ok, \
if doctor cannot read something that should exist. The exit code is 1 if a check failed, because \
the plugin then cannot work. Warnings and unknown checks keep the exit code 0, and the last line \
counts them. doctor changes nothing. The container runtime logs a plugin that did not register. \
Run doctor as root.

Some checks do not apply to every node. The checks:

  root                  doctor runs as root
  cgroup-v2             the node mounts cgroup v2
  memory-controller     enabled from the root to the QoS classes of pods
  kernel                5.9 or newer, better 5.19
  memory-files          memory.high, memory.reclaim, memory.oom.group exist
  recursive-protection  cgroup2 is mounted with memory_recursiveprot
  pressure              memory.pressure exists, which shows stalls
  runtime               containerd or CRI-O runs, in a known version
  nri                   the runtime's configuration has NRI on
  nri-socket            the runtime serves the NRI socket
  nri-timeouts          the runtime waits long enough for an answer
  configuration         the plugin's configuration file is valid
  installation          the runtime or a service starts the plugin, and it runs
  other-plugins         other NRI plugins, and whether they set the same values
  kubelet-memory-qos    the kubelet does not set the same values
  node-allocatable      known, and from which source
  node-guard            leaves pods the memory that the scheduler counts on
  checkpoints           the kubelet's records of requests exist
  d-bus                 the plugin can reach systemd
  swap                  on or off
  restore               'plimsoll restore' is not in effect
  mode                  enforce or observe, and whether the brake stopped the plugin
  inotify               the limits are high enough",
    after_long_help = "\
Examples:
  plimsoll doctor
  plimsoll doctor --host /host --socket /host/run/nri/nri.sock --json"
)]
pub(crate) struct Doctor {
    /// The container runtime's NRI socket
    #[arg(long, value_name = "PATH", default_value = nri::DEFAULT_SOCKET)]
    socket: PathBuf,

    /// Root of the node's file system: /etc, /opt, /proc, /run, /sys/fs/cgroup, /var/lib/kubelet
    #[arg(long, value_name = "DIR", default_value = "/")]
    host: PathBuf,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Doctor {
    /// Checks the node and prints the findings.
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let report = NodeFacts::collect(&self.host, &self.socket).judge();
        if self.json {
            let json = serde_json::to_string_pretty(&report)
                .map_err(|error| Failure::Runtime(error.into()))?;
            print(format_args!("{json}\n"))?;
        } else {
            print(format_args!("{report}"))?;
        }
        Ok(if report.able { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
