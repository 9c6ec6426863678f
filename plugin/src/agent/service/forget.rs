//! Adds sandboxes, and forgets sandboxes and containers that have ended.

use std::sync::Arc;

use nri::api::{self, PodSandbox};
use plimsoll_core::pod::CgroupPath;
use plimsoll_core::units::printable;
use tracing::debug;

use super::Service;
use super::translate::sandbox;
use crate::state::container::Container;

impl Service {
    pub(super) fn meet_sandbox(&self, pod: &PodSandbox) {
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

    /// Forgets older containers of the same name in the sandbox. The kubelet creates the next
    /// container only when the last one has ended. The runtime does not report the end of a
    /// container that failed to start.
    pub(super) fn forget_older(&self, sandbox: &str, newest: &api::Container) {
        for older in self.others_of_its_name(sandbox, newest) {
            debug!(
                pod = older.pod,
                container = older.name,
                id = older.id,
                "another one has taken its place"
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
