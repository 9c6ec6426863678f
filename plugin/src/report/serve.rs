//! Serves `/status` (JSON) and `/metrics` (OpenMetrics) over a unix socket that only root can use.
//! If `metricsAddress` is configured, `/metrics` is also served over TCP.
//!
//! A slow or busy client delays only other clients of the same listener. Each listener serves few
//! clients at a time, and each client only for a limited time. A separate thread reads the node's
//! state for one client after the other, so reading never delays NRI events.

use std::convert::Infallible;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HOST, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::{TokioIo, TokioTimer};
use plimsoll_core::units::excerpt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use crate::report::Reports;
use crate::report::metrics;
use crate::report::status::{Status, VERSION};
use crate::state::originals;
use crate::state::shared::SharedState;
use crate::{in_own_thread, lock};

/// Name of the socket in the plugin's directory.
const SOCKET: &str = "plimsoll.sock";

/// Maximum number of clients that a listener serves at a time.
const AT_A_TIME: usize = 8;

/// Maximum time for a client to send the header of its request.
const ASKING: Duration = Duration::from_secs(1);

/// Maximum duration of a connection, and maximum time to wait for the plugin's answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Maximum duration of a connection while another client waits.
const SHARE: Duration = Duration::from_secs(1);

/// Delay before the plugin tries to listen again.
const AGAIN: Duration = Duration::from_secs(10);

/// Returns the path of the plugin's socket on the node whose file system is at `host`.
pub fn socket(host: &Path) -> PathBuf {
    host.join(originals::DIRECTORY).join(SOCKET)
}

/// Error when the plugin's status could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot ask the plugin by {} (does it run, and is this user root? see plimsoll doctor)", socket.display())]
pub struct Unanswered {
    socket: PathBuf,
    source: Silence,
}

