//! Checks whether a node can run the plugin, and what to change if not (`plimsoll doctor`).
//!
//! [`Facts::collect`] gathers facts, and [`Facts::judge`] turns the facts into findings. An
//! unreadable file is a fact too. The size of each read is bounded, and nothing is changed.
//! Findings name paths as they are on the node, without the prefix of `--host`.
//!
//! Sources: the kernel's `Documentation/admin-guide/cgroup-v2.rst`; Kubernetes' KEP-2570;
//! containerd/nri `pkg/adaptation`.

pub(crate) mod runtime;

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use plimsoll_core::pod::kubepods::classes;
use plimsoll_core::pod::{CgroupPath, CheckpointFile, PodUid};
use plimsoll_core::units::{Bytes, excerpt, harmless};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::Serialize;

use self::runtime::{
    CONFIG_PATH, CONTAINERD, CONTAINERD_1_7, NO_CONNECTIONS, REGISTRATION, REQUEST, Runtime,
    Settings, Version,
};
use crate::agent::guard::{NAME_THE_SYSTEM, NO_SYSTEM_SLICE};
use crate::agent::service::{BUDGET, CUT_BUDGET};
use crate::cgroup::{CgroupRoot, page_size};
use crate::commands::explain::wrap;
use crate::config::{Config, DROP_INS, Mode, NodeAllocatable};
use crate::kubelet::checkpoint::{Checkpoints, Moment};
use crate::kubelet::kubepods::{self, Found};
use crate::kubelet::node::{self, AllocatableSource, KubeletReservations, NodeMemory};
use crate::report::serve;
use crate::state::brake;
use crate::state::guard_record;
use crate::state::originals::DIRECTORY;
use crate::state::settings::STAND_ASIDE;

/// Maximum size of a file, in bytes. The kubelet's checkpoints have their own maximum.
const LARGEST: usize = 1 << 20;

/// Maximum number of directory entries that are read.
const MOST_ENTRIES: usize = 4096;
/// Maximum number of names in a finding.
const MOST_NAMES: usize = 16;

/// Maximum number of entries of `/proc` that are read.
const MOST_PROCESSES: usize = 1 << 16;

/// Kubelet flags that override the kubelet's configuration file and change node allocatable.
const ALLOCATABLE_FLAGS: [&str; 4] =
    ["--system-reserved", "--kube-reserved", "--eviction-hard", "--enforce-node-allocatable"];

/// Maximum length of a text in a finding, in characters.
const LONGEST: usize = 4000;

const CGROUPS: &str = "sys/fs/cgroup";
const KUBELET: &str = "var/lib/kubelet";
pub(crate) const PLUGINS: &str = "/opt/nri/plugins";
pub(crate) const UNITS: [&str; 4] =
    ["etc/systemd/system", "run/systemd/system", "usr/lib/systemd/system", "lib/systemd/system"];
const BUS: &str = "run/dbus/system_bus_socket";

/// First kernel in which processes no longer hang at `memory.high` (KEP-2570).
const OLDEST_KERNEL: Version = Version(5, 9, 0);
/// First kernel with `memory.reclaim`.
const RECLAIM_KERNEL: Version = Version(5, 19, 0);

/// Default time that a runtime waits for a plugin's answer to a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// Shortest request or registration timeout that causes no warning.
const SHORT_TIMEOUT: Duration = Duration::from_secs(1);

/// Number of inotify instances below which programs on the node may soon fail to get one.
const FEW_INSTANCES: u64 = 32;
/// Number of inotify watches below which programs on the node may soon fail to get one.
const FEW_WATCHES: u64 = 4096;

/// Parts of the names of plugins that also set memory values of containers.
const RIVALS: [&str; 3] = ["memory-qos", "koordlet", "koordinator"];

/// Result of a check, ordered from best to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mark {
    /// The node is as it should be.
    Ok,
    /// The plugin works, but with a restriction.
    Warning,
    /// The check cannot determine the result, for instance because an expected file is unreadable.
    Unknown,
    /// The plugin cannot work.
    Failed,
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Unknown => "unknown",
            Self::Failed => "failed",
        })
    }
}

/// Finding of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Name of the check, which stays the same in all versions.
    pub check: &'static str,
    /// Result of the check.
    pub mark: Mark,
    /// Observed state.
    pub found: String,
    /// Advice on what to do; absent if the result is ok.
    #[serde(rename = "do", skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

/// All findings about a node. `Display` writes text for 80 columns. Serialized, the report has the
/// format of `--json`.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether the plugin can work, which is true if no check failed.
    pub able: bool,
    /// Number of checks with the mark `unknown`.
    pub unknown: usize,
    /// One finding for each check that applies.
    pub checks: Vec<Finding>,
}

impl Finding {
    fn ok(check: &'static str, found: impl AsRef<str>) -> Self {
        Self { check, mark: Mark::Ok, found: shown(found.as_ref()), advice: None }
    }

    fn warning(check: &'static str, found: impl AsRef<str>, advice: impl AsRef<str>) -> Self {
        let (found, advice) = (shown(found.as_ref()), Some(shown(advice.as_ref())));
        Self { check, mark: Mark::Warning, found, advice }
    }

    fn unknown(check: &'static str, found: impl AsRef<str>, advice: impl AsRef<str>) -> Self {
        Self { mark: Mark::Unknown, ..Self::warning(check, found, advice) }
    }

    fn failed(check: &'static str, found: impl AsRef<str>, advice: impl AsRef<str>) -> Self {
        Self { mark: Mark::Failed, ..Self::warning(check, found, advice) }
    }

    /// Merges the findings of one check into one finding with the worst mark. Without findings the
    /// result is ok with the text `otherwise`.
    fn all(check: &'static str, otherwise: impl AsRef<str>, findings: Vec<Self>) -> Self {
        let join = |texts: Vec<String>| texts.join("; ");
        let Some(mark) = findings.iter().map(|finding| finding.mark).max() else {
            return Self::ok(check, otherwise);
        };
        let (found, advice): (Vec<_>, Vec<_>) =
            findings.into_iter().map(|finding| (finding.found, finding.advice)).unzip();
        let mut advice: Vec<_> = advice.into_iter().flatten().collect();
        advice.dedup();
        Self { check, mark, found: join(found), advice: Some(join(advice)) }
    }
}

/// Escapes foreign text so that a terminal only displays it. Keeps line breaks, quotes and
/// backslashes.
fn shown(text: &str) -> String {
    harmless(text, LONGEST, &['\n', '\'', '"', '\\'])
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Finding { check, mark, found, advice } in &self.checks {
            for (at, line) in found.lines().enumerate() {
                let line = if at == 0 {
                    Indented(format!("{check}: {line}"))
                } else {
                    Indented(format!("  {line}"))
                };
                let line = line.to_string();
                match at {
                    0 => write!(f, "{mark:<INDENT$}{}", line.trim_start())?,
                    _ => f.write_str(&line)?,
                }
            }
            if let Some(advice) = advice {
                write!(f, "{}", Indented(format!("do: {advice}")))?;
            }
        }
        let count = |mark| self.checks.iter().filter(|finding| finding.mark == mark).count();
        let verdict = match (self.able, self.unknown) {
            (true, 0) => "Plimsoll can work on this node",
            (true, _) => "Plimsoll can work on this node, as far as this could find out",
            (false, _) => "Plimsoll cannot work on this node",
        };
        write!(f, "{verdict}: {} failed, {} warnings", count(Mark::Failed), count(Mark::Warning))?;
        if self.unknown > 0 {
            write!(f, ", {} unknown", self.unknown)?;
        }
        f.write_str(".\n")
    }
}

/// Column at which texts start, after the mark.
const INDENT: usize = 9;

struct Indented(String);

impl fmt::Display for Indented {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        wrap(f, INDENT, &self.0)
    }
}

/// Content of a file: `None` if the file does not exist, an error if the file is unreadable.
pub(crate) type Held<T> = Result<Option<T>, Unreadable>;
type Text = Held<String>;

#[derive(Clone, Debug)]
pub(crate) struct Unreadable {
    is_denied: bool,
    why: String,
}

impl Unreadable {
    /// Returns the error for a file that should exist but does not.
    fn missing() -> Self {
        Self { is_denied: false, why: "it is not there".to_owned() }
    }
}

impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Self {
        Self { is_denied: error.kind() == io::ErrorKind::PermissionDenied, why: error.to_string() }
    }
}

fn read(path: &Path) -> Text {
    Ok(read_bytes(path)?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

pub(crate) fn read_bytes(path: &Path) -> Held<Vec<u8>> {
    match node::read_bytes(path, LARGEST) {
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(None),
        result => Ok(result?),
    }
}

/// Returns whether a path exists.
fn is_there(path: &Path) -> Result<bool, Unreadable> {
    match path.try_exists() {
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(false),
        result => Ok(result?),
    }
}

/// Returns the sorted names in a directory, or no names if the directory is unreadable.
pub(crate) fn names(path: &Path) -> Vec<String> {
    list(path).unwrap_or_default()
}

/// Returns the sorted names in a directory, or no names if the directory does not exist.
fn list(path: &Path) -> Result<Vec<String>, Unreadable> {
    let entries = match fs::read_dir(path) {
        Err(error)
            if [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory].contains(&error.kind()) =>
        {
            return Ok(Vec::new());
        }
        entries => entries?,
    };
    let names = entries
        .take(MOST_ENTRIES)
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let mut names = names.collect::<io::Result<Vec<_>>>()?;
    names.sort_unstable();
    Ok(names)
}

/// Returns the location of a node's path below `host`. A `..` in the path cannot leave `host`.
pub(crate) fn below(host: &Path, path: &str) -> PathBuf {
    let mut inside = PathBuf::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(part) => inside.push(part),
            Component::ParentDir => {
                inside.pop();
            }
            _ => {}
        }
    }
    host.join(inside)
}

/// Result of a connection attempt to a unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Socket {
    Listens,
    Absent,
    Denied,
    Dead(String),
}

impl Socket {
    pub(crate) fn connect(path: &Path) -> Self {
        // A server that accepts no connections must not block the check.
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let connected = SocketAddrUnix::new(path).and_then(|address| {
            let socket =
                rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            rustix::net::connect(&socket, &address)
        });
        match connected {
            // EAGAIN means that the listen queue is full, so a server exists.
            Ok(()) | Err(Errno::AGAIN) => Self::Listens,
            Err(Errno::NOENT | Errno::NOTDIR) => Self::Absent,
            Err(Errno::ACCESS | Errno::PERM) => Self::Denied,
            Err(Errno::CONNREFUSED) => Self::Dead("nobody listens there".to_owned()),
            Err(error) => Self::Dead(io::Error::from(error).to_string()),
        }
    }
}

/// Kind of cgroup hierarchy that is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hierarchy {
    V2,
    Hybrid,
    V1,
    Missing,
}

/// Ancestor cgroup of the pods, and whether the cgroup enables the memory controller for its
/// children.
#[derive(Debug)]
struct Level {
    /// Path relative to the cgroup root; empty for the root itself.
    path: String,
    enabled: Result<bool, Unreadable>,
    has_children: Result<bool, Unreadable>,
}

/// Cgroup with the memory controller, and the needed files that the cgroup lacks.
#[derive(Debug)]
struct Child {
    path: String,
    missing: Vec<&'static str>,
    /// Files whose existence could not be determined, with the error.
    unread: Vec<String>,
}

/// Program in a runtime's plugin directory, which the runtime may launch.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) path: String,
    /// Two digits before the dash in the file name, such as `90` in `90-plimsoll`. Runtimes order
    /// plugins by this index. `None` if the name has no index.
    index: Option<String>,
    name: String,
    is_executable: bool,
}

impl Program {
    pub(crate) fn all(host: &Path, directory: &str) -> Vec<Self> {
        let inside = below(host, directory);
        let programs = names(&inside).into_iter().filter_map(|file| {
            let metadata =
                inside.join(&file).symlink_metadata().ok().filter(|metadata| !metadata.is_dir())?;
            let (index, name) = match file.split_once('-') {
                Some((index, name))
                    if index.len() == 2 && index.bytes().all(|byte| byte.is_ascii_digit()) =>
                {
                    (Some(index.to_owned()), name.to_owned())
                }
                _ => (None, file.clone()),
            };
            let is_executable = metadata.permissions().mode() & 0o111 != 0;
            Some(Self {
                path: format!("{}/{file}", directory.trim_end_matches('/')),
                index,
                name,
                is_executable,
            })
        });
        programs.collect()
    }

    pub(crate) fn is_ours(&self) -> bool {
        self.name == "plimsoll"
    }
}

/// Running kubelet process.
#[derive(Debug)]
struct Kubelet {
    arguments: Vec<String>,
    /// File names in the kubelet's drop-in directory (`--config-dir`).
    drop_ins: Result<Vec<String>, Unreadable>,
}

