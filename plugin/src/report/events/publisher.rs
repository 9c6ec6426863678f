//! Sender of Kubernetes Events, which repeats failed writes.

use std::env;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use k8s_openapi::api::events::v1::{Event, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use crate::report::events::credentials::{BoxError, Source};
use crate::report::events::draft::EventDraft;
use crate::report::events::failure::{Failure, excerpt, in_full};
use crate::report::events::history::{History, RateExceeded, Write};

/// Maximum age of an incident. The plugin does not send an older incident.
pub const STALE: Duration = Duration::from_secs(300);

/// Maximum time for one attempt to reach the API server.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Shortest and longest delay between two attempts to reach the API server.
const BACKOFF: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];

/// Sender of Kubernetes Events.
pub(super) struct Publisher {
    connect: Box<dyn Fn() -> BoxFuture<'static, Result<Client, BoxError>> + Send>,
    instance: String,
    /// Connection to the API server. After a failure of the connection, the next attempt reads the
    /// credentials again, because they may have changed.
    client: Option<Client>,
    history: History,
    is_lost: bool,
    /// Whether the API server has accepted an Event since the connection last failed. If so, status
    /// 403 is permanent; the cause may be a quota or a namespace outside the plugin's role.
    is_proven: bool,
    /// Delays between attempts, which grow until an attempt succeeds.
    backoff: ExponentialBackoff,
    dropped: Counter,
}

fn backoff() -> ExponentialBackoff {
    let [least, most] = BACKOFF;
    let backoff = ExponentialBuilder::default()
        .with_min_delay(least)
        .with_max_delay(most)
        .without_max_times();
    backoff.with_jitter().build()
}

impl Publisher {
    pub(super) fn new(source: Source, dropped: Counter) -> Self {
        let host = || rustix::system::uname().nodename().to_string_lossy().into_owned();
        let node = env::var("NODE_NAME").ok().filter(|name| !name.is_empty()).unwrap_or_else(host);
        let instance = node.chars().take(128).collect();
        let connect = Box::new(move || source.clone().connect().boxed());
        Self {
            connect,
            instance,
            client: None,
            history: History::new(Instant::now()),
            is_lost: false,
            is_proven: false,
            backoff: backoff(),
            dropped,
        }
    }

    /// Sends incidents until the queue is closed and empty.
    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<EventDraft>) {
        while let Some(draft) = queue.recv().await {
            // A stale incident must not use up the rate limit of new incidents.
            if draft.since.elapsed() >= STALE {
                self.dropped.inc();
                continue;
            }
            let written = match self.history.decide(&draft, Instant::now()) {
                Ok(None) => continue,
                Ok(Some(write)) => self.write(&draft, write, &queue).await,
                Err(RateExceeded) => false,
            };
            if !written {
                self.dropped.inc();
            }
        }
    }

    /// Writes to the API server, with retries. Returns whether the write succeeded.
    async fn write(
        &mut self,
        draft: &EventDraft,
        mut write: Write,
        queue: &mpsc::Receiver<EventDraft>,
    ) -> bool {
        // A closed queue means that the credentials have changed or are gone, so stop retrying.
        while draft.since.elapsed() < STALE && !queue.is_closed() {
            let failure = match timeout(REQUEST_TIMEOUT, self.attempt(draft, &write)).await {
                Ok(Ok(())) => {
                    if std::mem::take(&mut self.is_lost) {
                        info!("Kubernetes Events reach the API server again");
                    }
                    self.is_proven = true;
                    self.backoff = backoff();
                    return true;
                }
                Ok(Err(failure)) => failure,
                Err(_) => Failure::Later(format!(
                    "the API server or the token program did not answer within {REQUEST_TIMEOUT:?}"
                )),
            };
            let failure = match failure {
                Failure::Forbidden(why) if self.is_proven => Failure::Refused(why),
                Failure::Forbidden(why) => Failure::Later(why),
                failure => failure,
            };
            match failure {
                Failure::Gone if write != Write::Create => {
                    self.history.forget(draft);
                    match self.history.decide(draft, Instant::now()) {
                        Ok(Some(again)) => write = again,
                        _ => return false,
                    }
                }
                Failure::Gone => break,
                Failure::Conflict => self.wait().await,
                Failure::Refused(why) => {
                    let (pod, reason) =
                        (format!("{}/{}", draft.namespace, draft.pod), draft.kind());
                    debug!(pod, %reason, "the API server refused an Event: {}", excerpt(&why));
                    break;
                }
                Failure::Later(why) | Failure::Forbidden(why) => {
                    self.client = None;
                    self.is_proven = false;
                    if !std::mem::replace(&mut self.is_lost, true) {
                        warn!(
                            "cannot write Kubernetes Events; the plugin tries again while Events \
                             wait: {}",
                            excerpt(&why)
                        );
                    }
                    self.wait().await;
                }
            }
        }
        self.history.forget(draft);
        false
    }

    async fn attempt(&mut self, draft: &EventDraft, write: &Write) -> Result<(), Failure> {
        let client = match &self.client {
            Some(client) => client,
            None => {
                let made = (self.connect)()
                    .await
                    .map_err(|error| Failure::Later(in_full(error.as_ref())))?;
                self.client.insert(made)
            }
        };
        let events = Api::<Event>::namespaced(client.clone(), &draft.namespace);
        match write {
            Write::Create => {
                let event = draft.event(&self.instance);
                match events.create(&PostParams::default(), &event).await {
                    // An earlier attempt created the Event, but the API server's answer was lost.
                    Err(kube::Error::Api(status)) if status.code == 409 => {
                        if draft.has_stable_name() && !draft.is_once() {
                            let count = existing_count(&events, &draft.name()).await?;
                            self.history.set_count(draft, count);
                        }
                    }
                    result => _ = result?,
                }
            }
            Write::Count { name, count } => {
                let series = EventSeries { count: *count, last_observed_time: MicroTime(draft.at) };
                let patch = serde_json::json!({ "series": series });
                // The patch names no resource version, so the API server applies each attempt to
                // the newest version of the Event.
                events.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
            }
        }
        Ok(())
    }

    /// Waits before the next attempt, longer after each failure.
    async fn wait(&mut self) {
        let most = BACKOFF[1];
        sleep(self.backoff.next().map_or(most, |wait| wait.min(most))).await;
    }
}

