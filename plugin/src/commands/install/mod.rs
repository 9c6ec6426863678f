//! Installs the plugin on a node (`plimsoll install`) and removes it (`plimsoll uninstall`).
//! [`Facts`] collects the state of the node. [`Plan`] lists the necessary steps.
//! [`Plan::carry_out`] executes the steps and undoes them after a failure.
//!
//! The module never writes the operator's configuration files of the runtime. Where NRI is off, the
//! module adds a file that switches NRI on:
//!
//! - For CRI-O, a drop-in in its configuration directory.
//! - For a containerd whose configuration imports a directory, a file in that directory.
//! - For another containerd, a second configuration and a systemd drop-in that starts containerd
//!   with it. The second configuration imports the operator's configuration and then the file that
//!   switches NRI on.
//!
//! An imported file overrides the file that imports it, and a later import overrides an earlier
//! one. containerd 1.7 replaces the whole section of a plugin, but containerd 2.0 and newer merge
//! single keys.
//!
//! Sources: containerd 1.7 and 2.1 `cmd/containerd/server/config`, CRI-O `pkg/config`.

pub(crate) mod command;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use plimsoll_core::units::excerpt;
use rustix::process::{Pid, Signal, kill_process};

use crate::commands::doctor::runtime::{
    CONTAINERD, CRIO, Kind, Runtime, Settings, Version, containerd_config, start_command,
};
use crate::commands::doctor::{
    PACKAGE_UNIT_DIRECTORIES, PLUGINS, Program, Socket, below, holder, names,
};
use crate::commands::explain::wrap;
use crate::config::DROP_INS;
use crate::report::serve;
use crate::state::containers::{STAND_ASIDE, is_restored};
use crate::state::originals;

/// The plugin's shipped configuration file.
const CONFIG_TEXT: &[u8] = include_bytes!("../../../../deploy/90-plimsoll.conf");

/// The shipped systemd unit.
const UNIT_TEXT: &[u8] = include_bytes!("../../../../deploy/plimsoll.service");

const PROGRAM: &str = "/usr/local/bin/plimsoll";
const NAME: &str = "90-plimsoll";
const SERVICE: &str = "plimsoll";
const UNIT: &str = "/etc/systemd/system/plimsoll.service";
/// The symbolic link by which systemd starts the unit at boot.
const ENABLED: &str = "/etc/systemd/system/multi-user.target.wants/plimsoll.service";
/// The directory of the operator's drop-ins for the unit.
const UNIT_DROP_INS: &str = "/etc/systemd/system/plimsoll.service.d";

/// The CRI-O drop-in that switches NRI on. The later of two drop-ins by name wins, so the name
/// sorts after usual names such as `crio.conf` or `override.conf`.
const CRIO_SWITCH: &str = "/etc/crio/crio.conf.d/zz-plimsoll.conf";
const IMPORTED_SWITCH: &str = "zz-plimsoll.toml";
const CONTAINERD_CONFIG: &str = "/etc/containerd/plimsoll/config.toml";
const CONTAINERD_SWITCH: &str = "/etc/containerd/plimsoll/nri.toml";
const CONTAINERD_DROP_IN_NAME: &str = "zz-plimsoll.conf";
const CONTAINERD_DROP_IN: &str = "/etc/systemd/system/containerd.service.d/zz-plimsoll.conf";

/// Directories that may exist only for the plugin. An inner directory comes before its parent.
const DIRECTORIES: [&str; 8] = [
    "/etc/containerd/plimsoll",
    "/etc/systemd/system/containerd.service.d",
    UNIT_DROP_INS,
    "/etc/nri/conf.d",
    "/etc/nri",
    "/opt/nri/plugins",
    "/opt/nri",
    "/etc/crio/crio.conf.d",
];

/// Time limit for one command. A runtime restarts within seconds, or within about a minute on a
/// busy node.
const COMMAND_LIMIT: Duration = Duration::from_secs(90);

/// Time limit for `plimsoll restore`. Its own deadlines add up to 150 s: 30 s for the plugin and
/// 120 s for the values.
const RESTORE_LIMIT: Duration = Duration::from_secs(150);

/// Time limit for the effect of an action, such as a socket that listens.
const PATIENCE: Duration = Duration::from_secs(30);

/// The reason shown for [`Action::AwaitRuntime`].
const CONNECT: &str = "plugins connect there";

/// The reason shown for [`Action::AwaitSynchronized`].
const SYNCHRONIZED: &str = "from then on containers get their values";

/// The failure reported after the user has interrupted the program.
const INTERRUPTED: &str = "interrupted";

/// Poll interval while waiting.
const LOOK: Duration = Duration::from_millis(50);

/// The way the plugin is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// systemd, as a service that connects to the runtime.
    External,
    /// The runtime, from its plugin directory.
    Launched,
}

/// The reason why there is no plan.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(String);

/// The running process of the plugin.
#[derive(Clone, Debug)]
struct Process {
    id: i32,
    /// Path of its program file. The kernel appends ` (deleted)` once the file was replaced or
    /// removed.
    program: String,
    /// Whether systemd runs the process as the service. The path cannot show this, because the
    /// program of a DaemonSet may have the same path.
    is_service: bool,
}

/// The state of a node that the plans depend on.
#[derive(Debug)]
pub struct Facts {
    /// The runtime of the node.
    kind: &'static Kind,
    /// Name and version of the runtime.
    runtime: String,
    version: Option<Version>,
    settings: Settings,
    /// The reason why NRI is off; `None` where NRI is on.
    why_off: Option<String>,
    /// Whether a process listens at NRI's socket.
    is_served: bool,
    /// The command by which systemd starts containerd, without this module's drop-in.
    command: Option<String>,
    /// Content of each file that this module may write or remove, by path. An entry with empty
    /// content marks the state directory as present.
    files: BTreeMap<String, Vec<u8>>,
    /// The plugin's programs in the runtime's plugin directory. The running program comes first.
    launched: Vec<String>,
    /// Whether a package has installed the unit.
    is_packaged: bool,
    is_enabled: bool,
    /// Whether `plimsoll restore` was called.
    stands_aside: bool,
    process: Option<Process>,
    /// Whether the runtime has launched the process from its plugin directory.
    is_launched: bool,
    /// Content of the program to install.
    program: Vec<u8>,
    lock: String,
}

