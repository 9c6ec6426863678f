//! The texts of single values in the table and in the details of a pod.

use plimsoll_core::policy::Protection;
use plimsoll_core::units::{Bytes, Limit, excerpt, harmless, printable};

use crate::report::status::{ContainerStatus, Values};

pub(super) fn unknown() -> String {
    "?".to_owned()
}

pub(super) fn full_name(namespace: &str, pod: &str, container: &str) -> String {
    [namespace, pod, container].map(printable).join("/")
}

pub(super) fn name_of(row: &ContainerStatus) -> String {
    full_name(&row.namespace, &row.pod, &row.container)
}

pub(super) fn format_limit(limit: Limit) -> String {
    limit.bytes().map_or_else(|| "max".to_owned(), Bytes::approx)
}

/// Returns the text of the desired value. If the observed value differs, appends `!=` and the
/// observed value.
pub(super) fn format_pair(row: &ContainerStatus, of: fn(&Values) -> Option<Limit>) -> String {
    match (of(&row.desired), row.observed.as_ref().map(of)) {
        (Some(desired), Some(Some(observed))) if desired != observed => {
            let [rough, other] = [format_limit(desired), format_limit(observed)];
            if rough == other {
                format!("{desired}!={observed}")
            } else {
                format!("{rough}!={other}")
            }
        }
        (Some(desired), _) => format_limit(desired),
        (None, Some(Some(observed))) => format_limit(observed),
        (None, _) => unknown(),
    }
}

pub(super) fn request(row: &ContainerStatus) -> String {
    match &row.request {
        Some(request) if request.bytes == request.at_most => {
            format!("{} {}", request.bytes.approx(), excerpt(&request.provenance))
        }
        Some(request) => {
            format!(
                "{}..{} {}",
                request.bytes.approx(),
                request.at_most.approx(),
                excerpt(&request.provenance)
            )
        }
        None => unknown(),
    }
}

/// Returns a message that is safe to print, even if the message contains another program's text.
/// The limit of 2000 characters is large enough to keep the advice at the end of a message.
pub(super) fn printable_message(text: &str) -> String {
    harmless(text, 2000, &['\'', '"'])
}

pub(super) fn format_protection(of: Protection) -> String {
    match (of.min, of.low) {
        (min, Bytes::ZERO) => min.approx(),
        (min, low) => format!("min {}, low {}", min.approx(), low.approx()),
    }
}
