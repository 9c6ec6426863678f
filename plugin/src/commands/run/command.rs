//! The command `plimsoll run`: finds the settings, starts the plugin and waits for its end.

use std::convert::Infallible;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use nri::{Identity, Launched, Stub, Successor};
use tokio::sync::Notify;
use tracing::{error, warn};

use crate::agent::configurator::OnConfig;
use crate::agent::node::Node;
use crate::agent::supervise::Supervisor;
use crate::commands::failure::Failure;
use crate::commands::input::load_config;
use crate::commands::run::arguments::Run;
use crate::commands::run::config::{wait_while_empty, watch_config};
use crate::commands::run::markers::{keep_brake, watch_restored};
use crate::commands::run::signals::{EarlySignals, End, Signals, ignore_signals};
use crate::config::{Config, DROP_INS};
use crate::report::Reports;
use crate::report::log::{self, Level};

/// Interval at which the plugin reads the marker file and the brake's state file, if inotify cannot
/// watch the files.
const MARKER_INTERVAL: Duration = Duration::from_secs(10);

/// The settings of this process that do not come from the configuration file.
struct ProcessSettings {
    /// The name by which the plugin registers.
    identity: Identity,
    /// The paths that the configuration file may have, in order of precedence.
    files: Vec<PathBuf>,
    /// Whether one of these files existed when the plugin started.
    had_file: bool,
    /// The level of log messages.
    level: Level,
}

