//! Kubernetes Events about pods, which the plugin writes to the API server for the pod's owner.
//!
//! No caller waits for the API server. `Events::put` adds an incident to a queue of [`QUEUE`]
//! entries. An incident that does not fit is dropped and counted.
//!
//! A separate thread sends the incidents and exists only with credentials. Name resolution, TLS
//! handshakes and token programs therefore never delay an answer to the runtime. The thread ends
//! with the process, even if incidents are still unsent.
//!
//! The same incident of the same container within [`LATELY`] is one Event, whose series counts the
//! repetitions. The thread retries an unreachable API server with growing delays. It stops when
//! every incident is older than [`STALE`].

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;
use std::{env, fmt, io, thread};

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::{Event, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::Status;
use kube::{Client, Config};
use plimsoll_core::incident::{Identity, Incident, IncidentKind, Subject};
use plimsoll_core::units::harmless;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use crate::lock;
use crate::report::{Deed, LATELY};

/// Reporting controller in Events. The API server requires a qualified name.
const CONTROLLER: &str = "plimsoll";

/// Maximum number of incidents that wait to be sent.
pub const QUEUE: usize = 256;

/// Maximum age of an incident that is still sent.
pub const STALE: Duration = Duration::from_secs(300);

/// Maximum time for one attempt to reach the API server.
const PATIENCE: Duration = Duration::from_secs(10);

/// Shortest and longest delay between two attempts to reach the API server.
const BACKOFF: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];

/// Rate limits per pod and for the node: a burst, then one write per interval.
const OF_A_POD: Rate = Rate { burst: 10.0, every: Duration::from_secs(60) };
const OF_THE_NODE: Rate = Rate { burst: 50.0, every: Duration::from_secs(1) };

/// Maximum number of sent Events that are remembered to count repeated incidents.
const REMEMBERED: usize = 1024;

/// Maximum length of a note in bytes. Source: Kubernetes `pkg/apis/core/validation/events.go`.
const NOTE: usize = 1024;

/// Returns the Event's action for an incident that concerns the pod's owner. `None` is for
/// incidents that concern only the node, which are in the plugin's log.
///
/// The Event's reason is the [`IncidentKind`], in observe mode with the prefix `Observed`. The Event's type
/// is Warning if the incident requires action.
pub const fn action(kind: IncidentKind) -> Option<&'static str> {
    match kind {
        IncidentKind::CutRejected
        | IncidentKind::CutDeferred
        | IncidentKind::CutGivenUp
        | IncidentKind::CutApplied
        | IncidentKind::NotResized
        | IncidentKind::PodRaised => Some("Resize"),
        IncidentKind::Rescued | IncidentKind::AtCeiling => Some("Rescue"),
        IncidentKind::BeyondNode | IncidentKind::Overcommitted => Some("Admit"),
        IncidentKind::Released | IncidentKind::PutBack => Some("Throttle"),
        // The kubelet itself reports kills.
        IncidentKind::Killed
        | IncidentKind::Repaired
        | IncidentKind::Contended
        | IncidentKind::Guarded
        | IncidentKind::GuardWaits
        | IncidentKind::Unguarded => None,
    }
}

/// Source of the API server credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    /// Kubeconfig file that the configuration names. The plugin never uses `~/.kube/config`,
    /// because that file may belong to an administrator.
    Kubeconfig(PathBuf),
    /// Service account of the pod that the plugin runs in.
    InCluster,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kubeconfig(path) => path.display().fmt(f),
            Self::InCluster => f.write_str("the pod's service account"),
        }
    }
}

impl Source {
    fn find(kubeconfig: Option<&Path>) -> Option<Self> {
        match kubeconfig {
            Some(path) => Some(Self::Kubeconfig(path.to_owned())),
            None => env::var_os("KUBERNETES_SERVICE_HOST").map(|_| Self::InCluster),
        }
    }

