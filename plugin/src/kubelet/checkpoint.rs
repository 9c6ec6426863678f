//! Checkpoints of the kubelet: its records of each container's resources.
//!
//! The files are in the kubelet's root directory and contain JSON. The code is in
//! `pkg/kubelet/allocation/state` in Kubernetes 1.33 and later, and in `pkg/kubelet/status/state`
//! in 1.32. A file is an envelope with a checksum and a string that is JSON again. All known forms
//! are read:
//!
//! - `{"data": "{\"entries\": {uid: pod}}", "checksum": n}`, where `pod` is
//!   `{\"ContainerResources\": {name: resources}, ...}`;
//! - the same with `"version": "v2"` and a base64 `podList` beside the entries, which is skipped;
//! - `{"data": "{\"allocationEntries\": {uid: {name: resources}}}", "checksum": n}` of 1.32.
//!
//! The checksum is not verified. It protects the kubelet against its own bugs, and a truncated file
//! is no valid JSON anyway.
//!
//! **An unreadable file does not mean "no record"**: unless another file has the record, the answer
//! is [`Inconclusive`]. An earlier version of the file is not used, even if it was readable. The
//! older content would still be correct for most containers. It would be wrong for exactly those
//! containers whose change made the kubelet write the file. The plugin's other sources of the
//! request are less exact, but correct.

use std::collections::HashMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::marker::PhantomData;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use plimsoll_core::pod::{CheckpointFile, PodUid};
use plimsoll_core::requests::{Inconclusive, Record};
use plimsoll_core::units::{Bytes, MilliCpu, QuantityError, excerpt};
use rustix::fs::OFlags;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use thiserror::Error;

/// Default of the kubelet's root directory (`--root-dir`).
pub const DEFAULT_DIR: &str = "/var/lib/kubelet";

/// Maximum size of a file that is read, in bytes. 500 pods need about 1 MiB, or a few MiB with
/// whole pod specifications (v2).
pub const LARGEST_FILE: u64 = 64 << 20;

/// The kubelet's records of a container and its pod, as far as they exist.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Record of the container.
    pub record: Option<Record>,
    /// Record of the pod. It may exist without a record of the container, because ephemeral
    /// containers are never recorded.
    pub pod: Option<Arc<PodRecord>>,
}

/// Result of a search for the kubelet's records.
pub type Recorded = Result<Found, Inconclusive>;

/// Point in time for which the record is needed. It decides which file is correct.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// A container is being created or was found running. The record must show what the kubelet
    /// last acted on.
    Create,
    /// A container is being updated. The record must show what the kubelet is about to act on. The
    /// kubelet wrote this record when it accepted the resize.
    Update,
}

impl Moment {
    /// Returns the files to search, best first. The later files matter on 1.32, and where a kubelet
    /// omits a container from the best file. For example, 1.33 omits init containers from the
    /// actuated file.
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
    /// Records from the first readable file that has one of the container.
    pub found: Recorded,
    /// Files that this look-up found unreadable. Each version of a file is reported once, so the
    /// caller can log every problem.
    pub problems: Vec<CheckpointError>,
}

/// Error: a checkpoint could not be used as a whole or in part.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// The file could not be opened or read.
    #[error("kubelet checkpoint {path}: {error}; its records are not used")]
    Io {
        /// Path of the file.
        path: PathBuf,
        /// The cause.
        error: io::Error,
    },
    /// The file is no regular file, for example a symbolic link or a pipe.
    #[error("kubelet checkpoint {path}: expected a regular file; its records are not used")]
    NotAFile {
        /// Path of the file.
        path: PathBuf,
    },
    /// The file is larger than [`LARGEST_FILE`].
    #[error(
        "kubelet checkpoint {path}: {size} bytes, expected at most {LARGEST_FILE}; its records are not used"
    )]
    TooLarge {
        /// Path of the file.
        path: PathBuf,
        /// Size of the file in bytes.
        size: u64,
    },
    /// The file has no known form.
    #[error("kubelet checkpoint {path}: {error}; its records are not used")]
    Form {
        /// Path of the file.
        path: PathBuf,
        /// Description of the problem.
        error: FormError,
    },
    /// Some records of the file are unreadable. The other records are used.
    #[error(
        "kubelet checkpoint {path}: {count} records have no readable memory quantity, the first being {first}"
    )]
    Records {
        /// Path of the file.
        path: PathBuf,
        /// Number of unreadable records.
        count: usize,
        /// Place of the first unreadable record, and its problem.
        first: String,
    },
}

