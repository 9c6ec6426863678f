//! Log messages and their fields in the journal's own protocol.

use std::fmt;
use std::io::{self, Write as _};

use libsystemd::logging::{self, Priority};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::report::log::queue::queue;

/// Name of the program in the journal and in syslog.
pub(super) const NAME: &std::ffi::CStr = c"plimsoll";

/// Prefix of the plugin's journal fields. The prefix prevents clashes with the journal's other
/// fields.
const PREFIX: &str = "PLIMSOLL_";

/// Layer that logs to the journal. Each message has its fields twice: in the text for readers, and
/// as journal fields for searches.
pub(super) struct Journal;

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let level = *event.metadata().level();
        let priority = match level {
            tracing::Level::ERROR => Priority::Error,
            tracing::Level::WARN => Priority::Warning,
            tracing::Level::INFO => Priority::Info,
            _ => Priority::Debug,
        };
        let mut message = JournalMessage::default();
        event.record(&mut message);
        let name = ("SYSLOG_IDENTIFIER".to_owned(), NAME.to_string_lossy().into_owned());
        let fields: Vec<_> = message.fields.into_iter().chain([name]).collect();
        let text = message.message + &message.text;
        queue(move || {
            if logging::journal_send(priority, &text, fields.into_iter()).is_err() {
                // The journal may be restarting. If standard error leads to the journal, a write to
                // standard error waits for the restart.
                let _ = writeln!(io::stderr(), "{text}");
            }
        });
    }
}

/// Message and fields of a log event.
#[derive(Default)]
struct JournalMessage {
    message: String,
    /// Fields as text, for readers of the message.
    text: String,
    fields: Vec<(String, String)>,
}

impl JournalMessage {
    fn add(&mut self, field: &Field, value: String, shown: &str) {
        // The journal hides every message that contains control characters, so escape these
        // characters.
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

impl Visit for JournalMessage {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value.to_owned(), &format!("{value:?}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let value = format!("{value:?}");
        self.add(field, value.clone(), &value);
    }
}