    async fn connect(self) -> Result<Client, BoxError> {
        let mut config = match self {
            Self::Kubeconfig(path) => {
                let kubeconfig = Kubeconfig::read_from(path)?;
                let clusters =
                    kubeconfig.clusters.iter().filter_map(|cluster| cluster.cluster.as_ref());
                let has_proxy = clusters.into_iter().any(|cluster| cluster.proxy_url.is_some());
                let mut config =
                    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                        .await?;
                // Use only a proxy from the kubeconfig. A proxy from the environment (HTTPS_PROXY)
                // is not meant for the API server of the node's own cluster.
                config.proxy_url = config.proxy_url.filter(|_| has_proxy);
                config
            }
            Self::InCluster => {
                let mut config = Config::incluster()?;
                config.proxy_url = None;
                config
            }
        };
        // `Publisher::write` decides on retries.
        config.default_retry = false;
        // `Client::try_from` runs the token program of the kubeconfig and blocks until the program
        // ends. Use the blocking pool, whose single thread runs one program at a time. A token
        // program that hangs must not stop the timeout that reports the failure.
        Ok(tokio::task::spawn_blocking(move || Client::try_from(config)).await??)
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Entry point for Kubernetes Events: the credentials and the queue to the sending thread.
#[derive(Debug, Default)]
pub struct Events(Mutex<Way>);

#[derive(Debug, Default)]
struct Way {
    is_known: bool,
    source: Option<Source>,
    queue: Option<mpsc::Sender<Told>>,
}

impl Events {
    /// Applies the credentials: the kubeconfig file, or else the service account of the plugin's
    /// pod. Without either, the plugin writes no Events. A change of credentials drops the queued
    /// incidents.
    pub fn configure(&self, kubeconfig: Option<&Path>, dropped: &Counter) {
        self.follow(Source::find(kubeconfig), dropped);
    }

    fn follow(&self, source: Option<Source>, dropped: &Counter) {
        let mut way = lock(&self.0);
        if way.is_known && way.source == source {
            return;
        }
        *way = Way { is_known: true, source: source.clone(), queue: None };
        let Some(source) = source else {
            info!("no kubeconfig is configured: there are no Kubernetes Events");
            return;
        };
        let (sender, queue) = mpsc::channel(QUEUE);
        let credentials = source.to_string();
        match start(source, queue, dropped.clone()) {
            Ok(()) => {
                way.queue = Some(sender);
                info!("Kubernetes Events are written with the credentials of {credentials}");
            }
            Err(error) => warn!(%error, "cannot start a thread: there are no Kubernetes Events"),
        }
    }

    /// Queues an incident that concerns a pod's owner. Never blocks.
    pub(crate) fn put(&self, subject: &Subject, what: &Incident, deed: Deed, dropped: &Counter) {
        let way = lock(&self.0);
        let Some(queue) = &way.queue else { return };
        if let Some(told) = Told::of(subject, what, deed)
            && queue.try_send(told).is_err()
        {
            dropped.inc();
        }
    }
}

fn start(source: Source, queue: mpsc::Receiver<Told>, dropped: Counter) -> io::Result<()> {
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

/// An incident with the data that its Event needs. Long names cannot make it large, because
/// [`Told::of`] rejects them.
#[derive(Clone, Debug)]
struct Told {
    namespace: String,
    pod: String,
    uid: String,
    /// Name of the container; `None` if the incident concerns the pod itself.
    container: Option<String>,
    identity: Identity,
    deed: Deed,
    action: &'static str,
    is_warning: bool,
    /// Desired value. The note of an Event never changes, so another desired value needs another
    /// Event.
    desired: Option<String>,
    note: String,
    at: Timestamp,
    since: Instant,
}

impl Told {
    /// Returns the data for an Event. `None` if the incident does not concern the pod's owner. Also
    /// `None` if Kubernetes allows no pod with these names, since no object for the Event can
    /// exist.
    fn of(subject: &Subject, what: &Incident, deed: Deed) -> Option<Self> {
        let action = action(what.kind())?;
        let (namespace, pod) = subject.pod.as_ref()?.split_once('/')?;
        let (uid, container) = (subject.uid.as_ref()?.as_str(), &subject.container);
        let is_possible = is_label(namespace)
            && container.as_deref().is_none_or(is_label)
            && pod.len() <= 253
            && pod.split('.').all(is_part)
            // The UID of a static pod is a digest, which is a label like any UUID.
            && is_label(uid);
        is_possible.then(|| Self {
            namespace: namespace.to_owned(),
            pod: pod.to_owned(),
            uid: uid.to_owned(),
            container: container.clone(),
            identity: what.identity(),
            deed,
            action,
            is_warning: what.is_warning(),
            desired: match what.kind() {
                // `memory.high` changes in several steps, which are one Event.
                IncidentKind::Released | IncidentKind::PutBack => None,
                _ => what.fields().desired.or(what.fields().limit),
            },
            note: note(&match container {
                Some(container) => format!("container {container}: {}{what}", deed.prefix()),
                None => format!("pod: {}{what}", deed.prefix()),
            }),
            at: Timestamp::now(),
            since: Instant::now(),
        })
    }

    fn kind(&self) -> IncidentKind {
        self.identity.kind()
    }

    /// Returns whether both incidents belong to the same Event. A pod has one `Overcommitted` Event
    /// for all its containers.
    fn is_like(&self, other: &Self) -> bool {
        let is_once = self.kind() == IncidentKind::Overcommitted;
        self.uid == other.uid
            && self.identity == other.identity
            && self.deed == other.deed
            && (is_once || (self.container == other.container && self.desired == other.desired))
    }

    /// Returns the kind, with a prefix if observe mode left the action undone.
    fn reason(&self) -> String {
        match self.deed {
            Deed::Done => self.kind().to_string(),
            Deed::Planned => format!("Observed{}", self.kind()),
        }
    }

    fn event(&self, instance: &str) -> Event {
        Event {
            metadata: ObjectMeta {
                namespace: Some(self.namespace.clone()),
                name: Some(self.name()),
                ..ObjectMeta::default()
            },
            // For a static pod, this is the UID of the manifest file. The kubelet's own Events have
            // the same UID. kubectl finds Events by this UID.
            regarding: Some(ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                namespace: Some(self.namespace.clone()),
                name: Some(self.pod.clone()),
                uid: Some(self.uid.clone()),
                field_path: self
                    .container
                    .as_ref()
                    .map(|name| format!("spec.containers{{{name}}}")),
                ..ObjectReference::default()
            }),
            event_time: Some(MicroTime(self.at)),
            type_: Some(if self.is_warning { "Warning" } else { "Normal" }.to_owned()),
            reason: Some(self.reason()),
            action: Some(self.action.to_owned()),
            note: Some(self.note.clone()),
            reporting_controller: Some(CONTROLLER.to_owned()),
            reporting_instance: Some(instance.to_owned()),
            ..Event::default()
        }
    }

    /// Returns the Event's name from pod and time, as client-go does.
    ///
    /// A restarted plugin reports `Overcommitted` and `BeyondNode` again. Their names contain a
    /// hash instead of the time, so the API server detects the duplicate.
    fn name(&self) -> String {
        let suffix = match self.kind() {
            IncidentKind::Overcommitted | IncidentKind::BeyondNode => {
                let identity = format!("{}/{}/{}", self.uid, self.kind(), self.note);
                format!(".{:016x}", stable_hash(identity.as_bytes()))
            }
            _ => format!(".{:x}", self.at.as_nanosecond()),
        };
        let pod: String = self.pod.chars().take(253 - suffix.len()).collect();
        format!("{}{suffix}", pod.trim_end_matches(['.', '-']))
    }
}

/// Returns the FNV-1a hash. Unlike the standard library's hash, it is the same in every version of
/// the plugin.
fn stable_hash(bytes: &[u8]) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    bytes.iter().fold(OFFSET, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME))
}

