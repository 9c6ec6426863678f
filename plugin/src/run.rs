//! `plimsoll run`: the plugin as a process.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, anyhow};
use futures::StreamExt as _;
use inotify::{Inotify, WatchMask};
use nri::{Identity, Launched, Stub};
use plimsoll::ancestors::Ancestors;
use plimsoll::brake;
use plimsoll::cgroup::CgroupRoot;
use plimsoll::cgroup::systemd::Systemd;
use plimsoll::config::{self, Config, DROP_INS};
use plimsoll::containers::{Containers, STAND_ASIDE, Settings};
use plimsoll::cut::Cuts;
use plimsoll::defer::Deferrals;
use plimsoll::guard::Guard;
use plimsoll::kills::Watcher;
use plimsoll::originals::{self, Originals};
use plimsoll::reconcile::{Reconciler, Work};
use plimsoll::report::serve::Server;
use plimsoll::report::{self, Reports};
use plimsoll::requests::checkpoint::Checkpoints;
use plimsoll::service::{OnConfig, Parts, Service};
use plimsoll::stalls::Stalls;
use rustix::fs::Access;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::timeout;
use tracing::{error, info, warn};

use crate::log::{self, Level};
use crate::{Failure, Run, load_config, notify, read_file};

/// How long nothing must have happened in the configuration's directory for its file to be read.
const QUIET: Duration = Duration::from_millis(200);

impl Run {
    /// Runs the plugin until it is told to stop, or the runtime that launched it ends.
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let (level, is_read) = log::start(self.log_format);
        // Before somebody replaces the file, after which it has another name.
        let program = std::env::current_exe().context("find the program's file").map_err(Failure::Runtime)?;
        let result = match Launched::from_env() {
            Ok(None) => self.plugin(None, level, &program),
            // The runtime kills the process that it launched when it drops the plugin, and never launches it again.
            Ok(Some(launched)) => match launched.detach() {
                Ok(launched) => self.plugin(Some(launched), level, &program),
                Err(status) => {
                    let code = status.code().and_then(|code| u8::try_from(code).ok());
                    return Ok(ExitCode::from(code.unwrap_or(1)));
                }
            },
            Err(error) => Err(Failure::Runtime(anyhow::Error::new(error).context("launched by a runtime"))),
        };
        match result {
            // What main prints is nothing for whoever reads the log.
            Err(failure) if !is_read => {
                let (error, code) = failure.into_parts();
                error!("{error:#}");
                Ok(ExitCode::from(code))
            }
            result => result,
        }
    }

    fn plugin(self, launched: Option<Launched>, level: Level, program: &Path) -> Result<ExitCode, Failure> {
        let successor = launched.as_ref().map(Launched::successor).transpose();
        let successor = successor.context("keep what a new version needs").map_err(Failure::Runtime)?;
        let identity = match &launched {
            Some(launched) => launched.identity().clone(),
            None => Identity::new("90", "plimsoll").map_err(|error| Failure::Runtime(error.into()))?,
        };
        let files = match &self.config {
            Some(path) => vec![path.clone()],
            None => drop_ins(&identity),
        };
        let config = match (&launched, &self.config) {
            (_, Some(path)) => load_config(path)?,
            // The runtime hands it over.
            (Some(launched), None) if launched.is_connected() => Config::default(),
            (_, None) => match files.iter().find(|path| path.exists()) {
                Some(path) => load_config(path)?,
                None => Config::default(),
            },
        };
        level.set(config.log_level);

        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(2)
            .build()
            .context("start the asynchronous runtime")
            .map_err(Failure::Runtime)?;
        let node = match Node::open(&self.host, config) {
            Ok(node) => node,
            Err(error) => {
                if let Some(launched) = launched {
                    runtime.block_on(launched.decline());
                }
                return Err(error);
            }
        };
        let configured = Arc::new(Notify::new());
        let metrics_changed = Arc::new(Notify::new());
        let on_config = {
            let (level, configured, metrics_changed) = (level, configured.clone(), metrics_changed.clone());
            let reports = node.reports().clone();
            Box::new(move |config: &Config| {
                level.set(config.log_level);
                reports.configure(config);
                configured.notify_one();
                metrics_changed.notify_one();
            })
        };

        let end = runtime.block_on(async move {
            let (containers, reports) = (node.containers().clone(), node.reports().clone());
            let (service, tasks) = node.into_service(on_config);
            let stub = match launched {
                Some(launched) => Stub::launched(launched, service),
                None => Stub::external(identity, service),
            };
            let stub = stub.socket(self.socket);
            let server = tasks.server();
            tokio::spawn(server.clone().run(self.host.clone()));
            tokio::spawn(server.run_metrics(metrics_changed));
            let guard = tokio::spawn(tasks.guard().run_when_configured());
            let reconciler = tasks.spawn(stub.runtime());
            let service = stub.plugin().clone();
            tokio::spawn(notify::keep_informed(service.synchronized()));
            tokio::spawn(keep_brake(service.clone(), reports));
            tokio::spawn(async move {
                configured.notified().await;
                let config = async {
                    if let Err(error) = watch(&files, &service, &containers).await {
                        let files: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
                        warn!("changes of {} take effect only with a restart: {error:#}", files.join(" and "));
                    }
                };
                let restored = async {
                    if let Err(error) = watch_restored(&self.host, &service).await {
                        warn!("'plimsoll restore' takes effect only with a restart: {error:#}");
                    }
                };
                tokio::join!(config, restored);
            });
            tokio::select! {
                result = stub.run() => match result {
                    Ok(()) => Ok(End::Stop),
                    Err(nri::Error::Configure(refusal)) => Err(Failure::Usage(refusal.into())),
                    Err(error) => Err(Failure::Runtime(error.into())),
                },
                result = reconciler => Err(ended(result, "the task that repairs values failed")),
                result = guard => Err(ended(result, "the task that keeps memory from pods failed")),
                result = signalled(program) => result.context("wait for signals").map_err(Failure::Runtime),
            }
        });
        match end? {
            End::Stop => Ok(ExitCode::SUCCESS),
            End::Anew => {
                let mut command = Command::new(program);
                match std::env::args_os().len() {
                    // Without arguments only what a runtime launches is told what to do.
                    0 | 1 => command.arg("run"),
                    _ => command.args(std::env::args_os().skip(1)),
                };
                let error = match successor {
                    Some(successor) => successor.exec(&mut command),
                    None => command.exec(),
                };
                let error = anyhow::Error::new(error).context(format!("cannot start {}", program.display()));
                Err(Failure::Runtime(error))
            }
        }
    }
}

