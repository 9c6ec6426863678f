//! Access to cgroupfs. Only this module and its submodules write to cgroup files.
//!
//! A [`Cgroup`] keeps its directory open. After a cgroup is removed, a new cgroup may have the same
//! path. The open directory never refers to the new cgroup. The plugin opens every directory and
//! every file beneath one root ([`CgroupRoot`]). The plugin writes only the files that
//! [`Knob`](plimsoll_core::units::Knob) lists, `cpu.max` and `memory.reclaim`. The plugin reads
//! only files whose names are in this module or its submodules.
//!
//! Source: the kernel's Documentation/admin-guide/cgroup-v2.rst, "Memory Interface Files".

mod beneath;
mod directory;
mod error;
mod events;
mod reclaim;
mod root;
pub mod systemd;
#[cfg(test)]
mod testing;
mod usage;
mod values;
pub mod watch;

use plimsoll_core::units::PageSize;

pub use self::directory::Cgroup;
pub use self::error::{CgroupError, RootError};
pub use self::events::{EVENTS, Events, Pressure};
pub use self::reclaim::Reclaimed;
pub use self::root::CgroupRoot;
pub use self::values::{CPU_WEIGHT, SWAP_MAX};

/// Returns the page size of the running kernel.
pub fn page_size() -> PageSize {
    PageSize::new(rustix::param::page_size() as u64).unwrap_or(PageSize::KIB4)
}
