//! Configuration to which the parser adds the fields one by one.

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

/// Protection of a reserved cgroup. The path and the amount come from two fields of the
/// configuration.
#[derive(Default)]
pub(super) struct DraftReserved {
    pub(super) cgroup: Option<CgroupPath>,
    pub(super) memory: Option<Bytes>,
}
