//! Serialized format of the status.

use std::fmt;

use plimsoll_core::pod::{CgroupPath, QosClass};
use plimsoll_core::policy::Protection;
use plimsoll_core::policy::hierarchy::Standing;
use plimsoll_core::units::{Bytes, Limit};
use serde::{Deserialize, Serialize};

use crate::config::Mode;
use crate::report::recent::Report;
use crate::state::levels::LevelKind as Level;

/// Version of this format.
pub const VERSION: u32 = 1;

/// Status of the node.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Version of the format ([`VERSION`]).
    pub version: u32,
    /// Version of the program.
    pub plimsoll: String,
    /// Status of the node as a whole.
    pub node: NodeStatus,
    /// Ancestor cgroups of the containers (parents before children), and the protected cgroups
    /// outside kubepods.
    pub cgroups: Vec<CgroupStatus>,
    /// Containers, with the worst state first.
    pub containers: Vec<ContainerStatus>,
    /// Containers that do not run but have recent reports, such as a container that is OOM-killed
    /// repeatedly.
    pub down: Vec<DownStatus>,
}

/// A container that does not run at the moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DownStatus {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// UID of the pod.
    pub uid: String,
    /// Name of the container.
    pub container: String,
    /// Recent reports, latest first.
    pub reports: Vec<Report>,
}

/// Status of the node as a whole.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// Total memory of the node.
    pub memory: Option<Bytes>,
    /// Available memory, as the kernel estimates it.
    pub available: Option<Bytes>,
    /// Node allocatable: memory for all pods together.
    pub allocatable: Option<Bytes>,
    /// Limit of all pods together (`nodeGuard`). `null` without such a limit, or if kubepods is
    /// missing or unreadable.
    pub guard: Option<Bytes>,
    /// Reason why the node guard is not fully in force. In observe mode, reason why the node guard
    /// would not be in force. `null` if the node guard has no problem or is not configured.
    #[serde(default)]
    pub guard_problem: Option<String>,
    /// Facts about the node that the plugin could not read, each with the reason and advice.
    #[serde(default)]
    pub problems: Vec<String>,
    /// `memory.max` of kubepods; `null` if kubepods is missing or unreadable.
    pub pods_max: Option<Limit>,
    /// Whether the container runtime is connected and has sent its pods and containers.
    pub synchronized: bool,
    /// Whether `plimsoll restore` is in force, so that the plugin sets no values.
    pub stands_aside: bool,
    /// Whether the plugin sets values, or only reports which values it would set.
    #[serde(default)]
    pub mode: Mode,
    /// Reason why the brake switched the plugin to observe mode. `null` if the brake is not
    /// applied.
    #[serde(default)]
    pub brake: Option<String>,
    /// Limit that `nodeGuard` would set for all pods together in observe mode; `null` otherwise.
    #[serde(default)]
    pub planned_guard: Option<Bytes>,
    /// Observe mode: number of containers that use more than their planned `memory.high`.
    #[serde(default)]
    pub would_throttle: usize,
    /// Observe mode: number of limit decreases of the last ten minutes that the plugin would have
    /// refused or deferred.
    #[serde(default)]
    pub would_refuse: u64,
    /// Sum of all known container requests.
    pub requests: Bytes,
    /// Sum of all container limits.
    pub limits: Bytes,
    /// Number of containers without a limit.
    pub unlimited: usize,
    /// Usage of all containers together.
    pub usage: Bytes,
}

/// An ancestor cgroup of containers, or a protected cgroup outside kubepods.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CgroupStatus {
    /// Path below the cgroup root.
    pub cgroup: CgroupPath,
    /// Kind of the cgroup: kubepods, an ancestor of it, QoS class, pod or reserved cgroup.
    pub level: Level,
    /// Desired protection of the cgroup.
    pub desired: Protection,
    /// Observed protection of the cgroup; `null` if the cgroup is missing or unreadable.
    pub observed: Option<Protection>,
    /// Reason why the observed values are unknown, with advice.
    #[serde(default)]
    pub problem: Option<String>,
    /// Part of the usage that the kernel effectively protects.
    pub effective: Option<Protection>,
    /// Whether the observed protection has an effect.
    pub standing: Option<Standing>,
    /// Usage of the cgroup.
    pub usage: Option<Bytes>,
    /// Limit of the cgroup.
    pub max: Option<Limit>,
    /// Reports about the cgroup, latest first.
    pub reports: Vec<Report>,
}