/// Error: the bytes are not a checkpoint of a known form.
#[derive(Debug, Error)]
pub enum FormError {
    /// The envelope is not JSON, or not an envelope as the kubelet writes it.
    #[error("expected JSON with a string 'data', as the kubelet writes it: {0}")]
    Envelope(serde_json::Error),
    /// The data in the envelope is not JSON, or not data as the kubelet writes it.
    #[error("expected JSON with 'entries' in 'data', as the kubelet writes it: {0}")]
    Data(serde_json::Error),
    /// The kubelet is newer than this plugin and no longer writes the entries.
    #[error(
        "version '{0}' holds no 'entries', the only form read here; this kubelet needs a newer plimsoll"
    )]
    Newer(String),
}

/// Cache of the kubelet's checkpoints in one directory. A file is read again only when it changes.
///
/// Look-ups block on the file system, so call them from a thread that may block. Most look-ups need
/// one to three `stat` calls. To read and parse a changed file takes about 10 ms per MiB.
#[derive(Debug)]
pub struct Checkpoints {
    dir: PathBuf,
    /// Cached files, in the order of [`Checkpoints::slot`].
    cached: [Cached; 3],
}

/// Search for a container in one file after the other.
struct Search<'a> {
    uid: &'a PodUid,
    container: &'a str,
    found: Found,
    /// Whether a file that may contain the record could not be read.
    is_inconclusive: bool,
    /// Whether a file was read.
    is_read: bool,
}

impl<'a> Search<'a> {
    fn new(uid: &'a PodUid, container: &'a str) -> Self {
        Self { uid, container, found: Found::default(), is_inconclusive: false, is_read: false }
    }

    /// Searches a file. Returns whether no other file has to be searched.
    fn is_over(&mut self, file: CheckpointFile, cached: &Cached) -> bool {
        if cached.is_unreadable() {
            // A kubelet that writes the newer files leaves the file of 1.32 unchanged, so that file
            // does not matter then.
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
                self.found = Found { record: Some(record), pod: Some(pod.clone()) };
                return true;
            }
            Some((_, None)) => self.is_inconclusive = true,
            None => {}
        }
        self.found.pod.get_or_insert_with(|| pod.clone());
        false
    }

    fn found(self) -> Recorded {
        if self.found.record.is_none() && self.is_inconclusive {
            Err(Inconclusive)
        } else {
            Ok(self.found)
        }
    }
}

/// Cached content of one file.
#[derive(Debug, Default)]
struct Cached {
    /// Version of the file that `records` came from. `None` if the file is missing or must be read
    /// again.
    version: Option<Version>,
    records: Records,
    /// Reason why some or all of the file's records are unknown.
    problem: Option<Problem>,
    /// Kind of the last I/O error, so that each kind is reported once.
    failure: Option<io::ErrorKind>,
}

/// Reason why records are unknown.
#[derive(Debug)]
struct Problem {
    text: String,
    /// Whether all records of the file are unknown.
    is_of_all: bool,
}

