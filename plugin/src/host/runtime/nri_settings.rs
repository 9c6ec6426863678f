//! NRI settings of a runtime, merged from its configuration files.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use plimsoll_core::units::excerpt;

use crate::host::files::{below, read};
use crate::host::runtime::kind::{NriKeys, RuntimeKind};

/// Maximum number of files to read: configuration files of containerd, or drop-ins of CRI-O.
pub(crate) const MOST_FILES: usize = 64;

/// Setting that switches NRI on or off. `Display` names the setting and its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NriSwitch {
    /// The list `disabled_plugins` in a containerd file contains NRI. Another file cannot override
    /// this entry.
    DisabledPlugins {
        /// The containerd file.
        path: String,
        /// Name of NRI in the file.
        plugin: &'static str,
    },
    /// A file's NRI section contains the key that switches NRI on or off.
    Section {
        /// The file with the section.
        path: String,
        /// The configuration key.
        key: &'static str,
        /// The value of the key.
        value: bool,
    },
}

impl fmt::Display for NriSwitch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DisabledPlugins { path, plugin } => {
                write!(f, "disabled_plugins of {} names {plugin}", excerpt(path))
            }
            Self::Section { path, key, value } => {
                write!(f, "{} has {key} = {value}", excerpt(path))
            }
        }
    }
}

/// NRI settings of a runtime, merged from its configuration files.
#[derive(Debug, Default)]
pub(crate) struct NriSettings {
    /// Whether NRI is switched off, and the setting that determines this. `None` if no file
    /// switches NRI on or off.
    pub(crate) is_off: Option<(bool, NriSwitch)>,
    /// Directory of the plugins that the runtime launches. In this field and the next four, `None`
    /// means the runtime's default.
    pub(crate) plugin_path: Option<String>,
    /// Directory of the plugins' configuration files.
    pub(crate) config_path: Option<String>,
    /// NRI socket.
    pub(crate) socket_path: Option<String>,
    /// Time that the runtime waits for a plugin's answer to a request.
    pub(crate) request_timeout: Option<Duration>,
    /// Time that the runtime waits for a plugin to register.
    pub(crate) registration_timeout: Option<Duration>,
    /// Whether the runtime accepts no connections from plugins and uses only plugins that it
    /// launches.
    pub(crate) takes_no_connections: bool,
    /// Whether containerd's CRI plugin is disabled, so that no kubelet can use containerd.
    pub(crate) is_without_cri: bool,
    /// Number of files that were read.
    pub(crate) files: usize,
    /// Messages about malformed files and settings.
    pub(crate) problems: Vec<String>,
    /// Files that could not be read, each with the error. Includes an `ExecStart` that does not
    /// show which configuration file containerd uses.
    pub(crate) unread: Vec<String>,
    /// NRI section, merged from all files.
    pub(crate) section: toml::Table,
    /// Path of containerd's main configuration file, which imports all others. Empty for CRI-O.
    pub(crate) main: String,
    /// Version of containerd's file format. 0 for CRI-O.
    pub(crate) form: i64,
    /// Name of the NRI plugin in containerd's files. Empty for CRI-O.
    pub(crate) plugin: &'static str,
    /// Entries of `imports` in the main file.
    pub(crate) imports: Vec<String>,
}