/// Returns whether the text is a valid part of a name (RFC 1123) of at most 253 bytes.
fn is_part(text: &str) -> bool {
    let is_end = |byte: Option<&u8>| {
        byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    let bytes = text.as_bytes();
    bytes.len() <= 253
        && is_end(bytes.first())
        && is_end(bytes.last())
        && bytes.iter().all(|byte| is_end(Some(byte)) || *byte == b'-')
}

fn is_label(text: &str) -> bool {
    text.len() <= 63 && is_part(text)
}

/// Returns the text on one line without terminal control characters, shortened to [`NOTE`].
fn note(text: &str) -> String {
    let mut note = harmless(text, NOTE, &['\'', '"']);
    if note.len() > NOTE {
        let mut end = NOTE - '…'.len_utf8();
        while !note.is_char_boundary(end) {
            end -= 1;
        }
        note.truncate(end);
        note.push('…');
    }
    note
}

/// Rate limit: a burst, then one write per interval.
#[derive(Clone, Copy, Debug)]
struct Rate {
    burst: f64,
    every: Duration,
}

/// Token bucket: the unused part of a [`Rate`].
#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn full(rate: Rate, now: Instant) -> Self {
        Self { tokens: rate.burst, at: now }
    }

    fn refill(&mut self, rate: Rate, now: Instant) {
        let more = now.saturating_duration_since(self.at).div_duration_f64(rate.every);
        *self = Self { tokens: rate.burst.min(self.tokens + more), at: now };
    }
}

/// Remaining writes of the node and of each pod.
#[derive(Debug)]
struct Limits {
    node: Bucket,
    /// Buckets by pod UID. Full buckets are left out.
    pods: HashMap<String, Bucket>,
}

impl Limits {
    fn new(now: Instant) -> Self {
        Self { node: Bucket::full(OF_THE_NODE, now), pods: HashMap::new() }
    }

    fn allow(&mut self, uid: &str, now: Instant) -> bool {
        self.pods.retain(|_, pod| {
            pod.refill(OF_A_POD, now);
            pod.tokens < OF_A_POD.burst
        });
        self.node.refill(OF_THE_NODE, now);
        let pod = self.pods.entry(uid.to_owned()).or_insert(Bucket::full(OF_A_POD, now));
        let is_allowed = pod.tokens >= 1.0 && self.node.tokens >= 1.0;
        if is_allowed {
            pod.tokens -= 1.0;
            self.node.tokens -= 1.0;
        }
        is_allowed
    }
}

/// An Event that was sent.
#[derive(Debug)]
struct Sent {
    told: Told,
    /// Name of the Event.
    name: String,
    /// Time of the last incident.
    last: Instant,
    /// Number of incidents.
    count: i32,
}

/// A write to the API server.
#[derive(Clone, Debug, PartialEq)]
enum Write {
    Create,
    /// Sets the number of incidents of an existing Event.
    Count {
        name: String,
        count: i32,
    },
}

