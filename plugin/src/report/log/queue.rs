//! Queue of messages for the thread that writes them.

use std::cell::Cell;
use std::io;
use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, SyncSender, TrySendError};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use tracing::{Metadata, warn};
use tracing_subscriber::fmt::MakeWriter;

/// Maximum number of messages in the queue.
const WAITING: usize = 4096;

/// Maximum time that the ending program waits until its queued messages are written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Maximum time that the program waits until standard error accepts its last message.
const STDERR_PATIENCE: Duration = Duration::from_millis(100);

/// Interval at which `flush` tries again to add its entry to a full queue.
const FLUSH_RETRY: Duration = Duration::from_millis(5);

/// Function that writes one message.
type WriteMessage = Box<dyn FnOnce() + Send>;

thread_local! {
    /// Whether the current thread is the thread that writes the queued messages.
    static IS_WRITER: Cell<bool> = const { Cell::new(false) };
}

/// Queue of messages for the thread that writes them.
///
/// A write may block until the journal or the reader of standard error has read earlier messages.
/// The runtime waits for the plugin's answers, so a thread that answers the runtime never writes a
/// message itself.
struct MessageQueue {
    sender: SyncSender<WriteMessage>,
    /// Number of messages that the full queue discarded since the last warning.
    lost: Arc<AtomicU64>,
}

impl MessageQueue {
    /// Creates a queue of at most `capacity` messages and starts its thread. `warn_of_loss` logs
    /// the number of lost messages.
    fn start(capacity: usize, warn_of_loss: impl Fn(u64) + Send + 'static) -> Self {
        let (sender, messages) = mpsc::sync_channel::<WriteMessage>(capacity);
        let lost = Arc::<AtomicU64>::default();
        let lost_messages = lost.clone();
        let write_all = move || {
            IS_WRITER.set(true);
            for write in messages {
                write();
                let lost = lost_messages.swap(0, Ordering::Relaxed);
                if lost > 0 {
                    warn_of_loss(lost);
                }
            }
        };
        // If the thread cannot start, the receiver is dropped and each caller writes its message
        // itself.
        let _ = thread::Builder::new().name("messages".to_owned()).spawn(write_all);
        Self { sender, lost }
    }

    /// Adds a message. If the queue is full, discards the message and counts the loss.
    fn add(&self, write: WriteMessage) {
        // Only this thread empties the queue, so a full queue would discard this thread's own
        // warning.
        if IS_WRITER.get() {
            return write();
        }
        match self.sender.try_send(write) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                self.lost.fetch_add(1, Ordering::Relaxed);
            }
            Err(TrySendError::Disconnected(write)) => write(),
        }
    }

    /// Waits for at most `patience` until the thread has written all queued messages. Returns
    /// whether the thread has written them.
    fn flush(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let (done, written) = mpsc::channel();
        let mut entry: WriteMessage = Box::new(move || {
            // The send fails if `flush` has already timed out.
            let _ = done.send(());
        });
        loop {
            match self.sender.try_send(entry) {
                Ok(()) => break,
                Err(TrySendError::Full(returned)) if Instant::now() < deadline => {
                    entry = returned;
                    thread::sleep(FLUSH_RETRY);
                }
                // No program reads the log, so the queue is still full and its messages are lost.
                Err(TrySendError::Full(_)) => return false,
                // The queue's thread did not start, so each caller has written its message itself.
                Err(TrySendError::Disconnected(_)) => return true,
            }
        }
        written.recv_timeout(deadline.saturating_duration_since(Instant::now())).is_ok()
    }
}

/// The only message queue of the process.
static QUEUE: OnceLock<MessageQueue> = OnceLock::new();

/// Queues `write` for the thread that writes messages.
pub(super) fn queue(write: impl FnOnce() + Send + 'static) {
    let queue = QUEUE.get_or_init(|| {
        MessageQueue::start(WAITING, |lost| {
            warn!(lost, "messages were lost, because the reader of the log was too slow");
        })
    });
    queue.add(Box::new(write));
}

