//! Client that requests the status from the plugin.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper::header::{HOST, HeaderValue};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use plimsoll_core::units::excerpt;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::report::serve::socket::socket;
use crate::report::status::{Status, VERSION};

/// Maximum time to wait for the plugin's answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Reason why the plugin's status could not be read.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot read the status from {}; run the plugin and use root (see 'plimsoll doctor')",
    socket.display()
)]
pub struct StatusRequestError {
    socket: PathBuf,
    source: RequestError,
}

#[derive(Debug, thiserror::Error)]
enum RequestError {
    #[error(transparent)]
    Connection(#[from] io::Error),
    #[error(transparent)]
    Http(#[from] hyper::Error),
    #[error("{0}: {1}")]
    Refused(StatusCode, String),
    #[error("the plugin's answer is not a status of this version; use the plugin's version")]
    Form(#[from] serde_json::Error),
    #[error("the plugin has version {0}, whose status this version cannot read; use that version")]
    Version(String),
    #[error("the plugin did not answer within {REQUEST_TIMEOUT:?}")]
    Late,
}

/// Requests the status from the plugin on the node whose file system is at `host`.
///
/// # Errors
///
/// Fails if the plugin does not answer, or answers in a form that this version does not understand.
pub async fn ask(host: &Path) -> Result<Status, StatusRequestError> {
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
            return Err(RequestError::Refused(code, excerpt(&String::from_utf8_lossy(&text))));
        }
        let status: Status = serde_json::from_slice(&text)?;
        if status.version != VERSION {
            return Err(RequestError::Version(excerpt(&status.plimsoll)));
        }
        Ok(status)
    };
    let result = timeout(REQUEST_TIMEOUT, asked).await.unwrap_or(Err(RequestError::Late));
    result.map_err(|source| StatusRequestError { socket: socket.clone(), source })
}
