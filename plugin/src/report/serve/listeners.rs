//! Listeners on the plugin's socket and on the address for metrics.

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

/// Delay before the plugin tries to listen again.
const RETRY: Duration = Duration::from_secs(10);

impl Server {
    /// Serves over the plugin's socket on the node whose file system is at `host`. Never returns.
    pub async fn run(self, host: PathBuf) {
        let path = socket(&host);
        let places = Places::new();
        let mut is_failing = false;
        loop {
            match listen(&path).await {
                Ok(listener) => {
                    is_failing = false;
                    loop {
                        match listener.accept().await {
                            Ok((stream, _)) => {
                                self.serve(stream, ServedPaths::Everything, &places).await
                            }
                            Err(error) => {
                                warn!(
                                    socket = %path.display(),
                                    %error,
                                    "cannot accept connections"
                                );
                                break;
                            }
                        }
                    }
                }
                Err(error) if !is_failing => {
                    is_failing = true;
                    warn!(
                        socket = %path.display(),
                        %error,
                        "'plimsoll status' cannot reach this; trying again every {RETRY:?}"
                    );
                }
                Err(_) => {}
            }
            sleep(RETRY).await;
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
                        let accepted = tokio::select! {
                            accepted = listener.accept() => accepted,
                            () = changed.notified() => continue,
                        };
                        match accepted {
                            Ok((stream, _)) => {
                                self.serve(stream, ServedPaths::Metrics, &places).await
                            }
                            Err(error) => {
                                warn!(
                                    %address,
                                    %error,
                                    "cannot accept connections for metrics; trying again in \
                                     {RETRY:?}"
                                );
                                sleep(RETRY).await;
                            }
                        }
                    }
                }
                Err(error) => {
                    if failed_address.replace(address) != Some(address) {
                        warn!(
                            %address,
                            %error,
                            "cannot serve metrics; trying again every {RETRY:?}"
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
