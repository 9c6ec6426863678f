//! Node-wide settings: the configuration in force, the node's memory, and whether the plugin sets
//! values.

use std::io;
use std::path::Path;

use plimsoll_core::pod::CgroupPath;
use plimsoll_core::policy::{Node, Policy};
use plimsoll_core::units::Bytes;
use tracing::warn;

use crate::config::{Config, Mode, NodeAllocatable, Owner, Reserved};
use crate::kubelet::node::{KubeletFiles, NodeMemory};
use crate::state::originals::DIRECTORY;
use crate::state::{brake, guard_record};

/// Warning that the node guard protects no memory of system services, because system.slice does not
/// exist.
pub const NO_SYSTEM_SLICE: &str = "nodeGuard found no cgroup system.slice";

/// Advice for [`NO_SYSTEM_SLICE`].
pub const NAME_THE_SYSTEM: &str = "Name the cgroups of the runtime and the kubelet as \
                                   systemReservedCgroup and kubeReservedCgroup in the \
                                   configuration, with the amounts systemReserved and \
                                   kubeReserved";

/// Path of a marker file, relative to the root of the node's file system. `plimsoll restore`
/// creates this file. While the file exists, the plugin manages no cgroup.
pub const RESTORE_MARKER: &str = "run/plimsoll/restored";

/// Returns whether [`RESTORE_MARKER`] exists on the node whose file system is at `host`.
///
/// # Errors
///
/// Fails if the plugin cannot determine whether the file exists.
pub fn is_restored(host: &Path) -> io::Result<bool> {
    match host.join(RESTORE_MARKER).try_exists() {
        // A parent of the marker file is not a directory, so the marker file does not exist.
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(false),
        result => result,
    }
}

/// Node-wide settings that all decisions depend on.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Configuration in force.
    pub config: Config,
    /// Memory available to all pods together, and the page size.
    pub node: Node,
    /// Facts about the node's memory. `None` until the plugin has read the files with these facts.
    pub memory: Option<MemoryFacts>,
    /// Whether an operator has called `plimsoll restore`, so that the plugin manages no cgroup.
    pub is_restored: bool,
    /// Reason why the brake was applied. `None` if the brake is not applied.
    pub brake: Option<String>,
}

impl Settings {
    /// Total memory.
    pub fn mem_total(&self) -> Option<Bytes> {
        self.memory?.mem_total
    }

    /// Total memory without hugepages.
    pub fn usable(&self) -> Option<Bytes> {
        self.memory?.usable
    }

    /// Returns whether the plugin sets values, raises limits and refuses limit decreases.
    pub fn enforces(&self) -> bool {
        !self.is_restored && self.mode() == Mode::Enforce
    }

    /// Returns whether the plugin only reports its planned actions.
    pub fn observes(&self) -> bool {
        !self.is_restored && self.mode() == Mode::Observe
    }

    /// Returns the mode in force: the configured mode, or observe if the brake is applied.
    pub fn mode(&self) -> Mode {
        if self.brake.is_some() { Mode::Observe } else { self.config.mode }
    }

    /// Returns the policy whose values the plugin writes. In observe mode and after `plimsoll
    /// restore`, this policy has no value for any file.
    pub fn policy(&self) -> Policy {
        if self.enforces() { self.config.policy } else { Policy::OFF }
    }

    /// Returns the cgroups outside kubepods that the plugin protects.
    pub fn reserved(&self) -> Vec<Reserved> {
        if self.enforces() { self.planned_reserved() } else { Vec::new() }
    }

    /// Returns the cgroups outside kubepods that the plugin would protect in enforce mode.
    pub fn planned_reserved(&self) -> Vec<Reserved> {
        if self.is_restored {
            return Vec::new();
        }
        match self.config.node_guard {
            // A quarter of the memory stays unprotected for the kernel and for processes outside
            // system.slice, such as sessions. If all memory were protected for services, the kernel
            // could not reclaim the services' page cache. A test node ran out of memory without
            // this quarter.
            Some(kept)
                if self.config.reserved.is_empty() && self.planned_guard_limit().is_some() =>
            {
                let memory = Bytes::new(kept.get() / 4 * 3);
                vec![Reserved { owner: Owner::System, cgroup: CgroupPath::system_slice(), memory }]
            }
            _ => self.config.reserved.clone(),
        }
    }

