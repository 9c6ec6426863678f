//! Facts about the installed plugin, other NRI plugins and their configuration files.

use std::path::Path;

use plimsoll_core::units::excerpt;

use crate::config::{Config, DROP_INS, Mode};
use crate::host::files::{Unreadable, below, is_there, list, read_bytes};
use crate::host::nri_plugins::{NriPlugin, PLUGINS};
use crate::host::plugin_lock::holder;
use crate::host::runtime::detect::Runtime;
use crate::host::runtime::nri_settings::NriSettings;
use crate::host::units::{UnitError, unit_file};
use crate::report::serve;
use crate::state::brake;
use crate::state::settings::RESTORE_MARKER;

/// Facts about the installed plugin and about other NRI plugins.
#[derive(Debug)]
pub(crate) struct PluginFacts {
    /// Existing configuration files of the plugin, in order of decreasing precedence.
    pub(crate) drop_ins: Vec<(String, Result<Vec<u8>, Unreadable>)>,
    pub(crate) programs: Vec<NriPlugin>,
    /// Names of the other files in the directories of plugin configurations.
    pub(crate) other_configurations: Vec<String>,
    /// Errors about directories that doctor could not list: directories of plugins or of plugin
    /// configurations.
    pub(crate) unlisted: Vec<String>,
    /// Unit file of the plugin's service. If the unit is masked, this field is an error.
    pub(crate) unit: Result<Option<String>, UnitError>,
    /// Process that runs the plugin. `Some(None)` means that no process runs the plugin. `None`
    /// means that doctor does not know.
    pub(crate) process: Option<Option<String>>,
    /// Mode that the running plugin reports, or the reason why the plugin reports no mode. `None`
    /// if the plugin's socket does not exist.
    pub(crate) reported_mode: Option<Result<Mode, String>>,
    pub(crate) is_restored: Result<bool, Unreadable>,
    pub(crate) brake: Result<Option<brake::Record>, String>,
}

impl PluginFacts {
    pub(super) fn collect(host: &Path, socket: &Path, runtimes: &[Runtime]) -> Self {
        let plugins = directories(runtimes, PLUGINS, |settings| &settings.plugin_path);
        let programs: Vec<_> =
            plugins.iter().flat_map(|directory| NriPlugin::all(host, directory)).collect();
        let mut unlisted = Vec::new();
        let mut listed = |directory: &str| match list(&below(host, directory)) {
            Ok(names) => names,
            Err(error) => {
                unlisted.push(format!("{}: {}", excerpt(directory), error.why));
                Vec::new()
            }
        };
        plugins.iter().for_each(|directory| _ = listed(directory));
        let ours = configuration_names(&programs);
        let mut drop_ins = Vec::new();
        let mut other_configurations = Vec::new();
        for directory in directories(runtimes, DROP_INS, |settings| &settings.config_path) {
            for name in &ours {
                let path = format!("{}/{name}", directory.trim_end_matches('/'));
                match read_bytes(&below(host, &path)) {
                    Ok(None) => {}
                    Ok(Some(text)) => drop_ins.push((path, Ok(text))),
                    Err(error) => drop_ins.push((path, Err(error))),
                }
            }
            other_configurations
                .extend(listed(&directory).into_iter().filter(|name| !ours.contains(name)));
        }
        let unit = unit_file(host, "plimsoll.service").map(|path| Some(format!("/{}", path?)));
        Self {
            drop_ins,
            programs,
            other_configurations,
            unlisted,
            unit,
            process: holder(host, socket),
            reported_mode: ask_mode(host),
            is_restored: is_there(&host.join(RESTORE_MARKER)),
            brake: brake::Record::load(host).map_err(|error| error.to_string()),
        }
    }

    /// Returns the plugin's configuration from its first configuration file. Returns `None` if the
    /// file is missing or invalid.
    pub(crate) fn config(&self) -> Option<Config> {
        self.drop_ins.first().and_then(|(path, text)| Config::parse(text.as_ref().ok()?, path).ok())
    }
}

/// Returns the directories from the NRI settings of the runtimes, and then the default directory.
fn directories(
    runtimes: &[Runtime],
    default: &str,
    configured: fn(&NriSettings) -> &Option<String>,
) -> Vec<String> {
    let mut directories: Vec<String> =
        runtimes.iter().filter_map(|runtime| configured(&runtime.settings).clone()).collect();
    directories.push(default.to_owned());
    directories.dedup();
    directories
}

/// Returns the names that the plugin's configuration file may have, in order of precedence.
fn configuration_names(programs: &[NriPlugin]) -> [String; 2] {
    let index = programs
        .iter()
        .filter(|program| program.is_ours())
        .find_map(|program| program.index.clone());
    [format!("{}-plimsoll.conf", index.as_deref().unwrap_or("90")), "plimsoll.conf".to_owned()]
}

/// Asks the plugin for its mode. Returns `None` if the plugin's socket does not exist.
fn ask_mode(host: &Path) -> Option<Result<Mode, String>> {
    if !serve::socket(host).exists() {
        return None;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let answer = runtime
        .map_err(anyhow::Error::from)
        .and_then(|runtime| Ok(runtime.block_on(serve::ask(host))?));
    Some(answer.map(|status| status.node.mode).map_err(|error| format!("{error:#}")))
}
