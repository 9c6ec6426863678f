//! Child processes that end with this process, and free ports for them.

use std::fs::File;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

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
    let errors = output.try_clone().context("opening the log twice")?;
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program).args(arguments);
    let child = command.stdin(Stdio::null()).stdout(output).stderr(errors).spawn();
    let mut child = Running(
        child
            .context("starting setpriv: is it installed? (hack/prepare installs what is needed)")?,
    );
    // If setpriv cannot start the program, the process ends soon. The check may run before that.
    let ended = child.0.try_wait().with_context(|| format!("waiting for {}", program.display()))?;
    ensure!(ended.is_none(), "{} has ended: see {}", program.display(), log.display());
    Ok(child)
}

/// Returns `N` different ports that were free a moment ago.
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

pub(crate) fn free_port() -> Result<u16> {
    // Another process may take the port before QEMU takes it. QEMU then ends at once and the start
    // is tried again.
    let listener = TcpListener::bind("127.0.0.1:0").context("looking for a free port")?;
    Ok(listener.local_addr().context("looking for a free port")?.port())
}