/// What the plugin works with.
pub(crate) struct Node {
    host: PathBuf,
    parts: Parts,
    watcher: Watcher,
    todo: mpsc::UnboundedReceiver<Work>,
}

/// What the plugin does beside answering events.
pub(crate) struct Tasks(Node);

impl Node {
    /// The node whose file system is at `host`.
    pub(crate) fn open(host: &Path, config: Config) -> Result<Self, Failure> {
        let root = CgroupRoot::open(&host.join("sys/fs/cgroup")).map_err(|error| Failure::Runtime(error.into()))?;
        let root = Arc::new(root);
        let (settings, _) = Settings::discover(config, host);
        let originals = Originals::load(host).unwrap_or_else(|error| {
            warn!(%error, "cannot read what cgroups held before; 'plimsoll restore' will not know it");
            Originals::none(host)
        });
        let originals = Arc::new(Mutex::new(originals));
        let reports = Arc::<Reports>::default();
        let page_size = settings.node.page_size;
        let ancestors = Arc::new(Ancestors::new(root.clone(), page_size, originals.clone(), reports.clone()));
        let checkpoints = Checkpoints::new(host.join("var/lib/kubelet"));
        let containers = Arc::new(Containers::new(settings, checkpoints, originals));
        let (work, todo) = mpsc::unbounded_channel();
        let cuts = Arc::new(Cuts::new(root.clone(), containers.clone()));
        let deferrals =
            Arc::new(Deferrals::new(root.clone(), containers.clone(), cuts.clone(), reports.clone(), work.clone()));
        let (kills, watcher) =
            Watcher::load(host, root.clone(), containers.clone(), ancestors.clone(), reports.clone(), work.clone());
        let synchronized = watch::Sender::default();
        let parts = Parts { containers, ancestors, root, cuts, deferrals, kills, reports, work, synchronized };
        Ok(Self { host: host.to_owned(), parts, watcher, todo })
    }

    /// The containers.
    pub(crate) fn containers(&self) -> &Arc<Containers> {
        &self.parts.containers
    }