/// A single action of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Write a file, or replace it atomically.
    Write {
        /// Absolute path on the node.
        path: String,
        /// The new content.
        content: Vec<u8>,
        /// The permission bits.
        mode: u32,
    },
    /// Remove a file.
    Remove(String),
    /// Remove a directory and its content.
    RemoveAll(String),
    /// Remove a directory if it is empty.
    RemoveEmpty(String),
    /// Restore the original values of every cgroup by `plimsoll restore`.
    Restore,
    /// Call `systemctl`.
    Systemctl(Vec<String>),
    /// End the plugin's process with SIGTERM, if a process runs.
    End(String),
    /// Send SIGUSR2 to the plugin's process, so that the process executes the program that is now
    /// installed.
    Replace(String),
    /// Check that the runtime's configuration files have NRI on. The runtime is given by its unit,
    /// and by its version if known.
    CheckNri(&'static str, Option<Version>),
    /// Wait until the runtime listens at NRI's socket.
    AwaitRuntime,
    /// Wait until a process of this program holds the plugin's lock.
    AwaitPlugin(String),
    /// Wait until the plugin reports that it is synchronized with the runtime.
    AwaitSynchronized,
    /// Wait until no process holds the plugin's lock.
    AwaitNone,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write { path, .. } => write!(f, "write {}", excerpt(path)),
            Self::Remove(path) | Self::RemoveAll(path) => write!(f, "remove {}", excerpt(path)),
            Self::RemoveEmpty(path) => write!(f, "remove {} if it is empty", excerpt(path)),
            Self::Restore => f.write_str("give every container and cgroup back what it had"),
            Self::Systemctl(words) => write!(f, "systemctl {}", words.join(" ")),
            Self::End(program) => write!(f, "end {}", excerpt(program)),
            Self::Replace(program) => write!(f, "replace the running {}", excerpt(program)),
            Self::CheckNri(..) => {
                f.write_str("check that NRI is on in the runtime's configuration")
            }
            Self::AwaitRuntime => f.write_str("wait for the runtime's NRI socket"),
            Self::AwaitPlugin(program) => write!(f, "wait for {} to run", excerpt(program)),
            Self::AwaitSynchronized => {
                f.write_str("wait for the plugin to be synchronized with the runtime")
            }
            Self::AwaitNone => f.write_str("wait for the plugin to end"),
        }
    }
}

/// An action and the actions that undo it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The action.
    pub action: Action,
    /// The reason, shown to the user.
    pub why: String,
    /// The actions that undo the step, in this order. Files are not listed, because [`Act::act`]
    /// returns how to put them back.
    undo: Vec<Action>,
    /// Alternatives to execute once all steps are undone. The first one that succeeds ends the
    /// list.
    afterwards: Vec<Action>,
}

/// The steps of an installation or removal, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The steps; empty if nothing is to be done.
    pub steps: Vec<Step>,
    /// Notes for the user: each names something that stays unchanged, with the reason.
    pub notes: Vec<String>,
}

impl Plan {
    fn add(&mut self, action: Action, why: impl Into<String>) -> &mut Step {
        self.steps.push(Step { action, why: why.into(), undo: Vec::new(), afterwards: Vec::new() });
        self.steps.last_mut().expect("one was just added")
    }

    fn systemctl(&mut self, words: &[&str], why: impl Into<String>) -> &mut Step {
        self.add(systemctl(words), why)
    }

    /// Adds a `systemctl daemon-reload` for changed files of systemd. An undo changes the files
    /// again, so it reloads them too.
    fn reload(&mut self) {
        let step = self.systemctl(&["daemon-reload"], "systemd reads its files anew");
        step.afterwards = vec![systemctl(&["daemon-reload"])];
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Step { action, why, .. } in &self.steps {
            wrap(f, 2, &action.to_string())?;
            wrap(f, 6, why)?;
        }
        for note in &self.notes {
            wrap(f, 2, &format!("note: {note}"))?;
        }
        Ok(())
    }
}

/// Returns whether the runtime launches this program of the plugin. The runtime skips file names
/// without an index.
fn has_index(program: &str) -> bool {
    program.ends_with("-plimsoll")
}

fn systemctl(words: &[&str]) -> Action {
    Action::Systemctl(words.iter().map(|word| (*word).to_owned()).collect())
}

