//! A shell on a node over ssh.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::image::Image;
use crate::machine::qemu::Machine;

/// The output and exit status of a command on the node.
#[derive(Clone, Debug)]
pub struct Output {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// The exit status.
    pub status: ExitStatus,
}

/// The bash function `cri`, which every script on the node has.
///
/// The function sends a request to the client that stays connected to the runtime (see
/// `integration/cri`).
const CRI: &str = r#"
cri() {
    local channel answer=
    exec {channel}<>/dev/tcp/127.0.0.1/10
    echo "$*" >&$channel
    IFS= read -r -d '' answer <&$channel || true
    exec {channel}>&-
    if [ "${answer%%$'\n'*}" != 0 ]; then echo "cri: ${answer#*$'\n'}" >&2; return 1; fi
    printf %s "${answer#*$'\n'}"
}"#;

/// A multiplexed ssh connection.
///
/// A command over this connection takes a tenth of a second. A connection per command would take
/// ten times as long.
pub(super) struct Shell {
    control: PathBuf,
    port: u16,
    pub(super) key: PathBuf,
}

impl Shell {
    pub(super) fn open(image: &Image, machine: &Machine) -> Result<Shell> {
        let shell = Shell {
            control: machine.dir.sockets.path().join("ssh"),
            port: machine.port,
            key: image.ssh_key(),
        };
        let log = machine.dir.path.join("ssh.log");
        // -f: ssh returns when the connection is established, and continues in the background while
        // the machine runs. Do not pass pipes of this process as the output of ssh, because the
        // pipes would never close.
        let status = Command::new("timeout")
            .args(["--kill-after=5", "120"])
            .args(["ssh", "-f", "-N", "-M"])
            .args(shell.options())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).with_context(|| format!("creating {}", log.display()))?)
            .status()
            .context("starting ssh: is openssh-client installed?")?;
        if !status.success() {
            machine.wait_for_end(Duration::from_secs(2));
            let said = fs::read_to_string(&log).unwrap_or_default();
            bail!("ssh could not connect ({status}): {}", said.trim_end());
        }
        Ok(shell)
    }

    fn options(&self) -> Vec<String> {
        let mut options = vec!["-F".to_owned(), "none".to_owned()];
        options.extend(["-S".to_owned(), self.control.display().to_string()]);
        options.extend(["-i".to_owned(), self.key.display().to_string()]);
        options.extend(["-p".to_owned(), self.port.to_string()]);
        for option in [
            "BatchMode=yes",
            "IdentitiesOnly=yes",
            "IdentityAgent=none",
            "StrictHostKeyChecking=no", // each image has a new host key; the port is on this host
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
            "ConnectTimeout=100",
            "Compression=yes", // less data to decrypt, which is the slow part
            "KexAlgorithms=curve25519-sha256", // the algorithm that is fastest to emulate
        ] {
            options.extend(["-o".to_owned(), option.to_owned()]);
        }
        options.push("root@127.0.0.1".to_owned());
        options
    }

    /// Forwards connections to a port of the node's loopback address to the same port here.
    pub(super) fn forward(&self, port: u16) -> Result<()> {
        let forwarding = format!("{port}:127.0.0.1:{port}");
        let output = Command::new("ssh")
            .args(["-O", "forward", "-R", &forwarding])
            .args(self.options())
            .stdin(Stdio::null())
            .output()
            .context("starting ssh: is openssh-client installed?")?;
        if !output.status.success() {
            bail!(
                "ssh could not forward port {port} of the node ({}): {}",
                output.status,
                String::from_utf8_lossy(&output.stderr).trim_end()
            );
        }
        Ok(())
    }

    pub(super) fn run(&self, limit: Duration, script: &str, input: Vec<u8>) -> Result<Output> {
        let started = Instant::now();
        let mut child = Command::new("timeout")
            .args(["--kill-after=5", &limit.as_secs().max(1).to_string(), "ssh"])
            .args(self.options())
            .arg(format!("set -euo pipefail\n{CRI}\n{script}"))
            .stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting ssh: is openssh-client installed?")?;
        let feeder = child.stdin.take().map(|mut stdin| {
            // Ignore write errors, because a command may succeed without reading all of its input.
            thread::spawn(move || drop(stdin.write_all(&input)))
        });
        let output = child.wait_with_output().context("waiting for a command on the node")?;
        if let Some(feeder) = feeder {
            feeder
                .join()
                .map_err(|_| anyhow!("the thread that writes the input of a command panicked"))?;
        }
        let output = Output {
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            status: output.status,
        };
        if started.elapsed() >= limit {
            bail!(
                "a command on the node did not end within {limit:?}:\n{}\nstdout: {}\nstderr: {}",
                excerpt(script),
                output.stdout,
                output.stderr
            );
        }
        Ok(output)
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // If the machine has already ended, the connection no longer exists. Ignore the error.
        let _ = Command::new("ssh")
            .args(["-O", "exit"])
            .args(self.options())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}

/// Returns the first lines of a script, for use in messages.
pub(super) fn excerpt(script: &str) -> String {
    const LINES: usize = 25;
    let mut shown: Vec<&str> = script.lines().take(LINES).collect();
    if script.lines().count() > LINES {
        shown.push("...");
    }
    shown.join("\n")
}
