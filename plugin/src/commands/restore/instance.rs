//! The instances of the plugin: the running one, and one that this command runs.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nri::{Identity, Stub};
use plimsoll_core::pod::CgroupPath;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::commands::Failure;
use crate::commands::run::Node;
use crate::config::Config;
use crate::report::serve;
use crate::state::containers::Containers;

/// Time limit for the plugin to notice the marker file. Also the time limit for the runtime to list
/// containers whose cgroups are outside the kubelet's cgroups.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Waits until a running plugin has noticed the marker file, for at most [`ANSWER_LIMIT`].
/// Returns whether a plugin runs and answers.
pub(super) async fn wait_for_plugin(host: &Path) -> bool {
    let deadline = Instant::now() + ANSWER_LIMIT;
    loop {
        let Ok(status) = serve::ask(host).await else { return false };
        if status.node.stands_aside || Instant::now() >= deadline {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The instance of the plugin that this command runs. While another instance runs, this one waits
/// for the lock, and the other instance restores the values.
pub(super) struct OwnInstance {
    containers: Arc<Containers>,
    synchronized: watch::Receiver<bool>,
    tasks: [AbortHandle; 3],
}

impl OwnInstance {
    /// Starts the instance.
    pub(super) fn start(host: &Path, socket: &Path) -> Result<Self, Failure> {
        let node = Node::open(host, Config::default())?;
        let containers = node.containers().clone();
        let (service, tasks) = node.into_service(Box::new(|_| ()));
        let synchronized = service.synchronized();
        let identity =
            Identity::new("90", "plimsoll").map_err(|error| Failure::Runtime(error.into()))?;
        let stub = Stub::external(identity, service).socket(socket);
        let guard = tokio::spawn(tasks.guard().run());
        let reconciler = tasks.spawn(stub.runtime());
        let plugin = tokio::spawn(stub.run());
        let tasks = [guard.abort_handle(), plugin.abort_handle(), reconciler.abort_handle()];
        Ok(Self { containers, synchronized, tasks })
    }

    /// Returns whether the runtime has synchronized this instance.
    pub(super) fn is_synchronized(&self) -> bool {
        *self.synchronized.borrow()
    }

    /// Returns all containers of the runtime by id, with their cgroups where known. The list comes
    /// from this instance of the plugin or from the running instance. `None` if the runtime has
    /// synchronized neither instance.
    pub(super) async fn list_containers(
        &self,
        host: &Path,
    ) -> Option<HashMap<String, Option<CgroupPath>>> {
        if self.is_synchronized() {
            let all = self.containers.all();
            return Some(all.iter().map(|one| (one.id.clone(), one.cgroup.clone())).collect());
        }
        let status = serve::ask(host).await.ok().filter(|status| status.node.synchronized)?;
        Some(status.containers.into_iter().map(|one| (one.id, one.cgroup)).collect())
    }

    /// Ends the tasks of the instance.
    pub(super) fn stop(self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}