impl Facts {
    /// Collects the state of the node whose file system is at `host`. `socket` is the runtime's NRI
    /// socket, and `program` is the content of the program to install.
    ///
    /// # Errors
    ///
    /// When systemd does not run or not exactly one runtime runs. When a file cannot be read or
    /// replaced.
    pub fn collect(host: &Path, socket: &Path, program: Vec<u8>) -> Result<Self, Refusal> {
        if !host.join("run/systemd/system").is_dir() {
            return Err(Refusal(
                "expected systemd to run here: /run/systemd/system is not there".to_owned(),
            ));
        }
        let mut runtimes = Runtime::all(host);
        runtimes.retain(|runtime| runtime.socket != Socket::Absent);
        if runtimes.len() > 1 && runtimes.iter().any(|runtime| runtime.socket == Socket::Listens) {
            runtimes.retain(|runtime| runtime.socket == Socket::Listens);
        }
        // Where containerd and CRI-O both run, skip a containerd whose CRI plugin is disabled:
        // another program such as Docker uses it.
        if runtimes.len() > 1 {
            runtimes.retain(|runtime| !runtime.settings.is_without_cri);
        }
        let [runtime] = &mut runtimes[..] else {
            let found: Vec<_> = runtimes.iter().map(|runtime| runtime.kind.name).collect();
            let found = if found.is_empty() { "neither".to_owned() } else { found.join(" and ") };
            return Err(Refusal(format!(
                "expected containerd or CRI-O to run here, found {found}"
            )));
        };
        let settings = std::mem::take(&mut runtime.settings);
        let plugins = settings.plugin_path.clone().unwrap_or_else(|| PLUGINS.to_owned());
        let launched: Vec<_> =
            Program::all(host, &plugins).into_iter().filter(Program::is_ours).collect();
        let mut launched: Vec<_> = launched.into_iter().map(|program| program.path).collect();
        let version = runtime.version;
        let lock = socket.with_file_name("plimsoll.lock");
        let process = process(host, socket);
        let runs = |path: &String| process.as_ref().is_some_and(|process| process.runs(host, path));
        launched.sort_by_key(|path| !runs(path));
        let is_launched = launched.iter().any(|path| has_index(path) && runs(path));
        let mut facts = Self {
            kind: runtime.kind,
            runtime: version.map_or(runtime.kind.name.to_owned(), |version| {
                format!("{} {version}", runtime.kind.name)
            }),
            version,
            why_off: None,
            is_served: Socket::connect(socket) == Socket::Listens,
            command: start_command(host, "containerd.service", CONTAINERD_DROP_IN_NAME)
                .ok()
                .flatten(),
            files: BTreeMap::new(),
            is_packaged: PACKAGE_UNIT_DIRECTORIES
                .iter()
                .any(|unit| host.join(unit).join("plimsoll.service").exists()),
            is_enabled: host.join(&ENABLED[1..]).symlink_metadata().is_ok(),
            stands_aside: is_restored(host).unwrap_or(true),
            is_launched: is_launched && process.as_ref().is_some_and(|process| !process.is_service),
            process,
            program,
            lock: format!("/{}", lock.strip_prefix(host).unwrap_or(&lock).display())
                .replace("//", "/"),
            launched,
            settings,
        };
        let takes_connections = facts.takes_connections();
        facts.why_off = {
            // The configuration files count more than the socket: the runtime may serve the socket
            // by an older configuration.
            runtime.settings = std::mem::take(&mut facts.settings);
            let is_told = runtime.settings.is_off.is_some() || !takes_connections;
            let unserved = || {
                format!(
                    "off in {}: nobody listens at its socket, and no file has it on",
                    facts.runtime
                )
            };
            let why = runtime.why_off().map(|off| off.to_string());
            let why = why.or_else(|| (!is_told && !facts.is_served).then(unserved));
            facts.settings = std::mem::take(&mut runtime.settings);
            why
        };
        let mut paths =
            vec![PROGRAM.to_owned(), UNIT.to_owned(), CRIO_SWITCH.to_owned(), facts.lock.clone()];
        paths.extend([CONTAINERD_CONFIG, CONTAINERD_SWITCH, CONTAINERD_DROP_IN].map(str::to_owned));
        paths.extend(facts.imported_switch());
        paths.extend(facts.launched.clone());
        paths.push(facts.launched_program());
        paths.extend(facts.configurations());
        let drop_ins = names(&below(host, UNIT_DROP_INS)).into_iter();
        paths.extend(drop_ins.map(|name| format!("{UNIT_DROP_INS}/{name}")));
        for path in paths {
            let inside = below(host, &path);
            // The plan can write and put back only regular files. A masked unit is a symbolic link
            // to /dev/null.
            if inside.symlink_metadata().is_ok_and(|metadata| !metadata.is_file()) {
                let advice = if path == UNIT {
                    ", by systemctl unmask plimsoll if it is masked"
                } else {
                    ""
                };
                let path = excerpt(&path);
                return Err(Refusal(format!(
                    "{path}: expected a regular file, or none: remove what is there{advice}"
                )));
            }
            match fs::read(inside) {
                Ok(content) => {
                    facts.files.insert(path, content);
                }
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                    ) => {}
                Err(error) => {
                    return Err(Refusal(format!("cannot read {}: {error}", excerpt(&path))));
                }
            }
        }
        let state = format!("/{}", originals::DIRECTORY);
        if below(host, &state).is_dir() {
            facts.files.insert(state, Vec::new());
        }
        Ok(facts)
    }

    /// The runtime's name and version.
    pub fn runtime(&self) -> &str {
        &self.runtime
    }

    /// The name of the runtime's unit.
    fn service(&self) -> &'static str {
        self.kind.program
    }

    /// The path of the program that the runtime launches: the existing program, or else the default
    /// name.
    fn launched_program(&self) -> String {
        let directory =
            self.settings.plugin_path.as_deref().unwrap_or(PLUGINS).trim_end_matches('/');
        self.launched
            .iter()
            .find(|path| has_index(path))
            .cloned()
            .unwrap_or_else(|| format!("{directory}/{NAME}"))
    }

    /// The paths that the plugin's configuration may have, in order of precedence.
    fn configurations(&self) -> Vec<String> {
        let configured = self.settings.config_path.iter().map(String::as_str).chain([DROP_INS]);
        let files = configured.flat_map(|directory| {
            let directory = directory.trim_end_matches('/').to_owned();
            [NAME, SERVICE].map(|name| format!("{directory}/{name}.conf"))
        });
        files.collect()
    }

    /// The path of the file that switches NRI on in a directory that containerd imports. `None` if
    /// containerd's configuration imports no directory.
    fn imported_switch(&self) -> Option<String> {
        let directory =
            self.settings.imports.iter().find_map(|import| import.strip_suffix("/*.toml"))?;
        let directory = match directory.strip_prefix('/') {
            Some(_) => directory.to_owned(),
            None => format!(
                "{}/{directory}",
                self.settings.main.rsplit_once('/').map_or("", |(parent, _)| parent)
            ),
        };
        (!directory.contains('*')).then(|| format!("{directory}/{IMPORTED_SWITCH}"))
    }

    /// Returns whether plugins can connect to the runtime at the default socket.
    fn takes_connections(&self) -> bool {
        !self.settings.takes_no_connections && self.foreign_socket().is_none()
    }

    /// The configured NRI socket, if it differs from the default socket.
    fn foreign_socket(&self) -> Option<&str> {
        // /var/run is a symbolic link to /run.
        let of = |path: &str| path.trim_start_matches("/var").to_owned();
        self.settings.socket_path.as_deref().filter(|path| of(path) != of(nri::DEFAULT_SOCKET))
    }

    /// Returns whether a launched plugin can execute a new program in the same process. The new
    /// program connects to the default socket and reads the default configuration directory, so the
    /// runtime must use both.
    fn may_be_replaced(&self) -> bool {
        let is_default = |path: &str| path.trim_end_matches('/') == DROP_INS;
        self.takes_connections() && self.settings.config_path.as_deref().is_none_or(is_default)
    }

    fn is_external(&self) -> bool {
        self.process.as_ref().is_some_and(|process| process.is_service)
    }

    /// Refuses if the running plugin is neither the service nor launched by the runtime, such as a
    /// plugin of a DaemonSet.
    fn check_process(&self) -> Result<(), Refusal> {
        match &self.process {
            Some(Process { id, program, .. }) if !self.is_external() && !self.is_launched => {
                Err(Refusal(format!(
                    "process {id} is the plugin, from {}: expected none but what is installed; stop it, or remove the DaemonSet that \
                 runs it",
                    excerpt(program)
                )))
            }
            _ => Ok(()),
        }
    }

    /// Refuses if plugins cannot connect to the runtime, even with NRI on.
    fn check_connections(&self, advice: &str) -> Result<(), Refusal> {
        if self.settings.takes_no_connections {
            return Err(Refusal(format!(
                "{} takes no connections of plugins (disable_connections): {advice}",
                self.runtime
            )));
        }
        match self.foreign_socket() {
            Some(path) => Err(Refusal(format!(
                "NRI's socket is configured to be {}, expected {}: {advice}",
                excerpt(path),
                nri::DEFAULT_SOCKET
            ))),
            None => Ok(()),
        }
    }

    /// Returns whether a package provides the program and the service, and therefore upgrades them.
    /// Returns false if this module's unit overrides the package's unit.
    fn uses_package(&self) -> bool {
        let unit =
            self.files.get(UNIT).map(|unit| String::from_utf8_lossy(unit)).unwrap_or_default();
        self.is_packaged
            && !unit.lines().any(|line| line.starts_with(&format!("ExecStart={PROGRAM} ")))
    }

    /// Returns the plan of `plimsoll install`. The plan is empty if everything is installed.
    ///
    /// # Errors
    ///
    /// When the running plugin was not installed by this module, or the runtime does not allow the
    /// installation.
    pub fn plan(&self, mode: Mode) -> Result<Plan, Refusal> {
        let mut plan = Plan::default();
        self.check_process()?;
        if mode == Mode::External {
            self.check_connections("use --mode launched, or change that")?;
        }
        let launched = self.launched_program();
        let is_new = |path: &str| self.files.get(path) != Some(&self.program);
        if self.uses_package() {
            plan.notes.push(
                "the program and the service are a package's: upgrade them by the package manager"
                    .to_owned(),
            );
        } else if is_new(PROGRAM) {
            let why = match self.files.contains_key(PROGRAM) {
                true => "the program, in another version than it is there",
                false => "the program",
            };
            plan.add(self.write(PROGRAM, &self.program, 0o755), why);
        }
        match self.configurations().iter().find(|path| self.files.contains_key(*path)) {
            Some(path) if self.files[path] != CONFIG_TEXT => {
                plan.notes.push(format!("{} stays as it is", excerpt(path)))
            }
            Some(_) => {}
            None => {
                let directory = match mode {
                    Mode::Launched => self.settings.config_path.as_deref().unwrap_or(DROP_INS),
                    Mode::External => DROP_INS,
                };
                let path = format!("{}/{NAME}.conf", directory.trim_end_matches('/'));
                plan.add(
                    self.write(&path, CONFIG_TEXT, 0o644),
                    "the plugin's configuration, with the defaults",
                );
            }
        }
        let mut reload = false;
        match mode {
            Mode::External => {
                if !self.uses_package()
                    && self.files.get(UNIT).map(Vec::as_slice) != Some(UNIT_TEXT)
                {
                    let why = match self.files.contains_key(UNIT) {
                        true => {
                            "the service, in place of the one there; settings of your own belong into a drop-in"
                        }
                        false => "the service",
                    };
                    plan.add(self.write(UNIT, UNIT_TEXT, 0o644), why);
                    reload = true;
                }
                for path in &self.launched {
                    plan.add(
                        Action::Remove(path.clone()),
                        "two of them would be in each other's way",
                    );
                }
            }
            Mode::Launched => {
                self.disable(&mut plan, "two of them would be in each other's way");
                if self.files.contains_key(UNIT) && !self.uses_package() {
                    plan.add(Action::Remove(UNIT.to_owned()), "the runtime launches the plugin");
                    reload = true;
                }
                for path in self.launched.iter().filter(|path| **path != launched) {
                    plan.add(
                        Action::Remove(path.clone()),
                        "two of them would be in each other's way",
                    );
                }
                if is_new(&launched) {
                    plan.add(
                        self.write(&launched, &self.program, 0o755),
                        "the program, where the runtime launches it",
                    );
                }
            }
        }
        reload |= self.switch_on_if_off(&mut plan)?;
        if reload {
            plan.reload();
        }
        let replaced = plan.steps.iter().any(|step| matches!(&step.action, Action::Write { path, .. } if path == PROGRAM || path == UNIT || *path == launched));
        match mode {
            Mode::External => {
                if let Some(process) = self.process.as_ref().filter(|_| self.is_launched) {
                    // A runtime launches a plugin only at its own start, so an undo restarts the
                    // runtime.
                    let step = plan.add(
                        Action::End(process.file().to_owned()),
                        "the service takes over; values stay meanwhile",
                    );
                    step.afterwards = vec![systemctl(&["restart", self.service()])];
                }
                self.have_it_served(&mut plan);
                if !self.is_enabled {
                    let step = plan.systemctl(&["enable", SERVICE], "it is started with the node");
                    step.undo = vec![systemctl(&["disable", SERVICE])];
                }
                let is_current =
                    self.process.as_ref().is_some_and(|process| !process.is_replaced());
                if !self.is_external() {
                    let step = plan.systemctl(
                        &["start", SERVICE],
                        "until it is synchronized with the runtime",
                    );
                    step.undo = self.undo_start(systemctl(&["stop", SERVICE]));
                } else if replaced || !is_current {
                    let why = "one reconnection; values stay meanwhile, and who is created then gets them after it";
                    let step = plan.systemctl(&["restart", SERVICE], why);
                    step.afterwards = vec![systemctl(&["restart", "--no-block", SERVICE])];
                }
            }
            Mode::Launched => {
                let is_renewed =
                    replaced || self.process.as_ref().is_some_and(Process::is_replaced);
                let is_missed = self.takes_connections() && !self.is_served;
                if self.why_off.is_some()
                    || is_missed
                    || !self.is_launched
                    || is_renewed && !self.may_be_replaced()
                {
                    let step = self.restart_runtime(
                        &mut plan,
                        "it launches plugins only at its start; containers go on",
                    );
                    step.undo = self.undo_start(Action::End(launched.clone()));
                    if self.takes_connections() {
                        plan.add(Action::AwaitRuntime, CONNECT);
                    }
                    plan.add(Action::AwaitPlugin(launched), "the runtime launches it");
                    plan.add(Action::AwaitSynchronized, SYNCHRONIZED);
                } else if is_renewed {
                    let why = "one reconnection; values stay meanwhile, and who is created then gets them after it";
                    let step = plan.add(Action::Replace(launched.clone()), why);
                    // Restart the runtime if the new program has ended at its start, so that no
                    // process is left to replace.
                    let restart = systemctl(&["restart", self.service()]);
                    step.afterwards = vec![Action::Replace(launched.clone()), restart];
                    plan.add(
                        Action::AwaitPlugin(launched),
                        "the new version goes on in the same process",
                    );
                    plan.add(Action::AwaitSynchronized, SYNCHRONIZED);
                }
            }
        }
        Ok(plan)
    }

    /// Returns the plan of `plimsoll install --nri-only`, which only switches NRI on. The plan is
    /// empty if NRI is on and its socket is served.
    ///
    /// # Errors
    ///
    /// When plugins cannot connect to the runtime, or NRI cannot be switched on.
    pub fn plan_nri(&self) -> Result<Plan, Refusal> {
        let mut plan = Plan::default();
        self.check_connections("change that, or let the runtime launch the plugin")?;
        if self.switch_on_if_off(&mut plan)? {
            plan.reload();
        }
        self.have_it_served(&mut plan);
        Ok(plan)
    }

    /// Adds the steps that disable and stop the service.
    fn disable(&self, plan: &mut Plan, why: &str) {
        if self.is_enabled
            && !self.is_packaged
            && !self.files.contains_key(UNIT)
            && !self.is_external()
        {
            // `systemctl disable` fails for a unit that does not exist.
            plan.add(
                Action::Remove(ENABLED.to_owned()),
                "left by a package that was removed; its service is gone",
            );
            return;
        }
        if self.is_enabled || self.is_external() {
            let step = plan.systemctl(&["disable", "--now", SERVICE], why);
            step.undo =
                self.is_enabled.then(|| systemctl(&["enable", SERVICE])).into_iter().collect();
            let start = self.is_external().then(|| systemctl(&["start", "--no-block", SERVICE]));
            step.afterwards = start.into_iter().collect();
        }
    }

    /// Adds a restart of the runtime. An undo restarts the runtime once more.
    fn restart_runtime<'p>(&self, plan: &'p mut Plan, why: &str) -> &'p mut Step {
        let step = plan.systemctl(&["restart", self.service()], why);
        step.afterwards = vec![systemctl(&["restart", self.service()])];
        step
    }

    /// Adds a restart of the runtime if plugins cannot connect to its NRI socket yet.
    fn have_it_served(&self, plan: &mut Plan) {
        let why = match &self.why_off {
            Some(_) => "it reads its configuration at its start; containers go on",
            None if self.is_served => return,
            None => {
                "NRI is on in its configuration, and nobody listens at its socket; containers go on"
            }
        };
        self.restart_runtime(plan, why);
        plan.add(Action::AwaitRuntime, CONNECT);
    }

    /// Adds the steps that switch NRI on and check it, if NRI is off. Returns whether systemd has
    /// to reload its files.
    fn switch_on_if_off(&self, plan: &mut Plan) -> Result<bool, Refusal> {
        let Some(why) = &self.why_off else { return Ok(false) };
        let reload = self.switch_on(plan, why)?;
        plan.add(
            Action::CheckNri(self.service(), self.version),
            "a file that is read later may have it off",
        );
        Ok(reload)
    }

    /// Returns the actions that undo a start of the plugin. If the plugin had no process and no
    /// state before, they also restore all values and remove the state.
    fn undo_start(&self, end: Action) -> Vec<Action> {
        let state = format!("/{}", originals::DIRECTORY);
        if self.process.is_some() || self.files.contains_key(&state) {
            return vec![end];
        }
        vec![
            Action::Restore,
            end,
            Action::AwaitNone,
            Action::RemoveAll(state),
            Action::Remove(self.lock.clone()),
        ]
    }

    fn write(&self, path: &str, content: &[u8], mode: u32) -> Action {
        Action::Write { path: path.to_owned(), content: content.to_owned(), mode }
    }

    /// Adds the files that switch NRI on. Returns whether systemd has to reload its files.
    fn switch_on(&self, plan: &mut Plan, why: &str) -> Result<bool, Refusal> {
        let settings = &self.settings;
        if why.ends_with("has no NRI") {
            return Err(Refusal(format!(
                "{why}: upgrade it to {} or newer, and call this again",
                self.kind.on_from
            )));
        }
        if !settings.problems.is_empty() || !settings.unread.is_empty() {
            let problems = [&settings.problems[..], &settings.unread].concat().join("; ");
            return Err(Refusal(format!(
                "NRI is {why}, and not all of the configuration is understood: {problems}"
            )));
        }
        let header = "# Put here by 'plimsoll install', taken away by 'plimsoll uninstall'.\n";
        if self.kind.name != CONTAINERD.name {
            let text = format!("{header}[crio.nri]\nenable_nri = true\n");
            plan.add(self.write(CRIO_SWITCH, text.as_bytes(), 0o644), format!("NRI is {why}"));
            return Ok(false);
        }
        if why.contains("disabled_plugins") {
            return Err(Refusal(format!(
                "NRI is {why}, which no other file can take back: take it out, and call this again"
            )));
        }
        // The file format version. Without any configuration file, the new files choose version 2.
        // A file that names no version has version 1.
        let form = match (settings.form, settings.files) {
            (Some(form), _) => form,
            (None, 0) => 2,
            (None, _) => 1,
        };
        if form < 2 {
            return Err(Refusal(format!(
                "NRI is {why}, and {} has no 'version = 2' or newer, which it takes: 'containerd config migrate' tells what it is then",
                excerpt(&settings.main)
            )));
        }
        // In containerd 1.7 this section replaces the earlier ones, so repeat the operator's other
        // keys.
        let mut section = settings.section.clone();
        section.insert(CONTAINERD.switch.0.to_owned(), toml::Value::Boolean(false));
        let plugins = toml::Table::from_iter([(
            "io.containerd.nri.v1.nri".to_owned(),
            toml::Value::Table(section),
        )]);
        let version = ("version".to_owned(), toml::Value::Integer(form));
        let table = toml::Table::from_iter([
            version.clone(),
            ("plugins".to_owned(), toml::Value::Table(plugins)),
        ]);
        let text = |table: &toml::Table| Ok(format!("{header}{table}").into_bytes());
        if let Some(path) = self.imported_switch() {
            plan.add(
                self.write(&path, &text(&table)?, 0o644),
                format!("NRI is {why}; {} imports this", excerpt(&settings.main)),
            );
            return Ok(false);
        }
        let Some(command) = &self.command else {
            return Err(Refusal(format!(
                "NRI is {why}, and its configuration imports no directory: expected a containerd.service that could start it with \
                 another one"
            )));
        };
        let (operators, others) = containerd_config(command).map_err(Refusal)?;
        // containerd fails if an imported file does not exist, but a pattern may match no file yet.
        // Only an import that contains `*` is a pattern, so `.tom[*l]` stands for `.toml`.
        let operators_import = match settings.files {
            0 => operators.strip_suffix(".toml").map(|stem| format!("{stem}.tom[*l]")),
            _ => Some(operators.clone()),
        };
        let imports = operators_import.into_iter().chain([CONTAINERD_SWITCH.to_owned()]);
        let imports = imports.map(toml::Value::String).collect();
        let config =
            toml::Table::from_iter([version, ("imports".to_owned(), toml::Value::Array(imports))]);
        plan.add(self.write(CONTAINERD_SWITCH, &text(&table)?, 0o644), format!("NRI is {why}"));
        let operators_file = excerpt(&operators);
        let why = match settings.files {
            0 => format!(
                "takes over all of {operators_file} if that comes, with 'version = {form}', and then the switch"
            ),
            _ => format!(
                "takes over all of {operators_file}, which imports no directory, and then the switch"
            ),
        };
        plan.add(self.write(CONTAINERD_CONFIG, &text(&config)?, 0o644), why);
        let drop_in = format!(
            "{header}[Service]\nExecStart=\nExecStart={others} --config {CONTAINERD_CONFIG}\n"
        );
        let why = format!("starts containerd with that; {} stays as it is", excerpt(&operators));
        plan.add(self.write(CONTAINERD_DROP_IN, drop_in.as_bytes(), 0o644), why);
        Ok(true)
    }

    /// Returns the plan of `plimsoll uninstall`. The plan is empty if the plugin is not installed.
    ///
    /// # Errors
    ///
    /// When the running plugin is neither the service nor launched by the runtime.
    pub fn removal(&self) -> Result<Plan, Refusal> {
        let state = format!("/{}", originals::DIRECTORY);
        let there = |path: &str| self.files.contains_key(path);
        self.check_process()?;
        let mut plan = Plan::default();
        if self.is_packaged {
            plan.notes.push(
                "what came with a package stays, for the package manager to remove, and so do settings of your own"
                    .to_owned(),
            );
        }
        let step = plan
            .add(Action::Restore, "as by plimsoll restore; where that fails, nothing else is done");
        if !self.stands_aside {
            step.undo = vec![Action::Remove(format!("/{STAND_ASIDE}"))];
            step.undo.extend((!there(&state)).then(|| Action::RemoveEmpty(state.clone())));
        }
        self.disable(&mut plan, "it ends, and is not started with the node any more");
        for path in &self.launched {
            plan.add(Action::Remove(path.clone()), "the program, where the runtime launches it");
        }
        if let Some(process) = self.process.as_ref().filter(|_| !self.is_external()) {
            let step = plan.add(
                Action::End(process.file().to_owned()),
                "it ends; the runtime goes on without it",
            );
            step.afterwards = vec![systemctl(&["restart", self.service()])];
            plan.add(Action::AwaitNone, "what it keeps is removed");
        }
        let remove = |plan: &mut Plan, path: &str, why: &str| {
            if there(path) {
                plan.add(Action::Remove(path.to_owned()), why);
            }
        };
        let has_unit = !self.uses_package() && there(UNIT);
        if !self.uses_package() {
            remove(&mut plan, UNIT, "the service");
            remove(&mut plan, PROGRAM, "the program");
        }
        let is_installed = |_: &String| !self.is_packaged;
        let drop_ins = self.files.keys().filter(|path| path.starts_with(UNIT_DROP_INS)).cloned();
        let drop_ins: Vec<_> = drop_ins.filter(is_installed).collect();
        for path in &drop_ins {
            remove(&mut plan, path, "settings of your own for the service");
        }
        for path in self.configurations().into_iter().filter(is_installed) {
            let why = match self.files.get(&path).is_some_and(|content| content != CONFIG_TEXT) {
                true => {
                    "the plugin's configuration, with what was changed in it: keep a copy if you want it back"
                }
                false => "the plugin's configuration",
            };
            remove(&mut plan, &path, why);
        }
        let containerd = [CONTAINERD_DROP_IN, CONTAINERD_CONFIG, CONTAINERD_SWITCH]
            .into_iter()
            .map(str::to_owned);
        let switches: Vec<_> =
            containerd.chain([CRIO_SWITCH.to_owned()]).chain(self.imported_switch()).collect();
        for path in &switches {
            remove(&mut plan, path, "what switches NRI on");
        }
        if has_unit || there(CONTAINERD_DROP_IN) || !drop_ins.is_empty() {
            plan.reload();
        }
        if switches.iter().any(|path| there(path)) {
            self.restart_runtime(&mut plan, "NRI is off again as it was; containers go on");
        }
        remove(&mut plan, &self.lock, "the lock of the only instance");
        if plan.steps.len() == 1 && !there(&state) {
            plan.steps.clear();
            return Ok(plan);
        }
        let imported = self.imported_switch().filter(|path| there(path));
        let imported = imported.iter().filter_map(|path| Some(path.rsplit_once('/')?.0));
        for path in imported.chain(DIRECTORIES) {
            plan.add(Action::RemoveEmpty(path.to_owned()), "nobody else has anything there");
        }
        // The state comes last, because an undo cannot put it back.
        plan.add(
            Action::RemoveAll(state),
            "what cgroups held before, and what it knew of containers",
        );
        Ok(plan)
    }
}

