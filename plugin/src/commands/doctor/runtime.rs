//! Detection of the node's container runtimes and of their NRI configuration.
//!
//! Sources: containerd `docs/NRI.md` and `cmd/containerd/server/config` of 1.7 and 2.3; CRI-O
//! `internal/config/nri` and `pkg/config`.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use plimsoll_core::units::excerpt;
use rustix::fs::OFlags;

use super::{MOST_ENTRIES, Socket, UNITS, below, names, read};

/// Maximum number of configuration files read for containerd, and of drop-ins read for CRI-O.
const MOST_FILES: usize = 64;

/// Time limit for a runtime's program to print its version.
const PATIENCE: Duration = Duration::from_secs(2);

/// Version as major, minor and patch number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub(crate) u64, pub(crate) u64, pub(crate) u64);

impl Version {
    /// Returns the first word that is a version, such as `v2.1.9`, `"1.34.0"` or
    /// `6.12.0-cloud-amd64`. A missing patch number counts as 0.
    pub(crate) fn find(text: &str) -> Option<Self> {
        text.split_ascii_whitespace().find_map(|word| {
            let word = word.trim_start_matches(['v', '"']);
            let mut numbers = word.splitn(3, '.').map(|part| {
                let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
                part[..digits].parse().ok()
            });
            Some(Self(numbers.next()??, numbers.next()??, numbers.next().flatten().unwrap_or(0)))
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// Container runtime with its state on the node.
#[derive(Debug)]
pub(crate) struct Runtime {
    pub(crate) kind: &'static Kind,
    pub(crate) socket: Socket,
    pub(crate) version: Option<Version>,
    pub(crate) settings: Settings,
}

/// Properties that differ between containerd and CRI-O.
#[derive(Debug)]
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) program: &'static str,
    pub(crate) socket: &'static str,
    /// First version that supports NRI.
    pub(crate) oldest: Version,
    /// First version that enables NRI by default.
    pub(crate) on_from: Version,
    /// Configuration key that switches NRI, and its value while NRI is off.
    pub(crate) switch: (&'static str, bool),
    /// Other keys of the NRI settings, indexed by `PLUGIN_PATH` to `NO_CONNECTIONS`.
    pub(crate) keys: [&'static str; 6],
    pub(crate) how_to_switch_on: &'static str,
}

impl Kind {
    /// Returns this runtime's NRI settings from the configuration files below `host`.
    pub(crate) fn settings(&self, host: &Path, version: Option<Version>) -> Settings {
        match self.program {
            "crio" => Settings::of_crio(host),
            _ => Settings::of_containerd(host, version),
        }
    }

    /// Returns the paths where the runtime's program may be. The path in systemd's `ExecStart`
    /// comes first. The bare name is next, for a search in `PATH`. The last path is in
    /// `/usr/local/bin`, which `PATH` may lack.
    fn programs(&self, host: &Path) -> Vec<String> {
        let command =
            start_command(host, &format!("{}.service", self.program), "").unwrap_or_default();
        let started = command
            .split_ascii_whitespace()
            .next()
            .map(|word| word.trim_start_matches(['@', '-', ':', '+', '!']));
        // Do not run a program with another name: with `--version` such a script could do anything.
        let started = started
            .filter(|path| path.starts_with('/') && path.ends_with(&format!("/{}", self.program)));
        let others = [self.program.to_owned(), format!("/usr/local/bin/{}", self.program)];
        started.map(str::to_owned).into_iter().chain(others).collect()
    }
}

pub(crate) const PLUGIN_PATH: usize = 0;
pub(crate) const CONFIG_PATH: usize = 1;
pub(crate) const SOCKET_PATH: usize = 2;
pub(crate) const REQUEST: usize = 3;
pub(crate) const REGISTRATION: usize = 4;
pub(crate) const NO_CONNECTIONS: usize = 5;

pub(crate) static CONTAINERD: Kind = Kind {
    name: "containerd",
    program: "containerd",
    socket: "run/containerd/containerd.sock",
    oldest: Version(1, 7, 0),
    on_from: Version(2, 0, 0),
    switch: ("disable", true),
    keys: [
        "plugin_path",
        "plugin_config_path",
        "socket_path",
        "plugin_request_timeout",
        "plugin_registration_timeout",
        "disable_connections",
    ],
    how_to_switch_on: "plimsoll install does so; or set disable = false under \
                       [plugins.\"io.containerd.nri.v1.nri\"] in /etc/containerd/config.toml, and \
                       restart containerd",
};

pub(crate) static CRIO: Kind = Kind {
    name: "CRI-O",
    program: "crio",
    socket: "run/crio/crio.sock",
    oldest: Version(1, 26, 0),
    on_from: Version(1, 30, 0),
    switch: ("enable_nri", false),
    keys: [
        "nri_plugin_dir",
        "nri_plugin_config_dir",
        "nri_listen",
        "nri_plugin_request_timeout",
        "nri_plugin_registration_timeout",
        "nri_disable_connections",
    ],
    how_to_switch_on: "plimsoll install does so; or set enable_nri = true under [crio.nri] in a file in \
                       /etc/crio/crio.conf.d, and restart crio",
};

/// First containerd 1.7 release whose NRI is new enough (0.6.1 or newer).
pub(crate) const CONTAINERD_1_7: Version = Version(1, 7, 16);

/// NRI settings of a runtime, merged from its configuration files.
#[derive(Debug, Default)]
pub(crate) struct Settings {
    /// Whether NRI is switched off, and the setting that decides. `None` if no file has such a
    /// setting.
    pub(crate) is_off: Option<(bool, String)>,
    pub(crate) plugin_path: Option<String>,
    pub(crate) config_path: Option<String>,
    pub(crate) socket_path: Option<String>,
    pub(crate) request_timeout: Option<Duration>,
    pub(crate) registration_timeout: Option<Duration>,
    pub(crate) takes_no_connections: bool,
    /// Whether containerd's CRI plugin is disabled, so that containerd serves no kubelet.
    pub(crate) is_without_cri: bool,
    pub(crate) files: usize,
    pub(crate) problems: Vec<String>,
    /// Files that could not be read, with the error. Includes an `ExecStart` that does not show
    /// which configuration file containerd uses.
    pub(crate) unread: Vec<String>,
    /// NRI section that results from all files.
    pub(crate) section: toml::Table,
    /// Path of containerd's main configuration file, which imports all others. Empty for CRI-O.
    pub(crate) main: String,
    /// Value of `version` in the main file: the version of the file format.
    pub(crate) form: Option<i64>,
    /// Entries of `imports` in the main file.
    pub(crate) imports: Vec<String>,
}

/// Default path of containerd's configuration file.
const CONTAINERD_CONFIG: &str = "/etc/containerd/config.toml";

/// Returns the command with which systemd starts a unit, from `ExecStart` in the unit file and its
/// drop-ins. Ignores drop-ins with the file name `but`. Returns `None` without a unit or a command,
/// or if a file cannot be read.
pub(crate) fn start_command(host: &Path, unit: &str, but: &str) -> Option<String> {
    let unit = UNITS
        .into_iter()
        .map(|directory| format!("{directory}/{unit}"))
        .find(|unit| host.join(unit).exists())?;
    let name = unit.rsplit('/').next()?;
    // systemd applies drop-ins in the order of their file names, whatever their directory is. If
    // several directories have a file of the same name, only the file in the first directory
    // counts.
    let mut drop_ins = BTreeMap::new();
    for directory in UNITS.map(|directory| format!("{directory}/{name}.d")) {
        for file in names(&host.join(&directory))
            .into_iter()
            .filter(|file| file.ends_with(".conf") && file != but)
        {
            let path = format!("{directory}/{file}");
            drop_ins.entry(file).or_insert(path);
        }
    }
    let mut command = None;
    for path in std::iter::once(&unit).chain(drop_ins.values()) {
        let text = read(&host.join(path)).ok().flatten()?.replace("\\\n", " ");
        let settings = text.lines().filter_map(|line| line.split_once('='));
        for (_, value) in settings.filter(|(key, _)| key.trim() == "ExecStart") {
            // An empty `ExecStart=` discards the commands before it.
            command = Some(value.trim().to_owned()).filter(|value| !value.is_empty());
        }
    }
    command
}

/// Returns the configuration file that a command starts containerd with. The second value is the
/// command without the configuration flag.
///
/// # Errors
///
/// If the command contains quotes or one of `$%\`. Only systemd knows the resulting words.
pub(crate) fn containerd_config(command: &str) -> Result<(String, String), String> {
    if let Some(character) = command.chars().find(|character| "$%\"'\\".contains(*character)) {
        return Err(format!(
            "cannot tell which configuration containerd.service starts containerd with: {} has {character}, expected plain words",
            excerpt(command)
        ));
    }
    let mut config = CONTAINERD_CONFIG.to_owned();
    let mut others = Vec::new();
    let mut words = command.split_ascii_whitespace();
    while let Some(word) = words.next() {
        // containerd accepts flags with one dash or two, as Go's `flag` package does.
        let flag = word.strip_prefix("--").or_else(|| word.strip_prefix('-')).unwrap_or_default();
        match flag.split_once('=') {
            Some(("config" | "c", path)) => config = path.to_owned(),
            None if ["config", "c"].contains(&flag) => {
                config = words.next().map_or(config, str::to_owned)
            }
            _ => others.push(word),
        }
    }
    Ok((config, others.join(" ")))
}

impl Settings {
    /// Returns containerd's settings from its main configuration file and all imports, in the order
    /// of the imports. Later files override earlier ones: single keys since 2.0, the whole section
    /// before 2.0. An unknown version counts as 2.0 or newer.
    pub(crate) fn of_containerd(host: &Path, version: Option<Version>) -> Self {
        let command = start_command(host, "containerd.service", "").unwrap_or_default();
        let (main, problem) = match containerd_config(&command) {
            Ok((main, _)) => (main, None),
            Err(problem) => (CONTAINERD_CONFIG.to_owned(), Some(problem)),
        };
        let replaces = version.is_some_and(|version| version < Version(2, 0, 0));
        let mut settings =
            Self { main: main.clone(), unread: problem.into_iter().collect(), ..Self::default() };
        let mut pending = vec![main];
        let mut loaded = HashSet::new();
        while let Some(path) = (!pending.is_empty()).then(|| pending.remove(0)) {
            if loaded.len() == MOST_FILES || !loaded.insert(path.clone()) {
                continue;
            }
            let Some(table) = settings.load(host, &path) else { continue };
            let section =
                table.get("plugins").and_then(|plugins| plugins.get("io.containerd.nri.v1.nri"));
            if replaces && section.is_some() {
                settings.forget_section();
            }
            settings.take(section, &path, &CONTAINERD);
            let list = |key: &str| {
                let values = table.get(key).and_then(toml::Value::as_array).into_iter().flatten();
                values.filter_map(toml::Value::as_str)
            };
            for disabled in list("disabled_plugins") {
                match disabled {
                    "io.containerd.nri.v1.nri" => {
                        settings.is_off = Some((
                            true,
                            format!("disabled_plugins of {} names it", excerpt(&path)),
                        ));
                    }
                    "cri" | "io.containerd.grpc.v1.cri" | "io.containerd.cri.v1.runtime" => {
                        settings.is_without_cri = true;
                    }
                    _ => {}
                }
            }
            if path == settings.main {
                settings.form = table.get("version").and_then(toml::Value::as_integer);
                settings.imports = list("imports").map(str::to_owned).collect();
            }
            for import in list("imports") {
                match imported(host, &path, import) {
                    Ok(paths) => pending.extend(paths),
                    Err(why) => {
                        settings.problems.push(format!(
                            "{}: import {}: {why}",
                            excerpt(&path),
                            excerpt(import)
                        ));
                    }
                }
            }
        }
        settings
    }

    /// Returns CRI-O's settings from `crio.conf` and all files below `crio.conf.d`, in the order of
    /// their paths. Later files override earlier ones.
    pub(crate) fn of_crio(host: &Path) -> Self {
        let mut settings = Self::default();
        let drop_ins = matches(host, "/etc/crio/crio.conf.d/**/*").unwrap_or_default();
        let drop_ins =
            drop_ins.into_iter().filter(|path| !below(host, path).is_dir()).take(MOST_FILES);
        for path in std::iter::once("/etc/crio/crio.conf".to_owned()).chain(drop_ins) {
            let Some(table) = settings.load(host, &path) else { continue };
            let section = table.get("crio").and_then(|crio| crio.get("nri"));
            settings.take(section, &path, &CRIO);
        }
        settings
    }

    fn load(&mut self, host: &Path, path: &str) -> Option<toml::Table> {
        let text = match read(&below(host, path)) {
            Ok(text) => text?,
            Err(error) => {
                self.unread.push(format!("{}: {}", excerpt(path), error.why));
                return None;
            }
        };
        self.files += 1;
        let table = toml::from_str::<toml::Table>(&text);
        table
            .map_err(|error| {
                self.problems.push(format!("{}: {}", excerpt(path), excerpt(error.message())))
            })
            .ok()
    }

    /// Discards the NRI section of all files read so far. Keeps the effects of `disabled_plugins`,
    /// which is not part of the section.
    fn forget_section(&mut self) {
        let Self { is_off, is_without_cri, files, problems, unread, main, form, imports, .. } =
            std::mem::take(self);
        let is_off = is_off.filter(|(_, why)| why.starts_with("disabled_plugins"));
        *self = Self {
            is_off,
            is_without_cri,
            files,
            problems,
            unread,
            main,
            form,
            imports,
            ..Self::default()
        };
    }

    fn take(&mut self, section: Option<&toml::Value>, path: &str, kind: &Kind) {
        let Some(section) = section else { return };
        self.section.extend(
            section
                .as_table()
                .into_iter()
                .flatten()
                .map(|(key, value)| (key.clone(), value.clone())),
        );
        let path = excerpt(path);
        let problems = &mut self.problems;
        let mut wrong = |key: &str, expected: &str| {
            problems.push(format!("{path}: {key}: expected {expected}"))
        };
        let (switch, off) = kind.switch;
        match section.get(switch).map(toml::Value::as_bool) {
            Some(Some(is)) => {
                self.is_off = Some((is == off, format!("{path} has {switch} = {is}")))
            }
            Some(None) => wrong(switch, "true or false"),
            None => {}
        }
        match section.get(kind.keys[NO_CONNECTIONS]).map(toml::Value::as_bool) {
            Some(Some(is)) => self.takes_no_connections = is,
            Some(None) => wrong(kind.keys[NO_CONNECTIONS], "true or false"),
            None => {}
        }
        let texts = [
            (PLUGIN_PATH, &mut self.plugin_path),
            (CONFIG_PATH, &mut self.config_path),
            (SOCKET_PATH, &mut self.socket_path),
        ];
        for (key, field) in texts {
            match section.get(kind.keys[key]).map(toml::Value::as_str) {
                // An empty path selects the default.
                Some(Some(text)) => *field = Some(text.to_owned()).filter(|text| !text.is_empty()),
                Some(None) => wrong(kind.keys[key], "a path"),
                None => {}
            }
        }
        for (key, field) in
            [(REQUEST, &mut self.request_timeout), (REGISTRATION, &mut self.registration_timeout)]
        {
            let duration = match section.get(kind.keys[key]) {
                Some(toml::Value::Integer(nanoseconds)) => {
                    u64::try_from(*nanoseconds).ok().map(Duration::from_nanos)
                }
                Some(value) => value.as_str().and_then(|text| humantime::parse_duration(text).ok()),
                None => continue,
            };
            match duration {
                // A timeout of 0 selects the default.
                Some(duration) => *field = Some(duration).filter(|duration| !duration.is_zero()),
                None => wrong(kind.keys[key], "a duration such as \"2s\""),
            }
        }
    }
}

/// Returns the files that an entry of containerd's `imports` selects. A relative entry starts at
/// the directory of `parent`, the file that contains the entry.
fn imported(host: &Path, parent: &str, import: &str) -> Result<Vec<String>, &'static str> {
    let import = match Path::new(parent).parent() {
        Some(directory) if !import.starts_with('/') => {
            directory.join(import).to_string_lossy().into_owned()
        }
        _ => import.to_owned(),
    };
    if !import.contains('*') {
        return Ok(vec![import]);
    }
    // Each further part with `*` lists all directories that the part before it matches.
    if import.split('/').filter(|part| part.contains('*')).count() > 1 {
        return Err("expected one part with * at most; it is passed over");
    }
    let pattern = below(Path::new("/"), &import).to_string_lossy().replace("**", "*");
    matches(host, &pattern).ok_or("expected a pattern; it is passed over")
}

/// Returns the node's paths that match a pattern, in the order of a directory walk. Returns `None`
/// if the pattern is invalid.
fn matches(host: &Path, pattern: &str) -> Option<Vec<String>> {
    let root = glob::Pattern::escape(host.to_string_lossy().trim_end_matches('/'));
    let mut paths: Vec<_> =
        glob::glob(&format!("{root}{pattern}")).ok()?.take(MOST_ENTRIES).flatten().collect();
    paths.sort_unstable();
    let inside =
        |path: &PathBuf| Some(format!("/{}", path.strip_prefix(host).ok()?.to_string_lossy()));
    Some(paths.iter().filter_map(inside).collect())
}

/// Runs a program with `--version` and returns the version in its output.
fn said_version(program: &str) -> Option<Version> {
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().ok()?;
    let began = Instant::now();
    let succeeded = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status.success(),
            Ok(None) if began.elapsed() < PATIENCE => thread::sleep(Duration::from_millis(10)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                break false;
            }
        }
    };
    let mut output = child.stdout.take().filter(|_| succeeded)?;
    // A child of the program may keep the pipe open, so a read to the end could block. The data in
    // the pipe at this time suffices.
    rustix::fs::fcntl_setfl(&output, OFlags::NONBLOCK).ok()?;
    let mut text = [0; 4096];
    let length = output.read(&mut text).ok()?;
    Version::find(&String::from_utf8_lossy(&text[..length]))
}

impl Runtime {
    /// Returns all known runtimes, whether present or not. Runs a runtime's program only if `host`
    /// is the root of this machine.
    pub(crate) fn all(host: &Path) -> Vec<Self> {
        let runtimes = [&CONTAINERD, &CRIO].into_iter().map(|kind| {
            let socket = Socket::connect(&host.join(kind.socket));
            // CRI-O writes its version to this file at each start.
            let written = if kind.program == "crio" {
                read(&host.join("run/crio/version"))
            } else {
                Ok(None)
            };
            let written = written.ok().flatten().and_then(|text| Version::find(&text));
            let may_run = host == Path::new("/") && socket != Socket::Absent;
            let said = || kind.programs(host).iter().find_map(|program| said_version(program));
            let version = written.or_else(|| may_run.then(said).flatten());
            Self { kind, socket, version, settings: kind.settings(host, version) }
        });
        runtimes.collect()
    }

