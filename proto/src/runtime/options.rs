//! Options of the simulated runtime, and errors of its requests.

use std::time::Duration;

use crate::version::NriVersion;

/// The properties of the simulated runtime.
#[derive(Debug, Clone)]
pub struct Options {
    /// Name of the runtime.
    pub name: String,
    /// Version of the runtime.
    pub version: String,
    /// Version of NRI. Since 0.12 the runtime reports the version to the plugin.
    pub nri_version: NriVersion,
    /// Content of the plugin's drop-in file.
    pub config: String,
    /// Time limit for the registration of the plugin.
    pub registration_timeout: Duration,
    /// Time limit for each reply of the plugin.
    pub request_timeout: Duration,
}

impl Default for Options {
    /// Returns options that simulate containerd 2.1.9 with NRI 0.8.0 and default timeouts.
    fn default() -> Self {
        Self {
            name: "containerd".into(),
            version: "2.1.9".into(),
            nri_version: NriVersion(0, 8, 0),
            config: String::new(),
            registration_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(2),
        }
    }
}

/// The reason why a request to a plugin failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The plugin refused the request.
    #[error("refused by the plugin: {0}")]
    Refused(String),
    /// The plugin did not reply in time, so the runtime has dropped the plugin.
    #[error("no reply from the plugin within {0:?}")]
    Deadline(Duration),
    /// The connection is closed.
    #[error("connection to the plugin: {0}")]
    Closed(String),
    /// The plugin violated the protocol, so a real runtime would drop the plugin.
    #[error("{0}")]
    Misbehaved(String),
}
