//! The command `plimsoll run`: runs the plugin in this process.

pub(super) mod arguments;

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use crate::agent::configurator::Configurator;
use crate::agent::node::Node;
use crate::agent::supervise::Supervisor;
use crate::config::{self, Config, DROP_INS};
use crate::report::{self, Reports};
use crate::state::brake;
use crate::state::containers::Containers;
use crate::state::originals::{self};
use crate::state::settings::STAND_ASIDE;
use anyhow::Context;
use futures::StreamExt as _;
use inotify::{EventMask, EventStream, Inotify, WatchDescriptor, WatchMask};
use nri::{Identity, Launched, Stub};
use rustix::fs::Access;
use signal_hook::consts::{SIGHUP, SIGUSR1};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio::time::timeout;
use tracing::{error, info, warn};

use self::arguments::Run;
use crate::agent::notify;
use crate::commands::{Failure, load_config, read_file};
use crate::report::log::{self, Level};

/// Time without a change in the configuration directory before the plugin reads the file.
const QUIET: Duration = Duration::from_millis(200);

/// The longest wait for [`QUIET`]. Other files in the directory may change all the time.
const MOST: Duration = Duration::from_secs(2);

impl Run {
    /// Runs the plugin until a signal stops it or the runtime that launched it ends.
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        // Ignore these signals until the plugin handles them. The first process of a launched
        // plugin only waits for the second one, so it ignores them until its end.
        for signal in [SIGHUP, SIGUSR1] {
            let ignored = signal_hook::flag::register(signal, Arc::default());
            ignored.context("wait for signals").map_err(Failure::Runtime)?;
        }
        let (level, is_read) = log::start(self.log_format);
        // Read the path now: once the file is replaced, the kernel appends ` (deleted)` to the
        // path.
        let program =
            std::env::current_exe().context("find the program's file").map_err(Failure::Runtime)?;
        let result = match Launched::from_env() {
            Ok(None) => self.plugin(None, level, &program),
            // A runtime that drops the plugin kills the process that it launched, and never
            // launches the plugin again. So run the plugin in a second process.
            Ok(Some(launched)) => match launched.detach() {
                Ok(launched) => self.plugin(Some(launched), level, &program),
                Err(status) => {
                    let code = status.code().and_then(|code| u8::try_from(code).ok());
                    return Ok(ExitCode::from(code.unwrap_or(1)));
                }
            },
            Err(error) => {
                Err(Failure::Runtime(anyhow::Error::new(error).context("launched by a runtime")))
            }
        };
        let result = match result {
            // `main` prints errors to standard error as text, which does not reach the log here. So
            // log the error.
            Err(failure) if !is_read => {
                let (error, code) = failure.into_parts();
                error!("{error:#}");
                Ok(ExitCode::from(code))
            }
            result => result,
        };
        log::flush();
        result
    }

    fn plugin(
        self,
        launched: Option<Launched>,
        level: Level,
        program: &Path,
    ) -> Result<ExitCode, Failure> {
        let successor = launched.as_ref().map(Launched::successor).transpose();
        let successor =
            successor.context("keep what a new version needs").map_err(Failure::Runtime)?;
        let identity = match &launched {
            Some(launched) => launched.identity().clone(),
            None => {
                Identity::new("90", "plimsoll").map_err(|error| Failure::Runtime(error.into()))?
            }
        };
        let files = match &self.config {
            Some(path) => vec![path.clone()],
            None => drop_ins(&identity),
        };
        let config = match (&launched, &self.config) {
            (_, Some(path)) => load_config(path)?,
            // The runtime sends the configuration over the connection.
            (Some(launched), None) if launched.is_connected() => Config::default(),
            (_, None) => match files.iter().find(|path| path.exists()) {
                Some(path) => load_config(path)?,
                None => Config::default(),
            },
        };
        level.set(config.log_level);

        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start the asynchronous runtime")
            .map_err(Failure::Runtime)?;
        let signals = {
            let _context = runtime.enter();
            Signals::new().context("wait for signals").map_err(Failure::Runtime)?
        };
        let node = match Node::open(&self.host, config) {
            Ok(node) => node,
            Err(error) => {
                let error = Failure::Runtime(error.into());
                if let Some(launched) = launched {
                    runtime.block_on(launched.decline());
                }
                return Err(error);
            }
        };
        let configured = Arc::new(Notify::new());
        let metrics_changed = Arc::new(Notify::new());
        let reload = Arc::new(Notify::new());
        let on_config = {
            let (level, configured, metrics_changed) =
                (level, configured.clone(), metrics_changed.clone());
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
            let (supervisor, mut ends) = Supervisor::new();
            let server = tasks.server();
            supervisor.spawn("status", server.clone().run(self.host.clone()));
            supervisor.spawn("metrics", server.run_metrics(metrics_changed));
            supervisor.spawn("guard", tasks.guard().run_when_configured());
            let started = tasks.start(stub.runtime(), &supervisor).context("start a thread");
            started.map_err(Failure::Runtime)?;
            let service = stub.plugin().clone();
            let configurator = service.configurator();
            let reloads = reload.clone();
            // These tasks read files, so they have a thread of their own.
            let settings = move || async move {
                configured.notified().await;
                let config = watch(&files, &configurator, &containers, &reloads);
                let restored = async {
                    if let Err(error) = watch_restored(&self.host, &configurator).await {
                        warn!("'plimsoll restore' takes effect only with a restart: {error:#}");
                    }
                };
                let brake = keep_brake(configurator.clone(), reports);
                // `config` never ends, so `join` does not return either.
                let _: (Infallible, (), ()) = tokio::join!(config, restored, brake);
            };
            let started = supervisor.spawn_thread("configuration", settings);
            started.context("start a thread").map_err(Failure::Runtime)?;
            tokio::select! {
                result = stub.run() => match result {
                    Ok(()) => Ok(End::Stop),
                    Err(nri::Error::Configure(refusal)) => Err(Failure::Usage(refusal.into())),
                    Err(error) => Err(Failure::Runtime(error.into())),
                },
                end = ends.first() => Err(Failure::Runtime(end.into())),
                end = signals.ended(program, &reload) => Ok(end),
            }
        });
        match end? {
            End::Stop => Ok(ExitCode::SUCCESS),
            End::Anew => {
                let mut command = Command::new(program);
                match std::env::args_os().len() {
                    // Without arguments, the new program runs the plugin only if NRI_PLUGIN_SOCKET
                    // is set. A successor does not have this variable.
                    0 | 1 => command.arg("run"),
                    _ => command.args(std::env::args_os().skip(1)),
                };
                log::flush();
                let error = match successor {
                    Some(successor) => successor.exec(&mut command),
                    None => command.exec(),
                };
                let error = anyhow::Error::new(error)
                    .context(format!("cannot start {}", program.display()));
                Err(Failure::Runtime(error))
            }
        }
    }
}

