//! An incident with its subject, as code that holds a lock returns it.

use super::data::Incident;
use super::subject::Subject;

/// An incident with its subject. Code that holds a lock returns occurrences, and its caller reports
/// them once the lock is released.
#[derive(Clone, Debug)]
pub struct Occurrence {
    /// Pod, container or cgroup that the incident concerns.
    pub subject: Subject,
    /// The incident.
    pub incident: Incident,
    /// Whether the action was only planned, because the plugin is in observe mode.
    pub is_planned: bool,
}

impl Occurrence {
    /// Creates an occurrence of an incident that has happened.
    pub fn new(subject: impl Into<Subject>, incident: Incident) -> Self {
        Self { subject: subject.into(), incident, is_planned: false }
    }

    /// Creates an occurrence of an action that observe mode leaves undone.
    pub fn planned(subject: impl Into<Subject>, incident: Incident) -> Self {
        Self { subject: subject.into(), incident, is_planned: true }
    }
}
