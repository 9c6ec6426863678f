//! The message of an incident for people.

use std::fmt;

use super::Incident;
use crate::units::{Bytes, CPU_MAX, Knob, Limit};

/// Message for people, with amounts as quantities and without log fields.
impl fmt::Display for Incident {
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