/// Version of a file, to detect changes. The kubelet replaces its checkpoints by rename, so the
/// inode alone already differs from the previous version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Version {
    fn of(metadata: &std::fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl Checkpoints {
    /// Creates a cache of the checkpoints in `dir`, usually [`DEFAULT_DIR`]. Reads nothing yet.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), cached: Default::default() }
    }

    /// Finds the record of a container. Missing files are no problem, because older kubelets have
    /// none.
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

    /// Does the same as [`lookup`](Self::lookup) if no file has to be read. Otherwise returns
    /// `None`. Reads only the metadata of the searched files, usually of one.
    pub fn lookup_unchanged(
        &self,
        uid: &PodUid,
        container: &str,
        moment: Moment,
    ) -> Option<Recorded> {
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

    /// Returns the problems of the files, as of the last look-up.
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

impl Cached {
    /// Updates `records` to the current content of the file.
    fn refresh(&mut self, path: &Path, problems: &mut Vec<CheckpointError>) {
        match path.symlink_metadata() {
            Ok(metadata) if self.version == Some(Version::of(&metadata)) => return,
            Ok(_) => {}
            Err(error) => return self.failed(path, error, problems),
        }
        let (file, version) = match open(path) {
            Ok(opened) => opened,
            Err(error) => return self.failed(path, error, problems),
        };
        *self = Self {
            version: Some(version),
            records: Records::default(),
            problem: None,
            failure: self.failure,
        };
        let Some(file) = file else {
            problems.push(self.problem(CheckpointError::NotAFile { path: path.to_owned() }));
            return;
        };
        if version.size > LARGEST_FILE {
            problems.push(
                self.problem(CheckpointError::TooLarge {
                    path: path.to_owned(),
                    size: version.size,
                }),
            );
            return;
        }
        let mut bytes = Vec::with_capacity(version.size as usize);
        if let Err(error) = file.take(LARGEST_FILE).read_to_end(&mut bytes) {
            // The same version may be readable next time.
            return self.failed(path, error, problems);
        }
        match parse(bytes) {
            Ok(records) => {
                if let Some(first) = &records.first_unreadable {
                    problems.push(self.problem(CheckpointError::Records {
                        path: path.to_owned(),
                        count: records.unreadable,
                        first: first.clone(),
                    }));
                }
                self.records = records;
                self.failure = None;
            }
            Err(error) => {
                problems.push(self.problem(CheckpointError::Form { path: path.to_owned(), error }))
            }
        }
    }

    /// Stores an error and returns it.
    fn problem(&mut self, error: CheckpointError) -> CheckpointError {
        let is_of_all = !matches!(error, CheckpointError::Records { .. });
        self.problem = Some(Problem { text: error.to_string(), is_of_all });
        error
    }

    /// Returns whether the file exists but its records are unknown.
    fn is_unreadable(&self) -> bool {
        self.problem.as_ref().is_some_and(|problem| problem.is_of_all)
    }

    fn failed(&mut self, path: &Path, error: io::Error, problems: &mut Vec<CheckpointError>) {
        let known = self.failure.replace(error.kind());
        self.version = None;
        self.records = Records::default();
        self.problem = None;
        if error.kind() == io::ErrorKind::NotFound {
            return;
        }
        let kind = error.kind();
        let problem = self.problem(CheckpointError::Io { path: path.to_owned(), error });
        if known != Some(kind) {
            problems.push(problem);
        }
    }
}

/// Opens a regular file. Neither follows a symbolic link nor blocks on a pipe. Returns `None`
/// instead of any file that is not a regular file.
fn open(path: &Path) -> io::Result<(Option<File>, Version)> {
    let metadata = path.symlink_metadata()?;
    if !metadata.is_file() {
        return Ok((None, Version::of(&metadata)));
    }
    // Another file may have replaced the regular file since the first check. Hence the flags and
    // the second check.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path)?;
    let metadata = file.metadata()?;
    let version = Version::of(&metadata);
    Ok((metadata.is_file().then_some(file), version))
}

/// Memory request, memory limit and CPU limit of every container in a checkpoint. The limits of
/// pods are included.
#[derive(Debug, Default)]
pub struct Records {
    pods: HashMap<PodUid, Arc<PodRecord>>,
    unreadable: usize,
    first_unreadable: Option<String>,
}

impl Records {
    /// Returns the number of containers that have a record.
    pub fn len(&self) -> usize {
        self.pods
            .values()
            .map(|pod| pod.containers.iter().filter(|(_, entry)| entry.is_some()).count())
            .sum()
    }

    /// Returns whether no container has a record.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Converts `raw` to an entry. An invalid memory quantity makes the record unreadable: it is
    /// reported and never counts as 0.
    fn read(&mut self, raw: RawResources, whose: impl FnOnce() -> String) -> Option<Entry> {
        let memory = |list: Option<&RawList>| {
            quantity(list.and_then(|list| list.memory.as_ref()), Bytes::from_quantity)
        };
        match (memory(raw.requests.as_ref()), memory(raw.limits.as_ref())) {
            (Ok(request), Ok(limit)) => {
                let cpu_limit = raw.limits.as_ref().and_then(|limits| limits.cpu.as_ref());
                // An invalid CPU quantity counts as no CPU limit, because no memory value depends
                // on it.
                let cpu_limit = quantity(cpu_limit, MilliCpu::from_quantity).unwrap_or(None);
                Some(Entry { request, limit, cpu_limit })
            }
            (Err(error), _) | (_, Err(error)) => {
                self.unreadable += 1;
                self.first_unreadable.get_or_insert_with(|| format!("{}: {error}", whose()));
                None
            }
        }
    }
}

/// Parses a quantity, which the kubelet writes as a string.
fn quantity<T>(
    value: Option<&Value>,
    parse: impl FnOnce(&str) -> Result<T, QuantityError>,
) -> Result<Option<T>, String> {
    let parsed = match value {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(text)) => parse(text),
        Some(Value::Number(number)) => parse(&number.to_string()),
        Some(other) => {
            return Err(format!("expected a quantity, found '{}'", excerpt(&other.to_string())));
        }
    };
    parsed.map(Some).map_err(|error| error.to_string())
}

/// The kubelet's record of one pod.
#[derive(Debug)]
pub struct PodRecord {
    /// Containers by name; `None` is an unreadable record. A pod has few containers, so a list is
    /// smaller than a map and as fast.
    containers: Box<[(Box<str>, Option<Entry>)]>,
    pod_level: PodLevel,
}

/// Limits in a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordedLimits {
    /// Memory limit; `None` if not given.
    pub memory: Option<Bytes>,
    /// CPU limit; `None` if not given.
    pub cpu: Option<MilliCpu>,
}

