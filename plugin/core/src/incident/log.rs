//! Fields of the log message about an incident.

use std::fmt;
use std::time::Duration;

use super::data::{HighChange, Incident, LowerLimit};
use crate::outcome::Outcome;
use crate::units::Bytes;

/// Fields of a log message.
#[derive(Debug, Default)]
pub struct Fields {
    /// Name of the cgroup file.
    pub knob: Option<&'static str>,
    /// Value that the file should have.
    pub desired: Option<String>,
    /// Value that the plugin read from the file.
    pub observed: Option<String>,
    /// Limit that the user asked for.
    pub asked: Option<Bytes>,
    /// Memory usage.
    pub usage: Option<Bytes>,
    /// Amount of the used memory that the kernel can reclaim.
    pub reclaimable: Option<Bytes>,
    /// Memory request.
    pub request: Option<String>,
    /// Memory limit.
    pub limit: Option<String>,
    /// Highest ratio of limit to request that causes no warning.
    pub most: Option<f64>,
    /// Node allocatable.
    pub allocatable: Option<String>,
    /// Percentage of time during which all tasks of the container waited for memory.
    pub stalled: Option<f64>,
    /// Number of times that the plugin repaired the file.
    pub repairs: Option<u32>,
    /// Text that says which cgroup's limit caused an OOM kill.
    pub by: Option<&'static str>,
    /// Highest limit to which the plugin may raise the container's limit.
    pub ceiling: Option<Bytes>,
    /// Amount of node allocatable memory that no container requests.
    pub free: Option<Bytes>,
    /// Number of OOM kills within `window`.
    pub kills: Option<usize>,
    /// Time window in which the plugin counts OOM kills.
    pub window: Option<Duration>,
    /// Result of the plugin's attempt to change a value.
    pub outcome: Option<Outcome>,
}

impl Fields {
    /// Returns the fields for a limit decrease that had this outcome.
    fn of_limit(cut: &LowerLimit, outcome: Outcome) -> Self {
        Self {
            usage: Some(cut.usage.current),
            reclaimable: Some(cut.usage.reclaimable()),
            ..Self::of_change(&cut.limit, &cut.in_force, outcome)
        }
    }

    /// Returns the fields for a change to `memory.high`.
    fn of_high(change: &HighChange) -> Self {
        Self {
            desired: Some(change.desired.to_string()),
            observed: Some(change.observed.to_string()),
            usage: Some(change.usage),
            stalled: Some(change.stalled),
            ..Self::default()
        }
    }

    /// Returns fields with the desired value, the observed value and the outcome.
    fn of_change(
        desired: &dyn fmt::Display,
        observed: &dyn fmt::Display,
        outcome: Outcome,
    ) -> Self {
        Self {
            desired: Some(quoted(desired)),
            observed: Some(quoted(observed)),
            outcome: Some(outcome),
            ..Self::default()
        }
    }

    /// Returns fields with the number of OOM kills and the time window.
    fn of_kills(kills: usize, window: Duration) -> Self {
        Self { kills: Some(kills), window: Some(window), ..Self::default() }
    }
}

/// Formats a value, and adds quotes if the value contains a space.
fn quoted(value: &dyn fmt::Display) -> String {
    let text = value.to_string();
    if text.contains(' ') { format!("{text:?}") } else { text }
}

impl Incident {
    /// Returns the fields of the log message.
    pub fn fields(&self) -> Fields {
        Fields { knob: self.file(), ..self.other_fields() }
    }

    /// Returns all fields except the name of the cgroup file.
    fn other_fields(&self) -> Fields {
        match self {
            Self::CutRejected(cut) | Self::CutGivenUp(cut) => {
                Fields::of_limit(cut, Outcome::Rejected)
            }
            Self::CutDeferred(cut) | Self::GuardWaits(cut) => {
                Fields::of_limit(cut, Outcome::Deferred)
            }
            Self::CutApplied { desired, observed } | Self::Guarded { desired, observed } => {
                Fields::of_change(desired, observed, Outcome::Applied)
            }
            Self::Repaired { desired, observed, .. } | Self::Unguarded { desired, observed } => {
                Fields::of_change(desired, observed, Outcome::Applied)
            }
            Self::NotResized { desired, observed, .. } => {
                Fields::of_change(desired, observed, Outcome::Failed)
            }
            Self::PodRaised { desired, observed, .. } => {
                Fields::of_change(desired, observed, Outcome::Applied)
            }
            Self::Contended { desired, observed, repairs, .. }
            | Self::ContendedWithKubelet { desired, observed, repairs, .. } => Fields {
                repairs: Some(*repairs),
                ..Fields::of_change(desired, observed, Outcome::Contended)
            },
            Self::CpuContended { desired, observed, repairs } => Fields {
                repairs: Some(*repairs),
                ..Fields::of_change(desired, observed, Outcome::Contended)
            },
            Self::Released(change) | Self::PutBack(change) => Fields::of_high(change),
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
            Self::Killed { .. } | Self::Rescued { .. } | Self::AtCeiling { .. } => {
                self.oom_fields()
            }
        }
    }

    /// Returns the fields of an incident that OOM kills caused.
    fn oom_fields(&self) -> Fields {
        match *self {
            Self::Killed { limit, by_own_limit, kills, window } => Fields {
                limit: limit.map(|limit| limit.to_string()),
                by: Some(if by_own_limit {
                    "its own limit or its pod's"
                } else {
                    "the node or kubepods, not its own limit"
                }),
                ..Fields::of_kills(kills, window)
            },
            Self::Rescued { asked, observed, desired, kills, window } => Fields {
                desired: Some(desired.to_string()),
                observed: Some(observed.to_string()),
                asked: Some(asked),
                outcome: Some(Outcome::Applied),
                ..Fields::of_kills(kills, window)
            },
            Self::AtCeiling { observed, ceiling, free, kills, window } => Fields {
                observed: Some(observed.to_string()),
                ceiling: Some(ceiling),
                free: Some(free),
                outcome: Some(Outcome::Rejected),
                ..Fields::of_kills(kills, window)
            },
            _ => Fields::default(),
        }
    }
}
