//! Opens the plugin's state on one node, and starts the background tasks.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tokio::sync::{mpsc, watch};
use tracing::warn;

use crate::agent::configurator::{Configurator, MemoryReader, OnConfig};
use crate::agent::decrease::LimitDecreases;
use crate::agent::deferrals::Deferrals;
use crate::agent::handles::Agent;
use crate::agent::kills::Watcher;
use crate::agent::notify::{Ping, keep_informed};
use crate::agent::reconciler::guard::Guard;
use crate::agent::reconciler::{Reconciler, WorkItem};
use crate::agent::service::Service;
use crate::agent::supervise::Supervisor;
use crate::agent::systemd::keep_values;
use crate::agent::throttling::ThrottleRelease;
use crate::cgroup::systemd::Systemd;
use crate::cgroup::{CgroupRoot, RootError};
use crate::config::Config;
use crate::host::files::below;
use crate::kubelet::checkpoint::DEFAULT_DIR;
use crate::report::Reports;
use crate::report::serve::Server;
use crate::state::containers::Containers;
use crate::state::deferred::DeferredLimits;
use crate::state::levels::Levels;
use crate::state::originals::Originals;
use crate::state::records::{RecordReader, Records};
use crate::state::settings::Settings;
use crate::state::shared::SharedState;

/// The state of the plugin on one node, before its tasks start.
pub struct Node {
    host: PathBuf,
    agent: Agent,
    watcher: Watcher,
    reader: RecordReader,
    todo: mpsc::UnboundedReceiver<WorkItem>,
    pings: (mpsc::UnboundedSender<Ping>, mpsc::UnboundedReceiver<Ping>),
}

/// The plugin's background tasks, which run beside the event handlers.
pub struct Tasks {
    node: Node,
    memory: MemoryReader,
}

impl Node {
    /// Opens the cgroup hierarchy and the stored state of the node whose file system is at `host`.
    ///
    /// # Errors
    ///
    /// Fails if the cgroup hierarchy cannot be opened.
    pub fn open(host: &Path, config: Config) -> Result<Self, RootError> {
        let root = Arc::new(CgroupRoot::open(&host.join("sys/fs/cgroup"))?);
        // The plugin reads the node's memory later, because a read of the kubelet's files may hang.
        let settings = Settings::without_memory(config, host);
        let originals = Arc::new(Mutex::new(load_originals(host)));
        let reports = Arc::<Reports>::default();
        let levels = Arc::new(Levels::new(
            root.clone(),
            settings.node.page_size,
            originals.clone(),
            reports.brake.clone(),
        ));
        let (records, reader) = Records::new(below(host, DEFAULT_DIR));
        let containers = Arc::new(Containers::new(settings, records, originals));
        let (work, todo) = mpsc::unbounded_channel();
        let decreases = Arc::new(LimitDecreases::new(root.clone(), containers.clone()));
        let (kills, rescues, watcher) = Watcher::load(
            host,
            root.clone(),
            containers.clone(),
            levels.clone(),
            reports.clone(),
            work.clone(),
        );
        let deferred = Arc::<DeferredLimits>::default();
        let synchronized = watch::Sender::default();
        let state = SharedState { containers, levels, root, deferred, rescues, synchronized };
        let agent = Agent { state, decreases, kills, reports, work };
        let pings = mpsc::unbounded_channel();
        Ok(Self { host: host.to_owned(), agent, watcher, reader, todo, pings })
    }

    /// Returns the containers.
    pub fn containers(&self) -> &Arc<Containers> {
        &self.agent.state.containers
    }

    /// Returns the plugin's reports to users.
    pub fn reports(&self) -> &Arc<Reports> {
        &self.agent.reports
    }

    /// Returns the plugin and its tasks. The tasks need the connection to the runtime, so the
    /// caller starts them later with [`Tasks::start`].
    pub fn into_service(self, on_config: OnConfig) -> (Service, Tasks) {
        let (configurator, memory) = Configurator::new(&self.agent, self.host.clone(), on_config);
        (Service::new(self.agent.clone(), configurator), Tasks { node: self, memory })
    }
}

/// Returns the stored original values. Logs a warning if some of them cannot be read.
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
             their cgroups, and will fail"
        );
    }
    originals
}

impl Tasks {
    /// Returns the server for status and metrics.
    pub fn server(&self) -> Server {
        Server::new(self.node.agent.state.clone(), self.node.agent.reports.clone())
    }

    /// Returns the task that reads the node's memory.
    #[cfg(test)]
    pub(crate) fn memory_reader(self) -> MemoryReader {
        self.memory
    }

    /// Returns the node guard, which limits the memory of all pods together.
    pub fn guard(&self) -> Guard {
        let Agent { state, reports, .. } = self.node.agent.clone();
        let SharedState { containers, levels, root, .. } = state;
        Guard::new(self.node.host.clone(), root, containers, levels, reports)
    }

    /// Returns the reconcile task, and the tasks that supply it with entries of the kubelet's
    /// checkpoint and with the node's memory.
    pub fn reconciler(self, runtime: nri::Runtime) -> (Reconciler, RecordReader, MemoryReader) {
        let Node { agent, todo, reader, pings, .. } = self.node;
        let reconciler = Reconciler::new(agent.state, agent.reports, runtime, todo, pings.1);
        (reconciler, reader, self.memory)
    }

    /// Starts the tasks. A task that reads many or large files has a thread of its own, so that it
    /// never delays the answer to an event.
    ///
    /// # Errors
    ///
    /// Fails if the kernel cannot start another thread.
    pub fn start(self, runtime: nri::Runtime, supervisor: &Supervisor) -> io::Result<()> {
        let Self { node, memory } = self;
        let Node { host, agent, watcher, reader, todo, pings } = node;
        let Agent { state, decreases, reports, work, .. } = agent;
        let SharedState { containers, levels, root, deferred, synchronized, .. } = state.clone();
        let systemd = keep_values(levels, root.clone(), Systemd::new(&host));
        supervisor.spawn("systemd", systemd);
        let notify = keep_informed(synchronized.subscribe(), pings.0);
        supervisor.spawn("notify", notify);
        let (root, containers) = (&root, &containers);
        let deferrals = Deferrals::new(
            root.clone(),
            containers.clone(),
            decreases,
            reports.clone(),
            work.clone(),
            deferred,
        );
        supervisor.spawn_thread("deferrals", || deferrals.run())?;
        let throttle_release =
            ThrottleRelease::new(containers.clone(), root.clone(), reports.clone(), work);
        supervisor.spawn_thread("records", || reader.run())?;
        supervisor.spawn_thread("memory", || memory.run())?;
        supervisor.spawn_thread("throttling", || throttle_release.run())?;
        supervisor.spawn_thread("kills", || watcher.run())?;
        supervisor.spawn_thread("reconciler", move || {
            Reconciler::new(state, reports, runtime, todo, pings.1).run()
        })
    }
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
    async fn an_idle_node_logs_only_debug_lines() {
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
            Node::open(host.path(), config).expect("a node").into_service(Box::new(|_| {}));
        let stub = Stub::external(Identity::new("90", "plimsoll").expect("an identity"), service);
        let (reconciler, reader, memory) = tasks.reconciler(stub.runtime());
        let (supervisor, _ends) = Supervisor::new();
        supervisor.spawn_thread("records", || reader.run()).expect("a thread");
        supervisor.spawn_thread("memory", || memory.run()).expect("a thread");
        tokio::spawn(reconciler.run());
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