impl Run {
    /// Runs the plugin until a signal stops the plugin, or the runtime that launched the plugin
    /// ends.
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let early = EarlySignals::record()
            .context("cannot install signal handlers")
            .map_err(Failure::Runtime)?;
        let (level, log_takes_last) = log::start(self.log_format);
        // Read the program's path now. If the file is replaced later, the kernel appends `
        // (deleted)` to the path.
        let program = std::env::current_exe()
            .context("cannot find the program's file")
            .map_err(Failure::Runtime)?;
        // SAFETY: the command has just begun, so no other code has taken the file descriptors that
        // the runtime passes.
        #[allow(unsafe_code)]
        let launched = unsafe { Launched::from_env() };
        let result = match launched {
            Ok(None) => self.plugin(None, early, level, &program),
            // When a runtime closes the connection to a launched plugin, it kills the launched
            // process and never launches the plugin again. Run the plugin in a second process,
            // which survives.
            Ok(Some(launched)) => match launched.detach() {
                Ok(launched) => self.plugin(Some(launched), early, level, &program),
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
            // Log the error in the format of the log. If the log cannot show the last message,
            // `main` prints the error to standard error, which leads to the journal.
            Err(failure) if log_takes_last => {
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
        early: EarlySignals,
        level: Level,
        program: &Path,
    ) -> Result<ExitCode, Failure> {
        let successor = launched.as_ref().map(Launched::successor).transpose();
        let successor = successor
            .context("cannot duplicate a file descriptor for a new version")
            .map_err(Failure::Runtime)?;
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
        let config = self.initial_config(launched.as_ref(), &files)?;
        let had_file = files.iter().any(|path| path.exists());
        level.set(config.log_level);

        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the asynchronous runtime")
            .map_err(Failure::Runtime)?;
        let signals = {
            let _context = runtime.enter();
            Signals::new(early)
                .context("cannot install signal handlers")
                .map_err(Failure::Runtime)?
        };
        let node = match Node::open(&self.host, config) {
            Ok(node) => node,
            Err(error) => {
                if let Some(launched) = launched {
                    runtime.block_on(launched.decline());
                }
                return Err(Failure::Runtime(error.into()));
            }
        };
        let settings = ProcessSettings { identity, files, had_file, level };
        match runtime.block_on(self.serve(node, settings, launched, signals, program))? {
            End::Stop => Ok(ExitCode::SUCCESS),
            End::Replace => Err(execute_new_program(program, successor)),
        }
    }

    /// Returns the configuration with which the plugin starts.
    fn initial_config(
        &self,
        launched: Option<&Launched>,
        files: &[PathBuf],
    ) -> Result<Config, Failure> {
        let load = |path: &Path| {
            wait_while_empty(path);
            load_config(path)
        };
        match (launched, &self.config) {
            (_, Some(path)) => load(path),
            // Start with the defaults, because the runtime sends the configuration over the
            // connection.
            (Some(launched), None) if launched.is_connected() => Ok(Config::default()),
            (_, None) => match files.iter().find(|path| path.exists()) {
                Some(path) => load(path),
                None => Ok(Config::default()),
            },
        }
    }

    /// Starts all tasks of the plugin, and waits until the plugin ends.
    async fn serve(
        self,
        node: Node,
        settings: ProcessSettings,
        launched: Option<Launched>,
        signals: Signals,
        program: &Path,
    ) -> Result<End, Failure> {
        let ProcessSettings { identity, files, had_file, level } = settings;
        let configured = Arc::new(Notify::new());
        let metrics_changed = Arc::new(Notify::new());
        let reload = Arc::new(Notify::new());
        let (containers, reports) = (node.containers().clone(), node.reports().clone());
        let on_config =
            on_config(level, reports.clone(), configured.clone(), metrics_changed.clone());
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
        let (guard, first_settings) = (tasks.guard(), containers.settings_changed());
        let started = supervisor
            .spawn_thread("guard", || guard.run_when_configured(first_settings))
            .and_then(|()| tasks.start(stub.runtime(), &supervisor));
        started.context("cannot start a thread").map_err(Failure::Runtime)?;
        let configurator = stub.plugin().configurator();
        let reloads = reload.clone();
        // The tasks that watch files have their own thread, because a read may block.
        let watch_files = move || async move {
            configured.notified().await;
            let config = watch_config(&files, had_file, &configurator, &containers, &reloads);
            let restored = async {
                let Err(error) = watch_restored(&self.host, &configurator).await else { return };
                warn!("'plimsoll restore' takes effect after some seconds only: {error:#}");
                loop {
                    tokio::time::sleep(MARKER_INTERVAL).await;
                    configurator.check_markers();
                }
            };
            let brake = keep_brake(&configurator, reports);
            // The task `config` never ends, so `join` never returns.
            let _: (Infallible, (), ()) = tokio::join!(config, restored, brake);
        };
        let started = supervisor.spawn_thread("configuration", watch_files);
        started.context("cannot start a thread").map_err(Failure::Runtime)?;
        tokio::select! {
            result = stub.run() => match result {
                Ok(()) => Ok(End::Stop),
                Err(nri::Error::Configure(refusal)) => Err(Failure::Usage(refusal.into())),
                Err(error) => Err(Failure::Runtime(error.into())),
            },
            end = ends.first() => Err(Failure::Runtime(end.into())),
            end = signals.wait_for_end(program, &reload) => Ok(end),
        }
    }
}

/// Returns the callback that the plugin calls for every new configuration.
fn on_config(
    level: Level,
    reports: Arc<Reports>,
    configured: Arc<Notify>,
    metrics_changed: Arc<Notify>,
) -> OnConfig {
    Box::new(move |config: &Config| {
        level.set(config.log_level);
        reports.configure(config);
        configured.notify_one();
        metrics_changed.notify_one();
    })
}

/// Replaces this process by the current content of the program file. Returns only after a failure.
fn execute_new_program(program: &Path, successor: Option<Successor>) -> Failure {
    let mut command = Command::new(program);
    match std::env::args_os().len() {
        // Pass the argument `run`. A program without arguments runs the plugin only if
        // NRI_PLUGIN_SOCKET is set, and the new program does not have this variable.
        0 | 1 => command.arg("run"),
        _ => command.args(std::env::args_os().skip(1)),
    };
    log::flush();
    ignore_signals();
    let error = match successor {
        Some(successor) => successor.exec(&mut command),
        None => command.exec(),
    };
    Failure::Runtime(
        anyhow::Error::new(error).context(format!("cannot start {}", program.display())),
    )
}

/// Returns the paths from which a runtime reads a plugin's configuration, in order of precedence.
/// Source: containerd/nri `pkg/adaptation/plugin.go`.
fn drop_ins(identity: &Identity) -> Vec<PathBuf> {
    let full = identity.to_string();
    // The plugin's name follows the two digits of the index and a dash.
    let name = full.get(3..).unwrap_or_default().to_owned();
    [full, name].map(|name| Path::new(DROP_INS).join(format!("{name}.conf"))).into()
}
