//! Message about an incident for human readers.

use std::fmt;

use super::data::{Incident, LowerLimit};
use crate::units::{Bytes, CPU_MAX, Knob, Limit};

/// Writes the message for human readers. The message shows amounts as Kubernetes quantities.
impl fmt::Display for Incident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CutRejected(cut) => decrease(f, "rejected", cut),
            Self::CutDeferred(cut) => decrease(f, "deferred", cut),
            Self::CutGivenUp(cut) => decrease(f, "gave up", cut),
            Self::CutApplied { desired, .. } => {
                write!(f, "applied the deferred memory limit of {}", desired.quantity())
            }
            Self::NotResized { knob, desired, observed } => write!(
                f,
                "the runtime reported that it set {knob} to {desired}, but the kernel has \
                 {observed}"
            ),
            Self::PodRaised { knob, desired, observed } => write!(
                f,
                "raised the pod's {knob} from {observed} to {desired}, the sum of its containers' \
                 limits"
            ),
            Self::Repaired { .. }
            | Self::Contended { .. }
            | Self::ContendedWithKubelet { .. }
            | Self::CpuContended { .. } => self.contention(f),
            Self::Killed { .. } | Self::Rescued { .. } | Self::AtCeiling { .. } => self.kills(f),
            Self::BeyondNode { limit, allocatable } => write!(
                f,
                "the memory limit of {} exceeds node allocatable, {}",
                limit.quantity(),
                allocatable.approx()
            ),
            Self::Overcommitted { request, limit, most } => write!(
                f,
                "the memory limit of {} is {:.1} times the request of {}, expected at most {most} \
                 times",
                limit.quantity(),
                limit.get() as f64 / request.get() as f64,
                // A request that the plugin estimates from oom_score_adj is not a round number.
                request.approx()
            ),
            Self::Guarded { .. } | Self::GuardWaits(_) | Self::Unguarded { .. } => self.guard(f),
            Self::Released(change) => write!(
                f,
                "stalled at memory.high for {:.0} % of the time; the plugin raised memory.high \
                 from {} to {}",
                change.stalled,
                quantity(&change.observed),
                quantity(&change.desired)
            ),
            Self::PutBack(change) => {
                write!(f, "restored memory.high to {}", quantity(&change.desired))
            }
        }
    }
}

/// Formats a limit as a quantity.
fn quantity(limit: &Limit) -> String {
    limit.bytes().map_or_else(|| "max".to_owned(), Bytes::quantity)
}

/// Writes the message about a limit decrease that would cause an OOM kill. `verb` is the plugin's
/// action, such as `rejected`.
fn decrease(f: &mut fmt::Formatter<'_>, verb: &str, cut: &LowerLimit) -> fmt::Result {
    write!(
        f,
        "{verb} a memory limit decrease from {} to {}, which would OOM-kill: {} in use, {} \
         reclaimable",
        quantity(&cut.in_force),
        quantity(&cut.limit),
        cut.usage.current.approx(),
        cut.usage.reclaimable().approx()
    )
}

impl Incident {
    /// Writes the message about a file that another program changes.
    fn contention(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Repaired { knob, desired, observed } => write!(
                f,
                "another program set {} to {}; the plugin repaired it to {}",
                knob.file_name(),
                quantity(observed),
                quantity(desired)
            ),
            Self::Contended { knob, desired, observed, repairs }
            | Self::ContendedWithKubelet { knob, desired, observed, repairs } => {
                write!(
                    f,
                    "another program keeps setting {} to {} instead of {}; the plugin stopped \
                     after {repairs} repairs",
                    knob.file_name(),
                    quantity(observed),
                    quantity(desired)
                )?;
                match (self, knob) {
                    (Self::Contended { .. }, _) => Ok(()),
                    (_, Knob::Max) => f.write_str(
                        ". The kubelet's enforceNodeAllocatable may be the other program",
                    ),
                    _ => f.write_str(". The kubelet's own MemoryQoS may be the other program"),
                }
            }
            Self::CpuContended { desired, observed, repairs } => write!(
                f,
                "another program keeps setting the pod's {CPU_MAX} to {observed} instead of \
                 {desired}; the plugin stopped after {repairs} repairs"
            ),
            _ => Ok(()),
        }
    }

    /// Writes the message about OOM kills.
    fn kills(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Killed { by_own_limit: false, .. } => f.write_str(
                "OOM-killed because the node or kubepods ran out of memory, not because of the \
                 container's own limit",
            ),
            Self::Killed { limit, kills, window, .. } => write!(
                f,
                "OOM-killed by the limit of the container or its pod{}: {kills} times within {}",
                limit.map(|limit| format!(" ({})", quantity(&limit))).unwrap_or_default(),
                humantime::format_duration(*window)
            ),
            Self::Rescued { asked, observed, desired, kills, .. } => write!(
                f,
                "raised the memory limit from {} to {} after {kills} OOM kills (the user asked \
                 for {})",
                observed.quantity(),
                desired.quantity(),
                asked.quantity()
            ),
            Self::AtCeiling { observed, ceiling, free, kills, .. } => write!(
                f,
                "OOM-killed {kills} times, and the limit of {} may not be raised further: the \
                 ceiling is {}, and {} of node allocatable are free",
                observed.quantity(),
                ceiling.quantity(),
                free.approx()
            ),
            _ => Ok(()),
        }
    }

    /// Writes the message about the memory limit for all pods together.
    fn guard(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Guarded { desired, observed } => write!(
                f,
                "changed the memory limit of all pods together from {} to {}",
                quantity(observed),
                desired.approx()
            ),
            Self::GuardWaits(cut) => write!(
                f,
                "deferred the nodeGuard limit of {}, which would OOM-kill pods: {} in use, {} \
                 reclaimable",
                quantity(&cut.limit),
                cut.usage.current.approx(),
                cut.usage.reclaimable().approx()
            ),
            Self::Unguarded { observed, .. } => write!(
                f,
                "restored the memory limit of all pods together to {}",
                quantity(observed)
            ),
            _ => Ok(()),
        }
    }
}
