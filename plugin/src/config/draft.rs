//! Configuration to which the parser adds one field after the other.

use plimsoll_core::pod::CgroupPath;
use plimsoll_core::units::Bytes;

use crate::config::model::Config;

/// Configuration under construction. A field that is missing or has a mistake keeps its default.
#[derive(Default)]
pub(super) struct Draft {
    pub(super) config: Config,
    /// `systemReservedCgroup` and `systemReserved`.
    pub(super) system: DraftReserved,
    /// `kubeReservedCgroup` and `kubeReserved`.
    pub(super) kube: DraftReserved,
}

/// Protection of a reserved cgroup. One field of the configuration has the path, and another has
/// the amount.
#[derive(Default)]
pub(super) struct DraftReserved {
    pub(super) cgroup: Option<CgroupPath>,
    pub(super) memory: Option<Bytes>,
}
