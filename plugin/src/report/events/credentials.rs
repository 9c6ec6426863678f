//! Credentials for the API server, and the connection that uses these credentials.

use std::path::{Path, PathBuf};
use std::{env, fmt};

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

/// Source of the credentials for the API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// Kubeconfig file whose path is in the plugin's configuration. The plugin never uses
    /// `~/.kube/config`, because that file may belong to an administrator.
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
    pub(super) fn find(kubeconfig: Option<&Path>) -> Option<Self> {
        match kubeconfig {
            Some(path) => Some(Self::Kubeconfig(path.to_owned())),
            None => env::var_os("KUBERNETES_SERVICE_HOST").map(|_| Self::InCluster),
        }
    }

    pub(super) async fn connect(self) -> Result<Client, BoxError> {
        let mut config = match self {
            Self::Kubeconfig(path) => {
                let kubeconfig = Kubeconfig::read_from(path)?;
                let clusters =
                    kubeconfig.clusters.iter().filter_map(|cluster| cluster.cluster.as_ref());
                let has_proxy = clusters.into_iter().any(|cluster| cluster.proxy_url.is_some());
                let mut config =
                    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                        .await?;
                // Use no proxy except a proxy from the kubeconfig. A proxy from the variable
                // HTTPS_PROXY usually cannot reach the API server of the node's own cluster.
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
        // ends. The blocking pool has a single thread, so only one program runs at a time. Even if
        // a program hangs, `Publisher::write` notices the timeout.
        Ok(tokio::task::spawn_blocking(move || Client::try_from(config)).await??)
    }
}

pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_slow_token_program_blocks_no_timeout() {
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
            "time passes while the token program runs"
        );
    }
}
