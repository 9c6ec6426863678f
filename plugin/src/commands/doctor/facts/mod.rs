//! Facts about a node. The code that collects the facts does not judge them.
//!
//! An unreadable file counts as a fact too. Each read has a maximum size, and doctor changes
//! nothing on the node.

pub(crate) mod cgroups;
pub(crate) mod kubelet;
pub(crate) mod plugin;
pub(crate) mod system;

use std::path::{Path, PathBuf};

use crate::commands::doctor::facts::cgroups::CgroupFacts;
use crate::commands::doctor::facts::kubelet::KubeletFacts;
use crate::commands::doctor::facts::plugin::PluginFacts;
use crate::commands::doctor::facts::system::SystemFacts;
use crate::host::runtime::detect::Runtime;
use crate::host::socket::Socket;

/// Facts that doctor observed about a node.
#[derive(Debug)]
pub struct NodeFacts {
    pub(crate) is_root: bool,
    pub(crate) cgroups: CgroupFacts,
    pub(crate) system: SystemFacts,
    pub(crate) runtimes: Vec<Runtime>,
    pub(crate) nri: Socket,
    pub(crate) nri_path: PathBuf,
    pub(crate) plugin: PluginFacts,
    pub(crate) kubelet: KubeletFacts,
}

impl NodeFacts {
    /// Collects facts about the node whose file system is at `host`, usually `/`. Also connects to
    /// the runtime's NRI socket, so the runtime logs that a plugin did not register. Writes no
    /// file.
    pub fn collect(host: &Path, socket: &Path) -> Self {
        let runtimes = Runtime::all(host);
        let plugin = PluginFacts::collect(host, socket, &runtimes);
        let named = plugin.config().and_then(|config| config.kubelet).unwrap_or_default();
        Self {
            is_root: rustix::process::geteuid().is_root(),
            cgroups: CgroupFacts::collect(host),
            system: SystemFacts::collect(host),
            nri: Socket::connect(socket),
            nri_path: socket.to_owned(),
            plugin,
            kubelet: KubeletFacts::collect(host, &named),
            runtimes,
        }
    }
}