    /// Returns the limit that `nodeGuard` sets for all pods together, in whole pages. Returns
    /// `None` if there is no such limit, or if the limit would leave no memory for pods. Also
    /// returns `None` while the plugin sets no values.
    pub fn guard_limit(&self) -> Option<Bytes> {
        self.planned_guard_limit().filter(|_| self.enforces())
    }

    /// Returns the configured limit of all pods together, even while the plugin sets no values.
    pub fn planned_guard_limit(&self) -> Option<Bytes> {
        let kept = self.config.node_guard.filter(|_| !self.is_restored)?;
        let limit = self.usable()?.saturating_sub(kept).floor_to(self.node.page_size);
        (limit > Bytes::ZERO).then_some(limit)
    }

    /// Returns the maximum memory that the plugin may protect for pods. This is the total memory
    /// without hugepages and without the memory that the plugin keeps for other programs.
    pub fn left_for_pods(&self) -> Option<Bytes> {
        if self.is_restored {
            return self.usable();
        }
        let left = self.usable()?.saturating_sub(self.config.reserved_in_all());
        Some(self.planned_guard_limit().map_or(left, |limit| left.min(limit)))
    }

    /// Returns the maximum protection of all pods together. `None` means that the maximum is
    /// unknown, so the plugin does not limit the protection.
    pub fn budget(&self) -> Option<Bytes> {
        let allocatable = self.node.allocatable?;
        Some(self.left_for_pods().map_or(allocatable, |left| allocatable.min(left)))
    }

    /// Returns the settings that need no file of the kubelet. The node's memory is still unknown.
    /// The node's file system is at `host`.
    pub fn without_memory(config: Config, host: &Path) -> Self {
        let node = Node { allocatable: None, page_size: crate::cgroup::page_size() };
        Self { config, node, memory: None, is_restored: true, brake: None }
            .with_markers(host)
            .derive()
    }

    /// Returns these settings with another configuration.
    pub fn with_config(self, config: Config) -> Self {
        Self { config, ..self }.derive()
    }

    /// Returns these settings with newer facts about the node's memory.
    pub fn with_memory(self, memory: MemoryFacts) -> Self {
        Self { memory: Some(memory), ..self }.derive()
    }

    /// Returns these settings after a look at the marker file of `plimsoll restore` and at the
    /// brake's state file.
    pub fn with_markers(self, host: &Path) -> Self {
        let is_restored = is_restored(host).unwrap_or_else(|error| {
            warn!(%error, "cannot find out whether 'plimsoll restore' was called \
                           (/{RESTORE_MARKER}); the plugin sets nothing");
            true
        });
        let brake = match brake::Record::load(host) {
            Ok(record) => record.map(|record| record.to_string()),
            // Set no values if the record of the brake is unreadable.
            Err(error) => {
                Some(format!("its record {DIRECTORY}/{} cannot be read: {error}", brake::FILE))
            }
        };
        Self { is_restored, brake, ..self }
    }

    /// Returns these settings with the values that follow from the configuration and from the
    /// node's memory.
    fn derive(self) -> Self {
        let allocatable = match self.config.node_allocatable {
            NodeAllocatable::Auto => self.memory.and_then(|memory| memory.allocatable),
            NodeAllocatable::Fixed(bytes) => Some(bytes),
        };
        Self { node: Node { allocatable, ..self.node }, ..self }
    }
}

/// Facts about the node's memory, from the kubelet's files and the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryFacts {
    /// Memory available to all pods together.
    pub allocatable: Option<Bytes>,
    /// Total memory.
    pub mem_total: Option<Bytes>,
    /// Total memory without hugepages.
    pub usable: Option<Bytes>,
}

impl From<&NodeMemory> for MemoryFacts {
    fn from(memory: &NodeMemory) -> Self {
        let NodeMemory { allocatable, mem_total, usable, .. } = *memory;
        Self { allocatable, mem_total, usable }
    }
}

/// Reads the facts about the memory of the node whose file system is at `host`. Reads files of the
/// kubelet, which may hang.
///
/// `named` are the files of the kubelet that the configuration names.
pub fn discover_memory(host: &Path, named: &KubeletFiles) -> NodeMemory {
    NodeMemory::discover(host, crate::cgroup::page_size(), guard_record::read(host), named)
}
