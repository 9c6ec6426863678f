//! The files of a node in this repository, and root directories and disks made of them.

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

/// Makes a sparse ext4 disk from a root directory.
///
/// The disk has no journal, because a node's disk is discarded and never recovered.
pub(super) fn pack(root: &Path, disk: &Path) -> Result<()> {
    run(Command::new("mke2fs")
        .args(["-q", "-t", "ext4", "-O", "^has_journal,^metadata_csum"])
        .args(["-E", "lazy_itable_init=1,root_owner=0:0", "-d"])
        .arg(root)
        .arg(disk)
        .arg("4G"))
    .map(|_| ())
}