/// Record of a pod's own resources (`spec.resources`, Kubernetes 1.34).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PodLevel {
    /// The record has no resources of the pod's own, which proves nothing. Only a kubelet with the
    /// gate InPlacePodLevelResourcesVerticalScaling (on by default since 1.36) records them.
    #[default]
    Unrecorded,
    /// The pod has these limits of its own and no others.
    Limits(RecordedLimits),
    /// The record of the pod's own resources is unreadable.
    Unreadable,
}

impl PodRecord {
    /// Returns the record of the pod's own limits.
    pub fn pod_level(&self) -> PodLevel {
        self.pod_level
    }

    /// Returns the limits of a container. Returns `None` if the container has no readable record.
    pub fn limits(&self, container: &str) -> Option<RecordedLimits> {
        let (_, entry) = self.containers.iter().find(|(name, _)| **name == *container)?;
        entry.map(|entry| RecordedLimits { memory: entry.limit, cpu: entry.cpu_limit })
    }

    /// Returns the names of the containers, including those with unreadable records. Before
    /// Kubernetes 1.35, plain init containers are missing. Ephemeral containers are always missing.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.containers.iter().map(|(name, _)| &**name)
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    request: Option<Bytes>,
    limit: Option<Bytes>,
    cpu_limit: Option<MilliCpu>,
}

