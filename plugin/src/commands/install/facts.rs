//! The part of a node's state on which an installation depends.

use std::collections::BTreeMap;
use std::path::Path;

use plimsoll_core::units::excerpt;

use crate::commands::install::nri_off::WhyOff;
use crate::commands::install::paths::{
    CONTAINERD_DROP_IN_NAME, ENABLED, IMPORTED_SWITCH, NAME, PROGRAM, SERVICE, UNIT, UNIT_DROP_INS,
    switch_files,
};
use crate::commands::install::plan::Refusal;
use crate::commands::install::process::{PluginProcess, plugin_process};
use crate::config::DROP_INS;
use crate::host::files::{below, names, read_at_most};
use crate::host::nri_plugins::{NriPlugin, PLUGINS};
use crate::host::runtime::detect::Runtime;
use crate::host::runtime::kind::{RuntimeKind, RuntimeProduct};
use crate::host::runtime::nri_settings::NriSettings;
use crate::host::socket::Socket;
use crate::host::units::{
    PACKAGE_UNIT_DIRECTORIES, UnitError, how_to_unmask, start_command, unit_file,
};
use crate::host::version::Version;
use crate::state::originals;
use crate::state::settings::is_restored;

/// Maximum size, in bytes, of a file that a plan may replace. The largest of these files is the
/// program.
const LARGEST_PROGRAM: usize = 1 << 30;

/// The part of a node's state on which the plans depend.
#[derive(Debug)]
pub struct InstallFacts {
    /// The runtime of the node.
    pub(super) kind: &'static RuntimeKind,
    /// Name and version of the runtime.
    pub(super) runtime: String,
    pub(super) version: Option<Version>,
    pub(super) settings: NriSettings,
    /// The reason why NRI is off. `None` if NRI is on.
    pub(super) why_off: Option<WhyOff>,
    /// Whether a process listens at the NRI socket.
    pub(super) is_served: bool,
    /// The command by which systemd would start containerd without this module's drop-in.
    pub(super) command: Option<String>,
    /// Contents of the files that this module may write or remove, by path. If the state directory
    /// exists, it has an entry with empty content.
    pub(super) files: BTreeMap<String, Vec<u8>>,
    /// The plugin's programs in the runtime's plugin directory. The running program comes first.
    pub(super) launched: Vec<String>,
    /// Whether a package has installed the unit.
    pub(super) is_packaged: bool,
    /// Path of the file that masks the unit. The path is relative to the node's root directory.
    pub(super) mask: Option<String>,
    pub(super) is_enabled: bool,
    /// Whether an operator has called `plimsoll restore`.
    pub(super) stands_aside: bool,
    pub(super) process: Option<PluginProcess>,
    /// Whether the runtime has launched the process from its plugin directory.
    pub(super) is_launched: bool,
    /// Content of the program to install.
    pub(super) program: Vec<u8>,
    pub(super) lock: String,
}

/// Returns whether the runtime can launch this program of the plugin. A runtime expects a file name
/// with an index, a dash and a name, such as `90-plimsoll`.
pub(super) fn has_index(program: &str) -> bool {
    program.ends_with("-plimsoll")
}

impl InstallFacts {
    /// Collects the state of the node whose file system is at `host`. `socket` is the runtime's NRI
    /// socket, and `program` is the content of the program to install.
    ///
    /// # Errors
    ///
    /// Fails if systemd does not run, if not exactly one runtime runs, or if a file cannot be read
    /// or replaced.
    pub fn collect(host: &Path, socket: &Path, program: Vec<u8>) -> Result<Self, Refusal> {
        if !host.join("run/systemd/system").is_dir() {
            return Err(Refusal(
                "systemd does not run here: expected the directory /run/systemd/system".to_owned(),
            ));
        }
        let mut runtime = find_runtime(host)?;
        let settings = std::mem::take(&mut runtime.settings);
        let plugins = settings.plugin_path.clone().unwrap_or_else(|| PLUGINS.to_owned());
        let launched: Vec<_> =
            NriPlugin::all(host, &plugins).into_iter().filter(NriPlugin::is_ours).collect();
        let mut launched: Vec<_> = launched.into_iter().map(|program| program.path).collect();
        let version = runtime.version;
        let lock = socket.with_file_name("plimsoll.lock");
        let process = plugin_process(host, socket);
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
            mask: match unit_file(host, "plimsoll.service") {
                Err(UnitError::Masked { path }) => Some(path),
                Ok(_) | Err(UnitError::Unreadable { .. }) => None,
            },
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
        facts.why_off = facts.find_why_off(&mut runtime);
        facts.read_files(host)?;
        Ok(facts)
    }

