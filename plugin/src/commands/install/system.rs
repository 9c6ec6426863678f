//! Executes actions on a node.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::commands::install::executor::{Executor, INTERRUPTED, PathState};
use crate::commands::install::files::{
    read_path_state, remove_all, remove_empty, remove_file, replace_file, restore_path_state,
    undo_changes,
};
use crate::commands::install::plan::Action;
use crate::commands::install::process::{PluginProcess, plugin_process};
use crate::commands::restore::LONGEST_WAIT;
use crate::host::files::below;
use crate::host::plugin_lock::holder;
use crate::host::runtime::kind::RuntimeProduct;
use crate::host::socket::Socket;
use crate::host::version::Version;
use crate::report::serve;

/// Time limit for one command. A runtime restarts within seconds, or within about a minute on a
/// busy node.
const COMMAND_LIMIT: Duration = Duration::from_secs(90);

/// Time that `plimsoll restore` may need in addition to its own deadlines. The plugin may need 10 s
/// for each answer, and systemd may need a minute to reload its unit files.
const RESTORE_MARGIN: Duration = Duration::from_secs(120);

/// Time limit for `plimsoll restore`. The command reports the values that it could not restore, so
/// the command must end by itself before this limit.
const RESTORE_LIMIT: Duration = LONGEST_WAIT.saturating_add(RESTORE_MARGIN);

/// Time limit for reading the remaining messages after a command has ended.
const MESSAGES_LIMIT: Duration = Duration::from_secs(1);

/// Time limit until an action takes effect, for example until the runtime serves a socket.
const EFFECT_LIMIT: Duration = Duration::from_secs(30);

/// Interval between two polls while waiting for an effect.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Executes actions on a node's file system, and on the processes and units of this machine.
#[derive(Debug)]
pub struct SystemExecutor {
    host: PathBuf,
    socket: PathBuf,
    /// Flag that is true after the user has interrupted the program.
    interrupted: Arc<AtomicBool>,
    is_undoing: bool,
}

impl SystemExecutor {
    /// Returns an executor for the node whose file system is at `host`, with the runtime's NRI
    /// socket.
    pub fn new(host: &Path, socket: &Path) -> Self {
        Self {
            host: host.to_owned(),
            socket: socket.to_owned(),
            interrupted: Arc::default(),
            is_undoing: false,
        }
    }

    /// Returns the flag that a signal handler sets to interrupt the plan.
    pub fn interrupted(&self) -> Arc<AtomicBool> {
        self.interrupted.clone()
    }

    /// Waits until `look` returns a value, for at most [`EFFECT_LIMIT`]. `expected` names the
    /// condition in the error.
    fn wait(&self, expected: &str, look: impl FnMut() -> Option<()>) -> Result<(), String> {
        match self.poll(EFFECT_LIMIT, look) {
            Some(()) => Ok(()),
            None if self.is_interrupted() => Err(INTERRUPTED.to_owned()),
            None => Err(format!("expected {expected} within {} s", EFFECT_LIMIT.as_secs())),
        }
    }

    /// Polls `look` until it returns a value. Returns `None` after `limit` or when the user
    /// interrupts.
    fn poll<T>(&self, limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
        let began = Instant::now();
        loop {
            match look() {
                None if began.elapsed() < limit && !self.is_interrupted() => {
                    thread::sleep(POLL_INTERVAL)
                }
                found => return found,
            }
        }
    }

    /// Runs a command and waits for its end, for at most `limit`. The command writes to the
    /// standard output and standard error of this process.
    fn run(&self, command: &mut Command, limit: Duration) -> Result<(), String> {
        // Ctrl-C sends SIGINT to the process group. Run the command in its own group, so that this
        // process decides whether the command ends.
        command.stdin(Stdio::null()).process_group(0);
        if self.is_undoing {
            // After SIGHUP the terminal may be gone, and a command that cannot print would fail.
            // This process therefore reads the command's messages, and prints the messages if
            // possible.
            command.stdout(Stdio::null()).stderr(Stdio::piped());
        }
        let mut child = command.spawn().map_err(|error| error.to_string())?;
        let messages = child.stderr.take().and_then(forward_messages);
        let result = self.wait_for_child(&mut child, limit);
        if let Some(messages) = messages {
            // Limit the wait, because another process may keep the pipe open.
            self.poll(MESSAGES_LIMIT, || messages.is_finished().then_some(()));
        }
        result
    }

