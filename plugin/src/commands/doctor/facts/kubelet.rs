//! Facts about the kubelet.

use std::path::Path;

use plimsoll_core::pod::{CheckpointFile, PodUid};

use crate::host::files::below;
use crate::kubelet::checkpoint::{Checkpoints, Moment};
use crate::kubelet::node::{KubeletFiles, NodeMemory};
use crate::state::settings::discover_memory;

/// Facts about the kubelet.
#[derive(Debug)]
pub(crate) struct KubeletFacts {
    pub(crate) memory: NodeMemory,
    pub(crate) has_directory: bool,
    pub(crate) checkpoints: Vec<&'static str>,
    pub(crate) checkpoint_problems: Vec<String>,
}

impl KubeletFacts {
    /// Collects the facts. `named` are the files of the kubelet that the configuration names.
    pub(super) fn collect(host: &Path, named: &KubeletFiles) -> Self {
        let memory = discover_memory(host, named);
        let directory = below(host, &memory.kubelet.root_dir);
        let files =
            [CheckpointFile::Actuated, CheckpointFile::Allocated, CheckpointFile::StatusManager];
        let files = files.map(CheckpointFile::file_name).into_iter();
        Self {
            has_directory: directory.exists(),
            checkpoints: files
                .filter(|file| directory.join(file).symlink_metadata().is_ok())
                .collect(),
            checkpoint_problems: find_checkpoint_problems(host, &directory),
            memory,
        }
    }
}

/// Reads all checkpoint files of the kubelet. Returns the problems of these files, with the paths
/// of the files on the node.
fn find_checkpoint_problems(host: &Path, directory: &Path) -> Vec<String> {
    // No pod has an empty UID, so the lookup finds no pod and reads all checkpoint files.
    let uid = PodUid::new("");
    let found = Checkpoints::new(directory).lookup(&uid, "", Moment::Create);
    let prefix = host.to_string_lossy();
    let problems = found.problems.iter().map(|problem| match host == Path::new("/") {
        true => problem.to_string(),
        false => problem.to_string().replacen(prefix.trim_end_matches('/'), "", 1),
    });
    problems.collect()
}
