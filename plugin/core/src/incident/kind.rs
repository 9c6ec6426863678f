//! Kinds of incidents.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Kind of an incident. The name of the kind appears in `plimsoll status`, and as the `reason` of
/// Kubernetes Events. The names must stay the same in later versions of the plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[allow(missing_docs, reason = "each is an `Incident` without its numbers")]
pub enum IncidentKind {
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

impl fmt::Display for IncidentKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
