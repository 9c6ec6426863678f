//! Child processes that end with the thread that started them, and free ports for these processes.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// A program that asks the kernel to kill it when the parent thread ends, and then executes the
/// child's program.
const LAUNCHER: &str = "setpriv";

/// A child process.
///
/// The process is killed when this value is dropped or when the thread that started it ends.
pub(crate) struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // An error only means that the process has already ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a program and appends its output to `log`.
///
/// The kernel kills the program when the thread that started it ends.
pub(crate) fn spawn(program: &Path, arguments: &[String], log: &Path) -> Result<Running> {
    let output = File::options().create(true).append(true).open(log);
    let output = output.with_context(|| format!("creating {}", log.display()))?;
    let errors = output.try_clone().context("duplicating the descriptor of the log")?;
    let mut command = Command::new(LAUNCHER);
    command.args(["--pdeathsig", "KILL", "--"]).arg(program).args(arguments);
    let child = command.stdin(Stdio::null()).stdout(output).stderr(errors).spawn();
    let mut child = Running(
        child
            .context("starting setpriv: is it installed? (hack/prepare installs what is needed)")?,
    );
    wait_for_exec(&mut child.0)
        .with_context(|| format!("starting {}: see {}", program.display(), log.display()))?;
    Ok(child)
}

/// Waits until setpriv has executed the program.
///
/// An error means that setpriv could not start the program, or that the program ended at once.
fn wait_for_exec(child: &mut Child) -> Result<()> {
    let executable = format!("/proc/{}/exe", child.id());
    loop {
        let status = child.try_wait().context("waiting for setpriv")?;
        if let Some(status) = status {
            bail!("the process ended at its start ({status})");
        }
        // If a process has just ended, this link cannot be read.
        if let Ok(path) = fs::read_link(&executable)
            && path.file_name().is_some_and(|name| name != LAUNCHER)
        {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Returns `N` different ports that were free a moment ago.
///
/// Another process may take a port before the caller's program takes the port.
pub(crate) fn free_ports<const N: usize>() -> Result<[u16; N]> {
    // All listeners stay open until the last one is bound, so that the ports differ.
    let listeners: Vec<_> = (0..N)
        .map(|_| TcpListener::bind("127.0.0.1:0"))
        .collect::<Result<_, _>>()
        .context("looking for free ports")?;
    let mut ports = [0; N];
    for (port, listener) in ports.iter_mut().zip(listeners) {
        *port = listener.local_addr().context("looking for free ports")?.port();
    }
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_that_cannot_start_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let Err(error) = spawn(&directory.path().join("missing"), &[], &log) else {
            panic!("a program that does not exist was started")
        };
        assert!(format!("{error:#}").contains("ended at its start"), "{error:#}");
        assert!(fs::read_to_string(&log).unwrap().contains("missing"));
    }

    #[test]
    fn running_program_is_not_setpriv() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let running = spawn(Path::new("sleep"), &["60".to_owned()], &log).unwrap();
        let command = fs::read_to_string(format!("/proc/{}/comm", running.0.id())).unwrap();
        assert_eq!(command, "sleep\n");
    }
}
