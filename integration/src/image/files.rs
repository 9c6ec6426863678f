//! Copies files from this repository to a node.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::tools::command::run;

pub(super) fn node_files() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("node")
}

/// Copies files into a root directory and replaces existing files.
pub(super) fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("creating {}", to.display()))?;
    run(Command::new("cp")
        .args(["--recursive", "--no-preserve=ownership", "--remove-destination"])
        .arg(from.join("."))
        .arg(to))
    .map(|_| ())
}
