//! The initial RAM file system of a node.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::image::kernel::modules;

/// Writes an initial RAM file system that loads the disk driver, mounts the disk and starts
/// systemd.
///
/// The disk is a virtio disk, whose driver is a module in Debian's cloud kernels. The NVMe driver
/// is built into these kernels, but QEMU cannot make snapshots of an NVMe device.
pub(super) fn write_initrd(root: &Path, initrd: &Path) -> Result<()> {
    let script = "#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox insmod /virtio_blk.ko
/bin/busybox mount -t ext4 -o rw /dev/vda /root
exec /bin/busybox switch_root /root /usr/lib/systemd/systemd
";
    let module = modules(root)?.join("kernel/drivers/block/virtio_blk.ko.xz");
    let module = Command::new("xz")
        .args(["-d", "-c"])
        .arg(&module)
        .output()
        .with_context(|| format!("unpacking {}", module.display()))?;
    ensure!(module.status.success(), "xz could not unpack the virtio_blk module");
    const DIRECTORY: u32 = 0o40755;
    const EXECUTABLE: u32 = 0o100755;
    let busybox = fs::read(busybox(root)?).context("reading busybox")?;
    let mut archive = Vec::new();
    for dir in ["bin", "dev", "root"] {
        append_cpio(&mut archive, dir, DIRECTORY, &[]);
    }
    append_cpio(&mut archive, "bin/busybox", EXECUTABLE, &busybox);
    append_cpio(&mut archive, "virtio_blk.ko", EXECUTABLE, &module.stdout);
    append_cpio(&mut archive, "init", EXECUTABLE, script.as_bytes());
    append_cpio(&mut archive, "TRAILER!!!", 0, &[]);
    fs::write(initrd, archive).with_context(|| format!("writing {}", initrd.display()))
}

pub(super) fn busybox(root: &Path) -> Result<PathBuf> {
    let places = ["usr/bin/busybox", "bin/busybox"].map(|path| root.join(path));
    places.into_iter().find(|path| path.exists()).context("the new root has no busybox")
}

/// Appends one member in cpio's "newc" format.
///
/// A member has a magic number, thirteen hexadecimal fields, the name and the data. Zeros pad the
/// name and the data so that each ends at a multiple of four bytes.
fn append_cpio(archive: &mut Vec<u8>, name: &str, mode: u32, data: &[u8]) {
    let inode = archive.len();
    let (size, name_size) = (data.len(), name.len() + 1);
    archive.extend(
        format!(
            "070701{inode:08x}{mode:08x}{:08x}{:08x}{:08x}{:08x}{size:08x}\
             {:08x}{:08x}{:08x}{:08x}{name_size:08x}{:08x}",
            0, 0, 1, 0, 0, 0, 0, 0, 0
        )
        .bytes(),
    );
    archive.extend(name.bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend(data);
    archive.resize(archive.len().next_multiple_of(4), 0);
}
