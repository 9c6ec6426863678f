//! The snapshot of a ready node.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::image::Image;
use crate::machine::hardware::{self, Attachments};
use crate::machine::node::{Node, import_script};
use crate::machine::options::{Lifetime, Start};
use crate::machine::qemu::SNAPSHOT;
use crate::machine::retry::retry;
use crate::runtime::Runtime;
use crate::tools::cache::{self, Key};
use crate::tools::progress::progress;

impl Node {
    /// Saves the machine's state on its disk, ends the machine and copies the disk.
    fn close_and_save(self, saved: &Path) -> Result<()> {
        let Node { mut machine, shell, .. } = self;
        drop(shell);
        let disk = machine.dir.path.join("disk.qcow2");
        let said = machine.monitor.execute(
            "human-monitor-command",
            &json!({ "command-line": format!("savevm {SNAPSHOT}") }),
        )?;
        ensure!(said == json!(""), "QEMU could not save the machine: {said}");
        machine.monitor.execute("quit", &json!({}))?;
        machine.wait_for_end(Duration::from_secs(30));
        fs::copy(&disk, saved)
            .with_context(|| format!("copying {} to {}", disk.display(), saved.display()))?;
        Ok(())
    }
}

/// Returns the path of the disk with a snapshot of the ready node.
///
/// If the cache has no snapshot for this QEMU and processor, the function boots the node to make a
/// snapshot.
pub(super) fn snapshot(runtime: Runtime, image: &Image) -> Result<PathBuf> {
    let version = Command::new("qemu-system-x86_64").arg("--version").output().context(
        "starting qemu-system-x86_64: is qemu-system-x86 installed? (hack/prepare does it)",
    )?;
    let processors = fs::read_to_string("/proc/cpuinfo").context("reading /proc/cpuinfo")?;
    let model = processors.lines().find(|line| line.starts_with("model name")).unwrap_or_default();
    // The paths and the port differ between machines with the same hardware.
    let hardware = hardware::arguments(&Attachments {
        kernel: Path::new("kernel"),
        initrd: Path::new("initrd"),
        disk: Path::new("disk"),
        monitor: Path::new("monitor"),
        port: 0,
        forwarding: "",
    });
    let mut key = Key::default();
    key.add("image", image.id())
        .add("qemu", version.stdout)
        .add("processor", model)
        .add("hardware", hardware.join("\n"))
        .add("name", SNAPSHOT)
        .add("script", import_script(runtime))
        .add_source("snapshot.rs", include_str!("snapshot.rs"));
    let dir = cache::entry(&format!("snapshot-{runtime}"), &key, |dir| {
        retry(&format!("booting the {runtime} node"), |_| {
            progress(&format!("booting the {runtime} node for a snapshot"));
            let node = Node::launch(runtime, image, Start::Boot, Lifetime::Process)?;
            node.close_and_save(&dir.join("disk.qcow2"))
        })
    })?;
    Ok(dir.join("disk.qcow2"))
}
