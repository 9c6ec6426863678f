//! Reports of incidents in the log, the metrics, `plimsoll status` and Kubernetes Events. Users can
//! also request the current status ([`status`]), which [`serve`] provides.
//!
//! Code that detects an incident calls [`Reports::tell`] with a [`What`]. This module alone chooses
//! where the incident appears.

pub mod events;
pub(crate) mod log;
pub mod metrics;
pub mod serve;
pub mod status;

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::cgroup::{CPU_MAX, CgroupPath, Knob};
use crate::config::Config;
use crate::core::outcome::Outcome;
use crate::core::pod::PodUid;
use crate::core::policy::resize::Usage;
use crate::core::units::{Bytes, CpuMax, Limit};
use crate::kubelet::kubepods;
use crate::lock;
use crate::report::events::Events;
use crate::report::metrics::{File, Level, Metrics, OfLevel};
use crate::state::brake::{Cause, Tally};
use crate::state::containers::Container;

/// Maximum number of different incidents that are remembered for one container or cgroup.
const REMEMBERED: usize = 16;

/// Time in seconds during which a report is recent.
pub const LATELY: u64 = 600;

/// Maximum number of times that are remembered for one incident. The kubelet retries a resize every
/// 10 to 15 seconds.
const TIMES: usize = 128;

/// Pod, container or cgroup that an incident concerns.
#[derive(Clone, Debug, Default)]
pub struct Subject {
    /// Namespace and name of the pod, as `namespace/name`.
    pub pod: Option<String>,
    /// UID of the pod.
    pub uid: Option<PodUid>,
    /// Name of the container.
    pub container: Option<String>,
    /// Path of the cgroup.
    pub cgroup: Option<CgroupPath>,
}

impl From<&Container> for Subject {
    fn from(container: &Container) -> Self {
        Self {
            pod: Some(container.pod.clone()),
            uid: Some(container.uid.clone()),
            container: Some(container.name.clone()),
            cgroup: container.cgroup.clone(),
        }
    }
}

impl From<&CgroupPath> for Subject {
    fn from(cgroup: &CgroupPath) -> Self {
        Self { cgroup: Some(cgroup.clone()), ..Self::default() }
    }
}

/// A memory limit that is lower than the usage of a container, of a pod or of all pods.
#[derive(Clone, Copy, Debug)]
pub struct LowerLimit {
    /// Limit that was requested.
    pub limit: Limit,
    /// Limit in force.
    pub in_force: Limit,
    /// Usage of the container, of the pod or of all pods.
    pub usage: Usage,
}

