//! Queue of incidents for the thread that sends Kubernetes Events.

use std::path::Path;
use std::sync::Mutex;
use std::{io, thread};

use plimsoll_core::incident::{Incident, Subject};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::lock;
use crate::report::events::credentials::Source;
use crate::report::events::draft::EventDraft;
use crate::report::events::publisher::Publisher;
use crate::report::mode::ReportMode;

/// Maximum number of unsent incidents in the queue.
pub const QUEUE: usize = 256;

/// Queue of incidents for the thread that sends Kubernetes Events, with the credentials.
#[derive(Debug, Default)]
pub struct Events(Mutex<EventQueue>);

#[derive(Debug, Default)]
struct EventQueue {
    is_known: bool,
    source: Option<Source>,
    queue: Option<mpsc::Sender<EventDraft>>,
}

impl Events {
    /// Applies the credentials: the kubeconfig file, or else the service account of the plugin's
    /// pod. If neither exists, the plugin writes no Events. If the credentials change, the plugin
    /// drops the queued incidents.
    pub fn configure(&self, kubeconfig: Option<&Path>, dropped: &Counter) {
        self.use_source(Source::find(kubeconfig), dropped);
    }

    fn use_source(&self, source: Option<Source>, dropped: &Counter) {
        let mut state = lock(&self.0);
        if state.is_known && state.source == source {
            return;
        }
        *state = EventQueue { is_known: true, source: source.clone(), queue: None };
        let Some(source) = source else {
            info!("no kubeconfig is configured, so the plugin writes no Kubernetes Events");
            return;
        };
        let (sender, queue) = mpsc::channel(QUEUE);
        let credentials = source.to_string();
        match start(source, queue, dropped.clone()) {
            Ok(()) => {
                state.queue = Some(sender);
                info!("the plugin writes Kubernetes Events with the credentials of {credentials}");
            }
            Err(error) => warn!(%error, "cannot start the thread that writes Kubernetes Events; \
                                         allow the plugin more threads"),
        }
    }

    /// Queues an incident that concerns a pod's owner. Never blocks.
    pub(crate) fn enqueue(
        &self,
        subject: &Subject,
        what: &Incident,
        mode: ReportMode,
        dropped: &Counter,
    ) {
        let state = lock(&self.0);
        let Some(queue) = &state.queue else { return };
        if let Some(draft) = EventDraft::of(subject, what, mode)
            && queue.try_send(draft).is_err()
        {
            dropped.inc();
        }
    }
}

fn start(source: Source, queue: mpsc::Receiver<EventDraft>, dropped: Counter) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .build()?;
    let publisher = Publisher::new(source, dropped);
    thread::Builder::new()
        .name("events".to_owned())
        .spawn(move || runtime.block_on(publisher.run(queue)))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::events::fixtures::{rejected, subject};

    #[test]
    fn incidents_beyond_capacity_are_dropped_and_counted() {
        let (sender, mut queue) = mpsc::channel(QUEUE);
        let events =
            Events(Mutex::new(EventQueue { is_known: true, source: None, queue: Some(sender) }));
        let dropped = Counter::default();
        for _ in 0..QUEUE + 7 {
            events.enqueue(
                &subject("default/web", "u", "app"),
                &rejected(100),
                ReportMode::Done,
                &dropped,
            );
        }
        assert_eq!(dropped.get(), 7);
        assert_eq!(std::iter::from_fn(|| queue.try_recv().ok()).count(), QUEUE);
    }

    #[test]
    fn without_credentials_nothing_is_kept() {
        let (events, dropped) = (Events::default(), Counter::default());
        events.enqueue(
            &subject("default/web", "u", "app"),
            &rejected(100),
            ReportMode::Done,
            &dropped,
        );
        events.use_source(None, &dropped);
        events.enqueue(
            &subject("default/web", "u", "app"),
            &rejected(100),
            ReportMode::Done,
            &dropped,
        );
        assert_eq!(dropped.get(), 0);
        assert!(lock(&events.0).queue.is_none());
    }

    #[tokio::test]
    async fn only_changed_credentials_replace_the_queue() {
        let (events, dropped) = (Events::default(), Counter::default());
        let queue = || lock(&events.0).queue.clone().unwrap();
        let source = |path: &str| Some(Source::Kubeconfig(path.into()));
        events.use_source(source("/none/a"), &dropped);
        let first = queue();
        events.use_source(source("/none/a"), &dropped);
        assert!(queue().same_channel(&first));
        events.use_source(source("/none/b"), &dropped);
        assert!(!queue().same_channel(&first));
        let second = queue().downgrade();
        events.use_source(None, &dropped);
        assert!(
            lock(&events.0).queue.is_none() && second.upgrade().is_none(),
            "no thread adds an entry to the queue"
        );
    }
}