/// Returns the paths from which a runtime reads a plugin's configuration, in order of precedence.
/// Source: containerd/nri `pkg/adaptation/plugin.go`.
fn drop_ins(identity: &Identity) -> Vec<PathBuf> {
    let full = identity.to_string();
    // The name follows the two digits of the index and a dash.
    let name = full.get(3..).unwrap_or_default().to_owned();
    [full, name].map(|name| Path::new(DROP_INS).join(format!("{name}.conf"))).into()
}

/// The way the plugin ends without a failure.
enum End {
    Stop,
    /// Replace this process by the program that the program file holds now.
    Anew,
}

/// The signals that the plugin handles. The plugin only logs SIGUSR1.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    replace: Signal,
    reload: Signal,
    other: Signal,
}

impl Signals {
    /// Installs the handlers. From then on, none of the signals ends the process by its default
    /// action.
    fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            replace: signal(SignalKind::user_defined2())?,
            reload: signal(SignalKind::hangup())?,
            other: signal(SignalKind::user_defined1())?,
        })
    }

    /// Waits for a signal that ends the plugin. SIGHUP notifies `reload`, which makes the plugin
    /// read its configuration again.
    async fn ended(mut self, program: &Path, reload: &Notify) -> End {
        loop {
            let signal = tokio::select! {
                _ = self.interrupt.recv() => "SIGINT",
                _ = self.terminate.recv() => "SIGTERM",
                _ = self.replace.recv() => match rustix::fs::access(program, Access::EXEC_OK) {
                    Ok(()) => {
                        info!(program = %program.display(), "starting anew; containers keep their values");
                        return End::Anew;
                    }
                    Err(error) => {
                        warn!(program = %program.display(), %error, "cannot start anew: expected a program there; going on");
                        continue;
                    }
                },
                _ = self.reload.recv() => {
                    reload.notify_one();
                    continue;
                }
                // Other programs reopen their logs or reload on SIGUSR1, so name the signal that
                // reloads.
                _ = self.other.recv() => {
                    info!(signal = "SIGUSR1", "the signal has no meaning here; going on. SIGHUP reloads the configuration");
                    continue;
                }
            };
            notify::stopping();
            info!(signal, "stopping; containers keep their values");
            return End::Stop;
        }
    }
}

