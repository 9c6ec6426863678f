//! The cgroup drivers.

use std::fmt;

/// The cgroup driver, which determines the program that makes the cgroups of pods and containers.
///
/// The runtime handler that uses a driver has the same name as the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Driver {
    /// systemd creates the cgroups, on request over D-Bus.
    Systemd,
    /// The kubelet and the runtime create the cgroups directly.
    Cgroupfs,
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Driver::Systemd => "systemd",
            Driver::Cgroupfs => "cgroupfs",
        })
    }
}
