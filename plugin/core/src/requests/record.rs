//! The kubelet's record of a container's memory request and limit.

use crate::pod::CheckpointFile;
use crate::units::Bytes;

/// The kubelet's record of one container's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// File that contains the record.
    pub file: CheckpointFile,
    /// Memory request; `None` if not given.
    pub request: Option<Bytes>,
    /// Memory limit; `None` if not given.
    pub limit: Option<Bytes>,
}

impl Record {
    /// Returns the request that follows from the record. If only the limit is given, it is also the
    /// request (the default of the API server). If neither is given, the request is 0.
    pub fn effective_request(&self) -> Bytes {
        self.request.or(self.limit).unwrap_or(Bytes::ZERO)
    }
}

/// Error: the plugin could not read a checkpoint file, or not in time. So the kubelet may or may
/// not have a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inconclusive;
