//! Unit files and drop-ins of systemd.

use std::collections::BTreeMap;
use std::path::Path;

use crate::host::files::{names, read};

/// Directories of unit files, from highest to lowest precedence.
pub(crate) const UNITS: [&str; 4] =
    ["etc/systemd/system", "run/systemd/system", "usr/lib/systemd/system", "lib/systemd/system"];

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
