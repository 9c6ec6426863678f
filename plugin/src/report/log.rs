//! Destination and format of the messages of `plimsoll run`.

use std::fmt;
use std::io::{self, Write as _};
use std::mem;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, SyncSender, TrySendError};
use std::thread;
use std::time::Duration;

use crate::config::LogLevel;
use clap::ValueEnum;
use libsystemd::logging::{self, Priority, SD_JOURNAL_SOCK_PATH};
use syslog_tracing::{Facility, Syslog};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Metadata, Subscriber, warn};
use tracing_subscriber::filter::{FilterExt as _, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, Registry, reload};

/// Name of the program in journal and syslog.
const NAME: &std::ffi::CStr = c"plimsoll";

/// Prefix of the plugin's journal fields, which prevents clashes with other fields.
const PREFIX: &str = "PLIMSOLL_";

/// Targets that log every step of a request to the API server. Their messages below `info` are
/// suppressed at every log level.
const QUIET: [&str; 4] = ["hyper", "kube", "rustls", "tower"];

/// Maximum number of messages that wait to be written.
const WAITING: usize = 4096;

/// Maximum time that the program waits for its messages to be written before it ends.
const PATIENCE: Duration = Duration::from_secs(1);

/// The form of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// A line for people, with fields as KEY=VALUE; to the journal with fields of its own, where standard error leads there
    Text,
    /// One JSON object a line, on standard error
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
        // Fails only if the subscriber is gone. Then nothing is logged in any case.
        let _ = self.0.reload(filter);
    }
}

/// Starts logging to standard error. Text goes to the journal if standard error leads there or
/// nowhere. A runtime that launches the plugin gives it /dev/null as standard error. If standard
/// error leads nowhere and there is no journal, text goes to syslog.
///
/// Also returns whether text that `main` writes to standard error reaches the reader of the log.
pub(crate) fn start(format: LogFormat) -> (Level, bool) {
    let (filter, level) = reload::Layer::new(LevelFilter::INFO);
    let text = || tracing_subscriber::fmt::layer().with_target(false);
    let nowhere = leads_nowhere(io::stderr());
    let to_journal = logging::connected_to_journal() || nowhere;
    // The last message of a process goes to standard error instead of the journal's own protocol.
    // journald may no longer find the unit of a process that has ended.
    let is_read = format == LogFormat::Text && !nowhere;
    let output = if format == LogFormat::Json {
        text().json().flatten_event(true).with_writer(Queued(io::stderr)).boxed()
    } else if to_journal && Path::new(SD_JOURNAL_SOCK_PATH).exists() {
        Journal.boxed()
    } else if nowhere
        && let Some(syslog) = Syslog::new(NAME, syslog_tracing::Options::LOG_PID, Facility::Daemon)
    {
        text().with_writer(Queued(syslog)).with_ansi(false).with_level(false).without_time().boxed()
    } else {
        let text = text().with_writer(Queued(io::stderr));
        // The reader of a pipe adds the time and expects no colours.
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
    (Level(level), is_read)
}

/// Returns whether the stream is closed or /dev/null. Runtimes give /dev/null to the plugins that
/// they launch.
fn leads_nowhere(stream: impl AsFd) -> bool {
    let null = rustix::fs::stat("/dev/null").map(|null| null.st_rdev);
    match rustix::fs::fstat(stream) {
        Ok(stat) => null == Ok(stat.st_rdev),
        Err(_) => true,
    }
}

/// Layer that logs to the journal. The message text contains the fields for readers. The same
/// fields are journal fields for searches.
struct Journal;

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let level = *event.metadata().level();
        let priority = match level {
            tracing::Level::ERROR => Priority::Error,
            tracing::Level::WARN => Priority::Warning,
            tracing::Level::INFO => Priority::Info,
            _ => Priority::Debug,
        };
        let mut line = Line::default();
        event.record(&mut line);
        let name = ("SYSLOG_IDENTIFIER".to_owned(), NAME.to_string_lossy().into_owned());
        let fields: Vec<_> = line.fields.into_iter().chain([name]).collect();
        let text = line.message + &line.text;
        queue(move || {
            if logging::journal_send(priority, &text, fields.into_iter()).is_err() {
                // The journal may be restarting. If standard error leads to the journal, this write
                // waits for it.
                let _ = writeln!(io::stderr(), "{text}");
            }
        });
    }
}

