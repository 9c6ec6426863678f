//! Facts about the kernel and about services of the operating system.

use std::path::Path;

use crate::host::files::{Text, Unreadable, is_there, read};
use crate::host::socket::Socket;
use crate::host::version::Version;

/// Socket of the D-Bus system bus. The path is relative to the node's root directory.
pub(crate) const BUS: &str = "run/dbus/system_bus_socket";

/// First kernel version with the cgroup file `memory.reclaim`.
pub(crate) const RECLAIM_KERNEL: Version = Version(5, 19, 0);

/// Facts about the kernel, systemd, swap and inotify.
#[derive(Debug)]
pub(crate) struct SystemFacts {
    pub(crate) release: Text,
    pub(crate) has_systemd: Result<bool, Unreadable>,
    pub(crate) bus: Socket,
    pub(crate) swaps: Text,
    pub(crate) instances: Text,
    pub(crate) watches: Text,
}

impl SystemFacts {
    pub(super) fn collect(host: &Path) -> Self {
        let file = |path: &str| read(&host.join(path));
        Self {
            release: file("proc/sys/kernel/osrelease"),
            has_systemd: is_there(&host.join("run")).and_then(|has_run| match has_run {
                true => is_there(&host.join("run/systemd/system")),
                false => Err(Unreadable::missing()),
            }),
            bus: Socket::connect(&host.join(BUS)),
            swaps: file("proc/swaps"),
            instances: file("proc/sys/fs/inotify/max_user_instances"),
            watches: file("proc/sys/fs/inotify/max_user_watches"),
        }
    }
}