/// An incident to report.
#[derive(Clone, Debug)]
pub enum What {
    /// The plugin refused a limit decrease that would OOM-kill.
    CutRejected(LowerLimit),
    /// The plugin deferred a limit decrease that would OOM-kill now.
    CutDeferred(LowerLimit),
    /// The plugin gave up a deferred limit that waited too long, or stopped acting meanwhile.
    CutGivenUp(LowerLimit),
    /// A deferred limit is in force.
    CutApplied {
        /// The limit that was deferred.
        desired: Bytes,
        /// The limit in force.
        observed: Limit,
    },
    /// The runtime reported an update as done, but the kernel has another value.
    NotResized {
        /// Name of the file.
        knob: &'static str,
        /// Value that the file should have.
        desired: String,
        /// Value that the file has.
        observed: String,
    },
    /// A pod's limit was lower than what its containers may use, and was raised.
    PodRaised {
        /// Name of the file.
        knob: &'static str,
        /// Value that the file has now.
        desired: String,
        /// Value that the file had before.
        observed: String,
    },
    /// The plugin repaired a file that another program had changed.
    Repaired {
        /// The file.
        knob: Knob,
        /// Value that the file should have.
        desired: Limit,
        /// Value that the plugin found.
        observed: Limit,
    },
    /// Another program keeps changing a file, so the plugin leaves the file alone.
    Contended {
        /// The file.
        knob: Knob,
        /// Value that the file should have.
        desired: Limit,
        /// Value that the file has.
        observed: Limit,
        /// Number of repairs.
        repairs: u32,
    },
    /// Another program keeps lowering the `cpu.max` of a pod, so the plugin leaves the file alone.
    CpuContended {
        /// Value that the file should have.
        desired: CpuMax,
        /// Value that the file has.
        observed: CpuMax,
        /// Number of times that the plugin raised the value.
        repairs: u32,
    },
    /// Like `Contended`, for a cgroup above the pods whose file the kubelet may also set.
    /// [`Reports::tell`] makes this variant from `Contended`.
    ContendedWithKubelet {
        /// The file.
        knob: Knob,
        /// Value that the file should have.
        desired: Limit,
        /// Value that the file has.
        observed: Limit,
        /// Number of repairs.
        repairs: u32,
    },
    /// The kernel OOM-killed processes of a container.
    Killed {
        /// Limit of the container.
        limit: Option<Limit>,
        /// True for a kill by the limit of the container or its pod. False for a kill by a limit
        /// above, or for a node without free memory.
        by_own_limit: bool,
        /// Number of kills within `window`.
        kills: usize,
        /// Time within which kills count.
        window: Duration,
    },
    /// The plugin raised the limit of a container that is OOM-killed repeatedly.
    Rescued {
        /// Limit that the user asked for.
        asked: Bytes,
        /// Limit before the raise.
        observed: Bytes,
        /// Limit after the raise.
        desired: Bytes,
        /// Number of kills within `window`.
        kills: usize,
        /// Time within which kills count.
        window: Duration,
    },
    /// A container is OOM-killed repeatedly, but its limit may not be raised further.
    AtCeiling {
        /// Limit of the container.
        observed: Bytes,
        /// Highest limit that the container may have.
        ceiling: Bytes,
        /// Node allocatable that no container has requested.
        free: Bytes,
        /// Number of kills within `window`.
        kills: usize,
        /// Time within which kills count.
        window: Duration,
    },
    /// A container's limit is above node allocatable.
    BeyondNode {
        /// Limit of the container.
        limit: Bytes,
        /// Node allocatable: memory for all pods together.
        allocatable: Bytes,
    },
    /// A container's limit is too many times its request.
    Overcommitted {
        /// Request of the container, or the upper bound if the request is not exact.
        request: Bytes,
        /// Limit of the container.
        limit: Bytes,
        /// Highest ratio of limit to request without a warning.
        most: f64,
    },
    /// The plugin set the limit of all pods together (`nodeGuard`).
    Guarded {
        /// Limit after the change.
        desired: Bytes,
        /// Limit before the change.
        observed: Limit,
    },
    /// All pods together use more than `nodeGuard` would leave them, so the limit waits.
    GuardWaits(LowerLimit),
    /// The plugin restored the limit that all pods together have without `nodeGuard`.
    Unguarded {
        /// Limit that was written.
        desired: Limit,
        /// Limit that was read back.
        observed: Limit,
    },
    /// A container was throttled at `memory.high`, so the plugin raised its `memory.high`.
    Released(Line),
    /// A container that was released has its original `memory.high` again.
    PutBack(Line),
}

/// Change of a container's `memory.high`.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    /// `memory.high` after the change.
    pub desired: Limit,
    /// `memory.high` before the change.
    pub observed: Limit,
    /// Usage of the container.
    pub usage: Bytes,
    /// Share of the last ten seconds that all of the container waited for memory, in percent.
    pub stalled: f64,
}

/// Kind of an incident, as `plimsoll status` and the reason of Kubernetes Events show it. The names
/// are stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[allow(missing_docs, reason = "each is a `What` without its numbers")]
pub enum Kind {
    CutRejected,
    CutDeferred,
    CutGivenUp,
    CutApplied,
    NotResized,
    PodRaised,
    Repaired,
    Contended,
    Killed,
    Rescued,
    AtCeiling,
    BeyondNode,
    Overcommitted,
    Guarded,
    GuardWaits,
    Unguarded,
    Released,
    PutBack,
}

/// Identity of an incident: kind, requested limit and file. Other numbers do not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity(Kind, Option<Limit>, Option<&'static str>);

/// Whether an action was done, or only planned in observe mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Deed {
    /// The action was done, or the incident is a plain fact.
    #[default]
    Done,
    /// Observe mode: the action was not done.
    Planned,
}

