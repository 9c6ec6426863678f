//! Decides the state of a container. The state is one word that sums up the other fields of the
//! container's status.

use plimsoll_core::incident::{Incident, IncidentKind};
use plimsoll_core::policy::hierarchy::Standing;
use plimsoll_core::policy::limit_decrease::ThrottleState;
use plimsoll_core::units::{Bytes, Limit};

use crate::report::recent::Report;
use crate::report::status::format::{State, Values};

/// Facts about a container's limit that other modules provide.
#[derive(Clone, Copy, Debug)]
pub(super) struct LimitChange {
    /// Whether a limit decrease is deferred.
    pub(super) is_deferred: bool,
    /// Whether the plugin raised the limit as an OOM rescue.
    pub(super) is_rescued: bool,
}

/// Facts that decide the state of a container.
#[derive(Clone, Copy, Debug)]
pub(super) struct StateInputs<'r> {
    pub(super) is_read: bool,
    pub(super) is_changing: bool,
    /// Whether the plugin only observes. In observe mode the plugin sets no values, so a different
    /// value does not count as drift.
    pub(super) only_observes: bool,
    pub(super) usage: Option<Bytes>,
    pub(super) desired: Values,
    pub(super) observed: Values,
    /// Whether the limit is higher than the limit that the user asked for.
    pub(super) is_beyond_asked: bool,
    pub(super) change: LimitChange,
    pub(super) throttled: Option<ThrottleState>,
    pub(super) is_over: bool,
    pub(super) standing: Option<Standing>,
    /// Reports about the container, latest first.
    pub(super) reports: &'r [Report],
}

impl StateInputs<'_> {
    /// Returns whether observe mode is on and the container uses more than its planned
    /// `memory.high`.
    pub(super) fn would_throttle(&self) -> bool {
        self.only_observes
            && self
                .usage
                .zip(self.desired.high)
                .is_some_and(|(usage, high)| Limit::Bytes(usage) > high)
    }

    pub(super) fn state(&self) -> State {
        let was = |kind: IncidentKind| {
            self.reports.iter().any(|report| report.is_recent() && report.kind == kind)
        };
        if was(IncidentKind::Killed) {
            return State::Killed;
        }
        if !self.is_read {
            return State::Unread;
        }
        if self.change.is_deferred {
            return State::Deferred;
        }
        // A refusal no longer counts once the observed limit has changed since the refusal.
        let is_refused = self.reports.iter().filter(|report| report.is_recent()).any(|report| {
            match &report.what {
                Some(Incident::CutRejected(cut)) => {
                    !report.planned && Some(cut.in_force) == self.observed.max
                }
                _ => false,
            }
        });
        if is_refused || (self.is_beyond_asked && !self.change.is_rescued) {
            return State::Refused;
        }
        if self.desired.differs_from(self.observed) > 0 && !self.is_changing && !self.only_observes
        {
            // The plugin reports a conflict only once, so even an old report of a conflict counts.
            let is_contended =
                self.reports.iter().any(|report| report.kind == IncidentKind::Contended);
            return if is_contended { State::Contended } else { State::Drifted };
        }
        if self.throttled.is_some_and(|throttled| throttled.is_pinned()) {
            return State::Throttled;
        }
        if self.would_throttle() {
            return State::WouldThrottle;
        }
        if self.is_beyond_asked {
            return State::Rescued;
        }
        match self.standing {
            _ if self.is_over => State::OverRequest,
            Some(Standing::Inert | Standing::Partly) => State::Inert,
            Some(Standing::Protected) => State::Protected,
            Some(Standing::Unclaimed) => State::Unprotected,
            // The plugin could not read an ancestor cgroup.
            None => State::Unread,
        }
    }
}

#[cfg(test)]
mod tests {
    use plimsoll_core::incident::LowerLimit;
    use plimsoll_core::policy::limit_decrease::Usage;
    use plimsoll_core::units::Knob;

    use super::*;
    use crate::report::{RECENT, now};

    fn report(what: Incident, ago: u64) -> Report {
        let last = now() - ago;
        let (kind, message) = (what.kind(), what.to_string());
        Report {
            kind,
            message,
            planned: false,
            what: Some(what),
            first: last,
            last,
            count: 1,
            times: Default::default(),
        }
    }

    fn mib(amount: u64) -> Limit {
        Limit::Bytes(Bytes::new(amount << 20))
    }

    const DEFERRED: LimitChange = LimitChange { is_deferred: true, is_rescued: false };
    const RESCUED: LimitChange = LimitChange { is_deferred: false, is_rescued: true };

