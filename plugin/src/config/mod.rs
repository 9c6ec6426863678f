//! Configuration file in YAML. Fields that `KubeletConfiguration` also has use its names.
//!
//! ```yaml
//! mode: enforce                            # enforce; or observe: only report, write nothing
//! memoryThrottlingFactor: 0.9              # above 0, at most 1; null: never set memory.high
//! memoryReservationPolicy: HardReservation # None, TieredReservation or HardReservation
//! memoryMinHeadroom: 2Mi                   # how far memory.min stays below the limit;
//!                                          #   0: as in Kubernetes
//! nodeAllocatable: auto                    # auto or a quantity, such as 60Gi
//! systemReservedCgroup: /system.slice      # cgroup to protect; not set by default
//! systemReserved: {memory: 500Mi}          # memory.min of that cgroup; not set by default
//! kubeReservedCgroup: /kubelet.slice       # cgroup to protect; not set by default
//! kubeReserved: {memory: 500Mi}            # memory.min of that cgroup; not set by default
//! nodeGuard: null                          # memory kept from all pods together, such as 500Mi;
//!                                          #   null: none
//! throttleDeadline: 30s                    # how long a container may be throttled at
//!                                          #   memory.high; null: no maximum
//! shrink: reject                           # reject, defer or allow limits that would OOM-kill
//! shrinkDeadline: 10m                      # how long a deferred limit is retried
//! oomRescue: null                          # null: off; {} or a mapping of these fields: on
//! # kills: 3                               #   OOM kills of a container
//! # window: 10m                            #   within this time before its limit is raised
//! # factor: 1.2                            #   new limit as multiple of the old, from 1 to 10
//! # minimum: 100Mi                         #   smallest limit increase
//! # ceiling: 10%                           #   highest limit as a quantity, or largest increase
//!                                          #   as a share of the free node allocatable
//! raisePodLimits: true                     # whether pod limits are raised to the sum of the
//!                                          #   limits of the pod's containers
//! repair: true                             # whether foreign changes of a value are repaired
//! brake:                                   # the plugin stops writing above any of these
//!                                          #   bounds; null: never
//!   repairs: 500                           #   repairs
//!   conflicts: 50                          #   values left to another writer
//!   kills: 20                              #   OOM kills by limits that the plugin has set
//!   window: 10m                            #   time within which these count
//! maxLimitRequestRatio: 4                  # highest ratio of limit to request without a
//!                                          #   warning, at least 1; null: no warning
//! metricsAddress: null                     # TCP address for metrics, such as 127.0.0.1:9477;
//!                                          #   null: none
//! containerMetrics: false                  # whether each container has metrics
//! kubeconfig: null                         # credentials for Kubernetes Events, such as
//!                                          #   /etc/plimsoll/kubeconfig; null: the service
//!                                          #   account of the plugin's pod, if any
//! logLevel: info                           # error, warn, info, debug or trace
//! ```
//!
//! Every field is optional, and an empty file is valid. If the file becomes empty while the plugin
//! runs, the configuration in force stays. [`Config::parse`] reports every mistake at once.

mod brake;
mod choices;
mod errors;
mod mappings;
mod model;
mod names;
mod parse;
mod print;
mod reserved;
#[cfg(test)]
mod testing;
mod validate;
mod value;

pub use self::brake::Bounds;
pub use self::choices::{LogLevel, Mode, NodeAllocatable, Shrink};
pub use self::errors::{ConfigErrors, FieldError};
pub use self::model::Config;
pub use self::parse::LARGEST;
pub(crate) use self::parse::complaint;
pub use self::reserved::{Owner, Reserved};

/// Directory where runtimes look for the configuration of plugins.
pub const DROP_INS: &str = "/etc/nri/conf.d";
