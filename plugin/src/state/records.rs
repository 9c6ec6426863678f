//! The kubelet's checkpoint entries for containers and pods. One thread reads the kubelet's files,
//! so a slow file system delays no other work.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self as blocking, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use plimsoll_core::pod::PodUid;
use plimsoll_core::requests::Inconclusive;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tracing::warn;

use crate::kubelet::checkpoint::{Checkpoints, Moment, RecordSearch};
use crate::lock;

/// Maximum time that a thread is blocked while it waits for a checkpoint entry. After a timeout, no
/// thread waits until the reader has finished another read.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// Access to the kubelet's checkpoint entries.
#[derive(Debug)]
pub struct Records {
    shared: Arc<Shared>,
    requests: mpsc::UnboundedSender<Request>,
}

/// The task that reads the kubelet's files. Run the task in a thread that may block.
#[derive(Debug)]
pub struct RecordReader {
    shared: Arc<Shared>,
    requests: mpsc::UnboundedReceiver<Request>,
}

#[derive(Debug)]
struct Shared {
    /// The cached files. The reader holds the lock while it reads the files, so all other code uses
    /// only `try_lock`.
    checkpoints: Mutex<Checkpoints>,
    /// The kubelet's directory, which contains the files. Code that holds this lock does no I/O.
    directory: Mutex<PathBuf>,
    /// Problems with the files at the last look-up. Code that holds this lock does no I/O.
    problems: Mutex<Vec<String>>,
    /// Whether a task has waited without a result, and the reader has finished no read since then.
    is_stuck: AtomicBool,
}

/// A look-up that needs to read files.
#[derive(Debug)]
struct Request {
    uid: PodUid,
    container: String,
    moment: Moment,
    reply: Reply,
}

/// Channel that carries a result to a future or to a waiting thread.
#[derive(Debug)]
enum Reply {
    Async(oneshot::Sender<RecordSearch>),
    Blocking(blocking::SyncSender<RecordSearch>),
}

impl Records {
    /// Returns a handle for look-ups and a reader. Only [`RecordReader::run`] reads the files.
    pub fn new(directory: PathBuf) -> (Self, RecordReader) {
        let (send, requests) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            checkpoints: Mutex::new(Checkpoints::new(&directory)),
            directory: Mutex::new(directory),
            problems: Mutex::default(),
            is_stuck: AtomicBool::new(false),
        });
        (Self { shared: shared.clone(), requests: send }, RecordReader { shared, requests })
    }

    /// Returns the checkpoint entries of a container and its pod if the cached files are up to
    /// date.
    pub fn fresh(&self, uid: &PodUid, container: &str, moment: Moment) -> Option<RecordSearch> {
        // The reader may hold the lock while it reads a large file.
        let checkpoints = self.shared.checkpoints.try_lock().ok()?;
        let is_current = checkpoints.directory() == *lock(&self.shared.directory);
        is_current.then(|| checkpoints.lookup_unchanged(uid, container, moment))?
    }

    /// Sets the kubelet's directory. The next look-up uses it.
    pub fn set_directory(&self, directory: PathBuf) {
        *lock(&self.shared.directory) = directory;
    }

    /// Looks up the checkpoint entries of a container and its pod. Returns [`Inconclusive`] if the
    /// reader cannot read the files within `budget`.
    pub async fn lookup(
        &self,
        uid: &PodUid,
        container: &str,
        moment: Moment,
        budget: Duration,
    ) -> RecordSearch {
        if let Some(record) = self.fresh(uid, container, moment) {
            return record;
        }
        let (send, reply) = oneshot::channel();
        self.request(uid, container, moment, Reply::Async(send));
        match timeout(budget, reply).await {
            Ok(Ok(record)) => record,
            Ok(Err(_)) => Err(Inconclusive),
            Err(_) => {
                warn!(
                    uid = uid.as_str(),
                    container,
                    "the kubelet's checkpoint was not read within {budget:?}; the plugin \
                     continues without the checkpoint and reads it later"
                );
                Err(Inconclusive)
            }
        }
    }

    /// Looks up the checkpoint entries as [`Self::lookup`] does, for a task that may block.
    pub fn wait(&self, uid: &PodUid, container: &str, moment: Moment) -> RecordSearch {
        if let Some(record) = self.fresh(uid, container, moment) {
            return record;
        }
        if self.shared.is_stuck.load(Ordering::Relaxed) {
            return Err(Inconclusive);
        }
        let (send, reply) = blocking::sync_channel(1);
        self.request(uid, container, moment, Reply::Blocking(send));
        match reply.recv_timeout(READ_TIMEOUT) {
            Ok(record) => record,
            Err(RecvTimeoutError::Disconnected) => Err(Inconclusive),
            Err(RecvTimeoutError::Timeout) => {
                if !self.shared.is_stuck.swap(true, Ordering::Relaxed) {
                    warn!(
                        "the kubelet's checkpoint was not read within {READ_TIMEOUT:?}; the plugin \
                         continues without the checkpoint until it can read it. Check whether the \
                         file system of the kubelet's directory answers"
                    );
                }
                Err(Inconclusive)
            }
        }
    }

    /// Returns the problems with the files at the last look-up.
    pub fn problems(&self) -> Vec<String> {
        lock(&self.shared.problems).clone()
    }

    fn request(&self, uid: &PodUid, container: &str, moment: Moment, reply: Reply) {
        let (uid, container) = (uid.clone(), container.to_owned());
        // If the reader has ended, the reply's sender is dropped and the result is inconclusive.
        let _ = self.requests.send(Request { uid, container, moment, reply });
    }

    /// Locks the files until the returned value is dropped. This simulates a file system that does
    /// not answer.
    #[cfg(test)]
    pub(crate) fn hold(&self) -> blocking::Sender<()> {
        let ((release, released), (tell, is_held)) = (blocking::channel(), blocking::channel());
        let shared = self.shared.clone();
        std::thread::spawn(move || {
            let _held = lock(&shared.checkpoints);
            tell.send(()).unwrap();
            // The sender never sends, so this call waits until the sender is dropped.
            let _: Result<(), _> = released.recv();
        });
        is_held.recv().unwrap();
        release
    }
}

