//! Unit files and drop-ins of systemd.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use plimsoll_core::units::excerpt;

use crate::host::files::{Unreadable, follow_link, list, read};

/// Directories of unit files, from highest to lowest precedence.
pub(crate) const UNIT_DIRECTORIES: [&str; 5] = [
    "etc/systemd/system",
    "run/systemd/system",
    "usr/local/lib/systemd/system",
    "usr/lib/systemd/system",
    "lib/systemd/system",
];

/// Directories of the unit files that packages install.
pub(crate) const PACKAGE_UNIT_DIRECTORIES: [&str; 2] =
    ["usr/lib/systemd/system", "lib/systemd/system"];

/// Error: the settings of a unit are unknown.
#[derive(Clone, Debug)]
pub(crate) enum UnitError {
    /// The unit is masked, so systemd cannot start it.
    Masked {
        /// Path of the unit file.
        path: String,
    },
    /// A unit file, a drop-in or a directory of drop-ins is unreadable.
    Unreadable {
        /// The unreadable path.
        path: String,
        /// The cause.
        error: Unreadable,
    },
}

impl fmt::Display for UnitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Masked { path } => write!(f, "/{} is masked", excerpt(path)),
            Self::Unreadable { path, error } => write!(f, "/{}: {}", excerpt(path), error.why),
        }
    }
}

/// Returns the advice for the operator if the file at `path` masks the plugin's unit.
pub(crate) fn how_to_unmask(path: &str) -> String {
    // Without `--runtime`, `systemctl unmask` ignores files in /run.
    let option = if path.starts_with("run/") { "--runtime " } else { "" };
    format!("run 'systemctl unmask {option}plimsoll', or remove /{}", excerpt(path))
}

impl UnitError {
    fn unreadable(path: &str, error: impl Into<Unreadable>) -> Self {
        Self::Unreadable { path: path.to_owned(), error: error.into() }
    }
}

/// Returns the command with which systemd starts a unit, from `ExecStart` in the unit file and its
/// drop-ins. Ignores drop-ins whose file name is `but`. Returns `None` if the unit or its command
/// does not exist.
///
/// # Errors
///
/// Fails if the unit is masked, or if a file or directory is unreadable.
pub(crate) fn start_command(
    host: &Path,
    unit: &str,
    but: &str,
) -> Result<Option<String>, UnitError> {
    let Some(path) = unit_file(host, unit)? else { return Ok(None) };
    let mut command = None;
    for path in std::iter::once(path).chain(find_drop_ins(host, unit, but)?) {
        let file = follow_link(host, &host.join(&path));
        let text = read(&file).and_then(|text| text.ok_or_else(Unreadable::missing));
        let text = text.map_err(|error| UnitError::unreadable(&path, error))?.replace("\\\n", " ");
        let settings = text.lines().filter_map(|line| line.split_once('='));
        for (_, value) in settings.filter(|(key, _)| key.trim() == "ExecStart") {
            // An empty `ExecStart=` discards the commands before it.
            command = Some(value.trim().to_owned()).filter(|value| !value.is_empty());
        }
    }
    Ok(command)
}

/// Returns the path of the unit file that systemd uses. The path is relative to `host`. Returns
/// `None` if the unit does not exist.
///
/// # Errors
///
/// Fails if the unit is masked, or if a file is unreadable.
pub(crate) fn unit_file(host: &Path, unit: &str) -> Result<Option<String>, UnitError> {
    match find_unit(host, unit)? {
        Some(path) if is_masked(host, &path) => Err(UnitError::Masked { path }),
        path => Ok(path),
    }
}

/// Returns the path of the unit file with the highest precedence, which may be masked. The path is
/// relative to `host`.
fn find_unit(host: &Path, unit: &str) -> Result<Option<String>, UnitError> {
    for directory in UNIT_DIRECTORIES {
        let path = format!("{directory}/{unit}");
        match host.join(&path).symlink_metadata() {
            Ok(_) => return Ok(Some(path)),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) => {}
            Err(error) => return Err(UnitError::unreadable(&path, error)),
        }
    }
    Ok(None)
}

