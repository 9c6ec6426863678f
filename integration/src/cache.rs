//! A store of things that are slow to make, outside the work tree, keyed by everything that goes into them.
//!
//! An entry is a directory `NAME-KEY`. It is made beside its final place and renamed there, so that it is whole whenever
//! it exists; a file lock for each name keeps two processes from making the same thing twice.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// Entries of another key that nobody used for this long are removed when a new one is made.
const UNUSED: Duration = Duration::from_secs(14 * 24 * 3600);

/// The cache's directory: `$PLIMSOLL_CACHE`, else `plimsoll` in the XDG cache directory.
pub fn directory() -> Result<PathBuf> {
    let dir = if let Some(dir) = env::var_os("PLIMSOLL_CACHE") {
        PathBuf::from(dir)
    } else if let Some(dir) = env::var_os("XDG_CACHE_HOME").filter(|dir| !dir.is_empty()) {
        PathBuf::from(dir).join("plimsoll")
    } else {
        let home = env::var_os("HOME")
            .context("neither PLIMSOLL_CACHE, XDG_CACHE_HOME nor HOME is set: set one of them")?;
        PathBuf::from(home).join(".cache/plimsoll")
    };
    fs::create_dir_all(&dir).with_context(|| format!("creating the cache {}", dir.display()))?;
    fs::canonicalize(&dir).with_context(|| format!("resolving the cache {}", dir.display()))
}

/// A digest of all that goes into an entry.
#[derive(Clone, Default)]
pub struct Key(Sha256);

impl Key {
    /// Adds one named ingredient.
    pub fn add(&mut self, name: &str, content: impl AsRef<[u8]>) -> &mut Self {
        for part in [name.as_bytes(), content.as_ref()] {
            self.0.update((part.len() as u64).to_be_bytes());
            self.0.update(part);
        }
        self
    }

    /// Adds every file below `dir`, with its relative path.
    pub fn add_tree(&mut self, dir: &Path) -> Result<&mut Self> {
        let mut pending = vec![dir.to_path_buf()];
        let mut files = Vec::new();
        while let Some(current) = pending.pop() {
            let listing =
                fs::read_dir(&current).with_context(|| format!("listing {}", current.display()))?;
            for entry in listing {
                let path = entry.with_context(|| format!("listing {}", current.display()))?.path();
                if path.is_dir() {
                    pending.push(path);
                } else {
                    files.push(path);
                }
            }
        }
        files.sort();
        for path in files {
            let content = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            self.add(&path.strip_prefix(dir).unwrap_or(&path).to_string_lossy(), content);
        }
        Ok(self)
    }

    fn hex(&self) -> String {
        let digest = self.0.clone().finalize();
        digest[..8].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The directory of entry `name` with `key`; `make` fills a new one if there is none.
pub fn entry(name: &str, key: &Key, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let cache = directory()?;
    let path = cache.join(format!("{name}-{}", key.hex()));
    let lock_path = cache.join(format!("{name}.lock"));
    let lock = File::create(&lock_path)
        .with_context(|| format!("creating the lock {}", lock_path.display()))?;
    lock.lock().with_context(|| format!("locking {}", lock_path.display()))?;
    if !path.exists() {
        let started = SystemTime::now();
        progress(&format!("making {name} (kept in {})", cache.display()));
        remove_unused(&cache, name)?;
        let work = tempfile::Builder::new()
            .prefix(&format!("making-{name}-"))
            .tempdir_in(&cache)
            .with_context(|| format!("creating a work directory in {}", cache.display()))?;
        make(work.path()).with_context(|| format!("making {name}"))?;
        fs::rename(work.keep(), &path)
            .with_context(|| format!("moving {name} to {}", path.display()))?;
        let taken = started.elapsed().unwrap_or_default();
        progress(&format!("made {name} in {:.0} s", taken.as_secs_f64()));
    }
    // The time of last use, for remove_unused.
    File::create(path.join("used")).with_context(|| format!("marking {} used", path.display()))?;
    Ok(path)
}

/// One line on standard error, for steps that take longer than a person likes to wait in the dark.
pub fn progress(line: &str) {
    eprintln!("[node] {line}");
}

fn remove_unused(cache: &Path, name: &str) -> Result<()> {
    for entry in fs::read_dir(cache).with_context(|| format!("listing {}", cache.display()))? {
        let path = entry.with_context(|| format!("listing {}", cache.display()))?.path();
        let file_name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let unused = fs::metadata(path.join("used"))
            .and_then(|used| used.modified())
            .ok()
            .and_then(|used| used.elapsed().ok())
            .is_some_and(|age| age > UNUSED);
        // A killed process leaves its work directory; the lock we hold says that nobody is at work in it.
        let abandoned = file_name.starts_with(&format!("making-{name}-"));
        if abandoned || (unused && file_name.starts_with(&format!("{name}-"))) {
            fs::remove_dir_all(&path).with_context(|| format!("removing {}", path.display()))?;
        }
    }
    Ok(())
}
