//! Finds the entries of a container and its pod in the kubelet's checkpoint files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use plimsoll_core::pod::{CheckpointFile, PodUid};
use plimsoll_core::requests::{Inconclusive, Record};

use super::cache::{Cached, Version};
use super::error::CheckpointError;
use super::record::PodRecord;

/// The kubelet's checkpoint entries for a container and its pod, if these entries exist.
#[derive(Clone, Debug, Default)]
pub struct ContainerRecords {
    /// Entry of the container.
    pub record: Option<Record>,
    /// Entry of the pod. The pod may have an entry although the container has none, because the
    /// kubelet writes no entries for ephemeral containers.
    pub pod: Option<Arc<PodRecord>>,
}

/// Result of a search for the kubelet's checkpoint entries.
pub type RecordSearch = Result<ContainerRecords, Inconclusive>;

/// Reason for the look-up. This determines which file has the correct entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The runtime creates the container, or the plugin found it running. The entry must show the
    /// resources that the kubelet last applied.
    Create,
    /// The runtime updates the container. The entry must show the resources that the kubelet
    /// applies now. The kubelet wrote this entry when it accepted the resize.
    Update,
}

impl Moment {
    /// Returns the files in the order of the search. Kubernetes 1.32 writes only the last file. A
    /// newer kubelet may omit a container from the first file. For example, 1.33 omits init
    /// containers from the actuated file.
    const fn files(self) -> [CheckpointFile; 3] {
        match self {
            Self::Create => {
                [CheckpointFile::Actuated, CheckpointFile::Allocated, CheckpointFile::StatusManager]
            }
            Self::Update => {
                [CheckpointFile::Allocated, CheckpointFile::Actuated, CheckpointFile::StatusManager]
            }
        }
    }
}

/// Result of a look-up.
#[derive(Debug)]
pub struct Lookup {
    /// Entries from the first readable file that has an entry for the container.
    pub found: RecordSearch,
    /// Problems with files that this look-up could not read. Only one look-up returns the problem
    /// with a version of a file, so the caller can log each problem without repetition.
    pub problems: Vec<CheckpointError>,
}

/// Cache of the kubelet's checkpoints in one directory. The cache reads a file again only when the
/// file changes.
///
/// A look-up waits for the file system, so call it from a thread that may block. Most look-ups need
/// one to three `stat` calls. Reading and parsing a changed file takes about 10 ms per MiB.
#[derive(Debug)]
pub struct Checkpoints {
    dir: PathBuf,
    /// Cached files, in the order of [`Checkpoints::slot`].
    cached: [Cached; 3],
}

impl Checkpoints {
    /// Creates a cache of the checkpoints in `dir`, usually [`DEFAULT_DIR`](super::DEFAULT_DIR).
    /// Reads nothing yet.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), cached: Default::default() }
    }

    /// Returns the directory that contains the checkpoints.
    pub fn directory(&self) -> &Path {
        &self.dir
    }

    /// Finds the checkpoint entry of a container. A missing file is no problem, because older
    /// kubelets write fewer files.
    pub fn lookup(&mut self, uid: &PodUid, container: &str, moment: Moment) -> Lookup {
        let mut problems = Vec::new();
        let mut search = Search::new(uid, container);
        for file in moment.files() {
            let cached = &mut self.cached[Self::slot(file)];
            cached.refresh(&self.dir.join(file.file_name()), &mut problems);
            if search.is_over(file, cached) {
                break;
            }
        }
        Lookup { found: search.found(), problems }
    }

    /// Does the same as [`lookup`](Self::lookup) if no file has changed. Returns `None` if a file
    /// has changed. Reads only the metadata of the files, usually of one file.
    pub fn lookup_unchanged(
        &self,
        uid: &PodUid,
        container: &str,
        moment: Moment,
    ) -> Option<RecordSearch> {
        let mut search = Search::new(uid, container);
        for file in moment.files() {
            let cached = &self.cached[Self::slot(file)];
            let metadata = self.dir.join(file.file_name()).symlink_metadata();
            if metadata.ok().map(|metadata| Version::of(&metadata)) != cached.version {
                return None;
            }
            if search.is_over(file, cached) {
                break;
            }
        }
        Some(search.found())
    }

    /// Returns the problems that the files had at the last look-up.
    pub fn problems(&self) -> Vec<String> {
        self.cached
            .iter()
            .filter_map(|cached| Some(cached.problem.as_ref()?.text.clone()))
            .collect()
    }

    const fn slot(file: CheckpointFile) -> usize {
        match file {
            CheckpointFile::Actuated => 0,
            CheckpointFile::Allocated => 1,
            CheckpointFile::StatusManager => 2,
        }
    }
}

