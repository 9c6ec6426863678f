//! The directories that are beside cargo's own directories in the target directory.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Returns the directory `name` for files of test programs and makes it if necessary.
///
/// The directory lies beside `deps` in the target directory of `program`.
pub(crate) fn directory(program: &Path, name: &str) -> Result<PathBuf> {
    // `program` is, for example, target/debug/deps/plugin-0123456789abcdef or target/debug/support.
    let profile = program.ancestors().find(|path| path.join("deps").is_dir());
    let directory =
        profile.context("this program is not in a target directory of cargo")?.join(name);
    fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    Ok(directory)
}
