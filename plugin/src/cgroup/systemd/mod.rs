//! Makes the protection of a cgroup persistent where systemd owns the cgroup.
//!
//! systemd overwrites the files of a unit's cgroup when it applies the unit's properties. systemd
//! does so on daemon-reload and daemon-reexec, and whenever a program sets any property of the
//! unit. Only properties persist. The plugin sets them with `SetUnitProperties(runtime=true)`.
//!
//! When one property is set, systemd rewrites nearly every file of the unit's memory, cpu and pids
//! controllers. The new values come from systemd's own state (observed with systemd 257 and 262).
//! Another program may have written such a file without setting the property. The plugin then sets
//! the property to the value in the file, so that only the protection changes.
//!
//! The plugin does not carry over `memory.oom.group`, `memory.zswap.writeback`, `cpuset.*` and
//! `io.weight`. Either they have no property, or no program sets them for a slice.
//!
//! The plugin connects to the system bus. systemd's private socket is no alternative: zbus accepts
//! no message from there, because the sender has no unique name. systemd also sends every signal to
//! every client there.
//!
//! The plugin subscribes to no signal. The signal `Reloading` would announce that files lose their
//! values, but properties keep theirs.
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
pub use self::drop_ins::{drop_ins, remove_drop_ins, remove_protection};
pub use self::error::SystemdError;
pub use self::unit::Persistence;
