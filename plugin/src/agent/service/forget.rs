//! Adds sandboxes, and forgets sandboxes and containers that have ended.

use std::collections::HashSet;
use std::sync::Arc;

use nri::api::{self, PodSandbox};
use plimsoll_core::pod::CgroupPath;
use plimsoll_core::units::printable;
use tokio::sync::oneshot;
use tracing::debug;

use super::Service;
use super::translate::sandbox;
use crate::cgroup::CgroupError;
use crate::in_own_thread;
use crate::state::container::Container;

impl Service {
    /// Returns the IDs of the sandboxes that have neither a cgroup nor an entry in `live`.
    pub(super) async fn ended_sandboxes(
        &self,
        pods: &[PodSandbox],
        live: &HashSet<&str>,
    ) -> HashSet<String> {
        let candidates = pods.iter().filter(|pod| !live.contains(pod.id.as_str()));
        let candidates: Vec<_> = candidates
            .filter_map(|pod| {
                let cgroups_path = &pod.linux.get_or_default().cgroups_path;
                Some((pod.id.clone(), CgroupPath::parse(cgroups_path).ok()?))
            })
            .collect();
        let root = self.state.root.clone();
        let (sender, receiver) = oneshot::channel();
        in_own_thread("sandboxes", move || {
            let is_gone =
                |cgroup: &CgroupPath| matches!(root.cgroup(cgroup), Err(CgroupError::Gone(_)));
            let ended = candidates.into_iter().filter(|(_, cgroup)| is_gone(cgroup));
            // The receiver is dropped if the runtime has disconnected.
            let _ = sender.send(ended.map(|(id, _)| id).collect());
        });
        // If the thread cannot start, all sandboxes count as running until the runtime reports that
        // they ended.
        receiver.await.unwrap_or_default()
    }

    pub(super) fn add_sandbox(&self, pod: &PodSandbox) {
        if let Some(sandbox) = sandbox(pod)
            && !self.state.levels.is_sandbox(&sandbox.id)
        {
            self.state.levels.sandbox(sandbox, &self.state.containers.settings().policy());
        }
    }

    pub(super) fn sandbox_ended(&self, id: &str) {
        for container in self.state.containers.remove_sandbox(id) {
            self.state.levels.release(&container);
        }
        self.state.levels.sandbox_ended(id);
    }

    /// Forgets older containers with the same name in the sandbox. The kubelet creates the next
    /// container only after the last container has ended. The runtime does not report the end of a
    /// container that failed to start.
    pub(super) fn forget_older(&self, sandbox: &str, newest: &api::Container) {
        for older in self.others_of_its_name(sandbox, newest) {
            debug!(
                pod = older.pod,
                container = older.name,
                id = older.id,
                "a newer container has replaced this container"
            );
            self.forget(&older.id);
        }
    }

    pub(super) fn others_of_its_name(
        &self,
        sandbox: &str,
        container: &api::Container,
    ) -> impl Iterator<Item = Arc<Container>> + use<> {
        let (id, name) = (container.id.clone(), printable(&container.name));
        self.state
            .containers
            .in_sandbox(sandbox)
            .into_iter()
            .filter(move |other| other.name == name && other.id != id)
    }

    pub(super) fn has_processes(&self, cgroup: &CgroupPath) -> bool {
        self.state.root.cgroup(cgroup).and_then(|cgroup| cgroup.has_processes()).unwrap_or(false)
    }

    pub(super) fn forget(&self, id: &str) {
        if let Some(container) = self.state.containers.get(id) {
            self.kills.ended(&container);
        }
        self.state.containers.remove(id);
        self.state.levels.release(id);
    }
}