impl Deed {
    /// Returns the message prefix of a planned action.
    const fn prefix(self) -> &'static str {
        match self {
            Self::Done => "",
            Self::Planned => "observe mode, not done: ",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Fields of a log message.
#[derive(Debug, Default)]
struct Fields {
    knob: Option<&'static str>,
    desired: Option<String>,
    observed: Option<String>,
    asked: Option<Bytes>,
    usage: Option<Bytes>,
    reclaimable: Option<Bytes>,
    request: Option<String>,
    limit: Option<String>,
    most: Option<f64>,
    allocatable: Option<String>,
    stalled: Option<f64>,
    repairs: Option<u32>,
    by: Option<&'static str>,
    ceiling: Option<Bytes>,
    free: Option<Bytes>,
    kills: Option<usize>,
    window: Option<Duration>,
    outcome: Option<Outcome>,
}

impl What {
    /// Returns the incident with what its subject adds. `Contended` above the pods becomes
    /// `ContendedWithKubelet`.
    fn of_subject(&self, subject: &Subject) -> Self {
        match (self, &subject.cgroup) {
            (
                &Self::Contended {
                    knob: knob @ (Knob::Min | Knob::Low | Knob::Max),
                    desired,
                    observed,
                    repairs,
                },
                Some(cgroup),
            ) if subject.container.is_none() && kubepods::is_above_pods(cgroup) => {
                Self::ContendedWithKubelet { knob, desired, observed, repairs }
            }
            _ => self.clone(),
        }
    }

    /// Returns the kind.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::CutRejected(_) => Kind::CutRejected,
            Self::CutDeferred(_) => Kind::CutDeferred,
            Self::CutGivenUp(_) => Kind::CutGivenUp,
            Self::CutApplied { .. } => Kind::CutApplied,
            Self::NotResized { .. } => Kind::NotResized,
            Self::PodRaised { .. } => Kind::PodRaised,
            Self::Repaired { .. } => Kind::Repaired,
            Self::Contended { .. }
            | Self::CpuContended { .. }
            | Self::ContendedWithKubelet { .. } => Kind::Contended,
            Self::Killed { .. } => Kind::Killed,
            Self::Rescued { .. } => Kind::Rescued,
            Self::AtCeiling { .. } => Kind::AtCeiling,
            Self::BeyondNode { .. } => Kind::BeyondNode,
            Self::Overcommitted { .. } => Kind::Overcommitted,
            Self::Guarded { .. } => Kind::Guarded,
            Self::GuardWaits(_) => Kind::GuardWaits,
            Self::Unguarded { .. } => Kind::Unguarded,
            Self::Released(_) => Kind::Released,
            Self::PutBack(_) => Kind::PutBack,
        }
    }

    /// Returns what identifies the incident when it repeats with other numbers.
    const fn identity(&self) -> Identity {
        let (limit, knob) = match self {
            Self::CutRejected(cut) | Self::CutDeferred(cut) | Self::CutGivenUp(cut) => {
                (Some(cut.limit), None)
            }
            Self::NotResized { knob, .. } | Self::PodRaised { knob, .. } => (None, Some(*knob)),
            Self::Repaired { knob, .. }
            | Self::Contended { knob, .. }
            | Self::ContendedWithKubelet { knob, .. } => (None, Some(knob.file_name())),
            Self::CpuContended { .. } => (None, Some(CPU_MAX)),
            _ => (None, None),
        };
        Identity(self.kind(), limit, knob)
    }

    /// Returns whether the incident requires action by the operator or the pod's owner.
    const fn is_warning(&self) -> bool {
        !matches!(
            self,
            Self::CutApplied { .. }
                | Self::PodRaised { .. }
                | Self::Repaired { .. }
                | Self::Guarded { .. }
                | Self::Unguarded { .. }
                | Self::Released(_)
                | Self::PutBack(_)
        )
    }

