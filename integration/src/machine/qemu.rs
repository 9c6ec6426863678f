//! A QEMU process.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::image::Image;
use crate::machine::hardware::{self, Attachments};
use crate::machine::monitor::Monitor;
use crate::machine::options::{Lifetime, Start};
use crate::tools::process::free_ports;
use crate::tools::run_directory::RunDir;

/// The time limit from power-on to ready. A boot takes about 20 s on an idle host with two cores.
const BOOT_LIMIT: Duration = Duration::from_secs(300);

/// The name of the snapshot inside the disk.
pub(super) const SNAPSHOT: &str = "ready";

const READY_MARK: &str = "NODE-READY";

/// A QEMU process.
pub(super) struct Machine {
    child: Arc<Mutex<Child>>,
    pub(super) process_id: u32,
    /// A description of how QEMU ended. `None` while QEMU runs.
    fate: Arc<Mutex<Option<String>>>,
    /// A channel that is disconnected when QEMU has ended.
    ended: Mutex<Receiver<()>>,
    pub(super) port: u16,
    pub(super) monitor: Monitor,
    pub(super) dir: RunDir,
    pub(super) kept: bool,
}

impl Machine {
    /// Starts QEMU. If `start` says to boot, waits until the node is ready.
    pub(super) fn power_on(
        image: &Image,
        disk: &Path,
        dir: RunDir,
        start: &Start<'_>,
        lifetime: Lifetime,
    ) -> Result<Machine> {
        // If another process takes the port first, QEMU ends at once, and `retry` starts another
        // machine.
        let [port] = free_ports()?;
        let forwarding = match start {
            Start::Equipped(equipment) => equipment.forwarding(),
            _ => String::new(),
        };
        let monitor_path = dir.sockets.path().join("qmp");
        let listener = UnixListener::bind(&monitor_path)
            .with_context(|| format!("listening on {}", monitor_path.display()))?;
        let mut command = program(lifetime);
        command.args(hardware::arguments(&Attachments {
            kernel: &image.kernel(),
            initrd: &image.initrd(),
            disk,
            monitor: &monitor_path,
            port,
            forwarding: &forwarding,
        }));
        match start {
            Start::Load(_) => command.args(["-loadvm", SNAPSHOT]),
            Start::Equipped(equipment) => command.args(equipment.arguments()),
            Start::Boot => &mut command,
        };
        let Process { child, fate, console, ended } = Process::spawn(command, &dir, monitor_path)?;
        let process_id = lock(&child).id();
        let monitor = Monitor::accept(&listener).map_err(|error| {
            let _ = lock(&child).kill();
            let _ = ended.recv_timeout(Duration::from_secs(5));
            error.context(lock(&fate).clone().unwrap_or_default())
        })?;
        let ended = Mutex::new(ended);
        let machine = Machine { child, process_id, fate, ended, port, monitor, dir, kept: false };
        if !matches!(start, Start::Load(_)) {
            machine.wait_until_ready(&console)?;
        }
        Ok(machine)
    }

    fn wait_until_ready(&self, console: &Receiver<String>) -> Result<()> {
        let deadline = Instant::now() + BOOT_LIMIT;
        let mut last = String::new();
        loop {
            match console.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains(READY_MARK) => return Ok(()),
                Ok(line) => last = line,
                Err(RecvTimeoutError::Timeout) => {
                    bail!(
                        "the node was not ready within {BOOT_LIMIT:?}; \
                         its last console line: {last:?}"
                    )
                }
                Err(RecvTimeoutError::Disconnected) => {
                    self.wait_for_end(Duration::from_secs(5));
                    bail!("the machine ended while booting: {}", self.fate().unwrap_or_default())
                }
            }
        }
    }

    pub(super) fn fate(&self) -> Option<String> {
        lock(&self.fate).clone()
    }

    pub(super) fn wait_for_end(&self, limit: Duration) {
        // No code sends over this channel. The call returns when the sender is dropped or after the
        // time limit.
        let _ = lock(&self.ended).recv_timeout(limit);
    }

    /// Adds the machine's fate as context to an error, if the machine has ended.
    pub(super) fn add_fate(&self, error: anyhow::Error) -> anyhow::Error {
        match self.fate() {
            Some(fate) => error.context(format!("the machine died: {fate}")),
            None => error,
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if !self.kept {
            let _ = lock(&self.child).kill(); // fails if QEMU has already ended
            self.wait_for_end(Duration::from_secs(5));
        }
    }
}

