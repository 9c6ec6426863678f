//! File in which the node guard records its change of `memory.max`. A restarted plugin or `plimsoll
//! restore` uses the file to undo this change.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use plimsoll_core::policy::guard::GuardRecord;

use crate::state::atomic_file;

/// Returns the path of the file with the node guard's record, on the node whose file system is at
/// `host`.
pub fn file(host: &Path) -> PathBuf {
    host.join(GuardRecord::PATH)
}

/// Returns the record on the node whose file system is at `host`. Returns `None` if no record
/// exists or the record is unreadable.
pub fn load(host: &Path) -> Option<GuardRecord> {
    read(host).ok().flatten()
}

/// Returns the record on the node whose file system is at `host`. Returns `None` if no record
/// exists.
///
/// # Errors
///
/// Fails if the record exists but cannot be read.
pub fn read(host: &Path) -> io::Result<Option<GuardRecord>> {
    match fs::read(file(host)) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Stores the node guard's record.
///
/// # Errors
///
/// Fails if the file cannot be written.
pub fn store(record: &GuardRecord, host: &Path) -> io::Result<()> {
    atomic_file::replace(&file(host), &serde_json::to_vec(record)?)
}

/// Removes the node guard's record if it exists.
///
/// # Errors
///
/// Fails if the file exists but cannot be removed.
pub fn remove(host: &Path) -> io::Result<()> {
    match fs::remove_file(file(host)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use plimsoll_core::pod::CgroupPath;
    use plimsoll_core::units::{Bytes, Limit};

    use super::*;

    #[test]
    fn a_record_round_trips_unless_truncated() {
        let host = tempfile::tempdir().unwrap();
        assert_eq!(load(host.path()), None);
        let record = GuardRecord {
            cgroup: CgroupPath::parse("kubepods").unwrap(),
            inode: 7,
            before: Limit::Max,
            limits: vec![Bytes::new(900 << 20)],
        };
        let limit = |mib: u64| Limit::Bytes(Bytes::new(mib << 20));
        store(&record, host.path()).unwrap();
        assert_eq!(load(host.path()), Some(record.clone()));
        assert_eq!(record.without(limit(900)), Limit::Max);
        assert_eq!(record.without(limit(800)), limit(800));
        fs::write(file(host.path()), "{\"cgroup\":").unwrap();
        assert_eq!(load(host.path()), None);
        assert!(read(host.path()).is_err());
        remove(host.path()).unwrap();
        remove(host.path()).unwrap();
        assert_eq!(load(host.path()), None);
    }
}
