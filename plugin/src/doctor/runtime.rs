//! Container runtimes: which there are, and how their configuration has NRI.
//!
//! Sources: containerd `docs/NRI.md` and `cmd/containerd/server/config` of 1.7 and 2.3; CRI-O `internal/config/nri` and
//! `pkg/config`.

use std::collections::HashSet;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use super::{MOST_ENTRIES, Socket, below, names, read};
use crate::units::excerpt;

/// How many files of a runtime's configuration are read.
const MOST_FILES: usize = 64;

/// How long a runtime may take to say its version.
const PATIENCE: Duration = Duration::from_secs(2);

/// Major, minor and patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(pub(super) u64, pub(super) u64, pub(super) u64);

impl Version {
    /// The first word that is a version, such as `v2.1.9`, `"1.34.0"` or `6.12.0-cloud-amd64`.
    pub(super) fn find(text: &str) -> Option<Self> {
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

/// A container runtime.
#[derive(Debug)]
pub(super) struct Runtime {
    pub(super) kind: &'static Kind,
    pub(super) socket: Socket,
    pub(super) version: Option<Version>,
    pub(super) settings: Settings,
}

/// What differs between runtimes.
#[derive(Debug)]
pub(super) struct Kind {
    pub(super) name: &'static str,
    pub(super) program: &'static str,
    pub(super) socket: &'static str,
    /// Which one has NRI, and which one has it on unless told otherwise.
    pub(super) oldest: Version,
    pub(super) on_from: Version,
    /// The keys of NRI's settings: its switch and what that is where NRI is off, then those below.
    pub(super) switch: (&'static str, bool),
    pub(super) keys: [&'static str; 6],
    pub(super) how_to_switch_on: &'static str,
}

pub(super) const PLUGIN_PATH: usize = 0;
pub(super) const CONFIG_PATH: usize = 1;
pub(super) const SOCKET_PATH: usize = 2;
pub(super) const REQUEST: usize = 3;
pub(super) const REGISTRATION: usize = 4;
pub(super) const NO_CONNECTIONS: usize = 5;

pub(super) static CONTAINERD: Kind = Kind {
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
    how_to_switch_on: "set disable = false under [plugins.\"io.containerd.nri.v1.nri\"] in /etc/containerd/config.toml, and \
                       restart containerd",
};

pub(super) static CRIO: Kind = Kind {
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
    how_to_switch_on: "set enable_nri = true under [crio.nri] in a file in /etc/crio/crio.conf.d, and restart crio",
};

/// The first containerd of 1.7 whose NRI is new enough.
pub(super) const CONTAINERD_1_7: Version = Version(1, 7, 16);

/// NRI's settings of a runtime, as its configuration files have them.
#[derive(Debug, Default)]
pub(super) struct Settings {
    /// Whether it is switched off, and by what.
    pub(super) is_off: Option<(bool, String)>,
    pub(super) plugin_path: Option<String>,
    pub(super) config_path: Option<String>,
    pub(super) socket_path: Option<String>,
    pub(super) request_timeout: Option<Duration>,
    pub(super) registration_timeout: Option<Duration>,
    pub(super) takes_no_connections: bool,
    /// The runtime serves no kubelet.
    pub(super) is_without_cri: bool,
    pub(super) files: usize,
    pub(super) problems: Vec<String>,
}

impl Settings {
    /// Those of containerd: of its configuration, and of what that imports, in that order. The last one counts.
    pub(super) fn of_containerd(host: &Path) -> Self {
        let mut settings = Self::default();
        let mut pending = vec!["/etc/containerd/config.toml".to_owned()];
        let mut loaded = HashSet::new();
        while let Some(path) = (!pending.is_empty()).then(|| pending.remove(0)) {
            if loaded.len() == MOST_FILES || !loaded.insert(path.clone()) {
                continue;
            }
            let Some(table) = settings.load(host, &path) else { continue };
            let section = table.get("plugins").and_then(|plugins| plugins.get("io.containerd.nri.v1.nri"));
            settings.take(section, &path, &CONTAINERD);
            let list = |key: &str| {
                let values = table.get(key).and_then(toml::Value::as_array).into_iter().flatten();
                values.filter_map(toml::Value::as_str)
            };
            for disabled in list("disabled_plugins") {
                match disabled {
                    "io.containerd.nri.v1.nri" => {
                        settings.is_off = Some((true, format!("disabled_plugins of {} names it", excerpt(&path))));
                    }
                    "cri" | "io.containerd.grpc.v1.cri" | "io.containerd.cri.v1.runtime" => {
                        settings.is_without_cri = true;
                    }
                    _ => {}
                }
            }
            for import in list("imports") {
                match imported(host, &path, import) {
                    Ok(paths) => pending.extend(paths),
                    Err(why) => {
                        settings.problems.push(format!("{}: import {}: {why}", excerpt(&path), excerpt(import)));
                    }
                }
            }
        }
        settings
    }

    /// Those of CRI-O: of its configuration, and of the files beside it, in the order of their names. The last one counts.
    pub(super) fn of_crio(host: &Path) -> Self {
        let mut settings = Self::default();
        let drop_ins = names(&host.join("etc/crio/crio.conf.d"));
        let drop_ins = drop_ins.iter().take(MOST_FILES).map(|name| format!("/etc/crio/crio.conf.d/{name}"));
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
                self.problems.push(format!("{}: {}", excerpt(path), error.why));
                return None;
            }
        };
        self.files += 1;
        let table = toml::from_str::<toml::Table>(&text);
        table.map_err(|error| self.problems.push(format!("{}: {}", excerpt(path), excerpt(error.message())))).ok()
    }

    fn take(&mut self, section: Option<&toml::Value>, path: &str, kind: &Kind) {
        let Some(section) = section else { return };
        let path = excerpt(path);
        let problems = &mut self.problems;
        let mut wrong = |key: &str, expected: &str| problems.push(format!("{path}: {key}: expected {expected}"));
        let (switch, off) = kind.switch;
        match section.get(switch).map(toml::Value::as_bool) {
            Some(Some(is)) => self.is_off = Some((is == off, format!("{path} has {switch} = {is}"))),
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
                // Empty is the default.
                Some(Some(text)) => *field = Some(text.to_owned()).filter(|text| !text.is_empty()),
                Some(None) => wrong(kind.keys[key], "a path"),
                None => {}
            }
        }
        for (key, field) in [(REQUEST, &mut self.request_timeout), (REGISTRATION, &mut self.registration_timeout)] {
            let duration = match section.get(kind.keys[key]) {
                Some(toml::Value::Integer(nanoseconds)) => u64::try_from(*nanoseconds).ok().map(Duration::from_nanos),
                Some(value) => value.as_str().and_then(|text| humantime::parse_duration(text).ok()),
                None => continue,
            };
            match duration {
                // 0 is the default.
                Some(duration) => *field = Some(duration).filter(|duration| !duration.is_zero()),
                None => wrong(kind.keys[key], "a duration such as \"2s\""),
            }
        }
    }
}

/// The files that an `imports` of containerd's stands for.
fn imported(host: &Path, parent: &str, import: &str) -> Result<Vec<String>, &'static str> {
    let import = match Path::new(parent).parent() {
        Some(directory) if !import.starts_with('/') => directory.join(import).to_string_lossy().into_owned(),
        _ => import.to_owned(),
    };
    if !import.contains('*') {
        return Ok(vec![import]);
    }
    // Each level more is a look at all directories of the one above.
    if import.split('/').filter(|part| part.contains('*')).count() > 1 {
        return Err("expected one part with * at most; it is passed over");
    }
    let pattern = below(Path::new("/"), &import).to_string_lossy().replace("**", "*");
    let root = glob::Pattern::escape(host.to_string_lossy().trim_end_matches('/'));
    let paths = glob::glob(&format!("{root}{pattern}")).map_err(|_| "expected a pattern; it is passed over")?;
    let mut paths: Vec<_> = paths.take(MOST_ENTRIES).flatten().collect();
    paths.sort_unstable();
    let inside = |path: &PathBuf| Some(format!("/{}", path.strip_prefix(host).ok()?.to_string_lossy()));
    Ok(paths.iter().filter_map(inside).collect())
}