    /// Returns what happened and what to do. The text has no numbers, so it is always the same.
    const fn text(&self) -> &'static str {
        match self {
            Self::CutRejected(_) => {
                "refused to lower the limit, which would kill: the container or pod has to use less before, or the limit to be higher"
            }
            Self::CutDeferred(_) => {
                "deferred a lower limit, which would kill the container until it uses less"
            }
            Self::CutGivenUp(_) => {
                "gave up the deferred limit, which would still kill the container: it has to use less, or the limit to be higher; \
                 then resize it again"
            }
            Self::CutApplied { .. } => "the deferred limit is in force",
            Self::NotResized { .. } => {
                "the runtime says that it has resized the container, and has not; what the kernel has counts. See whether the \
                 container was created with a unified value of this file, which the runtime prefers, and resize it again"
            }
            Self::PodRaised { .. } => "raised the pod's limit to what its containers may use",
            Self::Repaired { .. } => "repaired what somebody else changed",
            Self::Contended { .. } | Self::CpuContended { .. } => {
                "the value does not stay what it was set to, and is left to whoever else sets it; see above what the runtime said, or find out \
                 who it is, and let one of both set it"
            }
            Self::ContendedWithKubelet { knob: Knob::Max, .. } => {
                "the value does not stay what it was set to, and is left to the other writer. The kubelet may be the other writer: with \
                 enforceNodeAllocatable it sets the limit of all pods. Reserve the memory in the kubelet's configuration instead \
                 (systemReserved or kubeReserved), and restart the kubelet"
            }
            Self::ContendedWithKubelet { .. } => {
                "the value does not stay what it was set to, and is left to the other writer. The kubelet's own MemoryQoS may be the other \
                 writer: it is on by default from Kubernetes 1.37 on. Set featureGates.MemoryQoS to false in the kubelet's configuration \
                 and restart the kubelet"
            }
            Self::Killed { .. } => {
                "the kernel killed processes of the container for want of memory"
            }
            Self::Rescued { .. } => {
                "raising the limit of a container that is killed again and again; set it to what the container needs"
            }
            Self::AtCeiling { .. } => {
                "the container is killed again and again, and may not get more memory: that is its ceiling, or all that node \
                 allocatable leaves free; set its limit to what it needs"
            }
            Self::BeyondNode { .. } => {
                "the container may use more than the node has for all pods; set as asked, but the node may run out of memory before"
            }
            Self::Overcommitted { .. } => {
                "the container's limit is many times its request: what it uses beyond that may be taken from it, or not be there; \
                 raise the request to what it needs"
            }
            Self::Guarded { .. } => "keeps memory from pods: all together may use this much",
            Self::Unguarded { .. } => {
                "no memory is kept from pods any more: kubepods has its former limit"
            }
            Self::GuardWaits(_) => {
                "pods use more than nodeGuard leaves them, and would be killed for it: the line is set once they use less"
            }
            Self::Released(_) => "released a container that stood at memory.high",
            Self::PutBack(_) => {
                "a released container has been well below its memory.high, which is put back"
            }
        }
    }

    fn fields(&self) -> Fields {
        let max = Knob::Max.file_name();
        let cut = |cut: &LowerLimit, outcome| Fields {
            knob: Some(max),
            desired: Some(cut.limit.to_string()),
            observed: Some(cut.in_force.to_string()),
            usage: Some(cut.usage.current),
            reclaimable: Some(cut.usage.reclaimable()),
            outcome: Some(outcome),
            ..Fields::default()
        };
        let line = |line: &Line| Fields {
            knob: Some(Knob::High.file_name()),
            desired: Some(line.desired.to_string()),
            observed: Some(line.observed.to_string()),
            usage: Some(line.usage),
            stalled: Some(line.stalled),
            ..Fields::default()
        };
        // Quote only a value that contains a space.
        let text = |value: &dyn fmt::Display| {
            let text = value.to_string();
            if text.contains(' ') { format!("{text:?}") } else { text }
        };
        let pair =
            |knob, desired: &dyn fmt::Display, observed: &dyn fmt::Display, outcome| Fields {
                knob: Some(knob),
                desired: Some(text(desired)),
                observed: Some(text(observed)),
                outcome: Some(outcome),
                ..Fields::default()
            };
        match self {
            Self::CutRejected(of) | Self::CutGivenUp(of) => cut(of, Outcome::Rejected),
            Self::CutDeferred(of) | Self::GuardWaits(of) => cut(of, Outcome::Deferred),
            Self::CutApplied { desired, observed } => {
                pair(max, desired, observed, Outcome::Applied)
            }
            Self::NotResized { knob, desired, observed } => {
                pair(knob, desired, observed, Outcome::Failed)
            }
            Self::PodRaised { knob, desired, observed } => {
                pair(knob, desired, observed, Outcome::Applied)
            }
            Self::Repaired { knob, desired, observed } => {
                pair(knob.file_name(), desired, observed, Outcome::Applied)
            }
            Self::Contended { knob, desired, observed, repairs }
            | Self::ContendedWithKubelet { knob, desired, observed, repairs } => Fields {
                repairs: Some(*repairs),
                ..pair(knob.file_name(), desired, observed, Outcome::Contended)
            },
            Self::CpuContended { desired, observed, repairs } => Fields {
                repairs: Some(*repairs),
                ..pair(CPU_MAX, desired, observed, Outcome::Contended)
            },
            Self::Killed { limit, by_own_limit, kills, window } => Fields {
                limit: limit.map(|limit| limit.to_string()),
                by: Some(if *by_own_limit {
                    "its own limit or its pod's"
                } else {
                    "the node or kubepods, not its own limit"
                }),
                kills: Some(*kills),
                window: Some(*window),
                ..Fields::default()
            },
            Self::Rescued { asked, observed, desired, kills, window } => Fields {
                asked: Some(*asked),
                kills: Some(*kills),
                window: Some(*window),
                outcome: None,
                ..pair(max, desired, observed, Outcome::Applied)
            },
            Self::AtCeiling { observed, ceiling, free, kills, window } => Fields {
                knob: Some(max),
                observed: Some(observed.to_string()),
                ceiling: Some(*ceiling),
                free: Some(*free),
                kills: Some(*kills),
                window: Some(*window),
                outcome: Some(Outcome::Rejected),
                ..Fields::default()
            },
            Self::BeyondNode { limit, allocatable } => Fields {
                limit: Some(limit.quantity()),
                allocatable: Some(allocatable.quantity()),
                ..Fields::default()
            },
            Self::Overcommitted { request, limit, most } => Fields {
                request: Some(request.quantity()),
                limit: Some(limit.quantity()),
                most: Some(*most),
                ..Fields::default()
            },
            Self::Guarded { desired, observed } => pair(max, desired, observed, Outcome::Applied),
            Self::Unguarded { desired, observed } => pair(max, desired, observed, Outcome::Applied),
            Self::Released(of) | Self::PutBack(of) => line(of),
        }
    }
}