impl Process {
    /// The path of the program file, without ` (deleted)`.
    fn file(&self) -> &str {
        self.program.strip_suffix(" (deleted)").unwrap_or(&self.program)
    }

    fn is_replaced(&self) -> bool {
        self.file() != self.program
    }

    /// Returns whether the process runs this program of the node. The kernel reports the path with
    /// symbolic links resolved, and a directory such as /opt may be a symbolic link.
    fn runs(&self, host: &Path, program: &str) -> bool {
        let path = below(host, program);
        let directory = path.parent().and_then(|directory| directory.canonicalize().ok());
        let inside = directory.zip(host.canonicalize().ok()).and_then(|(directory, host)| {
            let inside = Path::new("/").join(directory.strip_prefix(host).ok()?);
            Some(inside.join(path.file_name()?))
        });
        self.file() == program || inside.is_some_and(|inside| inside.as_os_str() == self.file())
    }
}

/// Returns the process that holds the plugin's lock.
fn process(host: &Path, socket: &Path) -> Option<Process> {
    let id = holder(host, socket)??;
    let directory = host.join("proc").join(&id);
    let program = fs::read_link(directory.join("exe")).ok()?.to_string_lossy().into_owned();
    let cgroups = fs::read_to_string(directory.join("cgroup")).ok()?;
    let is_service = cgroups.lines().any(|cgroup| cgroup.ends_with(&format!("/{SERVICE}.service")));
    Some(Process { id: id.parse().ok()?, program, is_service })
}

