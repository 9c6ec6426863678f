//! Answers to HTTP requests.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, oneshot};
use tracing::debug;

use crate::report::metrics;
use crate::report::reports::Reports;
use crate::report::serve::places::Places;
use crate::report::status::Status;
use crate::state::shared::SharedState;
use crate::{in_own_thread, lock};

/// Maximum time for a client to send the header of its request.
const ASKING: Duration = Duration::from_secs(1);

/// Maximum age of the metrics that the plugin serves over TCP, where any client can send requests.
const FRESH: Duration = Duration::from_secs(1);

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Server of status and metrics.
#[derive(Clone, Debug)]
pub struct Server {
    pub(super) state: SharedState,
    reports: Arc<Reports>,
    /// Permit to read the node's state. Only one reader has the permit at a time.
    turn: Arc<Semaphore>,
    latest: Arc<Mutex<Option<(Instant, String)>>>,
}

/// HTTP paths that a listener serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ServedPaths {
    Everything,
    Metrics,
}

impl Server {
    /// Creates a server that serves this state and these reports.
    pub fn new(state: SharedState, reports: Arc<Reports>) -> Self {
        Self { state, reports, turn: Arc::new(Semaphore::new(1)), latest: Arc::default() }
    }

    pub(super) async fn serve<S>(&self, stream: S, paths: ServedPaths, places: &Arc<Places>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Some(place) = places.place().await else { return };
        let (server, places) = (self.clone(), places.clone());
        tokio::spawn(async move {
            let service = service_fn(|request| server.answer(request, paths));
            let mut builder = http1::Builder::new();
            builder.keep_alive(false).timer(TokioTimer::new()).header_read_timeout(ASKING);
            let connection = builder.serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                served = connection => if let Err(error) = served {
                    debug!(%error, "a connection for status or metrics failed");
                },
                () = places.must_leave() => {
                    debug!("a connection for status or metrics took too long");
                }
            }
            drop(place);
        });
    }

    /// Returns the requested text. If the client disconnects early, the read continues, and the
    /// next reader waits until this read ends.
    async fn read(&self, is_status: bool, paths: ServedPaths) -> Result<String, String> {
        let turn = self.turn.clone().acquire_owned().await.map_err(|error| error.to_string())?;
        let fresh = lock(&self.latest)
            .clone()
            .filter(|(since, _)| paths == ServedPaths::Metrics && since.elapsed() < FRESH);
        if let Some((_, text)) = fresh {
            return Ok(text);
        }
        let server = self.clone();
        let (answer, answered) = oneshot::channel();
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
            if let (Ok(text), ServedPaths::Metrics) = (&text, paths) {
                *lock(&server.latest) = Some((Instant::now(), text.clone()));
            }
            drop(turn);
            // The send fails if the client has disconnected.
            let _ = answer.send(text);
        });
        answered.await.map_err(|_| "cannot read the status; see the plugin's log".to_owned())?
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        paths: ServedPaths,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        if request.method() != Method::GET {
            let mut response = plain(
                StatusCode::METHOD_NOT_ALLOWED,
                "the plugin answers only \
                                                                      GET\n",
            );
            response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET"));
            return Ok(response);
        }
        let is_status = match (request.uri().path(), paths) {
            ("/metrics", _) => false,
            ("/status", ServedPaths::Everything) => true,
            (_, ServedPaths::Everything) => {
                return Ok(plain(StatusCode::NOT_FOUND, "expected the path /status or /metrics\n"));
            }
            (_, ServedPaths::Metrics) => {
                return Ok(plain(StatusCode::NOT_FOUND, "expected the path /metrics\n"));
            }
        };
        let text = self.read(is_status, paths).await;
        let content_type = if is_status { "application/json" } else { OPEN_METRICS };
        Ok(match text {
            Ok(text) => response(StatusCode::OK, content_type, text),
            Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error}\n")),
        })
    }
}

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
