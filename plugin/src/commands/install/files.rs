//! Reads and replaces files, and undoes the changes.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use crate::commands::install::executor::PathState;

/// Reads the state of a path before a change, so that an undo can restore it.
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

/// Restores one file, link or directory.
pub(super) fn restore_path_state(state: &PathState) -> Result<(), String> {
    let (path, result) = match state {
        PathState::File(path, content, mode) => (path, replace_file(path, content, *mode)),
        PathState::Link(path, target) => (path, symlink(target, path)),
        PathState::NoFile(path) => (path, fs::remove_file(path)),
        PathState::NoDirectory(path) => (path, fs::remove_dir(path)),
        PathState::Directory(path) => (path, fs::create_dir(path)),
    };
    let is_absent = matches!(state, PathState::NoFile(_) | PathState::NoDirectory(_));
    match result {
        Err(error) if is_absent && error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error)
            if matches!(state, PathState::Directory(_))
                && error.kind() == io::ErrorKind::AlreadyExists =>
        {
            Ok(())
        }
        result => result.map_err(|error| format!("{}: {error}", path.display())),
    }
}

/// Restores all paths that a failed action has changed. The caller passes the paths in the order of
/// the changes. Returns a message with the failure of the action and all failures of the undo.
pub(super) fn undo_changes(before: Vec<PathState>, failure: String) -> String {
    let failures: Vec<_> =
        before.iter().rev().filter_map(|state| restore_path_state(state).err()).collect();
    if failures.is_empty() {
        return failure;
    }
    format!("{failure}; its own changes could not be undone: {}", failures.join("; "))
}

/// Removes a file. Returns the file's state before the removal, or nothing if the file did not
/// exist.
pub(super) fn remove_file(path: &Path) -> Result<Vec<PathState>, String> {
    let failed = |error: io::Error| error.to_string();
    match read_path_state(path).map_err(failed)? {
        PathState::NoFile(_) => Ok(Vec::new()),
        before => fs::remove_file(path).map_err(failed).map(|()| vec![before]),
    }
}

/// Removes a directory if it is empty. Returns the state before the removal, or nothing if the
/// directory is not empty.
pub(super) fn remove_empty(path: PathBuf) -> Vec<PathState> {
    remove_staging(path.join(STAGING));
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

/// Name of the directory in which this module writes a file's new content. The directory is beside
/// the file.
///
/// A runtime launches every executable file in its plugin directory, and fails if a file's name has
/// no index. A runtime skips directories, so it never launches the incomplete file of an
/// interrupted write. Source: containerd/nri `pkg/adaptation/adaptation.go`.
const STAGING: &str = ".plimsoll-new";

/// Replaces a file atomically: readers see either the old or the new content. A process that
/// executes the old file continues to run.
///
/// `state::atomic_file` is only for files below `/run`. In contrast, the files of an installation
/// are on a disk, have a mode, and are beside files that runtimes read or launch.
pub(super) fn replace_file(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let replaced = stage_file(path, content, mode).and_then(|new| fs::rename(new, path));
    remove_staging(path.with_file_name(STAGING));
    replaced
}

/// Writes the new content of a file to a temporary file beside the file. Returns the path of the
/// temporary file.
fn stage_file(path: &Path, content: &[u8], mode: u32) -> io::Result<PathBuf> {
    let directory = path.with_file_name(STAGING);
    remove_staging(directory.clone());
    fs::DirBuilder::new().mode(0o700).create(&directory)?;
    let new = directory.join(path.file_name().unwrap_or_default());
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    Ok(new)
}

/// Removes the directory that an interrupted write left behind.
fn remove_staging(directory: PathBuf) {
    let _ = fs::remove_dir_all(directory);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupted_write_leaves_nothing_to_launch() {
        let plugins = tempfile::tempdir().expect("a directory");
        let program = plugins.path().join("90-plimsoll");
        // Simulates a process that is killed before it renames the new file.
        stage_file(&program, b"new", 0o755).expect("the file is written");
        let launched = |entry: &fs::DirEntry| {
            let metadata = entry.metadata().expect("the path exists");
            !metadata.is_dir() && metadata.permissions().mode() & 0o111 != 0
        };
        let entries = fs::read_dir(plugins.path()).expect("a directory").flatten();
        assert_eq!(entries.filter(launched).count(), 0);
        // The next write succeeds, and also removes the file that the interrupted write left
        // behind.
        replace_file(&program, b"newer", 0o755).expect("the file is replaced");
        let names: Vec<_> = fs::read_dir(plugins.path()).expect("a directory").flatten().collect();
        assert_eq!(names.iter().filter(|entry| launched(entry)).count(), 1);
        assert_eq!(names.len(), 1);
        fs::remove_file(&program).expect("the file is removed");
        stage_file(&program, b"new", 0o755).expect("the file is written");
        assert_eq!(remove_empty(plugins.path().to_owned()).len(), 1);
    }

    #[test]
    fn restoring_below_a_missing_directory_fails() {
        let root = tempfile::tempdir().expect("a directory");
        let gone = root.path().join("gone/file");
        for state in [
            PathState::File(gone.clone(), b"text".to_vec(), 0o644),
            PathState::Link(gone.clone(), root.path().to_owned()),
            PathState::Directory(gone.clone()),
        ] {
            assert!(restore_path_state(&state).is_err(), "{state:?}");
        }
        for state in [PathState::NoFile(gone.clone()), PathState::NoDirectory(gone)] {
            assert_eq!(restore_path_state(&state), Ok(()));
        }
        let there = PathState::Directory(root.path().to_owned());
        assert_eq!(restore_path_state(&there), Ok(()), "the directory exists already");
    }

    #[test]
    fn a_failed_undo_hides_no_failure() {
        let root = tempfile::tempdir().expect("a directory");
        let [first, second] = ["a", "b"].map(|name| root.path().join(name));
        for directory in [&first, &second] {
            fs::create_dir(directory).expect("the directory is made");
        }
        let states = [&first, &second].map(|path| PathState::NoFile(path.clone()));
        let failure = undo_changes(states.into(), "no space left".to_owned());
        for part in ["no space left", &*first.to_string_lossy(), &*second.to_string_lossy()] {
            assert!(failure.contains(part), "{part}: {failure}");
        }
        assert_eq!(undo_changes(Vec::new(), "no space left".to_owned()), "no space left");
    }
}