    /// Waits for the end of a command. Kills the command after `limit`, or if the user interrupts
    /// the program.
    fn wait_for_child(&self, child: &mut Child, limit: Duration) -> Result<(), String> {
        match self.poll(limit, || child.try_wait().transpose()) {
            Some(Ok(status)) if status.success() => Ok(()),
            Some(Ok(status)) => Err(format!("the command ended with {status}")),
            Some(Err(error)) => Err(error.to_string()),
            None => {
                let _ = child.kill();
                let _ = child.wait();
                Err(match self.is_interrupted() {
                    true => INTERRUPTED.to_owned(),
                    false => format!("the command did not end within {} s", limit.as_secs()),
                })
            }
        }
    }

    fn write(
        &self,
        path: &str,
        content: &[u8],
        mode: u32,
    ) -> Result<Vec<PathState>, (Vec<PathState>, io::Error)> {
        let path = below(&self.host, path);
        let mut before = Vec::new();
        let missing: Vec<_> =
            path.ancestors().skip(1).take_while(|directory| !directory.exists()).collect();
        for directory in missing.into_iter().rev() {
            match fs::create_dir(directory) {
                Ok(()) => before.push(PathState::NoDirectory(directory.to_owned())),
                Err(error) => return Err((before, error)),
            }
        }
        match read_path_state(&path) {
            Ok(held) => before.push(held),
            Err(error) => return Err((before, error)),
        }
        match replace_file(&path, content, mode) {
            Ok(()) => Ok(before),
            Err(error) => Err((before, error)),
        }
    }

    fn signal(&self, program: &str, signal: Signal) -> Result<(), String> {
        let Some(process) = plugin_process(&self.host, &self.socket)
            .filter(|process| process.runs(&self.host, program))
        else {
            return Err("the plugin does not run this program any more".to_owned());
        };
        let id = Pid::from_raw(process.id).ok_or("the plugin's process id is invalid")?;
        kill_process(id, signal).map_err(|error| io::Error::from(error).to_string())
    }

    /// Runs `plimsoll restore`.
    fn restore(&self) -> Result<(), String> {
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut command = Command::new(program);
        command.arg("restore").arg("--host").arg(&self.host).arg("--socket").arg(&self.socket);
        self.run(&mut command, RESTORE_LIMIT)
    }

    /// Waits until the plugin reports that it is synchronized with the runtime.
    fn await_synchronized(&self) -> Result<(), String> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| error.to_string())?;
        let ask = || {
            runtime.block_on(serve::ask(&self.host)).ok().filter(|status| status.node.synchronized)
        };
        self.wait("the plugin to report this at /run/plimsoll/plimsoll.sock", || ask().map(drop))
    }

    fn check_nri(&self, product: RuntimeProduct, version: Option<Version>) -> Result<(), String> {
        match product.kind().settings(&self.host, version).is_off {
            Some((true, switch)) => Err(switch.to_string()),
            Some((false, _)) => Ok(()),
            None => {
                Err("the configuration does not have NRI on: expected the runtime to read the new \
                    file as the last file with NRI's section"
                    .to_owned())
            }
        }
    }
}