/// Parses a checkpoint file.
///
/// The function frees the bytes of the file before it parses the JSON in them. So it does not hold
/// much more memory than the size of the file for long.
///
/// # Errors
///
/// Fails if the bytes have none of the forms in the [module documentation](self). Unknown fields
/// are skipped.
pub fn parse(file: Vec<u8>) -> Result<Records, FormError> {
    #[derive(Deserialize)]
    struct Envelope {
        data: String,
        #[serde(default)]
        version: Option<String>,
    }
    #[derive(Deserialize)]
    struct Data {
        entries: Option<Pairs<Option<RawPod>>>,
        #[serde(rename = "allocationEntries")]
        allocation_entries: Option<Pairs<Option<RawContainers>>>,
        #[serde(rename = "podList")]
        pod_list: Option<IgnoredAny>,
    }

    let envelope: Envelope = serde_json::from_slice(&file).map_err(FormError::Envelope)?;
    drop(file);
    let data: Data = serde_json::from_str(&envelope.data).map_err(FormError::Data)?;
    drop(envelope.data);

    // Without any pods there are neither entries nor a list. A list alone is the next version of
    // the format.
    let known_version = envelope.version.as_deref().is_none_or(|version| version == "v2");
    if data.entries.is_none()
        && data.allocation_entries.is_none()
        && (data.pod_list.is_some() || !known_version)
    {
        return Err(FormError::Newer(excerpt(envelope.version.as_deref().unwrap_or("unknown"))));
    }

    let mut records = Records::default();
    let entries =
        data.entries.into_iter().flatten().map(|(uid, pod)| (uid, pod.unwrap_or_default()));
    let older = data.allocation_entries.into_iter().flatten().map(|(uid, containers)| {
        (uid, RawPod { container_resources: containers, pod_level_resources: None })
    });
    for (uid, raw) in entries.chain(older) {
        let containers = raw
            .container_resources
            .into_iter()
            .flatten()
            .map(|(name, resources)| {
                let whose = || format!("container {} of pod {}", excerpt(&name), excerpt(&uid));
                let entry = records.read(resources.unwrap_or_default(), whose);
                (name.into_boxed_str(), entry)
            })
            .collect();
        let pod_level = raw.pod_level_resources.map_or(PodLevel::Unrecorded, RawPodLevel::read);
        records.pods.insert(PodUid::new(uid), Arc::new(PodRecord { containers, pod_level }));
    }
    Ok(records)
}

/// Resources of containers, by name. Go writes an empty map or list as `null`.
type RawContainers = Pairs<Option<RawResources>>;

/// JSON object as a list of its pairs. Many small maps would cost more than all other parsing.
struct Pairs<V>(Vec<(String, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Pairs<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PairsVisitor<V>(PhantomData<V>);

        impl<'de, V: Deserialize<'de>> Visitor<'de> for PairsVisitor<V> {
            type Value = Pairs<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs<V>, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }

        deserializer.deserialize_map(PairsVisitor(PhantomData))
    }
}

impl<V> IntoIterator for Pairs<V> {
    type Item = (String, V);
    type IntoIter = std::vec::IntoIter<(String, V)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

#[derive(Default, Deserialize)]
struct RawPod {
    #[serde(rename = "ContainerResources")]
    container_resources: Option<RawContainers>,
    #[serde(rename = "PodLevelResources")]
    pod_level_resources: Option<RawPodLevel>,
}

#[derive(Deserialize)]
struct RawPodLevel {
    limits: Option<RawList>,
}

impl RawPodLevel {
    fn read(self) -> PodLevel {
        let limits = self.limits.unwrap_or_default();
        let memory = quantity(limits.memory.as_ref(), Bytes::from_quantity);
        let cpu = quantity(limits.cpu.as_ref(), MilliCpu::from_quantity);
        match (memory, cpu) {
            (Ok(memory), Ok(cpu)) => PodLevel::Limits(RecordedLimits { memory, cpu }),
            _ => PodLevel::Unreadable,
        }
    }
}

#[derive(Default, Deserialize)]
struct RawResources {
    requests: Option<RawList>,
    limits: Option<RawList>,
}

#[derive(Default, Deserialize)]
struct RawList {
    /// Quantity, which the kubelet writes as a string. It is kept raw, so that an invalid quantity
    /// does not make the whole file unreadable.
    memory: Option<Value>,
    cpu: Option<Value>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;
    use std::fs;
    use tempfile::TempDir;