/// The version that a program says it has.
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
    // What it has started may hold the pipe open: what is in it is enough.
    rustix::fs::fcntl_setfl(&output, OFlags::NONBLOCK).ok()?;
    let mut text = [0; 4096];
    let length = output.read(&mut text).ok()?;
    Version::find(&String::from_utf8_lossy(&text[..length]))
}

impl Runtime {
    /// Those that are known, here or not. No program is run but those of this machine.
    pub(super) fn all(host: &Path) -> Vec<Self> {
        let kinds = [(&CONTAINERD, Settings::of_containerd(host)), (&CRIO, Settings::of_crio(host))].into_iter();
        let runtimes = kinds.map(|(kind, settings)| {
            let socket = Socket::connect(&host.join(kind.socket));
            // CRI-O writes it down at each start.
            let written = if kind.program == "crio" { read(&host.join("run/crio/version")) } else { Ok(None) };
            let written = written.ok().flatten().and_then(|text| Version::find(&text));
            let may_run = host == Path::new("/") && socket != Socket::Absent;
            let version = written.or_else(|| may_run.then(|| said_version(kind.program)).flatten());
            Self { kind, socket, version, settings }
        });
        runtimes.collect()
    }

    /// Why NRI is off, if it is, and what to do.
    pub(super) fn why_off(&self) -> Option<(String, String)> {
        let Self { kind, version, settings, .. } = self;
        let name = kind.name;
        if let Some(version) = version.filter(|version| *version < kind.oldest) {
            let advice = format!("upgrade {name} to {} or newer", kind.on_from);
            return Some((format!("{name} {version} has no NRI"), advice));
        }
        match (&settings.is_off, version) {
            (Some((true, why)), _) if why.starts_with("disabled_plugins") => {
                let advice = format!("take io.containerd.nri.v1.nri out of disabled_plugins, and restart {name}");
                Some((format!("off in {name}: {why}"), advice))
            }
            (Some((true, why)), _) => Some((format!("off in {name}: {why}"), kind.how_to_switch_on.to_owned())),
            (None, Some(version)) if *version < kind.on_from => Some((
                format!("off in {name} {version}, as by default before {}", kind.on_from),
                kind.how_to_switch_on.to_owned(),
            )),
            _ => None,
        }
    }
}