/// Events that were sent, and the remaining rate limits.
#[derive(Debug)]
struct History {
    limits: Limits,
    /// Oldest first.
    sent: VecDeque<Sent>,
}

impl History {
    fn new(now: Instant) -> Self {
        Self { limits: Limits::new(now), sent: VecDeque::new() }
    }

    /// Decides what to write for an incident; `None` is nothing.
    ///
    /// # Errors
    ///
    /// [`TooMuch`] if a new Event would exceed the rate of the pod or the node. A repeated incident
    /// is always counted, and the next write of its Event contains the count.
    fn judge(&mut self, told: &Told, now: Instant) -> Result<Option<Write>, TooMuch> {
        let is_late =
            |sent: &Sent| now.saturating_duration_since(sent.last) <= Duration::from_secs(LATELY);
        self.sent.retain(|sent| is_late(sent) || sent.told.kind() == IncidentKind::Overcommitted);
        match self
            .sent
            .iter()
            .position(|sent| sent.told.is_like(told))
            .and_then(|at| self.sent.remove(at))
        {
            Some(sent) if told.kind() == IncidentKind::Overcommitted => {
                self.sent.push_back(sent);
                Ok(None)
            }
            Some(before) => {
                let (count, name) = (before.count.saturating_add(1), before.name.clone());
                self.sent.push_back(Sent { last: now, count, ..before });
                Ok(self.limits.allow(&told.uid, now).then_some(Write::Count { name, count }))
            }
            None if !self.limits.allow(&told.uid, now) => Err(TooMuch),
            None => {
                if self.sent.len() == REMEMBERED {
                    self.sent.pop_front();
                }
                self.sent.push_back(Sent {
                    told: told.clone(),
                    name: told.name(),
                    last: now,
                    count: 1,
                });
                Ok(Some(Write::Create))
            }
        }
    }

    fn forget(&mut self, told: &Told) {
        self.sent.retain(|sent| !sent.told.is_like(told));
    }
}

/// The rate limit of the pod or the node is exceeded.
#[derive(Debug, PartialEq)]
struct TooMuch;

/// Reason why an attempt failed.
#[derive(Debug)]
enum Failure {
    /// The API server refuses this Event, but may accept other Events.
    Refused(String),
    /// The Event to count no longer exists.
    Gone,
    /// A later attempt may succeed.
    Later(String),
    /// 403. A later attempt may succeed if the API server has not loaded its accounts yet.
    Forbidden(String),
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        let kube::Error::Api(status) = error else { return Self::Later(in_full(&error)) };
        let Status { code, message, details, .. } = *status;
        let causes = details.map(|details| details.causes).unwrap_or_default();
        match code {
            404 => Self::Gone,
            403 if causes.iter().any(|cause| cause.reason == "NamespaceTerminating") => {
                Self::Refused(message)
            }
            // An API server that has just started may not have loaded its accounts and roles yet.
            403 => Self::Forbidden(message),
            401 | 429 | 500.. => Self::Later(message),
            _ => Self::Refused(message),
        }
    }
}

/// Returns the error text with the texts of all its causes.
fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// Sender of the Events.
struct Publisher {
    connect: Box<dyn Fn() -> BoxFuture<'static, Result<Client, BoxError>> + Send>,
    instance: String,
    /// Connection to the API server. Dropped before every delayed retry, because the credentials
    /// may have changed.
    client: Option<Client>,
    history: History,
    is_lost: bool,
    /// The API server has accepted an Event since the connection last failed. A 403 is then
    /// permanent, for example a quota or a namespace outside of the role.
    is_proven: bool,
    /// Delays between attempts since the last success.
    waits: ExponentialBackoff,
    dropped: Counter,
}

fn waits() -> ExponentialBackoff {
    let [least, most] = BACKOFF;
    let waits = ExponentialBuilder::default()
        .with_min_delay(least)
        .with_max_delay(most)
        .without_max_times();
    waits.with_jitter().build()
}

