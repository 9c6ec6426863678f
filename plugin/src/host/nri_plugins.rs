//! NRI plugins that a runtime launches from its plugin directory.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::host::files::{below, names};

/// Default directory of the NRI plugins that a runtime launches.
pub(crate) const PLUGINS: &str = "/opt/nri/plugins";

/// Program that a runtime may launch, because it is in the runtime's plugin directory.
#[derive(Debug)]
pub(crate) struct NriPlugin {
    /// Path on the node.
    pub(crate) path: String,
    /// Two digits before the dash in the file name, such as `90` in `90-plimsoll`. Runtimes call
    /// plugins in the order of this index. `None` if the name has no index.
    pub(crate) index: Option<String>,
    /// File name without the index.
    pub(crate) name: String,
    pub(crate) is_executable: bool,
}

impl NriPlugin {
    /// Returns the programs in a directory of the node.
    pub(crate) fn all(host: &Path, directory: &str) -> Vec<Self> {
        let inside = below(host, directory);
        let programs = names(&inside).into_iter().filter_map(|file| {
            let metadata =
                inside.join(&file).symlink_metadata().ok().filter(|metadata| !metadata.is_dir())?;
            let (index, name) = match file.split_once('-') {
                Some((index, name))
                    if index.len() == 2 && index.bytes().all(|byte| byte.is_ascii_digit()) =>
                {
                    (Some(index.to_owned()), name.to_owned())
                }
                _ => (None, file.clone()),
            };
            let is_executable = metadata.permissions().mode() & 0o111 != 0;
            Some(Self {
                path: format!("{}/{file}", directory.trim_end_matches('/')),
                index,
                name,
                is_executable,
            })
        });
        programs.collect()
    }

    /// Returns whether the program is this plugin.
    pub(crate) fn is_ours(&self) -> bool {
        self.name == "plimsoll"
    }
}
