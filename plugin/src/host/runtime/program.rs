//! Executable file of a container runtime: its paths, and the version that it prints.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use crate::host::runtime::kind::RuntimeKind;
use crate::host::units::start_command;
use crate::host::version::Version;

/// Time limit for a runtime's program to print its version.
const RUN_TIMEOUT: Duration = Duration::from_secs(2);

impl RuntimeKind {
    /// Returns the possible paths of the runtime's program. The path in systemd's `ExecStart` comes
    /// first. The bare name is next, for a search in `PATH`. The last path is in `/usr/local/bin`,
    /// which `PATH` may lack.
    pub(super) fn programs(&self, host: &Path) -> Vec<String> {
        let command = start_command(host, &format!("{}.service", self.program), "");
        let command = command.ok().flatten().unwrap_or_default();
        let started = command
            .split_ascii_whitespace()
            .next()
            .map(|word| word.trim_start_matches(['@', '-', ':', '+', '!']));
        // Do not run a program whose name differs from the runtime's: it may be a script that
        // ignores the option `--version`.
        let started = started
            .filter(|path| path.starts_with('/') && path.ends_with(&format!("/{}", self.program)));
        let others = [self.program.to_owned(), format!("/usr/local/bin/{}", self.program)];
        started.map(str::to_owned).into_iter().chain(others).collect()
    }
}

/// Runs a program with `--version` and returns the version in its output.
pub(super) fn said_version(program: &str) -> Option<Version> {
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().ok()?;
    let began = Instant::now();
    let succeeded = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status.success(),
            Ok(None) if began.elapsed() < RUN_TIMEOUT => thread::sleep(Duration::from_millis(10)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                break false;
            }
        }
    };
    let mut output = child.stdout.take().filter(|_| succeeded)?;
    // A child of the program may keep the pipe open, so a read to the end could block. Read only
    // the data that is in the pipe now.
    rustix::fs::fcntl_setfl(&output, OFlags::NONBLOCK).ok()?;
    let mut text = [0; 4096];
    let length = output.read(&mut text).ok()?;
    Version::find(&String::from_utf8_lossy(&text[..length]))
}

#[cfg(test)]
mod tests {
    use crate::host::fixture::put;
    use crate::host::runtime::kind::CONTAINERD;

    #[test]
    fn the_systemd_exec_start_path_comes_first() {
        let host = tempfile::tempdir().unwrap();
        let elsewhere = ["containerd", "/usr/local/bin/containerd"];
        assert_eq!(CONTAINERD.programs(host.path()), elsewhere);
        let unit = "lib/systemd/system/containerd.service";
        put(host.path(), unit, "[Service]\nExecStart=-/opt/bin/containerd --log-level warn\n");
        assert_eq!(
            CONTAINERD.programs(host.path()),
            [&["/opt/bin/containerd"], &elsewhere[..]].concat()
        );
        put(host.path(), unit, "[Service]\nExecStart=/opt/bin/start-it\n");
        assert_eq!(CONTAINERD.programs(host.path()), elsewhere);
    }
}
