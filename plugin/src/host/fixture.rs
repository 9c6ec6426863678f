//! Helper for the tests of this folder.

use std::fs;
use std::path::Path;

/// Writes a file below `host`. Creates missing parent directories.
pub(super) fn put(host: &Path, path: &str, text: &str) {
    let path = host.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}
