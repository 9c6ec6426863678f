//! Builds the parts of the agent and starts its background tasks.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::warn;

use crate::agent::ancestors::Ancestors;
use crate::agent::cut::Cuts;
use crate::agent::defer::Deferrals;
use crate::agent::guard::Guard;
use crate::agent::kills::Watcher;
use crate::agent::reconcile::{Reconciler, Work};
use crate::agent::service::{OnConfig, Parts, Service};
use crate::agent::stalls::Stalls;
use crate::cgroup::CgroupRoot;
use crate::cgroup::systemd::Systemd;
use crate::commands::Failure;
use crate::config::Config;
use crate::kubelet::checkpoint::Checkpoints;
use crate::report::Reports;
use crate::report::serve::Server;
use crate::state::containers::{Containers, Settings};
use crate::state::originals::Originals;

/// The state of the plugin on one node, before its tasks start.
pub(crate) struct Node {
    host: PathBuf,
    parts: Parts,
    watcher: Watcher,
    todo: mpsc::UnboundedReceiver<Work>,
}

/// The plugin's background tasks, which run beside the event handlers.
pub(crate) struct Tasks(Node);

impl Node {
    /// Opens the cgroup hierarchy and the stored state of the node whose file system is at `host`.
    ///
    /// # Errors
    ///
    /// When the cgroup hierarchy cannot be opened.
    pub(crate) fn open(host: &Path, config: Config) -> Result<Self, Failure> {
        let root = CgroupRoot::open(&host.join("sys/fs/cgroup"))
            .map_err(|error| Failure::Runtime(error.into()))?;
        let root = Arc::new(root);
        let (settings, _) = Settings::discover(config, host);
        let originals = Arc::new(Mutex::new(load_originals(host)));
        let reports = Arc::<Reports>::default();
        let page_size = settings.node.page_size;
        let ancestors =
            Arc::new(Ancestors::new(root.clone(), page_size, originals.clone(), reports.clone()));
        let checkpoints = Checkpoints::new(host.join("var/lib/kubelet"));
        let containers = Arc::new(Containers::new(settings, checkpoints, originals));
        let (work, todo) = mpsc::unbounded_channel();
        let cuts = Arc::new(Cuts::new(root.clone(), containers.clone()));
        let deferrals = Arc::new(Deferrals::new(
            root.clone(),
            containers.clone(),
            cuts.clone(),
            reports.clone(),
            work.clone(),
        ));
        let (kills, watcher) = Watcher::load(
            host,
            root.clone(),
            containers.clone(),
            ancestors.clone(),
            reports.clone(),
            work.clone(),
        );
        let synchronized = watch::Sender::default();
        let parts = Parts {
            containers,
            ancestors,
            root,
            cuts,
            deferrals,
            kills,
            reports,
            work,
            synchronized,
        };
        Ok(Self { host: host.to_owned(), parts, watcher, todo })
    }

    /// Returns the containers.
    pub(crate) fn containers(&self) -> &Arc<Containers> {
        &self.parts.containers
    }

    /// Returns the store of all reports.
    pub(crate) fn reports(&self) -> &Arc<Reports> {
        &self.parts.reports
    }

    /// Returns the plugin and its tasks. [`Tasks::spawn`] starts the tasks, because they need the
    /// connection to the runtime.
    pub(crate) fn into_service(self, on_config: OnConfig) -> (Service, Tasks) {
        (Service::new(self.parts.clone(), &self.host, on_config), Tasks(self))
    }
}

impl Tasks {
    /// Returns the server for status and metrics.
    pub(crate) fn server(&self) -> Server {
        Server::new(self.0.parts.clone())
    }

    /// Returns the node guard, which limits the memory of all pods together.
    pub(crate) fn guard(&self) -> Guard {
        let Parts { containers, ancestors, root, reports, .. } = self.0.parts.clone();
        Guard::new(self.0.host.clone(), root, containers, ancestors, reports)
    }