    /// Where all that is told goes.
    pub(crate) fn reports(&self) -> &Arc<Reports> {
        &self.parts.reports
    }

    /// The plugin, and its tasks, which start when it is known how to reach the runtime.
    pub(crate) fn into_service(self, on_config: OnConfig) -> (Service, Tasks) {
        (Service::new(self.parts.clone(), &self.host, on_config), Tasks(self))
    }
}

impl Tasks {
    /// Answers who asks.
    pub(crate) fn server(&self) -> Server {
        Server::new(self.0.parts.clone())
    }

    /// Keeps memory from pods.
    pub(crate) fn guard(&self) -> Guard {
        let Parts { containers, ancestors, root, reports, .. } = self.0.parts.clone();
        Guard::new(self.0.host.clone(), root, containers, ancestors, reports)
    }

    /// Starts them. The handle is of the one whose end is a failure.
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

/// The files that a runtime takes the configuration of a plugin from, best first.
/// Source: containerd/nri `pkg/adaptation/plugin.go`.
fn drop_ins(identity: &Identity) -> Vec<PathBuf> {
    let full = identity.to_string();
    // An index is two digits and a dash.
    let name = full.get(3..).unwrap_or_default().to_owned();
    [full, name].map(|name| Path::new(DROP_INS).join(format!("{name}.conf"))).into()
}

/// What comes of a task that should have gone on for ever.
fn ended(result: Result<(), JoinError>, failed: &'static str) -> Failure {
    let error = result.err().map_or_else(|| anyhow!("it ended"), anyhow::Error::new);
    Failure::Runtime(error.context(failed))
}

/// How the plugin ends when all is well.
enum End {
    Stop,
    /// With what is in the program's file by now in its place.
    Anew,
}

async fn signalled(program: &Path) -> io::Result<End> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut replace = signal(SignalKind::user_defined2())?;
    loop {
        let signal = tokio::select! {
            _ = interrupt.recv() => "SIGINT",
            _ = terminate.recv() => "SIGTERM",
            _ = replace.recv() => match rustix::fs::access(program, Access::EXEC_OK) {
                Ok(()) => {
                    info!(program = %program.display(), "starting anew; containers keep their values");
                    return Ok(End::Anew);
                }
                Err(error) => {
                    warn!(program = %program.display(), %error, "cannot start anew: expected a program there; going on");
                    continue;
                }
            },
        };
        notify::stopping();
        info!(signal, "stopping; containers keep their values");
        return Ok(End::Stop);
    }
}

/// Applies the brake whenever the plugin does too much.
async fn keep_brake(service: Arc<Service>, reports: Arc<Reports>) {
    loop {
        let record = reports.brake.exceeded(report::now).await;
        service.apply_brake(&record);
    }
}

/// Looks whether to stand aside, or to act again after the brake was reset, whenever that may have changed. Returns only when it cannot watch any longer.
async fn watch_restored(host: &Path, service: &Service) -> anyhow::Result<()> {
    let directory = host.join(originals::DIRECTORY);
    fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
    let inotify = Inotify::init().context("start inotify")?;
    let watched = inotify.watches().add(&directory, WatchMask::CREATE | WatchMask::DELETE | WatchMask::MOVE);
    watched.with_context(|| format!("watch {}", directory.display()))?;
    let mut changes = inotify.into_event_stream([0; 4096]).context("read inotify")?;
    service.look_whether_to_stand_aside();
    loop {
        let change = changes.next().await.context("inotify ended")?.context("read inotify")?;
        // What else is kept there is the plugin's own, and changes often. Without a name: there may have been too many.
        let marks = [Path::new(STAND_ASIDE).file_name(), Some(OsStr::new(brake::FILE))];
        if change.name.is_none_or(|name| marks.contains(&Some(name.as_os_str()))) {
            service.look_whether_to_stand_aside();
        }
    }
}