/// Message for people, with amounts as quantities and without log fields.
impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quantity =
            |limit: &Limit| limit.bytes().map_or_else(|| "max".to_owned(), Bytes::quantity);
        match self {
            Self::CutRejected(cut) | Self::CutDeferred(cut) | Self::CutGivenUp(cut) => {
                let verb = match self {
                    Self::CutRejected(_) => "refused",
                    Self::CutDeferred(_) => "deferred",
                    _ => "gave up",
                };
                write!(
                    f,
                    "{verb} to lower the memory limit from {} to {}, which would kill: {} in use, of which {} can be reclaimed",
                    quantity(&cut.in_force),
                    quantity(&cut.limit),
                    cut.usage.current.approx(),
                    cut.usage.reclaimable().approx()
                )
            }
            Self::Guarded { desired, observed } => {
                write!(
                    f,
                    "all pods together may use {} from now on, and not {}",
                    desired.approx(),
                    quantity(observed)
                )
            }
            Self::Unguarded { observed, .. } => {
                write!(f, "all pods together may use {} again", quantity(observed))
            }
            Self::GuardWaits(cut) => write!(
                f,
                "pods use {} together, of which {} can be reclaimed: that is more than the {} that nodeGuard leaves them",
                cut.usage.current.approx(),
                cut.usage.reclaimable().approx(),
                quantity(&cut.limit),
            ),
            Self::CutApplied { desired, .. } => {
                write!(f, "the deferred memory limit of {} is in force", desired.quantity())
            }
            Self::NotResized { knob, desired, observed } => {
                write!(
                    f,
                    "the runtime says that it has set {knob} to {desired}, and it is {observed}"
                )
            }
            Self::PodRaised { knob, desired, observed } => write!(
                f,
                "raised the pod's {knob} from {observed} to {desired}, since it was tighter than what its containers may use"
            ),
            Self::Repaired { knob, desired, observed } => {
                let [desired, observed] = [desired, observed].map(quantity);
                write!(
                    f,
                    "{} was set to {observed} by somebody else, and is {desired} again",
                    knob.file_name()
                )
            }
            Self::Contended { knob, desired, observed, repairs } => {
                let ([desired, observed], knob) =
                    ([desired, observed].map(quantity), knob.file_name());
                write!(
                    f,
                    "{knob} is {observed} again and again instead of {desired}; left so after {repairs} repairs"
                )
            }
            Self::CpuContended { desired, observed, repairs } => write!(
                f,
                "the pod's {CPU_MAX} is {observed} again and again instead of {desired}; left so after {repairs} repairs"
            ),
            Self::ContendedWithKubelet { knob: of, desired, observed, repairs } => {
                let ([desired, observed], knob) =
                    ([desired, observed].map(quantity), of.file_name());
                write!(
                    f,
                    "{knob} is {observed} again and again instead of {desired}; left so after {repairs} repairs. The kubelet's {} may be \
                     the other writer",
                    if *of == Knob::Max { "enforceNodeAllocatable" } else { "own MemoryQoS" }
                )
            }
            Self::Killed { by_own_limit: false, .. } => f.write_str(
                "killed for want of memory on the node or in kubepods, not by its own limit",
            ),
            Self::Killed { limit, kills, window, .. } => write!(
                f,
                "killed for want of memory, by its own limit or its pod's{}: {kills} times within {}",
                limit.map(|limit| format!(" ({})", quantity(&limit))).unwrap_or_default(),
                humantime::format_duration(*window)
            ),
            Self::Rescued { asked, observed, desired, kills, .. } => write!(
                f,
                "raised the memory limit from {} to {} (asked for: {}), since it was killed {kills} times",
                observed.quantity(),
                desired.quantity(),
                asked.quantity()
            ),
            Self::AtCeiling { observed, ceiling, free, kills, .. } => write!(
                f,
                "killed {kills} times, and may not get more memory than {}: the ceiling is {}, and {} are free",
                observed.quantity(),
                ceiling.quantity(),
                free.approx()
            ),
            Self::BeyondNode { limit, allocatable } => write!(
                f,
                "the memory limit of {} is more than the node has for all pods, {}",
                limit.quantity(),
                allocatable.approx()
            ),
            Self::Overcommitted { request, limit, most } => write!(
                f,
                "the memory limit of {} is {:.1} times the request of {}, expected at most {most} times",
                limit.quantity(),
                limit.get() as f64 / request.get() as f64,
                // A request derived from oom_score_adj is not a round number.
                request.approx()
            ),
            Self::Released(line) => write!(
                f,
                "stood still at memory.high for {:.0} % of the time; raised that from {} to {}",
                line.stalled,
                quantity(&line.observed),
                quantity(&line.desired)
            ),
            Self::PutBack(line) => write!(f, "memory.high is {} again", quantity(&line.desired)),
        }
    }
}