/// Executes actions. The implementation is [`Hands`]; tests have others.
pub trait Act {
    /// Executes an action. Returns how to put back the files that the action has changed, in the
    /// order of the changes.
    ///
    /// # Errors
    ///
    /// When the action fails, with a message for the user. A failed action puts back the files that
    /// it has changed.
    fn act(&mut self, action: &Action) -> Result<Vec<PutBack>, String>;

    /// Puts one file, link or directory back.
    ///
    /// # Errors
    ///
    /// When it cannot be put back, with a message for the user.
    fn put_back(&mut self, what: PutBack) -> Result<(), String>;

    /// Returns whether the user has interrupted the program.
    fn is_interrupted(&self) -> bool {
        false
    }

    /// Begins the undo. The user cannot interrupt it.
    fn turn_back(&mut self) {}
}

/// The earlier state of a path.
#[derive(Clone, Debug)]
pub enum PutBack {
    /// A file with its content and permission bits.
    File(PathBuf, Vec<u8>, u32),
    /// A symbolic link and its target.
    Link(PathBuf, PathBuf),
    /// No file.
    NoFile(PathBuf),
    /// No directory.
    NoDirectory(PathBuf),
    /// A directory.
    Directory(PathBuf),
}

/// The failure of a plan and the result of its undo.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}: {why}; {}", if left.is_empty() { "all before it was undone".to_owned() } else { format!("of what was before it, this could not be undone: {}", left.join("; ")) })]
pub struct Failed {
    step: String,
    why: String,
    /// Messages about actions that could not be undone.
    left: Vec<String>,
}