impl Publisher {
    fn new(source: Source, dropped: Counter) -> Self {
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
            waits: waits(),
            dropped,
        }
    }

    /// Sends incidents until the queue is closed and empty.
    async fn run(mut self, mut queue: mpsc::Receiver<Told>) {
        while let Some(told) = queue.recv().await {
            // A stale incident must not use up the rate limit of new incidents.
            if told.since.elapsed() >= STALE {
                self.dropped.inc();
                continue;
            }
            let written = match self.history.judge(&told, Instant::now()) {
                Ok(None) => continue,
                Ok(Some(write)) => self.write(&told, write, &queue).await,
                Err(TooMuch) => false,
            };
            if !written {
                self.dropped.inc();
            }
        }
    }

    /// Writes to the API server, with retries. Returns whether the write succeeded.
    async fn write(&mut self, told: &Told, mut write: Write, queue: &mpsc::Receiver<Told>) -> bool {
        // A closed queue means that the credentials have changed or are gone, so stop retrying.
        while told.since.elapsed() < STALE && !queue.is_closed() {
            let failure = match timeout(PATIENCE, self.attempt(told, &write)).await {
                Ok(Ok(())) => {
                    if std::mem::take(&mut self.is_lost) {
                        info!("Kubernetes Events reach the API server again");
                    }
                    self.is_proven = true;
                    self.waits = waits();
                    return true;
                }
                Ok(Err(failure)) => failure,
                Err(_) => Failure::Later(format!(
                    "no answer within {PATIENCE:?}, of the API server or of the program that gives a token"
                )),
            };
            let failure = match failure {
                Failure::Forbidden(why) if self.is_proven => Failure::Refused(why),
                Failure::Forbidden(why) => Failure::Later(why),
                failure => failure,
            };
            match failure {
                Failure::Gone if write != Write::Create => {
                    self.history.forget(told);
                    match self.history.judge(told, Instant::now()) {
                        Ok(Some(anew)) => write = anew,
                        _ => return false,
                    }
                }
                Failure::Gone => break,
                Failure::Refused(why) => {
                    let (pod, reason) = (format!("{}/{}", told.namespace, told.pod), told.kind());
                    debug!(pod, %reason, "the API server refused an Event: {}", excerpt(&why));
                    break;
                }
                Failure::Later(why) | Failure::Forbidden(why) => {
                    self.client = None;
                    self.is_proven = false;
                    if !std::mem::replace(&mut self.is_lost, true) {
                        warn!(
                            "cannot write Kubernetes Events; trying again while there are new ones: {}",
                            excerpt(&why)
                        );
                    }
                    let most = BACKOFF[1];
                    sleep(self.waits.next().map_or(most, |wait| wait.min(most))).await;
                }
            }
        }
        self.history.forget(told);
        false
    }

    async fn attempt(&mut self, told: &Told, write: &Write) -> Result<(), Failure> {
        let client = match &self.client {
            Some(client) => client,
            None => {
                let made = (self.connect)()
                    .await
                    .map_err(|error| Failure::Later(in_full(error.as_ref())))?;
                self.client.insert(made)
            }
        };
        let events = Api::<Event>::namespaced(client.clone(), &told.namespace);
        let result = match write {
            Write::Create => {
                events.create(&PostParams::default(), &told.event(&self.instance)).await
            }
            Write::Count { name, count } => {
                let series = EventSeries { count: *count, last_observed_time: MicroTime(told.at) };
                let patch = serde_json::json!({ "series": series });
                events.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await
            }
        };
        match result {
            Ok(_) => Ok(()),
            // The Event exists already: the answer to an earlier attempt was lost.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn excerpt(why: &str) -> String {
    harmless(why, 300, &['\'', '"'])
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http_body_util::{BodyExt as _, Full};
    use hyper::body::Bytes as Body;
    use hyper::{Method, Response};
    use plimsoll_core::incident::{Line, LowerLimit};
    use plimsoll_core::pod::PodUid;
    use plimsoll_core::policy::resize::Usage;
    use plimsoll_core::units::{Bytes, Knob, Limit};
    use serde_json::{Value, json};

    use super::*;

    const MIB: u64 = 1 << 20;

    fn subject(pod: &str, uid: &str, container: &str) -> Subject {
        Subject {
            pod: Some(pod.to_owned()),
            uid: Some(PodUid::new(uid.to_owned())),
            container: Some(container.to_owned()),
            cgroup: None,
        }
    }

    fn rejected(mib: u64) -> Incident {
        let (limit, in_force) = (Bytes::new(mib * MIB).into(), Bytes::new(250 * MIB).into());
        Incident::CutRejected(LowerLimit { limit, in_force, usage: Usage::default() })
    }

    fn overcommitted() -> Incident {
        Incident::Overcommitted { request: Bytes::new(MIB), limit: Bytes::new(10 * MIB), most: 4.0 }
    }

    fn told(uid: &str, container: &str, what: &Incident) -> Told {
        Told::of(&subject("default/web", uid, container), what, Deed::Done).unwrap()
    }

    #[test]
    fn what_a_pods_owner_can_do_something_about_is_an_event_and_the_nodes_own_affairs_are_not() {
        for (kinds, expected) in [
            (
                &[
                    IncidentKind::CutRejected,
                    IncidentKind::CutDeferred,
                    IncidentKind::CutGivenUp,
                    IncidentKind::CutApplied,
                ][..],
                Some("Resize"),
            ),
            (&[IncidentKind::NotResized, IncidentKind::PodRaised], Some("Resize")),
            (&[IncidentKind::Rescued, IncidentKind::AtCeiling], Some("Rescue")),
            (&[IncidentKind::BeyondNode, IncidentKind::Overcommitted], Some("Admit")),
            (&[IncidentKind::Released, IncidentKind::PutBack], Some("Throttle")),
            (
                &[
                    IncidentKind::Killed,
                    IncidentKind::Repaired,
                    IncidentKind::Contended,
                    IncidentKind::Guarded,
                    IncidentKind::GuardWaits,
                    IncidentKind::Unguarded,
                ],
                None,
            ),
        ] {
            for kind in kinds {
                assert_eq!(action(*kind), expected, "{kind}");
            }
        }
        let (desired, observed) = (Limit::Max, Limit::Max);
        let repaired = Incident::Repaired { knob: Knob::High, desired, observed };
        assert!(Told::of(&subject("default/web", "u", "app"), &repaired, Deed::Done).is_none());
        // An incident without a pod has no object for an Event.
        assert!(Told::of(&Subject::default(), &rejected(1), Deed::Done).is_none());
    }

    #[test]
    fn an_event_has_what_the_api_server_wants_and_regards_the_container() {
        let event =
            serde_json::to_value(told("0a-1", "app", &rejected(100)).event("node-1")).unwrap();
        assert_eq!(
            event["regarding"],
            json!({
                "apiVersion": "v1", "kind": "Pod", "namespace": "default", "name": "web", "uid": "0a-1",
                "fieldPath": "spec.containers{app}",
            })
        );
        for (field, expected) in [
            ("type", "Warning"),
            ("reason", "CutRejected"),
            ("action", "Resize"),
            ("reportingController", "plimsoll"),
            ("reportingInstance", "node-1"),
        ] {
            assert_eq!(event[field], expected, "{field}");
        }
        let note = event["note"].as_str().unwrap();
        assert!(
            note.starts_with("container app: rejected a memory limit decrease from 250Mi to 100Mi"),
            "{note}"
        );
        let line =
            Line { desired: Limit::Max, observed: Limit::Max, usage: Bytes::ZERO, stalled: 20.0 };
        let event = told("0a-1", "app", &Incident::Released(line)).event("node-1");
        assert_eq!(event.type_.as_deref(), Some("Normal"));
    }

    #[test]
    fn names_that_no_pod_of_kubernetes_can_have_make_no_event() {
        let huge = "x".repeat(1 << 20);
        let what = rejected(100);
        for pod in
            ["a\nb", "\u{1b}[31mred", "../../pods", "A", "", "-a", "a-", "a..b", "a/b", "ü", &huge]
        {
            assert!(
                Told::of(&subject(&format!("default/{pod}"), "u", "app"), &what, Deed::Done)
                    .is_none(),
                "{:.20}",
                pod
            );
            assert!(
                Told::of(&subject(&format!("{pod}/web"), "u", "app"), &what, Deed::Done).is_none(),
                "{:.20}",
                pod
            );
            assert!(
                Told::of(&subject("default/web", pod, "app"), &what, Deed::Done).is_none(),
                "{:.20}",
                pod
            );
            assert!(
                Told::of(&subject("default/web", "u", pod), &what, Deed::Done).is_none(),
                "{:.20}",
                pod
            );
        }
        // The longest and most unusual names that Kubernetes allows.
        for pod in ["a".repeat(253), format!("{}.b", "a".repeat(120)), "0.a-b.9".to_owned()] {
            let told = Told::of(&subject(&format!("default/{pod}"), "u", "app"), &what, Deed::Done)
                .unwrap();
            let name = told.name();
            assert!(name.len() <= 253 && name.split('.').all(is_part), "{name}");
        }
        let dashes = format!("a{}b", "-".repeat(251));
        let name = Told::of(&subject(&format!("default/{dashes}"), "u", "app"), &what, Deed::Done)
            .unwrap()
            .name();
        assert!(name.split('.').all(is_part), "{name}");
    }

    #[test]
    fn a_note_is_as_long_as_it_may_be_and_does_nothing_to_a_terminal() {
        for text in [
            "x".repeat(1 << 20),
            "ü".repeat(2000),
            "\u{1b}[2J".repeat(500),
            format!("x{}", "€".repeat(400)),
        ] {
            let note = note(&text);
            assert!(
                note.len() <= NOTE && note.len() > NOTE - 8 && note.ends_with('…'),
                "{}",
                note.len()
            );
            assert!(!note.chars().any(char::is_control));
        }
        assert_eq!(note("it's\n\"so\""), "it's\\n\"so\"");
    }

    #[test]
    fn what_does_not_fit_into_the_queue_is_dropped_and_counted() {
        let (sender, mut queue) = mpsc::channel(QUEUE);
        let events = Events(Mutex::new(Way { is_known: true, source: None, queue: Some(sender) }));
        let dropped = Counter::default();
        for _ in 0..QUEUE + 7 {
            events.put(&subject("default/web", "u", "app"), &rejected(100), Deed::Done, &dropped);
        }
        assert_eq!(dropped.get(), 7);
        assert_eq!(std::iter::from_fn(|| queue.try_recv().ok()).count(), QUEUE);
    }

    #[test]
    fn without_credentials_nothing_is_kept() {
        let (events, dropped) = (Events::default(), Counter::default());
        events.put(&subject("default/web", "u", "app"), &rejected(100), Deed::Done, &dropped);
        events.follow(None, &dropped);
        events.put(&subject("default/web", "u", "app"), &rejected(100), Deed::Done, &dropped);
        assert_eq!(dropped.get(), 0);
        assert!(lock(&events.0).queue.is_none());
    }

    #[tokio::test]
    async fn a_program_for_a_token_that_hangs_keeps_nobody_from_saying_so() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kubeconfig");
        let kubeconfig = "{clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}], \
            contexts: [{name: c, context: {cluster: c, user: u}}], current-context: c, \
            users: [{name: u, user: {exec: {apiVersion: client.authentication.k8s.io/v1, command: sleep, args: ['1'], \
            interactiveMode: Never}}}]}";
        std::fs::write(&path, kubeconfig).unwrap();
        let connecting = Source::Kubeconfig(path).connect();
        assert!(
            timeout(Duration::from_millis(100), connecting).await.is_err(),
            "time passes while it runs"
        );
    }

    #[tokio::test]
    async fn the_same_credentials_are_gone_on_with_and_others_take_their_place() {
        let (events, dropped) = (Events::default(), Counter::default());
        let queue = || lock(&events.0).queue.clone().unwrap();
        let source = |path: &str| Some(Source::Kubeconfig(path.into()));
        events.follow(source("/none/a"), &dropped);
        let first = queue();
        events.follow(source("/none/a"), &dropped);
        assert!(queue().same_channel(&first));
        events.follow(source("/none/b"), &dropped);
        assert!(!queue().same_channel(&first));
        let second = queue().downgrade();
        events.follow(None, &dropped);
        assert!(
            lock(&events.0).queue.is_none() && second.upgrade().is_none(),
            "nobody puts anything into it"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_thing_of_the_same_container_is_one_event() {
        let mut history = History::new(Instant::now());
        let mut judge = |told: &Told, after: u64| {
            history.judge(told, Instant::now() + Duration::from_secs(after))
        };
        let first = told("u", "app", &rejected(100));
        assert_eq!(judge(&first, 0), Ok(Some(Write::Create)));
        let counted = |count| Ok(Some(Write::Count { name: first.name(), count }));
        assert_eq!(judge(&told("u", "app", &rejected(100)), 1), counted(2));
        assert_eq!(judge(&told("u", "app", &rejected(100)), 599), counted(3));
        for other in [("u", "app", 90), ("u", "side", 100), ("v", "app", 100)] {
            assert_eq!(
                judge(&told(other.0, other.1, &rejected(other.2)), 600),
                Ok(Some(Write::Create)),
                "{other:?}"
            );
        }
        assert_eq!(
            judge(&told("u", "app", &rejected(100)), 599 + LATELY + 1),
            Ok(Some(Write::Create)),
            "long after"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn overcommitment_is_told_once_of_a_pod() {
        let mut history = History::new(Instant::now());
        let mut judge = |uid, container, after| {
            history.judge(
                &told(uid, container, &overcommitted()),
                Instant::now() + Duration::from_secs(after),
            )
        };
        assert_eq!(judge("u", "app", 0), Ok(Some(Write::Create)));
        assert_eq!(judge("u", "app", 1), Ok(None));
        assert_eq!(judge("u", "side", 100_000), Ok(None));
        assert_eq!(judge("v", "app", 100_000), Ok(Some(Write::Create)));
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_than_so_much_is_written_of_a_pod_and_on_the_node() {
        let (mut history, start) = (History::new(Instant::now()), Instant::now());
        let different = |number: u64| told("u", "app", &rejected(number));
        let written = |history: &mut History, now| {
            (1..=100)
                .filter(|number| history.judge(&different(*number), now) == Ok(Some(Write::Create)))
                .count()
        };
        assert_eq!(written(&mut history, start), 10);
        assert_eq!(history.judge(&different(1), start), Ok(None), "it is counted");
        assert_eq!(history.judge(&different(99), start), Err(TooMuch));
        let later = start + Duration::from_secs(125);
        let counted = history.judge(&different(1), later);
        assert!(matches!(counted, Ok(Some(Write::Count { count: 3, .. }))), "{counted:?}");
        assert_eq!(
            written(&mut history, later),
            0,
            "they were counted again, and the one left was used for that"
        );
        // The rate limit of the node.
        let mut history = History::new(start);
        let pods = (0..200).filter(|pod| {
            history.judge(&told(&format!("u{pod}"), "app", &rejected(1)), start).is_ok()
        });
        assert_eq!(pods.count(), 50);
        assert_eq!(history.sent.len(), 50);
        history
            .judge(&told("other", "app", &rejected(1)), start + Duration::from_secs(601))
            .unwrap();
        assert_eq!(
            (history.sent.len(), history.limits.pods.len()),
            (1, 1),
            "nothing is kept of those long gone"
        );
    }

    /// Requests to the API server: method, path and body.
    type Requests = Arc<Mutex<Vec<(Method, String, Value)>>>;

    /// Returns a publisher whose API server answers with these status codes in order; 0 is no
    /// answer. Also returns the requests and the number of connections.
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
                        // 403 in a namespace that is being deleted.
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
        let dropped = publisher.dropped.clone();
        let (sender, queue) = mpsc::channel(QUEUE);
        let running = tokio::spawn(publisher.run(queue));
        for _ in 0..times {
            sender.send(told("u", "app", &rejected(100))).await.unwrap();
        }
        while sender.capacity() < QUEUE {
            sleep(Duration::from_millis(1)).await;
        }
        // Allow all the time for retries of the last incident.
        sleep(2 * STALE).await;
        drop(sender);
        running.await.unwrap();
        dropped.get()
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_told_again_is_a_patch_of_the_count() {
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
    async fn a_server_that_fails_is_tried_again_with_credentials_read_anew() {
        let (publisher, requests, connections) = publisher(&[503, 0, 401, 403, 429, 409]);
        // The final 409 means that an earlier attempt created the Event but its answer was lost.
        assert_eq!(publish(publisher, 1).await, 0);
        let requests = requests.lock().unwrap();
        assert_eq!((requests.len(), connections.load(Ordering::Relaxed)), (6, 6));
        assert!(
            requests.iter().all(|(_, _, event)| *event == requests[0].2),
            "the same Event each time"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_server_refuses_is_not_tried_again() {
        for code in [&[1403, 200][..], &[422, 200], &[404, 200], &[413, 200]] {
            let (publisher, requests, _) = publisher(code);
            assert_eq!(publish(publisher, 2).await, 1, "{code:?}");
            let requests = requests.lock().unwrap();
            let methods: Vec<_> = requests.iter().map(|(method, ..)| method).collect();
            assert_eq!(methods, [Method::POST, Method::POST], "{code:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_server_forbids_that_has_taken_others_keeps_nobody_waiting() {
        let (publisher, requests, connections) = publisher(&[200, 403, 200]);
        assert_eq!(publish(publisher, 3).await, 1);
        let methods: Vec<_> =
            requests.lock().unwrap().iter().map(|(method, ..)| method.clone()).collect();
        assert_eq!(methods, [Method::POST, Method::PATCH, Method::POST]);
        assert_eq!(connections.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn what_a_plugin_that_starts_anew_tells_again_has_the_same_name() {
        let name = |what: &Incident| told("u", "app", what).name();
        assert_eq!(name(&overcommitted()), name(&overcommitted()));
        let beyond = |mib: u64| Incident::BeyondNode {
            limit: Bytes::new(mib * MIB),
            allocatable: Bytes::new(MIB),
        };
        assert_eq!(name(&beyond(2)), name(&beyond(2)));
        assert_ne!(name(&beyond(2)), name(&beyond(3)));
        assert_ne!(name(&rejected(1)), name(&rejected(1)), "each is another one");
    }

    #[test]
    fn another_value_is_another_event_as_its_text_stays() {
        let raised = |mib: u64| Incident::PodRaised {
            knob: "memory.max",
            desired: (mib * MIB).to_string(),
            observed: MIB.to_string(),
        };
        let told = |mib| told("u", "app", &raised(mib));
        assert!(told(2).is_like(&told(2)) && !told(2).is_like(&told(3)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_is_tried_less_and_less_often_however_much_waits() {
        let (publisher, requests, _) = publisher(&[500; 200]);
        let dropped = publisher.dropped.clone();
        let (sender, queue) = mpsc::channel(QUEUE);
        let running = tokio::spawn(publisher.run(queue));
        for number in 0..9 {
            sender.send(told(&format!("u{number}"), "app", &rejected(100))).await.unwrap();
        }
        sleep(2 * STALE).await;
        let attempts = requests.lock().unwrap().len();
        assert!((6..20).contains(&attempts), "{attempts} attempts within {STALE:?}");
        assert_eq!(dropped.get(), 9);
        drop(sender);
        running.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_that_was_removed_meanwhile_is_made_anew() {
        let (publisher, requests, _) = publisher(&[200, 404, 200]);
        assert_eq!(publish(publisher, 2).await, 0);
        let methods: Vec<_> =
            requests.lock().unwrap().iter().map(|(method, ..)| method.clone()).collect();
        assert_eq!(methods, [Method::POST, Method::PATCH, Method::POST]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_become_old_is_thrown_away_and_nothing_is_tried_at_rest() {
        let (publisher, requests, _) = publisher(&[500; 100]);
        let start = Instant::now();
        assert_eq!(publish(publisher, 1).await, 1);
        assert!(start.elapsed() >= STALE);
        let attempts = requests.lock().unwrap().len();
        assert!((6..20).contains(&attempts), "{attempts} attempts within {STALE:?}");
    }

    #[test]
    fn hashes_in_names_are_those_of_every_version() {
        // The published values of FNV-1a.
        assert_eq!(stable_hash(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(stable_hash(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
