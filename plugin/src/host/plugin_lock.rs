//! Finds the process that holds the plugin's lock file.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::host::files::read;

/// Returns the ID of the process that holds the plugin's lock file. The running plugin holds this
/// lock, so that no second instance runs. The outer `None` means that this is unknown. The inner
/// `None` means that no process holds the lock.
pub(crate) fn holder(host: &Path, socket: &Path) -> Option<Option<String>> {
    let locks = read(&host.join("proc/locks")).ok()??;
    let lock = match socket.parent()?.join("plimsoll.lock").metadata() {
        Ok(lock) => lock,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Some(None),
        Err(_) => return None,
    };
    // Columns of /proc/locks: number, kind, advisory or mandatory, mode, process,
    // major:minor:inode, range.
    let (major, minor) = (rustix::fs::major(lock.dev()), rustix::fs::minor(lock.dev()));
    let file = format!("{major:02x}:{minor:02x}:{}", lock.ino());
    Some(locks.lines().find_map(|line| {
        let columns: Vec<_> = line.split_ascii_whitespace().collect();
        (columns.get(1) == Some(&"FLOCK") && columns.get(5) == Some(&file.as_str()))
            .then(|| columns[4].to_owned())
    }))
}
