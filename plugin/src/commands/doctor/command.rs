//! The command `plimsoll doctor`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::commands::doctor::facts::NodeFacts;
use crate::commands::{Failure, print};

/// Tell whether this node is able to run the plugin, and what to do where it is not.
#[derive(Args)]
#[command(
    long_about = "\
Look at everything that the plugin needs of a node, and print one finding for each: ok, warning, unknown or failed, what was found, and \
what to do about it. A check is unknown, and never ok, where something that should be there could not be read. Ends with 1 if something \
failed, with which the plugin cannot work; warnings and unknown checks leave it 0, and the last line counts them. Changes nothing; the container \
runtime's log gets a line about a plugin that did not register. Call it as root.

The checks, some of which do not apply everywhere:

  root                  this may see everything
  cgroup-v2             how cgroups are mounted
  memory-controller     enabled from the root down to the classes of pods
  kernel                5.9 or newer, better 5.19
  memory-files          memory.high, memory.reclaim, memory.oom.group are there
  recursive-protection  mounted with memory_recursiveprot
  pressure              memory.pressure is there, by which stalls are seen
  runtime               containerd or CRI-O, and which version
  nri                   switched on in the runtime's configuration
  nri-socket            there, and somebody listens
  nri-timeouts          long enough
  configuration         the plugin's file is valid
  installation          launched by the runtime or a service, and running
  other-plugins         which there are, and whether they set the same
  kubelet-memory-qos    the kubelet does not set the same
  node-allocatable      known, and from where
  node-guard            leaves pods what the scheduler counts on
  checkpoints           the kubelet's, from which requests are known
  d-bus                 systemd can be reached
  swap                  on or off
  restore               'plimsoll restore' was not called
  mode                  enforce or observe, and that the brake was not applied
  inotify               limits that are not too low",
    after_long_help = "\
Examples:
  plimsoll doctor
  plimsoll doctor --host /host --socket /host/run/nri/nri.sock --json"
)]
pub(crate) struct Doctor {
    /// The container runtime's NRI socket
    #[arg(long, value_name = "PATH", default_value = nri::DEFAULT_SOCKET)]
    socket: PathBuf,

    /// Where the node's file system is: its /etc, /opt, /proc, /run, /sys/fs/cgroup and /var/lib/kubelet
    #[arg(long, value_name = "DIR", default_value = "/")]
    host: PathBuf,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Doctor {
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
