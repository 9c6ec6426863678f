//! Sends programs to a node.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::machine::Node;

/// Returns the path of a program on the node. Copies the program first if the node does not have
/// it.
pub(super) fn upload(node: &Node, local: &Path) -> Result<String> {
    let binary = fs::read(local).with_context(|| format!("reading {}", local.display()))?;
    let digest: String =
        Sha256::digest(&binary)[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    let name = local.file_name().unwrap_or_default().to_string_lossy();
    let path = format!("/var/cache/{name}-{digest}");
    if !node.try_run(&format!("test -e {path}"))?.status.success() {
        node.write_file(&path, binary, 0o755)?;
    }
    Ok(path)
}
