//! The instances of the plugin: the instance that already runs on the node, and the instance that
//! this command runs.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use nri::{Identity, Stub};
use plimsoll_core::pod::CgroupPath;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::agent::node::Node;
use crate::agent::supervise::{Supervisor, TaskEnds};
use crate::commands::failure::Failure;
use crate::config::Config;
use crate::report::serve;
use crate::state::containers::Containers;
use crate::state::settings::RESTORE_MARKER;

/// Time limit for the plugin to notice the marker file. The runtime has the same time to list the
/// containers whose cgroups are outside the kubelet's cgroups.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// State of the plugin on the node, as far as this command knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RunningPlugin {
    /// No process listens at the plugin's socket.
    Absent,
    /// The plugin answers, and has noticed the marker file or will read it before it sets values.
    Answers,
    /// The plugin may still set values. Contains the reason.
    Unknown(String),
}

/// Waits for at most [`ANSWER_LIMIT`] until a running plugin has noticed the marker file. Returns
/// `Unknown` as soon as a request to a running plugin fails.
pub(super) async fn wait_for_plugin(host: &Path) -> RunningPlugin {
    let deadline = Instant::now() + ANSWER_LIMIT;
    loop {
        let status = match serve::ask(host).await {
            Ok(status) => status,
            Err(_) if is_absent(host).await => return RunningPlugin::Absent,
            Err(error) => {
                return RunningPlugin::Unknown(format!("{:#}", anyhow::Error::new(error)));
            }
        };
        if status.node.stands_aside {
            return RunningPlugin::Answers;
        }
        if Instant::now() >= deadline {
            // A plugin that is not connected to the runtime reads the marker file when it connects.
            return match status.node.synchronized {
                true => RunningPlugin::Unknown(format!(
                    "it has not noticed /{RESTORE_MARKER} within {} s",
                    ANSWER_LIMIT.as_secs()
                )),
                false => RunningPlugin::Answers,
            };
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Returns whether no process listens at the plugin's socket.
async fn is_absent(host: &Path) -> bool {
    let connected = UnixStream::connect(serve::socket(host)).await;
    connected.is_err_and(|error| {
        matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
    })
}

/// The instance of the plugin that this command runs. While another instance runs, this instance
/// waits for the lock, and the other instance restores the values.
pub(super) struct OwnInstance {
    containers: Arc<Containers>,
    synchronized: watch::Receiver<bool>,
    tasks: [AbortHandle; 2],
    supervisor: Supervisor,
    ends: TaskEnds,
}

impl OwnInstance {
    /// Starts this command's instance of the plugin.
    pub(super) fn start(host: &Path, socket: &Path) -> Result<Self, Failure> {
        let node =
            Node::open(host, Config::default()).map_err(|error| Failure::Runtime(error.into()))?;
        let containers = node.containers().clone();
        let (service, tasks) = node.into_service(Box::new(|_| ()));
        let synchronized = service.synchronized();
        let identity =
            Identity::new("90", "plimsoll").map_err(|error| Failure::Runtime(error.into()))?;
        let stub = Stub::external(identity, service).socket(socket);
        let guard = tokio::spawn(tasks.guard().run());
        let (supervisor, ends) = Supervisor::new();
        let started = tasks.start(stub.runtime(), &supervisor);
        started.context("cannot start a thread").map_err(Failure::Runtime)?;
        let plugin = tokio::spawn(stub.run());
        let tasks = [guard.abort_handle(), plugin.abort_handle()];
        Ok(Self { containers, synchronized, tasks, supervisor, ends })
    }

    /// Returns whether the runtime has sent its pods and containers to this instance.
    pub(super) fn is_synchronized(&self) -> bool {
        *self.synchronized.borrow()
    }

    /// Returns all containers of the runtime by id, with their cgroups if known. The list comes
    /// from this instance of the plugin, or from the instance that already runs. Returns `None` if
    /// neither instance is connected to the runtime.
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

    /// Ends the tasks of this instance.
    pub(super) async fn stop(self) {
        for task in &self.tasks {
            task.abort();
        }
        self.supervisor.stop(self.ends).await;
    }
}