/// Returns how many incidents an existing Event counts.
///
/// The plugin's role allows `create` and `patch`, but not `get`. The API server answers a patch
/// without changes with the Event.
async fn existing_count(events: &Api<Event>, name: &str) -> Result<i32, Failure> {
    let unchanged = Patch::Merge(serde_json::json!({}));
    match events.patch(name, &PatchParams::default(), &unchanged).await {
        Ok(event) => Ok(event.series.map_or(1, |series| series.count)),
        // Another client removed the Event after the attempt to create it.
        Err(kube::Error::Api(status)) if status.code == 404 => Err(Failure::Conflict),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};

    use http_body_util::{BodyExt as _, Full};
    use hyper::body::Bytes as Body;
    use hyper::{Method, Response};
    use plimsoll_core::incident::Incident;
    use serde_json::{Value, json};

    use super::*;
    use crate::report::events::QUEUE;
    use crate::report::events::fixtures::{beyond_node, draft, rejected};

    /// Requests to the API server: method, path and body.
    type Requests = Arc<Mutex<Vec<(Method, String, Value)>>>;

    /// Returns a publisher whose API server answers with these status codes, in this order. Code 0
    /// means that the API server does not answer. Also returns the requests and the number of
    /// connections.
    fn publisher(codes: &'static [u16]) -> (Publisher, Requests, Arc<AtomicUsize>) {
        let (requests, connections) = (Requests::default(), Arc::<AtomicUsize>::default());
        let mut publisher = Publisher::new(Source::InCluster, Counter::default());
        let (asked, connected) = (requests.clone(), connections.clone());
        publisher.connect = Box::new(move || {
            connected.fetch_add(1, Ordering::Relaxed);
            let asked = asked.clone();
            let service = tower::service_fn(move |request: hyper::Request<kube::client::Body>| {
                let asked = asked.clone();
                async move {
                    let (parts, body) = request.into_parts();
                    let body = body.collect().await.unwrap().to_bytes();
                    let body: Value = serde_json::from_slice(&body).unwrap();
                    let number = asked.lock().unwrap().len();
                    asked.lock().unwrap().push((
                        parts.method,
                        parts.uri.path().to_owned(),
                        body.clone(),
                    ));
                    let code = codes[number];
                    if code == 0 {
                        std::future::pending::<()>().await;
                    }
                    let cause = json!({ "causes": [{ "reason": "NamespaceTerminating" }] });
                    let status = |code: u16| json!({ "kind": "Status", "code": code, "message": "no\u{1b}[2J" });
                    let (code, answer) = match code {
                        200 => (200, json!({ "metadata": {} , "eventTime": null })),
                        // An Event that counts five incidents.
                        1200 => {
                            let last = "2026-01-01T00:00:00.000000Z";
                            let series = json!({ "count": 5, "lastObservedTime": last });
                            (200, json!({ "metadata": {}, "eventTime": null, "series": series }))
                        }
                        // The status 403 for a namespace that is being deleted.
                        1403 => (
                            403,
                            json!({ "kind": "Status", "code": 403, "message": "ends", "details": cause }),
                        ),
                        code => (code, status(code)),
                    };
                    let answer = Full::new(Body::from(answer.to_string()));
                    Ok::<_, Infallible>(Response::builder().status(code).body(answer).unwrap())
                }
            });
            let client = Client::new(service, "default");
            async move { Ok(client) }.boxed()
        });
        (publisher, requests, connections)
    }

    async fn publish(publisher: Publisher, times: usize) -> u64 {
        publish_all(publisher, &rejected(100), times).await
    }

    async fn publish_all(publisher: Publisher, incident: &Incident, times: usize) -> u64 {
        let dropped = publisher.dropped.clone();
        let (sender, queue) = mpsc::channel(QUEUE);
        let running = tokio::spawn(publisher.run(queue));
        for _ in 0..times {
            sender.send(draft("u", "app", incident)).await.unwrap();
        }
        while sender.capacity() < QUEUE {
            sleep(Duration::from_millis(1)).await;
        }
        // Wait until the plugin can no longer retry the last incident.
        sleep(2 * STALE).await;
        drop(sender);
        running.await.unwrap();
        dropped.get()
    }

    #[tokio::test(start_paused = true)]
    async fn a_repeat_patches_the_series_count() {
        let (publisher, requests, connections) = publisher(&[200, 200, 200]);
        assert_eq!(publish(publisher, 3).await, 0);
        let requests = requests.lock().unwrap();
        let [(create, path, event), (patch, of, second), (_, _, third)] = &requests[..] else {
            panic!("{requests:?}")
        };
        assert_eq!(
            (create, &**path),
            (&Method::POST, "/apis/events.k8s.io/v1/namespaces/default/events")
        );
        let name = event["metadata"]["name"].as_str().unwrap();
        assert_eq!((patch, of), (&Method::PATCH, &format!("{path}/{name}")));
        assert_eq!((&second["series"]["count"], &third["series"]["count"]), (&json!(2), &json!(3)));
        assert_eq!(connections.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn each_retry_reconnects_with_the_same_event() {
        let (publisher, requests, connections) = publisher(&[503, 0, 401, 403, 429, 409]);
        // The final 409 means that an earlier attempt created the Event, but the API server's
        // answer was lost.
        assert_eq!(publish(publisher, 1).await, 0);
        let requests = requests.lock().unwrap();
        assert_eq!((requests.len(), connections.load(Ordering::Relaxed)), (6, 6));
        assert!(
            requests.iter().all(|(_, _, event)| *event == requests[0].2),
            "the same Event each time"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_permanently_refused_event_is_dropped() {
        for code in [&[1403, 200][..], &[422, 200], &[404, 200], &[413, 200]] {
            let (publisher, requests, _) = publisher(code);
            assert_eq!(publish(publisher, 2).await, 1, "{code:?}");
            let requests = requests.lock().unwrap();
            let methods: Vec<_> = requests.iter().map(|(method, ..)| method).collect();
            assert_eq!(methods, [Method::POST, Method::POST], "{code:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_403_after_success_is_not_retried() {
        let (publisher, requests, connections) = publisher(&[200, 403, 200]);
        assert_eq!(publish(publisher, 3).await, 1);
        let methods: Vec<_> =
            requests.lock().unwrap().iter().map(|(method, ..)| method.clone()).collect();
        assert_eq!(methods, [Method::POST, Method::PATCH, Method::POST]);
        assert_eq!(connections.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn queued_events_share_one_retry_backoff() {
        let (publisher, requests, _) = publisher(&[500; 200]);
        let dropped = publisher.dropped.clone();
        let (sender, queue) = mpsc::channel(QUEUE);
        let running = tokio::spawn(publisher.run(queue));
        for number in 0..9 {
            sender.send(draft(&format!("u{number}"), "app", &rejected(100))).await.unwrap();
        }
        sleep(2 * STALE).await;
        let attempts = requests.lock().unwrap().len();
        assert!((6..20).contains(&attempts), "{attempts} attempts within {STALE:?}");
        assert_eq!(dropped.get(), 9);
        drop(sender);
        running.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_removed_event_is_created_again() {
        let (publisher, requests, _) = publisher(&[200, 404, 200]);
        assert_eq!(publish(publisher, 2).await, 0);
        let methods: Vec<_> =
            requests.lock().unwrap().iter().map(|(method, ..)| method.clone()).collect();
        assert_eq!(methods, [Method::POST, Method::PATCH, Method::POST]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stale_event_is_dropped_after_retries() {
        let (publisher, requests, _) = publisher(&[500; 100]);
        let start = Instant::now();
        assert_eq!(publish(publisher, 1).await, 1);
        assert!(start.elapsed() >= STALE);
        let attempts = requests.lock().unwrap().len();
        assert!((6..20).contains(&attempts), "{attempts} attempts within {STALE:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn conflicting_patch_of_count_is_tried_again() {
        let (publisher, requests, connections) = publisher(&[200, 409, 200]);
        assert_eq!(publish(publisher, 2).await, 0);
        let requests = requests.lock().unwrap();
        let [_, (first, _, refused), (second, _, accepted)] = &requests[..] else {
            panic!("{requests:?}")
        };
        assert_eq!((first, second), (&Method::PATCH, &Method::PATCH));
        assert_eq!((refused, &accepted["series"]["count"]), (accepted, &json!(2)));
        assert_eq!(connections.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn existing_event_keeps_its_count() {
        // The Event already exists and counts five incidents, as after a restart of the plugin.
        let (publisher, requests, _) = publisher(&[409, 1200, 200]);
        assert_eq!(publish_all(publisher, &beyond_node(), 2).await, 0);
        let requests = requests.lock().unwrap();
        let [_, (_, _, read), (_, _, counted)] = &requests[..] else { panic!("{requests:?}") };
        assert_eq!((read, &counted["series"]["count"]), (&json!({}), &json!(6)));
    }
}