/// Applies the brake whenever the number of repairs, conflicts or kills exceeds its bound.
async fn keep_brake(service: Arc<Configurator>, reports: Arc<Reports>) {
    loop {
        let record = reports.brake.exceeded(report::now).await;
        service.apply_brake(&record);
    }
}

/// Watches the marker file of `plimsoll restore` and the brake's record, and applies every change.
/// Returns only when it cannot watch any longer.
async fn watch_restored(host: &Path, service: &Configurator) -> anyhow::Result<()> {
    let directory = host.join(originals::DIRECTORY);
    fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
    let inotify = Inotify::init().context("start inotify")?;
    let watched =
        inotify.watches().add(&directory, WatchMask::CREATE | WatchMask::DELETE | WatchMask::MOVE);
    watched.with_context(|| format!("watch {}", directory.display()))?;
    let mut changes = inotify.into_event_stream([0; 4096]).context("read inotify")?;
    service.look_whether_to_stand_aside();
    loop {
        let change = changes.next().await.context("inotify ended")?.context("read inotify")?;
        // The directory's other files are the plugin's own and change often. An event without a
        // name may report lost events.
        let marks = [Path::new(STAND_ASIDE).file_name(), Some(OsStr::new(brake::FILE))];
        if change.name.is_none_or(|name| marks.contains(&Some(name.as_os_str()))) {
            service.look_whether_to_stand_aside();
        }
    }
}

/// Applies the configuration in the first existing file of `files` whenever the file changes, and
/// when `reload` is notified.
async fn watch(
    files: &[PathBuf],
    service: &Configurator,
    containers: &Containers,
    reload: &Notify,
) -> Infallible {
    let names =
        files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(" and ");
    let mut changes = Changes::new(files).inspect_err(|error| unwatched(&names, error)).ok();
    let mut is_asked_for = false;
    let mut seen = None;
    loop {
        let now = files.iter().find_map(|file| match read_file(file, config::LARGEST) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            result => Some((file, result)),
        });
        match now {
            None if seen.is_some() => {
                warn!(
                    "the configuration file was removed; the configuration before stays in force"
                );
                seen = None;
            }
            None if is_asked_for => {
                warn!("there is no {names}; the configuration before stays in force")
            }
            None => {}
            Some((file, Err(error))) => {
                error!(
                    "cannot read {}: {error}; the configuration before stays in force",
                    file.display()
                );
            }
            Some((file, Ok(text))) if is_asked_for || seen.as_ref() != Some(&text) => {
                take_over(&file.display().to_string(), &text, service, containers, is_asked_for);
                seen = Some(text);
            }
            Some(_) => {}
        }
        let changed = async {
            let Some(watched) = &mut changes else { return std::future::pending().await };
            watched.next().await
        };
        is_asked_for = tokio::select! {
            changed = changed => {
                if let Err(error) = changed {
                    unwatched(&names, &error);
                    changes = None;
                }
                false
            }
            () = reload.notified() => {
                info!(signal = "SIGHUP", "reading the configuration again");
                true
            }
        };
    }
}

fn unwatched(files: &str, error: &anyhow::Error) {
    warn!("changes of {files} take effect only with SIGHUP or a restart: {error:#}");
}