/// An incident that was reported, possibly several times.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The latest incident; only for this program.
    #[serde(skip)]
    pub what: Option<What>,
    /// Kind of the incident.
    pub kind: Kind,
    /// Message for people.
    pub message: String,
    /// Observe mode: the action was planned but not done.
    #[serde(default)]
    pub planned: bool,
    /// Time of the first incident, in seconds since 1970.
    pub first: u64,
    /// Time of the latest incident, in seconds since 1970.
    pub last: u64,
    /// Number of incidents since the first one.
    pub count: u64,
    /// Recent times of the incident; only for this program.
    #[serde(skip)]
    lately: Times,
}

/// Times of an incident within the last [`LATELY`] seconds, at most [`TIMES`].
#[derive(Clone, Debug, Default)]
struct Times(VecDeque<u64>);

impl Times {
    fn add(&mut self, now: u64) {
        let surplus = (self.0.len() + 1).saturating_sub(TIMES);
        self.0.drain(..surplus);
        self.0.retain(|at| now.saturating_sub(*at) <= LATELY);
        self.0.push_back(now);
    }

    fn count(&self, now: u64) -> u64 {
        self.0.iter().filter(|at| now.saturating_sub(**at) <= LATELY).count() as u64
    }
}

/// Owner of reports: a pod's UID with a container's name, or a cgroup's path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Whose {
    Container(PodUid, String),
    Cgroup(CgroupPath),
}

/// Destination of all incidents.
#[derive(Debug, Default)]
pub struct Reports {
    /// Counters.
    pub metrics: Metrics,
    /// Counts for the automatic brake.
    pub brake: Tally,
    events: Events,
    recent: Mutex<HashMap<Whose, Told>>,
}

/// Reports of one container or cgroup.
#[derive(Debug, Default)]
struct Told {
    /// Namespace and name of the pod.
    pod: Option<String>,
    /// Latest first.
    reports: VecDeque<Report>,
}

impl Reports {
    /// Reports an incident.
    pub fn tell(&self, subject: &Subject, what: &What) {
        let what = &what.of_subject(subject);
        say(subject, what, Deed::Done);
        self.count(subject, what);
        self.remember(subject, what, Deed::Done);
        self.events.put(subject, what, Deed::Done, &self.metrics.events_dropped);
    }

    /// Reports an action that observe mode left undone. The metrics count planned actions
    /// separately, and every output marks them.
    pub fn tell_planned(&self, subject: &Subject, what: &What) {
        say(subject, what, Deed::Planned);
        self.metrics.planned(what.kind());
        self.remember(subject, what, Deed::Planned);
        self.events.put(subject, what, Deed::Planned, &self.metrics.events_dropped);
    }

