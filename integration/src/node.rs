//! A throwaway virtual machine in QEMU, emulated in software, and a shell on it.
//!
//! The first start of an image boots the machine and stores a snapshot of the ready node in the
//! cache. Later starts load the snapshot.
//!
//! A guest that dies during a boot is booted again, a limited number of times. Emulated
//! multiprocessing has rare faults, which are no test result. If a guest dies later, every call
//! reports its death; see [`Node::fate`].

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cache::{self, Key, progress};
use crate::image::Image;
use crate::runtime::Runtime;
use crate::{oci, peers};

/// The guest's memory in MiB. Pods can use about 300 MiB less.
pub const MEMORY_MIB: u64 = 1400;

const PROCESSORS: &str = "1";
/// The number of attempts before a start counts as failed.
const STARTS: u32 = 4;
/// The time limit from power-on to ready. A boot takes about 20 s on an idle host with two cores.
const BOOT_LIMIT: Duration = Duration::from_secs(300);
/// The default time limit for one command on the node.
const COMMAND_LIMIT: Duration = Duration::from_secs(240);
/// The name of the snapshot inside the disk.
const SNAPSHOT: &str = "ready";
const READY_MARK: &str = "NODE-READY";

/// The kernel's command line.
///
/// - `norandmaps`: QEMU 7.2 translates a program again for each address to which the program is
///   mapped. With random addresses a fork with an exec takes three times as long.
/// - `damon_stat.enabled=N`: DAMON otherwise samples all memory all the time. This took a fifth of
///   the processor of a node with a kubelet.
const KERNEL_ARGUMENTS: &str = "rw console=ttyS0 quiet loglevel=4 panic=-1 oops=panic net.ifnames=0 mitigations=off norandmaps \
    random.trust_cpu=on damon_stat.enabled=N no_timer_check nowatchdog audit=0 apparmor=0 systemd.show_status=0 systemd.ssh_auto=no";

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

/// A running node.
///
/// The node ends when this value is dropped or this process ends, unless [`Node::start_kept`]
/// started it.
pub struct Node {
    runtime: Runtime,
    machine: Machine,
    shell: Shell,
}

impl Node {
    /// Starts a node from the snapshot in the cache. The snapshot is made first if there is none.
    pub fn start(runtime: Runtime) -> Result<Node> {
        Node::start_in(runtime, Lifetime::Process)
    }

    /// Starts a node that keeps running after this value is dropped and after this process ends.
    ///
    /// [`Node::way_in`] returns the command to reach it.
    pub fn start_kept(runtime: Runtime) -> Result<Node> {
        let mut node = Node::start_in(runtime, Lifetime::Kept)?;
        node.machine.kept = true;
        node.machine.dir.kept = true;
        Ok(node)
    }