/// Returns QEMU's command without arguments.
fn program(lifetime: Lifetime) -> Command {
    match lifetime {
        // Without setpriv, a killed test run would leave QEMU behind.
        Lifetime::Process => {
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
            command
        }
        Lifetime::Kept => Command::new("qemu-system-x86_64"),
    }
}

/// A QEMU process, and the channels on which its starter thread reports.
struct Process {
    child: Arc<Mutex<Child>>,
    fate: Arc<Mutex<Option<String>>>,
    /// The lines of the console.
    console: Receiver<String>,
    ended: Receiver<()>,
}

impl Process {
    fn spawn(mut command: Command, dir: &RunDir, monitor: PathBuf) -> Result<Process> {
        let qemu_log = dir.path.join("qemu.log");
        command
            // Standard input is the empty lock file, so QEMU also holds the lock.
            .stdin(dir.lock.try_clone().context("sharing a run lock with QEMU")?)
            .stdout(Stdio::piped())
            .stderr(
                File::create(&qemu_log)
                    .with_context(|| format!("creating {}", qemu_log.display()))?,
            )
            // A Ctrl-C must not reach QEMU. Only this program handles Ctrl-C and ends or keeps the
            // machine.
            .process_group(0);
        let (lines, console) = mpsc::channel();
        let (started, child) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        let fate = Arc::new(Mutex::new(None));
        let console_log = dir.path.join("console.log");
        let log = File::create(&console_log)
            .with_context(|| format!("creating {}", console_log.display()))?;
        let told = Arc::clone(&fate);
        // This thread runs as long as the machine runs. The kernel kills QEMU when the *thread*
        // that started it ends, so a test's thread must not start QEMU.
        thread::spawn(move || {
            let _end = end;
            watch(command, log, &qemu_log, &started, &lines, &told);
            // If QEMU ended before it connected to its monitor, `Monitor::accept` still waits. This
            // connection ends the wait.
            let _ = UnixStream::connect(&monitor);
        });
        let child = child.recv().context("the thread that starts QEMU ended early")?.context(
            "starting qemu-system-x86_64: are qemu-system-x86 and util-linux installed?",
        )?;
        Ok(Process { child, fate, console, ended })
    }
}

/// Starts QEMU, forwards the lines of its console and records how QEMU ended.
fn watch(
    mut command: Command,
    mut log: File,
    qemu_log: &Path,
    started: &mpsc::Sender<std::io::Result<Arc<Mutex<Child>>>>,
    lines: &mpsc::Sender<String>,
    fate: &Mutex<Option<String>>,
) {
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            let _ = started.send(Err(error));
            return;
        }
    };
    let console = child.stdout.take();
    let child = Arc::new(Mutex::new(child));
    let _ = started.send(Ok(Arc::clone(&child)));
    let mut tail = Vec::new();
    for line in BufReader::new(console.expect("stdout is piped")).split(b'\n') {
        let Ok(line) = line else { break };
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        let _ = writeln!(log, "{line}");
        if tail.len() == 30 {
            tail.remove(0);
        }
        tail.push(line.clone());
        let _ = lines.send(line);
    }
    // The console is closed, so QEMU has ended or is about to end.
    let status = lock(&child).wait();
    let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
    let said = fs::read_to_string(qemu_log).unwrap_or_default();
    *lock(fate) =
        Some(format!("QEMU ended ({status}) {}\nconsole: {}", said.trim_end(), tail.join("\n")));
}

/// Locks a mutex.
///
/// Every change leaves the state consistent, so the state is valid even if the lock is poisoned.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
