//! The signals that the plugin handles.
//!
//! | Signal | Effect |
//! |---|---|
//! | SIGTERM, SIGINT | The plugin stops. Containers keep their values. |
//! | SIGHUP | The plugin reads its configuration again. |
//! | SIGUSR2 | The process executes the current content of the program file. |
//! | SIGUSR1, SIGALRM, SIGVTALRM, SIGIO | The plugin only logs the signal. |
//! | SIGWINCH | None: the kernel ignores the signal by default. |
//! | SIGPIPE | None: Rust's runtime ignores the signal, and the write fails instead. |
//!
//! Other daemons reload or reopen their logs on some of these signals, but the default action of
//! most of these signals ends a process. From the first line of `run` on, only SIGTERM and SIGINT
//! end the plugin's process. Even while the process starts a new program, the other signals do not
//! end the process.

use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::Access;
use signal_hook::consts::{SIGALRM, SIGHUP, SIGIO, SIGUSR1, SIGUSR2, SIGVTALRM};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tracing::{info, warn};

use crate::agent::notify;

/// The signals that must not end the process, even before [`Signals`] handles them.
const HARMLESS: [i32; 6] = [SIGHUP, SIGUSR1, SIGUSR2, SIGALRM, SIGVTALRM, SIGIO];

/// The ways in which the plugin ends without a failure.
pub(super) enum End {
    Stop,
    /// Replace this process by the current content of the program file.
    Replace,
}

/// The signals that arrive before [`Signals`] handles signals.
pub(super) struct EarlySignals {
    /// Whether SIGUSR2 arrived.
    replace: Arc<AtomicBool>,
}

impl EarlySignals {
    /// Prevents the signals from ending the process until [`Signals`] handles the signals. The
    /// first process of a launched plugin only waits for the second process, so the first process
    /// ignores the signals until it ends.
    pub(super) fn record() -> io::Result<Self> {
        let replace = Arc::<AtomicBool>::default();
        for number in HARMLESS {
            let flag = if number == SIGUSR2 { replace.clone() } else { Arc::default() };
            signal_hook::flag::register(number, flag)?;
        }
        Ok(Self { replace })
    }
}

/// Ignores the signals while this process executes another program. The new program inherits
/// ignored signals, but no handlers. The new program ignores the signals until it handles them.
pub(super) fn ignore_signals() {
    for number in HARMLESS {
        // SAFETY: SIG_IGN is a valid disposition for these signals, and this process no longer
        // handles any of the signals.
        #[allow(unsafe_code)]
        unsafe {
            libc::signal(number, libc::SIG_IGN);
        }
    }
}

/// The handlers of the signals in this module's table.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    replace: Signal,
    reload: Signal,
    /// The signals without an effect, each with its name.
    others: [(&'static str, Signal); 4],
    early: EarlySignals,
}

impl Signals {
    /// Installs the signal handlers. Afterwards, no handled signal ends the process by its default
    /// action.
    pub(super) fn new(early: EarlySignals) -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            replace: signal(SignalKind::user_defined2())?,
            reload: signal(SignalKind::hangup())?,
            others: [
                ("SIGUSR1", signal(SignalKind::user_defined1())?),
                ("SIGALRM", signal(SignalKind::alarm())?),
                ("SIGVTALRM", signal(SignalKind::from_raw(SIGVTALRM))?),
                ("SIGIO", signal(SignalKind::io())?),
            ],
            early,
        })
    }

    /// Waits for a signal that ends the plugin. SIGHUP notifies `reload`, which makes the plugin
    /// read its configuration again.
    pub(super) async fn wait_for_end(self, program: &Path, reload: &Notify) -> End {
        let Self { mut interrupt, mut terminate, replace, reload: hangup, others, early } = self;
        for (name, signal) in others {
            tokio::spawn(log_signal(name, signal));
        }
        tokio::select! {
            _ = interrupt.recv() => stop("SIGINT"),
            _ = terminate.recv() => stop("SIGTERM"),
            () = wait_for_replacement(replace, &early, program) => End::Replace,
            never = notify_reloads(hangup, reload) => match never {},
        }
    }
}

/// Logs that the plugin stops.
fn stop(signal: &str) -> End {
    notify::stopping();
    info!(signal, "stopping; containers keep their values");
    End::Stop
}

/// Waits until SIGUSR2 arrives while the program file is executable.
async fn wait_for_replacement(mut replace: Signal, early: &EarlySignals, program: &Path) {
    if !early.replace.load(Ordering::Relaxed) {
        replace.recv().await;
    }
    while let Err(error) = rustix::fs::access(program, Access::EXEC_OK) {
        warn!(
            program = %program.display(),
            %error,
            "cannot execute the program: expected an executable file; the plugin continues"
        );
        replace.recv().await;
    }
    info!(program = %program.display(), "executing the new program; containers keep their values");
}

/// Notifies `reload` at each SIGHUP.
async fn notify_reloads(mut hangup: Signal, reload: &Notify) -> Infallible {
    while hangup.recv().await.is_some() {
        reload.notify_one();
    }
    std::future::pending().await
}

/// Logs a signal without an effect. Other programs reload their configuration on this signal, so
/// the message names SIGHUP, on which the plugin reloads its configuration.
async fn log_signal(name: &'static str, mut signal: Signal) {
    while signal.recv().await.is_some() {
        info!(signal = name, "the signal has no effect; SIGHUP reloads the configuration");
    }
}