impl Plan {
    /// Executes the plan and calls `tell` before each step. Undoes all steps when a step fails or
    /// the user interrupts.
    ///
    /// # Errors
    ///
    /// When a step fails or the user interrupts the program.
    pub fn carry_out(
        &self,
        hands: &mut impl Act,
        mut tell: impl FnMut(&Step),
    ) -> Result<(), Failed> {
        let mut done: Vec<(&Step, Vec<PutBack>)> = Vec::new();
        for step in &self.steps {
            if hands.is_interrupted() {
                let left = undo(done, hands);
                return Err(Failed {
                    step: step.action.to_string(),
                    why: INTERRUPTED.to_owned(),
                    left,
                });
            }
            tell(step);
            match hands.act(&step.action) {
                Ok(before) => done.push((step, before)),
                Err(why) => {
                    // A failed command may have taken effect in part, so undo this step as well.
                    done.push((step, Vec::new()));
                    let left = undo(done, hands);
                    return Err(Failed { step: step.action.to_string(), why, left });
                }
            }
        }
        Ok(())
    }
}

/// Undoes all steps. Returns messages about actions that could not be undone.
fn undo(done: Vec<(&Step, Vec<PutBack>)>, hands: &mut impl Act) -> Vec<String> {
    hands.turn_back();
    let mut left = Vec::new();
    let mut afterwards = Vec::new();
    for (step, before) in done.into_iter().rev() {
        for before in before.into_iter().rev() {
            left.extend(hands.put_back(before).err());
        }
        let mut has_failed = false;
        for undo in &step.undo {
            // Keep the state after a failure: it lists the values that are still to be restored,
            // and a plugin that still runs needs it.
            let result = match undo {
                Action::Remove(_) | Action::RemoveAll(_) if has_failed => {
                    Err("it is still needed".to_owned())
                }
                _ => hands.act(undo).map(drop),
            };
            if let Err(why) = result {
                has_failed = true;
                left.push(format!("{undo}: {why}"));
            }
        }
        afterwards.push(&step.afterwards);
    }
    // In the order of the steps.
    for actions in afterwards.into_iter().rev() {
        let mut failed = Vec::new();
        for action in actions {
            match hands.act(action) {
                Ok(_) => {
                    failed.clear();
                    break;
                }
                Err(why) => failed.push(format!("{action}: {why}")),
            }
        }
        left.extend(failed);
    }
    left
}

