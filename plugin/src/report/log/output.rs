//! Chooses where log messages go: to standard error, the journal or syslog.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use clap::ValueEnum;
use libsystemd::logging::{self, SD_JOURNAL_SOCK_PATH};
use syslog_tracing::{Facility, Syslog};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::{FilterExt as _, filter_fn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, Registry, reload};

use crate::config::LogLevel;
use crate::report::log::journal::{Journal, NAME};
use crate::report::log::queue::Queued;

/// Tracing targets (Rust crates) that log every step of a request to the API server. Whatever the
/// log level is, the plugin suppresses `debug` and `trace` messages of these targets.
const QUIET: [&str; 4] = ["hyper", "kube", "rustls", "tower"];

/// Format of log messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Text with fields as KEY=VALUE; also with journal fields if standard error is the journal
    Text,
    /// One JSON object per line on standard error
    Json,
}

/// Handle that changes the log level.
pub(crate) struct Level(reload::Handle<LevelFilter, Registry>);

impl Level {
    /// Sets the log level.
    pub(crate) fn set(&self, wanted: LogLevel) {
        let filter = match wanted {
            LogLevel::Error => LevelFilter::ERROR,
            LogLevel::Warn => LevelFilter::WARN,
            LogLevel::Info => LevelFilter::INFO,
            LogLevel::Debug => LevelFilter::DEBUG,
            LogLevel::Trace => LevelFilter::TRACE,
        };
        // This call fails only if the tracing subscriber is gone. Without it, no message is logged
        // anyway.
        let _ = self.0.reload(filter);
    }
}

/// Starts logging to standard error. If standard error is the journal, /dev/null or closed, sends
/// text messages to the journal's socket instead. A runtime that launches the plugin passes
/// /dev/null as standard error. If standard error is /dev/null or closed and the node has no
/// journal, sends text messages to syslog.
///
/// Also returns whether the process should send its last message to the log. If not, `main` writes
/// the last message to standard error.
pub(crate) fn start(format: LogFormat) -> (Level, bool) {
    let (filter, level) = reload::Layer::new(LevelFilter::INFO);
    let text = || tracing_subscriber::fmt::layer().with_target(false);
    let nowhere = leads_nowhere(io::stderr());
    let to_journal = logging::connected_to_journal() || nowhere;
    let mut takes_last = true;
    let output = if format == LogFormat::Json {
        text().json().flatten_event(true).with_writer(Queued(io::stderr)).boxed()
    } else if to_journal && Path::new(SD_JOURNAL_SOCK_PATH).exists() {
        // journald may no longer find the systemd unit of a process that has ended, but knows the
        // unit of a process's standard error. So write the last message to standard error,
        // unless standard error is /dev/null or closed.
        takes_last = nowhere;
        Journal.boxed()
    } else if nowhere
        && let Some(syslog) = Syslog::new(NAME, syslog_tracing::Options::LOG_PID, Facility::Daemon)
    {
        text().with_writer(Queued(syslog)).with_ansi(false).with_level(false).without_time().boxed()
    } else {
        let text = text().with_writer(Queued(io::stderr));
        // A program that reads standard error from a pipe adds the time and expects no colours.
        if rustix::termios::isatty(io::stderr()) {
            text.with_ansi(true).boxed()
        } else {
            text.with_ansi(false).without_time().boxed()
        }
    };
    let quiet = filter_fn(|about| {
        let is_quiet = QUIET.iter().any(|target| about.target().starts_with(target));
        !is_quiet || *about.level() <= tracing::Level::INFO
    });
    tracing_subscriber::registry().with(output.with_filter(filter.and(quiet))).init();
    (Level(level), takes_last)
}

/// Returns whether the stream is closed or /dev/null. A runtime passes /dev/null as standard error
/// to each plugin that it launches.
fn leads_nowhere(stream: impl AsFd) -> bool {
    let null = rustix::fs::stat("/dev/null").map(|null| null.st_rdev);
    match rustix::fs::fstat(stream) {
        Ok(stat) => null == Ok(stat.st_rdev),
        Err(_) => true,
    }
}
