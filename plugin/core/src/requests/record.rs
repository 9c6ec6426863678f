//! Memory request and limit of a container in the kubelet's checkpoint.

use crate::pod::CheckpointFile;
use crate::units::Bytes;

/// The kubelet's checkpoint entry for the memory of one container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// File that contains the checkpoint entry.
    pub file: CheckpointFile,
    /// Memory request; `None` if not given.
    pub request: Option<Bytes>,
    /// Memory limit; `None` if not given.
    pub limit: Option<Bytes>,
}

impl Record {
    /// Returns the request that follows from the checkpoint entry. If the entry has only a limit,
    /// the request equals the limit (the default of the API server). If the entry has neither, the
    /// request is 0.
    pub fn effective_request(&self) -> Bytes {
        self.request.or(self.limit).unwrap_or(Bytes::ZERO)
    }
}

/// Error: the plugin could not read a checkpoint file at all, or not before the deadline. The file
/// may or may not have an entry for the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inconclusive;
