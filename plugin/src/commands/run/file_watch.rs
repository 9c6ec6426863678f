//! Watches the directory of the configuration file.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use futures::StreamExt as _;
use inotify::{EventMask, EventStream, Inotify, WatchDescriptor, WatchMask};
use tokio::time::{Instant, timeout, timeout_at};

/// Time for which the configuration directory must be unchanged before the plugin reads the file.
const QUIET_TIME: Duration = Duration::from_millis(200);

/// Maximum wait until [`QUIET_TIME`] passes without changes, because other files in the directory
/// may change all the time.
const MAX_WAIT: Duration = Duration::from_secs(2);

/// Interval at which the plugin checks whether the path leads to another directory. inotify reports
/// neither the renaming of a parent directory nor the new target of a symbolic link.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// A watch for changes in the configuration directory. The directory may be missing when the watch
/// starts.
pub(super) struct FileWatch {
    directory: PathBuf,
    events: EventStream<[u8; 4096]>,
    watched: Option<Watched>,
}

/// A watched directory.
struct Watched {
    descriptor: WatchDescriptor,
    path: PathBuf,
    /// The device and inode that the directory had when the watch began.
    identity: Option<(u64, u64)>,
    /// The name of the missing entry that the plugin waits for. `None` if the watched directory is
    /// the configuration directory itself.
    missing: Option<OsString>,
}

impl FileWatch {
    /// Starts to watch the directory of `files`. A watch of a single file would miss a rename that
    /// replaces the file. Kubernetes updates the files of a ConfigMap by renaming a directory
    /// beside the files.
    pub(super) fn new(files: &[PathBuf]) -> anyhow::Result<Self> {
        let directory = match files.first().and_then(|file| file.parent()) {
            Some(directory) if directory != Path::new("") => directory,
            _ => Path::new("."),
        };
        let inotify = Inotify::init().context("cannot start inotify")?;
        let events = inotify.into_event_stream([0; 4096]).context("cannot read from inotify")?;
        let mut changes = Self { directory: directory.to_owned(), events, watched: None };
        changes.watch()?;
        Ok(changes)
    }

    /// Watches the configuration directory, or the nearest existing ancestor of a missing
    /// configuration directory.
    fn watch(&mut self) -> anyhow::Result<()> {
        loop {
            let (path, missing) = nearest(&self.directory);
            let identity = identify(&path);
            if self
                .watched
                .as_ref()
                .is_some_and(|watched| watched.path == path && watched.identity == identity)
            {
                return Ok(());
            }
            let its_own = WatchMask::DELETE_SELF | WatchMask::MOVE_SELF | WatchMask::ONLYDIR;
            let in_it = match missing {
                Some(_) => WatchMask::CREATE | WatchMask::MOVED_TO,
                None => {
                    WatchMask::CLOSE_WRITE | WatchMask::MOVE | WatchMask::CREATE | WatchMask::DELETE
                }
            };
            if let Some(before) = self.watched.take() {
                // Ignore an error, because the kernel may have removed the watch already.
                let _ = self.events.watches().remove(before.descriptor);
            }
            match self.events.watches().add(&path, its_own | in_it) {
                // Loop again, because the missing directory may have been created meanwhile.
                Ok(descriptor) => {
                    self.watched = Some(Watched { descriptor, path, identity, missing })
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot watch {}", path.display()));
                }
            }
        }
    }

    /// Waits for a change that may affect the files, and then until [`QUIET_TIME`] passes without
    /// changes. A program may truncate a file before it writes the new content.
    pub(super) async fn next(&mut self) -> anyhow::Result<()> {
        let mut check = Instant::now() + CHECK_INTERVAL;
        loop {
            match timeout_at(check, self.is_relevant()).await {
                Ok(Ok(true)) => break,
                Ok(Ok(false)) => {}
                Ok(Err(error)) => return Err(error),
                Err(_) if self.is_elsewhere() => {
                    self.watch()?;
                    break;
                }
                Err(_) => check = Instant::now() + CHECK_INTERVAL,
            }
        }
        let quiet = async {
            while let Ok(is_relevant) = timeout(QUIET_TIME, self.is_relevant()).await {
                is_relevant?;
            }
            Ok(())
        };
        timeout(MAX_WAIT, quiet).await.unwrap_or(Ok(()))
    }

    /// Returns whether the path of the configuration directory no longer leads to the watched
    /// directory.
    fn is_elsewhere(&self) -> bool {
        let (path, _) = nearest(&self.directory);
        self.watched
            .as_ref()
            .is_none_or(|watched| watched.path != path || watched.identity != identify(&path))
    }

