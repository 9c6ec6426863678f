//! Listeners on the plugin's socket and on the address for metrics.

use std::fmt::Display;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::report::serve::answer::{ServedPaths, Server};
use crate::report::serve::places::Places;
use crate::report::serve::socket::{listen, socket};

/// Delay before the plugin tries to listen again after a failure.
const RETRY: Duration = Duration::from_secs(10);

/// Delay before the plugin calls `accept` again after a failure.
const ACCEPT_RETRY: Duration = Duration::from_secs(1);

impl Server {
    /// Serves status and metrics over the plugin's socket on the node whose file system is at
    /// `host`. Never returns.
    pub async fn run(self, host: PathBuf) {
        let path = socket(&host);
        let places = Places::new();
        let mut is_failing = false;
        let listener = loop {
            match listen(&path).await {
                Ok(listener) => break listener,
                Err(error) if !is_failing => {
                    is_failing = true;
                    warn!(
                        socket = %path.display(),
                        %error,
                        "cannot listen for 'plimsoll status'; trying again every {RETRY:?}"
                    );
                }
                Err(_) => {}
            }
            sleep(RETRY).await;
        };
        loop {
            let (stream, _) = accept(|| listener.accept(), &path.display()).await;
            self.serve(stream, ServedPaths::Everything, &places).await;
        }
    }

    /// Serves metrics over TCP at the configured address. `changed` signals a new configuration.
    /// Never returns.
    pub async fn run_metrics(self, changed: Arc<Notify>) {
        let places = Places::new();
        let mut failed_address = None;
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
                    failed_address = None;
                    while !is_other() {
                        let (stream, _) = tokio::select! {
                            accepted = accept(|| listener.accept(), &address) => accepted,
                            () = changed.notified() => continue,
                        };
                        self.serve(stream, ServedPaths::Metrics, &places).await;
                    }
                }
                Err(error) => {
                    if failed_address.replace(address) != Some(address) {
                        warn!(
                            %address,
                            %error,
                            "cannot listen for metrics; trying again every {RETRY:?}"
                        );
                    }
                    tokio::select! {
                        () = sleep(RETRY) => {}
                        () = changed.notified() => {}
                    }
                }
            }
        }
    }
}

/// Accepts the next connection of the listener at `address`.
///
/// An error of `accept` concerns one connection, or the process (for example too many open files).
/// The listener stays valid, so the function tries again after [`ACCEPT_RETRY`].
async fn accept<C, F>(accept: impl Fn() -> F, address: &impl Display) -> C
where
    F: Future<Output = io::Result<C>>,
{
    let mut is_failing = false;
    loop {
        match accept().await {
            Ok(connection) => return connection,
            Err(error) if !is_failing => {
                is_failing = true;
                warn!(
                    %address,
                    %error,
                    "cannot accept connections; trying again every {ACCEPT_RETRY:?}"
                );
            }
            Err(_) => {}
        }
        sleep(ACCEPT_RETRY).await;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn too_many_files_keep_the_listener() {
        let too_many = || io::Error::from(rustix::io::Errno::MFILE);
        let results = RefCell::new(vec![Ok("client"), Err(too_many()), Err(too_many())]);
        let start = Instant::now();
        let next = async || results.borrow_mut().pop().unwrap();
        assert_eq!(accept(next, &"address").await, "client");
        assert_eq!(start.elapsed(), 2 * ACCEPT_RETRY, "the plugin waits after each failure");
    }
}