    /// Returns why NRI is off and what to do, or `None` if nothing shows that NRI is off.
    pub(crate) fn why_off(&self) -> Option<(String, String)> {
        let Self { kind, version, settings, .. } = self;
        let name = kind.name;
        if let Some(version) = version.filter(|version| *version < kind.oldest) {
            let advice = format!("upgrade {name} to {} or newer", kind.on_from);
            return Some((format!("{name} {version} has no NRI"), advice));
        }
        match (&settings.is_off, version) {
            (Some((true, why)), _) if why.starts_with("disabled_plugins") => {
                let advice = format!(
                    "take io.containerd.nri.v1.nri out of disabled_plugins, and restart {name}"
                );
                Some((format!("off in {name}: {why}"), advice))
            }
            (Some((true, why)), _) => {
                Some((format!("off in {name}: {why}"), kind.how_to_switch_on.to_owned()))
            }
            (None, Some(version)) if *version < kind.on_from => Some((
                format!("off in {name} {version}, as by default before {}", kind.on_from),
                kind.how_to_switch_on.to_owned(),
            )),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn put(host: &Path, path: &str, text: &str) {
        let path = host.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn the_configuration_is_the_one_that_containerd_is_started_with() {
        for flag in [
            "--config /x.toml",
            "--config=/x.toml",
            "-config /x.toml",
            "-config=/x.toml",
            "-c /x.toml",
            "-c=/x.toml",
        ] {
            let command = format!("/usr/bin/containerd {flag} --log-level warn");
            let expected =
                ("/x.toml".to_owned(), "/usr/bin/containerd --log-level warn".to_owned());
            assert_eq!(containerd_config(&command), Ok(expected), "{flag}");
        }
        let plain =
            ("/etc/containerd/config.toml".to_owned(), "containerd -a /s --configs".to_owned());
        assert_eq!(containerd_config("containerd -a /s --configs"), Ok(plain));
        for command in [
            "containerd $OPTIONS",
            "containerd '-c' /x",
            "containerd \"--config=/x\"",
            "containerd -c /%H",
            "a\\x20b",
        ] {
            assert!(containerd_config(command).is_err(), "{command}");
        }

        let host = tempfile::tempdir().unwrap();
        put(
            host.path(),
            "lib/systemd/system/containerd.service",
            "[Service]\n ExecStart =\tcontainerd $OPTIONS\n",
        );
        assert_eq!(
            start_command(host.path(), "containerd.service", "").as_deref(),
            Some("containerd $OPTIONS")
        );
        let problems = Settings::of_containerd(host.path(), None).unread;
        assert!(
            problems.len() == 1 && problems[0].contains("containerd $OPTIONS has $"),
            "{problems:?}"
        );
    }

    #[test]
    fn a_runtime_is_asked_for_its_version_where_systemd_starts_it_from() {
        let host = tempfile::tempdir().unwrap();
        let elsewhere = ["containerd", "/usr/local/bin/containerd"];
        assert_eq!(CONTAINERD.programs(host.path()), elsewhere);
        let unit = "lib/systemd/system/containerd.service";
        put(host.path(), unit, "[Service]\nExecStart=-/opt/bin/containerd --log-level warn\n");
        assert_eq!(
            CONTAINERD.programs(host.path()),
            [&["/opt/bin/containerd"], &elsewhere[..]].concat()
        );
        put(host.path(), unit, "[Service]\nExecStart=/opt/bin/start-it\n");
        assert_eq!(CONTAINERD.programs(host.path()), elsewhere);
    }

    #[test]
    fn of_sections_the_last_one_counts_whole_before_containerd_2_and_by_key_since() {
        let host = tempfile::tempdir().unwrap();
        let section = "[plugins.'io.containerd.nri.v1.nri']\n";
        let main = format!(
            "imports = ['b.toml']\n{section}disable = false\nplugin_path = '/p'\ndisable_connections = true\n"
        );
        put(host.path(), "etc/containerd/config.toml", &main);
        put(host.path(), "etc/containerd/b.toml", &format!("{section}plugin_config_path = '/c'\n"));
        let of = |version| Settings::of_containerd(host.path(), Some(version));
        let (old, new) = (of(Version(1, 7, 24)), of(Version(2, 0, 0)));
        assert_eq!([old.section.len(), new.section.len()], [1, 4]);
        assert_eq!((old.is_off, old.plugin_path, old.takes_no_connections), (None, None, false));
        assert_eq!((new.plugin_path.as_deref(), new.takes_no_connections), (Some("/p"), true));
        assert_eq!(
            [old.config_path, new.config_path],
            [Some("/c".to_owned()), Some("/c".to_owned())]
        );
        assert_eq!([old.files, new.files], [2, 2]);
    }

    #[test]
    fn crio_reads_directories_below_its_drop_ins_too() {
        let host = tempfile::tempdir().unwrap();
        let is = |on| format!("[crio.nri]\nenable_nri = {on}\n");
        put(host.path(), "etc/crio/crio.conf.d/10-a.conf", &is(true));
        put(host.path(), "etc/crio/crio.conf.d/20-more/00-b.conf", &is(false));
        let found = Settings::of_crio(host.path()).is_off;
        assert_eq!(
            found,
            Some((
                true,
                "/etc/crio/crio.conf.d/20-more/00-b.conf has enable_nri = false".to_owned()
            ))
        );
        put(host.path(), "etc/crio/crio.conf.d/20-z.conf", &is(true));
        assert!(Settings::of_crio(host.path()).is_off.is_some_and(|(is_off, _)| !is_off));
    }
}
