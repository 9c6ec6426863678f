//! Reads and replaces files so that a change can be undone.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use crate::commands::install::executor::PathState;

/// Reads the state of a path before a change, so that the change can be undone.
pub(super) fn read_path_state(path: &Path) -> io::Result<PathState> {
    if let Ok(target) = fs::read_link(path) {
        return Ok(PathState::Link(path.to_owned(), target));
    }
    match fs::read(path) {
        Ok(content) => Ok(PathState::File(
            path.to_owned(),
            content,
            fs::metadata(path)?.permissions().mode() & 0o7777,
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Ok(PathState::NoFile(path.to_owned()))
        }
        Err(error) => Err(error),
    }
}

/// Puts one file, link or directory back.
pub(super) fn restore_path_state(state: &PathState) -> Result<(), String> {
    let (path, result) = match state {
        PathState::File(path, content, mode) => (path, replace_file(path, content, *mode)),
        PathState::Link(path, target) => (path, symlink(target, path)),
        PathState::NoFile(path) => (path, fs::remove_file(path)),
        PathState::NoDirectory(path) => (path, fs::remove_dir(path)),
        PathState::Directory(path) => (path, fs::create_dir(path)),
    };
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(format!("{}: {error}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Removes a file. Returns its earlier state, or nothing if there was no file.
pub(super) fn remove_file(path: &Path) -> Result<Vec<PathState>, String> {
    let failed = |error: io::Error| error.to_string();
    match read_path_state(path).map_err(failed)? {
        PathState::NoFile(_) => Ok(Vec::new()),
        before => fs::remove_file(path).map_err(failed).map(|()| vec![before]),
    }
}

/// Removes a directory if it is empty. Returns its earlier state, or nothing if it stays.
pub(super) fn remove_empty(path: PathBuf) -> Vec<PathState> {
    match fs::remove_dir(&path) {
        Ok(()) => vec![PathState::Directory(path)],
        Err(_) => Vec::new(),
    }
}

/// Removes a directory and its content.
pub(super) fn remove_all(path: &Path) -> Result<(), String> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.to_string()),
        _ => Ok(()),
    }
}

/// Replaces a file atomically: readers see either the old or the new content. A process that runs
/// the old file continues.
pub(super) fn replace_file(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".plimsoll-new");
    // The new file is not executable while it is written, because a runtime launches every
    // executable file in its plugin directory.
    let new = path.with_file_name(name);
    let written = (|| {
        let _ = fs::remove_file(&new);
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(content)?;
        file.sync_all()?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        fs::rename(&new, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written
}