impl NriSettings {
    /// Reads and parses a configuration file. Adds an unreadable file to `unread` and an invalid
    /// file to `problems`.
    pub(super) fn load(&mut self, host: &Path, path: &str) -> Option<toml::Table> {
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

    /// Discards the NRI sections of all files read so far. Keeps the settings from other sections.
    pub(super) fn forget_section(&mut self) {
        let Self { is_without_cri, files, problems, unread, main, form, plugin, imports, .. } =
            std::mem::take(self);
        *self = Self {
            is_without_cri,
            files,
            problems,
            unread,
            main,
            form,
            plugin,
            imports,
            ..Self::default()
        };
    }

    /// Merges the NRI section (`section`) of the file at `path` into the settings.
    pub(super) fn take(&mut self, section: Option<&toml::Value>, path: &str, kind: &RuntimeKind) {
        let Some(section) = section else { return };
        let pairs = section.as_table().into_iter().flatten();
        self.section.extend(pairs.map(|(key, value)| (key.clone(), value.clone())));
        let reader = SectionReader { section, keys: &kind.keys };
        let (switch, off) = kind.switch;
        let mut wrong = Vec::new();
        reader.read_flag(switch, &mut wrong, |value| {
            let switch = NriSwitch::Section { path: path.to_owned(), key: switch, value };
            self.is_off = Some((value == off, switch));
        });
        reader.read_flag(kind.keys.no_connections, &mut wrong, |value| {
            self.takes_no_connections = value;
        });
        reader.read_paths(self, &mut wrong);
        reader.read_timeouts(self, &mut wrong);
        let path = excerpt(path);
        let problems = wrong
            .iter()
            .map(|WrongType { key, expected }| format!("{path}: {key}: expected {expected}"));
        self.problems.extend(problems);
    }
}

/// Error: the value of a key has the wrong type.
struct WrongType {
    key: &'static str,
    expected: &'static str,
}

/// Reader for the values of one NRI section.
struct SectionReader<'a> {
    section: &'a toml::Value,
    keys: &'a NriKeys,
}

impl SectionReader<'_> {
    fn read_flag(&self, key: &'static str, wrong: &mut Vec<WrongType>, set: impl FnOnce(bool)) {
        match self.section.get(key).map(toml::Value::as_bool) {
            Some(Some(value)) => set(value),
            Some(None) => wrong.push(WrongType { key, expected: "true or false" }),
            None => {}
        }
    }

    fn read_paths(&self, settings: &mut NriSettings, wrong: &mut Vec<WrongType>) {
        for (key, field) in [
            (self.keys.plugin_path, &mut settings.plugin_path),
            (self.keys.config_path, &mut settings.config_path),
            (self.keys.socket_path, &mut settings.socket_path),
        ] {
            match self.section.get(key).map(toml::Value::as_str) {
                // An empty path selects the default.
                Some(Some(text)) => *field = Some(text.to_owned()).filter(|text| !text.is_empty()),
                Some(None) => wrong.push(WrongType { key, expected: "a path" }),
                None => {}
            }
        }
    }

    fn read_timeouts(&self, settings: &mut NriSettings, wrong: &mut Vec<WrongType>) {
        for (key, field) in [
            (self.keys.request_timeout, &mut settings.request_timeout),
            (self.keys.registration_timeout, &mut settings.registration_timeout),
        ] {
            let duration = match self.section.get(key) {
                Some(toml::Value::Integer(nanoseconds)) => {
                    u64::try_from(*nanoseconds).ok().map(Duration::from_nanos)
                }
                Some(value) => value.as_str().and_then(|text| humantime::parse_duration(text).ok()),
                None => continue,
            };
            match duration {
                // A timeout of 0 selects the default.
                Some(duration) => *field = Some(duration).filter(|duration| !duration.is_zero()),
                None => wrong.push(WrongType { key, expected: "a duration such as \"2s\"" }),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;

    proptest! {
        #[test]
        fn any_runtime_configuration_is_read_or_named(
            text in "(imports|disabled_plugins|plugins|'io.containerd.nri.v1.nri'|disable|\
                plugin_path|plugin_request_timeout|crio|nri|[\\[\\]{}=.,'*/]|true|1|2s|\n|.){0,30}"
        ) {
            let root = TempDir::new().unwrap();
            for path in ["etc/containerd/config.toml", "etc/crio/crio.conf"] {
                let path = root.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, &text).unwrap();
            }
            let settings = [
                NriSettings::of_containerd(root.path(), None),
                NriSettings::of_crio(root.path()),
            ];
            prop_assert!(settings.iter().all(|settings| settings.files == 1));
        }
    }
}
