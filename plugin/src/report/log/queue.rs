//! Queue of messages for the thread that writes them.

use std::io;
use std::mem;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, SyncSender, TrySendError};
use std::thread;
use std::time::Duration;

use tracing::{Metadata, warn};
use tracing_subscriber::fmt::MakeWriter;

/// Maximum number of messages that wait to be written.
const WAITING: usize = 4096;

/// Maximum time that the program waits for its messages to be written before it ends.
const PATIENCE: Duration = Duration::from_secs(1);

/// Writes one message.
type WriteMessage = Box<dyn FnOnce() + Send>;

/// Queue of messages for the thread that writes them.
static QUEUE: OnceLock<SyncSender<WriteMessage>> = OnceLock::new();

/// Number of messages lost to a full queue since the last warning.
static LOST: AtomicU64 = AtomicU64::new(0);

/// Queues `write` for the thread that writes messages.
///
/// A write blocks while the journal or the reader of standard error does not read. The runtime
/// waits for the plugin's answers, so the thread that answers never writes a message itself. A
/// message that finds the queue full is lost and counted.
pub(super) fn queue(write: impl FnOnce() + Send + 'static) {
    let queue = QUEUE.get_or_init(|| {
        let (queue, messages) = mpsc::sync_channel::<WriteMessage>(WAITING);
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
pub(super) struct Queued<M>(pub(super) M);

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
pub(super) struct Message<W: io::Write + Send + 'static> {
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
