//! Supervision of the background tasks. Each task must run as long as the process. If a task ends,
//! the process ends with an error. Containers keep their values, and systemd or the kubelet starts
//! the plugin again.

use std::any::Any;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinError;

/// Starts tasks, and reports when a task ends.
#[derive(Clone, Debug)]
pub struct Supervisor {
    ends: mpsc::UnboundedSender<TaskEnd>,
    stop: watch::Sender<bool>,
}

/// Receives a message when a supervised task ends.
#[derive(Debug)]
pub struct TaskEnds(mpsc::UnboundedReceiver<TaskEnd>);

/// End of a task. Because a task must run as long as the process, its end is always a failure.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the task '{task}' ended ({cause}); expected it to run as long as the plugin")]
pub struct TaskEnd {
    /// Name of the task.
    pub task: &'static str,
    /// Cause of the task's end.
    pub cause: EndCause,
}

/// Cause of a task's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndCause {
    /// The task returned.
    Returned,
    /// The task panicked with this message.
    Panicked(String),
    /// The plugin could not create the event loop of the task's thread, for this reason.
    NoEventLoop(String),
}

impl fmt::Display for EndCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Returned => f.write_str("it returned"),
            Self::Panicked(message) => write!(f, "it panicked: {message}"),
            Self::NoEventLoop(error) => write!(f, "the thread has no event loop: {error}"),
        }
    }
}

impl Supervisor {
    /// Creates a supervisor, and the receiver of a message when one of its tasks ends.
    pub fn new() -> (Self, TaskEnds) {
        let (ends, received) = mpsc::unbounded_channel();
        (Self { ends, stop: watch::Sender::new(false) }, TaskEnds(received))
    }

    /// Starts a task on the event loop that also answers the runtime. The task must not block.
    pub fn spawn(&self, task: &'static str, future: impl Future<Output = ()> + Send + 'static) {
        let (handle, supervisor) = (tokio::spawn(self.until_stopped(future)), self.clone());
        tokio::spawn(async move {
            let cause = match handle.await.map_err(JoinError::try_into_panic) {
                Ok(()) | Err(Err(_)) => EndCause::Returned,
                Err(Ok(panic)) => EndCause::Panicked(message(&*panic)),
            };
            supervisor.ended(task, cause);
        });
    }

    /// Starts a task in a thread of its own with an event loop of its own. The task may block.
    ///
    /// # Errors
    ///
    /// Fails if the kernel cannot start another thread (`TasksMax` of the service, `pids.max` of
    /// the pod).
    pub fn spawn_thread<F: Future<Output = ()>>(
        &self,
        task: &'static str,
        make: impl FnOnce() -> F + Send + 'static,
    ) -> io::Result<()> {
        let supervisor = self.clone();
        let run = move || {
            let until_stopped = |future| supervisor.until_stopped(future);
            let event_loop = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let cause = match event_loop {
                Ok(event_loop) => {
                    // After a panic, no code uses the task's data.
                    let run = AssertUnwindSafe(|| {
                        event_loop.block_on(async { until_stopped(make()).await })
                    });
                    match catch_unwind(run) {
                        Ok(()) => EndCause::Returned,
                        Err(panic) => EndCause::Panicked(message(&*panic)),
                    }
                }
                Err(error) => EndCause::NoEventLoop(error.to_string()),
            };
            supervisor.ended(task, cause);
        };
        thread::Builder::new().name(task.to_owned()).spawn(run).map(drop)
    }

    /// Stops all tasks, and waits until they have ended.
    pub async fn stop(self, mut ends: TaskEnds) {
        self.stop.send_replace(true);
        // Each task has a copy of the sender, so the channel closes with the last task.
        drop(self);
        while ends.0.recv().await.is_some() {}
    }

    fn until_stopped<F: Future<Output = ()>>(
        &self,
        future: F,
    ) -> impl Future<Output = ()> + use<F> {
        let mut stop = self.stop.subscribe();
        async move {
            tokio::select! {
                () = future => {}
                // If the supervisor and its sender have been dropped, the task continues.
                Ok(_) = stop.wait_for(|is_stopped| *is_stopped) => {}
            }
        }
    }

    fn ended(&self, task: &'static str, cause: EndCause) {
        // Ignore a failed send, because the receiver is dropped only while the process ends.
        let _ = self.ends.send(TaskEnd { task, cause });
    }
}

impl TaskEnds {
    /// Waits until a task ends, and returns the message about its end.
    pub async fn first(&mut self) -> TaskEnd {
        match self.0.recv().await {
            Some(end) => end,
            // All senders are dropped, so no task can report its end any more.
            None => std::future::pending().await,
        }
    }
}

/// Returns the message of a panic.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    async fn first_end(start: impl FnOnce(&Supervisor)) -> String {
        let (supervisor, mut ends) = Supervisor::new();
        supervisor.spawn("healthy", pending());
        supervisor.spawn_thread("healthy thread", pending).unwrap();
        start(&supervisor);
        ends.first().await.to_string()
    }

    #[tokio::test]
    async fn each_end_names_task_and_cause() {
        let returned = first_end(|supervisor| supervisor.spawn("a", async {})).await;
        assert!(returned.starts_with("the task 'a' ended (it returned)"), "{returned}");
        let panicked = first_end(|supervisor| supervisor.spawn("b", async { panic!("why") })).await;
        assert!(panicked.starts_with("the task 'b' ended (it panicked: why)"), "{panicked}");
    }

    #[tokio::test]
    async fn each_end_of_a_thread_is_noticed() {
        let start = |supervisor: &Supervisor| supervisor.spawn_thread("c", || async {}).unwrap();
        let returned = first_end(start).await;
        assert!(returned.starts_with("the task 'c' ended (it returned)"), "{returned}");
        let start = |supervisor: &Supervisor| {
            supervisor.spawn_thread("d", || async { panic!("{}", 7) }).unwrap();
        };
        let panicked = first_end(start).await;
        assert!(panicked.starts_with("the task 'd' ended (it panicked: 7)"), "{panicked}");
    }

    #[tokio::test]
    async fn stop_waits_for_all_tasks() {
        let (supervisor, ends) = Supervisor::new();
        let alive = std::sync::Arc::new(());
        let (in_task, in_thread) = (alive.clone(), alive.clone());
        supervisor.spawn("task", async move {
            pending::<()>().await;
            drop(in_task);
        });
        let thread = move || async move {
            pending::<()>().await;
            drop(in_thread);
        };
        supervisor.spawn_thread("thread", thread).unwrap();
        supervisor.stop(ends).await;
        assert_eq!(std::sync::Arc::strong_count(&alive), 1);
    }
}
