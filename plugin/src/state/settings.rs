//! Settings of the node: the configuration in force, the node's memory, and whether the plugin
//! acts.

use std::io;
use std::path::Path;

use plimsoll_core::pod::CgroupPath;
use plimsoll_core::policy::{Node, Policy};
use plimsoll_core::units::Bytes;
use tracing::warn;

use crate::config::{Config, Mode, NodeAllocatable, Owner, Reserved};
use crate::kubelet::node::NodeMemory;
use crate::state::originals::DIRECTORY;
use crate::state::{brake, guard_record};

/// Warning that half of the guard is missing: there is no cgroup of the system to protect.
pub const NO_SYSTEM_SLICE: &str = "nodeGuard found no cgroup system.slice";

/// Advice for [`NO_SYSTEM_SLICE`].
pub const NAME_THE_SYSTEM: &str = "Name the cgroups of the runtime and the kubelet as \
                                   systemReservedCgroup and kubeReservedCgroup in the \
                                   configuration, with the amounts systemReserved and \
                                   kubeReserved";

/// Marker file, relative to the root of the node's file system. While it exists the plugin manages
/// nothing. `plimsoll restore` creates it.
pub const STAND_ASIDE: &str = "run/plimsoll/restored";

/// Returns whether [`STAND_ASIDE`] exists on the node whose file system is at `host`.
///
/// # Errors
///
/// Fails if the operating system cannot look for the file.
pub fn is_restored(host: &Path) -> io::Result<bool> {
    match host.join(STAND_ASIDE).try_exists() {
        // A parent of the marker file is no directory, so there is no marker file.
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(false),
        result => result,
    }
}

/// Node-wide input of all decisions.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Configuration in force.
    pub config: Config,
    /// Memory available to all pods together, and the page size.
    pub node: Node,
    /// Total memory.
    pub mem_total: Option<Bytes>,
    /// Total memory without hugepages.
    pub usable: Option<Bytes>,
    /// Whether `plimsoll restore` was called, so that the plugin manages nothing.
    pub stand_aside: bool,
    /// Reason why the brake was applied; `None` if it is not applied.
    pub brake: Option<String>,
}

impl Settings {
    /// Returns whether the plugin acts: it sets values, raises limits and refuses limit decreases.
    pub fn enforces(&self) -> bool {
        !self.stand_aside && self.mode() == Mode::Enforce
    }

    /// Returns whether the plugin only reports what it would do.
    pub fn observes(&self) -> bool {
        !self.stand_aside && self.mode() == Mode::Observe
    }

    /// Returns the mode in force: the configured mode, or observe if the brake is applied.
    pub fn mode(&self) -> Mode {
        if self.brake.is_some() { Mode::Observe } else { self.config.mode }
    }

    /// Returns the policy for writing files. While the plugin does not act, this policy has no
    /// value for any file.
    pub fn policy(&self) -> Policy {
        if self.enforces() { self.config.policy } else { Policy::OFF }
    }

    /// Returns the cgroups besides the pods that the plugin protects.
    pub fn reserved(&self) -> Vec<Reserved> {
        if self.enforces() { self.planned_reserved() } else { Vec::new() }
    }

    /// Returns the cgroups besides the pods that the plugin would protect if it acted.
    pub fn planned_reserved(&self) -> Vec<Reserved> {
        if self.stand_aside {
            return Vec::new();
        }
        match self.config.node_guard {
            // A quarter is left for the kernel and for processes outside system.slice, such as
            // sessions. If all of it were protected for services, the kernel could not reclaim
            // their page cache in it. A node ran out of memory this way.
            Some(kept)
                if self.config.reserved.is_empty() && self.planned_guard_line().is_some() =>
            {
                let memory = Bytes::new(kept.get() / 4 * 3);
                vec![Reserved { owner: Owner::System, cgroup: CgroupPath::system_slice(), memory }]
            }
            _ => self.config.reserved.clone(),
        }
    }

    /// Returns the limit of all pods together in whole pages (`nodeGuard`). Returns `None` if there
    /// is no such limit or the limit would leave nothing for pods. Also returns `None` while the
    /// plugin does not act.
    pub fn guard_line(&self) -> Option<Bytes> {
        self.planned_guard_line().filter(|_| self.enforces())
    }

    /// Returns the configured limit of all pods together, whether the plugin acts or not.
    pub fn planned_guard_line(&self) -> Option<Bytes> {
        let kept = self.config.node_guard.filter(|_| !self.stand_aside)?;
        let line = self.usable?.saturating_sub(kept).floor_to(self.node.page_size);
        (line > Bytes::ZERO).then_some(line)
    }

    /// Returns the memory that may be promised to pods: total memory without hugepages and without
    /// the memory kept from pods.
    pub fn left_for_pods(&self) -> Option<Bytes> {
        if self.stand_aside {
            return self.usable;
        }
        let left = self.usable?.saturating_sub(self.config.reserved_in_all());
        Some(self.planned_guard_line().map_or(left, |line| left.min(line)))
    }

    /// Returns the upper bound of the protection of all pods together. `None` means that the bound
    /// is unknown and not applied.
    pub fn budget(&self) -> Option<Bytes> {
        let allocatable = self.node.allocatable?;
        Some(self.left_for_pods().map_or(allocatable, |left| allocatable.min(left)))
    }

    /// Determines the settings of the node whose file system is at `host`. Also returns the facts
    /// about its memory, for the log.
    pub fn discover(config: Config, host: &Path) -> (Self, NodeMemory) {
        let page_size = crate::cgroup::page_size();
        let memory = NodeMemory::discover(host, page_size, guard_record::read(host));
        let allocatable = match config.node_allocatable {
            NodeAllocatable::Auto => memory.allocatable,
            NodeAllocatable::Fixed(bytes) => Some(bytes),
        };
        let stand_aside = is_restored(host).unwrap_or_else(|error| {
            warn!(%error, "cannot find out whether 'plimsoll restore' was called, by \
                           /{STAND_ASIDE}: in doubt nothing is set");
            true
        });
        let brake = match brake::Record::load(host) {
            Ok(record) => record.map(|record| record.to_string()),
            // If the record is unreadable, write nothing.
            Err(error) => {
                Some(format!("its record {DIRECTORY}/{} cannot be read: {error}", brake::FILE))
            }
        };
        let node = Node { allocatable, page_size };
        (
            Self {
                config,
                node,
                mem_total: memory.mem_total,
                usable: memory.usable,
                stand_aside,
                brake,
            },
            memory,
        )
    }
}
