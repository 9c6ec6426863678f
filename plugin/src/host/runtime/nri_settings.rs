//! NRI settings of a runtime, merged from its configuration files.

use std::path::Path;
use std::time::Duration;

use plimsoll_core::units::excerpt;

use crate::host::files::{below, read};
use crate::host::runtime::kind::{
    CONFIG_PATH, NO_CONNECTIONS, PLUGIN_PATH, REGISTRATION, REQUEST, RuntimeKind, SOCKET_PATH,
};

/// Maximum number of configuration files read for containerd, and of drop-ins read for CRI-O.
pub(crate) const MOST_FILES: usize = 64;

/// NRI settings of a runtime, merged from its configuration files.
#[derive(Debug, Default)]
pub(crate) struct NriSettings {
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

impl NriSettings {
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

    /// Discards the NRI section of all files read so far. Keeps the effects of `disabled_plugins`,
    /// which is not part of the section.
    pub(super) fn forget_section(&mut self) {
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

    pub(super) fn take(&mut self, section: Option<&toml::Value>, path: &str, kind: &RuntimeKind) {
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

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;

    proptest! {
        #[test]
        fn any_runtime_configuration_is_read_or_named(text in "(imports|disabled_plugins|plugins|'io.containerd.nri.v1.nri'|disable|plugin_path|plugin_request_timeout|crio|nri|[\\[\\]{}=.,'*/]|true|1|2s|\n|.){0,30}") {
            let root = TempDir::new().unwrap();
            for path in ["etc/containerd/config.toml", "etc/crio/crio.conf"] {
                let path = root.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, &text).unwrap();
            }
            let settings = [NriSettings::of_containerd(root.path(), None), NriSettings::of_crio(root.path())];
            prop_assert!(settings.iter().all(|settings| settings.files == 1));
        }
    }
}
