//! Facts about the kubelet.

use std::path::Path;

use plimsoll_core::pod::{CheckpointFile, PodUid};

use crate::host::files::{Text, Unreadable, read};
use crate::host::kubelet_process::KubeletProcess;
use crate::kubelet::checkpoint::{Checkpoints, Moment};
use crate::kubelet::node::NodeMemory;
use crate::state::settings::discover_memory;

/// The kubelet's directory. The path is relative to the node's root directory.
pub(crate) const KUBELET: &str = "var/lib/kubelet";

/// Facts about the kubelet.
#[derive(Debug)]
pub(crate) struct KubeletFacts {
    pub(crate) memory: NodeMemory,
    pub(crate) config: Text,
    pub(crate) has_kubelet: bool,
    pub(crate) kubelets: Result<Vec<KubeletProcess>, Unreadable>,
    pub(crate) checkpoints: Vec<&'static str>,
    pub(crate) checkpoint_problems: Vec<String>,
}

impl KubeletFacts {
    pub(super) fn collect(host: &Path) -> Self {
        let files =
            [CheckpointFile::Actuated, CheckpointFile::Allocated, CheckpointFile::StatusManager];
        let files = files.map(CheckpointFile::file_name).into_iter();
        Self {
            memory: discover_memory(host),
            config: read(&host.join(KUBELET).join("config.yaml")),
            has_kubelet: host.join(KUBELET).exists(),
            kubelets: KubeletProcess::all(host),
            checkpoints: files
                .filter(|file| host.join(KUBELET).join(file).symlink_metadata().is_ok())
                .collect(),
            checkpoint_problems: find_checkpoint_problems(host),
        }
    }
}

/// Reads all checkpoint files of the kubelet. Returns the problems of these files, with the paths
/// of the files on the node.
fn find_checkpoint_problems(host: &Path) -> Vec<String> {
    // No pod has an empty UID, so the lookup finds no pod and reads all checkpoint files.
    let uid = PodUid::new("");
    let found = Checkpoints::new(host.join(KUBELET)).lookup(&uid, "", Moment::Create);
    let prefix = host.to_string_lossy();
    let problems = found.problems.iter().map(|problem| match host == Path::new("/") {
        true => problem.to_string(),
        false => problem.to_string().replacen(prefix.trim_end_matches('/'), "", 1),
    });
    problems.collect()
}
