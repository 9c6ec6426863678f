//! A connection to QEMU's control socket.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

/// A connection to QEMU's control socket.
pub(super) struct Monitor(BufReader<UnixStream>);

impl Monitor {
    /// Waits until QEMU connects and executes the first command.
    ///
    /// When this function returns, QEMU has loaded a saved machine and opened its ports.
    pub(super) fn accept(listener: &UnixListener) -> Result<Monitor> {
        let (stream, _) = listener.accept().context("waiting for QEMU's monitor")?;
        // A long timeout, because saving or loading a machine moves a few hundred megabytes.
        stream.set_read_timeout(Some(Duration::from_secs(120))).context("setting a timeout")?;
        let mut monitor = Monitor(BufReader::new(stream));
        monitor.execute("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    pub(super) fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.0.get_mut(), "{request}")
            .with_context(|| format!("sending {command} to QEMU"))?;
        loop {
            let mut line = String::new();
            let read = self
                .0
                .read_line(&mut line)
                .with_context(|| format!("reading QEMU's answer to {command}"))?;
            ensure!(read > 0, "QEMU closed its monitor instead of answering {command}");
            let mut answer: Value = serde_json::from_str(&line)
                .with_context(|| format!("parsing QEMU's answer {line:?}"))?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU refused {command}: {error}");
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take()); // skips QEMU's greeting and events
            }
        }
    }
}
