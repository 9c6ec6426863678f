//! What is told to people: each thing once, from here to the log, the metrics, `plimsoll status` and Kubernetes Events; and what there is to see on demand ([`status`], served by [`serve`]).
//!
//! Whoever finds something out calls [`Reports::tell`] with a [`What`], and knows nothing of where that goes.

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

/// How many different things are remembered of one container or cgroup.
const REMEMBERED: usize = 16;

/// How long what was told counts, in seconds.
pub const LATELY: u64 = 600;

/// How many times of one thing are remembered: the kubelet tries a resize again every 10 to 15 seconds.
const TIMES: usize = 128;

/// Whom something is about.
#[derive(Clone, Debug, Default)]
pub struct Subject {
    /// Namespace and name of the pod, as `namespace/name`.
    pub pod: Option<String>,
    /// The pod's uid.
    pub uid: Option<PodUid>,
    /// The container's name.
    pub container: Option<String>,
    /// The cgroup.
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

/// A memory limit that is lower than what a container uses.
#[derive(Clone, Copy, Debug)]
pub struct LowerLimit {
    /// The limit wanted.
    pub limit: Limit,
    /// The limit in force.
    pub in_force: Limit,
    /// What the container uses.
    pub usage: Usage,
}

/// Something worth telling.
#[derive(Clone, Debug)]
pub enum What {
    /// A lower limit would kill, and was refused.
    CutRejected(LowerLimit),
    /// A lower limit would kill, and waits until it does not.
    CutDeferred(LowerLimit),
    /// It has waited for too long.
    CutGivenUp(LowerLimit),
    /// It does not wait any longer.
    CutApplied {
        /// The limit that was deferred.
        desired: Bytes,
        /// What is in force.
        observed: Limit,
    },
    /// The runtime says that it has made an update, and has not.
    NotResized {
        /// The file.
        knob: &'static str,
        /// What it should hold.
        desired: String,
        /// What it holds.
        observed: String,
    },
    /// A pod's limit was tighter than what its containers may use.
    PodRaised {
        /// The file.
        knob: &'static str,
        /// What it holds now.
        desired: String,
        /// What it held.
        observed: String,
    },
    /// Somebody else had changed a file.
    Repaired {
        /// The file.
        knob: Knob,
        /// What it should hold.
        desired: Limit,
        /// What it held.
        observed: Limit,
    },
    /// Somebody else keeps changing a file.
    Contended {
        /// The file.
        knob: Knob,
        /// What it should hold.
        desired: Limit,
        /// What it holds.
        observed: Limit,
        /// How often it was repaired.
        repairs: u32,
    },
    /// Somebody else keeps lowering the `cpu.max` of a pod.
    CpuContended {
        /// What it should hold.
        desired: CpuMax,
        /// What it holds.
        observed: CpuMax,
        /// How often it was raised again.
        repairs: u32,
    },
    /// The same of a file above pods that the kubelet may set, too. [`Reports::tell`] makes it of `Contended`.
    ContendedWithKubelet {
        /// The file.
        knob: Knob,
        /// What it should hold.
        desired: Limit,
        /// What it holds.
        observed: Limit,
        /// How often it was repaired.
        repairs: u32,
    },
    /// The kernel killed processes for want of memory.
    Killed {
        /// The container's limit.
        limit: Option<Limit>,
        /// By that, or the pod's, and not by a limit above or for want of memory on the node.
        by_own_limit: bool,
        /// How often lately.
        kills: usize,
        /// How long that is.
        window: Duration,
    },
    /// Its limit was raised, since it is killed again and again.
    Rescued {
        /// What its user asks for.
        asked: Bytes,
        /// What it had.
        observed: Bytes,
        /// What it gets.
        desired: Bytes,
        /// How often it was killed,
        kills: usize,
        /// and within what time.
        window: Duration,
    },
    /// It is killed again and again, and may not have more.
    AtCeiling {
        /// What it has.
        observed: Bytes,
        /// What it may have.
        ceiling: Bytes,
        /// What nobody has requested on the node.
        free: Bytes,
        /// How often it was killed,
        kills: usize,
        /// and within what time.
        window: Duration,
    },
    /// Its limit is more than the node has.
    BeyondNode {
        /// The limit.
        limit: Bytes,
        /// What pods may use altogether.
        allocatable: Bytes,
    },
    /// Its limit is too many times its request.
    Overcommitted {
        /// The request, or the most that it can be.
        request: Bytes,
        /// The limit.
        limit: Bytes,
        /// How many times its request it may be.
        most: f64,
    },
    /// All pods together may not use more than this from now on.
    Guarded {
        /// The limit.
        desired: Bytes,
        /// What it was.
        observed: Limit,
    },
    /// All pods together use more than they are to have.
    GuardWaits(LowerLimit),
    /// All pods together have the limit again that they would have without the guard.
    Unguarded {
        /// The limit.
        desired: Limit,
        /// What it is.
        observed: Limit,
    },
    /// It stood at `memory.high`, which was raised.
    Released(Line),
    /// It was released before, and has its `memory.high` again.
    PutBack(Line),
}

/// Where a container stands.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    /// `memory.high` from now on.
    pub desired: Limit,
    /// `memory.high` until now.
    pub observed: Limit,
    /// What it uses.
    pub usage: Bytes,
    /// How much of the last ten seconds all of it waited for memory, in percent.
    pub stalled: f64,
}

