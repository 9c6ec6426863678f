//! The container runtimes and their differences.

use std::fmt;

use crate::runtime::distro::Distro;
use crate::runtime::driver::Driver;

/// The container runtime of a node, with its version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Runtime {
    /// containerd 1.7 of Debian 13 with NRI 0.6, which the node's configuration enables.
    Containerd17,
    /// containerd 2.1 of Debian 14 with NRI 0.8, which is enabled by default.
    Containerd21,
    /// The newest containerd with NRI 0.12.
    Containerd24,
    /// The newest CRI-O with NRI 0.11.
    Crio136,
}

impl Runtime {
    /// All runtimes.
    pub const ALL: [Runtime; 4] =
        [Runtime::Containerd17, Runtime::Containerd21, Runtime::Containerd24, Runtime::Crio136];

    /// Returns the name and minor version. The runtime's files are in `node/` under this name.
    pub fn name(self) -> &'static str {
        match self {
            Runtime::Containerd17 => "containerd-1.7",
            Runtime::Containerd21 => "containerd-2.1",
            Runtime::Containerd24 => "containerd-2.4",
            Runtime::Crio136 => "crio-1.36",
        }
    }

    /// Returns the node's Debian release, which determines the kernel, systemd, runc and crun.
    pub fn distro(self) -> Distro {
        match self {
            Runtime::Containerd17 => Distro::Trixie,
            Runtime::Containerd21 | Runtime::Containerd24 | Runtime::Crio136 => Distro::Forky,
        }
    }

    /// Returns the runtime's systemd unit.
    pub fn unit(self) -> &'static str {
        match self {
            Runtime::Containerd17 | Runtime::Containerd21 | Runtime::Containerd24 => "containerd",
            Runtime::Crio136 => "crio",
        }
    }

    /// Returns whether the runtime has one configured cgroup driver instead of one per handler.
    pub fn has_one_driver(self) -> bool {
        self == Runtime::Crio136
    }

    /// Returns the path and content of the file that sets the cgroup driver.
    ///
    /// Callers use this function only for a runtime that has one driver at a time.
    pub(crate) fn driver_configuration(self, driver: Driver) -> (&'static str, String) {
        let content = format!(
            "[crio.runtime]\ncgroup_manager = \"{driver}\"\ndefault_runtime = \"{driver}\"\n"
        );
        ("/etc/crio/crio.conf.d/50-driver.conf", content)
    }

    /// Returns the name of a container's cgroup within the pod's cgroup.
    pub fn cgroup_name(self, driver: Driver, container: &str) -> String {
        match (self, driver) {
            (Runtime::Crio136, Driver::Systemd) => format!("crio-{container}.scope"),
            (Runtime::Crio136, Driver::Cgroupfs) => format!("crio-{container}"),
            (_, Driver::Systemd) => format!("cri-containerd-{container}.scope"),
            (_, Driver::Cgroupfs) => container.to_owned(),
        }
    }

    /// Returns whether the runtime itself refuses a limit below the container's usage.
    ///
    /// The runtime does not notice when the usage grows while the runtime sets the limit.
    pub fn refuses_limit_decreases(self) -> bool {
        self == Runtime::Crio136
    }

    /// Returns whether the runtime may forget earlier updates when it restarts.
    ///
    /// A forgetful runtime keeps updates only in memory. A restart does not change the values in
    /// the cgroups.
    pub fn may_forget_updates(self) -> bool {
        self == Runtime::Crio136
    }

    /// Returns whether plugins see the unified map of a request to create a container.
    pub fn shows_unified(self) -> bool {
        self == Runtime::Crio136
    }

    /// Returns the name of a sandbox's cgroup within the pod's cgroup.
    ///
    /// A sandbox of CRI-O has no process of its own and therefore no systemd scope.
    pub fn sandbox_cgroup_name(self, driver: Driver, sandbox: &str) -> String {
        match self {
            Runtime::Crio136 => self.cgroup_name(Driver::Cgroupfs, sandbox),
            Runtime::Containerd17 | Runtime::Containerd21 | Runtime::Containerd24 => {
                self.cgroup_name(driver, sandbox)
            }
        }
    }

    /// Returns a script that imports the archive's images into the runtime.
    pub(crate) fn import(self, archive: &str, images: &[&str]) -> String {
        const IMPORT: &str = "ctr --namespace k8s.io images import";
        let copy = |image: &&str| {
            format!(
                "skopeo copy --quiet oci-archive:{archive}:{image} containers-storage:{image}\n"
            )
        };
        match self {
            // Newer versions need `--local`. By default, newer versions let the daemon import, and
            // the daemon does not find the archive's image names.
            Runtime::Containerd17 => format!("{IMPORT} {archive} >/dev/null"),
            Runtime::Containerd21 | Runtime::Containerd24 => {
                format!("{IMPORT} --local {archive} >/dev/null")
            }
            Runtime::Crio136 => images.iter().map(copy).collect(),
        }
    }
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