/// Executes actions on a node's file system, and on the processes and units of this machine.
#[derive(Debug)]
pub struct Hands {
    host: PathBuf,
    socket: PathBuf,
    /// Set when the user interrupts the program.
    interrupted: Arc<AtomicBool>,
    turns_back: bool,
}

impl Hands {
    /// Returns an executor for the node whose file system is at `host`, with the runtime's NRI
    /// socket.
    pub fn new(host: &Path, socket: &Path) -> Self {
        Self {
            host: host.to_owned(),
            socket: socket.to_owned(),
            interrupted: Arc::default(),
            turns_back: false,
        }
    }

    /// Returns the flag that a signal handler sets to interrupt the plan.
    pub fn interrupted(&self) -> Arc<AtomicBool> {
        self.interrupted.clone()
    }

    /// Waits until `look` returns a value, for at most [`PATIENCE`]. `expected` names the condition
    /// in the error.
    fn wait(&self, expected: &str, look: impl FnMut() -> Option<()>) -> Result<(), String> {
        match self.until(PATIENCE, look) {
            Some(()) => Ok(()),
            None if self.is_interrupted() => Err(INTERRUPTED.to_owned()),
            None => Err(format!("expected {expected} within {} s", PATIENCE.as_secs())),
        }
    }

    /// Polls `look` until it returns a value. Returns `None` after `limit` or when the user
    /// interrupts.
    fn until<T>(&self, limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
        let began = Instant::now();
        loop {
            match look() {
                None if began.elapsed() < limit && !self.is_interrupted() => thread::sleep(LOOK),
                found => return found,
            }
        }
    }

    /// Runs a command and waits for its end, for at most `limit`. The command inherits this
    /// process's output.
    fn run(&self, command: &mut Command, limit: Duration) -> Result<(), String> {
        // Keep the SIGINT of Ctrl-C from the command: this process either kills the command or lets
        // an undo finish.
        command.stdin(Stdio::null()).process_group(0);
        if self.turns_back {
            // The terminal may be gone after SIGHUP, and a command that cannot print would fail.
            command.stdout(Stdio::null());
        }
        let mut child = command.spawn().map_err(|error| error.to_string())?;
        match self.until(limit, || child.try_wait().transpose()) {
            Some(Ok(status)) if status.success() => Ok(()),
            Some(Ok(status)) => Err(format!("it ended with {status}")),
            Some(Err(error)) => Err(error.to_string()),
            None => {
                let _ = child.kill();
                let _ = child.wait();
                Err(match self.is_interrupted() {
                    true => INTERRUPTED.to_owned(),
                    false => format!("expected it to end within {} s", limit.as_secs()),
                })
            }
        }
    }

    fn write(
        &self,
        path: &str,
        content: &[u8],
        mode: u32,
    ) -> Result<Vec<PutBack>, (Vec<PutBack>, io::Error)> {
        let path = below(&self.host, path);
        let mut before = Vec::new();
        let missing: Vec<_> =
            path.ancestors().skip(1).take_while(|directory| !directory.exists()).collect();
        for directory in missing.into_iter().rev() {
            match fs::create_dir(directory) {
                Ok(()) => before.push(PutBack::NoDirectory(directory.to_owned())),
                Err(error) => return Err((before, error)),
            }
        }
        match held(&path) {
            Ok(held) => before.push(held),
            Err(error) => return Err((before, error)),
        }
        match replace(&path, content, mode) {
            Ok(()) => Ok(before),
            Err(error) => Err((before, error)),
        }
    }

