//! Data for a Kubernetes Event, taken from an incident.

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use plimsoll_core::incident::{Identity, Incident, IncidentKind, Subject};
use tokio::time::Instant;

use crate::report::events::names::{is_label, is_name_part, note, stable_hash};
use crate::report::mode::ReportMode;

/// Reporting controller in Events, for which the API server requires a qualified name.
const CONTROLLER: &str = "plimsoll";

/// Returns the Event's action for an incident that concerns the pod's owner. Returns `None` for an
/// incident that concerns only the node. The plugin's log still reports this incident.
///
/// The Event's reason is the name of the [`IncidentKind`], with the prefix `Observed` in observe
/// mode. The Event's type is Warning if the incident requires action.
pub fn action(kind: IncidentKind) -> Option<&'static str> {
    kind.event_action()
}

/// An incident with the data that its Event needs. A draft stays small, because [`EventDraft::of`]
/// rejects long names.
#[derive(Clone, Debug)]
pub(super) struct EventDraft {
    pub(super) namespace: String,
    pub(super) pod: String,
    pub(super) uid: String,
    /// Name of the container; `None` if the incident concerns the pod itself.
    pub(super) container: Option<String>,
    pub(super) identity: Identity,
    pub(super) mode: ReportMode,
    pub(super) action: &'static str,
    pub(super) is_warning: bool,
    /// Desired value. The note of an Event never changes, so a new desired value needs a new Event.
    pub(super) desired: Option<String>,
    pub(super) note: String,
    pub(super) at: Timestamp,
    pub(super) since: Instant,
}

impl EventDraft {
    /// Returns the data for an Event. Returns `None` if the incident does not concern the pod's
    /// owner. Also returns `None` if Kubernetes allows no pod with these names, because no pod can
    /// match the Event.
    pub(super) fn of(subject: &Subject, what: &Incident, mode: ReportMode) -> Option<Self> {
        let action = action(what.kind())?;
        let (namespace, pod) = subject.pod.as_ref()?.split_once('/')?;
        let (uid, container) = (subject.uid.as_ref()?.as_str(), &subject.container);
        let is_possible = is_label(namespace)
            && container.as_deref().is_none_or(is_label)
            && pod.len() <= 253
            && pod.split('.').all(is_name_part)
            // The UID of a static pod is a digest and not a UUID, but both are valid labels.
            && is_label(uid);
        is_possible.then(|| Self {
            namespace: namespace.to_owned(),
            pod: pod.to_owned(),
            uid: uid.to_owned(),
            container: container.clone(),
            identity: what.identity(),
            mode,
            action,
            is_warning: what.is_warning(),
            desired: match what.kind() {
                // The plugin changes `memory.high` in several steps but writes only one Event for
                // all steps.
                IncidentKind::Released | IncidentKind::PutBack => None,
                _ => what.fields().desired.or(what.fields().limit),
            },
            note: note(&match container {
                Some(container) => format!("container {container}: {}{what}", mode.prefix()),
                None => format!("pod: {}{what}", mode.prefix()),
            }),
            at: Timestamp::now(),
            since: Instant::now(),
        })
    }

    /// Returns whether the plugin writes only one Event for all containers of a pod.
    pub(super) fn is_once(&self) -> bool {
        self.kind() == IncidentKind::Overcommitted
    }

    /// Returns whether every report of the incident gives the Event the same name.
    ///
    /// A restarted plugin reports `Overcommitted` and `BeyondNode` again, and the API server must
    /// detect the duplicate.
    pub(super) fn has_stable_name(&self) -> bool {
        matches!(self.kind(), IncidentKind::Overcommitted | IncidentKind::BeyondNode)
    }

    pub(super) fn kind(&self) -> IncidentKind {
        self.identity.kind()
    }

