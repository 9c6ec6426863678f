//! Errors from calls to systemd.

use std::path::PathBuf;
use std::time::Duration;

/// Error while making the protection of a cgroup persistent.
#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    /// The plugin cannot connect to systemd.
    #[error(
        "cannot connect to systemd at {}: {error}; check that the host's /run is mounted and that \
         dbus runs",
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
        "unit {unit}: systemd did not answer {call} within {} s; check whether systemctl gets \
         answers",
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
    /// The connection broke, or systemd disconnected from the bus.
    #[error(
        "unit {unit}: the connection to systemd closed during {call}: {error}; the plugin tries \
         again"
    )]
    Lost {
        /// Name of the unit.
        unit: String,
        /// The called method.
        call: &'static str,
        /// The cause.
        error: zbus::Error,
    },
    /// systemd denied the call.
    #[error("unit {unit}: systemd denied {call}: {error}; run the plugin as root of the host")]
    Denied {
        /// Name of the unit.
        unit: String,
        /// The called method.
        call: &'static str,
        /// Error from systemd.
        error: zbus::Error,
    },
    /// systemd answered with an error other than a denial, or with an unexpected reply.
    #[error(
        "unit {unit}: {call} failed: {error}; see the journal of systemd, which must be 242 or \
         later"
    )]
    Failed {
        /// Name of the unit.
        unit: String,
        /// The called method.
        call: &'static str,
        /// The cause.
        error: zbus::Error,
    },
    /// The client backs off after a recent failure.
    #[error(
        "the plugin backs off for another {} s, because systemd failed: {cause}",
        pause.as_secs()
    )]
    Paused {
        /// Remaining time of the back-off.
        pause: Duration,
        /// The last failure.
        cause: String,
    },
}