/// Returns the paths of a unit's drop-ins, in the order in which systemd applies the drop-ins. The
/// paths are relative to `host`.
fn find_drop_ins(
    host: &Path,
    unit: &str,
    but: &str,
) -> Result<impl Iterator<Item = String>, UnitError> {
    // systemd applies drop-ins in the order of their file names; the directory does not matter. If
    // several directories have a file of the same name, systemd uses only the file in the first
    // directory.
    let mut drop_ins = BTreeMap::new();
    for directory in UNIT_DIRECTORIES.map(|directory| format!("{directory}/{unit}.d")) {
        let files = list(&host.join(&directory))
            .map_err(|error| UnitError::unreadable(&directory, error))?;
        for file in files.into_iter().filter(|file| file.ends_with(".conf") && file != but) {
            let path = format!("{directory}/{file}");
            drop_ins.entry(file).or_insert(path);
        }
    }
    // A masked drop-in has no settings, and systemd ignores files of the same name in later
    // directories.
    drop_ins.retain(|_, path| !is_masked(host, path));
    Ok(drop_ins.into_values())
}

/// Returns whether a unit file or drop-in is masked: it is a link to `/dev/null`, or empty.
fn is_masked(host: &Path, path: &str) -> bool {
    let path = host.join(path);
    match fs::read_link(&path) {
        Ok(target) => target == Path::new("/dev/null"),
        Err(_) => path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() == 0),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::host::fixture::put;

    const UNIT: &str = "containerd.service";

    #[test]
    fn local_unit_overrides_the_package() {
        let host = tempfile::tempdir().unwrap();
        let command = || start_command(host.path(), UNIT, "").unwrap();
        assert_eq!(command(), None);
        for (directory, program) in [("usr/lib", "/usr/bin/a"), ("usr/local/lib", "/opt/b")] {
            let path = format!("{directory}/systemd/system/{UNIT}");
            put(host.path(), &path, &format!("[Service]\nExecStart={program}\n"));
            assert_eq!(command().as_deref(), Some(program));
        }
    }

    #[test]
    fn links_stay_inside_the_host() {
        let host = tempfile::tempdir().unwrap();
        put(host.path(), "opt/units/own.service", "[Service]\nExecStart=/a\n");
        put(host.path(), "etc/systemd/system/.keep", "");
        let unit = host.path().join("etc/systemd/system").join(UNIT);
        for target in ["/opt/units/own.service", "../../../opt/units/own.service"] {
            symlink(target, &unit).unwrap();
            let command = start_command(host.path(), UNIT, "").unwrap();
            assert_eq!(command.as_deref(), Some("/a"), "{target}");
            fs::remove_file(&unit).unwrap();
        }
    }

    #[test]
    fn masked_unit_has_no_command() {
        for path in ["etc/systemd/system", "run/systemd/system"] {
            let host = tempfile::tempdir().unwrap();
            put(host.path(), &format!("lib/systemd/system/{UNIT}"), "[Service]\nExecStart=/a\n");
            let unit = format!("{path}/{UNIT}");
            put(host.path(), &unit, "");
            let masked = |host: &Path| match start_command(host, UNIT, "") {
                Err(UnitError::Masked { path }) => path,
                other => panic!("expected a masked unit, found {other:?}"),
            };
            assert_eq!(masked(host.path()), unit);
            fs::remove_file(host.path().join(&unit)).unwrap();
            symlink("/dev/null", host.path().join(&unit)).unwrap();
            assert_eq!(masked(host.path()), unit);
        }
    }

    #[test]
    fn unreadable_drop_in_is_an_error() {
        let host = tempfile::tempdir().unwrap();
        let unit = format!("lib/systemd/system/{UNIT}");
        put(host.path(), &unit, "[Service]\nExecStart=/a\n");
        let drop_in = format!("etc/systemd/system/{UNIT}.d/50-x.conf");
        put(host.path(), &drop_in, "[Service]\nExecStart=\nExecStart=/b\n");
        let command = || start_command(host.path(), UNIT, "");
        assert_eq!(command().unwrap().as_deref(), Some("/b"));
        fs::remove_file(host.path().join(&drop_in)).unwrap();
        symlink("/dev/null", host.path().join(&drop_in)).unwrap();
        assert_eq!(command().unwrap().as_deref(), Some("/a"));
        fs::remove_file(host.path().join(&drop_in)).unwrap();
        symlink("50-x.conf", host.path().join(&drop_in)).unwrap();
        assert!(
            command().is_err_and(|error| error.to_string().starts_with(&format!("/{drop_in}: ")))
        );
    }
}
