//! Errors of checkpoint files.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Maximum size of a checkpoint file in bytes. The entries of 500 pods need about 1 MiB. In version
/// v2, which contains whole pod specifications, these entries need a few MiB.
pub const LARGEST_FILE: u64 = 64 << 20;

/// Error: the plugin cannot use a checkpoint, or a part of it.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// The file could not be opened or read.
    #[error("kubelet checkpoint {path}: {error}; its records are not used")]
    Io {
        /// Path of the file.
        path: PathBuf,
        /// The cause.
        error: io::Error,
    },
    /// The file is no regular file, for example a symbolic link or a pipe.
    #[error("kubelet checkpoint {path}: expected a regular file; its records are not used")]
    NotAFile {
        /// Path of the file.
        path: PathBuf,
    },
    /// The file is larger than [`LARGEST_FILE`].
    #[error(
        "kubelet checkpoint {path}: {size} bytes, expected at most {LARGEST_FILE}; its records \
         are not used"
    )]
    TooLarge {
        /// Path of the file.
        path: PathBuf,
        /// Size of the file in bytes.
        size: u64,
    },
    /// The plugin does not know the format of the file.
    #[error("kubelet checkpoint {path}: {error}; its records are not used")]
    Form {
        /// Path of the file.
        path: PathBuf,
        /// Description of the problem.
        error: FormError,
    },
    /// Some entries of the file are unreadable. The plugin uses the other entries.
    #[error(
        "kubelet checkpoint {path}: {count} records have no readable memory quantity, the first \
         being {first}"
    )]
    Records {
        /// Path of the file.
        path: PathBuf,
        /// Number of unreadable entries.
        count: usize,
        /// Pod and container of the first unreadable entry, and the problem.
        first: String,
    },
}

/// Error: the file is not a checkpoint in a format that the plugin knows.
#[derive(Debug, Error)]
pub enum FormError {
    /// The file is not JSON, or its outer object differs from what the kubelet writes.
    #[error("expected JSON with a string 'data', as the kubelet writes it: {0}")]
    Envelope(serde_json::Error),
    /// The string `data` is not JSON, or differs from what the kubelet writes.
    #[error("expected JSON with 'entries' in 'data', as the kubelet writes it: {0}")]
    Data(serde_json::Error),
    /// The kubelet is newer than this plugin and no longer writes `entries`.
    #[error(
        "version '{0}' holds no 'entries', the only form read here; this kubelet needs a newer \
         plimsoll"
    )]
    Newer(String),
}
