//! Uses inotify to detect changes that other programs make to cgroups.
//!
//! The kernel reports a write to a file when the writer closes the file. The kernel also reports
//! each child cgroup that is created or removed in a watched cgroup. Changes by the kernel itself,
//! such as in `memory.events`, cause another kind of event, which the plugin does not request.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::MetadataExt as _;

use futures::StreamExt as _;
use inotify::{EventMask, EventStream, Inotify, WatchDescriptor, WatchMask, Watches};
use plimsoll_core::pod::CgroupPath;
use plimsoll_core::units::Knob;

use super::root::CgroupRoot;

/// Change to a cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CgroupChange {
    /// A program wrote a file of the cgroup. The program may be this plugin.
    Written(CgroupPath, Knob),
    /// The cgroup was created.
    Made(CgroupPath),
    /// The cgroup was removed.
    Removed(CgroupPath),
    /// The kernel dropped events because there were too many at once. Any cgroup may have changed.
    Overflow,
}

/// Inotify watches for a set of cgroups.
pub struct Watch {
    watches: Watches,
    events: EventStream<Vec<u8>>,
    paths: HashMap<WatchDescriptor, CgroupPath>,
    /// Watch and inode of each cgroup. Another cgroup may have the same path later, and not every
    /// kernel reports the removal of the first cgroup. The inode distinguishes the two cgroups.
    descriptors: HashMap<CgroupPath, (WatchDescriptor, u64)>,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("cgroups", &self.paths.len()).finish_non_exhaustive()
    }
}

impl Watch {
    /// Creates an instance that watches no cgroup yet.
    ///
    /// # Errors
    ///
    /// Fails if the kernel allows this user no more inotify instances
    /// (`fs.inotify.max_user_instances`).
    pub fn new() -> io::Result<Self> {
        let inotify = Inotify::init()?;
        let watches = inotify.watches();
        let events = inotify.into_event_stream(vec![0; 64 << 10])?;
        Ok(Self { watches, events, paths: HashMap::new(), descriptors: HashMap::new() })
    }

    /// Watches a cgroup. Returns whether the watch is new. After a new watch, the caller must read
    /// the cgroup's files, because another program may have written the files before the watch
    /// existed. Does nothing for a cgroup that is gone.
    ///
    /// # Errors
    ///
    /// Fails if the kernel allows no more watches (`fs.inotify.max_user_watches`).
    pub fn add(&mut self, root: &CgroupRoot, path: &CgroupPath) -> io::Result<bool> {
        let directory = root.path().join(path.as_str());
        let inode = match std::fs::metadata(&directory) {
            Ok(metadata) => metadata.ino(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        match self.descriptors.get(path) {
            Some((_, watched)) if *watched == inode => return Ok(false),
            Some(_) => self.remove(path),
            None => {}
        }
        let mask =
            WatchMask::CLOSE_WRITE | WatchMask::CREATE | WatchMask::DELETE | WatchMask::ONLYDIR;
        match self.watches.add(directory, mask) {
            Ok(descriptor) => {
                self.paths.insert(descriptor.clone(), path.clone());
                self.descriptors.insert(path.clone(), (descriptor, inode));
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Stops watching a cgroup. The watch of a removed cgroup does not always end by itself.
    pub fn remove(&mut self, path: &CgroupPath) {
        if let Some((descriptor, _)) = self.descriptors.remove(path) {
            self.paths.remove(&descriptor);
            // The watch may already have ended.
            let _ = self.watches.remove(descriptor);
        }
    }

    /// Waits for the next change and returns it.
    ///
    /// # Errors
    ///
    /// Fails if inotify can no longer be read.
    pub async fn next(&mut self) -> io::Result<CgroupChange> {
        loop {
            let event = self.events.next().await.ok_or(io::ErrorKind::UnexpectedEof)??;
            if event.mask.contains(EventMask::Q_OVERFLOW) {
                return Ok(CgroupChange::Overflow);
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
                return Ok(if made {
                    CgroupChange::Made(child)
                } else {
                    CgroupChange::Removed(child)
                });
            }
            if event.mask.contains(EventMask::CLOSE_WRITE)
                && let Some(knob) = Knob::ALL.into_iter().find(|knob| knob.file_name() == name)
            {
                return Ok(CgroupChange::Written(path.clone(), knob));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;

    async fn next(watch: &mut Watch) -> CgroupChange {
        tokio::time::timeout(Duration::from_secs(60), watch.next())
            .await
            .expect("something happened")
            .unwrap()
    }

    #[tokio::test]
    async fn writes_creations_and_removals_are_reported() {
        let tree = tempfile::tempdir().unwrap();
        fs::write(tree.path().join("cgroup.controllers"), "").unwrap();
        fs::create_dir(tree.path().join("a")).unwrap();
        let root = CgroupRoot::open(tree.path()).unwrap();
        let path = |path| CgroupPath::parse(path).unwrap();
        let mut watch = Watch::new().unwrap();
        assert!(watch.add(&root, &path("a")).unwrap());
        assert!(!watch.add(&root, &path("a")).unwrap());
        assert!(!watch.add(&root, &path("gone")).unwrap());

        fs::write(tree.path().join("a/memory.min"), "1").unwrap();
        assert_eq!(next(&mut watch).await, CgroupChange::Written(path("a"), Knob::Min));
        fs::write(tree.path().join("a/cpu.max"), "1").unwrap();
        fs::create_dir(tree.path().join("a/b")).unwrap();
        assert_eq!(next(&mut watch).await, CgroupChange::Made(path("a/b")));
        watch.add(&root, &path("a/b")).unwrap();
        fs::remove_dir(tree.path().join("a/b")).unwrap();
        assert_eq!(next(&mut watch).await, CgroupChange::Removed(path("a/b")));

        // A new cgroup with the same path is watched again.
        watch.remove(&path("a/b"));
        fs::create_dir(tree.path().join("a/b")).unwrap();
        assert_eq!(next(&mut watch).await, CgroupChange::Made(path("a/b")));
        watch.add(&root, &path("a/b")).unwrap();
        fs::write(tree.path().join("a/b/memory.low"), "1").unwrap();
        assert_eq!(next(&mut watch).await, CgroupChange::Written(path("a/b"), Knob::Low));
    }
}
