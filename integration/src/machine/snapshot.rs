//! Starts nodes, from a snapshot if possible.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::image::Image;
use crate::machine::hardware::{self, Attachments};
use crate::machine::node::{Node, import_script};
use crate::machine::qemu::SNAPSHOT;
use crate::machine::start::{Equipment, Lifetime, Start};
use crate::runtime::Runtime;
use crate::tools::cache::{self, Key};
use crate::tools::progress::progress;

/// The number of attempts before a start counts as failed.
const STARTS: u32 = 4;

impl Node {
    /// Starts a node from the snapshot in the cache. The snapshot is made first if there is none.
    pub fn start(runtime: Runtime) -> Result<Node> {
        Node::start_in(runtime, Lifetime::Process)
    }

    /// Starts a node that keeps running after this value is dropped and after this process ends.
    ///
    /// [`Node::ssh_command`] returns the command to reach it.
    pub fn start_kept(runtime: Runtime) -> Result<Node> {
        let mut node = Node::start_in(runtime, Lifetime::Kept)?;
        node.machine.kept = true;
        node.machine.dir.kept = true;
        Ok(node)
    }

    /// Boots a node with additional equipment. Such a node has no snapshot.
    pub fn boot(runtime: Runtime, equipment: &Equipment) -> Result<Node> {
        let image = Image::obtain(runtime)?;
        retry(&format!("booting the {runtime} node"), |_| {
            Node::launch(runtime, &image, Start::Equipped(equipment), Lifetime::Process)
        })
    }

    /// Makes the image and the snapshot, so that later starts take only seconds.
    pub fn prepare(runtime: Runtime) -> Result<()> {
        snapshot(runtime, &Image::obtain(runtime)?).map(|_| ())
    }

    fn start_in(runtime: Runtime, lifetime: Lifetime) -> Result<Node> {
        let image = Image::obtain(runtime)?;
        let snapshot = snapshot(runtime, &image)?;
        retry(&format!("starting the {runtime} node"), |attempt| {
            let started = Instant::now();
            // Only the first attempt loads the snapshot, because the snapshot itself may be broken.
            let start = if attempt == 1 { Start::Load(&snapshot) } else { Start::Boot };
            let node = Node::launch(runtime, &image, start, lifetime)?;
            progress(&format!(
                "{runtime} node ready after {:.1} s",
                started.elapsed().as_secs_f64()
            ));
            Ok(node)
        })
    }

    /// Saves the machine on its disk, ends it and copies the disk.
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

/// Tries to start something up to [`STARTS`] times and prints the error of each failed attempt.
fn retry<T>(what: &str, mut start: impl FnMut(u32) -> Result<T>) -> Result<T> {
    let mut attempt = 1;
    loop {
        match start(attempt) {
            Err(error) if attempt < STARTS => {
                progress(&format!("{what}: attempt {attempt} of {STARTS} failed: {error:#}"));
                attempt += 1;
            }
            other => return other.with_context(|| what.to_owned()),
        }
    }
}

/// Returns the path of the disk with a snapshot of the ready node.
///
/// If the cache has no snapshot for this QEMU and processor, the node is booted to make one.
fn snapshot(runtime: Runtime, image: &Image) -> Result<PathBuf> {
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