    const MIB: u64 = 1 << 20;

    fn envelope(data: &Value, version: Option<&str>) -> String {
        let mut envelope = json!({"data": data.to_string(), "checksum": 1_178_570_812u32});
        if let Some(version) = version {
            envelope["version"] = version.into();
        }
        envelope.to_string()
    }

    fn entries(request: &str) -> Value {
        json!({"entries": {"uid-1": {
            "ContainerResources": {"web": {
                "requests": {"cpu": "100m", "memory": request},
                "limits": {"memory": "256Mi"},
            }},
            "PodLevelResources": null,
        }}})
    }

    struct Node {
        dir: TempDir,
        checkpoints: Checkpoints,
    }

    impl Node {
        fn new() -> Self {
            let dir = TempDir::new().unwrap();
            let checkpoints = Checkpoints::new(dir.path());
            Self { dir, checkpoints }
        }

        /// Writes a file as the kubelet does: a new file, then a rename.
        fn write(&self, file: CheckpointFile, text: &str) {
            let temporary = self.dir.path().join("temporary");
            fs::write(&temporary, text).unwrap();
            fs::rename(temporary, self.path(file)).unwrap();
        }

        fn path(&self, file: CheckpointFile) -> PathBuf {
            self.dir.path().join(file.file_name())
        }

        fn lookup(&mut self, moment: Moment) -> (Option<(u64, CheckpointFile)>, Vec<String>) {
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
                    .map(|problem| {
                        problem.to_string().replace(self.dir.path().to_str().unwrap(), "")
                    })
                    .collect(),
            )
        }
    }

