//! Atomic replacement of the files below `/run/plimsoll`.

use std::fs;
use std::io;
use std::path::Path;

/// Replaces the file at `path`: a reader sees either the old or the complete new content. Creates
/// missing directories. The caller must not start two writes to the same path at once.
///
/// The function does not call fsync. The files are on a tmpfs, which a power failure erases anyway.
/// Completed writes survive a crash of the plugin.
///
/// # Errors
///
/// Fails if the file cannot be written. The old file then stays unchanged.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let new = path.with_extension("new");
    let replaced = fs::write(&new, content).and_then(|()| fs::rename(&new, path));
    if replaced.is_err() {
        // The caller reports the error of the write. If the temporary file cannot be removed, the
        // next write replaces it.
        let _ = fs::remove_file(&new);
    }
    replaced
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    use std::path::PathBuf;

    use super::*;

    /// Returns the files in the directory that contains `path`.
    fn names(path: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(path.parent().unwrap()).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    #[test]
    fn new_content_replaces_the_whole_file() {
        let host = tempfile::tempdir().unwrap();
        let path = host.path().join("run/plimsoll/brake");
        for content in ["first and long", "second"] {
            replace(&path, content.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
            assert_eq!(names(&path), [&*path], "no temporary file is left");
        }
    }

    #[test]
    fn open_readers_keep_the_old_content() {
        let host = tempfile::tempdir().unwrap();
        let path = host.path().join("brake");
        replace(&path, b"first").unwrap();
        let before = fs::metadata(&path).unwrap().ino();
        let reader = fs::File::open(&path).unwrap();
        replace(&path, b"second").unwrap();
        assert_ne!(fs::metadata(&path).unwrap().ino(), before);
        assert_eq!(io::read_to_string(reader).unwrap(), "first");
    }

    #[test]
    fn a_replaced_file_gets_the_default_mode() {
        let host = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        let [path, other] = ["brake", "other"].map(|name| host.path().join(name));
        fs::write(&other, "").unwrap();
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        replace(&path, b"text").unwrap();
        assert_eq!(mode(&path), mode(&other));
    }

    #[test]
    fn a_failed_write_leaves_no_temporary_file() {
        let host = tempfile::tempdir().unwrap();
        let path = host.path().join("brake");
        // The write fails, because a file cannot replace a directory.
        fs::create_dir(&path).unwrap();
        assert!(replace(&path, b"text").is_err());
        assert_eq!(names(&path), [&*path]);
        // A directory in place of the temporary file makes the write itself fail.
        fs::remove_dir(&path).unwrap();
        fs::write(&path, "old").unwrap();
        fs::create_dir(path.with_extension("new")).unwrap();
        assert!(replace(&path, b"text").is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
    }
}
