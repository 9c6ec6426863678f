//! The running process of the plugin.

use std::fs;
use std::path::Path;

use crate::commands::install::paths::SERVICE;
use crate::host::files::below;
use crate::host::plugin_lock::holder;

/// The running process of the plugin.
#[derive(Clone, Debug)]
pub(super) struct PluginProcess {
    pub(super) id: i32,
    /// Path of the process's program file. If the file was replaced or removed, the kernel appends
    /// ` (deleted)`.
    pub(super) program: String,
    /// Whether systemd runs the process as the plugin's service. The program's path does not show
    /// this, because a DaemonSet's program may have the same path.
    pub(super) is_service: bool,
}

impl PluginProcess {
    /// The path of the program file, without ` (deleted)`.
    pub(super) fn file(&self) -> &str {
        self.program.strip_suffix(" (deleted)").unwrap_or(&self.program)
    }

    pub(super) fn is_replaced(&self) -> bool {
        self.file() != self.program
    }

    /// Returns whether the process runs the program at this path on the node. The kernel resolves
    /// the symbolic links in the path that it reports, and a directory such as /opt may be a
    /// symbolic link.
    pub(super) fn runs(&self, host: &Path, program: &str) -> bool {
        let path = below(host, program);
        let directory = path.parent().and_then(|directory| directory.canonicalize().ok());
        let inside = directory.zip(host.canonicalize().ok()).and_then(|(directory, host)| {
            let inside = Path::new("/").join(directory.strip_prefix(host).ok()?);
            Some(inside.join(path.file_name()?))
        });
        self.file() == program || inside.is_some_and(|inside| inside.as_os_str() == self.file())
    }
}

/// Returns the process that holds the plugin's lock.
pub(super) fn plugin_process(host: &Path, socket: &Path) -> Option<PluginProcess> {
    let id = holder(host, socket)??;
    let directory = host.join("proc").join(&id);
    let program = fs::read_link(directory.join("exe")).ok()?.to_string_lossy().into_owned();
    let cgroups = fs::read_to_string(directory.join("cgroup")).ok()?;
    let is_service = cgroups.lines().any(|cgroup| cgroup.ends_with(&format!("/{SERVICE}.service")));
    Some(PluginProcess { id: id.parse().ok()?, program, is_service })
}
