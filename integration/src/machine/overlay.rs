//! The disk of a machine.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::image::Image;

/// The format of the disk. A disk in this format can have snapshots.
pub(super) const FORMAT: &str = "qcow2";

/// Makes a disk that stores only the differences from the image's disk.
pub(super) fn create(image: &Image, overlay: &Path) -> Result<()> {
    let status = Command::new("qemu-img")
        .args(["create", "-q", "-f", FORMAT, "-F", "raw", "-b"])
        .arg(image.disk())
        .arg(overlay)
        .status()
        .context("starting qemu-img: is qemu-utils installed? (hack/prepare does it)")?;
    ensure!(status.success(), "qemu-img could not create {}", overlay.display());
    Ok(())
}