/// Search that looks for a container's entry in the files one by one.
struct Search<'a> {
    uid: &'a PodUid,
    container: &'a str,
    found: ContainerRecords,
    /// Whether the search could not read a file that may contain the entry.
    is_inconclusive: bool,
    /// Whether the search has read a file.
    is_read: bool,
}

impl<'a> Search<'a> {
    fn new(uid: &'a PodUid, container: &'a str) -> Self {
        Self {
            uid,
            container,
            found: ContainerRecords::default(),
            is_inconclusive: false,
            is_read: false,
        }
    }

    /// Searches one file. Returns true if the search is complete and needs no further file.
    fn is_over(&mut self, file: CheckpointFile, cached: &Cached) -> bool {
        if cached.is_unreadable() {
            // Kubelets after 1.32 do not write StatusManager, so ignore its error if another file
            // exists.
            self.is_inconclusive |= file != CheckpointFile::StatusManager || !self.is_read;
            return false;
        }
        let Some(pod) = cached.records.pods.get(self.uid) else {
            self.is_read |= cached.version.is_some();
            return false;
        };
        self.is_read = true;
        match pod.containers.iter().find(|(name, _)| **name == *self.container) {
            Some((_, Some(entry))) => {
                let record = Record { file, request: entry.request, limit: entry.limit };
                self.found = ContainerRecords { record: Some(record), pod: Some(pod.clone()) };
                return true;
            }
            Some((_, None)) => self.is_inconclusive = true,
            None => {}
        }
        self.found.pod.get_or_insert_with(|| pod.clone());
        false
    }