    /// Boots a node with additional equipment. Such a node has no snapshot.
    pub fn boot(runtime: Runtime, equipment: &Equipment) -> Result<Node> {
        let image = Image::obtain(runtime)?;
        persevere(&format!("booting the {runtime} node"), |_| {
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
        persevere(&format!("starting the {runtime} node"), |attempt| {
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

    fn launch(
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
            Start::Boot | Start::Equipped(_) => create_overlay(image, &disk)?,
        }
        let machine = Machine::power_on(image, &disk, dir, &start, lifetime)?;
        let node = Node::connect(runtime, image, machine)?;
        match start {
            // The guest's clock stopped when the snapshot was taken.
            Start::Load(_) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                node.run(&format!("date --set=@{} >/dev/null", now.as_secs()))?;
            }
            Start::Boot | Start::Equipped(_) => node.settle()?,
        }
        Ok(node)
    }

    fn connect(runtime: Runtime, image: &Image, machine: Machine) -> Result<Node> {
        let shell = Shell::open(image, &machine)
            .map_err(|error| machine.blame(error))
            .with_context(|| format!("opening a shell on the {runtime} node"))?;
        Ok(Node { runtime, machine, shell })
    }

    /// Imports the container images, which a freshly booted node does not have.
    fn settle(&self) -> Result<()> {
        self.run(&format!(
            "{}\ncrictl images >/dev/null\nsync",
            self.runtime.import(oci::ARCHIVE, &[oci::PAUSE, oci::WORKLOAD, peers::NRI_TEST_IMAGE])
        ))
        .context("importing the container images")?;
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

    /// Runs a script like [`Node::run`], but returns the output with any exit status.
    ///
    /// It is an error if the script cannot be run or does not end within four minutes.
    pub fn try_run(&self, script: &str) -> Result<Output> {
        self.try_run_within(COMMAND_LIMIT, script, Vec::new())
    }

    /// Runs a script like [`Node::try_run`], with another time limit and with standard input.
    pub fn try_run_within(&self, limit: Duration, script: &str, input: Vec<u8>) -> Result<Output> {
        let answer =
            self.shell.run(limit, script, input).map_err(|error| self.machine.blame(error))?;
        // ssh also returns 255 itself, for a lost connection.
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
            "set -euo pipefail; mkdir -p \"$(dirname {path})\"; cat > {path}.new; chmod {mode:o} {path}.new; mv {path}.new {path}"
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

    /// Returns the command that opens a shell on the node.
    pub fn way_in(&self) -> String {
        format!(
            "ssh -i {} -p {} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null root@127.0.0.1",
            self.shell.key.display(),
            self.machine.port
        )
    }

    /// Returns the process ID of the node's QEMU.
    pub fn process_id(&self) -> u32 {
        self.machine.process_id
    }
}

/// The lifetime of a node.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lifetime {
    /// At most as long as this process.
    Process,
    /// Until the user ends it.
    Kept,
}

enum Start<'a> {
    Boot,
    Load(&'a Path),
    /// Boots a machine with additional equipment.
    Equipped(&'a Equipment),
}

/// The additional equipment of a machine.
#[derive(Clone, Debug)]
pub struct Equipment {
    /// A second, read-only disk: `/dev/vdb`.
    pub disk: PathBuf,
    /// An address and a port in the guest's network 10.0.2.0/24, and a port on the host's loopback
    /// address.
    ///
    /// QEMU forwards connections from the former to the latter.
    pub relay: (Ipv4Addr, u16, u16),
}

impl Equipment {
    fn arguments(&self) -> Vec<String> {
        let device = ["-device", "virtio-blk-pci,drive=second", "-drive"].map(str::to_owned);
        let drive =
            format!("file={},format=raw,if=none,id=second,readonly=on", self.disk.display());
        device.into_iter().chain([drive]).collect()
    }

    /// Returns the QEMU option for the relay.
    ///
    /// The option starts a process for each connection, because QEMU itself makes only one
    /// connection.
    fn forwarding(&self) -> String {
        let (address, port, local) = self.relay;
        let relay = format!("exec 3<>/dev/tcp/127.0.0.1/{local}; cat <&3 & cat >&3; kill $!");
        format!(",guestfwd=tcp:{address}:{port}-cmd:bash -c '{relay}'")
    }
}

/// Tries to start something up to [`STARTS`] times and prints the error of each failed attempt.
fn persevere<T>(what: &str, mut start: impl FnMut(u32) -> Result<T>) -> Result<T> {
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
    let mut key = Key::default();
    key.add("image", image.id())
        .add("recipe", include_str!("node.rs"))
        .add("qemu", version.stdout)
        .add("processor", model);
    let dir = cache::entry(&format!("snapshot-{runtime}"), &key, |dir| {
        persevere(&format!("booting the {runtime} node"), |_| {
            progress(&format!("booting the {runtime} node, to keep a snapshot of it"));
            let node = Node::launch(runtime, image, Start::Boot, Lifetime::Process)?;
            node.close_and_save(&dir.join("disk.qcow2"))
        })
    })?;
    Ok(dir.join("disk.qcow2"))
}

fn create_overlay(image: &Image, overlay: &Path) -> Result<()> {
    let status = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
        .arg(image.disk())
        .arg(overlay)
        .status()
        .context("starting qemu-img: is qemu-utils installed? (hack/prepare does it)")?;
    ensure!(status.success(), "qemu-img could not create {}", overlay.display());
    Ok(())
}

impl Node {
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

/// A connection to QEMU's control socket.
struct Monitor(BufReader<UnixStream>);

impl Monitor {
    /// Waits until QEMU connects and executes the first command.
    ///
    /// QEMU has then loaded a saved machine and opened its ports.
    fn accept(listener: &UnixListener) -> Result<Monitor> {
        let (stream, _) = listener.accept().context("waiting for QEMU's monitor")?;
        // A long timeout, because saving or loading a machine moves a few hundred megabytes.
        stream.set_read_timeout(Some(Duration::from_secs(120))).context("setting a timeout")?;
        let mut monitor = Monitor(BufReader::new(stream));
        monitor.execute("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.0.get_mut(), "{request}")
            .with_context(|| format!("telling QEMU to {command}"))?;
        loop {
            let mut line = String::new();
            let read = self
                .0
                .read_line(&mut line)
                .with_context(|| format!("QEMU's answer to {command}"))?;
            ensure!(read > 0, "QEMU closed its monitor instead of answering {command}");
            let mut answer: Value =
                serde_json::from_str(&line).with_context(|| format!("QEMU's answer {line:?}"))?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU refused {command}: {error}");
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take()); // skips QEMU's greeting and events
            }
        }
    }
}

/// The directories with the files of one machine.
///
/// The disk is in the cache. The sockets are in another directory with a short path, because the
/// path of a socket is limited to 108 bytes.
pub(crate) struct RunDir {
    pub(crate) path: PathBuf,
    sockets: TempDir,
    /// A file lock that this process and QEMU hold until both have ended; see `sweep`.
    lock: File,
    kept: bool,
}

impl RunDir {
    pub(crate) fn create() -> Result<RunDir> {
        let parent = cache::directory()?.join("run");
        fs::create_dir_all(&parent).with_context(|| format!("creating {}", parent.display()))?;
        sweep(&parent)?;
        let sockets = tempfile::Builder::new()
            .prefix("node-")
            .tempdir()
            .context("creating a directory for sockets")?;
        // The directory gets its final name only after its lock is held. Otherwise the sweep of
        // another process could remove it as abandoned.
        let work = tempfile::Builder::new().prefix(".new-").tempdir_in(&parent);
        let work = work.with_context(|| format!("creating a directory in {}", parent.display()))?;
        let lock = File::create_new(work.path().join("lock")).context("creating a run lock")?;
        lock.lock().context("locking a run directory")?;
        symlink(sockets.path(), work.path().join("sockets"))
            .context("linking a socket directory")?;
        let name =
            work.path().file_name().unwrap_or_default().to_string_lossy().replace(".new-", "node-");
        let path = parent.join(name);
        fs::rename(work.keep(), &path).with_context(|| format!("creating {}", path.display()))?;
        Ok(RunDir { path, sockets, lock, kept: false })
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if !self.kept {
            // Ignore an error, because a later start removes the directory.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Removes the directories of machines that ended without cleaning up.
///
/// The locks of such directories are free.
fn sweep(parent: &Path) -> Result<()> {
    for entry in fs::read_dir(parent).with_context(|| format!("listing {}", parent.display()))? {
        let path = entry.with_context(|| format!("listing {}", parent.display()))?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if let Ok(lock) = File::open(path.join("lock"))
            && !hidden
            && lock.try_lock().is_ok()
        {
            // Ignore errors, because another process may be removing the same directory.
            if let Ok(sockets) = fs::read_link(path.join("sockets")) {
                let _ = fs::remove_dir_all(sockets);
            }
            let _ = fs::remove_dir_all(&path);
        }
    }
    Ok(())
}

/// A QEMU process.
struct Machine {
    child: Arc<Mutex<Child>>,
    process_id: u32,
    /// A description of QEMU's end, set when QEMU has ended.
    fate: Arc<Mutex<Option<String>>>,
    /// A channel that is disconnected when QEMU has ended.
    ended: Mutex<Receiver<()>>,
    port: u16,
    monitor: Monitor,
    dir: RunDir,
    kept: bool,
}

impl Machine {
    /// Starts QEMU. If the machine boots, waits until the node is ready.
    fn power_on(
        image: &Image,
        disk: &Path,
        dir: RunDir,
        start: &Start<'_>,
        lifetime: Lifetime,
    ) -> Result<Machine> {
        let port = free_port()?;
        let forwarding = match start {
            Start::Equipped(equipment) => equipment.forwarding(),
            _ => String::new(),
        };
        let qemu_log = dir.path.join("qemu.log");
        let monitor_path = dir.sockets.path().join("qmp");
        let listener = UnixListener::bind(&monitor_path)
            .with_context(|| format!("listening on {}", monitor_path.display()))?;
        let mut command = match lifetime {
            // Without setpriv, a killed test run would leave QEMU behind.
            Lifetime::Process => {
                let mut command = Command::new("setpriv");
                command.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
                command
            }
            Lifetime::Kept => Command::new("qemu-system-x86_64"),
        };
        command
            .args(["-accel", "tcg,thread=multi,tb-size=256"])
            // - cx16: with it, Linux 6.12 double-faults under QEMU 7.2.
            // - la57: five-level page tables cost emulated time.
            // - erms, fsrm: with them, the kernel clears and copies memory with instructions that
            //   QEMU emulates byte by byte.
            .args(["-cpu", "max,la57=off,cx16=off,erms=off,fsrm=off"])
            .args(["-machine", "q35,usb=off,smbus=off,sata=off"])
            .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
            .args(["-m", &MEMORY_MIB.to_string(), "-smp", PROCESSORS])
            .arg("-kernel")
            .arg(image.kernel())
            .arg("-initrd")
            .arg(image.initrd())
            .args(["-append", KERNEL_ARGUMENTS])
            // cache=unsafe: the disk is discarded after use, so QEMU need not flush it to the host.
            .args([
                "-drive",
                &format!("file={},format=qcow2,if=none,id=disk,cache=unsafe", disk.display()),
            ])
            .args(["-device", "virtio-blk-pci,drive=disk"])
            .args([
                "-netdev",
                &format!("user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22{forwarding}"),
            ])
            .args(["-device", "virtio-net-pci,netdev=net,romfile="])
            .args(["-device", "virtio-rng-pci"])
            .args(["-serial", "stdio"])
            .arg("-qmp")
            .arg(format!("unix:{}", monitor_path.display()))
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
        match start {
            Start::Load(_) => command.args(["-loadvm", SNAPSHOT]),
            Start::Equipped(equipment) => command.args(equipment.arguments()),
            Start::Boot => &mut command,
        };

        let (lines, console) = mpsc::channel();
        let (started, child) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        let fate = Arc::new(Mutex::new(None));
        let console_log = dir.path.join("console.log");
        let log = File::create(&console_log)
            .with_context(|| format!("creating {}", console_log.display()))?;
        let told = Arc::clone(&fate);
        // This thread exists as long as the machine. The kernel kills QEMU when the *thread* that
        // started it ends, so a test's thread must not start QEMU.
        thread::spawn(move || {
            let _end = end;
            tend(command, log, &qemu_log, &started, &lines, &told);
            // If QEMU ended before it connected to its monitor, `Monitor::accept` still waits. This
            // connection ends the wait.
            let _ = UnixStream::connect(&monitor_path);
        });
        let child = child.recv().context("the thread that starts QEMU ended early")?.context(
            "starting qemu-system-x86_64: are qemu-system-x86 and util-linux installed?",
        )?;
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
                        "the node was not ready within {BOOT_LIMIT:?}; its last console line: {last:?}"
                    )
                }
                Err(RecvTimeoutError::Disconnected) => {
                    self.wait_for_end(Duration::from_secs(5));
                    bail!("the machine ended while booting: {}", self.fate().unwrap_or_default())
                }
            }
        }
    }

    fn fate(&self) -> Option<String> {
        lock(&self.fate).clone()
    }

    fn wait_for_end(&self, limit: Duration) {
        // Nothing is ever sent. The call returns when the sender is dropped or after the time
        // limit.
        let _ = lock(&self.ended).recv_timeout(limit);
    }

    /// Adds the machine's fate as context to an error, if the machine has ended.
    fn blame(&self, error: anyhow::Error) -> anyhow::Error {
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

/// Starts QEMU, forwards the lines of its console and records how QEMU ended.
fn tend(
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
/// A poisoned lock is fine, because the state behind these locks is consistent at any time.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn free_port() -> Result<u16> {
    // Another process may take the port before QEMU takes it. QEMU then ends at once and the start
    // is tried again.
    let listener = TcpListener::bind("127.0.0.1:0").context("looking for a free port")?;
    Ok(listener.local_addr().context("looking for a free port")?.port())
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
    if [ "${answer%%$'\n'*}" = 0 ]; then printf %s "${answer#*$'\n'}"; else echo "cri: ${answer#*$'\n'}" >&2; return 1; fi
}"#;

/// A multiplexed ssh connection.
///
/// A command over this connection takes a tenth of a second. A connection per command would take
/// ten times as long.
struct Shell {
    control: PathBuf,
    port: u16,
    key: PathBuf,
}

impl Shell {
    fn open(image: &Image, machine: &Machine) -> Result<Shell> {
        let shell = Shell {
            control: machine.dir.sockets.path().join("ssh"),
            port: machine.port,
            key: image.ssh_key(),
        };
        let log = machine.dir.path.join("ssh.log");
        // -f: ssh returns when the connection is established and continues in the background while
        // the machine runs. Its output must not be pipes of this process, because they would never
        // close.
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

    fn run(&self, limit: Duration, script: &str, input: Vec<u8>) -> Result<Output> {
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
            // Ignore write errors. A command need not read all of its input, and its exit status
            // shows whether it failed.
            thread::spawn(move || drop(stdin.write_all(&input)))
        });
        let output = child.wait_with_output().context("waiting for a command on the node")?;
        if let Some(feeder) = feeder {
            feeder.join().map_err(|_| anyhow!("feeding a command on the node failed"))?;
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
        // Ignore an error: there is no connection any more if the machine has already ended.
        let _ = Command::new("ssh")
            .args(["-O", "exit"])
            .args(self.options())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}

/// Returns the first lines of a script for messages.
fn excerpt(script: &str) -> String {
    const LINES: usize = 25;
    let mut shown: Vec<&str> = script.lines().take(LINES).collect();
    if script.lines().count() > LINES {
        shown.push("...");
    }
    shown.join("\n")
}