    /// Waits for the next event and returns whether it may affect the files.
    async fn is_relevant(&mut self) -> anyhow::Result<bool> {
        let event = self
            .events
            .next()
            .await
            .context("inotify ended")?
            .context("cannot read from inotify")?;
        let is_lost = event.mask.contains(EventMask::Q_OVERFLOW);
        let Some(watched) = &self.watched else { return Ok(false) };
        if event.wd != watched.descriptor && !is_lost {
            return Ok(false);
        }
        let is_over = EventMask::IGNORED | EventMask::DELETE_SELF | EventMask::MOVE_SELF;
        if is_lost || event.mask.intersects(is_over) {
            if event.mask.contains(EventMask::MOVE_SELF) {
                // The watch would follow the renamed directory to its new path, but changes at the
                // new path do not matter.
                let _ = self.events.watches().remove(watched.descriptor.clone());
            }
            self.watched = None;
        } else if watched.missing.is_some() && event.name != watched.missing {
            return Ok(false);
        }
        self.watch()?;
        Ok(true)
    }
}

/// Returns the device and inode of a directory. `None` if the metadata cannot be read.
fn identify(directory: &Path) -> Option<(u64, u64)> {
    let metadata = fs::metadata(directory).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// Returns a directory or its nearest existing ancestor. Also returns the first path component that
/// is missing below the ancestor.
fn nearest(directory: &Path) -> (PathBuf, Option<OsString>) {
    let mut missing = None;
    for above in directory.ancestors() {
        let above = if above == Path::new("") { Path::new(".") } else { above };
        if above.is_dir() {
            return (above.to_owned(), missing);
        }
        missing = above.file_name().map(OsString::from);
    }
    (PathBuf::from("/"), missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns whether the watch reports a change within 5 s.
    async fn is_reported(changes: &mut FileWatch) -> bool {
        timeout(Duration::from_secs(5), changes.next()).await.is_ok_and(|change| change.is_ok())
    }

    #[tokio::test]
    async fn missing_directories_are_watched_for() {
        let root = tempfile::tempdir().expect("a directory");
        let directory = root.path().join("nri/conf.d");
        let mut changes =
            FileWatch::new(&[directory.join("a.conf"), directory.join("b.conf")]).expect("watched");
        // The watch ignores other entries in an ancestor directory.
        fs::write(root.path().join("hosts"), "").expect("written");
        fs::create_dir(root.path().join("apt")).expect("made");
        assert!(timeout(QUIET_TIME, changes.next()).await.is_err());
        fs::create_dir(root.path().join("nri")).expect("made");
        assert!(is_reported(&mut changes).await);
        fs::create_dir(&directory).expect("made");
        assert!(is_reported(&mut changes).await);
        fs::write(directory.join("b.conf"), "{}").expect("written");
        assert!(is_reported(&mut changes).await);
        // Create a directory tree at another path, and then move the tree to the configuration
        // path.
        fs::remove_dir_all(root.path().join("nri")).expect("removed");
        assert!(is_reported(&mut changes).await);
        fs::create_dir_all(root.path().join("new/conf.d")).expect("made");
        fs::rename(root.path().join("new"), root.path().join("nri")).expect("moved");
        assert!(is_reported(&mut changes).await);
        fs::write(directory.join("a.conf"), "{}").expect("written");
        assert!(is_reported(&mut changes).await);
    }

    #[tokio::test]
    async fn a_renamed_directory_above_is_noticed() {
        let root = tempfile::tempdir().expect("a directory");
        let directory = root.path().join("nri/conf.d");
        fs::create_dir_all(&directory).expect("made");
        let mut watch = FileWatch::new(&[directory.join("a.conf")]).expect("watched");
        fs::rename(root.path().join("nri"), root.path().join("old")).expect("renamed");
        fs::create_dir_all(&directory).expect("made");
        let change = timeout(2 * CHECK_INTERVAL, watch.next()).await;
        assert!(change.is_ok_and(|change| change.is_ok()));
        // From then on, the watch reports changes in the new directory at once.
        fs::write(directory.join("a.conf"), "{}").expect("written");
        assert!(is_reported(&mut watch).await);
    }

    #[tokio::test]
    async fn a_restless_directory_delays_no_configuration() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut changes = FileWatch::new(&[directory.path().join("a.conf")]).expect("watched");
        let other = directory.path().join("other");
        let restless = async {
            loop {
                fs::write(&other, "").expect("written");
                tokio::time::sleep(QUIET_TIME / 4).await;
            }
        };
        tokio::select! {
            () = restless => {}
            change = timeout(2 * MAX_WAIT, changes.next()) => assert!(change.is_ok_and(|change| change.is_ok())),
        }
    }
}