    fn found(self) -> RecordSearch {
        if self.found.record.is_none() && self.is_inconclusive {
            Err(Inconclusive)
        } else {
            Ok(self.found)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::super::testing::{MIB, Node, entries, envelope};
    use super::*;

    #[test]
    fn every_known_form_is_read() {
        let old = json!({
            "allocationEntries": {"uid-1": {"web": {
                "requests": {"memory": "128Mi"},
                "limits": {"memory": "256Mi"},
            }}},
            "resizeStatusEntries": {"uid-1": "InProgress"},
        });
        let mut v2 = entries("128Mi");
        v2["podList"] = "AAECAw==".into();
        for (file, text) in [
            (CheckpointFile::Actuated, envelope(&entries("128Mi"), None)),
            (CheckpointFile::Allocated, envelope(&v2, Some("v2"))),
            (CheckpointFile::Allocated, envelope(&entries("128Mi"), Some("v7"))),
            (CheckpointFile::StatusManager, envelope(&old, None)),
        ] {
            let mut node = Node::new();
            node.write(file, &text);
            assert_eq!(node.lookup(Moment::Create), (Some((128 * MIB, file)), vec![]), "{text}");
        }
    }

    #[test]
    fn creation_prefers_actuated_but_update_prefers_allocated() {
        let mut node = Node::new();
        node.write(
            CheckpointFile::StatusManager,
            &envelope(
                &json!({"allocationEntries": {"uid-1": {"web": {"requests": {"memory": "1Mi"}}}}}),
                None,
            ),
        );
        assert_eq!(node.lookup(Moment::Create).0, Some((MIB, CheckpointFile::StatusManager)));
        node.write(CheckpointFile::Actuated, &envelope(&entries("2Mi"), None));
        assert_eq!(node.lookup(Moment::Update).0, Some((2 * MIB, CheckpointFile::Actuated)));
        node.write(CheckpointFile::Allocated, &envelope(&entries("3Mi"), None));
        assert_eq!(node.lookup(Moment::Create).0, Some((2 * MIB, CheckpointFile::Actuated)));
        assert_eq!(node.lookup(Moment::Update).0, Some((3 * MIB, CheckpointFile::Allocated)));
    }

    #[test]
    fn missing_files_and_records_are_no_problem() {
        let mut nowhere = Checkpoints::new("/nonexistent/kubelet");
        let found = nowhere.lookup(&PodUid::new("uid-1"), "web", Moment::Create);
        assert!(found.found.unwrap().record.is_none() && found.problems.is_empty());
        let mut node = Node::new();
        assert_eq!(node.lookup(Moment::Create), (None, vec![]));
        for data in [
            json!({}),
            json!({"entries": null}),
            json!({"entries": {}}),
            json!({"entries": {"uid-1": null}}),
            json!({"entries": {"uid-1": {"ContainerResources": null}}}),
            json!({"entries": {"uid-1": {"ContainerResources": {"other": {}}}}}),
        ] {
            node.write(CheckpointFile::Actuated, &envelope(&data, None));
            assert_eq!(node.lookup(Moment::Create), (None, vec![]), "{data}");
        }
    }

    #[test]
    fn a_record_without_memory_is_a_record() {
        for (resources, request) in [
            (json!(null), 0),
            (json!({}), 0),
            (json!({"requests": null, "limits": null}), 0),
            (json!({"requests": {"cpu": "1"}}), 0),
            (json!({"limits": {"memory": "64Mi"}}), 64 * MIB),
            (json!({"requests": {"memory": "0"}, "limits": {"memory": "64Mi"}}), 0),
            (json!({"requests": {"memory": 1048576}}), MIB),
            (json!({"claims": [{"name": "gpu"}]}), 0),
        ] {
            let mut node = Node::new();
            let data = json!({"entries": {"uid-1": {"ContainerResources": {"web": resources}}}});
            node.write(CheckpointFile::Actuated, &envelope(&data, None));
            assert_eq!(
                node.lookup(Moment::Create).0,
                Some((request, CheckpointFile::Actuated)),
                "{data}"
            );
        }
    }

    #[test]
    fn an_invalid_quantity_affects_only_its_record() {
        let mut node = Node::new();
        let data = json!({"entries": {"uid-1": {"ContainerResources": {
            "web": {"requests": {"memory": "1Mi"}},
            "bad": {"requests": {"memory": "-1Mi"}},
            "worse": {"requests": {"memory": ["x"]}},
        }}}});
        node.write(CheckpointFile::Actuated, &envelope(&data, None));
        let (found, problems) = node.lookup(Moment::Create);
        assert_eq!(found, Some((MIB, CheckpointFile::Actuated)));
        assert!(
            problems[0].starts_with(
                "kubelet checkpoint /actuated_pods_state: 2 records have no readable memory \
                 quantity, the first being container "
            ),
            "{problems:?}"
        );
        let bad = node.checkpoints.lookup(&PodUid::new("uid-1"), "bad", Moment::Create);
        assert!(bad.found.is_err() && bad.problems.is_empty(), "never 0, and reported once");
    }

    #[test]
    fn a_format_without_entries_needs_newer_plimsoll() {
        let mut node = Node::new();
        for (data, version) in
            [(json!({"podList": "AAEC"}), Some("v2")), (json!({"pods": []}), Some("v3"))]
        {
            node.write(CheckpointFile::Actuated, &envelope(&data, version));
            let (found, problems) = node.lookup(Moment::Create);
            assert_eq!(found, None);
            assert_eq!(
                problems,
                [format!(
                    "kubelet checkpoint /actuated_pods_state: version '{}' holds no 'entries', \
                     the only form read here; this kubelet needs a newer plimsoll; its records \
                     are not used",
                    version.unwrap()
                )]
            );
        }
    }

    #[test]
    fn a_malformed_file_hides_no_valid_file() {
        let mut node = Node::new();
        node.write(CheckpointFile::Actuated, "garbage");
        node.write(CheckpointFile::Allocated, &envelope(&entries("2Mi"), None));
        let (found, problems) = node.lookup(Moment::Create);
        assert_eq!((found, problems.len()), (Some((2 * MIB, CheckpointFile::Allocated)), 1));
    }

    #[test]
    fn an_unreadable_file_is_not_no_record() {
        let good = envelope(&entries("2Mi"), None);
        let other = envelope(&json!({"entries": {"uid-2": {"ContainerResources": {}}}}), None);
        let conclusion = |node: &mut Node| {
            let found = node.checkpoints.lookup(&PodUid::new("uid-1"), "web", Moment::Create).found;
            let unchanged =
                node.checkpoints.lookup_unchanged(&PodUid::new("uid-1"), "web", Moment::Create);
            let is_found = |found: ContainerRecords| found.record.is_some();
            if let Some(unchanged) = unchanged {
                assert_eq!(unchanged.map(is_found), found.clone().map(is_found));
            }
            found.map(is_found)
        };
        for (actuated, allocated, older, expected) in [
            (None, None, None, Ok(false)),
            (Some(&good[..20]), None, None, Err(Inconclusive)),
            (
                Some(r#"{"version":"v9","data":"{\"podList\":\"x\"}"}"#),
                None,
                None,
                Err(Inconclusive),
            ),
            (Some(&good[..20]), Some(&*good), None, Ok(true)),
            (Some(&good[..20]), Some(&*other), None, Err(Inconclusive)),
            (Some(&*other), Some(&good[..20]), None, Err(Inconclusive)),
            (Some(&*other), None, None, Ok(false)),
            // Only an older kubelet writes the third file, so the search can ignore it if a newer
            // kubelet wrote the first file.
            (Some(&*other), None, Some("garbage"), Ok(false)),
            (None, None, Some("garbage"), Err(Inconclusive)),
        ] {
            let mut node = Node::new();
            for (file, text) in [
                (CheckpointFile::Actuated, actuated),
                (CheckpointFile::Allocated, allocated),
                (CheckpointFile::StatusManager, older),
            ] {
                if let Some(text) = text {
                    node.write(file, text);
                }
            }
            for _ in 0..2 {
                assert_eq!(conclusion(&mut node), expected, "{actuated:?} {allocated:?} {older:?}");
            }
        }
    }

    #[test]
    fn the_cache_answers_only_for_unchanged_files() {
        let mut node = Node::new();
        let unchanged = |node: &Node, container| {
            let found =
                node.checkpoints.lookup_unchanged(&PodUid::new("uid-1"), container, Moment::Create);
            found.map(|found| found.unwrap().record.map(|record| record.effective_request().get()))
        };
        assert_eq!(unchanged(&node, "web"), Some(None), "no files");
        node.write(CheckpointFile::Actuated, &envelope(&entries("128Mi"), None));
        assert_eq!(unchanged(&node, "web"), None, "a new file");
        node.lookup(Moment::Create);
        assert_eq!(unchanged(&node, "web"), Some(Some(128 * MIB)));
        assert_eq!(unchanged(&node, "other"), Some(None));
        node.write(CheckpointFile::Actuated, &envelope(&entries("64Mi"), None));
        assert_eq!(unchanged(&node, "web"), None, "a replaced file");
        node.lookup(Moment::Create);
        assert_eq!(unchanged(&node, "web"), Some(Some(64 * MIB)));
        fs::remove_file(node.path(CheckpointFile::Actuated)).unwrap();
        assert_eq!(unchanged(&node, "web"), None, "a removed file");
    }
}