#[derive(Debug, thiserror::Error)]
enum Silence {
    #[error(transparent)]
    Connection(#[from] io::Error),
    #[error(transparent)]
    Http(#[from] hyper::Error),
    #[error("{0}: {1}")]
    Refused(StatusCode, String),
    #[error("expected what this version of plimsoll says")]
    Form(#[from] serde_json::Error),
    #[error("the plugin is of version {0}, which this one does not understand")]
    Version(String),
    #[error("no answer within {PATIENCE:?}")]
    Late,
}

/// Requests the status from the plugin on the node whose file system is at `host`.
///
/// # Errors
///
/// When the plugin does not answer, or answers in a form that this version does not understand.
pub async fn ask(host: &Path) -> Result<Status, Unanswered> {
    let socket = socket(host);
    let asked = async {
        let stream = UnixStream::connect(&socket).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.uri_mut() = Uri::from_static("/status");
        request.headers_mut().insert(HOST, HeaderValue::from_static("plimsoll"));
        let response = sender.send_request(request).await?;
        let code = response.status();
        let text = response.into_body().collect().await?.to_bytes();
        if code != StatusCode::OK {
            return Err(Silence::Refused(code, excerpt(&String::from_utf8_lossy(&text))));
        }
        let status: Status = serde_json::from_slice(&text)?;
        if status.version != VERSION {
            return Err(Silence::Version(excerpt(&status.plimsoll)));
        }
        Ok(status)
    };
    let result = timeout(PATIENCE, asked).await.unwrap_or(Err(Silence::Late));
    result.map_err(|source| Unanswered { socket: socket.clone(), source })
}

/// Maximum age of metrics that are served over TCP, where any client can send requests.
const FRESH: Duration = Duration::from_secs(1);

/// Server of status and metrics.
#[derive(Clone, Debug)]
pub struct Server {
    state: SharedState,
    reports: Arc<Reports>,
    /// Permit to read the node's state, for one reader at a time.
    turn: Arc<Semaphore>,
    latest: Arc<Mutex<Option<(Instant, String)>>>,
}

/// Limited places for the clients of one listener.
#[derive(Debug)]
struct Room {
    places: Arc<Semaphore>,
    /// Notifies one client that another client waits for its place.
    is_full: Notify,
}

impl Room {
    fn new() -> Arc<Self> {
        Arc::new(Self { places: Arc::new(Semaphore::new(AT_A_TIME)), is_full: Notify::new() })
    }

    /// Waits for a place. If all are taken, requests the place of a client that has had it for
    /// [`SHARE`].
    async fn place(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(place) = self.places.clone().try_acquire_owned() {
            return Some(place);
        }
        self.is_full.notify_one();
        // The semaphore is never closed.
        let place = self.places.clone().acquire_owned().await.ok();
        // Withdraw the notification if a client left before it received the notification.
        let _ = self.is_full.notified().now_or_never();
        place
    }

    /// Waits until the client must leave: after [`PATIENCE`], or after [`SHARE`] if another client
    /// waits.
    async fn over(&self) {
        let asked_to_go = async {
            sleep(SHARE).await;
            self.is_full.notified().await;
        };
        tokio::select! {
            () = asked_to_go => {}
            () = sleep(PATIENCE) => {}
        }
    }
}

/// Paths that a listener serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Offer {
    Everything,
    Metrics,
}

impl Server {
    /// Creates a server of this state and these reports.
    pub fn new(state: SharedState, reports: Arc<Reports>) -> Self {
        Self { state, reports, turn: Arc::new(Semaphore::new(1)), latest: Arc::default() }
    }

    /// Serves over the plugin's socket on the node whose file system is at `host`. Never returns.
    pub async fn run(self, host: PathBuf) {
        let path = socket(&host);
        let room = Room::new();
        let mut is_failing = false;
        loop {
            match listen(&path).await {
                Ok(listener) => {
                    is_failing = false;
                    loop {
                        match listener.accept().await {
                            Ok((stream, _)) => self.serve(stream, Offer::Everything, &room).await,
                            Err(error) => {
                                warn!(socket = %path.display(), %error, "cannot accept connections");
                                break;
                            }
                        }
                    }
                }
                Err(error) if !is_failing => {
                    is_failing = true;
                    warn!(socket = %path.display(), %error, "'plimsoll status' cannot reach this; trying again every {AGAIN:?}");
                }
                Err(_) => {}
            }
            sleep(AGAIN).await;
        }
    }

    /// Serves metrics over TCP at the configured address. `changed` signals a new configuration.
    /// Never returns.
    pub async fn run_metrics(self, changed: Arc<Notify>) {
        let room = Room::new();
        let mut told = None;
        loop {
            let address = self.state.containers.settings().config.metrics_address;
            let is_other = || self.state.containers.settings().config.metrics_address != address;
            let Some(address) = address else {
                changed.notified().await;
                continue;
            };
            match TcpListener::bind(address).await {
                Ok(listener) => {
                    info!(%address, "serving metrics");
                    told = None;
                    while !is_other() {
                        let accepted = tokio::select! {
                            accepted = listener.accept() => accepted,
                            () = changed.notified() => continue,
                        };
                        match accepted {
                            Ok((stream, _)) => self.serve(stream, Offer::Metrics, &room).await,
                            Err(error) => {
                                warn!(%address, %error, "cannot accept connections for metrics; trying again in {AGAIN:?}");
                                sleep(AGAIN).await;
                            }
                        }
                    }
                }
                Err(error) => {
                    if told.replace(address) != Some(address) {
                        warn!(%address, %error, "cannot serve metrics; trying again every {AGAIN:?}");
                    }
                    tokio::select! {
                        () = sleep(AGAIN) => {}
                        () = changed.notified() => {}
                    }
                }
            }
        }
    }

    async fn serve<S>(&self, stream: S, offer: Offer, room: &Arc<Room>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Some(place) = room.place().await else { return };
        let (server, room) = (self.clone(), room.clone());
        tokio::spawn(async move {
            let service = service_fn(|request| server.answer(request, offer));
            let mut builder = http1::Builder::new();
            builder.keep_alive(false).timer(TokioTimer::new()).header_read_timeout(ASKING);
            let connection = builder.serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                served = connection => if let Err(error) = served {
                    debug!(%error, "a connection for status or metrics failed");
                },
                () = room.over() => debug!("a connection for status or metrics took too long"),
            }
            drop(place);
        });
    }

    /// Returns the requested text. If the client disconnects early, the next reader still waits
    /// until this read ends.
    async fn read(&self, is_status: bool, offer: Offer) -> Result<String, String> {
        let turn = self.turn.clone().acquire_owned().await.map_err(|error| error.to_string())?;
        let fresh = lock(&self.latest)
            .clone()
            .filter(|(since, _)| offer == Offer::Metrics && since.elapsed() < FRESH);
        if let Some((_, text)) = fresh {
            return Ok(text);
        }
        let server = self.clone();
        let (tell, told) = oneshot::channel();
        // Use a separate thread, because NRI events may need the few threads of the blocking pool.
        in_own_thread("status", move || {
            let Server { state, reports, .. } = &server;
            let status = Status::read(state, reports);
            let text = if is_status {
                serde_json::to_string(&status).map_err(|error| error.to_string())
            } else {
                let of_containers = state.containers.settings().config.container_metrics;
                metrics::encode(&reports.metrics, &status, of_containers)
                    .map_err(|error| error.to_string())
            };
            if let (Ok(text), Offer::Metrics) = (&text, offer) {
                *lock(&server.latest) = Some((Instant::now(), text.clone()));
            }
            drop(turn);
            // Fails if the client has disconnected.
            let _ = tell.send(text);
        });
        told.await.map_err(|_| "reading failed; see the log".to_owned())?
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        offer: Offer,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        if request.method() != Method::GET {
            let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered\n");
            response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET"));
            return Ok(response);
        }
        let is_status = match (request.uri().path(), offer) {
            ("/metrics", _) => false,
            ("/status", Offer::Everything) => true,
            (_, Offer::Everything) => {
                return Ok(plain(StatusCode::NOT_FOUND, "there are /status and /metrics\n"));
            }
            (_, Offer::Metrics) => return Ok(plain(StatusCode::NOT_FOUND, "there is /metrics\n")),
        };
        let text = self.read(is_status, offer).await;
        let content_type = if is_status { "application/json" } else { OPEN_METRICS };
        Ok(match text {
            Ok(text) => response(StatusCode::OK, content_type, text),
            Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error}\n")),
        })
    }
}

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

fn plain(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    response(status, "text/plain; charset=utf-8", text.to_owned())
}

fn response(status: StatusCode, content_type: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(content_type));
    response
}

/// Listens on a socket that only root can connect to.
async fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        // Only root can enter the directory, so the socket is safe before its own mode is set.
        fs::set_permissions(directory, Permissions::from_mode(0o700))?;
    }
    match UnixStream::connect(path).await {
        Ok(_) => {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                "another instance is there, which answers",
            ));
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
        Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}
