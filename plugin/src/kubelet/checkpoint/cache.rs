//! Cache for one checkpoint file. The plugin reads the file again only when it changes.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

use super::error::{CheckpointError, LARGEST_FILE};
use super::form::{Records, parse};

/// Cached content of one file.
#[derive(Debug, Default)]
pub(super) struct Cached {
    /// Version of the file from which the plugin read `records`. `None` if the file is missing or
    /// must be read again.
    pub(super) version: Option<Version>,
    pub(super) records: Records,
    /// Reason why some or all of the file's entries are unknown.
    pub(super) problem: Option<Problem>,
    /// Kind of the last I/O error. The plugin reports an error only if its kind differs from the
    /// previous error.
    failure: Option<io::ErrorKind>,
}

impl Cached {
    /// Updates `records` to the current content of the file.
    pub(super) fn refresh(&mut self, path: &Path, problems: &mut Vec<CheckpointError>) {
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
            // The next attempt may be able to read the same version of the file.
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

    /// Returns whether the file exists but its entries are unknown.
    pub(super) fn is_unreadable(&self) -> bool {
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

/// Reason why entries of a file are unknown.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) text: String,
    /// Whether all entries of the file are unknown.
    is_of_all: bool,
}

/// Version of a file, to detect changes. The kubelet replaces a checkpoint with a new file, so a
/// new version usually has another inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Version {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Version {
    pub(super) fn of(metadata: &std::fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// Opens a regular file. The function does not follow symbolic links and does not block on a pipe.
/// Returns `None` for a file that is not a regular file.
fn open(path: &Path) -> io::Result<(Option<File>, Version)> {
    let metadata = path.symlink_metadata()?;
    if !metadata.is_file() {
        return Ok((None, Version::of(&metadata)));
    }
    // Use these flags and check again, because another file may have replaced the regular file
    // since the first check.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path)?;
    let metadata = file.metadata()?;
    let version = Version::of(&metadata);
    Ok((metadata.is_file().then_some(file), version))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use plimsoll_core::pod::CheckpointFile;

    use super::super::lookup::Moment;
    use super::super::testing::{MIB, Node, entries, envelope};
    use super::*;

    #[test]
    fn rewrites_are_seen_and_truncation_is_reported() {
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
            (
                None,
                vec![
                    "kubelet checkpoint /actuated_pods_state: 67108865 bytes, expected at most \
                     67108864; its records are not used"
                        .to_owned()
                ]
            )
        );
        assert_eq!(node.lookup(Moment::Create), (None, vec![]), "reported once");
    }

    #[test]
    fn non_regular_files_are_refused_without_blocking() {
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
}
