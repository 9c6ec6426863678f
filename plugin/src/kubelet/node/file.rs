//! Reads small files, up to a maximum size.

use std::io;
use std::path::Path;

use crate::host::files::{LARGEST, read_regular};

/// Reads a file below `root`. Returns `None` if there is no such file.
pub(super) fn read(root: &Path, path: &str) -> io::Result<Option<String>> {
    let text = |bytes| {
        String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    };
    read_regular(&root.join(path), LARGEST)?.map(text).transpose()
}
