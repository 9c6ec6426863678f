//! The struct for the whole configuration, and its defaults.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use plimsoll_core::policy::Policy;
use plimsoll_core::policy::rescue::OomRescue;
use plimsoll_core::units::Bytes;

use crate::config::brake::Bounds;
use crate::config::choices::{LogLevel, Mode, NodeAllocatable, Shrink};
use crate::config::reserved::Reserved;
use crate::kubelet::node::KubeletFiles;

/// A valid configuration. A file with mistakes never becomes a `Config`.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Whether the plugin writes values, or only reports them.
    pub mode: Mode,
    /// Policy for throttling and for the protection of memory requests.
    pub policy: Policy,
    /// Source of node allocatable.
    pub node_allocatable: NodeAllocatable,
    /// Cgroups outside kubepods that the plugin protects with `memory.min`. These cgroups contain
    /// the processes of the operating system, or the kubelet and the container runtime.
    pub reserved: Vec<Reserved>,
    /// Memory that pods must leave free, which the plugin enforces with `memory.max` of kubepods.
    /// The amount is at least the sum of `reserved`. `None` means that the plugin does not set this
    /// `memory.max`.
    pub node_guard: Option<Bytes>,
    /// Files and version of the kubelet. `None` means that the plugin finds the files itself.
    pub kubelet: Option<KubeletFiles>,
    /// Maximum time that a container is throttled at `memory.high` while the node has memory to
    /// spare. The plugin then raises `memory.high`. `None` means no maximum.
    pub throttle_deadline: Option<Duration>,
    /// Reaction to a memory limit that would cause an OOM kill.
    pub shrink: Shrink,
    /// Maximum time for which the plugin keeps trying to set a deferred limit.
    pub shrink_deadline: Duration,
    /// Rules for raising the limit of a container that is OOM-killed repeatedly. `None` means that
    /// the plugin never raises the limit.
    pub oom_rescue: Option<OomRescue>,
    /// Whether the plugin raises a pod's limits to the sum of its containers' limits.
    pub raise_pod_limits: bool,
    /// Whether the plugin repairs a value that another program changed.
    pub repair: bool,
    /// Limits of the automatic brake, which stops the plugin from writing. `None` means that the
    /// plugin never stops.
    pub brake: Option<Bounds>,
    /// Maximum ratio of limit to request. Above it, the plugin warns the pod's owner. `None` means
    /// that the plugin never warns.
    pub max_limit_request_ratio: Option<f64>,
    /// TCP address at which the plugin serves metrics. `None` disables TCP.
    pub metrics_address: Option<SocketAddr>,
    /// Whether the plugin serves metrics for each container.
    pub container_metrics: bool,
    /// Absolute path of the file with the credentials for Kubernetes Events. `None` means the
    /// service account of the plugin's pod. Outside of a pod, `None` means no Events.
    pub kubeconfig: Option<PathBuf>,
    /// Lowest severity that the plugin logs.
    pub log_level: LogLevel,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            policy: Policy::default(),
            node_allocatable: NodeAllocatable::default(),
            reserved: Vec::new(),
            node_guard: None,
            kubelet: None,
            throttle_deadline: Some(Self::THROTTLE_DEADLINE),
            shrink: Shrink::default(),
            shrink_deadline: Self::SHRINK_DEADLINE,
            oom_rescue: None,
            raise_pod_limits: true,
            repair: true,
            brake: Some(Bounds::default()),
            max_limit_request_ratio: Some(Self::MAX_LIMIT_REQUEST_RATIO),
            metrics_address: None,
            container_metrics: false,
            kubeconfig: None,
            log_level: LogLevel::default(),
        }
    }
}

impl Config {
    /// Default of `throttleDeadline`.
    pub const THROTTLE_DEADLINE: Duration = Duration::from_secs(30);

    /// Default of `shrinkDeadline`.
    pub const SHRINK_DEADLINE: Duration = Duration::from_secs(600);

    /// Default of `maxLimitRequestRatio`.
    pub const MAX_LIMIT_REQUEST_RATIO: f64 = 4.0;

    /// Returns the sum of `reserved`.
    pub fn reserved_in_all(&self) -> Bytes {
        self.reserved.iter().fold(Bytes::ZERO, |sum, reserved| sum.saturating_add(reserved.memory))
    }
}