    /// Returns the reason why NRI is off, or `None` if NRI is on.
    fn find_why_off(&mut self, runtime: &mut Runtime) -> Option<WhyOff> {
        // The configuration files take precedence over the socket, because the runtime may still
        // serve the socket with an older configuration.
        let takes_connections = self.takes_connections();
        runtime.settings = std::mem::take(&mut self.settings);
        let is_configured = runtime.settings.is_off.is_some() || !takes_connections;
        let unserved = || WhyOff::Unserved { runtime: self.runtime.clone() };
        let why = runtime.why_off().map(WhyOff::Runtime);
        let why = why.or_else(|| (!is_configured && !self.is_served).then(unserved));
        self.settings = std::mem::take(&mut runtime.settings);
        why
    }

    /// Reads the files that a plan may write or remove, and checks whether the state directory
    /// exists.
    fn read_files(&mut self, host: &Path) -> Result<(), Refusal> {
        let mut paths = vec![PROGRAM.to_owned(), UNIT.to_owned(), self.lock.clone()];
        let switches = RuntimeProduct::ALL.into_iter().flat_map(switch_files);
        paths.extend(switches.map(|path| (*path).to_owned()));
        paths.extend(self.imported_switch());
        paths.extend(self.launched.clone());
        paths.push(self.launched_program());
        paths.extend(self.configurations());
        let drop_ins = names(&below(host, UNIT_DROP_INS)).into_iter();
        paths.extend(drop_ins.map(|name| format!("{UNIT_DROP_INS}/{name}")));
        for path in paths {
            if let Some(content) = read_regular(host, &path)? {
                self.files.insert(path, content);
            }
        }
        let state = format!("/{}", originals::DIRECTORY);
        if below(host, &state).is_dir() {
            self.files.insert(state, Vec::new());
        }
        Ok(())
    }

    /// The runtime's name and version.
    pub fn runtime(&self) -> &str {
        &self.runtime
    }