impl RecordReader {
    /// Runs until the last [`Records`] is dropped.
    pub async fn run(mut self) {
        while let Some(request) = self.requests.recv().await {
            if !request.reply.is_closed() {
                self.read(request);
            }
        }
    }

    fn read(&self, request: Request) {
        let Request { uid, container, moment, reply } = request;
        let mut checkpoints = lock(&self.shared.checkpoints);
        let directory = lock(&self.shared.directory).clone();
        if checkpoints.directory() != directory {
            *checkpoints = Checkpoints::new(directory);
        }
        let lookup = checkpoints.lookup(&uid, &container, moment);
        let problems = checkpoints.problems();
        drop(checkpoints);
        *lock(&self.shared.problems) = problems;
        self.shared.is_stuck.store(false, Ordering::Relaxed);
        for problem in lookup.problems {
            warn!(%problem, "kubelet checkpoint");
        }
        // The receiver may have stopped waiting.
        match reply {
            Reply::Async(reply) => _ = reply.send(lookup.found),
            Reply::Blocking(reply) => _ = reply.send(lookup.found),
        }
    }
}

impl Reply {
    /// Returns true only if the receiver has stopped waiting.
    fn is_closed(&self) -> bool {
        match self {
            Self::Async(reply) => reply.is_closed(),
            Self::Blocking(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    const UID: &str = "5d0f6a4e-0000-4000-8000-000000000001";

    /// Starts a reader in its own thread, with an empty directory to read.
    fn records() -> (Arc<Records>, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let (records, reader) = Records::new(directory.path().to_owned());
        thread::spawn(|| {
            let event_loop = tokio::runtime::Builder::new_current_thread().build().unwrap();
            event_loop.block_on(reader.run());
        });
        (Arc::new(records), directory)
    }

    fn write(directory: &tempfile::TempDir) {
        let entries = format!(
            r#"{{"entries":{{"{UID}":{{"ContainerResources":{{"app":{{"requests":{{"memory":"64Mi"}}}}}}}}}}}}"#
        );
        let file = serde_json::json!({ "data": entries, "checksum": 0 }).to_string();
        std::fs::write(directory.path().join("actuated_pods_state"), file).unwrap();
    }

    fn request(recorded: RecordSearch) -> Result<Option<u64>, Inconclusive> {
        Ok(recorded?.record.and_then(|record| record.request).map(|request| request.get() >> 20))
    }

    #[tokio::test]
    async fn both_kinds_of_lookup_read_changed_files() {
        let (records, directory) = records();
        let uid = PodUid::new(UID);
        assert_eq!(request(records.wait(&uid, "app", Moment::Create)), Ok(None));
        write(&directory);
        let budget = Duration::from_secs(60);
        let found = records.lookup(&uid, "app", Moment::Create, budget).await;
        assert_eq!(request(found), Ok(Some(64)));
        assert_eq!(request(records.wait(&uid, "app", Moment::Create)), Ok(Some(64)));
    }

    #[test]
    fn another_directory_counts_at_once() {
        let (records, _empty) = records();
        let uid = PodUid::new(UID);
        assert_eq!(request(records.wait(&uid, "app", Moment::Create)), Ok(None));
        let other = tempfile::tempdir().unwrap();
        write(&other);
        records.set_directory(other.path().to_owned());
        assert_eq!(request(records.wait(&uid, "app", Moment::Create)), Ok(Some(64)));
    }

    #[tokio::test]
    async fn a_lookup_times_out_while_files_hang() {
        let (records, directory) = records();
        write(&directory);
        let uid = PodUid::new(UID);
        let release = records.hold();
        let budget = Duration::from_millis(1);
        let found = records.lookup(&uid, "app", Moment::Create, budget).await;
        assert_eq!(request(found), Err(Inconclusive));
        drop(release);
        let budget = Duration::from_secs(60);
        let found = records.lookup(&uid, "app", Moment::Create, budget).await;
        assert_eq!(request(found), Ok(Some(64)));
    }
}
