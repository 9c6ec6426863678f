//! Status of a container, computed from the plugin's state and the values in the cgroup files.

use plimsoll_core::policy::Protection;
use plimsoll_core::policy::hierarchy::{ObservedCgroup, Standing};
use plimsoll_core::policy::limit_decrease::{self, ThrottleState};
use plimsoll_core::units::{Bytes, Knob, Limit};

use crate::report::recent::Report;
use crate::report::status::format::{ContainerStatus, Reasons, RequestStatus, Values};
use crate::report::status::reading::ContainerReading;
use crate::report::status::state::{LimitChange, StateInputs};
use crate::state::container::{Container, DesiredState};
use crate::state::settings::Settings;

/// Facts about one container, from which its status follows.
pub(super) struct KnownContainer<'k> {
    pub(super) container: &'k Container,
    pub(super) desired_state: DesiredState,
    pub(super) read: Result<&'k ContainerReading, &'k String>,
    /// Part of the usage that the kernel effectively protects.
    pub(super) effective: Option<Protection>,
    /// Reports about the container, latest first.
    pub(super) reports: Vec<Report>,
    pub(super) change: LimitChange,
}

impl KnownContainer<'_> {
    /// Returns the status of the container.
    pub(super) fn status(self, settings: &Settings) -> ContainerStatus {
        let Self { container, desired_state, read, effective, .. } = &self;
        let (problem, read) = (read.err().cloned(), read.ok());
        let facts = self.facts(settings);
        let (namespace, pod) = namespace_and_name(&container.pod);
        ContainerStatus {
            namespace: namespace.to_owned(),
            pod: pod.to_owned(),
            uid: container.uid.as_str().to_owned(),
            container: container.name.clone(),
            id: container.id.clone(),
            cgroup: container.cgroup.clone(),
            state: facts.state(),
            class: desired_state.class,
            request: desired_state.request.map(|request| RequestStatus {
                bytes: request.bytes,
                at_most: request.at_most,
                provenance: request.provenance.to_string(),
            }),
            asked: container.asked,
            usage: facts.usage,
            working_set: read.and_then(|read| read.working_set),
            over_request: self.over_request(),
            overcommitted: self.is_overcommitted(settings),
            would_throttle: facts.would_throttle(),
            desired: facts.desired,
            reasons: Reasons {
                min: desired_state.desired.min.reason.to_string(),
                low: desired_state.desired.low.reason.to_string(),
                high: desired_state.desired.high.reason.to_string(),
            },
            observed: read.map(|read| read.values),
            problem,
            effective: *effective,
            standing: facts.standing,
            stalled_seconds: read.and_then(|read| read.stalled).map(|(_, seconds)| seconds),
            stalled_percent: read.and_then(|read| read.stalled).map(|(percent, _)| percent),
            oom_kills: read.and_then(|read| read.oom_kills),
            reports: self.reports,
        }
    }

    /// Returns the facts from which the container's state follows.
    fn facts(&self, settings: &Settings) -> StateInputs<'_> {
        let Self { container, effective, change, reports, .. } = self;
        let read = self.read.ok();
        let over_request = self.over_request();
        StateInputs {
            is_read: read.is_some(),
            is_changing: container.phase.is_changing(),
            only_observes: settings.observes(),
            usage: read.map(|read| read.usage),
            desired: self.desired(settings),
            observed: read.map(|read| read.values).unwrap_or_default(),
            is_beyond_asked: container.limit > container.asked,
            change: *change,
            throttled: read.and_then(|read| {
                let (stalled, _) = read.stalled?;
                let high = read.values.high?;
                Some(ThrottleState {
                    usage: read.usage,
                    policy_high: high.bytes()?,
                    high,
                    max: Bytes::MAX,
                    stalled,
                })
            }),
            is_over: over_request > Bytes::ZERO && self.at_most() > Some(Bytes::ZERO),
            standing: read.zip(*effective).map(|(read, effective)| {
                let ObservedCgroup { setting, usage } = read.observed();
                Standing::of(setting, usage, effective)
            }),
            reports,
        }
    }

    /// Returns the values that the files should have.
    fn desired(&self, settings: &Settings) -> Values {
        let page = settings.node.page_size;
        let value = |knob| self.desired_state.value(knob).map(|value: Limit| value.floor_to(page));
        Values {
            min: value(Knob::Min),
            low: value(Knob::Low),
            high: value(Knob::High),
            max: Some(self.container.limit.floor_to(page)),
        }
    }

    /// Returns the upper bound of the request.
    fn at_most(&self) -> Option<Bytes> {
        self.desired_state.request.map(|request| request.at_most)
    }

    /// Returns the amount by which the working set exceeds the request.
    fn over_request(&self) -> Bytes {
        let working_set = self.read.ok().and_then(|read| read.working_set);
        match (working_set, self.at_most()) {
            (Some(used), Some(request)) => used.saturating_sub(request),
            _ => Bytes::ZERO,
        }
    }

    /// Returns whether the limit is more than `maxLimitRequestRatio` times the request.
    fn is_overcommitted(&self, settings: &Settings) -> bool {
        let most = settings.config.max_limit_request_ratio;
        match (self.container.limit, self.at_most(), most) {
            (Limit::Bytes(limit), Some(request), Some(most)) => {
                limit_decrease::is_overcommitted(limit, request, most)
            }
            _ => false,
        }
    }
}

/// Splits `namespace/name` into the namespace and the name of a pod.
pub(super) fn namespace_and_name(pod: &str) -> (&str, &str) {
    pod.split_once('/').unwrap_or(("", pod))
}
