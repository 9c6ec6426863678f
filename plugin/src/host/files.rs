//! Functions that read files and directories of the node, up to a maximum size and a maximum number
//! of entries.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// Maximum size of a file, in bytes. The kubelet's checkpoints have their own maximum.
pub(crate) const LARGEST: usize = 1 << 20;

/// Maximum number of directory entries to read.
pub(crate) const MOST_ENTRIES: usize = 4096;

/// Content of a file: `None` if the file does not exist, an error if the file is unreadable.
pub(crate) type FileResult<T> = Result<Option<T>, Unreadable>;

pub(crate) type Text = FileResult<String>;

/// Error: a file or directory of the node could not be read.
#[derive(Clone, Debug)]
pub(crate) struct Unreadable {
    /// Whether the kernel denied access.
    pub(crate) is_denied: bool,
    /// The error as text.
    pub(crate) why: String,
}

impl Unreadable {
    /// Returns the error for a file that should exist but does not.
    pub(crate) fn missing() -> Self {
        Self { is_denied: false, why: "the file does not exist".to_owned() }
    }
}

impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Self {
        Self { is_denied: error.kind() == io::ErrorKind::PermissionDenied, why: error.to_string() }
    }
}

/// Reads a text file. Replaces bytes that are not valid UTF-8 with replacement characters.
pub(crate) fn read(path: &Path) -> Text {
    Ok(read_bytes(path)?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

/// Reads a regular file of at most [`LARGEST`] bytes. Returns `None` if the file does not exist.
pub(crate) fn read_bytes(path: &Path) -> FileResult<Vec<u8>> {
    read_at_most(path, LARGEST)
}

/// Reads a regular file of at most `most` bytes. Returns `None` if there is no such file or
/// directory.
pub(crate) fn read_at_most(path: &Path, most: usize) -> FileResult<Vec<u8>> {
    match read_regular(path, most) {
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(None),
        result => Ok(result?),
    }
}

/// Reads a regular file of at most `most` bytes. Returns `None` if the file does not exist.
pub(crate) fn read_regular(path: &Path, most: usize) -> io::Result<Option<Vec<u8>>> {
    // A pipe in place of the file must not block this function.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("expected a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(most as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > most {
        return Err(io::Error::other(format!("expected at most {most} bytes")));
    }
    Ok(Some(bytes))
}

/// Returns whether a path exists.
pub(crate) fn is_there(path: &Path) -> Result<bool, Unreadable> {
    match path.try_exists() {
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(false),
        result => Ok(result?),
    }
}

/// Returns the sorted names in a directory, or no names if the directory is unreadable.
pub(crate) fn names(path: &Path) -> Vec<String> {
    list(path).unwrap_or_default()
}

/// Returns the sorted names in a directory, or no names if the directory does not exist.
pub(crate) fn list(path: &Path) -> Result<Vec<String>, Unreadable> {
    let entries = match fs::read_dir(path) {
        Err(error)
            if [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory].contains(&error.kind()) =>
        {
            return Ok(Vec::new());
        }
        entries => entries?,
    };
    let names = entries
        .take(MOST_ENTRIES)
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let mut names = names.collect::<io::Result<Vec<_>>>()?;
    names.sort_unstable();
    Ok(names)
}

/// Converts a path on the node to a path below `host`, the root of the node's file system. A `..`
/// in the path cannot leave `host`.
pub(crate) fn below(host: &Path, path: &str) -> PathBuf {
    let mut inside = PathBuf::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(part) => inside.push(part),
            Component::ParentDir => {
                inside.pop();
            }
            _ => {}
        }
    }
    host.join(inside)
}

/// Returns the file to which a symbolic link points. Looks up an absolute target below `host`.
/// Follows a link only if the last part of the path is a link.
pub(crate) fn follow_link(host: &Path, path: &Path) -> PathBuf {
    let mut path = path.to_owned();
    // Like the kernel, give up after 40 links. The caller then gets an error from the kernel.
    for _ in 0..40 {
        let Ok(target) = fs::read_link(&path) else { break };
        path = match path.parent() {
            Some(directory) if target.is_relative() => directory.join(target),
            _ => below(host, &target.to_string_lossy()),
        };
    }
    path
}

/// Returns all paths on the node that match a pattern, in the order in which a directory walk finds
/// them. Returns `None` if the pattern is invalid.
pub(crate) fn matches(host: &Path, pattern: &str) -> Option<Vec<String>> {
    let root = glob::Pattern::escape(host.to_string_lossy().trim_end_matches('/'));
    let mut paths: Vec<_> =
        glob::glob(&format!("{root}{pattern}")).ok()?.take(MOST_ENTRIES).flatten().collect();
    paths.sort_unstable();
    let inside =
        |path: &PathBuf| Some(format!("/{}", path.strip_prefix(host).ok()?.to_string_lossy()));
    Some(paths.iter().filter_map(inside).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_and_oversized_files_are_refused() {
        let host = tempfile::tempdir().unwrap();
        let file = host.path().join("file");
        fs::write(&file, "text").unwrap();
        let read = |path: &Path, most| read_at_most(path, most).map_err(|error| error.why);
        assert_eq!(read(&file, 4), Ok(Some(b"text".to_vec())));
        assert_eq!(read(&file, 3), Err("expected at most 3 bytes".to_owned()));
        assert_eq!(read(&host.path().join("missing"), 4), Ok(None));
        assert_eq!(read(&file.join("below"), 4), Ok(None), "a file has no files below it");
        assert_eq!(read(host.path(), 4), Err("expected a regular file".to_owned()));
    }
}