/// Writes one message.
type Write = Box<dyn FnOnce() + Send>;

/// Queue of messages for the thread that writes them.
static QUEUE: OnceLock<SyncSender<Write>> = OnceLock::new();

/// Number of messages lost to a full queue since the last warning.
static LOST: AtomicU64 = AtomicU64::new(0);

/// Queues `write` for the thread that writes messages.
///
/// A write blocks while the journal or the reader of standard error does not read. The runtime
/// waits for the plugin's answers, so the thread that answers never writes a message itself. A
/// message that finds the queue full is lost and counted.
fn queue(write: impl FnOnce() + Send + 'static) {
    let queue = QUEUE.get_or_init(|| {
        let (queue, messages) = mpsc::sync_channel::<Write>(WAITING);
        let write_all = move || {
            for write in messages {
                write();
                let lost = LOST.swap(0, Ordering::Relaxed);
                if lost > 0 {
                    warn!(lost, "messages were lost, because they were not read fast enough");
                }
            }
        };
        // If the thread cannot start, the receiver is dropped and each caller writes its message
        // itself.
        let _ = thread::Builder::new().name("messages".to_owned()).spawn(write_all);
        queue
    });
    match queue.try_send(Box::new(write)) {
        Ok(()) => {}
        Err(TrySendError::Full(_)) => {
            LOST.fetch_add(1, Ordering::Relaxed);
        }
        Err(TrySendError::Disconnected(write)) => write(),
    }
}

/// Waits until the queued messages are written, for at most [`PATIENCE`].
pub(crate) fn flush() {
    if QUEUE.get().is_some() {
        let (done, written) = mpsc::channel();
        queue(move || {
            // Fails if `flush` has already timed out.
            let _ = done.send(());
        });
        // On an error the messages are not being read, so do not wait any longer.
        let _ = written.recv_timeout(PATIENCE);
    }
}

/// Wrapper that sends the messages of another `MakeWriter` through the queue.
struct Queued<M>(M);

impl<'a, M> MakeWriter<'a> for Queued<M>
where
    M: MakeWriter<'a>,
    M::Writer: Send + 'static,
{
    type Writer = Message<M::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        Message { text: Vec::new(), writer: Some(self.0.make_writer()) }
    }

    fn make_writer_for(&'a self, about: &Metadata<'_>) -> Self::Writer {
        Message { text: Vec::new(), writer: Some(self.0.make_writer_for(about)) }
    }
}

/// A message under construction. Dropping it adds it to the queue.
struct Message<W: io::Write + Send + 'static> {
    text: Vec<u8>,
    /// `Some` until the message is dropped.
    writer: Option<W>,
}

impl<W: io::Write + Send> io::Write for Message<W> {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.text.write(text)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<W: io::Write + Send> Drop for Message<W> {
    fn drop(&mut self) {
        if let Some(mut writer) = self.writer.take() {
            let text = mem::take(&mut self.text);
            // There is no place to report a write error to.
            queue(move || drop(writer.write_all(&text)));
        }
    }
}

/// Message and fields of a log event.
#[derive(Default)]
struct Line {
    message: String,
    /// Fields as the message text shows them.
    text: String,
    fields: Vec<(String, String)>,
}

impl Line {
    fn add(&mut self, field: &Field, value: String, shown: &str) {
        // The journal hides a whole message that contains control characters, so escape them.
        let shown = shown.chars().fold(String::new(), |mut shown, character| {
            match character {
                '\n' => shown.push(character),
                _ if character.is_control() => shown.extend(character.escape_default()),
                _ => shown.push(character),
            }
            shown
        });
        if field.name() == "message" {
            self.message = shown;
        } else {
            self.text += &format!(" {field}={shown}");
            self.fields.push((PREFIX.to_owned() + &field.name().to_ascii_uppercase(), value));
        }
    }
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value.to_owned(), &format!("{value:?}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let value = format!("{value:?}");
        self.add(field, value.clone(), &value);
    }
}
