//! The kernel of a node, in the format that QEMU starts.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// Returns the path of the compressed kernel.
///
/// The kernel is in /boot. In newer Debian releases, the kernel is beside its modules instead.
pub(super) fn find_kernel(root: &Path) -> Result<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root.join("boot")).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("vmlinuz-") {
            found.push(entry.path());
        }
    }
    let beside = modules(root)?.join("vmlinuz");
    if beside.exists() {
        found.push(beside);
    }
    match found.as_slice() {
        [kernel] => Ok(kernel.clone()),
        _ => bail!("the new root must have one kernel image, but has {found:?}"),
    }
}

pub(super) fn modules(root: &Path) -> Result<PathBuf> {
    let dir = root.join("usr/lib/modules");
    let mut versions = fs::read_dir(&dir).with_context(|| format!("listing {}", dir.display()))?;
    match (versions.next(), versions.next()) {
        (Some(Ok(only)), None) => Ok(only.path()),
        _ => bail!("{} must have the modules of exactly one kernel", dir.display()),
    }
}

/// Extracts the ELF kernel from a bzImage.
///
/// QEMU starts an ELF kernel directly (PVH), so no emulated processor has to decompress the kernel.
pub(super) fn extract_vmlinux(bzimage: &Path, vmlinux: &Path) -> Result<()> {
    let image = fs::read(bzimage).with_context(|| format!("reading {}", bzimage.display()))?;
    // The offsets are defined in the header of the x86 boot protocol.
    let word = |at: usize| -> Result<usize> {
        let bytes = image.get(at..at + 4).context("the kernel image ends inside its header")?;
        Ok(u32::from_le_bytes(bytes.try_into().context("reading the kernel's header")?) as usize)
    };
    let setup_sectors = match image.get(0x1f1) {
        Some(0) | None => 4,
        Some(sectors) => usize::from(*sectors),
    };
    let start = (setup_sectors + 1) * 512 + word(0x248)?;
    let payload = image.get(start..start + word(0x24c)?).with_context(|| {
        format!("{} ends before the payload that its header describes", bzimage.display())
    })?;
    // The kernel's build appends the uncompressed size as four more bytes. Decompressors would
    // treat these bytes as garbage.
    let payload = &payload[..payload.len() - 4];
    let decompressor = match payload {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "xz",
        [0x1f, 0x8b, ..] => "gzip",
        _ => bail!("{} has an unknown compression: {:x?}", bzimage.display(), &payload[..4]),
    };
    let output =
        File::create(vmlinux).with_context(|| format!("creating {}", vmlinux.display()))?;
    let mut child = Command::new(decompressor)
        .args(["-d", "-c"])
        .stdin(Stdio::piped())
        .stdout(output)
        .spawn()
        .with_context(|| format!("starting {decompressor}: is it installed?"))?;
    child
        .stdin
        .take()
        .context("no pipe to the decompressor")?
        .write_all(payload)
        .with_context(|| format!("feeding {decompressor}"))?;
    let status = child.wait().with_context(|| format!("waiting for {decompressor}"))?;
    ensure!(status.success(), "{decompressor} could not unpack {}", bzimage.display());
    Ok(())
}
