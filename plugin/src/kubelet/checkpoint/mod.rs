//! Checkpoints: files in which the kubelet stores the resources of each container.
//!
//! The files are in the kubelet's root directory and contain JSON. The code for them is in
//! `pkg/kubelet/allocation/state` in Kubernetes 1.33 and later, and in `pkg/kubelet/status/state`
//! in 1.32. A file is a JSON object with a checksum and a string, which contains JSON again. The
//! plugin reads all known formats:
//!
//! - `{"data": "{\"entries\": {uid: pod}}", "checksum": n}`, where `pod` is
//!   `{\"ContainerResources\": {name: resources}, ...}`;
//! - the same with `"version": "v2"` and a base64 `podList` beside the entries, which the plugin
//!   skips;
//! - `{"data": "{\"allocationEntries\": {uid: {name: resources}}}", "checksum": n}` of 1.32.
//!
//! The plugin does not verify the checksum. The checksum only protects against bugs of the kubelet,
//! and a truncated file is not valid JSON.
//!
//! **An unreadable file does not mean "no entry".** Unless another file has the entry, the result
//! is [`Inconclusive`](plimsoll_core::requests::Inconclusive). The plugin does not use an earlier
//! version of the file, even if that version was readable. The earlier version would still be
//! correct for most containers, but wrong for the containers whose change made the kubelet write
//! the file. The plugin's other sources of the memory request are less exact, but correct.

mod cache;
mod error;
mod form;
mod lookup;
mod record;
#[cfg(test)]
mod testing;

pub use self::error::{CheckpointError, FormError, LARGEST_FILE};
pub use self::form::{Records, parse};
pub use self::lookup::{Checkpoints, ContainerRecords, Lookup, Moment, RecordSearch};
pub use self::record::{PodLevel, PodRecord, RecordedLimits};

/// Default of the kubelet's root directory (`--root-dir`).
pub const DEFAULT_DIR: &str = "/var/lib/kubelet";