/// Applies the text of a configuration file, if the text is valid and differs from the
/// configuration in force. `is_asked_for` states that the user requested the reload, so an
/// unchanged configuration is logged.
fn take_over(
    file: &str,
    text: &[u8],
    service: &Configurator,
    containers: &Containers,
    is_asked_for: bool,
) {
    let in_force = &containers.settings().config;
    match Config::parse(text, file) {
        Ok(config) if config == *in_force => {
            if is_asked_for {
                info!(file, "the configuration is in force already");
            }
        }
        // A program that rewrites the file may have truncated it first. At the start an empty file
        // means the defaults, which are in force already.
        Ok(_) if is_empty(text) => warn!(
            "{file} is empty: expected at least one field, or {{}} for the defaults; the configuration before stays in force"
        ),
        Ok(config) => {
            info!(file, "configuration changed");
            service.reconfigure(config);
        }
        Err(errors) => error!("{errors}\nthe configuration before stays in force"),
    }
}

/// Returns whether a YAML file holds only white space, comments and document markers.
fn is_empty(text: &[u8]) -> bool {
    let text = String::from_utf8_lossy(text);
    let mut lines = text.trim_start_matches('\u{feff}').lines().map(str::trim);
    lines.all(|line| line.is_empty() || line.starts_with('#') || ["---", "..."].contains(&line))
}

/// A watch for changes in the configuration directory, which need not exist yet.
struct Changes {
    directory: PathBuf,
    events: EventStream<[u8; 4096]>,
    watched: Option<Watched>,
}

/// A watched directory.
struct Watched {
    descriptor: WatchDescriptor,
    path: PathBuf,
    /// The name of the missing entry that the plugin waits for. `None` if this is the configuration
    /// directory.
    missing: Option<OsString>,
}

impl Changes {
    /// Starts to watch the directory of `files`. A watch of a file would miss a replacement by
    /// rename. Kubernetes replaces the files of a ConfigMap by renaming a directory beside them.
    fn new(files: &[PathBuf]) -> anyhow::Result<Self> {
        let directory = match files.first().and_then(|file| file.parent()) {
            Some(directory) if directory != Path::new("") => directory,
            _ => Path::new("."),
        };
        let inotify = Inotify::init().context("start inotify")?;
        let events = inotify.into_event_stream([0; 4096]).context("read inotify")?;
        let mut changes = Self { directory: directory.to_owned(), events, watched: None };
        changes.watch()?;
        Ok(changes)
    }

    /// Watches the configuration directory, or its nearest existing ancestor.
    fn watch(&mut self) -> anyhow::Result<()> {
        loop {
            let (path, missing) = nearest(&self.directory);
            if self.watched.as_ref().is_some_and(|watched| watched.path == path) {
                return Ok(());
            }
            let its_own = WatchMask::DELETE_SELF | WatchMask::MOVE_SELF | WatchMask::ONLYDIR;
            let in_it = match missing {
                Some(_) => WatchMask::CREATE | WatchMask::MOVED_TO,
                None => {
                    WatchMask::CLOSE_WRITE | WatchMask::MOVE | WatchMask::CREATE | WatchMask::DELETE
                }
            };
            if let Some(before) = self.watched.take() {
                // The kernel may have removed the watch already.
                let _ = self.events.watches().remove(before.descriptor);
            }
            match self.events.watches().add(&path, its_own | in_it) {
                // Loop again, because the missing directory may have been created meanwhile.
                Ok(descriptor) => self.watched = Some(Watched { descriptor, path, missing }),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("watch {}", path.display()));
                }
            }
        }
    }

    /// Waits for a change that may affect the files. Then waits until no change follows for
    /// [`QUIET`], because a program may truncate a file before it writes the new content.
    async fn next(&mut self) -> anyhow::Result<()> {
        while !self.concerns().await? {}
        let quiet = async {
            while let Ok(concerns) = timeout(QUIET, self.concerns()).await {
                concerns?;
            }
            Ok(())
        };
        timeout(MOST, quiet).await.unwrap_or(Ok(()))
    }

    /// Waits for the next event and returns whether it may affect the files.
    async fn concerns(&mut self) -> anyhow::Result<bool> {
        let event = self.events.next().await.context("inotify ended")?.context("read inotify")?;
        let is_lost = event.mask.contains(EventMask::Q_OVERFLOW);
        let Some(watched) = &self.watched else { return Ok(false) };
        if event.wd != watched.descriptor && !is_lost {
            return Ok(false);
        }
        let is_over = EventMask::IGNORED | EventMask::DELETE_SELF | EventMask::MOVE_SELF;
        if is_lost || event.mask.intersects(is_over) {
            if event.mask.contains(EventMask::MOVE_SELF) {
                // The watch would follow the directory to its new path, where its changes do not
                // matter.
                let _ = self.events.watches().remove(watched.descriptor.clone());
            }
            self.watched = None;
        } else if watched.missing.is_some() && event.name != watched.missing {
            return Ok(false);
        }
        self.watch()?;
        Ok(true)
    }
}

