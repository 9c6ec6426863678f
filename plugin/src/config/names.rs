//! Names of the fields.

pub(super) const MODE: &str = "mode";
pub(super) const THROTTLING: &str = "memoryThrottlingFactor";
pub(super) const RESERVATION: &str = "memoryReservationPolicy";
pub(super) const ALLOCATABLE: &str = "nodeAllocatable";
pub(super) const HEADROOM: &str = "memoryMinHeadroom";
pub(super) const SYSTEM_CGROUP: &str = "systemReservedCgroup";
pub(super) const SYSTEM_RESERVED: &str = "systemReserved";
pub(super) const KUBE_CGROUP: &str = "kubeReservedCgroup";
pub(super) const KUBE_RESERVED: &str = "kubeReserved";
pub(super) const GUARD: &str = "nodeGuard";
pub(super) const DEADLINE: &str = "throttleDeadline";
pub(super) const SHRINK: &str = "shrink";
pub(super) const SHRINK_DEADLINE: &str = "shrinkDeadline";
pub(super) const RESCUE: &str = "oomRescue";
pub(super) const RAISE: &str = "raisePodLimits";
pub(super) const REPAIR: &str = "repair";
pub(super) const BRAKE: &str = "brake";
pub(super) const RATIO: &str = "maxLimitRequestRatio";
pub(super) const METRICS_ADDRESS: &str = "metricsAddress";
pub(super) const CONTAINER_METRICS: &str = "containerMetrics";
pub(super) const KUBECONFIG: &str = "kubeconfig";
pub(super) const LOG_LEVEL: &str = "logLevel";
pub(super) const FIELDS: [&str; 22] = [
    MODE,
    THROTTLING,
    RESERVATION,
    HEADROOM,
    ALLOCATABLE,
    SYSTEM_CGROUP,
    SYSTEM_RESERVED,
    KUBE_CGROUP,
    KUBE_RESERVED,
    GUARD,
    DEADLINE,
    SHRINK,
    SHRINK_DEADLINE,
    RESCUE,
    RAISE,
    REPAIR,
    BRAKE,
    RATIO,
    METRICS_ADDRESS,
    CONTAINER_METRICS,
    KUBECONFIG,
    LOG_LEVEL,
];

/// Fields of `brake`, which also has [`KILLS`] and [`WINDOW`].
pub(super) const REPAIRS: &str = "repairs";
pub(super) const CONFLICTS: &str = "conflicts";

/// Fields of `oomRescue`.
pub(super) const KILLS: &str = "kills";
pub(super) const WINDOW: &str = "window";
pub(super) const FACTOR: &str = "factor";
pub(super) const MINIMUM: &str = "minimum";
pub(super) const CEILING: &str = "ceiling";
