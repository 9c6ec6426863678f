//! A running node and the commands on it.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};

use crate::image::{self, Image};
use crate::machine::options::{Lifetime, Start};
use crate::machine::overlay;
use crate::machine::qemu::Machine;
use crate::machine::shell::{Output, Shell, excerpt};
use crate::runtime::Runtime;
use crate::tools::run_directory::RunDir;

/// The default time limit for one command on the node.
const COMMAND_LIMIT: Duration = Duration::from_secs(240);

/// A running node.
///
/// The node ends when this value is dropped or this process ends, unless [`Node::start_kept`]
/// started it.
pub struct Node {
    runtime: Runtime,
    pub(super) machine: Machine,
    pub(super) shell: Shell,
}

impl Node {
    pub(super) fn launch(
        runtime: Runtime,
        image: &Image,
        start: Start<'_>,
        lifetime: Lifetime,
    ) -> Result<Node> {
        let dir = RunDir::create()?;
        let disk = dir.path.join("disk.qcow2");
        match start {
            Start::Load(snapshot) => {
                fs::copy(snapshot, &disk).with_context(|| {
                    format!("copying {} to {}", snapshot.display(), disk.display())
                })?;
            }
            Start::Boot | Start::Equipped(_) => overlay::create(image, &disk)?,
        }
        let machine = Machine::power_on(image, &disk, dir, &start, lifetime)?;
        let node = Node::connect(runtime, image, machine)?;
        match start {
            // The guest's clock stopped when the snapshot was taken.
            Start::Load(_) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                node.run(&format!("date --set=@{} >/dev/null", now.as_secs()))?;
            }
            Start::Boot | Start::Equipped(_) => node.import_images()?,
        }
        Ok(node)
    }

    fn connect(runtime: Runtime, image: &Image, machine: Machine) -> Result<Node> {
        let shell = Shell::open(image, &machine)
            .map_err(|error| machine.add_fate(error))
            .with_context(|| format!("opening a shell on the {runtime} node"))?;
        Ok(Node { runtime, machine, shell })
    }

    /// Imports the container images, which a freshly booted node does not have.
    fn import_images(&self) -> Result<()> {
        self.run(&import_script(self.runtime)).context("importing the container images")?;
        Ok(())
    }

    /// Returns the node's container runtime.
    pub fn runtime(&self) -> Runtime {
        self.runtime
    }

    /// Returns how the machine ended, or `None` if it still runs.
    pub fn fate(&self) -> Option<String> {
        self.machine.fate()
    }

    /// Runs a bash script (`set -euo pipefail`) as root on the node.
    ///
    /// An exit status other than 0 is an error.
    pub fn run(&self, script: &str) -> Result<Output> {
        let output = self.try_run(script)?;
        if !output.status.success() {
            bail!(
                "on the {} node, {}:\n{}\nstdout: {}\nstderr: {}",
                self.runtime,
                output.status,
                excerpt(script),
                output.stdout.trim_end(),
                output.stderr.trim_end()
            );
        }
        Ok(output)
    }

    /// Runs a script like [`Node::run`], but returns the output even if the exit status is not 0.
    ///
    /// Fails if the script cannot be run or does not end within four minutes.
    pub fn try_run(&self, script: &str) -> Result<Output> {
        self.try_run_within(COMMAND_LIMIT, script, Vec::new())
    }

    /// Runs a script like [`Node::try_run`], with another time limit and with standard input.
    pub fn try_run_within(&self, limit: Duration, script: &str, input: Vec<u8>) -> Result<Output> {
        let answer =
            self.shell.run(limit, script, input).map_err(|error| self.machine.add_fate(error))?;
        // ssh itself also exits with 255 if the connection is lost.
        if answer.status.code() == Some(255)
            && let Some(fate) = self.fate_soon()
        {
            bail!("the {} node died: {fate}", self.runtime);
        }
        Ok(answer)
    }

    /// Returns how the machine ended, after a wait of at most two seconds.
    ///
    /// The end of the ssh connection may be visible a moment before the end of QEMU.
    fn fate_soon(&self) -> Option<String> {
        self.machine.wait_for_end(Duration::from_secs(2));
        self.fate()
    }

    /// Writes a file and makes its parent directories.
    ///
    /// A rename replaces the file, so readers see either the old or the new content.
    pub fn write_file(&self, path: &str, content: impl Into<Vec<u8>>, mode: u32) -> Result<()> {
        let script = format!(
            "set -euo pipefail; mkdir -p \"$(dirname {path})\"; cat > {path}.new; \
             chmod {mode:o} {path}.new; mv {path}.new {path}"
        );
        let output = self.try_run_within(COMMAND_LIMIT, &script, content.into())?;
        ensure!(
            output.status.success(),
            "writing {path} on the {} node: {}",
            self.runtime,
            output.stderr.trim_end()
        );
        Ok(())
    }

    /// Reads a file as text.
    pub fn read(&self, path: &str) -> Result<String> {
        Ok(self.run(&format!("cat {path}"))?.stdout)
    }

    /// Forwards connections to a port of the node's loopback address to the same port on this
    /// machine, until the node ends.
    pub fn forward(&self, port: u16) -> Result<()> {
        self.shell.forward(port)
    }

    /// Returns the command that opens a shell on the node.
    pub fn ssh_command(&self) -> String {
        format!(
            "ssh -i {} -p {} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
             root@127.0.0.1",
            self.shell.key.display(),
            self.machine.port
        )
    }

    /// Returns the process ID of the node's QEMU.
    pub fn process_id(&self) -> u32 {
        self.machine.process_id
    }
}

/// Returns the script that imports the container images on a freshly booted node.
pub(super) fn import_script(runtime: Runtime) -> String {
    let images = [image::PAUSE, image::WORKLOAD, image::NRI_TEST_IMAGE];
    let import = runtime.import(image::ARCHIVE, &images);
    format!("{import}\ncrictl images >/dev/null\nsync")
}
