//! The signals that the plugin handles.

use std::io;
use std::path::Path;

use rustix::fs::Access;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tracing::{info, warn};

use crate::agent::notify;

/// The way the plugin ends without a failure.
pub(super) enum End {
    Stop,
    /// Replace this process by the program that the program file holds now.
    Anew,
}

/// The signals that the plugin handles. The plugin only logs SIGUSR1.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    replace: Signal,
    reload: Signal,
    other: Signal,
}

impl Signals {
    /// Installs the handlers. From then on, none of the signals ends the process by its default
    /// action.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            replace: signal(SignalKind::user_defined2())?,
            reload: signal(SignalKind::hangup())?,
            other: signal(SignalKind::user_defined1())?,
        })
    }

    /// Waits for a signal that ends the plugin. SIGHUP notifies `reload`, which makes the plugin
    /// read its configuration again.
    pub(super) async fn ended(mut self, program: &Path, reload: &Notify) -> End {
        loop {
            let signal = tokio::select! {
                _ = self.interrupt.recv() => "SIGINT",
                _ = self.terminate.recv() => "SIGTERM",
                _ = self.replace.recv() => match rustix::fs::access(program, Access::EXEC_OK) {
                    Ok(()) => {
                        info!(
                            program = %program.display(),
                            "starting anew; containers keep their values"
                        );
                        return End::Anew;
                    }
                    Err(error) => {
                        warn!(
                            program = %program.display(),
                            %error,
                            "cannot start anew: expected a program there; going on"
                        );
                        continue;
                    }
                },
                _ = self.reload.recv() => {
                    reload.notify_one();
                    continue;
                }
                // Other programs reopen their logs or reload on SIGUSR1, so name the signal that
                // reloads.
                _ = self.other.recv() => {
                    info!(
                        signal = "SIGUSR1",
                        "the signal has no meaning here; going on. SIGHUP reloads the \
                         configuration"
                    );
                    continue;
                }
            };
            notify::stopping();
            info!(signal, "stopping; containers keep their values");
            return End::Stop;
        }
    }
}
