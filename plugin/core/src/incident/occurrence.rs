//! Incident with its subject, for code that must not report incidents because it holds a lock.

use super::data::Incident;
use super::subject::Subject;

/// Incident with its subject. Code that holds a lock returns occurrences. The caller releases the
/// lock and then reports the occurrences.
#[derive(Clone, Debug)]
pub struct Occurrence {
    /// Pod, container or cgroup that the incident concerns.
    pub subject: Subject,
    /// The incident.
    pub incident: Incident,
    /// Whether the plugin only planned the action, because it is in observe mode.
    pub is_planned: bool,
}

impl Occurrence {
    /// Creates an occurrence of an incident that has happened.
    pub fn new(subject: impl Into<Subject>, incident: Incident) -> Self {
        Self { subject: subject.into(), incident, is_planned: false }
    }

    /// Creates an occurrence of an action that the plugin only planned, because it is in observe
    /// mode.
    pub fn planned(subject: impl Into<Subject>, incident: Incident) -> Self {
        Self { subject: subject.into(), incident, is_planned: true }
    }
}
