//! Table of all incidents with their constant properties.
//!
//! To add an incident, add a variant to [`Incident`] and [`IncidentKind`], and a row to this table.
//! Then the code does not compile until the new incident has log fields and a message.

use super::data::Incident;
use super::kind::IncidentKind;
use crate::units::Knob;

/// Constant properties of an incident.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Properties {
    /// Kind of the incident.
    pub kind: IncidentKind,
    /// Whether the incident requires action by the operator or the pod's owner.
    pub is_warning: bool,
    /// The `action` field of the Kubernetes Event. `None` means that the plugin creates no Event.
    pub event_action: Option<&'static str>,
    /// Text of the log message: what happened and what to do. The text contains no amounts.
    pub text: &'static str,
}

/// Marks an incident that requires action.
const WARNING: bool = true;

/// Marks an incident that requires no action.
const NORMAL: bool = false;

/// Builds the table. A row has a variant, a kind, `WARNING` or `NORMAL`, an Event action and a
/// text.
macro_rules! incidents {
    ($($variant:ident: $kind:ident, $is_warning:ident, $action:expr, $text:expr;)*) => {
        impl Incident {
            /// Returns the constant properties.
            pub const fn properties(&self) -> &'static Properties {
                match self {
                    $(Self::$variant { .. } => &Properties {
                        kind: IncidentKind::$kind,
                        is_warning: $is_warning,
                        event_action: $action,
                        text: $text,
                    },)*
                }
            }
        }

        /// Properties of every incident.
        const ALL: &[Properties] = &[$(Properties {
            kind: IncidentKind::$kind,
            is_warning: $is_warning,
            event_action: $action,
            text: $text,
        }),*];
    };
}

/// Text of [`Incident::ContendedWithKubelet`] if the file contains the limit of all pods.
const CONTENDED_LIMIT_OF_PODS: &str = "another program keeps changing this file, so the plugin \
                                       leaves it alone. The kubelet may be the other program: \
                                       with enforceNodeAllocatable it sets the limit of all pods. \
                                       Reserve the memory in the kubelet's configuration instead \
                                       (systemReserved or kubeReserved), and restart the kubelet";

const RESIZE: Option<&str> = Some("Resize");
const RESCUE: Option<&str> = Some("Rescue");
const ADMIT: Option<&str> = Some("Admit");
const THROTTLE: Option<&str> = Some("Throttle");
/// The plugin creates no Kubernetes Event, because the kubelet already reports OOM kills, or
/// because the incident is not about a pod.
const NO_EVENT: Option<&str> = None;

incidents! {
    CutRejected: CutRejected, WARNING, RESIZE,
        "rejected a limit decrease that would OOM-kill: reduce the memory usage of the container \
         or pod, or set a higher limit";
    CutDeferred: CutDeferred, WARNING, RESIZE,
        "deferred a limit decrease that would OOM-kill: the plugin applies it when the container \
         uses less memory";
    CutGivenUp: CutGivenUp, WARNING, RESIZE,
        "gave up the deferred limit decrease, which would still OOM-kill: reduce the memory usage \
         of the container or choose a higher limit, then resize again";
    CutApplied: CutApplied, NORMAL, RESIZE,
        "applied the deferred limit decrease";
    NotResized: NotResized, WARNING, RESIZE,
        "the runtime reported a successful resize, but the kernel has another value: check \
         whether the container was created with a unified value of this file, which the runtime \
         prefers, and resize again";
    PodRaised: PodRaised, NORMAL, RESIZE,
        "raised the pod's limit to the sum of its containers' limits";
    Repaired: Repaired, NORMAL, NO_EVENT,
        "repaired a file that another program had changed";
    Contended: Contended, WARNING, NO_EVENT,
        "another program keeps changing this file, so the plugin leaves it alone: see the \
         runtime's messages above, or find the other program, and let only one of both set the \
         file";
    CpuContended: Contended, WARNING, NO_EVENT,
        "another program keeps changing this file, so the plugin leaves it alone: see the \
         runtime's messages above, or find the other program, and let only one of both set the \
         file";
    ContendedWithKubelet: Contended, WARNING, NO_EVENT,
        "another program keeps changing this file, so the plugin leaves it alone. The kubelet's \
         own MemoryQoS may be the other program: MemoryQoS is on by default since Kubernetes \
         1.37. Set featureGates.MemoryQoS to false in the kubelet's configuration and restart the \
         kubelet";
    Killed: Killed, WARNING, NO_EVENT,
        "the kernel OOM-killed processes of the container";
    Rescued: Rescued, WARNING, RESCUE,
        "raised the limit of a container that is OOM-killed repeatedly: set the limit to what the \
         container needs";
    AtCeiling: AtCeiling, WARNING, RESCUE,
        "the container is OOM-killed repeatedly, and its limit may not be raised further: the \
         limit has reached its ceiling or the free part of node allocatable. Set the limit to \
         what the container needs";
    BeyondNode: BeyondNode, WARNING, ADMIT,
        "the container's limit is above node allocatable: the plugin applies the limit, but the \
         node may run out of memory before the container reaches the limit";
    Overcommitted: Overcommitted, WARNING, ADMIT,
        "the container's limit is many times its request: the kernel may reclaim memory above the \
         request, or the node may have none left. Raise the request to what the container needs";
    Guarded: Guarded, NORMAL, NO_EVENT,
        "set the memory limit of all pods together (nodeGuard)";
    GuardWaits: GuardWaits, WARNING, NO_EVENT,
        "deferred the limit of nodeGuard, which would OOM-kill pods: the plugin sets the limit \
         when pods use less memory";
    Unguarded: Unguarded, NORMAL, NO_EVENT,
        "restored the memory limit that all pods together have without nodeGuard";
    Released: Released, NORMAL, THROTTLE,
        "released a container that was stalled at memory.high";
    PutBack: PutBack, NORMAL, THROTTLE,
        "restored memory.high of a released container, which uses less memory now";
}

impl Incident {
    /// Returns the kind.
    pub const fn kind(&self) -> IncidentKind {
        self.properties().kind
    }

    /// Returns whether the incident requires action by the operator or the pod's owner.
    pub const fn is_warning(&self) -> bool {
        self.properties().is_warning
    }

    /// Returns a text that says what happened and what the reader should do. The text contains no
    /// amounts.
    pub const fn text(&self) -> &'static str {
        match self {
            Self::ContendedWithKubelet { knob: Knob::Max, .. } => CONTENDED_LIMIT_OF_PODS,
            _ => self.properties().text,
        }
    }
}

impl IncidentKind {
    /// Returns the `action` field of the Event. `None` means that the plugin creates no Event.
    pub fn event_action(self) -> Option<&'static str> {
        ALL.iter().find(|properties| properties.kind == self)?.event_action
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_kind_incidents_differ_only_in_text() {
        for one in ALL {
            for other in ALL.iter().filter(|other| other.kind == one.kind) {
                assert_eq!(Properties { text: one.text, ..*other }, *one);
            }
        }
    }

    #[test]
    fn texts_are_sentences_without_numbers() {
        for Properties { text, .. } in ALL {
            let without_version = text.replace("Kubernetes 1.37", "");
            assert!(!without_version.contains(|c: char| c.is_ascii_digit()), "{text}");
            assert!(!text.ends_with(['.', ' ']) && !text.contains("  "), "{text}");
        }
    }
}
