//! Errors of the stub.

use std::io;
use std::path::PathBuf;

use crate::plugin::Refusal;

/// The reason why a plugin cannot run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The plugin refused its configuration.
    #[error("{0}")]
    Configure(Refusal),
    /// The lock that prevents a second running instance cannot be acquired.
    #[error("cannot lock {}, which keeps two instances of a plugin apart: {error}", path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// The operating system's error.
        error: io::Error,
    },
    /// The connection from the runtime that launched the plugin cannot be used.
    #[error("cannot use the connection that the runtime handed over: {0}")]
    Connection(io::Error),
}