    /// Applies another configuration.
    pub fn configure(&self, config: &Config) {
        self.brake.configure(config.brake);
        self.events.configure(config.kubeconfig.as_deref(), &self.metrics.events_dropped);
    }

    fn count(&self, subject: &Subject, what: &What) {
        let metrics = &self.metrics;
        let level = if subject.container.is_some() { Level::Container } else { Level::Ancestor };
        match what {
            What::CutRejected(cut) => {
                metrics.resized(Outcome::Rejected);
                if let (Limit::Bytes(limit), Limit::Bytes(in_force)) = (cut.limit, cut.in_force) {
                    metrics.rejected_bytes.inc_by(in_force.saturating_sub(limit).get());
                }
            }
            What::CutDeferred(_) => metrics.resized(Outcome::Deferred),
            What::CutGivenUp(_) => _ = metrics.deferrals_given_up.inc(),
            What::CutApplied { .. } => metrics.resized(Outcome::Applied),
            What::PodRaised { .. } => _ = metrics.pod_limits_raised.inc(),
            What::Repaired { knob, .. } => {
                self.brake.count(Cause::Repairs, Instant::now());
                _ = metrics.repairs.get_or_create(&OfLevel { level, knob: (*knob).into() }).inc()
            }
            What::Contended { knob, .. } | What::ContendedWithKubelet { knob, .. } => {
                self.brake.count(Cause::Conflicts, Instant::now());
                _ = metrics.contended.get_or_create(&OfLevel { level, knob: (*knob).into() }).inc();
            }
            What::CpuContended { .. } => {
                self.brake.count(Cause::Conflicts, Instant::now());
                _ = metrics.contended.get_or_create(&OfLevel { level, knob: File::CPU_MAX }).inc();
            }
            What::Rescued { .. } => metrics.rescued(Outcome::Applied),
            What::AtCeiling { .. } => metrics.rescued(Outcome::Rejected),
            What::Released(_) => _ = metrics.stalls_released.inc(),
            // Other code counts two of these: an update once for all its files, and every single
            // kill.
            What::NotResized { .. }
            | What::Killed { .. }
            | What::BeyondNode { .. }
            | What::Overcommitted { .. }
            | What::Guarded { .. }
            | What::GuardWaits(_)
            | What::Unguarded { .. }
            | What::PutBack(_) => {}
        }
    }

    fn remember(&self, subject: &Subject, what: &What, deed: Deed) {
        let Some(whose) = Whose::of(subject) else { return };
        let now = now();
        let (kind, message) = (what.kind(), format!("{}{what}", deed.prefix()));
        let planned = deed == Deed::Planned;
        let mut recent = lock(&self.recent);
        let Told { pod, reports } = recent.entry(whose).or_default();
        if subject.pod.is_some() {
            pod.clone_from(&subject.pod);
        }
        let before = reports.iter().position(|report| {
            let is_it = |before: &What| what.identity() == before.identity();
            report.planned == planned && report.what.as_ref().is_some_and(is_it)
        });
        let (what, count, lately) = (Some(what.clone()), 1, Times::default());
        let mut report = match before.and_then(|at| reports.remove(at)) {
            Some(before) => Report { what, message, last: now, count: before.count + 1, ..before },
            None => Report { what, kind, message, planned, first: now, last: now, count, lately },
        };
        report.lately.add(now);
        reports.truncate(REMEMBERED - 1);
        reports.push_front(report);
    }

    /// Returns the reports of a container, whose id may have changed. Latest first.
    pub fn of_container(&self, uid: &PodUid, name: &str) -> Vec<Report> {
        self.of(&Whose::Container(uid.clone(), name.to_owned()))
    }

    /// Returns the reports of a cgroup above the containers. Latest first.
    pub fn of_cgroup(&self, cgroup: &CgroupPath) -> Vec<Report> {
        self.of(&Whose::Cgroup(cgroup.clone()))
    }

    /// Returns how often the matching incidents occurred recently.
    pub fn count_lately(&self, is_it: impl Fn(&Report) -> bool) -> u64 {
        let recent = lock(&self.recent);
        let reports = recent.values().flat_map(|told| &told.reports);
        let now = now();
        reports.filter(|report| is_it(report)).map(|report| report.lately.count(now)).sum()
    }