/// What kind of thing was told: in `plimsoll status`, and the reason of Events. A name stays.
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

/// What was told, without its numbers but for the limit that was asked for, and the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity(Kind, Option<Limit>, Option<&'static str>);

/// Whether what is told was done, or would have been done in another mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Deed {
    /// It was done, or simply is so.
    #[default]
    Done,
    /// Observe mode: it was not done.
    Planned,
}

impl Deed {
    /// The words before what would have been done.
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

/// The fields of a line in the log.
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
    /// The same, with what its subject says of it.
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

    /// The kind.
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

    /// What makes it the same thing again, if with other numbers.
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

    /// Somebody has to do something about it.
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

    /// What happened, and what to do. Without numbers: the same each time.
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
        // In quotes only what has a space in it.
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

/// For people: numbers as quantities, and no fields.
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
            Self::ContendedWithKubelet { knob, desired, observed, repairs } => {
                let ([desired, observed], knob) =
                    ([desired, observed].map(quantity), knob.file_name());
                write!(
                    f,
                    "{knob} is {observed} again and again instead of {desired}; left so after {repairs} repairs. The kubelet's own \
                     MemoryQoS may be the other writer"
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
                // From oom_score_adj it is not a round number.
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

/// Something that was told, perhaps several times.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// What it was the last time; for this program alone.
    #[serde(skip)]
    pub what: Option<What>,
    /// The kind.
    pub kind: Kind,
    /// For people.
    pub message: String,
    /// Observe mode: it was not done, only worked out.
    #[serde(default)]
    pub planned: bool,
    /// When it was told first, in seconds since 1970,
    pub first: u64,
    /// and last.
    pub last: u64,
    /// How often since it was told first.
    pub count: u64,
    /// When it was told lately; for this program alone.
    #[serde(skip)]
    lately: Times,
}

/// The times of the last [`LATELY`] seconds at which something was told, at most [`TIMES`].
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

/// Whose reports they are: a pod's uid and a container's name, or a cgroup's path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Whose {
    Container(PodUid, String),
    Cgroup(CgroupPath),
}

/// Where all that is told goes.
#[derive(Debug, Default)]
pub struct Reports {
    /// What is counted.
    pub metrics: Metrics,
    /// What counts towards the brake.
    pub brake: Tally,
    events: Events,
    recent: Mutex<HashMap<Whose, Told>>,
}

/// What was told of somebody.
#[derive(Debug, Default)]
struct Told {
    /// Namespace and name of the pod.
    pod: Option<String>,
    /// The latest first.
    reports: VecDeque<Report>,
}

impl Reports {
    /// Tells of something.
    pub fn tell(&self, subject: &Subject, what: &What) {
        let what = &what.of_subject(subject);
        say(subject, what, Deed::Done);
        self.count(subject, what);
        self.remember(subject, what, Deed::Done);
        self.events.put(subject, what, Deed::Done, &self.metrics.events_dropped);
    }

    /// Tells of something that was not done, as the plugin only observes. It counts as that, and is marked wherever it is seen.
    pub fn tell_planned(&self, subject: &Subject, what: &What) {
        say(subject, what, Deed::Planned);
        self.metrics.planned(what.kind());
        self.remember(subject, what, Deed::Planned);
        self.events.put(subject, what, Deed::Planned, &self.metrics.events_dropped);
    }

    /// Goes on with another configuration.
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
            // Counted once for all files of an update, and for each kill.
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

    /// What was told of a container, whatever ids it has had; the latest first.
    pub fn of_container(&self, uid: &PodUid, name: &str) -> Vec<Report> {
        self.of(&Whose::Container(uid.clone(), name.to_owned()))
    }

    /// What was told of a cgroup above the containers; the latest first.
    pub fn of_cgroup(&self, cgroup: &CgroupPath) -> Vec<Report> {
        self.of(&Whose::Cgroup(cgroup.clone()))
    }

    /// How often something was told lately.
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

    /// What was told lately of containers that are down at the moment: those that are not among `known`.
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

    /// Forgets what was told of pods and cgroups other than these, unless it was lately.
    pub fn retain(
        &self,
        is_there: impl Fn(&PodUid) -> bool,
        is_level: impl Fn(&CgroupPath) -> bool,
    ) {
        lock(&self.recent).retain(|whose, told| match whose {
            // It may be down at the moment.
            Whose::Container(uid, _) => is_there(uid) || told.reports.iter().any(Report::is_late),
            Whose::Cgroup(cgroup) => is_level(cgroup),
        });
    }
}

impl Report {
    /// It was told not long ago.
    pub fn is_late(&self) -> bool {
        self.is_within(LATELY)
    }

    /// It was told within so many seconds.
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

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// One line in the log.
fn say(subject: &Subject, what: &What, deed: Deed) {
    let fields = what.fields();
    // Of a container its pod and name are enough.
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
