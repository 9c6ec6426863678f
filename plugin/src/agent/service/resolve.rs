//! Decides a container's values, and prepares the container for a limit decrease.

use std::sync::Arc;

use nri::Refusal;
use nri::api::{self, PodSandbox};
use plimsoll_core::incident::{Incident, LowerLimit};
use plimsoll_core::units::Limit;
use tracing::{debug, warn};

use super::translate::translate;
use super::{DECREASE_BUDGET, Service};
use crate::agent::decrease::DecreaseResult;
use crate::config::Shrink;
use crate::kubelet::checkpoint::RecordSearch;
use crate::lock;
use crate::state::container::Container;
use crate::state::containers::Containers;
use crate::state::resolved::Resolved;
use crate::state::shared::SharedState;
use crate::state::update_phase::Party;

/// Reason that the plugin gives if it refuses to lower a container's limit. The text is constant,
/// because the kubelet creates an Event for each new text and retries every 10 to 15 s.
const WOULD_KILL: &str = "\
memory limit not lowered: the container uses more than that and would be killed; it has to \
free memory first, or the limit to be higher (plimsoll's log has the numbers)";

/// Reason that the plugin gives while another limit decrease of the container is in progress. This
/// text is also constant.
const DECREASE_BUSY: &str = "\
memory limit not lowered: the kernel still reclaims memory for an earlier limit decrease; \
try again";

impl Service {
    /// Returns the kubelet's checkpoint entries of a container and its pod. If the plugin cannot
    /// read the entries in time, the result says so. The reconcile task reads the entries again
    /// after the start or update.
    pub(super) async fn record(&self, container: &Container) -> RecordSearch {
        let budget = *lock(&self.budget);
        let records = &self.state.containers.records;
        records.lookup(&container.uid, &container.name, container.moment, budget).await
    }

    /// Translates data about a container that was created without this plugin, or before the plugin
    /// was restarted. If the plugin has changed the container, the reported `unified` map contains
    /// the plugin's values. In this case, the result contains the original values instead.
    pub(super) fn found(&self, pod: &PodSandbox, container: &api::Container) -> Container {
        let mut found = translate(pod, container, self.page_size());
        if let Some(before) = self.state.containers.before(&container.id) {
            found.unified = before.to_unified();
        }
        found
    }

    /// Computes the desired state of a container after an event. Writes the values of the cgroups
    /// above the container, and reports all incidents.
    ///
    /// `store` stores the container after the plugin has read the kubelet's checkpoint entry.
    /// `store` returns `None` if the plugin has removed the container meanwhile.
    pub(super) async fn resolve(
        &self,
        container: &Container,
        store: impl FnOnce(&Containers) -> Option<Arc<Container>>,
    ) -> Option<Resolved> {
        if container.limit == Limit::Max {
            let budget = *lock(&self.budget);
            self.configurator.refresh_memory(budget).await;
        }
        let record = self.record(container).await;
        let SharedState { containers, levels, .. } = &self.state;
        let former = containers.last_limits(&container.sandbox, &container.name);
        let container = store(containers)?;
        let is_alive = |other: &Container| levels.is_alive(other);
        let resolved = containers.resolve(container, former, &record, is_alive);
        let Container { pod, name, .. } = resolved.container.as_ref();
        for notice in &resolved.desired_state.notices {
            warn!(pod, container = name, "{notice}");
        }
        let incidents = levels.apply(&resolved);
        self.reports.report_all(resolved.incidents.iter().cloned().chain(incidents));
        Some(resolved)
    }

    /// Prepares the container for a limit decrease. Returns the limit in force if the plugin defers
    /// the decrease.
    ///
    /// # Errors
    ///
    /// Fails with a refusal if the decrease would OOM-kill a process of the container.
    pub(super) async fn prepare_decrease(
        &self,
        container: &Container,
    ) -> Result<Option<Limit>, Refusal> {
        let settings = self.state.containers.settings();
        if settings.is_restored || settings.config.shrink == Shrink::Allow {
            return Ok(None);
        }
        let is_deferred = settings.config.shrink == Shrink::Defer;
        let incident = if is_deferred { Incident::CutDeferred } else { Incident::CutRejected };
        if settings.observes() {
            if let Some(decrease) = self.decreases.check(container) {
                self.reports.report_planned(&container.into(), &incident(decrease));
            }
            return Ok(None);
        }
        let budget = *lock(&self.budget) * DECREASE_BUDGET;
        let (in_force, refusal) = match self.decreases.prepare(container, Party::User, budget).await
        {
            Ok(DecreaseResult::NoDecrease | DecreaseResult::Prepared) => return Ok(None),
            Ok(DecreaseResult::Busy { in_force }) => (in_force, DECREASE_BUSY),
            Ok(DecreaseResult::WouldKill { in_force, usage }) => {
                let decrease = LowerLimit { limit: container.limit, in_force, usage };
                self.reports.report(&container.into(), &incident(decrease));
                (in_force, WOULD_KILL)
            }
            Err(error) => {
                // The runtime may set the limit if the plugin cannot prepare the decrease.
                let Container { pod, name, .. } = container;
                debug!(pod, container = name, %error, "cannot prepare a limit decrease");
                return Ok(None);
            }
        };
        if !is_deferred {
            return Err(Refusal::new(refusal));
        }
        if let Limit::Bytes(limit) = container.limit {
            self.state.deferred.put(&container.id, limit, settings.config.shrink_deadline);
        }
        Ok(Some(in_force))
    }
}
