//! The answer to Synchronize, which stores the pods and containers that the runtime reports.

use std::collections::{HashMap, HashSet};

use nri::api::{self, PodSandbox};
use tracing::warn;

use super::Service;
use super::translate::{has_ended, newest, sandbox};
use crate::agent::reconciler::WorkItem;
use crate::state::container::Container;

impl Service {
    /// Replaces all sandboxes and containers with those that the runtime reports. The reply
    /// contains no updates, because the runtime would keep its lock until it has updated the last
    /// container. The reconcile task updates the containers later.
    pub(super) async fn adopt(&self, pods: Vec<PodSandbox>, containers: Vec<api::Container>) {
        let alive = newest(containers.into_iter().filter(|container| !has_ended(container)));
        // Runtimes also report sandboxes that have ended but are not removed yet. A sandbox whose
        // cgroup does not exist counts as ended. However, with CRI-O a live sandbox has no process,
        // so the cgroup that CRI-O reports does not exist. Therefore a sandbox with a live
        // container also counts as live.
        let live: HashSet<&str> =
            alive.iter().map(|container| container.pod_sandbox_id.as_str()).collect();
        let ended = self.ended_sandboxes(&pods, &live).await;
        let is_over = |pod: &PodSandbox| ended.contains(&pod.id);
        let sandboxes = pods.iter().filter(|pod| !is_over(pod)).filter_map(sandbox).collect();
        let pods: HashMap<&str, &PodSandbox> =
            pods.iter().map(|pod| (pod.id.as_str(), pod)).collect();
        let reported = pods.keys().map(|id| (*id).to_owned()).collect();
        let known = alive.into_iter().filter_map(|container| {
            let Some(pod) = pods.get(container.pod_sandbox_id.as_str()) else {
                warn!(
                    container = container.id,
                    pod = container.pod_sandbox_id,
                    "the runtime has not reported the pod of this container"
                );
                return None;
            };
            Some(self.found(pod, &container))
        });
        let known = known.map(|container| Container {
            asked: self.state.rescues.asked(&container),
            ..container
        });
        let known: Vec<_> = known.collect();
        self.state
            .levels
            .synchronize(sandboxes, || self.state.containers.replace(known, &reported));
        let running = self.state.containers.all().into_iter().filter(|container| container.started);
        self.kills.synchronize(running.collect());
        self.enqueue(WorkItem::All);
        self.state.synchronized.send_replace(true);
    }
}