    /// Starts the tasks. Returns the handle of the reconcile task, whose end is a failure.
    pub(crate) fn spawn(self, runtime: nri::Runtime) -> JoinHandle<()> {
        let Node { host, parts, watcher, todo } = self.0;
        let Parts { containers, ancestors, root, deferrals, reports, work, .. } = parts;
        tokio::spawn(ancestors.clone().make_last(Systemd::new(&host)));
        tokio::spawn(Stalls::new(containers.clone(), root.clone(), reports.clone(), work).run());
        tokio::spawn(deferrals.run());
        tokio::spawn(watcher.run());
        tokio::spawn(Reconciler::new(containers, ancestors, root, reports, runtime, todo).run())
    }
}

/// Loads the original values of all cgroups. Warns about values that cannot be read.
fn load_originals(host: &Path) -> Originals {
    let originals = Originals::load(host).unwrap_or_else(|error| {
        warn!(
            %error,
            "cannot read the original values of cgroups: 'plimsoll restore' will not restore them"
        );
        Originals::none(host)
    });
    if originals.unreadable() > 0 {
        warn!(
            lines = originals.unreadable(),
            "cannot read lines of /run/plimsoll/originals: 'plimsoll restore' will not restore \
             their cgroups, and fail"
        );
    }
    originals
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io;
    use std::time::Duration;

    use nri::{Identity, Plugin as _, Stub, api};
    use tracing::subscriber;

    use super::*;

    /// A buffer for log lines.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("nobody panicked").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Lines {
        fn take(&self) -> String {
            String::from_utf8(std::mem::take(&mut *self.0.lock().expect("nobody panicked")))
                .expect("text")
        }
    }

    /// With paused time, tokio advances the clock as soon as every task waits for a timer.
    #[tokio::test(start_paused = true)]
    async fn nothing_is_logged_at_rest_however_often_all_is_looked_at() {
        let host = tempfile::tempdir().expect("a directory");
        let cgroup = "kubepods/burstable/podb/id-b";
        let root = host.path().join("sys/fs/cgroup");
        for directory in Path::new(cgroup).ancestors() {
            let directory = root.join(directory);
            fs::create_dir_all(&directory).expect("made");
            for (file, value) in [
                ("min", "0"),
                ("low", "0"),
                ("high", "max"),
                ("max", "104857600"),
                ("current", "4096"),
            ] {
                fs::write(directory.join(format!("memory.{file}")), value).expect("written");
            }
        }
        fs::write(root.join("cgroup.controllers"), "memory").expect("written");
        let config = Config::parse(b"nodeAllocatable: 4Gi", "").expect("valid");
        let lines = Lines::default();
        let writer = lines.clone();
        let logged = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false);
        let _logged =
            subscriber::set_default(logged.with_max_level(tracing::Level::DEBUG).finish());

        let (service, tasks) =
            Node::open(host.path(), config).ok().expect("a node").into_service(Box::new(|_| {}));
        let stub = Stub::external(Identity::new("90", "plimsoll").expect("an identity"), service);
        let _reconciler = tasks.spawn(stub.runtime());
        let mut pod = api::PodSandbox { id: "s".into(), uid: "b".into(), ..Default::default() };
        pod.linux.mut_or_insert_default().cgroup_parent = "/kubepods/burstable/podb".into();
        let mut container =
            api::Container { id: "id-b".into(), pod_sandbox_id: "s".into(), ..Default::default() };
        container.state = api::ContainerState::CONTAINER_RUNNING.into();
        container.linux.mut_or_insert_default().cgroups_path = format!("/{cgroup}");
        assert!(stub.plugin().synchronize(vec![pod], vec![container]).await.is_ok());

        // Wait until the plugin has reached a stable state.
        tokio::time::sleep(Duration::from_secs(1800)).await;
        let before = lines.take();
        tokio::time::sleep(Duration::from_secs(1300)).await;
        let after = lines.take();
        let looks = after
            .lines()
            .filter(|line| line.contains("DEBUG") && line.contains("verified"))
            .count();
        assert!(looks >= 2, "{before}\n\n{after}");
        assert!(after.lines().all(|line| line.contains("DEBUG")), "{after}");
    }
}