    /// A container with a limit of 250 MiB whose files all have their desired values.
    fn fine() -> StateInputs<'static> {
        let values = Values {
            min: Some(mib(64)),
            low: Some(mib(0)),
            high: Some(mib(200)),
            max: Some(mib(250)),
        };
        StateInputs {
            is_read: true,
            is_changing: false,
            only_observes: false,
            usage: Some(Bytes::new(100 << 20)),
            desired: values,
            observed: values,
            is_beyond_asked: false,
            change: LimitChange { is_deferred: false, is_rescued: false },
            throttled: None,
            is_over: false,
            standing: Some(Standing::Protected),
            reports: &[],
        }
    }

    #[test]
    fn the_most_severe_fact_decides_the_state() {
        let cut = LowerLimit { limit: mib(100), in_force: mib(250), usage: Usage::default() };
        let killed = Incident::Killed {
            limit: None,
            by_own_limit: true,
            kills: 1,
            window: std::time::Duration::ZERO,
        };
        let (desired, observed) = (mib(64), mib(0));
        let contended = Incident::Contended { knob: Knob::Min, desired, observed, repairs: 5 };
        let raised = Values { max: Some(mib(300)), ..fine().desired };
        let written = Values { min: Some(mib(0)), ..fine().observed };
        let rescued = StateInputs {
            desired: raised,
            observed: raised,
            is_beyond_asked: true,
            change: RESCUED,
            ..fine()
        };
        let throttled = Some(ThrottleState {
            usage: Bytes::new(200 << 20),
            policy_high: Bytes::new(200 << 20),
            high: mib(200),
            max: Bytes::MAX,
            stalled: 80.0,
        });
        for (state, facts, reports) in [
            (State::Protected, fine(), vec![]),
            (
                State::Unprotected,
                StateInputs { standing: Some(Standing::Unclaimed), ..fine() },
                vec![],
            ),
            (State::Inert, StateInputs { standing: Some(Standing::Partly), ..fine() }, vec![]),
            (State::Unread, StateInputs { standing: None, ..fine() }, vec![]),
            (
                State::OverRequest,
                StateInputs { is_over: true, standing: Some(Standing::Inert), ..fine() },
                vec![],
            ),
            (State::Rescued, StateInputs { is_over: true, ..rescued }, vec![]),
            (State::Throttled, StateInputs { throttled, ..rescued }, vec![]),
            (State::Drifted, StateInputs { throttled, observed: written, ..fine() }, vec![]),
            // In observe mode a different value does not count as drift.
            (
                State::Protected,
                StateInputs { only_observes: true, observed: written, ..fine() },
                vec![],
            ),
            (
                State::WouldThrottle,
                StateInputs { only_observes: true, usage: Some(Bytes::new(201 << 20)), ..fine() },
                vec![],
            ),
            (
                State::Protected,
                StateInputs { usage: Some(Bytes::new(201 << 20)), ..fine() },
                vec![],
            ),
            (
                State::Protected,
                StateInputs { observed: written, is_changing: true, ..fine() },
                vec![],
            ),
            (
                State::Contended,
                StateInputs { observed: written, ..fine() },
                vec![report(contended, RECENT + 100)],
            ),
            (State::Refused, fine(), vec![report(Incident::CutRejected(cut), RECENT - 5)]),
            (State::Protected, fine(), vec![report(Incident::CutRejected(cut), RECENT + 5)]),
            // The limit has changed since the refusal.
            (State::Rescued, rescued, vec![report(Incident::CutRejected(cut), 0)]),
            // The limit is above the user's limit without an OOM rescue, because the plugin gave up
            // a deferred limit decrease.
            (
                State::Refused,
                StateInputs { is_beyond_asked: true, ..fine() },
                vec![report(Incident::CutGivenUp(cut), RECENT + 5)],
            ),
            (
                State::Deferred,
                StateInputs { is_beyond_asked: true, change: DEFERRED, ..fine() },
                vec![],
            ),
            (
                State::Unread,
                StateInputs { is_read: false, ..fine() },
                vec![report(Incident::CutRejected(cut), 0)],
            ),
            (
                State::Killed,
                StateInputs { is_read: false, ..fine() },
                vec![report(killed, RECENT - 5)],
            ),
        ] {
            let facts = StateInputs { reports: &reports, ..facts };
            assert_eq!(facts.state(), state, "{facts:#?}");
        }
    }
}