    #[test]
    fn every_known_form_is_read() {
        let old = json!({"allocationEntries": {"uid-1": {"web": {"requests": {"memory": "128Mi"}, "limits": {"memory": "256Mi"}}}},
            "resizeStatusEntries": {"uid-1": "InProgress"}});
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
    fn the_file_that_is_right_for_the_moment_is_preferred() {
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
    fn no_file_no_directory_no_pod_and_no_container_are_no_problem() {
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
    fn one_bad_quantity_spoils_only_its_own_record() {
        let mut node = Node::new();
        let data = json!({"entries": {"uid-1": {"ContainerResources": {
            "web": {"requests": {"memory": "1Mi"}},
            "bad": {"requests": {"memory": "-1Mi"}},
            "worse": {"requests": {"memory": ["x"]}},
        }}}});
        node.write(CheckpointFile::Actuated, &envelope(&data, None));
        let (found, problems) = node.lookup(Moment::Create);
        assert_eq!(found, Some((MIB, CheckpointFile::Actuated)));
        assert!(problems[0].starts_with("kubelet checkpoint /actuated_pods_state: 2 records have no readable memory quantity, the first being container "), "{problems:?}");
        let bad = node.checkpoints.lookup(&PodUid::new("uid-1"), "bad", Moment::Create);
        assert!(bad.found.is_err() && bad.problems.is_empty(), "never 0, and reported once");
    }

    #[test]
    fn a_change_is_seen_and_a_torn_file_has_no_records() {
        let mut node = Node::new();
        let good = envelope(&entries("2Mi"), None);
        node.write(CheckpointFile::Actuated, &envelope(&entries("1Mi"), None));
        assert_eq!(node.lookup(Moment::Create).0, Some((MIB, CheckpointFile::Actuated)));
        node.write(CheckpointFile::Actuated, &good);
        assert_eq!(node.lookup(Moment::Create).0, Some((2 * MIB, CheckpointFile::Actuated)));
        node.write(CheckpointFile::Actuated, &good[..good.len() / 2]);
        let (found, problems) = node.lookup(Moment::Create);
        assert_eq!(found, None);
        assert!(
            problems[0]
                .contains("expected JSON with a string 'data', as the kubelet writes it: EOF"),
            "{problems:?}"
        );
        assert_eq!(node.lookup(Moment::Create), (None, vec![]), "reported once");
        node.write(CheckpointFile::Actuated, &good);
        assert_eq!(node.lookup(Moment::Create).0, Some((2 * MIB, CheckpointFile::Actuated)));
        fs::remove_file(node.path(CheckpointFile::Actuated)).unwrap();
        assert_eq!(node.lookup(Moment::Create), (None, vec![]));
    }

    #[test]
    fn any_cut_of_a_good_file_is_refused() {
        let good = envelope(&entries("2Mi"), Some("v2"));
        for end in 0..good.len() {
            assert!(parse(good.as_bytes()[..end].to_vec()).is_err(), "{end}");
        }
    }

    #[test]
    fn a_newer_format_without_entries_says_what_is_needed() {
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
                    "kubelet checkpoint /actuated_pods_state: version '{}' holds no 'entries', the only form read here; \
                     this kubelet needs a newer plimsoll; its records are not used",
                    version.unwrap()
                )]
            );
        }
    }

    #[test]
    fn a_checkpoint_of_ten_mebibytes_is_read() {
        let mut data = entries("2Mi");
        data["podList"] = "A".repeat(10 << 20).into();
        let mut node = Node::new();
        node.write(CheckpointFile::Allocated, &envelope(&data, Some("v2")));
        assert_eq!(
            node.lookup(Moment::Create),
            (Some((2 * MIB, CheckpointFile::Allocated)), vec![])
        );
    }

    #[test]
    fn an_oversized_file_is_refused_unread() {
        let mut node = Node::new();
        let file = File::create(node.path(CheckpointFile::Actuated)).unwrap();
        file.set_len(LARGEST_FILE + 1).unwrap();
        assert_eq!(
            node.lookup(Moment::Create),
            (None, vec!["kubelet checkpoint /actuated_pods_state: 67108865 bytes, expected at most 67108864; its records are not used".to_owned()])
        );
        assert_eq!(node.lookup(Moment::Create), (None, vec![]), "reported once");
    }

    #[test]
    fn links_pipes_and_directories_are_refused_without_blocking() {
        let mut node = Node::new();
        let target = node.dir.path().join("target");
        fs::write(&target, envelope(&entries("2Mi"), None)).unwrap();
        std::os::unix::fs::symlink(&target, node.path(CheckpointFile::Actuated)).unwrap();
        rustix::fs::mkfifoat(
            rustix::fs::CWD,
            node.path(CheckpointFile::Allocated),
            rustix::fs::Mode::RUSR,
        )
        .unwrap();
        fs::create_dir(node.path(CheckpointFile::StatusManager)).unwrap();
        let (found, problems) = node.lookup(Moment::Create);
        assert_eq!(found, None);
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert!(
            problems.iter().all(|problem| problem.contains("expected a regular file")),
            "{problems:?}"
        );
        assert_eq!(node.lookup(Moment::Create), (None, vec![]), "reported once");
    }

    #[test]
    fn another_bad_file_does_not_hide_a_good_one() {
        let mut node = Node::new();
        node.write(CheckpointFile::Actuated, "garbage");
        node.write(CheckpointFile::Allocated, &envelope(&entries("2Mi"), None));
        let (found, problems) = node.lookup(Moment::Create);
        assert_eq!((found, problems.len()), (Some((2 * MIB, CheckpointFile::Allocated)), 1));
    }

    #[test]
    fn deep_nesting_is_refused() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let data = format!("{{\"entries\":{deep}}}");
        assert!(parse(json!({"data": data}).to_string().into_bytes()).is_err());
        assert!(parse(deep.into_bytes()).is_err());
    }

    #[test]
    fn an_unreadable_file_is_not_no_record() {
        let good = envelope(&entries("2Mi"), None);
        let other = envelope(&json!({"entries": {"uid-2": {"ContainerResources": {}}}}), None);
        let conclusion = |node: &mut Node| {
            let found = node.checkpoints.lookup(&PodUid::new("uid-1"), "web", Moment::Create).found;
            let unchanged =
                node.checkpoints.lookup_unchanged(&PodUid::new("uid-1"), "web", Moment::Create);
            let is_found = |found: Found| found.record.is_some();
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
            // A file left by an older kubelet does not matter to the pods of a newer kubelet.
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
    fn a_record_tells_the_limits_of_pod_and_containers() {
        let found = |pod_level: Value| {
            let mut node = Node::new();
            let data = json!({"entries": {"uid-1": {
                "ContainerResources": {
                    "web": {"limits": {"cpu": "500m", "memory": "64Mi"}},
                    "bare": {},
                    "odd": {"limits": {"cpu": "x", "memory": "1Mi"}},
                },
                "PodLevelResources": pod_level,
            }}});
            node.write(CheckpointFile::Actuated, &envelope(&data, None));
            // An ephemeral container has no record, but its pod has one.
            let found = node
                .checkpoints
                .lookup(&PodUid::new("uid-1"), "debugger", Moment::Create)
                .found
                .unwrap();
            assert!(found.record.is_none());
            found.pod.unwrap()
        };
        let limits = |memory: u64, cpu: &str| RecordedLimits {
            memory: (memory > 0).then_some(Bytes::new(memory * MIB)),
            cpu: MilliCpu::from_quantity(cpu).ok(),
        };
        let pod = found(json!(null));
        assert_eq!(pod.limits("web"), Some(limits(64, "500m")));
        assert_eq!(pod.limits("bare"), Some(RecordedLimits::default()));
        assert_eq!(
            pod.limits("odd"),
            Some(limits(1, "")),
            "a processor limit that is none is none"
        );
        assert_eq!(pod.limits("debugger"), None);
        assert_eq!(pod.names().count(), 3);
        for (pod_level, expected) in [
            (json!(null), PodLevel::Unrecorded),
            (json!({}), PodLevel::Limits(RecordedLimits::default())),
            (json!({"requests": {"memory": "1Gi"}}), PodLevel::Limits(RecordedLimits::default())),
            (
                json!({"limits": {"hugepages-2Mi": "4Mi"}}),
                PodLevel::Limits(RecordedLimits::default()),
            ),
            (json!({"limits": {"cpu": "1"}}), PodLevel::Limits(limits(0, "1"))),
            (json!({"limits": {"memory": "128Mi"}}), PodLevel::Limits(limits(128, ""))),
            (json!({"limits": {"memory": "much"}}), PodLevel::Unreadable),
        ] {
            assert_eq!(found(pod_level.clone()).pod_level(), expected, "{pod_level}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_checkpoint_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(bytes);
        }

        #[test]
        fn any_data_is_a_checkpoint_or_an_error(data in r#"[{}\[\]":,a-z0-9]{0,60}"#) {
            let _ = parse(json!({"data": data}).to_string().into_bytes());
        }

        #[test]
        fn any_quantity_is_a_record_or_reported(quantity in ".{0,20}") {
            let data = entries(&quantity).to_string();
            let records = parse(json!({"data": data}).to_string().into_bytes()).unwrap();
            prop_assert_eq!(records.len() + records.unreadable, 1);
        }
    }

    #[test]
    fn what_has_not_changed_is_found_without_reading_and_what_has_is_not() {
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
