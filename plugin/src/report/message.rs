//! Log message of an incident.

use plimsoll_core::incident::{Incident, Subject};
use plimsoll_core::outcome::Outcome;
use tracing::{info, warn};

use crate::report::mode::ReportMode;

/// Writes the log message of an incident.
pub(super) fn log_incident(subject: &Subject, what: &Incident, mode: ReportMode) {
    let fields = what.fields();
    // The names of pod and container identify a container, so only the message about a kill also
    // shows the cgroup.
    let cgroup = subject
        .cgroup
        .as_ref()
        .filter(|_| subject.container.is_none() || matches!(what, Incident::Killed { .. }));
    let outcome = if mode == ReportMode::Planned { Some(Outcome::Planned) } else { fields.outcome };
    macro_rules! log_with {
        ($log:ident) => {
            $log!(
                pod = subject.pod,
                container = subject.container,
                cgroup = cgroup.map(tracing::field::display),
                knob = fields.knob,
                desired = fields.desired.as_deref().map(tracing::field::display),
                observed = fields.observed.as_deref().map(tracing::field::display),
                asked = fields.asked.map(tracing::field::display),
                usage = fields.usage.map(tracing::field::display),
                reclaimable = fields.reclaimable.map(tracing::field::display),
                request = fields.request.as_deref().map(tracing::field::display),
                most = fields.most,
                limit = fields.limit.as_deref().map(tracing::field::display),
                allocatable = fields.allocatable.as_deref().map(tracing::field::display),
                stalled = fields.stalled,
                repairs = fields.repairs,
                by = fields.by,
                ceiling = fields.ceiling.map(tracing::field::display),
                free = fields.free.map(tracing::field::display),
                kills = fields.kills,
                window = fields.window.map(tracing::field::debug),
                outcome = outcome.map(tracing::field::display),
                "{}{}",
                mode.prefix(),
                what.text()
            )
        };
    }
    if what.is_warning() { log_with!(warn) } else { log_with!(info) }
}
