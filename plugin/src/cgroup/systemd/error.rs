//! Errors of calls to systemd.

use std::path::PathBuf;
use std::time::Duration;

/// Error while making the protection of a cgroup persistent.
#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    /// The plugin cannot connect to systemd.
    #[error(
        "cannot reach systemd at {}: {error}; expected a bus: is the host's /run there, is dbus \
         up?",
        socket.display()
    )]
    Connect {
        /// Path of the bus socket.
        socket: PathBuf,
        /// The cause.
        error: zbus::Error,
    },
    /// systemd did not answer a call in time.
    #[error(
        "unit {unit}: systemd did not answer {call} within {} s; see whether systemctl does",
        limit.as_secs()
    )]
    Timeout {
        /// Name of the unit.
        unit: String,
        /// The called method.
        call: &'static str,
        /// The timeout.
        limit: Duration,
    },
    /// The connection broke, or systemd left the bus.
    #[error("unit {unit}: lost systemd in {call}: {error}; expected it back soon")]
    Lost {
        /// Name of the unit.
        unit: String,
        /// The called method.
        call: &'static str,
        /// The cause.
        error: zbus::Error,
    },
    /// systemd denied the call.
    #[error(
        "unit {unit}: systemd denied {call}: {error}; expected to be root on the host: check who \
         runs this"
    )]
    Denied {
        /// Name of the unit.
        unit: String,
        /// The called method.
        call: &'static str,
        /// Error from systemd.
        error: zbus::Error,
    },
    /// systemd answered with another error or with an unexpected reply.
    #[error("unit {unit}: {call} failed: {error}; expected systemd 242 or later: see its journal")]
    Failed {
        /// Name of the unit.
        unit: String,
        /// The called method.
        call: &'static str,
        /// The cause.
        error: zbus::Error,
    },
    /// The client backs off after a recent failure.
    #[error("systemd is left alone for another {} s, since: {cause}", pause.as_secs())]
    Paused {
        /// Remaining time of the back-off.
        pause: Duration,
        /// The last failure.
        cause: String,
    },
}