    /// Returns whether the same Event reports both incidents. A pod has one `Overcommitted` Event
    /// for all its containers.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        self.uid == other.uid
            && self.identity == other.identity
            && self.mode == other.mode
            && (self.is_once()
                || (self.container == other.container && self.desired == other.desired))
    }

    /// Returns the incident's kind, with a prefix if the plugin only planned the action in observe
    /// mode.
    pub(super) fn reason(&self) -> String {
        match self.mode {
            ReportMode::Done => self.kind().to_string(),
            ReportMode::Planned => format!("Observed{}", self.kind()),
        }
    }

    pub(super) fn event(&self, instance: &str) -> Event {
        Event {
            metadata: ObjectMeta {
                namespace: Some(self.namespace.clone()),
                name: Some(self.name()),
                ..ObjectMeta::default()
            },
            // For a static pod, `uid` is the UID that the kubelet derives from the manifest file.
            // The kubelet's own Events have the same UID, by which kubectl finds Events.
            regarding: Some(ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                namespace: Some(self.namespace.clone()),
                name: Some(self.pod.clone()),
                uid: Some(self.uid.clone()),
                field_path: self
                    .container
                    .as_ref()
                    .map(|name| format!("spec.containers{{{name}}}")),
                ..ObjectReference::default()
            }),
            event_time: Some(MicroTime(self.at)),
            type_: Some(if self.is_warning { "Warning" } else { "Normal" }.to_owned()),
            reason: Some(self.reason()),
            action: Some(self.action.to_owned()),
            note: Some(self.note.clone()),
            reporting_controller: Some(CONTROLLER.to_owned()),
            reporting_instance: Some(instance.to_owned()),
            ..Event::default()
        }
    }

    /// Returns the Event's name, which consists of the pod's name and the time, as in client-go. If
    /// [`Self::has_stable_name`] is true, the name contains a hash instead of the time.
    pub(super) fn name(&self) -> String {
        let suffix = if self.has_stable_name() {
            let identity = format!("{}/{}/{}", self.uid, self.kind(), self.note);
            format!(".{:016x}", stable_hash(identity.as_bytes()))
        } else {
            format!(".{:x}", self.at.as_nanosecond())
        };
        let pod: String = self.pod.chars().take(253 - suffix.len()).collect();
        format!("{}{suffix}", pod.trim_end_matches(['.', '-']))
    }
}

#[cfg(test)]
mod tests {
    use plimsoll_core::incident::HighChange;
    use plimsoll_core::units::{Bytes, Knob, Limit};
    use serde_json::json;

    use super::*;
    use crate::report::events::fixtures::{MIB, draft, overcommitted, rejected, subject};

    #[test]
    fn only_incidents_for_pod_owners_become_events() {
        for (kinds, expected) in [
            (
                &[
                    IncidentKind::CutRejected,
                    IncidentKind::CutDeferred,
                    IncidentKind::CutGivenUp,
                    IncidentKind::CutApplied,
                ][..],
                Some("Resize"),
            ),
            (&[IncidentKind::NotResized, IncidentKind::PodRaised], Some("Resize")),
            (&[IncidentKind::Rescued, IncidentKind::AtCeiling], Some("Rescue")),
            (&[IncidentKind::BeyondNode, IncidentKind::Overcommitted], Some("Admit")),
            (&[IncidentKind::Released, IncidentKind::PutBack], Some("Throttle")),
            (
                &[
                    IncidentKind::Killed,
                    IncidentKind::Repaired,
                    IncidentKind::Contended,
                    IncidentKind::Guarded,
                    IncidentKind::GuardWaits,
                    IncidentKind::Unguarded,
                ],
                None,
            ),
        ] {
            for kind in kinds {
                assert_eq!(action(*kind), expected, "{kind}");
            }
        }
        let (desired, observed) = (Limit::Max, Limit::Max);
        let repaired = Incident::Repaired { knob: Knob::High, desired, observed };
        assert!(
            EventDraft::of(&subject("default/web", "u", "app"), &repaired, ReportMode::Done)
                .is_none()
        );
        // Without a pod, the Event would have no object to refer to.
        assert!(EventDraft::of(&Subject::default(), &rejected(1), ReportMode::Done).is_none());
    }