    fn of(&self, whose: &Whose) -> Vec<Report> {
        lock(&self.recent)
            .get(whose)
            .map(|told| told.reports.iter().cloned().collect())
            .unwrap_or_default()
    }

    /// Returns the recent reports of containers that are not in `known`, because they are down.
    pub fn of_others(&self, known: &HashSet<(PodUid, String)>) -> Vec<(Subject, Vec<Report>)> {
        let recent = lock(&self.recent);
        let others = recent.iter().filter_map(|(whose, told)| match whose {
            Whose::Container(uid, name) if !known.contains(&(uid.clone(), name.clone())) => {
                let late: Vec<_> =
                    told.reports.iter().filter(|report| report.is_late()).cloned().collect();
                let (uid, container) = (Some(uid.clone()), Some(name.clone()));
                (!late.is_empty()).then(|| {
                    (Subject { pod: told.pod.clone(), uid, container, cgroup: None }, late)
                })
            }
            _ => None,
        });
        others.collect()
    }

    /// Forgets the reports of pods and cgroups that no longer exist. Recent reports of containers
    /// stay.
    pub fn retain(
        &self,
        is_there: impl Fn(&PodUid) -> bool,
        is_level: impl Fn(&CgroupPath) -> bool,
    ) {
        lock(&self.recent).retain(|whose, told| match whose {
            // The container may only be down at the moment.
            Whose::Container(uid, _) => is_there(uid) || told.reports.iter().any(Report::is_late),
            Whose::Cgroup(cgroup) => is_level(cgroup),
        });
    }
}

impl Report {
    /// Returns whether the latest incident is recent: at most [`LATELY`] seconds old.
    pub fn is_late(&self) -> bool {
        self.is_within(LATELY)
    }

    /// Returns whether the latest incident is at most `seconds` old.
    pub fn is_within(&self, seconds: u64) -> bool {
        now().saturating_sub(self.last) <= seconds
    }
}

impl Whose {
    fn of(subject: &Subject) -> Option<Self> {
        match (&subject.uid, &subject.container, &subject.cgroup) {
            (Some(uid), Some(name), _) => Some(Self::Container(uid.clone(), name.clone())),
            (_, _, Some(cgroup)) => Some(Self::Cgroup(cgroup.clone())),
            _ => None,
        }
    }
}

/// Returns the seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Writes one log message.
fn say(subject: &Subject, what: &What, deed: Deed) {
    let fields = what.fields();
    // The pod and the container name identify a container, so only a kill also shows the cgroup.
    let cgroup = subject
        .cgroup
        .as_ref()
        .filter(|_| subject.container.is_none() || matches!(what, What::Killed { .. }));
    let outcome = if deed == Deed::Planned { Some(Outcome::Planned) } else { fields.outcome };
    macro_rules! say {
        ($say:ident) => {
            $say!(
                pod = subject.pod,
                container = subject.container,
                cgroup = cgroup.map(tracing::field::display),
                knob = fields.knob,
                desired = fields.desired.as_deref().map(tracing::field::display),
                observed = fields.observed.as_deref().map(tracing::field::display),
                asked = fields.asked.map(tracing::field::display),
                usage = fields.usage.map(tracing::field::display),
                reclaimable = fields.reclaimable.map(tracing::field::display),
                request = fields.request.as_deref().map(tracing::field::display),
                most = fields.most,
                limit = fields.limit.as_deref().map(tracing::field::display),
                allocatable = fields.allocatable.as_deref().map(tracing::field::display),
                stalled = fields.stalled,
                repairs = fields.repairs,
                by = fields.by,
                ceiling = fields.ceiling.map(tracing::field::display),
                free = fields.free.map(tracing::field::display),
                kills = fields.kills,
                window = fields.window.map(tracing::field::debug),
                outcome = outcome.map(tracing::field::display),
                "{}{}",
                deed.prefix(),
                what.text()
            )
        };
    }
    if what.is_warning() { say!(warn) } else { say!(info) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_recent_times_are_counted() {
        let mut times = Times::default();
        for at in [1000, 1300, 1900] {
            times.add(at);
        }
        assert_eq!(times.count(1900), 2, "the first is more than {LATELY} s ago");
        assert_eq!(times.count(1901), 1);
        assert_eq!(times.count(1900 + LATELY + 1), 0);
        for _ in 0..3 * TIMES {
            times.add(2000);
        }
        assert_eq!(times.count(2000), TIMES as u64);
    }
}
