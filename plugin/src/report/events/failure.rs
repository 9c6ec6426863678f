//! Reasons why a write to the API server failed.

use kube::core::Status;
use plimsoll_core::units::harmless;

/// Reason why an attempt failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The API server refuses this Event, but may accept other Events.
    Refused(String),
    /// The Event has been removed, so the plugin cannot increase the Event's count.
    Gone,
    /// Another client changed the Event at the same time, so the same write may succeed if
    /// repeated.
    Conflict,
    /// A later attempt of the same write may succeed.
    Later(String),
    /// Status code 403. If the API server has not loaded its accounts yet, a later attempt may
    /// succeed.
    Forbidden(String),
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        let kube::Error::Api(status) = error else { return Self::Later(in_full(&error)) };
        let Status { code, message, details, .. } = *status;
        let causes = details.map(|details| details.causes).unwrap_or_default();
        match code {
            404 => Self::Gone,
            409 => Self::Conflict,
            403 if causes.iter().any(|cause| cause.reason == "NamespaceTerminating") => {
                Self::Refused(message)
            }
            // An API server that has just started may not have loaded its accounts and roles yet.
            403 => Self::Forbidden(message),
            401 | 429 | 500.. => Self::Later(message),
            _ => Self::Refused(message),
        }
    }
}

/// Returns the error text with the texts of all its causes.
pub(super) fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

pub(super) fn excerpt(why: &str) -> String {
    harmless(why, 300, &['\'', '"'])
}