    /// The name of the runtime's unit.
    pub(super) fn service(&self) -> &'static str {
        self.kind.program
    }

    /// The path of the program that the runtime launches: the path of the existing program, or else
    /// the default path.
    pub(super) fn launched_program(&self) -> String {
        let directory =
            self.settings.plugin_path.as_deref().unwrap_or(PLUGINS).trim_end_matches('/');
        self.launched
            .iter()
            .find(|path| has_index(path))
            .cloned()
            .unwrap_or_else(|| format!("{directory}/{NAME}"))
    }

    /// The paths that the plugin's configuration may have, in order of precedence.
    pub(super) fn configurations(&self) -> Vec<String> {
        let configured = self.settings.config_path.iter().map(String::as_str).chain([DROP_INS]);
        let files = configured.flat_map(|directory| {
            let directory = directory.trim_end_matches('/').to_owned();
            [NAME, SERVICE].map(|name| format!("{directory}/{name}.conf"))
        });
        files.collect()
    }

    /// The path of the file that switches NRI on. The file is in a directory that containerd
    /// imports. `None` if containerd's configuration imports no directory.
    pub(super) fn imported_switch(&self) -> Option<String> {
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
    pub(super) fn takes_connections(&self) -> bool {
        !self.settings.takes_no_connections && self.foreign_socket().is_none()
    }

    /// The configured NRI socket, if it differs from the default socket.
    pub(super) fn foreign_socket(&self) -> Option<&str> {
        // /var/run is a symbolic link to /run.
        let is_default = |path: &str| {
            path.strip_prefix("/var").filter(|path| path.starts_with("/run/")).unwrap_or(path)
                == nri::DEFAULT_SOCKET.trim_start_matches("/var")
        };
        self.settings.socket_path.as_deref().filter(|path| !is_default(path))
    }

    /// Returns whether the process of a launched plugin can execute a new program. The new program
    /// uses the default socket and the default configuration directory, so the runtime must use
    /// both too.
    pub(super) fn may_be_replaced(&self) -> bool {
        let is_default = |path: &str| path.trim_end_matches('/') == DROP_INS;
        self.takes_connections() && self.settings.config_path.as_deref().is_none_or(is_default)
    }

    pub(super) fn is_external(&self) -> bool {
        self.process.as_ref().is_some_and(|process| process.is_service)
    }

    /// Returns an error if neither systemd nor the runtime started the running plugin, but for
    /// example a DaemonSet.
    pub(super) fn check_process(&self) -> Result<(), Refusal> {
        match &self.process {
            Some(PluginProcess { id, program, .. }) if !self.is_external() && !self.is_launched => {
                Err(Refusal(format!(
                    "process {id} runs the plugin from {}: expected only the installed plugin; \
                     stop the process, or remove the DaemonSet that runs it",
                    excerpt(program)
                )))
            }
            _ => Ok(()),
        }
    }

    /// Returns an error if systemd cannot start the unit of a package, because the unit is masked.
    /// The unit that this module writes to /etc overrides a mask in /run.
    pub(super) fn check_unit(&self) -> Result<(), Refusal> {
        match &self.mask {
            Some(path) if self.uses_package() => Err(Refusal(format!(
                "/{} masks plimsoll.service: expected the unit of the package; {}, and call the \
                 command again",
                excerpt(path),
                how_to_unmask(path)
            ))),
            _ => Ok(()),
        }
    }

    /// Returns an error if plugins cannot connect to the runtime, even with NRI on.
    pub(super) fn check_connections(&self, advice: &str) -> Result<(), Refusal> {
        if self.settings.takes_no_connections {
            return Err(Refusal(format!(
                "{} accepts no connections of plugins (disable_connections): {advice}",
                self.runtime
            )));
        }
        match self.foreign_socket() {
            Some(path) => Err(Refusal(format!(
                "the runtime serves NRI at {}, expected {}: {advice}",
                excerpt(path),
                nri::DEFAULT_SOCKET
            ))),
            None => Ok(()),
        }
    }

    /// Returns whether a package has installed the program and the service. If so, the package
    /// manager upgrades both. Returns false if a unit of `plimsoll install` overrides the package's
    /// unit.
    pub(super) fn uses_package(&self) -> bool {
        let unit =
            self.files.get(UNIT).map(|unit| String::from_utf8_lossy(unit)).unwrap_or_default();
        self.is_packaged
            && !unit.lines().any(|line| line.starts_with(&format!("ExecStart={PROGRAM} ")))
    }
}

/// Returns the only runtime of the node.
fn find_runtime(host: &Path) -> Result<Runtime, Refusal> {
    let mut runtimes = Runtime::all(host);
    runtimes.retain(|runtime| runtime.socket != Socket::Absent);
    if runtimes.len() > 1 && runtimes.iter().any(|runtime| runtime.socket == Socket::Listens) {
        runtimes.retain(|runtime| runtime.socket == Socket::Listens);
    }
    // If containerd and CRI-O both run, skip a containerd whose CRI plugin is disabled. Another
    // program, for example Docker, uses that containerd.
    if runtimes.len() > 1 {
        runtimes.retain(|runtime| !runtime.settings.is_without_cri);
    }
    if runtimes.len() == 1
        && let Some(runtime) = runtimes.pop()
    {
        return Ok(runtime);
    }
    let found: Vec<_> = runtimes.iter().map(|runtime| runtime.kind.name).collect();
    let found = if found.is_empty() { "neither".to_owned() } else { found.join(" and ") };
    Err(Refusal(format!("expected containerd or CRI-O to run here, found {found}")))
}

/// Returns the content of a regular file on the node. Returns `None` if the file does not exist.
fn read_regular(host: &Path, path: &str) -> Result<Option<Vec<u8>>, Refusal> {
    let inside = below(host, path);
    // A plan can write and restore only regular files. A masked unit is not a regular file, but a
    // symbolic link to /dev/null.
    if inside.symlink_metadata().is_ok_and(|metadata| !metadata.is_file()) {
        let advice = if path == UNIT {
            ", or call systemctl unmask plimsoll if the unit is masked"
        } else {
            ""
        };
        let path = excerpt(path);
        return Err(Refusal(format!(
            "{path}: expected a regular file or no file, found another type: remove it{advice}"
        )));
    }
    read_at_most(&inside, LARGEST_PROGRAM)
        .map_err(|error| Refusal(format!("cannot read {}: {}", excerpt(path), error.why)))
}
