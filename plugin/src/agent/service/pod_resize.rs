//! The answer to UpdatePodSandbox: whether the kubelet may set the pod's own limit.

use nri::Refusal;
use nri::api::{LinuxResources, PodSandbox};
use plimsoll_core::incident::{Incident, LowerLimit, Subject};
use plimsoll_core::pod::PodUid;
use plimsoll_core::units::{Bytes, Limit, printable};
use tracing::debug;

use super::translate::sandbox;
use super::{DECREASE_BUDGET, Service};
use crate::agent::decrease::DecreaseResult;
use crate::config::Shrink;
use crate::lock;

/// Reason that the plugin gives if it refuses to lower a pod's limit. The text is constant, because
/// the kubelet creates an Event for each new text and retries every 10 to 15 s.
const WOULD_KILL_IN_POD: &str = "\
memory limit of the pod not lowered: it uses more than that and would have processes \
killed; it has to free memory first, or the limit to be higher (plimsoll's log has the \
numbers)";

/// Reason that the plugin gives while another limit decrease of the pod is in progress. This text
/// is also constant.
const BUSY_IN_POD: &str = "\
memory limit of the pod not lowered: the kernel still reclaims memory for an earlier limit \
decrease; try again";

impl Service {
    /// Decides whether the kubelet may set the pod's own limit.
    pub(super) async fn update_pod(
        &self,
        pod: &PodSandbox,
        overhead: &LinuxResources,
        resources: &LinuxResources,
    ) -> Result<(), Refusal> {
        let of_memory = |resources: &LinuxResources| {
            resources.memory.get_or_default().limit.get_or_default().value
        };
        // The update changes only CPU, or sets no memory limit.
        let (Ok(limit @ 1..), Some(sandbox)) = (u64::try_from(of_memory(resources)), sandbox(pod))
        else {
            return Ok(());
        };
        let settings = self.state.containers.settings();
        if settings.is_restored || settings.config.shrink == Shrink::Allow {
            return Ok(());
        }
        let overhead = u64::try_from(of_memory(overhead)).unwrap_or(0);
        let limit = self.page_size().round_down(Bytes::new(limit.saturating_add(overhead)));
        let cgroup = sandbox.place.cgroup();
        let subject = || Subject {
            pod: Some(format!("{}/{}", printable(&pod.namespace), printable(&pod.name))),
            uid: Some(PodUid::new(pod.uid.clone())),
            container: None,
            cgroup: Some(cgroup.clone()),
        };
        if settings.observes() {
            if let Some(decrease) = self.decreases.check_pod(&sandbox.id, cgroup, limit) {
                self.reports.report_planned(&subject(), &Incident::CutRejected(decrease));
            }
            return Ok(());
        }
        let budget = *lock(&self.budget) * DECREASE_BUDGET;
        match self.decreases.prepare_pod(&sandbox.id, cgroup, limit, budget).await {
            Ok(DecreaseResult::NoDecrease | DecreaseResult::Prepared) => Ok(()),
            Ok(DecreaseResult::Busy { .. }) => Err(Refusal::new(BUSY_IN_POD)),
            Ok(DecreaseResult::WouldKill { in_force, usage }) => {
                let decrease = LowerLimit { limit: Limit::Bytes(limit), in_force, usage };
                self.reports.report(&subject(), &Incident::CutRejected(decrease));
                Err(Refusal::new(WOULD_KILL_IN_POD))
            }
            Err(error) => {
                // The kubelet may set the limit if the plugin cannot prepare the decrease.
                let pod = printable(&pod.name);
                debug!(pod, %error, "cannot prepare a limit decrease of a pod");
                Ok(())
            }
        }
    }
}