/// Status of a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerStatus {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// UID of the pod.
    pub uid: String,
    /// Name of the container.
    pub container: String,
    /// Id of the container in the runtime.
    pub id: String,
    /// Path of the container's cgroup below the cgroup root.
    pub cgroup: Option<CgroupPath>,
    /// State that sums up all other fields.
    pub state: State,
    /// QoS class.
    pub class: QosClass,
    /// Memory request.
    pub request: Option<RequestStatus>,
    /// Limit that the user asked for.
    pub asked: Limit,
    /// Usage (`memory.current`).
    pub usage: Option<Bytes>,
    /// Usage without inactive page cache, as the kubelet counts the working set.
    pub working_set: Option<Bytes>,
    /// Amount by which the working set exceeds the request.
    pub over_request: Bytes,
    /// Whether the limit is more than `maxLimitRequestRatio` times the request.
    pub overcommitted: bool,
    /// Observe mode: whether the container uses more than its planned `memory.high`.
    #[serde(default)]
    pub would_throttle: bool,
    /// Values that the files should have. `max` is the container's limit.
    pub desired: Values,
    /// Reasons for the desired values.
    pub reasons: Reasons,
    /// Values that the files have; `null` if the files cannot be read.
    pub observed: Option<Values>,
    /// Reason why the observed values are unknown, with advice.
    #[serde(default)]
    pub problem: Option<String>,
    /// Part of the usage that the kernel effectively protects.
    pub effective: Option<Protection>,
    /// Whether the observed protection has an effect.
    pub standing: Option<Standing>,
    /// Total time in seconds in which all tasks of the container waited for memory
    /// (`memory.pressure`, full).
    pub stalled_seconds: Option<f64>,
    /// Percentage of the last ten seconds in which all tasks of the container waited for memory.
    pub stalled_percent: Option<f64>,
    /// Number of the container's processes that the kernel has OOM-killed.
    pub oom_kills: Option<u64>,
    /// Reports about the container, latest first. Includes reports from before the restarts of the
    /// container, when the container had other ids.
    pub reports: Vec<Report>,
}

/// A memory request.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestStatus {
    /// The request, or its lower bound if the exact request is unknown.
    pub bytes: Bytes,
    /// Upper bound of the request.
    pub at_most: Bytes,
    /// Source of the request.
    pub provenance: String,
}

/// Values of a container's files, observed or desired.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Values {
    /// `memory.min`. A desired value of `null` means that the plugin does not write the file.
    pub min: Option<Limit>,
    /// `memory.low`.
    pub low: Option<Limit>,
    /// `memory.high`.
    pub high: Option<Limit>,
    /// `memory.max`.
    pub max: Option<Limit>,
}

impl Values {
    /// Returns the number of files whose `observed` value differs from these desired values.
    pub fn differs_from(self, observed: Self) -> usize {
        let all = |values: Self| [values.min, values.low, values.high, values.max];
        all(self)
            .into_iter()
            .zip(all(observed))
            .filter(|(desired, held)| desired.is_some() && desired != held)
            .count()
    }
}

/// Reasons for the desired values of a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reasons {
    /// Reason for `memory.min`.
    pub min: String,
    /// Reason for `memory.low`.
    pub low: String,
    /// Reason for `memory.high`.
    pub high: String,
}

/// State of a container in one word. Worse states come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// The kernel OOM-killed processes of the container within the last ten minutes.
    Killed,
    /// The plugin refused or gave up a limit decrease, because the container uses more than the new
    /// limit.
    Refused,
    /// The plugin defers a limit decrease until the container uses less memory.
    Deferred,
    /// Another program keeps changing the container's files.
    Contended,
    /// The files differ from their desired values.
    Drifted,
    /// The container is throttled at `memory.high` and waits for memory.
    Throttled,
    /// Observe mode: the container uses more than its planned `memory.high`.
    WouldThrottle,
    /// The plugin raised the limit after repeated OOM kills.
    Rescued,
    /// The container uses more than its request. The kernel may reclaim the excess.
    OverRequest,
    /// Some or all of the protection has no effect, because an ancestor cgroup has less protection.
    Inert,
    /// The container has not started, or its cgroup or an ancestor cgroup cannot be read.
    Unread,
    /// The container has no protection.
    Unprotected,
    /// The container's request is protected.
    Protected,
}

impl State {
    /// All states, worst first.
    pub const ALL: [Self; 13] = [
        Self::Killed,
        Self::Refused,
        Self::Deferred,
        Self::Contended,
        Self::Drifted,
        Self::Throttled,
        Self::WouldThrottle,
        Self::Rescued,
        Self::OverRequest,
        Self::Inert,
        Self::Unread,
        Self::Unprotected,
        Self::Protected,
    ];

    /// Returns the word for the state.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Killed => "killed",
            Self::Refused => "refused",
            Self::Deferred => "deferred",
            Self::Contended => "contended",
            Self::Drifted => "drifted",
            Self::Throttled => "throttled",
            Self::WouldThrottle => "would-throttle",
            Self::Rescued => "rescued",
            Self::OverRequest => "over-request",
            Self::Inert => "inert",
            Self::Unread => "unread",
            Self::Unprotected => "unprotected",
            Self::Protected => "protected",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mib(amount: u64) -> Limit {
        Limit::Bytes(Bytes::new(amount << 20))
    }

    #[test]
    fn what_is_left_alone_does_not_differ() {
        let desired = Values { min: Some(mib(1)), low: None, high: Some(Limit::Max), max: None };
        let observed =
            Values { min: Some(mib(1)), low: Some(mib(5)), high: Some(mib(7)), max: Some(mib(9)) };
        assert_eq!(desired.differs_from(observed), 1);
    }
}
