//! `plimsoll check`: validates a configuration file.

use std::path::PathBuf;

use clap::Args;

use crate::commands::failure::Failure;
use crate::commands::input::{load_config, shown};
use crate::commands::output::print;

/// Validate a configuration file.
#[derive(Args)]
#[command(
    long_about = "\
Validate a configuration file and print what it amounts to, defaults included. Every mistake is reported at once, as \
FILE:LINE: field: expected ..., found ...

All fields, with their defaults:

  mode: enforce                             # enforce, or observe: work everything out and report it, and write nothing
  memoryThrottlingFactor: 0.9               # above 0, at most 1; null: never set memory.high
  memoryReservationPolicy: HardReservation  # None, TieredReservation or HardReservation
  memoryMinHeadroom: 2Mi                    # how far memory.min stays below the limit; 0: as Kubernetes has it
  nodeAllocatable: auto                     # auto, or a quantity such as 60Gi
  systemReservedCgroup: /system.slice       # with the amount: memory.min of that cgroup; not set by default
  systemReserved: {memory: 500Mi}
  kubeReservedCgroup: /kubelet.slice        # likewise
  kubeReserved: {memory: 500Mi}
  nodeGuard: null                           # how much is kept from all pods together, such as 500Mi; null: nothing
  throttleDeadline: 30s                     # how long a container may stand at memory.high; null: for ever
  shrink: reject                            # of a memory limit that would kill: reject, defer or allow
  shrinkDeadline: 10m                       # how long a deferred one is tried
  oomRescue: null                           # null: off; or {kills: 3, window: 10m, factor: 1.2, minimum: 100Mi, ceiling: 10%}
  raisePodLimits: true                      # whether a pod's limits are raised to the sum of its containers' limits
  repair: true                              # whether a value that another program changed is set again
  brake:                                    # when the plugin stops writing by itself; null: never
    repairs: 500                            #   after so many repairs,
    conflicts: 50                           #   values left to another writer,
    kills: 20                               #   or kills by limits that the plugin has set,
    window: 10m                             #   within this time
  maxLimitRequestRatio: 4                   # of which limit to request a pod's owner is warned, at least 1; null: of none
  metricsAddress: null                      # where metrics are served by TCP, such as 127.0.0.1:9477; null: nowhere
  containerMetrics: false                   # whether there are metrics of each container
  logLevel: info                            # error, warn, info, debug or trace",
    after_long_help = "\
Examples:
  plimsoll check /etc/nri/conf.d/90-plimsoll.conf
  echo 'memoryThrottlingFactor: 0.8' | plimsoll check -"
)]
pub(crate) struct Check {
    /// The file; - is standard input
    file: PathBuf,
}

impl Check {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let config = load_config(&self.file)?;
        print(format_args!("# {} is valid and amounts to:\n{config}", shown(&self.file)))
    }
}
