//! Disks with an ext4 file system.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::tools::command::run;

/// The options of `mke2fs`.
///
/// The file system has no journal, because a node's disk is discarded and never recovered.
pub(crate) const OPTIONS: [&str; 6] =
    ["-t", "ext4", "-O", "^has_journal,^metadata_csum", "-E", "lazy_itable_init=1,root_owner=0:0"];

/// Makes a sparse disk of a size such as `1G` from the files in a root directory.
pub(crate) fn make_disk(root: &Path, disk: &Path, size: &str) -> Result<()> {
    let mut command = Command::new("mke2fs");
    command.arg("-q").args(OPTIONS).arg("-d").arg(root).arg(disk).arg(size);
    run(&mut command).map(|_| ())
}