    fn signal(&self, program: &str, signal: Signal) -> Result<(), String> {
        let Some(process) =
            process(&self.host, &self.socket).filter(|process| process.runs(&self.host, program))
        else {
            return Err("expected it to be the plugin; it is not any more".to_owned());
        };
        let id = Pid::from_raw(process.id).ok_or("its process is not known")?;
        kill_process(id, signal).map_err(|error| io::Error::from(error).to_string())
    }

    fn check_nri(&self, unit: &str, version: Option<Version>) -> Result<(), String> {
        let kind = if unit == CRIO.program { &CRIO } else { &CONTAINERD };
        match kind.settings(&self.host, version).is_off {
            Some((true, switch)) => Err(switch.to_string()),
            Some((false, _)) => Ok(()),
            None => Err("expected the file that switches it on to be read, and to be the last one with NRI's section"
                .to_owned()),
        }
    }
}

impl Act for Hands {
    fn act(&mut self, action: &Action) -> Result<Vec<PutBack>, String> {
        let failed = |error: io::Error| error.to_string();
        match action {
            Action::Write { path, content, mode } => match self.write(path, content, *mode) {
                Ok(before) => return Ok(before),
                Err((before, error)) => {
                    for before in before.into_iter().rev() {
                        self.put_back(before)?;
                    }
                    return Err(error.to_string());
                }
            },
            Action::Remove(path) => {
                let path = below(&self.host, path);
                return match held(&path).map_err(failed)? {
                    PutBack::NoFile(_) => Ok(Vec::new()),
                    before => fs::remove_file(path).map_err(failed).map(|()| vec![before]),
                };
            }
            Action::RemoveAll(path) => match fs::remove_dir_all(below(&self.host, path)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            },
            Action::Restore => {
                let program = std::env::current_exe().map_err(failed)?;
                let mut command = Command::new(program);
                command
                    .arg("restore")
                    .arg("--host")
                    .arg(&self.host)
                    .arg("--socket")
                    .arg(&self.socket);
                self.run(&mut command, RESTORE_LIMIT)?;
            }
            Action::RemoveEmpty(path) => {
                let path = below(&self.host, path);
                return match fs::remove_dir(&path) {
                    Ok(()) => Ok(vec![PutBack::Directory(path)]),
                    Err(_) => Ok(Vec::new()),
                };
            }
            Action::Systemctl(words) => {
                self.run(Command::new("systemctl").args(words), COMMAND_LIMIT)?
            }
            Action::End(_) if holder(&self.host, &self.socket) == Some(None) => {}
            Action::End(program) => self.signal(program, Signal::TERM)?,
            Action::Replace(program) => self.signal(program, Signal::USR2)?,
            Action::CheckNri(unit, version) => self.check_nri(unit, *version)?,
            Action::AwaitRuntime => {
                let listens = || (Socket::connect(&self.socket) == Socket::Listens).then_some(());
                self.wait("somebody to listen there", listens)?;
            }
            Action::AwaitPlugin(program) => {
                let is =
                    |process: &Process| process.runs(&self.host, program) && !process.is_replaced();
                let runs = || process(&self.host, &self.socket).filter(is).map(drop);
                self.wait("it to run", runs)?;
            }
            Action::AwaitSynchronized => {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .map_err(failed)?;
                let says = || {
                    runtime
                        .block_on(serve::ask(&self.host))
                        .ok()
                        .filter(|status| status.node.synchronized)
                };
                self.wait("it to say so by /run/plimsoll/plimsoll.sock", || says().map(drop))?;
            }
            Action::AwaitNone => {
                let none = || (holder(&self.host, &self.socket)?.is_none()).then_some(());
                self.wait("it to end", none)?;
            }
        }
        Ok(Vec::new())
    }

    fn put_back(&mut self, what: PutBack) -> Result<(), String> {
        let (path, result) = match &what {
            PutBack::File(path, content, mode) => (path, replace(path, content, *mode)),
            PutBack::Link(path, target) => (path, symlink(target, path)),
            PutBack::NoFile(path) => (path, fs::remove_file(path)),
            PutBack::NoDirectory(path) => (path, fs::remove_dir(path)),
            PutBack::Directory(path) => (path, fs::create_dir(path)),
        };
        match result {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(format!("{}: {error}", path.display()))
            }
            _ => Ok(()),
        }
    }

    fn is_interrupted(&self) -> bool {
        !self.turns_back && self.interrupted.load(Ordering::Relaxed)
    }

    fn turn_back(&mut self) {
        self.turns_back = true;
    }
}

/// Reads the state of a path before a change, so that the change can be undone.
fn held(path: &Path) -> io::Result<PutBack> {
    if let Ok(target) = fs::read_link(path) {
        return Ok(PutBack::Link(path.to_owned(), target));
    }
    match fs::read(path) {
        Ok(content) => Ok(PutBack::File(
            path.to_owned(),
            content,
            fs::metadata(path)?.permissions().mode() & 0o7777,
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Ok(PutBack::NoFile(path.to_owned()))
        }
        Err(error) => Err(error),
    }
}

/// Replaces a file atomically: readers see either the old or the new content. A process that runs
/// the old file continues.
fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".plimsoll-new");
    // The new file is not executable while it is written, because a runtime launches every
    // executable file in its plugin directory.
    let new = path.with_file_name(name);
    let written = (|| {
        let _ = fs::remove_file(&new);
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(content)?;
        file.sync_all()?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        fs::rename(&new, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_files_with_nris_section_containerd_1_7_knows_the_later_one_alone() {
        let host = tempfile::tempdir().expect("a directory");
        let put = |path: &str, text: &str| {
            let path = host.path().join(path);
            fs::create_dir_all(path.parent().expect("it is in one")).expect("it is made");
            fs::write(path, text).expect("it is written");
        };
        let section = "[plugins.'io.containerd.nri.v1.nri']\n";
        put(
            "etc/containerd/config.toml",
            "version = 2\nimports = ['conf.d/*.toml', 'late.toml']\n",
        );
        put("etc/containerd/conf.d/zz-plimsoll.toml", &format!("{section}disable = false\n"));
        let hands = Hands::new(host.path(), &host.path().join("run/nri/nri.sock"));
        let is_on = |version| hands.check_nri("containerd", Some(version));
        assert_eq!([is_on(Version(1, 7, 24)), is_on(Version(2, 0, 0))], [Ok(()), Ok(())]);
        put("etc/containerd/late.toml", &format!("{section}plugin_path = '/p'\n"));
        assert_eq!(is_on(Version(2, 0, 0)), Ok(()));
        assert!(is_on(Version(1, 7, 24)).is_err_and(|why| why.contains("last one")));
    }
}
