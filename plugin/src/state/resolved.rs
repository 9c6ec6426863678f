//! Result of an event for one container: the container's desired state, evidence about the limits
//! of its pod, and the incidents to report.

use std::sync::Arc;

use plimsoll_core::incident::{Incident, Occurrence};
use plimsoll_core::policy::limit_decrease::{self, Limits};
use plimsoll_core::units::Limit;

use crate::kubelet::checkpoint::RecordSearch;
use crate::state::container::{Container, DesiredState};
use crate::state::containers::Containers;
use crate::state::levels::Levels;
use crate::state::pod_view::PodView;

/// Result of an event for one container. [`Levels::apply`] writes the cgroups above the container.
/// The runtime or the reconcile task writes the container's own values.
#[derive(Debug)]
pub struct Resolved {
    /// The container.
    pub container: Arc<Container>,
    /// The container's desired state. The field `claim` of its desired values is the protection
    /// that the container needs from the cgroups above it.
    pub desired_state: DesiredState,
    /// Evidence about the limits of the container's pod.
    pub pod: PodView,
    /// Incidents that follow from the container's limits.
    pub incidents: Vec<Occurrence>,
}

impl Containers {
    /// Computes the result of an event for a container.
    ///
    /// `former` are the last limits of this container, or of its predecessor with the same name.
    /// `record` is the kubelet's checkpoint entry. `is_alive` returns whether another container of
    /// the pod has not ended.
    pub fn resolve(
        &self,
        container: Arc<Container>,
        former: Option<Limits>,
        record: &RecordSearch,
        is_alive: impl Fn(&Container) -> bool,
    ) -> Resolved {
        let desired_state = self.decide(&container, record);
        let pod = self.view_pod_of(&container, former, record, is_alive);
        let is_changed = former != Some(container.limits());
        let incidents = if is_changed {
            [self.beyond_node(&container), self.overcommitted(&container, &desired_state)]
                .into_iter()
                .flatten()
                .map(|incident| Occurrence::new(container.as_ref(), incident))
                .collect()
        } else {
            Vec::new()
        };
        Resolved { container, desired_state, pod, incidents }
    }

    /// Returns an incident if the limit exceeds the node's allocatable memory. The plugin still
    /// applies the limit. The plugin reports excessive requests separately, as missing protection.
    fn beyond_node(&self, container: &Container) -> Option<Incident> {
        let limit = container.limit.bytes()?;
        let allocatable = self.settings().node.allocatable?;
        (limit > allocatable).then_some(Incident::BeyondNode { limit, allocatable })
    }

    /// Returns an incident if the limit is too large a multiple of the memory request. The plugin
    /// still applies the limit.
    fn overcommitted(
        &self,
        container: &Container,
        desired_state: &DesiredState,
    ) -> Option<Incident> {
        let Limit::Bytes(limit) = container.limit else { return None };
        let request = desired_state.request?.at_most;
        let most = self.settings().config.max_limit_request_ratio?;
        limit_decrease::is_overcommitted(limit, request, most).then_some(Incident::Overcommitted {
            request,
            limit,
            most,
        })
    }
}

impl Levels {
    /// Writes the cgroups above a container so that they have the limits and the protection that
    /// the container needs. The runtime writes the container's own values later. Returns the
    /// incidents, which the caller reports.
    ///
    /// The method first raises the pod's limits, because a lower pod limit would make the
    /// container's limits useless. Until the plugin has verified the container's new values, the
    /// cgroups above provide the larger of the old and the new protection.
    pub fn apply(&self, resolved: &Resolved) -> Vec<Occurrence> {
        let Resolved { container, desired_state, pod, .. } = resolved;
        let raise = self.raise_limits(container, pod, false);
        if let (Some(place), Some(claim)) = (&container.place, desired_state.desired.claim) {
            self.claim_at_least(place, &container.id, claim);
        }
        raise.incidents
    }
}