    #[test]
    fn an_event_identifies_its_container_and_reason() {
        let event =
            serde_json::to_value(draft("0a-1", "app", &rejected(100)).event("node-1")).unwrap();
        assert_eq!(
            event["regarding"],
            json!({
                "apiVersion": "v1", "kind": "Pod", "namespace": "default", "name": "web", "uid": "0a-1",
                "fieldPath": "spec.containers{app}",
            })
        );
        for (field, expected) in [
            ("type", "Warning"),
            ("reason", "CutRejected"),
            ("action", "Resize"),
            ("reportingController", "plimsoll"),
            ("reportingInstance", "node-1"),
        ] {
            assert_eq!(event[field], expected, "{field}");
        }
        let note = event["note"].as_str().unwrap();
        assert!(
            note.starts_with("container app: rejected a memory limit decrease from 250Mi to 100Mi"),
            "{note}"
        );
        let line = HighChange {
            desired: Limit::Max,
            observed: Limit::Max,
            usage: Bytes::ZERO,
            stalled: 20.0,
        };
        let event = draft("0a-1", "app", &Incident::Released(line)).event("node-1");
        assert_eq!(event.type_.as_deref(), Some("Normal"));
    }

    #[test]
    fn names_invalid_in_kubernetes_make_no_event() {
        let huge = "x".repeat(1 << 20);
        let what = rejected(100);
        for pod in
            ["a\nb", "\u{1b}[31mred", "../../pods", "A", "", "-a", "a-", "a..b", "a/b", "ü", &huge]
        {
            assert!(
                EventDraft::of(
                    &subject(&format!("default/{pod}"), "u", "app"),
                    &what,
                    ReportMode::Done
                )
                .is_none(),
                "{:.20}",
                pod
            );
            assert!(
                EventDraft::of(
                    &subject(&format!("{pod}/web"), "u", "app"),
                    &what,
                    ReportMode::Done
                )
                .is_none(),
                "{:.20}",
                pod
            );
            assert!(
                EventDraft::of(&subject("default/web", pod, "app"), &what, ReportMode::Done)
                    .is_none(),
                "{:.20}",
                pod
            );
            assert!(
                EventDraft::of(&subject("default/web", "u", pod), &what, ReportMode::Done)
                    .is_none(),
                "{:.20}",
                pod
            );
        }
        // The longest and most unusual names that Kubernetes allows.
        for pod in ["a".repeat(253), format!("{}.b", "a".repeat(120)), "0.a-b.9".to_owned()] {
            let draft = EventDraft::of(
                &subject(&format!("default/{pod}"), "u", "app"),
                &what,
                ReportMode::Done,
            )
            .unwrap();
            let name = draft.name();
            assert!(name.len() <= 253 && name.split('.').all(is_name_part), "{name}");
        }
        let dashes = format!("a{}b", "-".repeat(251));
        let name = EventDraft::of(
            &subject(&format!("default/{dashes}"), "u", "app"),
            &what,
            ReportMode::Done,
        )
        .unwrap()
        .name();
        assert!(name.split('.').all(is_name_part), "{name}");
    }

    #[test]
    fn admission_events_have_stable_names() {
        let name = |what: &Incident| draft("u", "app", what).name();
        assert_eq!(name(&overcommitted()), name(&overcommitted()));
        let beyond = |mib: u64| Incident::BeyondNode {
            limit: Bytes::new(mib * MIB),
            allocatable: Bytes::new(MIB),
        };
        assert_eq!(name(&beyond(2)), name(&beyond(2)));
        assert_ne!(name(&beyond(2)), name(&beyond(3)));
        assert_ne!(name(&rejected(1)), name(&rejected(1)), "each Event has its own name");
    }

    #[test]
    fn drafts_with_different_values_are_not_alike() {
        let raised = |mib: u64| Incident::PodRaised {
            knob: "memory.max",
            desired: (mib * MIB).to_string(),
            observed: MIB.to_string(),
        };
        let draft = |mib| draft("u", "app", &raised(mib));
        assert!(draft(2).is_like(&draft(2)) && !draft(2).is_like(&draft(3)));
    }
}