/// Waits for at most [`FLUSH_TIMEOUT`] until all queued messages are written. Reports the loss of
/// unwritten messages on standard error.
pub(crate) fn flush() {
    if let Some(queue) = QUEUE.get()
        && let Some(loss) = flush_or_describe(queue, FLUSH_TIMEOUT)
    {
        write_to_stderr(loss);
    }
}

/// Waits for at most `patience` until all queued messages are written. Returns an error message if
/// the wait times out.
fn flush_or_describe(queue: &MessageQueue, patience: Duration) -> Option<String> {
    (!queue.flush(patience)).then(|| {
        format!(
            "plimsoll: the last log messages were not written within {patience:?}: the reader of \
             the log, such as journald, does not read\n"
        )
    })
}

/// Writes text to standard error, or gives up after [`STDERR_PATIENCE`].
///
/// A separate thread writes the text, because standard error may be the very pipe that no process
/// reads. The thread does not lock [`io::stderr`], because the blocked message thread may hold this
/// lock.
fn write_to_stderr(text: String) {
    let (done, written) = mpsc::channel();
    let write = move || {
        let _ = rustix::io::write(io::stderr(), text.as_bytes());
        let _ = done.send(());
    };
    if thread::Builder::new().name("last message".to_owned()).spawn(write).is_ok() {
        let _ = written.recv_timeout(STDERR_PATIENCE);
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

/// A message under construction. Dropping the message adds it to the queue.
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
            // Ignore a write error, because the log cannot report its own failure.
            queue(move || drop(writer.write_all(&text)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Returns a queue with room for two messages. The queue's thread is busy until the caller
    /// drops the returned sender.
    fn busy_queue() -> (MessageQueue, mpsc::Sender<()>, Arc<Mutex<Vec<String>>>) {
        let written = Arc::<Mutex<Vec<String>>>::default();
        let of_losses = written.clone();
        let queue = MessageQueue::start(2, move |lost| {
            of_losses.lock().unwrap().push(format!("lost {lost}"));
        });
        let (busy, wait) = mpsc::channel::<()>();
        let (started, is_started) = mpsc::channel();
        queue.add(Box::new(move || {
            started.send(()).unwrap();
            let _ = wait.recv();
        }));
        is_started.recv().unwrap();
        (queue, busy, written)
    }

    fn add(queue: &MessageQueue, written: &Arc<Mutex<Vec<String>>>, text: &str) {
        let (written, text) = (written.clone(), text.to_owned());
        queue.add(Box::new(move || written.lock().unwrap().push(text)));
    }

    #[test]
    fn flush_waits_for_full_queue() {
        let (queue, busy, written) = busy_queue();
        for text in ["first", "second", "third"] {
            add(&queue, &written, text);
        }
        let slow_reader = thread::spawn(move || {
            thread::sleep(Duration::from_millis(50));
            drop(busy);
        });
        assert!(queue.flush(Duration::from_secs(10)));
        assert_eq!(*written.lock().unwrap(), ["lost 1", "first", "second"]);
        slow_reader.join().unwrap();
    }

    #[test]
    fn flush_ends_without_a_reader() {
        let (queue, busy, written) = busy_queue();
        for text in ["first", "second"] {
            add(&queue, &written, text);
        }
        let loss = flush_or_describe(&queue, Duration::from_millis(20)).unwrap();
        assert!(loss.contains("not written within 20ms") && loss.ends_with('\n'), "{loss}");
        assert!(written.lock().unwrap().is_empty());
        drop(busy);
        assert_eq!(flush_or_describe(&queue, Duration::from_secs(60)), None);
    }

    #[test]
    fn writer_writes_its_own_message_at_once() {
        let queue = Arc::new(MessageQueue::start(1, |_| {}));
        let (done, written) = mpsc::channel();
        let of_writer = queue.clone();
        queue.add(Box::new(move || {
            // The queue is full, and only this thread empties it.
            let _ = of_writer.sender.try_send(Box::new(|| {}));
            of_writer.add(Box::new(move || done.send(()).unwrap()));
        }));
        assert_eq!(written.recv_timeout(Duration::from_secs(10)), Ok(()));
        assert_eq!(queue.lost.load(Ordering::Relaxed), 0);
    }
}