/// Takes over the first of `files` that exists whenever it has changed. Returns only when it cannot watch any longer.
async fn watch(files: &[PathBuf], service: &Service, containers: &Containers) -> anyhow::Result<()> {
    // Files are replaced by renaming, and the ConfigMaps of Kubernetes by renaming a directory beside them: so it is the
    // directory that is watched.
    let directory = match files.first().and_then(|file| file.parent()) {
        Some(directory) if directory != Path::new("") => directory,
        _ => Path::new("."),
    };
    let inotify = Inotify::init().context("start inotify")?;
    let events = WatchMask::CLOSE_WRITE | WatchMask::MOVE | WatchMask::CREATE | WatchMask::DELETE;
    inotify.watches().add(directory, events).with_context(|| format!("watch {}", directory.display()))?;
    let mut changes = inotify.into_event_stream([0; 4096]).context("read inotify")?;

    let mut seen = None;
    loop {
        let now = files.iter().find_map(|file| match read_file(file, config::LARGEST) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            result => Some((file, result)),
        });
        match now {
            None if seen.is_some() => {
                warn!("the configuration file was removed; the configuration before stays in force");
                seen = None;
            }
            None => {}
            Some((file, Err(error))) => {
                error!("cannot read {}: {error}; the configuration before stays in force", file.display());
            }
            Some((file, Ok(text))) if seen.as_ref() != Some(&text) => {
                match Config::parse(&text, &file.display().to_string()) {
                    Ok(config) if config == containers.settings().config => {}
                    Ok(config) => {
                        info!(file = %file.display(), "configuration changed");
                        service.reconfigure(config);
                    }
                    Err(errors) => error!("{errors}\nthe configuration before stays in force"),
                }
                seen = Some(text);
            }
            Some(_) => {}
        }
        let mut next = changes.next().await;
        // A file may be made empty and filled then, and an empty one stands for the defaults: wait for quiet.
        while let Some(Ok(_)) = &next {
            match timeout(QUIET, changes.next()).await {
                Ok(event) => next = event,
                Err(_) => break,
            }
        }
        match next {
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(error).context("read inotify"),
            None => return Err(anyhow!("inotify ended")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use nri::{Plugin as _, api};
    use tracing::subscriber;

    use super::*;

    /// Where lines go.
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
            String::from_utf8(std::mem::take(&mut *self.0.lock().expect("nobody panicked"))).expect("text")
        }
    }

    /// Time passes as soon as everybody waits for it.
    #[tokio::test(start_paused = true)]
    async fn nothing_is_logged_at_rest_however_often_all_is_looked_at() {
        let host = tempfile::tempdir().expect("a directory");
        let cgroup = "kubepods/burstable/podb/id-b";
        let root = host.path().join("sys/fs/cgroup");
        for directory in Path::new(cgroup).ancestors() {
            let directory = root.join(directory);
            fs::create_dir_all(&directory).expect("made");
            for (file, value) in
                [("min", "0"), ("low", "0"), ("high", "max"), ("max", "104857600"), ("current", "4096")]
            {
                fs::write(directory.join(format!("memory.{file}")), value).expect("written");
            }
        }
        fs::write(root.join("cgroup.controllers"), "memory").expect("written");
        let config = Config::parse(b"nodeAllocatable: 4Gi", "").expect("valid");
        let lines = Lines::default();
        let writer = lines.clone();
        let logged = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false);
        let _logged = subscriber::set_default(logged.with_max_level(tracing::Level::DEBUG).finish());

        let (service, tasks) = Node::open(host.path(), config).ok().expect("a node").into_service(Box::new(|_| {}));
        let stub = Stub::external(Identity::new("90", "plimsoll").expect("an identity"), service);
        let _reconciler = tasks.spawn(stub.runtime());
        let mut pod = api::PodSandbox { id: "s".into(), uid: "b".into(), ..Default::default() };
        pod.linux.mut_or_insert_default().cgroup_parent = "/kubepods/burstable/podb".into();
        let mut container = api::Container { id: "id-b".into(), pod_sandbox_id: "s".into(), ..Default::default() };
        container.state = api::ContainerState::CONTAINER_RUNNING.into();
        container.linux.mut_or_insert_default().cgroups_path = format!("/{cgroup}");
        assert!(stub.plugin().synchronize(vec![pod], vec![container]).await.is_ok());

        // Until it has settled.
        tokio::time::sleep(Duration::from_secs(1800)).await;
        let before = lines.take();
        tokio::time::sleep(Duration::from_secs(1300)).await;
        let after = lines.take();
        let looks = after.lines().filter(|line| line.contains("DEBUG") && line.contains("verified")).count();
        assert!(looks >= 2, "{before}\n\n{after}");
        assert!(after.lines().all(|line| line.contains("DEBUG")), "{after}");
    }
}