impl Executor for SystemExecutor {
    fn execute(&mut self, action: &Action) -> Result<Vec<PathState>, String> {
        match action {
            Action::Write { path, content, mode } => {
                return self
                    .write(path, content, *mode)
                    .map_err(|(before, error)| undo_changes(before, error.to_string()));
            }
            Action::Remove(path) => return remove_file(&below(&self.host, path)),
            Action::RemoveEmpty(path) => return Ok(remove_empty(below(&self.host, path))),
            Action::RemoveAll(path) => remove_all(&below(&self.host, path))?,
            Action::Restore => self.restore()?,
            Action::Systemctl(words) => {
                self.run(Command::new("systemctl").args(words), COMMAND_LIMIT)?
            }
            Action::Terminate(_) if holder(&self.host, &self.socket) == Some(None) => {}
            Action::Terminate(program) => self.signal(program, Signal::TERM)?,
            Action::Replace(program) => self.signal(program, Signal::USR2)?,
            Action::CheckNri(product, version) => self.check_nri(*product, *version)?,
            Action::AwaitRuntime => {
                let listens = || (Socket::connect(&self.socket) == Socket::Listens).then_some(());
                self.wait("the runtime to listen at NRI's socket", listens)?;
            }
            Action::AwaitPlugin(program) => {
                let is = |process: &PluginProcess| {
                    process.runs(&self.host, program) && !process.is_replaced()
                };
                let runs = || plugin_process(&self.host, &self.socket).filter(is).map(drop);
                self.wait("the plugin to run", runs)?;
            }
            Action::AwaitSynchronized => self.await_synchronized()?,
            Action::AwaitExit => {
                let none = || (holder(&self.host, &self.socket)?.is_none()).then_some(());
                self.wait("the plugin to exit", none)?;
            }
        }
        Ok(Vec::new())
    }

    fn restore_path(&mut self, what: PathState) -> Result<(), String> {
        restore_path_state(&what)
    }

    fn is_interrupted(&self) -> bool {
        !self.is_undoing && self.interrupted.load(Ordering::Relaxed)
    }

    fn begin_undo(&mut self) {
        self.is_undoing = true;
    }
}

/// Prints the messages of a command in a separate thread, and ignores failures to print. Returns
/// `None` if the kernel allows no further thread.
fn forward_messages(mut messages: ChildStderr) -> Option<JoinHandle<()>> {
    let forward = move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = messages.read(&mut buffer) {
            let _ = io::stderr().write_all(&buffer[..length]);
        }
    };
    thread::Builder::new().name("messages".to_owned()).spawn(forward).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containerd_1_7_ignores_earlier_nri_sections() {
        let host = tempfile::tempdir().expect("a directory");
        let put = |path: &str, text: &str| {
            let path = host.path().join(path);
            fs::create_dir_all(path.parent().expect("the path has a parent"))
                .expect("the directory is made");
            fs::write(path, text).expect("the file is written");
        };
        let section = "[plugins.'io.containerd.nri.v1.nri']\n";
        put(
            "etc/containerd/config.toml",
            "version = 2\nimports = ['conf.d/*.toml', 'late.toml']\n",
        );
        put("etc/containerd/conf.d/zz-plimsoll.toml", &format!("{section}disable = false\n"));
        let executor = SystemExecutor::new(host.path(), &host.path().join("run/nri/nri.sock"));
        let is_on = |version| executor.check_nri(RuntimeProduct::Containerd, Some(version));
        assert_eq!([is_on(Version(1, 7, 24)), is_on(Version(2, 0, 0))], [Ok(()), Ok(())]);
        put("etc/containerd/late.toml", &format!("{section}plugin_path = '/p'\n"));
        assert_eq!(is_on(Version(2, 0, 0)), Ok(()));
        assert!(is_on(Version(1, 7, 24)).is_err_and(|why| why.contains("last file")));
    }

    #[test]
    fn restore_reports_before_it_is_killed() {
        // The plugin takes up to 10 s for an answer, and systemd takes up to 60 s for a reload.
        let answers_and_reload = Duration::from_secs(3 * 10 + 60);
        assert!(RESTORE_LIMIT > LONGEST_WAIT + answers_and_reload);
    }
}