/// Returns a directory or its nearest existing ancestor, and the first path component that is
/// missing there.
fn nearest(directory: &Path) -> (PathBuf, Option<OsString>) {
    let mut missing = None;
    for above in directory.ancestors() {
        let above = if above == Path::new("") { Path::new(".") } else { above };
        if above.is_dir() {
            return (above.to_owned(), missing);
        }
        missing = above.file_name().map(OsString::from);
    }
    (PathBuf::from("/"), missing)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use nri::{Plugin as _, api};
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

    /// Returns whether a change is reported within 5 s.
    async fn is_told(changes: &mut Changes) -> bool {
        timeout(Duration::from_secs(5), changes.next()).await.is_ok_and(|change| change.is_ok())
    }

    #[tokio::test]
    async fn missing_directories_are_watched_for() {
        let root = tempfile::tempdir().expect("a directory");
        let directory = root.path().join("nri/conf.d");
        let mut changes =
            Changes::new(&[directory.join("a.conf"), directory.join("b.conf")]).expect("watched");
        // Other entries in an ancestor directory are ignored.
        fs::write(root.path().join("hosts"), "").expect("written");
        fs::create_dir(root.path().join("apt")).expect("made");
        assert!(timeout(QUIET, changes.next()).await.is_err());
        fs::create_dir(root.path().join("nri")).expect("made");
        assert!(is_told(&mut changes).await);
        fs::create_dir(&directory).expect("made");
        assert!(is_told(&mut changes).await);
        fs::write(directory.join("b.conf"), "{}").expect("written");
        assert!(is_told(&mut changes).await);
        // A directory tree that was created elsewhere and then moved here.
        fs::remove_dir_all(root.path().join("nri")).expect("removed");
        assert!(is_told(&mut changes).await);
        fs::create_dir_all(root.path().join("new/conf.d")).expect("made");
        fs::rename(root.path().join("new"), root.path().join("nri")).expect("moved");
        assert!(is_told(&mut changes).await);
        fs::write(directory.join("a.conf"), "{}").expect("written");
        assert!(is_told(&mut changes).await);
    }

    #[tokio::test]
    async fn a_restless_directory_delays_no_configuration() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut changes = Changes::new(&[directory.path().join("a.conf")]).expect("watched");
        let other = directory.path().join("other");
        let restless = async {
            loop {
                fs::write(&other, "").expect("written");
                tokio::time::sleep(QUIET / 4).await;
            }
        };
        tokio::select! {
            () = restless => {}
            change = timeout(2 * MOST, changes.next()) => assert!(change.is_ok_and(|change| change.is_ok())),
        }
    }

    #[test]
    fn comments_and_marks_alone_are_empty() {
        for text in ["", "\n", " \t\r\n", "# a: b", "---\n# a\n...\n", "\u{feff}\n"] {
            assert!(is_empty(text.as_bytes()), "{text:?}");
        }
        for text in ["{}", "null", "a: b", "# a\nb", "---\n{}\n", "\0"] {
            assert!(!is_empty(text.as_bytes()), "{text:?}");
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
        let (reconciler, reader) = tasks.reconciler(stub.runtime());
        let (supervisor, _ends) = Supervisor::new();
        supervisor.spawn_thread("records", || reader.run()).expect("a thread");
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
