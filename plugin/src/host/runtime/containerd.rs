//! containerd's configuration: the file that containerd's start command names, and all files that
//! this file imports.

use std::collections::HashSet;
use std::path::Path;

use plimsoll_core::units::excerpt;

use crate::host::files::{below, matches};
use crate::host::runtime::kind::CONTAINERD;
use crate::host::runtime::nri_settings::{MOST_FILES, NriSettings, NriSwitch};
use crate::host::units::start_command;
use crate::host::version::Version;

/// Default path of containerd's configuration file.
const CONTAINERD_CONFIG: &str = "/etc/containerd/config.toml";

/// Version of the file format that the plugin uses for new files. containerd 1.7 and newer read
/// this format.
const NEW_FORMAT: i64 = 2;

/// Name of the NRI plugin in containerd's configuration.
const NRI_PLUGIN: &str = "io.containerd.nri.v1.nri";
/// Name of the NRI plugin in file format 1.
const SHORT_NRI_PLUGIN: &str = "nri";
/// First version of containerd that converts each file to the newest format.
const CONVERTS_FROM: Version = Version(2, 0, 0);
/// Names of the CRI plugin in `disabled_plugins`, in file formats 1, 2 and 3.
const CRI_PLUGINS: [&str; 3] = ["cri", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"];

/// Returns two parts of a command that starts containerd: the path of the configuration file, and
/// the command without the configuration flag.
///
/// # Errors
///
/// Fails if the command contains quotes or one of `$%\`, because only systemd can split such a
/// command into words.
pub(crate) fn containerd_config(command: &str) -> Result<(String, String), String> {
    if let Some(character) = command.chars().find(|character| "$%\"'\\".contains(*character)) {
        return Err(format!(
            "cannot tell which configuration containerd.service uses: expected plain words in \
             ExecStart, found {character} in {}",
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

/// Returns whether the version is before 2.0. An unknown version counts as 2.0 or newer. Before
/// 2.0, containerd takes the whole NRI section from one file and uses one format for all files.
fn is_before_2(version: Option<Version>) -> bool {
    version.is_some_and(|version| version < CONVERTS_FROM)
}

/// Returns the name of the NRI plugin in containerd's configuration files of file format `form`.
///
/// containerd 1.7 looks plugins up by their short names in format 1, and by their full names in
/// format 2 (`Decode` and `V1DisabledFilter` of `services/server/config`). containerd 2.0 and newer
/// convert format 1, but convert `nri` to a name that no plugin has (`v1Migrate` of
/// `cmd/containerd/server/config`). containerd 2.0 and newer do not change full names.
pub(crate) fn nri_plugin(version: Option<Version>, form: i64) -> &'static str {
    if is_before_2(version) && form < 2 { SHORT_NRI_PLUGIN } else { NRI_PLUGIN }
}

/// Returns whether a file in file format `form` can switch NRI on. In format 1, this works only if
/// the version is known and before 2.0.
pub(crate) fn has_switch(version: Option<Version>, form: i64) -> bool {
    form >= 2 || is_before_2(version)
}

/// Returns a configuration file in file format `form` that switches NRI on. `plugin` is the name of
/// the NRI plugin, and `section` is the NRI section of the other files. containerd 1.7 uses only
/// the last NRI section, so the new file repeats the other keys of `section`.
pub(crate) fn switch_on(form: i64, plugin: &str, section: &toml::Table) -> toml::Table {
    let (key, off) = CONTAINERD.switch;
    let mut section = section.clone();
    section.insert(key.to_owned(), toml::Value::Boolean(!off));
    let plugins = toml::Table::from_iter([(plugin.to_owned(), toml::Value::Table(section))]);
    toml::Table::from_iter([
        ("version".to_owned(), toml::Value::Integer(form)),
        ("plugins".to_owned(), toml::Value::Table(plugins)),
    ])
}

impl NriSettings {
    /// Returns containerd's settings from its main configuration file and all imports, in the order
    /// of the imports. An unknown version counts as 2.0 or newer.
    ///
    /// containerd merges the files as `mergeConfig` of `cmd/containerd/server/config` does. Since
    /// 2.0, the NRI section of a later file overrides only the keys that it contains. Before 2.0,
    /// it replaces the whole section. The value of `disabled_plugins` is the union of the lists in
    /// all files.
    pub(crate) fn of_containerd(host: &Path, version: Option<Version>) -> Self {
        let mut settings = Self::default();
        match find_config(host) {
            Ok(ConfigPath::Known(main)) => settings.main = main,
            Ok(ConfigPath::Assumed(main, problem)) => {
                settings.main = main;
                settings.unread.push(problem);
            }
            Err(problem) => {
                settings.unread.push(problem);
                return settings;
            }
        }
        let files = settings.load_with_imports(host);
        settings.form = file_format(&files, &settings.main, version);
        let plugin = nri_plugin(version, settings.form);
        settings.plugin = plugin;
        let mut disabled = None;
        for (path, table) in &files {
            let section = table.get("plugins").and_then(|plugins| plugins.get(plugin));
            if is_before_2(version) && section.is_some() {
                settings.forget_section();
            }
            settings.take(section, path, &CONTAINERD);
            for name in texts(table, "disabled_plugins") {
                settings.is_without_cri |= CRI_PLUGINS.contains(&name);
                if name == plugin {
                    let switch = NriSwitch::DisabledPlugins { path: path.clone(), plugin };
                    disabled.get_or_insert(switch);
                }
            }
        }
        if let Some(switch) = disabled {
            settings.is_off = Some((true, switch));
        }
        settings
    }

    /// Reads the main file and all files that it imports, in the order in which containerd merges
    /// them.
    fn load_with_imports(&mut self, host: &Path) -> Vec<(String, toml::Table)> {
        let mut files = Vec::new();
        let mut pending = vec![self.main.clone()];
        let mut loaded = HashSet::new();
        while let Some(path) = (!pending.is_empty()).then(|| pending.remove(0)) {
            if loaded.len() == MOST_FILES || !loaded.insert(path.clone()) {
                continue;
            }
            let Some(table) = self.load(host, &path) else { continue };
            if path == self.main {
                self.imports = texts(&table, "imports").map(str::to_owned).collect();
            }
            pending.extend(self.find_imports(host, &path, &table));
            files.push((path, table));
        }
        files
    }

    /// Returns the files that the file at `path` imports. Adds invalid entries of `imports` to
    /// `problems`.
    fn find_imports(&mut self, host: &Path, path: &str, table: &toml::Table) -> Vec<String> {
        let mut files = Vec::new();
        for import in texts(table, "imports") {
            match imported(host, path, import) {
                Ok(paths) => files.extend(paths),
                Err(why) => {
                    let (path, import) = (excerpt(path), excerpt(import));
                    self.problems.push(format!("{path}: import {import}: {why}"));
                }
            }
        }
        files
    }
}

/// Returns the file format that containerd uses. If there is no file, returns the format of new
/// files.
///
/// Before 2.0, the last file with the key `version` determines the format of all files. Since 2.0,
/// each file has its own format, and no imported file may have a newer format than the main file.
fn file_format(files: &[(String, toml::Table)], main: &str, version: Option<Version>) -> i64 {
    if files.is_empty() {
        return NEW_FORMAT;
    }
    let named = |(_, table): &(String, toml::Table)| {
        table.get("version").and_then(toml::Value::as_integer).filter(|form| *form != 0)
    };
    let form = match is_before_2(version) {
        true => files.iter().rev().find_map(named),
        false => files.iter().find(|(path, _)| path == main).and_then(named),
    };
    // A file without the key `version` has format 1.
    form.unwrap_or(1)
}

/// Path of containerd's main configuration file.
enum ConfigPath {
    Known(String),
    /// The default path, because the start command cannot be parsed. The second text explains why.
    Assumed(String, String),
}

/// Returns the path of the configuration file with which `containerd.service` starts containerd.
///
/// # Errors
///
/// Fails if the unit is masked or unreadable, so that the start command is unknown.
fn find_config(host: &Path) -> Result<ConfigPath, String> {
    let command = start_command(host, "containerd.service", "").map_err(|error| {
        format!("cannot tell which configuration containerd.service uses: {error}")
    })?;
    Ok(match containerd_config(&command.unwrap_or_default()) {
        Ok((main, _)) => ConfigPath::Known(main),
        Err(problem) => ConfigPath::Assumed(CONTAINERD_CONFIG.to_owned(), problem),
    })
}

/// Returns the strings in the list that a configuration file has under `key`.
fn texts<'a>(table: &'a toml::Table, key: &str) -> impl Iterator<Item = &'a str> {
    let values = table.get(key).and_then(toml::Value::as_array).into_iter().flatten();
    values.filter_map(toml::Value::as_str)
}

/// Returns the files that an entry of containerd's `imports` selects. `parent` is the file that
/// contains the entry. A relative entry starts at the directory of `parent`.
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
    // With a second `*`, the search would have to list every directory that the first part matches.
    if import.split('/').filter(|part| part.contains('*')).count() > 1 {
        return Err("expected at most one part with *; the import is ignored");
    }
    let pattern = below(Path::new("/"), &import).to_string_lossy().replace("**", "*");
    matches(host, &pattern).ok_or("expected a valid pattern; the import is ignored")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fixture::put;

    #[test]
    fn the_start_command_determines_the_configuration() {
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
            start_command(host.path(), "containerd.service", "").unwrap().as_deref(),
            Some("containerd $OPTIONS")
        );
        let problems = NriSettings::of_containerd(host.path(), None).unread;
        assert!(
            problems.len() == 1 && problems[0].contains("found $ in containerd $OPTIONS"),
            "{problems:?}"
        );
    }

    #[test]
    fn only_containerd_2_merges_sections_by_key() {
        let host = tempfile::tempdir().unwrap();
        let section = "[plugins.'io.containerd.nri.v1.nri']\n";
        let main = format!(
            "version = 2\nimports = ['b.toml']\n{section}disable = false\nplugin_path = '/p'\n\
             disable_connections = true\n"
        );
        put(host.path(), "etc/containerd/config.toml", &main);
        put(host.path(), "etc/containerd/b.toml", &format!("{section}plugin_config_path = '/c'\n"));
        let of = |version| NriSettings::of_containerd(host.path(), Some(version));
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
    fn disabled_plugins_of_any_file_count() {
        let section = "[plugins.'io.containerd.nri.v1.nri']\ndisable = false\n";
        let disabled = "disabled_plugins = ['io.containerd.nri.v1.nri']\n";
        let imports = "version = 2\nimports = ['b.toml']\n";
        let main = "/etc/containerd/config.toml";
        for (first, second, path) in [
            (format!("{imports}{disabled}"), section.to_owned(), main),
            (format!("{imports}{section}"), disabled.to_owned(), "/etc/containerd/b.toml"),
            (format!("{imports}{disabled}"), "disabled_plugins = []".to_owned(), main),
            (format!("{imports}{disabled}"), disabled.to_owned(), main),
        ] {
            let host = tempfile::tempdir().unwrap();
            put(host.path(), "etc/containerd/config.toml", &first);
            put(host.path(), "etc/containerd/b.toml", &second);
            let expected = NriSwitch::DisabledPlugins { path: path.to_owned(), plugin: NRI_PLUGIN };
            for version in [Version(1, 7, 24), Version(2, 0, 0)] {
                let settings = NriSettings::of_containerd(host.path(), Some(version));
                assert_eq!(settings.is_off, Some((true, expected.clone())), "{first}{second}");
            }
        }
    }

    #[test]
    fn format_1_uses_short_names_before_v2() {
        let old = Some(Version(1, 7, 24));
        let new = Some(Version(2, 0, 0));
        let [short, full] =
            ["nri", NRI_PLUGIN].map(|plugin| format!("[plugins.\"{plugin}\"]\ndisable = false\n"));
        let import = "imports = ['b.toml']\n";
        for (version, main, imported, form, is_on) in [
            (old, short.clone(), "", 1, true),
            (old, format!("version = 1\n{short}"), "", 1, true),
            (old, full.clone(), "", 1, false),
            (old, format!("version = 2\n{full}"), "", 2, true),
            (old, format!("version = 2\n{short}"), "", 2, false),
            // Before 2.0, the last file with a version determines the format of all files.
            (old, format!("version = 2\n{import}{short}"), "version = 1", 1, true),
            (old, format!("version = 2\n{import}{full}"), "version = 1", 1, false),
            (old, format!("{import}{full}"), "version = 2", 2, true),
            (old, format!("version = 2\n{import}{full}"), "version = 0", 2, true),
            // Since 2.0, only a section with the full plugin name configures NRI.
            (new, short.clone(), "", 1, false),
            (new, full.clone(), "", 1, true),
            (new, format!("version = 3\n{full}"), "", 3, true),
            (new, format!("version = 3\n{import}{full}"), "version = 2", 3, true),
            (None, short.clone(), "", 1, false),
            (None, full.clone(), "", 1, true),
        ] {
            let host = tempfile::tempdir().unwrap();
            put(host.path(), "etc/containerd/config.toml", &main);
            put(host.path(), "etc/containerd/b.toml", imported);
            let settings = NriSettings::of_containerd(host.path(), version);
            let found = settings.is_off.as_ref().is_some_and(|(is_off, _)| !is_off);
            assert_eq!((settings.form, found), (form, is_on), "{version:?} {main} {imported}");
        }
    }

    #[test]
    fn disabled_plugins_take_full_names_since_v2() {
        for (version, name, is_disabled) in [
            (Version(1, 7, 24), "nri", true),
            (Version(1, 7, 24), NRI_PLUGIN, false),
            (Version(2, 0, 0), "nri", false),
            (Version(2, 0, 0), NRI_PLUGIN, true),
        ] {
            let host = tempfile::tempdir().unwrap();
            let main = format!("disabled_plugins = ['{name}']\n");
            put(host.path(), "etc/containerd/config.toml", &main);
            let settings = NriSettings::of_containerd(host.path(), Some(version));
            assert_eq!(settings.is_off.is_some(), is_disabled, "{version} {name}");
        }
    }

    #[test]
    fn new_files_have_format_2() {
        let host = tempfile::tempdir().unwrap();
        let settings = NriSettings::of_containerd(host.path(), Some(Version(1, 7, 24)));
        assert_eq!((settings.form, settings.plugin), (2, NRI_PLUGIN));
    }

    #[test]
    fn unknown_start_command_hides_the_configuration() {
        let unit = "etc/systemd/system/containerd.service";
        for masked in [true, false] {
            let host = tempfile::tempdir().unwrap();
            put(host.path(), "lib/systemd/system/containerd.service", "[Service]\n");
            put(host.path(), "etc/containerd/config.toml", "disabled_plugins = ['cri']");
            let drop_in = format!("{unit}.d/10-options.conf");
            let (path, target, why) = match masked {
                true => (unit, "/dev/null", "/etc/systemd/system/containerd.service is masked"),
                false => {
                    (&drop_in[..], "10-options.conf", "containerd.service.d/10-options.conf: ")
                }
            };
            let link = host.path().join(path);
            std::fs::create_dir_all(link.parent().unwrap()).unwrap();
            std::os::unix::fs::symlink(target, link).unwrap();
            let settings = NriSettings::of_containerd(host.path(), None);
            assert!(settings.unread.len() == 1 && settings.unread[0].contains(why), "{settings:?}");
            assert_eq!((settings.files, settings.is_without_cri), (0, false));
        }
    }
}