impl Kubelet {
    /// Returns all kubelets that run on the node whose file system is at `host`.
    fn all(host: &Path) -> Result<Vec<Self>, Unreadable> {
        let processes = match fs::read_dir(host.join("proc")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            processes => processes?,
        };
        let mut kubelets = Vec::new();
        for (count, process) in processes.enumerate() {
            if count == MOST_PROCESSES {
                let why = format!("expected at most {MOST_PROCESSES} entries");
                return Err(Unreadable { is_denied: false, why });
            }
            let process = process?;
            if !process.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()) {
                continue;
            }
            match Self::read(host, &process.path()) {
                Ok(kubelet) => kubelets.extend(kubelet),
                // The process has ended in the meantime.
                Err(_) if !process.path().exists() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(kubelets)
    }

    /// Reads the process whose directory in `/proc` is `process`. Returns `None` if the process is
    /// not a kubelet.
    fn read(host: &Path, process: &Path) -> Result<Option<Self>, Unreadable> {
        if read(&process.join("comm"))?.is_none_or(|name| name.trim_end() != "kubelet") {
            return Ok(None);
        }
        let line = read(&process.join("cmdline"))?.unwrap_or_default();
        let arguments = line.split_terminator('\0').map(str::to_owned).collect();
        let mut kubelet = Self { arguments, drop_ins: Ok(Vec::new()) };
        if let Some(directory) = kubelet.values("--config-dir").last() {
            kubelet.drop_ins = list(&below(host, directory));
        }
        Ok(Some(kubelet))
    }

    /// Returns the values of a flag in order. The last value counts, except for flags that take a
    /// list.
    fn values<'a>(&'a self, flag: &'a str) -> impl Iterator<Item = &'a str> {
        let arguments = self.arguments.iter().enumerate();
        arguments.filter_map(move |(at, argument)| match argument.strip_prefix(flag)? {
            "" => self.arguments.get(at + 1).map(String::as_str),
            value => value.strip_prefix('='),
        })
    }

    /// Returns whether flags enable the feature gate `MemoryQoS`, or `None` if no flag sets the
    /// gate. Flags override configuration files.
    fn memory_qos(&self) -> Option<bool> {
        let gates = self.values("--feature-gates").flat_map(|gates| gates.split(','));
        let gate = gates.filter_map(|gate| gate.trim().strip_prefix("MemoryQoS=")).last()?;
        Some(!gate.eq_ignore_ascii_case("false"))
    }

    /// Describes the parts of the kubelet's configuration that this check does not read.
    fn unread_configurations(&self) -> Vec<String> {
        let mut unread = Vec::new();
        match self.values("--config").last() {
            Some(path) if Path::new(path) == Path::new("/").join(KUBELET).join("config.yaml") => {}
            Some(path) => {
                unread.push(format!("the kubelet is started with --config {}", excerpt(path)))
            }
            None => unread.push("the kubelet is started without --config".to_owned()),
        }
        let directory = excerpt(self.values("--config-dir").last().unwrap_or_default());
        match &self.drop_ins {
            Ok(names) if names.is_empty() => {}
            Ok(names) => {
                let names: Vec<_> =
                    names.iter().take(MOST_NAMES).map(|name| excerpt(name)).collect();
                unread.push(format!(
                    "drop-ins of the kubelet in {directory} are not read: {}",
                    names.join(", ")
                ));
            }
            Err(error) => unread
                .push(format!("cannot list drop-ins of the kubelet in {directory}: {}", error.why)),
        }
        unread
    }
}

/// Observed facts about a node.
#[derive(Debug)]
pub struct Facts {
    is_root: bool,
    hierarchy: Result<Hierarchy, Unreadable>,
    controllers: Text,
    disables_memory: bool,
    levels: Vec<Level>,
    /// Errors of the search for the kubepods cgroup.
    unsearched: Vec<String>,
    child: Option<Child>,
    release: Text,
    is_recursive: Result<bool, Unreadable>,
    pressure: Text,
    runtimes: Vec<Runtime>,
    nri: Socket,
    nri_path: PathBuf,
    /// Existing configuration files of the plugin, the one with the highest precedence first.
    drop_ins: Vec<(String, Result<Vec<u8>, Unreadable>)>,
    programs: Vec<Program>,
    /// Names of the other files in the directories of plugin configurations.
    others: Vec<String>,
    /// Directories of plugins and of plugin configurations that could not be listed, with the
    /// error.
    unlisted: Vec<String>,
    unit: Option<String>,
    /// Process that runs the plugin: `Some(None)` if there is none, `None` if unknown.
    process: Option<Option<String>>,
    /// Mode that the running plugin reports, or why it reports none. `None` without a plugin
    /// socket.
    told: Option<Result<Mode, String>>,
    memory: NodeMemory,
    kubelet_config: Text,
    has_kubelet: bool,
    kubelets: Result<Vec<Kubelet>, Unreadable>,
    checkpoints: Vec<&'static str>,
    checkpoint_problems: Vec<String>,
    has_systemd: Result<bool, Unreadable>,
    /// Whether the cgroup `system.slice` exists.
    has_system_slice: Result<bool, Unreadable>,
    bus: Socket,
    swaps: Text,
    stands_aside: Result<bool, Unreadable>,
    brake: Result<Option<brake::Record>, String>,
    instances: Text,
    watches: Text,
}

impl Facts {
    /// Collects facts about the node whose file system is at `host`, usually `/`. Also connects to
    /// the runtime's NRI socket. Writes nothing, but the runtime logs a plugin that did not
    /// register.
    pub fn collect(host: &Path, socket: &Path) -> Self {
        let file = |path: &str| read(&host.join(path));
        let root = host.join(CGROUPS);
        let has = |path: &str| is_there(&root.join(path));
        let hierarchy = || {
            Ok(if has("cgroup.controllers")? {
                Hierarchy::V2
            } else if has("unified/cgroup.controllers")? {
                Hierarchy::Hybrid
            } else if has("memory")? || has("cpu")? {
                Hierarchy::V1
            } else {
                Hierarchy::Missing
            })
        };
        let opened = CgroupRoot::open(&root);
        let Found { found: kubepods, problems } =
            opened.as_ref().map(kubepods::find).unwrap_or_default();
        let mut unsearched: Vec<_> = problems.iter().map(ToString::to_string).collect();
        unsearched.extend(
            opened.as_ref().err().filter(|error| !error.is_absent()).map(ToString::to_string),
        );
        let tops = kubepods.iter().map(|cgroup| cgroup.as_str().to_owned());
        let child = tops.chain(names(&root)).find(|name| {
            let path = root.join(name);
            path.is_dir() && path.join("memory.current").exists()
        });
        let pressure =
            format!("{CGROUPS}/{}/memory.pressure", child.as_deref().unwrap_or_default());
        let child = child.map(|path| {
            let mut child = Child { path, missing: Vec::new(), unread: Vec::new() };
            for file in ["memory.high", "memory.reclaim", "memory.oom.group"] {
                match is_there(&root.join(&child.path).join(file)) {
                    Ok(true) => {}
                    Ok(false) => child.missing.push(file),
                    Err(error) => child.unread.push(format!("{file}: {}", error.why)),
                }
            }
            child
        });
        let mut above = BTreeSet::from([String::new()]);
        for cgroup in kubepods.iter().cloned().chain(kubepods.iter().flat_map(classes)) {
            let upwards = std::iter::successors(Some(cgroup), CgroupPath::parent);
            above.extend(upwards.map(|cgroup| cgroup.as_str().to_owned()));
        }
        let levels = above
            .into_iter()
            .filter(|path| root.join(path).try_exists().unwrap_or(true))
            .map(|path| {
                let text = read(&root.join(&path).join("cgroup.subtree_control"));
                let enabled = text.and_then(|text| text.ok_or_else(Unreadable::missing));
                Level {
                    enabled: enabled.map(|text| has_memory(Some(&text))),
                    has_children: list(&root.join(&path))
                        .map(|names| names.iter().any(|name| root.join(&path).join(name).is_dir())),
                    path,
                }
            });

        let runtimes = Runtime::all(host);
        let directories = |default: &str, configured: fn(&Settings) -> &Option<String>| {
            let mut directories: Vec<String> = runtimes
                .iter()
                .filter_map(|runtime| configured(&runtime.settings).clone())
                .collect();
            directories.push(default.to_owned());
            directories.dedup();
            directories
        };
        let plugins = directories(PLUGINS, |settings| &settings.plugin_path);
        let programs: Vec<_> =
            plugins.iter().flat_map(|directory| Program::all(host, directory)).collect();
        let mut unlisted = Vec::new();
        let mut listed = |directory: &str| match list(&below(host, directory)) {
            Ok(names) => names,
            Err(error) => {
                unlisted.push(format!("{}: {}", excerpt(directory), error.why));
                Vec::new()
            }
        };
        plugins.iter().for_each(|directory| _ = listed(directory));
        let index = programs
            .iter()
            .filter(|program| program.is_ours())
            .find_map(|program| program.index.clone());
        let ours = [
            format!("{}-plimsoll.conf", index.as_deref().unwrap_or("90")),
            "plimsoll.conf".to_owned(),
        ];
        let mut drop_ins = Vec::new();
        let mut others = Vec::new();
        for directory in directories(DROP_INS, |settings| &settings.config_path) {
            for name in &ours {
                let path = format!("{}/{name}", directory.trim_end_matches('/'));
                match read_bytes(&below(host, &path)) {
                    Ok(None) => {}
                    Ok(Some(text)) => drop_ins.push((path, Ok(text))),
                    Err(error) => drop_ins.push((path, Err(error))),
                }
            }
            others.extend(listed(&directory).into_iter().filter(|name| !ours.contains(name)));
        }
        let unit = UNITS.into_iter().map(|directory| format!("{directory}/plimsoll.service"));
        let unit =
            unit.into_iter().find(|path| host.join(path).exists()).map(|path| format!("/{path}"));

        // A lookup without a matching pod reads all checkpoint files.
        let uid = PodUid::new("");
        let found = Checkpoints::new(host.join(KUBELET)).lookup(&uid, "", Moment::Create);
        let files =
            [CheckpointFile::Actuated, CheckpointFile::Allocated, CheckpointFile::StatusManager];
        let files = files.map(CheckpointFile::file_name).into_iter();
        let prefix = host.to_string_lossy();
        let problems = found.problems.iter().map(|problem| match host == Path::new("/") {
            true => problem.to_string(),
            false => problem.to_string().replacen(prefix.trim_end_matches('/'), "", 1),
        });
        Self {
            is_root: rustix::process::geteuid().is_root(),
            hierarchy: hierarchy(),
            controllers: read(&root.join("cgroup.controllers")),
            disables_memory: file("proc/cmdline").ok().flatten().is_some_and(|line| {
                line.split_ascii_whitespace().any(|word| word == "cgroup_disable=memory")
            }),
            levels: levels.collect(),
            unsearched,
            child,
            release: file("proc/sys/kernel/osrelease"),
            is_recursive: file("proc/self/mounts").and_then(|mounts| {
                let is_cgroup2 =
                    |line: &str| line.split_ascii_whitespace().nth(2) == Some("cgroup2");
                let has_it = mounts.is_some_and(|mounts| mounts.lines().any(is_cgroup2));
                let recursive =
                    opened.as_ref().ok().filter(|_| has_it).map(CgroupRoot::recursive_protection);
                recursive.ok_or_else(|| Unreadable {
                    is_denied: false,
                    why: "expected a mount of cgroup2".to_owned(),
                })
            }),
            pressure: file(&pressure),
            runtimes,
            nri: Socket::connect(socket),
            nri_path: socket.to_owned(),
            drop_ins,
            programs,
            others,
            unlisted,
            unit,
            process: holder(host, socket),
            told: told(host),
            memory: NodeMemory::discover(host, page_size(), guard_record::read(host)),
            kubelet_config: file(&format!("{KUBELET}/config.yaml")),
            has_kubelet: host.join(KUBELET).exists(),
            kubelets: Kubelet::all(host),
            checkpoints: files
                .filter(|file| host.join(KUBELET).join(file).symlink_metadata().is_ok())
                .collect(),
            checkpoint_problems: problems.collect(),
            has_systemd: is_there(&host.join("run")).and_then(|has_run| match has_run {
                true => is_there(&host.join("run/systemd/system")),
                false => Err(Unreadable::missing()),
            }),
            has_system_slice: has("system.slice"),
            bus: Socket::connect(&host.join(BUS)),
            swaps: file("proc/swaps"),
            stands_aside: is_there(&host.join(STAND_ASIDE)),
            brake: brake::Record::load(host).map_err(|error| error.to_string()),
            instances: file("proc/sys/fs/inotify/max_user_instances"),
            watches: file("proc/sys/fs/inotify/max_user_watches"),
        }
    }
}

fn has_memory(controllers: Option<&str>) -> bool {
    controllers
        .unwrap_or_default()
        .split_ascii_whitespace()
        .any(|controller| controller == "memory")
}

/// Returns the process that holds the plugin's instance lock, a file beside the runtime's NRI
/// socket. The outer `None` means unknown. The inner `None` means that no process holds the lock.
pub(crate) fn holder(host: &Path, socket: &Path) -> Option<Option<String>> {
    let locks = read(&host.join("proc/locks")).ok()??;
    let lock = match socket.parent()?.join("plimsoll.lock").metadata() {
        Ok(lock) => lock,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Some(None),
        Err(_) => return None,
    };
    // Columns of /proc/locks: number, kind, advisory or mandatory, mode, process,
    // major:minor:inode, range.
    let (major, minor) = (rustix::fs::major(lock.dev()), rustix::fs::minor(lock.dev()));
    let file = format!("{major:02x}:{minor:02x}:{}", lock.ino());
    Some(locks.lines().find_map(|line| {
        let columns: Vec<_> = line.split_ascii_whitespace().collect();
        (columns.get(1) == Some(&"FLOCK") && columns.get(5) == Some(&file.as_str()))
            .then(|| columns[4].to_owned())
    }))
}

/// Asks the plugin for its mode. Returns `None` if the plugin's socket does not exist.
fn told(host: &Path) -> Option<Result<Mode, String>> {
    if !serve::socket(host).exists() {
        return None;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let answer = runtime
        .map_err(anyhow::Error::from)
        .and_then(|runtime| Ok(runtime.block_on(serve::ask(host))?));
    Some(answer.map(|status| status.node.mode).map_err(|error| format!("{error:#}")))
}

impl Facts {
    /// Returns one finding for each check that applies.
    pub fn judge(&self) -> Report {
        let nri = self.nri();
        // A runtime with NRI switched off serves no socket, so the finding about NRI suffices.
        let socket = if nri.as_ref().is_some_and(|nri| nri.mark == Mark::Failed) {
            None
        } else {
            self.nri_socket()
        };
        let is_v2 = matches!(self.hierarchy, Ok(Hierarchy::V2));
        let checks = [
            Some(self.root()),
            Some(self.cgroup_v2()),
            is_v2.then(|| self.memory_controller()),
            Some(self.kernel()),
            is_v2.then(|| self.memory_files()).flatten(),
            is_v2.then(|| self.recursive_protection()),
            is_v2.then(|| self.pressure()),
            Some(self.runtime()),
            nri,
            socket,
            self.nri_timeouts(),
            Some(self.configuration()),
            Some(self.installation()),
            Some(self.other_plugins()),
            Some(self.kubelet_memory_qos()),
            Some(self.node_allocatable()),
            self.node_guard(),
            Some(self.checkpoints()),
            Some(self.d_bus()),
            Some(self.swap()),
            Some(self.restore()),
            Some(self.mode()),
            Some(self.inotify()),
        ];
        let checks: Vec<_> = checks.into_iter().flatten().collect();
        let unknown = checks.iter().filter(|finding| finding.mark == Mark::Unknown).count();
        Report { able: checks.iter().all(|finding| finding.mark != Mark::Failed), unknown, checks }
    }

    /// Returns the advice for a file that cannot be read.
    const fn how_to_read(&self) -> &'static str {
        if self.is_root { "see why that cannot be read" } else { "call this as root" }
    }

    fn root(&self) -> Finding {
        const CHECK: &str = "root";
        if self.is_root {
            return Finding::ok(CHECK, "this runs as root");
        }
        Finding::warning(
            CHECK,
            "this does not run as root, so some findings are guesses",
            "call it again with sudo",
        )
    }

    fn cgroup_v2(&self) -> Finding {
        const CHECK: &str = "cgroup-v2";
        const SWITCH: &str = "boot with systemd.unified_cgroup_hierarchy=1 on the kernel's command line, or without systemd with \
                              cgroup_no_v1=all and cgroup2 mounted at /sys/fs/cgroup";
        let hierarchy = match &self.hierarchy {
            Ok(hierarchy) => hierarchy,
            Err(error) => {
                return Finding::unknown(
                    CHECK,
                    format!("/sys/fs/cgroup: {}", error.why),
                    self.how_to_read(),
                );
            }
        };
        match hierarchy {
            Hierarchy::V2 => Finding::ok(CHECK, "version 2 at /sys/fs/cgroup"),
            Hierarchy::Hybrid => {
                let found = "the hybrid hierarchy: version 2 is only at /sys/fs/cgroup/unified, and the memory controller with \
                             version 1";
                Finding::failed(CHECK, found, SWITCH)
            }
            Hierarchy::V1 => Finding::failed(
                CHECK,
                "version 1 at /sys/fs/cgroup, which has no memory.min or memory.high",
                SWITCH,
            ),
            Hierarchy::Missing => Finding::failed(
                CHECK,
                "no cgroups at /sys/fs/cgroup",
                "mount cgroup2 there, or give --host where the node's file system is",
            ),
        }
    }

    fn memory_controller(&self) -> Finding {
        const CHECK: &str = "memory-controller";
        match &self.controllers {
            Ok(text) if has_memory(text.as_deref()) => {}
            Ok(_) if self.disables_memory => {
                let advice = "take cgroup_disable=memory off the kernel's command line, and boot";
                return Finding::failed(CHECK, "the kernel has it switched off", advice);
            }
            Ok(_) => {
                let advice = "boot with cgroup_enable=memory cgroup_no_v1=memory; the kernel needs CONFIG_MEMCG";
                return Finding::failed(
                    CHECK,
                    "/sys/fs/cgroup/cgroup.controllers does not have it",
                    advice,
                );
            }
            Err(error) => {
                let found = format!("/sys/fs/cgroup/cgroup.controllers: {}", error.why);
                return Finding::unknown(CHECK, found, self.how_to_read());
            }
        }
        let full = |level: &Level| {
            Path::new("/sys/fs/cgroup").join(&level.path).join("cgroup.subtree_control")
        };
        let has_kubepods = self.levels.iter().any(|level| !level.path.is_empty());
        // A cgroup without children needs no controller for children. The kubelet or systemd
        // enables the controller with the first child.
        for level in &self.levels {
            let file = full(level).display().to_string();
            match &level.has_children {
                Ok(true) => {}
                Ok(false) => continue,
                Err(error) => {
                    let directory = Path::new("/sys/fs/cgroup").join(&level.path);
                    let found = format!("cannot list {}: {}", directory.display(), error.why);
                    return Finding::unknown(CHECK, found, self.how_to_read());
                }
            }
            match &level.enabled {
                Ok(true) => {}
                Ok(false) => {
                    let advice = format!(
                        "echo +memory > {file}; if it is gone again, see the logs of the kubelet and systemd"
                    );
                    let found =
                        format!("{file} does not have it, so what is below has no memory.* files");
                    let finding = if has_kubepods { Finding::failed } else { Finding::warning };
                    return finding(CHECK, found, advice);
                }
                Err(error) => {
                    return Finding::unknown(
                        CHECK,
                        format!("{file}: {}", error.why),
                        self.how_to_read(),
                    );
                }
            }
        }
        if has_kubepods {
            return Finding::ok(CHECK, "on from the root to the classes of pods");
        }
        if !self.unsearched.is_empty() {
            let found =
                format!("on at the root; cannot look for kubepods: {}", self.unsearched.join("; "));
            return Finding::unknown(CHECK, found, self.how_to_read());
        }
        let advice = "start the kubelet; without one there is nothing above containers to set";
        Finding::warning(CHECK, "on at the root, but there is no kubepods cgroup", advice)
    }

    fn kernel(&self) -> Finding {
        const CHECK: &str = "kernel";
        let release = match &self.release {
            Ok(text) => text.as_deref().unwrap_or_default().trim(),
            Err(error) => {
                let found =
                    format!("its release is unknown: /proc/sys/kernel/osrelease: {}", error.why);
                return Finding::unknown(CHECK, found, "see that it is 5.19 or newer (uname -r)");
            }
        };
        let shown = excerpt(release);
        match Version::find(release) {
            None => Finding::unknown(
                CHECK,
                format!("its release is unknown: /proc/sys/kernel/osrelease has '{shown}'"),
                "see that it is 5.19 or newer (uname -r)",
            ),
            Some(version) if version < OLDEST_KERNEL => Finding::failed(
                CHECK,
                format!("{shown}, before 5.9, where processes may hang for good at memory.high"),
                "upgrade to 5.9, better to 5.19 or newer",
            ),
            Some(version) if version < RECLAIM_KERNEL => Finding::warning(
                CHECK,
                format!(
                    "{shown}, before 5.19: without memory.reclaim a limit is lowered only where there is room already"
                ),
                "upgrade to 5.19 or newer",
            ),
            Some(_) => Finding::ok(
                CHECK,
                format!("{shown} (5.9 has memory.high as needed, 5.19 memory.reclaim)"),
            ),
        }
    }

    fn memory_files(&self) -> Option<Finding> {
        const CHECK: &str = "memory-files";
        let Some(Child { path, missing, unread }) = &self.child else {
            // Without the controller no cgroup has these files. The check `memory-controller`
            // reports the missing controller.
            let has_controller =
                self.controllers.as_ref().is_ok_and(|text| has_memory(text.as_deref()));
            return has_controller.then(|| {
                let found =
                    "there is no cgroup with the memory controller below /sys/fs/cgroup to look at";
                Finding::unknown(CHECK, found, "start the kubelet, and call this again")
            });
        };
        let release = self.release.as_ref().ok().and_then(|text| Version::find(text.as_deref()?));
        let is_old = release.is_some_and(|release| release < RECLAIM_KERNEL);
        // A kernel before 5.19 has no memory.reclaim. The check `kernel` reports the old kernel.
        let missing: Vec<_> = missing
            .iter()
            .filter(|file| !(is_old && **file == "memory.reclaim"))
            .copied()
            .collect();
        let place = format!("/sys/fs/cgroup/{}", excerpt(path));
        if !unread.is_empty() {
            return Some(Finding::unknown(
                CHECK,
                format!("{place}: {}", unread.join("; ")),
                self.how_to_read(),
            ));
        }
        if missing.is_empty() {
            return Some(Finding::ok(CHECK, format!("all that are needed in {place}")));
        }
        let found = format!("{place} has no {}", missing.join(", no "));
        let finding =
            if missing.contains(&"memory.high") { Finding::failed } else { Finding::warning };
        Some(finding(
            CHECK,
            found,
            "run a kernel of 5.19 or newer that was built with all of CONFIG_MEMCG",
        ))
    }

    fn recursive_protection(&self) -> Finding {
        const CHECK: &str = "recursive-protection";
        match &self.is_recursive {
            Ok(true) => return Finding::ok(CHECK, "cgroup2 is mounted with memory_recursiveprot"),
            Ok(false) => {}
            Err(error) => {
                let found = format!("/proc/self/mounts: {}", error.why);
                return Finding::unknown(
                    CHECK,
                    found,
                    "see that it has memory_recursiveprot for cgroup2 (mount -t cgroup2)",
                );
            }
        }
        let found = "cgroup2 is mounted without memory_recursiveprot: containers are protected all the same, as every level above \
                     them is set, but systemReserved and kubeReserved do not reach what lies below their cgroups";
        let advice = "mount -o remount,nsdelegate,memory_recursiveprot /sys/fs/cgroup (kernel 5.7 or newer; systemd does it at boot)";
        Finding::warning(CHECK, found, advice)
    }

    fn pressure(&self) -> Finding {
        const CHECK: &str = "pressure";
        let why = match &self.pressure {
            Ok(Some(_)) => return Finding::ok(CHECK, "memory.pressure is there"),
            Ok(None) => "there is none",
            Err(error) => {
                let found = format!("memory.pressure: {}", error.why);
                return Finding::unknown(
                    CHECK,
                    found,
                    "see that 'cat /proc/pressure/memory' works, else boot with psi=1",
                );
            }
        };
        Finding::warning(
            CHECK,
            format!(
                "memory.pressure: {why}; containers that stand still at memory.high are not released (throttleDeadline)"
            ),
            "boot with psi=1 on the kernel's command line",
        )
    }

    /// Returns the runtimes that are present. Runtimes whose socket listens or denies access count.
    /// Without such a socket, runtimes with configuration files count.
    fn present(&self) -> Vec<&Runtime> {
        let by = |is: fn(&Runtime) -> bool| {
            self.runtimes.iter().filter(|runtime| is(runtime)).collect::<Vec<_>>()
        };
        let here = by(|runtime| matches!(runtime.socket, Socket::Listens | Socket::Denied));
        if here.is_empty() { by(|runtime| runtime.settings.files > 0) } else { here }
    }

    fn runtime(&self) -> Finding {
        const CHECK: &str = "runtime";
        let mut findings = Vec::new();
        let here: Vec<_> =
            self.runtimes.iter().filter(|runtime| runtime.socket == Socket::Listens).collect();
        if here.is_empty() {
            let states = self.runtimes.iter().map(|Runtime { kind, socket, .. }| match socket {
                Socket::Denied => format!("/{}: permission denied", kind.socket),
                Socket::Dead(why) => format!("/{}: {why}", kind.socket),
                _ => format!("no /{}", kind.socket),
            });
            let found = states.collect::<Vec<_>>().join(", ");
            let is_denied = self.runtimes.iter().any(|runtime| runtime.socket == Socket::Denied);
            if is_denied {
                return Finding::unknown(CHECK, found, self.how_to_read());
            }
            let advice = "start containerd or CRI-O; elsewhere its settings are not looked at";
            return Finding::warning(CHECK, found, advice);
        }
        if here.len() > 1 {
            findings.push(Finding::warning(
                CHECK,
                "both containerd and CRI-O listen, and only the one that was started last has the NRI socket",
                "switch NRI off in the one that the kubelet does not use, or stop it",
            ));
        }
        for Runtime { kind, version, settings, .. } in &here {
            if settings.is_without_cri && here.len() == 1 {
                findings.push(Finding::warning(
                    CHECK,
                    format!("{} has its CRI plugin off, so that it serves no kubelet", kind.name),
                    "take cri out of disabled_plugins in /etc/containerd/config.toml, and restart containerd",
                ));
            }
            if version.is_none() && kind.name == CONTAINERD.name {
                findings.push(Finding::unknown(
                    CHECK,
                    "containerd, of unknown version: its NRI may be of before 0.6.1",
                    "see that 'containerd --version' says 1.7.16 or newer, or call this on the node itself, without --host",
                ));
            }
            if let Some(version) = version
                && kind.name == CONTAINERD.name
                && (CONTAINERD.oldest..CONTAINERD_1_7).contains(version)
            {
                findings.push(Finding::warning(
                    CHECK,
                    format!("{} {version} has an NRI of before 0.6.1", kind.name),
                    "upgrade to 1.7.16 or newer",
                ));
            }
        }
        let named = here.iter().map(|Runtime { kind, version, .. }| match version {
            Some(version) => format!("{} {version}", kind.name),
            None => format!("{}, of unknown version", kind.name),
        });
        Finding::all(CHECK, named.collect::<Vec<_>>().join(" and "), findings)
    }

    fn nri(&self) -> Option<Finding> {
        const CHECK: &str = "nri";
        let present = self.present();
        let off: Vec<_> =
            present.iter().filter_map(|runtime| Some((*runtime, runtime.why_off()?))).collect();
        let mut findings = Vec::new();
        // If NRI is on in one of two runtimes, that runtime serves the plugin.
        if off.len() == present.len() {
            for (Runtime { kind, .. }, (why, advice)) in &off {
                findings.push(match self.nri {
                    Socket::Listens => {
                        let found = format!(
                            "{why}, though the socket is served: it will be off once {} restarts",
                            kind.name
                        );
                        Finding::warning(CHECK, found, advice)
                    }
                    _ => Finding::failed(CHECK, why, advice),
                });
            }
        }
        for Runtime { kind, settings, .. } in &present {
            for problem in settings.unread.iter().take(MOST_NAMES) {
                let advice = format!(
                    "see that {} has NRI on there; what is told of NRI here is without it",
                    kind.name
                );
                findings.push(Finding::unknown(CHECK, problem, advice));
            }
            for problem in settings.problems.iter().take(MOST_NAMES) {
                let advice = format!(
                    "mend it where {} does not take it; what is told of NRI here is without it",
                    kind.name
                );
                findings.push(Finding::warning(CHECK, problem, advice));
            }
            if settings.takes_no_connections {
                findings.push(Finding::warning(
                    CHECK,
                    format!(
                        "{} has {} = true: the plugin works only when launched, and not again once its connection is lost",
                        kind.name, kind.keys[NO_CONNECTIONS]
                    ),
                    format!("set {} = false and restart {}", kind.keys[NO_CONNECTIONS], kind.name),
                ));
            }
            if let Some(path) = settings
                .config_path
                .as_deref()
                .filter(|path| path.trim_end_matches('/') != DROP_INS)
            {
                findings.push(Finding::warning(
                    CHECK,
                    format!(
                        "{} has {} = '{}': changes of the configuration there take effect only with a restart",
                        kind.name,
                        kind.keys[CONFIG_PATH],
                        excerpt(path)
                    ),
                    format!("leave {} out, or run the plugin as a service with --config", kind.keys[CONFIG_PATH]),
                ));
            }
        }
        let on = present
            .iter()
            .filter(|runtime| runtime.why_off().is_none())
            .map(|runtime| runtime.kind.name);
        let on: Vec<_> = on.collect();
        (!present.is_empty()).then(|| {
            Finding::all(CHECK, format!("not switched off in {}", on.join(" and ")), findings)
        })
    }

    fn nri_socket(&self) -> Option<Finding> {
        const CHECK: &str = "nri-socket";
        let shown = shown(&self.nri_path.display().to_string());
        let why = match &self.nri {
            Socket::Listens => return Some(Finding::ok(CHECK, format!("{shown} is served"))),
            Socket::Denied => {
                let found = format!("{shown}: permission denied");
                let advice =
                    if self.is_root { "see which policy forbids it" } else { "call this as root" };
                return Some(Finding::unknown(CHECK, found, advice));
            }
            Socket::Absent => format!("there is no {shown}"),
            Socket::Dead(why) => format!("{shown}: {why}"),
        };
        let present = self.present();
        let has_launched =
            self.programs.iter().any(|program| program.is_ours() && program.is_executable);
        if has_launched && present.iter().any(|runtime| runtime.settings.takes_no_connections) {
            return None;
        }
        let short = |path: &str| path.strip_prefix("/var").unwrap_or(path).to_owned();
        let elsewhere =
            present.iter().filter_map(|runtime| runtime.settings.socket_path.as_deref());
        let given = short(&self.nri_path.to_string_lossy());
        let advice = match elsewhere.into_iter().find(|path| short(path) != given) {
            Some(path) => format!("give --socket {}, to plimsoll run, too", excerpt(path)),
            None if self.runtimes.iter().all(|runtime| runtime.socket != Socket::Listens) => {
                "start the container runtime".to_owned()
            }
            None => "restart the container runtime and see its log for nri: containerd before 2.0 and CRI-O before 1.30 have it off \
                     by default"
                .to_owned(),
        };
        Some(Finding::failed(CHECK, why, advice))
    }

    fn nri_timeouts(&self) -> Option<Finding> {
        const CHECK: &str = "nri-timeouts";
        let present = self.present();
        let shown = |duration: Duration| humantime::format_duration(duration).to_string();
        let mut findings = Vec::new();
        let mut fine = Vec::new();
        for Runtime { kind, settings, .. } in &present {
            let request = settings.request_timeout.unwrap_or(REQUEST_TIMEOUT);
            let event = request / BUDGET;
            let found = format!(
                "{} waits {} for an answer, of which an event has {} and a cut that reclaims {}",
                kind.name,
                shown(request),
                shown(event),
                shown(event * CUT_BUDGET)
            );
            if !settings.unread.is_empty() {
                let found = format!("{found}, by what could be read of its configuration");
                let advice = format!("see that {} is 2s or more there", kind.keys[REQUEST]);
                findings.push(Finding::unknown(CHECK, found, advice));
                continue;
            }
            if request < SHORT_TIMEOUT {
                let advice = format!(
                    "set {} to \"2s\" or more and restart {}",
                    kind.keys[REQUEST], kind.name
                );
                findings.push(Finding::warning(CHECK, found, advice));
            } else {
                fine.push(found);
            }
            if let Some(registration) =
                settings.registration_timeout.filter(|timeout| *timeout < SHORT_TIMEOUT)
            {
                findings.push(Finding::warning(
                    CHECK,
                    format!(
                        "{} waits only {} for a plugin to register",
                        kind.name,
                        shown(registration)
                    ),
                    format!("set {} to \"5s\" and restart {}", kind.keys[REGISTRATION], kind.name),
                ));
            }
        }
        (!present.is_empty()).then(|| Finding::all(CHECK, fine.join("; "), findings))
    }

    fn configuration(&self) -> Finding {
        const CHECK: &str = "configuration";
        let Some((path, text)) = self.drop_ins.first() else {
            if self.told.is_some() {
                let found = format!(
                    "no {DROP_INS}/90-plimsoll.conf, and the plugin that runs may have another file"
                );
                let advice = "call 'plimsoll check' with the file that the plugin was given with --config, or that the chart made";
                return Finding::unknown(CHECK, found, advice);
            }
            return Finding::ok(
                CHECK,
                format!("no {DROP_INS}/90-plimsoll.conf, so the defaults are in force"),
            );
        };
        let shown = excerpt(path);
        let text = match text {
            Ok(text) => text,
            Err(error) if error.is_denied && !self.is_root => {
                return Finding::unknown(
                    CHECK,
                    format!("{shown}: {}", error.why),
                    "call this as root",
                );
            }
            Err(error) => {
                let advice = "make it a file that root can read, or remove it: the defaults are in force then";
                return Finding::failed(CHECK, format!("{shown}: {}", error.why), advice);
            }
        };
        match Config::parse(text, &shown) {
            Ok(_) => match self.drop_ins.get(1) {
                Some((other, _)) => Finding::ok(
                    CHECK,
                    format!("{shown} is valid; {} is passed over", excerpt(other)),
                ),
                None => Finding::ok(CHECK, format!("{shown} is valid")),
            },
            Err(errors) => {
                let found = format!(
                    "{shown} has mistakes, with which the plugin does not start:\n{errors}"
                );
                Finding::failed(
                    CHECK,
                    found,
                    format!("mend them; 'plimsoll check {shown}' looks again"),
                )
            }
        }
    }

    fn installation(&self) -> Finding {
        const CHECK: &str = "installation";
        let mut findings = Vec::new();
        let ours: Vec<_> = self.programs.iter().filter(|program| program.is_ours()).collect();
        for Program { path, .. } in ours.iter().filter(|program| !program.is_executable) {
            let found =
                format!("{} is not executable, so the runtime passes over it", excerpt(path));
            findings.push(Finding::warning(CHECK, found, format!("chmod 755 {}", excerpt(path))));
        }
        let launched =
            ours.iter().filter(|program| program.is_executable && program.index.is_some());
        let mut ways: Vec<_> = launched.map(|program| excerpt(&program.path)).collect();
        ways.extend(self.unit.clone());
        if ways.len() > 1 {
            findings.push(Finding::warning(
                CHECK,
                format!("{} are there, and only one of them works at a time", ways.join(" and ")),
                "remove all but one",
            ));
        }
        let process = self.process.as_ref().map(Option::as_deref);
        match (ways.first(), process) {
            (None, _) if !self.unlisted.is_empty() => {
                findings.push(Finding::unknown(CHECK, self.unlisted.join("; "), self.how_to_read()));
            }
            (None, Some(None) | None) if findings.is_empty() => findings.push(Finding::warning(
                CHECK,
                format!("neither {PLUGINS}/90-plimsoll nor a plimsoll.service is there"),
                "plimsoll install",
            )),
            (Some(way), Some(None)) if self.nri == Socket::Listens => findings.push(Finding::warning(
                CHECK,
                format!("{way} is there, but does not run"),
                match self.unit {
                    Some(_) => "systemctl enable --now plimsoll; its messages: journalctl -u plimsoll",
                    None => "restart the container runtime, which launches it; its messages: journalctl -t plimsoll",
                },
            )),
            (Some(way), None) => findings.push(Finding::unknown(
                CHECK,
                format!("{way} is there; cannot find out whether it runs, as /proc/locks or the lock beside the NRI socket cannot be read"),
                "see whether it does: pgrep -a plimsoll",
            )),
            _ => {}
        }
        let runs = match process {
            Some(Some(id)) => format!(" and runs as process {}", excerpt(id)),
            _ => String::new(),
        };
        let way = ways.first().map_or("it was started by somebody else", String::as_str);
        Finding::all(
            CHECK,
            if ways.is_empty() { format!("{way}{runs}") } else { format!("{way} is there{runs}") },
            findings,
        )
    }

    fn other_plugins(&self) -> Finding {
        const CHECK: &str = "other-plugins";
        let programs: Vec<_> = self
            .programs
            .iter()
            .filter(|program| !program.is_ours() && program.is_executable)
            .collect();
        let mut findings = Vec::new();
        for Program { path, .. } in
            programs.iter().filter(|program| program.index.is_none()).take(MOST_NAMES)
        {
            findings.push(Finding::warning(
                CHECK,
                format!(
                    "{} has no name such as 10-name, and runtimes do not start NRI beside such a file",
                    excerpt(path)
                ),
                "rename it, or remove it",
            ));
        }
        if !self.unlisted.is_empty() {
            findings.push(Finding::unknown(CHECK, self.unlisted.join("; "), self.how_to_read()));
        }
        let mut known: Vec<_> = programs.iter().map(|program| program.path.as_str()).collect();
        known.extend(self.others.iter().map(String::as_str));
        let is_rival =
            |name: &&&str| RIVALS.iter().any(|rival| name.to_lowercase().contains(rival));
        let rivals: Vec<_> =
            known.iter().filter(is_rival).take(MOST_NAMES).map(|name| excerpt(name)).collect();
        if !rivals.is_empty() {
            findings.push(Finding::warning(
                CHECK,
                format!(
                    "{}: sets memory values of containers, too, and of two that set the same NRI refuses the container",
                    rivals.join(", ")
                ),
                "let only one of them set memory.min, memory.low and memory.high",
            ));
        }
        let mut shown: Vec<_> = known.iter().take(MOST_NAMES).map(|name| excerpt(name)).collect();
        if known.len() > MOST_NAMES {
            shown.push(format!("{} more", known.len() - MOST_NAMES));
        }
        let otherwise = if shown.is_empty() { "none".to_owned() } else { shown.join(", ") };
        let otherwise = format!(
            "{otherwise} in the runtime's directories; plugins that connect by themselves are not seen"
        );
        Finding::all(CHECK, otherwise, findings)
    }

    fn kubelet_memory_qos(&self) -> Finding {
        const CHECK: &str = "kubelet-memory-qos";
        // Splits a message into the observed state and the advice.
        let split = |text: String| match text.split_once("; ") {
            Some((found, advice)) => (found.to_owned(), advice.to_owned()),
            None => (text, "switch it off".to_owned()),
        };
        if let Some(unsettled) = &self.memory.unsettled {
            let (mut found, advice) = split(unsettled.to_string());
            let problem = match &self.kubelet_config {
                Ok(text) => text.as_deref().and_then(|text| KubeletReservations::parse(text).err()),
                Err(error) => Some(error.why.clone()),
            };
            if let Some(problem) = problem {
                found = format!("{found}: {problem}");
            }
            return Finding::unknown(CHECK, found, advice);
        }
        let conflicts = self.memory.conflicts.iter().map(|conflict| {
            let (found, advice) = split(conflict.to_string());
            Finding::warning(CHECK, format!("the kubelet {found}"), advice)
        });
        let overrides = match &self.kubelets {
            Err(error) => vec![format!("cannot look for the kubelet's process in /proc: {}", error.why)],
            Ok(kubelets) if kubelets.is_empty() => vec![
                "found no process of the kubelet: its flags and drop-ins may override /var/lib/kubelet/config.yaml"
                    .to_owned(),
            ],
            Ok(kubelets) => {
                let unsettled = kubelets.iter().filter(|kubelet| kubelet.memory_qos() != Some(false));
                let overrides = unsettled.flat_map(|kubelet| {
                    let is_set = kubelet.memory_qos() == Some(true);
                    let flag = is_set.then(|| "the kubelet has a flag --feature-gates that sets MemoryQoS".to_owned());
                    flag.into_iter().chain(kubelet.unread_configurations())
                });
                overrides.collect()
            }
        };
        let advice = "see that featureGates.MemoryQoS is false in the flags and drop-ins of the kubelet; 'kubectl get --raw \
                      /api/v1/nodes/NODE/proxy/configz' shows what is in force";
        let unknown = overrides.into_iter().map(|found| Finding::unknown(CHECK, found, advice));
        let otherwise = "off in /var/lib/kubelet/config.yaml (featureGates), which no flag or drop-in of the kubelet overrides";
        Finding::all(CHECK, otherwise, conflicts.chain(unknown).collect())
    }

    /// Describes kubelet settings that may make node allocatable differ from the kubelet's
    /// configuration file.
    fn allocatable_overrides(&self) -> Vec<String> {
        let kubelets = self.kubelets.as_deref().unwrap_or_default();
        let overrides = kubelets.iter().flat_map(|kubelet| {
            let flags =
                ALLOCATABLE_FLAGS.into_iter().filter(|flag| kubelet.values(flag).next().is_some());
            let flags = flags.map(|flag| format!("the kubelet has the flag {flag}"));
            kubelet.unread_configurations().into_iter().chain(flags).collect::<Vec<_>>()
        });
        overrides.collect()
    }

    /// Returns the plugin's configuration from its first configuration file. Returns `None` if the
    /// file is missing or invalid.
    fn config(&self) -> Option<Config> {
        self.drop_ins.first().and_then(|(path, text)| Config::parse(text.as_ref().ok()?, path).ok())
    }

    fn node_allocatable(&self) -> Finding {
        const CHECK: &str = "node-allocatable";
        if let Some(Config { node_allocatable: NodeAllocatable::Fixed(bytes), .. }) = self.config()
        {
            return Finding::ok(
                CHECK,
                format!("{bytes} bytes ({}), given by the configuration", bytes.approx()),
            );
        }
        let advice =
            "see that these files are there and right, or set nodeAllocatable in the configuration";
        let problems = self
            .memory
            .problems
            .iter()
            .map(|problem| Finding::unknown(CHECK, problem.to_string(), advice));
        let mut findings: Vec<_> = problems.collect();
        let source = self.memory.source;
        let Some(bytes) = self.memory.allocatable else {
            findings.push(Finding::unknown(CHECK, format!("unknown, from {source}"), advice));
            return Finding::all(CHECK, "", findings);
        };
        let found = format!("{bytes} bytes ({}), from {source}", bytes.approx());
        let from_kubectl = "set nodeAllocatable in the configuration to what 'kubectl describe node' has as allocatable memory";
        if matches!(
            source,
            AllocatableSource::KubeletConfig | AllocatableSource::KubeletConfigConfirmed
        ) {
            let overrides = self.allocatable_overrides().into_iter();
            findings.extend(
                overrides
                    .map(|why| Finding::unknown(CHECK, format!("{found}: {why}"), from_kubectl)),
            );
        }
        let no_config = "no configuration of the kubelet at /var/lib/kubelet/config.yaml";
        match source {
            AllocatableSource::KubepodsOverConfig => findings.push(Finding::warning(
                CHECK,
                format!(
                    "{found}: /var/lib/kubelet/config.yaml does not explain memory.max of kubepods, so flags or drop-ins of the \
                     kubelet may change its eviction threshold, too"
                ),
                from_kubectl,
            )),
            AllocatableSource::AllMemory => findings.push(Finding::unknown(
                CHECK,
                format!("{found}: there is no kubepods cgroup, and {no_config}"),
                "start the kubelet, or set nodeAllocatable in the configuration",
            )),
            AllocatableSource::Kubepods if findings.is_empty() => findings.push(Finding::unknown(
                CHECK,
                format!("{found} of 100Mi, the kubelet's default: there is {no_config}"),
                from_kubectl,
            )),
            _ => {}
        }
        Finding::all(CHECK, found, findings)
    }

    fn node_guard(&self) -> Option<Finding> {
        const CHECK: &str = "node-guard";
        let config = self.config()?;
        let kept = config.node_guard?;
        let Some(usable) = self.memory.usable else {
            let found = "cannot find out what nodeGuard leaves pods: /proc/meminfo cannot be read; nothing is kept from them";
            return Some(Finding::unknown(CHECK, found, self.how_to_read()));
        };
        let line = usable.saturating_sub(kept);
        let allocatable = match config.node_allocatable {
            NodeAllocatable::Auto => self.memory.allocatable,
            NodeAllocatable::Fixed(bytes) => Some(bytes),
        };
        let mut found = format!("leaves pods {} of {}", line.approx(), usable.approx());
        if line == Bytes::ZERO {
            return Some(Finding::warning(CHECK, found, "set nodeGuard to less than all memory"));
        }
        let mut findings = Vec::new();
        match allocatable {
            Some(allocatable) if allocatable > line => findings.push(Finding::warning(
                CHECK,
                format!("{found}, and the scheduler counts on {}", allocatable.approx()),
                "let the kubelet reserve as much (systemReserved, evictionHard), or set nodeGuard to less",
            )),
            Some(_) => {}
            None => {
                found = format!("{found}; what the scheduler counts on is unknown");
                findings.push(Finding::unknown(CHECK, &found, "set nodeAllocatable in the configuration"));
            }
        }
        if config.reserved.is_empty() {
            match &self.has_system_slice {
                Ok(true) => {}
                Ok(false) => findings.push(Finding::warning(
                    CHECK,
                    format!("{NO_SYSTEM_SLICE}: nothing protects the memory of the system"),
                    NAME_THE_SYSTEM,
                )),
                Err(error) => {
                    let found = format!("/sys/fs/cgroup/system.slice: {}", error.why);
                    findings.push(Finding::unknown(CHECK, found, self.how_to_read()));
                }
            }
        }
        Some(Finding::all(CHECK, found, findings))
    }

    fn checkpoints(&self) -> Finding {
        const CHECK: &str = "checkpoints";
        if !self.checkpoint_problems.is_empty() {
            let found = self.checkpoint_problems.join("; ");
            let advice = if self.is_root {
                "see the kubelet's log; it writes them anew"
            } else {
                "call this as root"
            };
            return Finding::unknown(CHECK, found, advice);
        }
        if !self.checkpoints.is_empty() {
            return Finding::ok(
                CHECK,
                format!("/{KUBELET} has {}", self.checkpoints.join(" and ")),
            );
        }
        let found = if self.has_kubelet {
            format!(
                "/{KUBELET} has none, as with Kubernetes before 1.33: most requests are known to a thousandth of memory only"
            )
        } else {
            format!("there is no /{KUBELET}: requests are estimated")
        };
        let advice =
            "run Kubernetes 1.33 or newer, or annotate pods with memory-request.plimsoll.nri.io";
        Finding::warning(CHECK, found, advice)
    }

    fn d_bus(&self) -> Finding {
        const CHECK: &str = "d-bus";
        match &self.has_systemd {
            // A pod may have the D-Bus socket without /run/systemd/system. A socket that listens
            // therefore also shows that systemd is the init.
            Ok(is_init) if *is_init || matches!(self.bus, Socket::Listens) => {}
            Ok(_) => return Finding::ok(CHECK, "not needed, as systemd is not the init"),
            Err(error) => {
                let found =
                    format!("cannot find out whether systemd is the init: /run: {}", error.why);
                return Finding::unknown(
                    CHECK,
                    found,
                    "give --host where the node's file system is, with its /run",
                );
            }
        }
        let why = match &self.bus {
            Socket::Listens => return Finding::ok(CHECK, format!("/{BUS} is served")),
            Socket::Absent => format!("there is no /{BUS}"),
            Socket::Denied => {
                return Finding::unknown(
                    CHECK,
                    format!("/{BUS}: permission denied"),
                    self.how_to_read(),
                );
            }
            Socket::Dead(why) => format!("/{BUS}: {why}"),
        };
        let found = format!(
            "{why}; values of slices are gone after a daemon-reload, until they are repaired"
        );
        Finding::warning(CHECK, found, "install and start dbus (systemctl start dbus.socket)")
    }

    fn swap(&self) -> Finding {
        const CHECK: &str = "swap";
        match &self.swaps {
            Ok(Some(swaps)) => {
                let swaps = swaps.lines().skip(1);
                let names: Vec<_> = swaps
                    .filter_map(|line| line.split_ascii_whitespace().next())
                    .take(MOST_NAMES)
                    .map(excerpt)
                    .collect();
                if names.is_empty() {
                    return Finding::ok(CHECK, "off");
                }
                let found = format!(
                    "on ({}); containers have some of it only with the kubelet's swapBehavior LimitedSwap, and keep their part over \
                     updates; what stands at memory.high is swapped out first then",
                    names.join(", ")
                );
                Finding::ok(CHECK, found)
            }
            Ok(None) => {
                let advice = "see SwapTotal in /proc/meminfo: 0 is off";
                Finding::unknown(CHECK, "/proc/swaps: it is not there", advice)
            }
            Err(error) => {
                Finding::unknown(CHECK, format!("/proc/swaps: {}", error.why), self.how_to_read())
            }
        }
    }

    fn restore(&self) -> Finding {
        const CHECK: &str = "restore";
        match &self.stands_aside {
            Ok(false) => Finding::ok(CHECK, "'plimsoll restore' was not called"),
            Ok(true) => {
                let found = "'plimsoll restore' was called, so nothing is set";
                Finding::warning(CHECK, found, "plimsoll restore --undo")
            }
            Err(error) => Finding::unknown(
                CHECK,
                format!("/{STAND_ASIDE}: {}", error.why),
                self.how_to_read(),
            ),
        }
    }

    /// Checks whether the plugin writes values or only observes.
    fn mode(&self) -> Finding {
        const CHECK: &str = "mode";
        let says = |mode| match mode {
            Mode::Enforce => Finding::ok(CHECK, "enforce"),
            Mode::Observe => {
                Finding::ok(CHECK, "observe: nothing is set; 'plimsoll status' shows what would be")
            }
        };
        match &self.brake {
            Ok(Some(record)) => {
                let found = format!("the brake is applied after {record}, so nothing is set");
                Finding::warning(
                    CHECK,
                    found,
                    "find out why there was so much, then plimsoll reset-brake",
                )
            }
            Err(error) => {
                let found =
                    format!("/{DIRECTORY}/{}: {error}; the plugin only observes", brake::FILE);
                Finding::unknown(CHECK, found, "plimsoll reset-brake")
            }
            Ok(None) => match (&self.told, self.config(), self.drop_ins.first()) {
                (Some(Ok(mode)), ..) => says(*mode),
                (Some(Err(why)), ..) => {
                    let found = format!("the plugin does not tell it: {}", excerpt(why));
                    Finding::unknown(
                        CHECK,
                        found,
                        "start the plugin, or call 'plimsoll status' as root",
                    )
                }
                (None, None, Some((path, _))) => {
                    let found = format!("{} is not valid, so the mode is unknown", excerpt(path));
                    Finding::unknown(
                        CHECK,
                        found,
                        "see the check 'configuration'; 'plimsoll status' shows the mode in force",
                    )
                }
                (None, config, _) => says(config.unwrap_or_default().mode),
            },
        }
    }

    fn inotify(&self) -> Finding {
        const CHECK: &str = "inotify";
        let limits = [
            ("max_user_instances", &self.instances, FEW_INSTANCES),
            ("max_user_watches", &self.watches, FEW_WATCHES),
        ];
        let mut findings = Vec::new();
        let mut fine = Vec::new();
        for (name, text, few) in limits {
            let unread = |why: &str| {
                let found = format!("/proc/sys/fs/inotify/{name}: {why}");
                Finding::unknown(
                    CHECK,
                    found,
                    format!("see that it is {} or more (sysctl fs.inotify.{name})", few * 4),
                )
            };
            let why = match text {
                Ok(None) => {
                    findings.push(unread("it is not there"));
                    continue;
                }
                Ok(Some(text)) => match text.trim().parse::<u64>() {
                    Ok(limit) if limit >= few => {
                        fine.push(format!("{name} {limit}"));
                        continue;
                    }
                    Ok(limit) => format!("only {limit}"),
                    Err(_) => "expected a number".to_owned(),
                },
                Err(error) => {
                    findings.push(unread(&error.why));
                    continue;
                }
            };
            let found = format!("/proc/sys/fs/inotify/{name}: {why}");
            findings.push(Finding::warning(
                CHECK,
                found,
                format!("sysctl fs.inotify.{name}={}", few * 4),
            ));
        }
        Finding::all(CHECK, fine.join(", "), findings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::net::UnixListener;
    use tempfile::TempDir;

    /// Node in a temporary directory, for which every check is ok.
    struct Node {
        root: TempDir,
        listeners: Vec<(&'static str, UnixListener)>,
    }

    const CONTAINERD_SOCKET: &str = "run/containerd/containerd.sock";
    const CRIO_SOCKET: &str = "run/crio/crio.sock";
    const NRI_SOCKET: &str = "run/nri/nri.sock";
    const CONTAINERD_CONFIG: &str = "etc/containerd/config.toml";
    const DROP_IN: &str = "etc/nri/conf.d/90-plimsoll.conf";
    const BINARY: &str = "opt/nri/plugins/90-plimsoll";
    const KUBELET_CONFIG: &str = "var/lib/kubelet/config.yaml";
    const FILES: [(&str, &str); 28] = [
        ("sys/fs/cgroup/cgroup.controllers", "cpu memory pids\n"),
        ("sys/fs/cgroup/cgroup.subtree_control", "cpu memory pids\n"),
        ("sys/fs/cgroup/kubepods.slice/cgroup.subtree_control", "cpu memory pids\n"),
        ("sys/fs/cgroup/kubepods.slice/memory.current", "0\n"),
        ("sys/fs/cgroup/kubepods.slice/memory.high", "max\n"),
        ("sys/fs/cgroup/kubepods.slice/memory.max", "max\n"),
        ("sys/fs/cgroup/kubepods.slice/memory.reclaim", ""),
        ("sys/fs/cgroup/kubepods.slice/memory.oom.group", "0\n"),
        ("sys/fs/cgroup/kubepods.slice/memory.pressure", "some avg10=0.00\n"),
        (
            "sys/fs/cgroup/kubepods.slice/kubepods-burstable.slice/cgroup.subtree_control",
            "cpu memory pids\n",
        ),
        (
            "sys/fs/cgroup/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podx.slice/memory.max",
            "max\n",
        ),
        ("sys/fs/cgroup/kubepods.slice/kubepods-besteffort.slice/cgroup.subtree_control", ""),
        ("proc/sys/kernel/osrelease", "6.12.0-1-amd64\n"),
        (
            "proc/self/mounts",
            "cgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate,memory_recursiveprot 0 0\n",
        ),
        ("proc/meminfo", "MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\n"),
        ("proc/swaps", "Filename Type Size Used Priority\n"),
        ("proc/sys/fs/inotify/max_user_instances", "128\n"),
        ("proc/sys/fs/inotify/max_user_watches", "65536\n"),
        ("run/systemd/system/.keep", ""),
        ("run/nri/plimsoll.lock", ""),
        (CONTAINERD_CONFIG, "version = 3\nimports = ['/etc/containerd/conf.d/*.toml']\n"),
        (DROP_IN, "memoryThrottlingFactor: 0.8\n"),
        (BINARY, ""),
        (KUBELET_CONFIG, "kind: KubeletConfiguration\nfeatureGates: {MemoryQoS: false}\n"),
        ("proc/4242/comm", "kubelet\n"),
        (
            "proc/4242/cmdline",
            "/usr/bin/kubelet\0--config=/var/lib/kubelet/config.yaml\0--node-ip\0::1\0",
        ),
        ("sys/fs/cgroup/system.slice/memory.max", "max\n"),
        ("var/lib/kubelet/actuated_pods_state", r#"{"data": "{\"entries\": {}}", "checksum": 1}"#),
    ];

    impl Node {
        fn good() -> Self {
            let mut node = Self { root: TempDir::new().unwrap(), listeners: Vec::new() };
            for (path, text) in FILES {
                node.write(path, text);
            }
            fs::set_permissions(node.path(BINARY), fs::Permissions::from_mode(0o755)).unwrap();
            let lock = node.path("run/nri/plimsoll.lock").metadata().unwrap();
            let (major, minor) = (rustix::fs::major(lock.dev()), rustix::fs::minor(lock.dev()));
            let inode = lock.ino();
            node.write(
                "proc/locks",
                &format!("1: POSIX  ADVISORY  WRITE 7 00:01:5 0 EOF\n2: FLOCK  ADVISORY  WRITE 4321 {major:02x}:{minor:02x}:{inode} 0 EOF\n"),
            );
            for path in [CONTAINERD_SOCKET, NRI_SOCKET, BUS] {
                node.listen(path);
            }
            node
        }

        fn path(&self, path: &str) -> PathBuf {
            self.root.path().join(path)
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.path(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn remove(&self, path: &str) {
            let path = self.path(path);
            if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
        }

        fn listen(&mut self, path: &'static str) {
            let inside = self.path(path);
            fs::create_dir_all(inside.parent().unwrap()).unwrap();
            self.listeners.push((path, UnixListener::bind(inside).unwrap()));
        }

        /// Stops the listener but keeps the socket file.
        fn die(&mut self, path: &str) {
            self.listeners.retain(|(listening, _)| *listening != path);
        }

        /// Stops the listener and removes the socket file.
        fn close(&mut self, path: &str) {
            self.die(path);
            self.remove(path);
        }

        fn facts(&self) -> Facts {
            let mut facts = Facts::collect(self.root.path(), &self.path(NRI_SOCKET));
            // Doctor runs no program of another file system, so containerd's version is unknown
            // here.
            facts.runtimes[0].version.get_or_insert(Version(2, 1, 0));
            facts
        }

        fn troubles(&self) -> Vec<Finding> {
            troubles(&self.facts())
        }
    }

    /// Returns the findings that are not ok. Ignores `root`, which depends on the user of the
    /// tests.
    fn troubles(facts: &Facts) -> Vec<Finding> {
        let report = facts.judge();
        assert_eq!(report.able, report.checks.iter().all(|finding| finding.mark != Mark::Failed));
        for finding in &report.checks {
            assert_eq!(finding.mark == Mark::Ok, finding.advice.is_none(), "{finding:?}");
        }
        report
            .checks
            .into_iter()
            .filter(|finding| finding.mark != Mark::Ok && finding.check != "root")
            .collect()
    }

    #[track_caller]
    fn expect(troubles: &[Finding], check: &str, mark: Mark, found: &str, advice: &str) {
        let [trouble] = troubles else { panic!("expected {check} alone: {troubles:#?}") };
        assert_eq!((trouble.check, trouble.mark), (check, mark), "{trouble:#?}");
        assert!(trouble.found.contains(found), "{trouble:#?}");
        assert!(trouble.advice.as_ref().unwrap().contains(advice), "{trouble:#?}");
    }

    #[track_caller]
    fn ok(facts: &Facts, check: &str, found: &str) {
        let report = facts.judge();
        let finding = report.checks.iter().find(|finding| finding.check == check).unwrap();
        assert!(finding.mark == Mark::Ok && finding.found.contains(found), "{finding:#?}");
    }

    #[test]
    fn a_good_node_has_nothing_to_do() {
        let facts = Node::good().facts();
        assert_eq!(troubles(&facts), []);
        assert_eq!(facts.judge().checks.len(), 22);
        ok(
            &facts,
            "installation",
            "/opt/nri/plugins/90-plimsoll is there and runs as process 4321",
        );
        ok(&facts, "kernel", "6.12.0-1-amd64");
        ok(
            &facts,
            "nri-timeouts",
            "containerd waits 2s for an answer, of which an event has 200ms and a cut that reclaims 600ms",
        );
        ok(&facts, "node-allocatable", "(7.9Gi), from the kubelet's configuration");
    }

    #[test]
    fn cgroups_of_version_1_fail_and_are_told_from_the_hybrid() {
        for (place, found) in [
            ("unified/cgroup.controllers", "hybrid"),
            ("memory/tasks", "version 1 at"),
            ("none", "no cgroups at /sys/fs/cgroup"),
        ] {
            let node = Node::good();
            node.remove(CGROUPS);
            node.write(&format!("{CGROUPS}/{place}"), "");
            let advice = if place == "none" {
                "mount cgroup2"
            } else {
                "systemd.unified_cgroup_hierarchy=1"
            };
            expect(&node.troubles(), "cgroup-v2", Mark::Failed, found, advice);
        }
    }

    #[test]
    fn the_memory_controller_has_to_be_on_at_every_level_that_has_children() {
        let controller = |path: &str, text: &str| {
            let node = Node::good();
            node.write(&format!("{CGROUPS}/{path}"), text);
            node.troubles()
        };
        let check = |path: &str, found: &str, advice: &str| {
            expect(
                &controller(path, "cpu memoryless\n"),
                "memory-controller",
                Mark::Failed,
                found,
                advice,
            );
        };
        check("cgroup.controllers", "cgroup.controllers does not have it", "cgroup_enable=memory");
        for level in ["", "kubepods.slice/", "kubepods.slice/kubepods-burstable.slice/"] {
            let file = format!("{level}cgroup.subtree_control");
            check(&file, &file, &format!("echo +memory > /sys/fs/cgroup/{file}"));
        }
        // The cgroup of the BestEffort pods has no children.
        assert_eq!(
            controller("kubepods.slice/kubepods-besteffort.slice/cgroup.subtree_control", "cpu\n"),
            []
        );

        let node = Node::good();
        node.write(&format!("{CGROUPS}/cgroup.controllers"), "cpu\n");
        node.write("proc/cmdline", "quiet cgroup_disable=memory\n");
        expect(
            &node.troubles(),
            "memory-controller",
            Mark::Failed,
            "switched off",
            "cgroup_disable=memory",
        );

        let node = Node::good();
        let cgroupfs = format!("{CGROUPS}/kubepods");
        fs::rename(node.path("sys/fs/cgroup/kubepods.slice"), node.path(&cgroupfs)).unwrap();
        assert_eq!(node.troubles(), []);
        node.write(&format!("{cgroupfs}/cgroup.subtree_control"), "");
        expect(
            &node.troubles(),
            "memory-controller",
            Mark::Failed,
            "kubepods/cgroup.subtree_control",
            "+memory",
        );
        node.remove(&cgroupfs);
        for file in [
            "memory.current",
            "memory.high",
            "memory.reclaim",
            "memory.oom.group",
            "memory.pressure",
        ] {
            node.write(&format!("{CGROUPS}/system.slice/{file}"), "");
        }
        node.write(&format!("{CGROUPS}/system.slice/cgroup.subtree_control"), "");
        expect(
            &node.troubles(),
            "memory-controller",
            Mark::Warning,
            "no kubepods cgroup",
            "start the kubelet",
        );
    }

    #[test]
    fn kernels_are_judged_by_their_release() {
        for (release, mark, found) in [
            ("5.8.18", Some(Mark::Failed), "5.8.18, before 5.9"),
            ("5.10.0-28-amd64", Some(Mark::Warning), "5.10.0-28-amd64, before 5.19"),
            ("5.19", None, ""),
            ("7.2-rc1", None, ""),
            ("plan9", Some(Mark::Unknown), "has 'plan9'"),
            ("", Some(Mark::Unknown), "unknown"),
        ] {
            let node = Node::good();
            node.write("proc/sys/kernel/osrelease", release);
            match mark {
                Some(mark) => expect(&node.troubles(), "kernel", mark, found, "5.19 or newer"),
                None => assert_eq!(node.troubles(), [], "{release}"),
            }
        }
    }

    #[test]
    fn files_that_the_kernel_should_have_are_missed() {
        for (file, mark) in [
            ("memory.high", Mark::Failed),
            ("memory.reclaim", Mark::Warning),
            ("memory.oom.group", Mark::Warning),
        ] {
            let node = Node::good();
            node.remove(&format!("{CGROUPS}/kubepods.slice/{file}"));
            let found = format!("kubepods.slice has no {file}");
            expect(&node.troubles(), "memory-files", mark, &found, "kernel");
        }
        let node = Node::good();
        node.remove(&format!("{CGROUPS}/kubepods.slice/memory.reclaim"));
        node.write("proc/sys/kernel/osrelease", "5.15.0");
        expect(&node.troubles(), "kernel", Mark::Warning, "memory.reclaim", "5.19");
    }

    #[test]
    fn what_the_kernel_may_do_better_is_said() {
        let node = Node::good();
        node.write("proc/self/mounts", "cgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0\n");
        expect(
            &node.troubles(),
            "recursive-protection",
            Mark::Warning,
            "systemReserved",
            "remount,nsdelegate,memory_recursiveprot",
        );
        let node = Node::good();
        node.remove(&format!("{CGROUPS}/kubepods.slice/memory.pressure"));
        expect(&node.troubles(), "pressure", Mark::Warning, "throttleDeadline", "psi=1");
    }

    #[test]
    fn the_runtime_is_found_by_its_socket() {
        let mut node = Node::good();
        node.die(CONTAINERD_SOCKET);
        expect(
            &node.troubles(),
            "runtime",
            Mark::Warning,
            "containerd.sock: nobody listens there, no /run/crio",
            "start",
        );

        node.close(CONTAINERD_SOCKET);
        node.listen(CRIO_SOCKET);
        node.write("run/crio/version", "\"1.34.1\"");
        assert_eq!(node.troubles(), []);
        ok(&node.facts(), "runtime", "CRI-O 1.34.1");

        node.listen(CONTAINERD_SOCKET);
        expect(
            &node.troubles(),
            "runtime",
            Mark::Warning,
            "both containerd and CRI-O",
            "switch NRI off",
        );

        let node = Node::good();
        let mut facts = node.facts();
        facts.runtimes[0].socket = Socket::Denied;
        facts.is_root = false;
        expect(
            &troubles(&facts),
            "runtime",
            Mark::Unknown,
            "containerd.sock: permission denied",
            "as root",
        );

        let mut facts = node.facts();
        facts.runtimes[0].version = Some(Version(1, 7, 2));
        facts.runtimes[0].settings.is_off = Some((false, String::new()));
        expect(&troubles(&facts), "runtime", Mark::Warning, "containerd 1.7.2", "1.7.16");
        node.write(CONTAINERD_CONFIG, "disabled_plugins = ['cri']");
        expect(&node.troubles(), "runtime", Mark::Warning, "CRI plugin off", "disabled_plugins");
    }

    #[test]
    fn nri_switched_off_fails_with_the_way_to_switch_it_on() {
        let off = "[plugins.'io.containerd.nri.v1.nri']\ndisable = true\n";
        let mut node = Node::good();
        node.write(CONTAINERD_CONFIG, off);
        expect(
            &node.troubles(),
            "nri",
            Mark::Warning,
            "off once containerd restarts",
            "disable = false",
        );
        node.close(NRI_SOCKET);
        expect(
            &node.troubles(),
            "nri",
            Mark::Failed,
            "/etc/containerd/config.toml has disable = true",
            "disable = false",
        );
        node.write(CONTAINERD_CONFIG, "disabled_plugins = ['io.containerd.nri.v1.nri']");
        expect(
            &node.troubles(),
            "nri",
            Mark::Failed,
            "disabled_plugins",
            "out of disabled_plugins",
        );

        // Without a setting, the version decides.
        node.write(CONTAINERD_CONFIG, "");
        let mut facts = node.facts();
        for (version, found) in [
            (Version(1, 7, 24), "off in containerd 1.7.24, as by default"),
            (Version(1, 6, 0), "has no NRI"),
        ] {
            facts.runtimes[0].version = Some(version);
            let advice = if version.1 == 6 { "upgrade containerd" } else { "disable = false" };
            let troubles = troubles(&facts);
            let nri: Vec<_> =
                troubles.into_iter().filter(|finding| finding.check != "runtime").collect();
            expect(&nri, "nri", Mark::Failed, found, advice);
        }

        node.close(CONTAINERD_SOCKET);
        node.listen(CRIO_SOCKET);
        node.write("etc/crio/crio.conf", "[crio.nri]\nenable_nri = true\n");
        node.write("etc/crio/crio.conf.d/99.conf", "[crio.nri]\nenable_nri = false\n");
        expect(
            &node.troubles(),
            "nri",
            Mark::Failed,
            "99.conf has enable_nri = false",
            "enable_nri = true",
        );
    }

    #[test]
    fn containerds_imports_count_in_their_order_and_end() {
        let mut node = Node::good();
        node.close(NRI_SOCKET);
        let section = |is: bool| format!("[plugins.'io.containerd.nri.v1.nri']\ndisable = {is}\n");
        node.write(
            CONTAINERD_CONFIG,
            &format!(
                "imports = ['conf.d/*.toml', 'config.toml', '/../etc/containerd/x']\n{}",
                section(false)
            ),
        );
        node.write("etc/containerd/conf.d/a.toml", &section(false));
        node.write("etc/containerd/conf.d/b.toml", &section(true));
        expect(
            &node.troubles(),
            "nri",
            Mark::Failed,
            "/etc/containerd/conf.d/b.toml has disable = true",
            "",
        );
        node.write("etc/containerd/x", &section(false));
        let troubles = node.troubles();
        expect(
            &troubles,
            "nri-socket",
            Mark::Failed,
            "there is no",
            "restart the container runtime",
        );
    }

    #[test]
    fn a_runtimes_configuration_with_mistakes_is_named() {
        for (text, found) in [
            ("plugins = [", "/etc/containerd/config.toml: "),
            ("imports = ['/*/*/x.toml']", "import /*/*/x.toml: expected one part with *"),
            (
                "[plugins.'io.containerd.nri.v1.nri']\ndisable = 'no'",
                "disable: expected true or false",
            ),
            (
                "[plugins.'io.containerd.nri.v1.nri']\nsocket_path = 3",
                "socket_path: expected a path",
            ),
            (
                "[plugins.'io.containerd.nri.v1.nri']\nplugin_request_timeout = 'soon'",
                "plugin_request_timeout: expected a duration",
            ),
        ] {
            let node = Node::good();
            node.write(CONTAINERD_CONFIG, text);
            expect(&node.troubles(), "nri", Mark::Warning, found, "mend it");
        }
        let node = Node::good();
        node.write(CONTAINERD_CONFIG, &"#".repeat(LARGEST + 1));
        let mut troubles = node.troubles();
        expect(
            &troubles.split_off(1),
            "nri-timeouts",
            Mark::Unknown,
            "what could be read",
            "plugin_request_timeout",
        );
        expect(&troubles, "nri", Mark::Unknown, "at most 1048576 bytes", "has NRI on there");
    }

    #[test]
    fn settings_of_nri_that_take_something_away_are_warned_of() {
        let with = |setting: &str| {
            let node = Node::good();
            node.write(
                CONTAINERD_CONFIG,
                &format!("[plugins.'io.containerd.nri.v1.nri']\n{setting}\n"),
            );
            node
        };
        expect(
            &with("disable_connections = true").troubles(),
            "nri",
            Mark::Warning,
            "only when launched",
            "disable_connections = false",
        );
        let mut node = with("disable_connections = true");
        node.close(NRI_SOCKET);
        expect(
            &node.troubles(),
            "nri",
            Mark::Warning,
            "only when launched",
            "disable_connections = false",
        );

        let short = with("plugin_request_timeout = '100ms'").troubles();
        expect(
            &short,
            "nri-timeouts",
            Mark::Warning,
            "an event has 10ms and a cut that reclaims 30ms",
            "plugin_request_timeout to \"2s\"",
        );
        let short = with("plugin_registration_timeout = '100ms'").troubles();
        expect(
            &short,
            "nri-timeouts",
            Mark::Warning,
            "100ms for a plugin to register",
            "plugin_registration_timeout",
        );

        // Doctor searches this directory and the default directory for the plugin's configuration.
        let node = with("plugin_config_path = '/etc/elsewhere'");
        expect(
            &node.troubles(),
            "nri",
            Mark::Warning,
            "plugin_config_path = '/etc/elsewhere'",
            "leave plugin_config_path out",
        );
        node.write("etc/elsewhere/90-plimsoll.conf", "x: 1");
        assert!(
            node.troubles().iter().any(|finding| finding
                .found
                .contains("/etc/elsewhere/90-plimsoll.conf has mistakes"))
        );

        let node = with("plugin_path = '/usr/nri'");
        assert_eq!(node.troubles(), []);
        node.write("usr/nri/10-x", "");
        fs::set_permissions(node.path("usr/nri/10-x"), fs::Permissions::from_mode(0o755)).unwrap();
        ok(&node.facts(), "other-plugins", "/usr/nri/10-x");

        let mut node = with("socket_path = '/run/other.sock'");
        node.close(NRI_SOCKET);
        expect(
            &node.troubles(),
            "nri-socket",
            Mark::Failed,
            "there is no",
            "give --socket /run/other.sock",
        );
    }

    #[test]
    fn without_its_socket_nri_is_of_no_use() {
        let mut node = Node::good();
        node.die(NRI_SOCKET);
        expect(
            &node.troubles(),
            "nri-socket",
            Mark::Failed,
            "nobody listens there",
            "restart the container runtime",
        );
        node.close(NRI_SOCKET);
        expect(
            &node.troubles(),
            "nri-socket",
            Mark::Failed,
            "there is no",
            "restart the container runtime",
        );
        let mut facts = node.facts();
        facts.nri = Socket::Denied;
        facts.is_root = false;
        expect(&troubles(&facts), "nri-socket", Mark::Unknown, "permission denied", "as root");
    }

    #[test]
    fn every_mistake_of_the_plugins_configuration_is_shown() {
        let node = Node::good();
        node.write(DROP_IN, "logLevel: loud\nmemoryThrottlingFactor: 2\n");
        // Without a valid configuration the mode is unknown too.
        let troubles = |node: &Node| {
            let mut troubles = node.troubles();
            assert_eq!(
                troubles.pop().map(|finding| (finding.check, finding.mark)),
                Some(("mode", Mark::Unknown))
            );
            troubles
        };
        let found = troubles(&node);
        expect(
            &found,
            "configuration",
            Mark::Failed,
            "90-plimsoll.conf:1: logLevel: expected error",
            "plimsoll check",
        );
        assert!(
            found[0].found.contains("90-plimsoll.conf:2: memoryThrottlingFactor: "),
            "{}",
            found[0].found
        );
        fs::write(node.path(DROP_IN), b"logLevel: \xff").unwrap();
        expect(&troubles(&node), "configuration", Mark::Failed, "UTF-8", "mend");
        node.remove(DROP_IN);
        fs::create_dir(node.path(DROP_IN)).unwrap();
        expect(
            &troubles(&node),
            "configuration",
            Mark::Failed,
            "expected a regular file",
            "file that root can read",
        );
        node.remove(DROP_IN);
        ok(&node.facts(), "configuration", "the defaults are in force");
        node.write("etc/nri/conf.d/plimsoll.conf", "logLevel: loud\n");
        expect(
            &troubles(&node),
            "configuration",
            Mark::Failed,
            "conf.d/plimsoll.conf:1: logLevel",
            "mend",
        );
        node.write(DROP_IN, "");
        ok(&node.facts(), "configuration", "/etc/nri/conf.d/plimsoll.conf is passed over");
    }

    #[test]
    fn the_plugin_is_there_once_and_runs() {
        let node = Node::good();
        node.write("etc/systemd/system/plimsoll.service", "");
        let found =
            "/opt/nri/plugins/90-plimsoll and /etc/systemd/system/plimsoll.service are there";
        expect(&node.troubles(), "installation", Mark::Warning, found, "remove all but one");
        node.remove(BINARY);
        assert_eq!(node.troubles(), []);
        node.remove("run/nri/plimsoll.lock");
        expect(
            &node.troubles(),
            "installation",
            Mark::Warning,
            "does not run",
            "systemctl enable --now plimsoll",
        );
        node.remove("etc/systemd/system/plimsoll.service");
        expect(&node.troubles(), "installation", Mark::Warning, "neither", "install");

        let node = Node::good();
        node.remove("run/nri/plimsoll.lock");
        expect(
            &node.troubles(),
            "installation",
            Mark::Warning,
            "does not run",
            "restart the container runtime",
        );
        // Without /proc/locks the holder of the lock is unknown.
        node.remove("proc/locks");
        expect(
            &node.troubles(),
            "installation",
            Mark::Unknown,
            "cannot find out whether it runs",
            "pgrep",
        );
        fs::set_permissions(node.path(BINARY), fs::Permissions::from_mode(0o644)).unwrap();
        expect(&node.troubles(), "installation", Mark::Warning, "not executable", "chmod 755");
        let node = Node::good();
        node.remove(BINARY);
        ok(&node.facts(), "installation", "started by somebody else and runs as process 4321");
    }

    #[test]
    fn other_plugins_are_named_and_rivals_warned_of() {
        let plugin = |name: &str| {
            let node = Node::good();
            let path = format!("opt/nri/plugins/{name}");
            node.write(&path, "");
            fs::set_permissions(node.path(&path), fs::Permissions::from_mode(0o755)).unwrap();
            node
        };
        let node = plugin("10-logger");
        node.write("etc/nri/conf.d/20-balloons.conf", "");
        assert_eq!(node.troubles(), []);
        ok(&node.facts(), "other-plugins", "/opt/nri/plugins/10-logger, 20-balloons.conf");
        expect(
            &plugin("40-nri-memory-qos").troubles(),
            "other-plugins",
            Mark::Warning,
            "sets memory values",
            "only one",
        );
        expect(
            &plugin("00-koordlet").troubles(),
            "other-plugins",
            Mark::Warning,
            "sets memory values",
            "only one",
        );
        expect(
            &plugin("logger").troubles(),
            "other-plugins",
            Mark::Warning,
            "no name such as 10-name",
            "rename",
        );
    }

    #[test]
    fn what_is_wrong_with_the_kubelet_is_said() {
        for (policy, found) in [
            ("None", "below is protected"),
            ("TieredReservation", "memory.high of the same cgroups"),
        ] {
            let node = Node::good();
            node.write(
                KUBELET_CONFIG,
                &format!("featureGates: {{MemoryQoS: true}}\nmemoryReservationPolicy: {policy}\n"),
            );
            expect(
                &node.troubles(),
                "kubelet-memory-qos",
                Mark::Warning,
                found,
                "set featureGates.MemoryQoS to false",
            );
        }
        let node = Node::good();
        node.write(KUBELET_CONFIG, "memoryThrottlingFactor: 0.9\n");
        expect(
            &node.troubles(),
            "kubelet-memory-qos",
            Mark::Warning,
            "a sign",
            "set featureGates.MemoryQoS to false",
        );
        let node = Node::good();
        node.write(KUBELET_CONFIG, "systemReserved: {memory: lots}");
        let found = "systemReserved.memory: expected a quantity";
        let mut troubles = node.troubles();
        expect(&troubles.split_off(1), "node-allocatable", Mark::Unknown, found, "nodeAllocatable");
        expect(&troubles, "kubelet-memory-qos", Mark::Unknown, found, "see that it is right");
        node.write(DROP_IN, "nodeAllocatable: 4Gi\n");
        expect(
            &node.troubles(),
            "kubelet-memory-qos",
            Mark::Unknown,
            found,
            "see that it is right",
        );
        node.remove(KUBELET_CONFIG);
        fs::create_dir(node.path(KUBELET_CONFIG)).unwrap();
        let troubles = node.troubles();
        expect(
            &troubles,
            "kubelet-memory-qos",
            Mark::Unknown,
            "expected a regular file",
            "see that it is right",
        );
        let node = Node::good();
        node.remove("proc/meminfo");
        expect(
            &node.troubles(),
            "node-allocatable",
            Mark::Unknown,
            "/proc/meminfo: expected it to exist",
            "nodeAllocatable",
        );
    }

    #[test]
    fn flags_and_drop_ins_of_the_kubelet_are_not_ok() {
        let config = "/usr/bin/kubelet\0--config\0/var/lib/kubelet/config.yaml\0";
        for (flags, found) in [
            (
                "--config-dir=/etc/kubernetes/kubelet.conf.d\0",
                "kubelet.conf.d are not read: 20.conf",
            ),
            (
                "--config-dir\0/etc/kubernetes/kubelet.conf.d\0",
                "kubelet.conf.d are not read: 20.conf",
            ),
            ("--feature-gates=MemoryQoS=true\0", "--feature-gates that sets MemoryQoS"),
            ("--config=/etc/kubelet.yaml\0", "--config /etc/kubelet.yaml"),
        ] {
            let node = Node::good();
            node.write("proc/4242/cmdline", &format!("{config}{flags}"));
            node.write(
                "etc/kubernetes/kubelet.conf.d/20.conf",
                "featureGates: {MemoryQoS: true}\n",
            );
            let troubles = node.troubles();
            expect(&troubles[..1], "kubelet-memory-qos", Mark::Unknown, found, "configz");
            let allocatable =
                troubles.iter().filter(|finding| finding.check == "node-allocatable").count();
            assert_eq!(allocatable, usize::from(!flags.contains("gates")), "{troubles:#?}");
        }
        let node = Node::good();
        node.write("proc/4242/cmdline", &format!("{config}--config-dir=/etc/kubernetes/empty\0"));
        assert_eq!(node.troubles(), []);
        node.write(
            "proc/4242/cmdline",
            &format!("{config}--feature-gates=A=true,MemoryQoS=false\0"),
        );
        assert_eq!(node.troubles(), []);
        node.write("proc/4242/cmdline", &format!("{config}--eviction-hard=memory.available<1Gi\0"));
        expect(
            &node.troubles(),
            "node-allocatable",
            Mark::Unknown,
            "the flag --eviction-hard",
            "kubectl describe node",
        );
        node.remove("proc/4242");
        expect(
            &node.troubles(),
            "kubelet-memory-qos",
            Mark::Unknown,
            "found no process of the kubelet",
            "configz",
        );
    }

    #[test]
    fn a_limit_that_the_configuration_does_not_explain_is_warned_of() {
        let node = Node::good();
        node.write("sys/fs/cgroup/kubepods.slice/memory.max", "4294967296\n");
        let found = "does not explain memory.max of kubepods";
        expect(&node.troubles(), "node-allocatable", Mark::Warning, found, "kubectl describe node");
    }

    #[test]
    fn an_invalid_configuration_leaves_the_mode_unknown() {
        let node = Node::good();
        node.write(DROP_IN, "mode: observing\n");
        let mode: Vec<_> =
            node.troubles().into_iter().filter(|finding| finding.check == "mode").collect();
        expect(
            &mode,
            "mode",
            Mark::Unknown,
            "/etc/nri/conf.d/90-plimsoll.conf is not valid",
            "'configuration'",
        );
        node.remove(DROP_IN);
        ok(&node.facts(), "mode", "enforce");
    }

    #[test]
    fn a_level_that_cannot_be_listed_is_unknown() {
        let mut facts = Node::good().facts();
        let level = facts.levels.iter_mut().find(|level| level.path == "kubepods.slice").unwrap();
        level.has_children =
            Err(Unreadable { is_denied: false, why: "input/output error".to_owned() });
        expect(
            &troubles(&facts),
            "memory-controller",
            Mark::Unknown,
            "cannot list /sys/fs/cgroup/kubepods.slice",
            "",
        );
    }

    #[test]
    fn containerd_of_unknown_version_is_not_ok() {
        let mut facts = Node::good().facts();
        facts.runtimes[0].version = None;
        expect(
            &troubles(&facts),
            "runtime",
            Mark::Unknown,
            "of unknown version",
            "containerd --version",
        );
    }

    #[test]
    fn a_kubelet_configured_elsewhere_is_not_ok() {
        let node = Node::good();
        node.remove(KUBELET_CONFIG);
        node.write("etc/kubernetes/kubelet/config.json", r#"{"kind": "KubeletConfiguration"}"#);
        let mut troubles = node.troubles();
        let found = "(7.9Gi), from kubepods memory.max less hard eviction of 100Mi, the kubelet's default: there is no";
        expect(
            &troubles.split_off(1),
            "node-allocatable",
            Mark::Unknown,
            found,
            "kubectl describe node",
        );
        let found = "found no configuration of the kubelet at /var/lib/kubelet/config.yaml, but /etc/kubernetes/kubelet/config.json";
        expect(&troubles, "kubelet-memory-qos", Mark::Unknown, found, "--config");
        node.remove("sys/fs/cgroup/kubepods.slice/memory.max");
        let troubles = node.troubles();
        expect(
            &troubles[1..],
            "node-allocatable",
            Mark::Unknown,
            "no sign of a kubelet",
            "start the kubelet",
        );
        assert_eq!(node.facts().judge().unknown, 2);
    }

    #[test]
    fn an_absent_gate_is_unknown_without_a_version() {
        let node = Node::good();
        node.write(KUBELET_CONFIG, "kind: KubeletConfiguration\n");
        let found =
            "does not set featureGates.MemoryQoS, which is on by default from Kubernetes 1.37 on";
        expect(
            &node.troubles(),
            "kubelet-memory-qos",
            Mark::Unknown,
            found,
            "set featureGates.MemoryQoS to false",
        );
        let text = node.facts().judge().to_string();
        let verdict = "Plimsoll can work on this node, as far as this could find out: 0 failed, 0 warnings, 1 unknown.";
        assert!(text.ends_with(&format!("{verdict}\n")), "{text}");
    }

    #[test]
    fn kubepods_is_looked_at_below_a_cgroup_root() {
        let node = Node::good();
        fs::create_dir(node.path("sys/fs/cgroup/kubelet.slice")).unwrap();
        let kubepods = "sys/fs/cgroup/kubelet.slice/kubelet-kubepods.slice";
        fs::rename(node.path("sys/fs/cgroup/kubepods.slice"), node.path(kubepods)).unwrap();
        for class in ["burstable", "besteffort"] {
            let [from, to] = ["kubepods", "kubelet-kubepods"]
                .map(|stem| format!("{kubepods}/{stem}-{class}.slice"));
            fs::rename(node.path(&from), node.path(&to)).unwrap();
        }
        node.write("sys/fs/cgroup/kubelet.slice/cgroup.subtree_control", "memory\n");
        assert_eq!(node.troubles(), []);
        ok(&node.facts(), "memory-files", "/sys/fs/cgroup/kubelet.slice/kubelet-kubepods.slice");
        // The check covers the cgroup above kubepods and the classes below kubepods.
        for level in [
            "kubelet.slice",
            "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice",
        ] {
            let file = format!("sys/fs/cgroup/{level}/cgroup.subtree_control");
            node.write(&file, "pids\n");
            expect(&node.troubles(), "memory-controller", Mark::Failed, &file, "+memory");
            node.write(&file, "memory\n");
        }
    }

    /// Each of these files decides the result of a check.
    #[test]
    fn a_file_that_is_missing_is_never_ok() {
        for (path, check) in [
            ("sys/fs/cgroup/kubepods.slice/cgroup.subtree_control", "memory-controller"),
            ("proc/sys/kernel/osrelease", "kernel"),
            ("proc/self/mounts", "recursive-protection"),
            ("proc/locks", "installation"),
            ("proc/4242/comm", "kubelet-memory-qos"),
            ("proc/4242/cmdline", "kubelet-memory-qos"),
            ("proc/meminfo", "node-allocatable"),
            (KUBELET_CONFIG, "kubelet-memory-qos"),
            (KUBELET_CONFIG, "node-allocatable"),
            ("proc/swaps", "swap"),
            ("proc/sys/fs/inotify/max_user_instances", "inotify"),
            ("proc/sys/fs/inotify/max_user_watches", "inotify"),
        ] {
            let node = Node::good();
            node.remove(path);
            is_unknown(&node.facts(), path, check);
        }
        let mut node = Node::good();
        node.remove("run/systemd");
        node.listeners.clear();
        node.remove("run");
        is_unknown(&node.facts(), "run", "d-bus");
    }

    /// Even root cannot read a symbolic link to itself.
    #[test]
    fn a_file_that_is_unreadable_is_never_ok() {
        for (path, check) in [
            ("sys/fs/cgroup/cgroup.controllers", "cgroup-v2"),
            ("sys/fs/cgroup/kubepods.slice/memory.high", "memory-files"),
            ("sys/fs/cgroup/kubepods.slice/memory.pressure", "pressure"),
            ("proc/sys/kernel/osrelease", "kernel"),
            ("proc/self/mounts", "recursive-protection"),
            (CONTAINERD_CONFIG, "nri"),
            (CONTAINERD_CONFIG, "nri-timeouts"),
            ("opt/nri/plugins", "installation"),
            ("opt/nri/plugins", "other-plugins"),
            ("etc/nri/conf.d", "other-plugins"),
            ("proc/locks", "installation"),
            ("proc/4242/comm", "kubelet-memory-qos"),
            ("proc/4242/cmdline", "kubelet-memory-qos"),
            (KUBELET_CONFIG, "kubelet-memory-qos"),
            (KUBELET_CONFIG, "node-allocatable"),
            ("sys/fs/cgroup/kubepods.slice/memory.max", "node-allocatable"),
            ("var/lib/kubelet/actuated_pods_state", "checkpoints"),
            ("run/systemd/system", "d-bus"),
            ("proc/swaps", "swap"),
            (STAND_ASIDE, "restore"),
            ("proc/sys/fs/inotify/max_user_instances", "inotify"),
        ] {
            let node = Node::good();
            let inside = node.path(path);
            if inside.exists() {
                node.remove(path);
            } else {
                fs::create_dir_all(inside.parent().unwrap()).unwrap();
            }
            std::os::unix::fs::symlink(&inside, &inside).unwrap();
            is_unknown(&node.facts(), path, check);
        }
    }

    #[track_caller]
    fn is_unknown(facts: &Facts, path: &str, check: &str) {
        let report = facts.judge();
        let finding = report.checks.iter().find(|finding| finding.check == check);
        assert!(
            finding.is_some_and(|finding| finding.mark == Mark::Unknown),
            "{path}: {finding:#?}"
        );
        assert!(report.unknown > 0);
    }

    #[test]
    fn what_is_kept_from_pods_is_no_more_than_the_kubelet_keeps() {
        let node = Node::good();
        node.write(DROP_IN, "nodeGuard: 90Mi\n");
        ok(&node.facts(), "node-guard", "leaves pods 7.9Gi of 8Gi");
        node.write(DROP_IN, "nodeGuard: 1Gi\n");
        let found = "leaves pods 7Gi of 8Gi, and the scheduler counts on 7.9Gi";
        expect(&node.troubles(), "node-guard", Mark::Warning, found, "systemReserved");
        node.write(DROP_IN, "nodeGuard: 1Gi\nnodeAllocatable: 6Gi\n");
        ok(&node.facts(), "node-guard", "leaves pods 7Gi of 8Gi");
        node.write(DROP_IN, "nodeGuard: 8Gi\n");
        expect(
            &node.troubles(),
            "node-guard",
            Mark::Warning,
            "leaves pods 0 of 8Gi",
            "less than all memory",
        );
    }

    #[test]
    fn a_guard_without_system_slice_is_said() {
        let node = Node::good();
        node.remove("sys/fs/cgroup/system.slice");
        assert_eq!(node.troubles(), []);
        node.write(DROP_IN, "nodeGuard: 90Mi\n");
        let found = "nodeGuard found no cgroup system.slice";
        expect(&node.troubles(), "node-guard", Mark::Warning, found, "systemReservedCgroup");
        node.write(
            DROP_IN,
            "nodeGuard: 90Mi\nsystemReservedCgroup: /init\nsystemReserved: {memory: 50Mi}\n",
        );
        assert_eq!(node.troubles(), []);
        node.write(DROP_IN, "nodeGuard: 90Mi\n");
        node.remove("proc/meminfo");
        let guard = node
            .troubles()
            .into_iter()
            .filter(|finding| finding.check == "node-guard")
            .collect::<Vec<_>>();
        expect(&guard, "node-guard", Mark::Unknown, "/proc/meminfo", "");
    }

    #[test]
    fn checkpoints_are_read() {
        let node = Node::good();
        node.write("var/lib/kubelet/actuated_pods_state", "{");
        expect(
            &node.troubles(),
            "checkpoints",
            Mark::Unknown,
            "kubelet checkpoint /var/lib/kubelet/actuated_pods_state: ",
            "",
        );
        node.remove("var/lib/kubelet/actuated_pods_state");
        expect(&node.troubles(), "checkpoints", Mark::Warning, "before 1.33", "annotate");
        node.remove(KUBELET);
        node.write(DROP_IN, "nodeAllocatable: 4Gi\n");
        let troubles = node.troubles();
        expect(
            &troubles[1..],
            "checkpoints",
            Mark::Warning,
            "there is no /var/lib/kubelet",
            "1.33",
        );
    }

    #[test]
    fn a_bus_without_systemds_directory_is_looked_at() {
        let node = Node::good();
        node.remove("run/systemd");
        ok(&node.facts(), "d-bus", &format!("/{BUS} is served"));
    }

    #[test]
    fn the_mode_of_a_plugin_that_does_not_tell_it_is_unknown() {
        let mut node = Node::good();
        node.listen("run/plimsoll/plimsoll.sock");
        node.die("run/plimsoll/plimsoll.sock");
        expect(
            &node.troubles(),
            "mode",
            Mark::Unknown,
            "the plugin does not tell it: ",
            "plimsoll status",
        );
    }

    #[test]
    fn d_bus_is_needed_where_systemd_is() {
        let mut node = Node::good();
        node.die(BUS);
        expect(&node.troubles(), "d-bus", Mark::Warning, "nobody listens there", "dbus");
        node.close(BUS);
        expect(&node.troubles(), "d-bus", Mark::Warning, "there is no /run/dbus", "dbus");
        node.remove("run/systemd");
        assert_eq!(node.troubles(), []);
    }

    #[test]
    fn swap_is_noted_and_what_else_stands_in_the_way_said() {
        let node = Node::good();
        node.write(
            "proc/swaps",
            "Filename Type Size Used Priority\n/dev/sda2 partition 2097148 0 -2\n",
        );
        assert_eq!(node.troubles(), []);
        ok(
            &node.facts(),
            "swap",
            "on (/dev/sda2); containers have some of it only with the kubelet's swapBehavior LimitedSwap",
        );
        node.write(STAND_ASIDE, "");
        expect(&node.troubles(), "restore", Mark::Warning, "was called", "plimsoll restore --undo");
        ok(&Node::good().facts(), "mode", "enforce");
        let node = Node::good();
        node.write("etc/nri/conf.d/90-plimsoll.conf", "mode: observe");
        ok(&node.facts(), "mode", "observe: nothing is set");
        node.write(
            "run/plimsoll/brake",
            r#"{"cause": "kills", "count": 21, "windowSeconds": 600, "at": 7}"#,
        );
        expect(
            &node.troubles(),
            "mode",
            Mark::Warning,
            "21 kills by limits that plimsoll has set",
            "reset-brake",
        );
        node.write("run/plimsoll/brake", "{");
        expect(&node.troubles(), "mode", Mark::Unknown, "/run/plimsoll/brake: ", "reset-brake");
        for name in ["max_user_instances", "max_user_watches"] {
            for (text, found) in [("8\n", "only 8"), ("many", "expected a number")] {
                let node = Node::good();
                node.write(&format!("proc/sys/fs/inotify/{name}"), text);
                expect(
                    &node.troubles(),
                    "inotify",
                    Mark::Warning,
                    &format!("{name}: {found}"),
                    &format!("sysctl fs.inotify.{name}="),
                );
            }
        }
        let mut facts = Node::good().facts();
        facts.is_root = false;
        assert!(
            facts
                .judge()
                .checks
                .iter()
                .any(|finding| finding.check == "root" && finding.mark == Mark::Warning)
        );
    }

    #[test]
    fn an_empty_file_system_is_judged() {
        let root = TempDir::new().unwrap();
        let report = Facts::collect(root.path(), &root.path().join("nri.sock")).judge();
        let failed: Vec<_> =
            report.checks.iter().filter(|finding| finding.mark == Mark::Failed).collect();
        assert_eq!(
            failed.iter().map(|finding| finding.check).collect::<Vec<_>>(),
            ["cgroup-v2", "nri-socket"]
        );
    }

    #[test]
    fn no_file_makes_it_fail_or_wait() {
        for (path, _) in FILES.into_iter().chain([
            ("proc/locks", ""),
            (CONTAINERD_SOCKET, ""),
            (NRI_SOCKET, ""),
            (BUS, ""),
        ]) {
            for what in ["directory", "pipe", "large", "binary", "loop"] {
                let node = Node::good();
                let inside = node.path(path);
                // Skip pipes at paths that only the kernel or root can create. `CgroupRoot` reads
                // proc/self/mounts with a blocking call, which would wait for a writer.
                if what == "pipe"
                    && ["proc/meminfo", "proc/self/mounts", KUBELET_CONFIG, "memory.max"]
                        .iter()
                        .any(|end| path.ends_with(end))
                {
                    continue;
                }
                node.remove(path);
                match what {
                    "directory" => fs::create_dir(&inside).unwrap(),
                    "pipe" => rustix::fs::mknodat(
                        rustix::fs::CWD,
                        &inside,
                        rustix::fs::FileType::Fifo,
                        rustix::fs::Mode::RWXU,
                        0,
                    )
                    .unwrap(),
                    "large" => fs::write(&inside, "x".repeat(2 << 20)).unwrap(),
                    "binary" => fs::write(&inside, [0, 0xff, 0x1b, b'\n', 0x7f]).unwrap(),
                    _ => std::os::unix::fs::symlink(&inside, &inside).unwrap(),
                }
                node.facts().judge().to_string();
            }
        }
    }

    #[test]
    fn hostile_names_come_out_harmless() {
        let node = Node::good();
        let plugin = node.path("opt/nri/plugins/10-\u{1b}[31m\u{202e}\n");
        fs::write(&plugin, "").unwrap();
        fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(
            node.path("etc/nri/conf.d").join(std::ffi::OsStr::from_bytes(b"\xff\r koordlet")),
            "",
        )
        .unwrap();
        let long = "x".repeat(1 << 19);
        node.write(CONTAINERD_CONFIG, &format!("imports = [\"/\\u001b/*/*{long}\"]"));
        node.write("proc/sys/kernel/osrelease", &format!("\u{1b}{long}"));
        node.write("proc/swaps", &format!("\n\u{1b}{long}"));
        node.write(DROP_IN, &format!("\"\\e[31m{long}\": 1\n"));
        let report = node.facts().judge();
        let text = format!("{report}{}", serde_json::to_string(&report).unwrap());
        assert!(
            text.chars().all(|character| character == '\n'
                || !(character.is_control() || character == '\u{202e}')),
            "{text}"
        );
        assert!(text.len() < 20_000, "{}", text.len());
    }

    #[test]
    fn findings_hold_no_control_characters_whatever_they_are_made_of() {
        let finding = Finding::warning("nri", "\u{1b}[31m\u{202e}'x'\r", "x".repeat(LONGEST + 9));
        assert_eq!(finding.found, "\\u{1b}[31m\\u{202e}'x'\\r");
        assert_eq!(finding.advice.unwrap().chars().count(), LONGEST + 1);
    }

    #[test]
    fn the_text_fits_80_columns_and_ends_with_a_verdict() {
        let root = TempDir::new().unwrap();
        for facts in
            [Node::good().facts(), Facts::collect(root.path(), Path::new("/nonexistent/nri.sock"))]
        {
            let report = facts.judge();
            let text = report.to_string();
            for line in text.lines() {
                assert!(line.chars().count() <= 80, "{line}");
            }
            for Finding { check, mark, .. } in &report.checks {
                assert!(
                    text.lines().any(|line| line.starts_with(&format!("{mark:<9}{check}: "))),
                    "{check}: {text}"
                );
            }
            let verdict = if report.able {
                "Plimsoll can work on this node: 0 failed, 0 warnings."
            } else {
                "Plimsoll cannot work on this node: 2 failed, "
            };
            assert!(text.lines().last().unwrap().starts_with(verdict), "{text}");
        }
    }

    #[test]
    fn versions_are_found_in_what_programs_say() {
        for (text, expected) in [
            ("containerd github.com/containerd/containerd/v2 v2.1.9 abc", Some(Version(2, 1, 9))),
            (
                "containerd github.com/containerd/containerd 1.7.24~ds1 1.7.24~ds1-6+b4",
                Some(Version(1, 7, 24)),
            ),
            ("\"1.34.0+dev\"", Some(Version(1, 34, 0))),
            ("6.12", Some(Version(6, 12, 0))),
            ("6", None),
            ("99999999999999999999.1", None),
        ] {
            assert_eq!(Version::find(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_runtime_configuration_is_read_or_named(text in "(imports|disabled_plugins|plugins|'io.containerd.nri.v1.nri'|disable|plugin_path|plugin_request_timeout|crio|nri|[\\[\\]{}=.,'*/]|true|1|2s|\n|.){0,30}") {
            let root = TempDir::new().unwrap();
            for path in ["etc/containerd/config.toml", "etc/crio/crio.conf"] {
                let path = root.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, &text).unwrap();
            }
            let settings = [Settings::of_containerd(root.path(), None), Settings::of_crio(root.path())];
            prop_assert!(settings.iter().all(|settings| settings.files == 1));
        }
    }
}
