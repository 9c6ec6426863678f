//! Bounded reading of small files.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// Maximum size of these files, in bytes.
const LARGEST_FILE: usize = 1 << 20;

/// Reads a file below `root`. Returns `None` if there is no such file.
pub(super) fn read(root: &Path, path: &str) -> io::Result<Option<String>> {
    let text = |bytes| {
        String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    };
    read_bytes(&root.join(path), LARGEST_FILE)?.map(text).transpose()
}

/// Reads a regular file of at most `most` bytes. Returns `None` if there is no such file.
pub(crate) fn read_bytes(path: &Path, most: usize) -> io::Result<Option<Vec<u8>>> {
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
