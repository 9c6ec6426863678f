//! Checkpoint files for tests.

use std::fs;
use std::path::PathBuf;

use plimsoll_core::pod::{CheckpointFile, PodUid};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::lookup::{Checkpoints, Moment};

pub(super) const MIB: u64 = 1 << 20;

pub(super) fn envelope(data: &Value, version: Option<&str>) -> String {
    let mut envelope = json!({"data": data.to_string(), "checksum": 1_178_570_812u32});
    if let Some(version) = version {
        envelope["version"] = version.into();
    }
    envelope.to_string()
}

pub(super) fn entries(request: &str) -> Value {
    json!({"entries": {"uid-1": {
        "ContainerResources": {"web": {
            "requests": {"cpu": "100m", "memory": request},
            "limits": {"memory": "256Mi"},
        }},
        "PodLevelResources": null,
    }}})
}

/// Directory with the checkpoint files of a kubelet.
pub(super) struct Node {
    pub(super) dir: TempDir,
    pub(super) checkpoints: Checkpoints,
}

impl Node {
    pub(super) fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let checkpoints = Checkpoints::new(dir.path());
        Self { dir, checkpoints }
    }

    /// Writes a file as the kubelet does: a new file, then a rename.
    pub(super) fn write(&self, file: CheckpointFile, text: &str) {
        let temporary = self.dir.path().join("temporary");
        fs::write(&temporary, text).unwrap();
        fs::rename(temporary, self.path(file)).unwrap();
    }

    pub(super) fn path(&self, file: CheckpointFile) -> PathBuf {
        self.dir.path().join(file.file_name())
    }

    pub(super) fn lookup(
        &mut self,
        moment: Moment,
    ) -> (Option<(u64, CheckpointFile)>, Vec<String>) {
        let found = self.checkpoints.lookup(&PodUid::new("uid-1"), "web", moment);
        (
            found
                .found
                .ok()
                .and_then(|found| found.record)
                .map(|record| (record.effective_request().get(), record.file)),
            found
                .problems
                .iter()
                .map(|problem| problem.to_string().replace(self.dir.path().to_str().unwrap(), ""))
                .collect(),
        )
    }
}
