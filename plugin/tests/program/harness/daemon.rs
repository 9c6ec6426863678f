//! A running program.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use tokio::sync::mpsc;

/// Shell script that starts the plugin with the script's standard input as descriptor 3, as a
/// runtime passes a connection. The script keeps running after a signal has killed the plugin.
pub const LAUNCHER: &str = r#"
exec 3<&0 0</dev/null
"$0" "$@" &
exec 3<&-
wait $!
code=$?
[ $code -le 128 ] || exec tail -f /dev/null
exit $code
"#;

/// A running program, with the lines of its standard error.
pub struct Daemon {
    pub child: Child,
    pub messages: mpsc::UnboundedReceiver<String>,
}

impl Daemon {
    pub fn spawn(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, messages) = mpsc::unbounded_channel();
        let stderr = child.stderr.take().unwrap();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                // Ignore an error, because the test may have ended.
                let _ = sender.send(line);
            }
        });
        Self { child, messages }
    }

    /// Waits for a message that contains `text`, and returns the message.
    pub async fn says(&mut self, text: &str) -> String {
        let mut before = Vec::new();
        let found = tokio::time::timeout(Duration::from_secs(60), async {
            while let Some(line) = self.messages.recv().await {
                if line.contains(text) {
                    return Some(line);
                }
                before.push(line);
            }
            None
        });
        match found.await {
            Ok(Some(line)) => line,
            _ => panic!(
                "the program must log {text:?} within 60 s, but logged:\n{}",
                before.join("\n")
            ),
        }
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Kills the program, and waits until it has ended.
    pub async fn kill(self) {
        self.signal(rustix::process::Signal::KILL);
        self.ends().await;
    }

    /// Calls `act` while the program is stopped, so that the program sees all changes at once.
    pub fn while_it_is_stopped(&self, act: impl FnOnce()) {
        use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, waitid};
        self.signal(Signal::STOP);
        waitid(WaitId::Pid(Pid::from_child(&self.child)), WaitIdOptions::STOPPED).unwrap();
        act();
        self.signal(Signal::CONT);
    }

    pub async fn ends(mut self) -> ExitStatus {
        let mut rest = Vec::new();
        while let Some(line) = self.messages.recv().await {
            rest.push(line);
        }
        self.child.wait().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
