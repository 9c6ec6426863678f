//! Learning of what others do to cgroups, by inotify.
//!
//! A write to a file by anybody is seen when it is closed, and so is a cgroup made or removed in one that is watched. The
//! kernel's own notices (`memory.events`) are of another kind and do not wake anybody here.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::MetadataExt as _;

use futures::StreamExt as _;
use inotify::{EventMask, EventStream, Inotify, WatchDescriptor, WatchMask, Watches};

use super::{CgroupPath, CgroupRoot, Knob};

/// Something that happened to a cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Somebody, perhaps this program, wrote a file of it.
    Written(CgroupPath, Knob),
    /// It was made.
    Made(CgroupPath),
    /// It was removed.
    Removed(CgroupPath),
    /// Too much happened at once: anything may have.
    Overflow,
}

/// The cgroups that are watched.
pub struct Watch {
    watches: Watches,
    events: EventStream<Vec<u8>>,
    paths: HashMap<WatchDescriptor, CgroupPath>,
    /// With the inode: the path may be another cgroup's by now, and not every kernel tells that one is gone.
    descriptors: HashMap<CgroupPath, (WatchDescriptor, u64)>,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("cgroups", &self.paths.len()).finish_non_exhaustive()
    }
}

impl Watch {
    /// Watches nothing yet.
    ///
    /// # Errors
    ///
    /// When the kernel has no more inotify instances for this user (`fs.inotify.max_user_instances`).
    pub fn new() -> io::Result<Self> {
        let inotify = Inotify::init()?;
        let watches = inotify.watches();
        let events = inotify.into_event_stream(vec![0; 64 << 10])?;
        Ok(Self { watches, events, paths: HashMap::new(), descriptors: HashMap::new() })
    }

    /// Watches a cgroup; once is enough. One that is gone is not watched, and no error.
    ///
    /// # Errors
    ///
    /// When the kernel cannot watch any more (`fs.inotify.max_user_watches`).
    pub fn add(&mut self, root: &CgroupRoot, path: &CgroupPath) -> io::Result<()> {
        let directory = root.path().join(path.as_str());
        let inode = match std::fs::metadata(&directory) {
            Ok(metadata) => metadata.ino(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        match self.descriptors.get(path) {
            Some((_, watched)) if *watched == inode => return Ok(()),
            Some(_) => self.remove(path),
            None => {}
        }
        let mask =
            WatchMask::CLOSE_WRITE | WatchMask::CREATE | WatchMask::DELETE | WatchMask::ONLYDIR;
        match self.watches.add(directory, mask) {
            Ok(descriptor) => {
                self.paths.insert(descriptor.clone(), path.clone());
                self.descriptors.insert(path.clone(), (descriptor, inode));
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Watches a cgroup no longer. A removed cgroup's watch does not always end by itself.
    pub fn remove(&mut self, path: &CgroupPath) {
        if let Some((descriptor, _)) = self.descriptors.remove(path) {
            self.paths.remove(&descriptor);
            // It may have ended.
            let _ = self.watches.remove(descriptor);
        }
    }

    /// The next thing that happened.
    ///
    /// # Errors
    ///
    /// When inotify cannot be read any longer.
    pub async fn next(&mut self) -> io::Result<Change> {
        loop {
            let event = self.events.next().await.ok_or(io::ErrorKind::UnexpectedEof)??;
            if event.mask.contains(EventMask::Q_OVERFLOW) {
                return Ok(Change::Overflow);
            }
            let Some(path) = self.paths.get(&event.wd) else { continue };
            if event.mask.contains(EventMask::IGNORED) {
                let path = path.clone();
                self.paths.remove(&event.wd);
                self.descriptors.remove(&path);
                continue;
            }
            let Some(name) = event.name.as_deref().and_then(OsStr::to_str) else { continue };
            if event.mask.contains(EventMask::ISDIR) {
                let Some(child) = path.join(name) else { continue };
                let made = event.mask.contains(EventMask::CREATE);
                return Ok(if made { Change::Made(child) } else { Change::Removed(child) });
            }
            if event.mask.contains(EventMask::CLOSE_WRITE)
                && let Some(knob) = Knob::ALL.into_iter().find(|knob| knob.file_name() == name)
            {
                return Ok(Change::Written(path.clone(), knob));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;

    async fn next(watch: &mut Watch) -> Change {
        tokio::time::timeout(Duration::from_secs(60), watch.next())
            .await
            .expect("something happened")
            .unwrap()
    }

    #[tokio::test]
    async fn writes_and_cgroups_that_come_and_go_are_noticed() {
        let tree = tempfile::tempdir().unwrap();
        fs::write(tree.path().join("cgroup.controllers"), "").unwrap();
        fs::create_dir(tree.path().join("a")).unwrap();
        let root = CgroupRoot::open(tree.path()).unwrap();
        let path = |path| CgroupPath::parse(path).unwrap();
        let mut watch = Watch::new().unwrap();
        watch.add(&root, &path("a")).unwrap();
        watch.add(&root, &path("a")).unwrap();
        watch.add(&root, &path("gone")).unwrap();

        fs::write(tree.path().join("a/memory.min"), "1").unwrap();
        assert_eq!(next(&mut watch).await, Change::Written(path("a"), Knob::Min));
        fs::write(tree.path().join("a/cpu.max"), "1").unwrap();
        fs::create_dir(tree.path().join("a/b")).unwrap();
        assert_eq!(next(&mut watch).await, Change::Made(path("a/b")));
        watch.add(&root, &path("a/b")).unwrap();
        fs::remove_dir(tree.path().join("a/b")).unwrap();
        assert_eq!(next(&mut watch).await, Change::Removed(path("a/b")));

        // Another one of this path is watched again.
        watch.remove(&path("a/b"));
        fs::create_dir(tree.path().join("a/b")).unwrap();
        assert_eq!(next(&mut watch).await, Change::Made(path("a/b")));
        watch.add(&root, &path("a/b")).unwrap();
        fs::write(tree.path().join("a/b/memory.low"), "1").unwrap();
        assert_eq!(next(&mut watch).await, Change::Written(path("a/b"), Knob::Low));
    }
}
