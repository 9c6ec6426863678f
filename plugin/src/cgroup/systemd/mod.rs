//! Makes the protection of a cgroup persistent if systemd owns the cgroup.
//!
//! systemd overwrites the files of a unit's cgroup when it applies the unit's properties. systemd
//! applies the properties on daemon-reload and daemon-reexec, and whenever a program sets any
//! property of the unit. A value that is only in the file is then lost, so the plugin sets the
//! properties with `SetUnitProperties(runtime=true)`.
//!
//! When a program sets one property, systemd rewrites nearly every file of the unit's memory, cpu
//! and pids controllers. systemd takes the new values from its own state (observed with systemd 257
//! and 262). If another program wrote one of these files without setting the property, the plugin
//! sets the property to the value in the file. Then only the protection changes.
//!
//! The plugin ignores `memory.oom.group`, `memory.zswap.writeback`, `cpuset.*` and `io.weight`,
//! because systemd has no property for the file or no program sets the file for a slice.
//!
//! The plugin connects to the system bus and not to systemd's private socket. zbus rejects messages
//! from the private socket, because their senders have no unique bus name. systemd also sends every
//! signal to every client of the private socket.
//!
//! The plugin does not need the signal `Reloading`: a reload overwrites the files, but systemd
//! restores the plugin's values from the properties.
//!
//! Source: systemd's org.freedesktop.systemd1(5), systemd.resource-control(5), and
//! `src/core/cgroup.c`.

mod client;
mod drop_ins;
mod error;
#[cfg(test)]
pub(crate) mod fake;
mod properties;
mod unit;

pub use self::client::Systemd;
pub use self::drop_ins::{
    LIMIT_DROP_IN, RUNTIME_DROP_INS, drop_ins, remove_drop_ins, remove_limit, remove_protection,
};
pub use self::error::SystemdError;
pub use self::unit::Persistence;
