//! A cache outside the work tree for files that are slow to build.
//!
//! An entry is a directory `NAME-KEY`. The key is a digest of everything that decides the content
//! of the entry. A new entry is built in another directory and then renamed, so that every existing
//! entry is complete. A file lock per name keeps two processes from building the same entry.
//!
//! Each source file that builds an entry also makes the entry's key, from four kinds of inputs:
//!
//! - Data that the build uses: versions, arguments of commands, and scripts for the node
//!   ([`Key::add`]). The build and the key read the same constant or call the same function.
//! - Trees of files that the build copies or compiles ([`Key::add_tree`]).
//! - Other entries that the build uses: their keys, not their content ([`Key::add_key`]).
//! - Steps that are not data: the text of the source files with these steps ([`Key::add_source`]).
//!   A source file with steps contains no code for other entries.
//!
//! | entry | file | inputs |
//! |---|---|---|
//! | programs from Go modules | `tools/go.rs` | version, arguments; for our own modules the tree |
//! | `workload` | `image/workload.rs` | source, arguments, version of the compiler |
//! | `base-DISTRO` | `image/base.rs` | steps, `node/common`, kernel hook, programs |
//! | `image-RUNTIME` | `image/disk.rs` | base, steps, `node/RUNTIME`, programs |
//! | `snapshot-RUNTIME` | `machine/snapshot.rs` | image, steps, QEMU and its arguments, script |
//! | `kubernetes-disk` | `cluster/programs.rs` | programs, options of the file system |
//! | `nri-plugins` | `placement/peers.rs` | digest of the source, arguments |
//!
//! No key contains the versions of the Debian packages or of Go. To use newer versions in an entry,
//! delete the entry's directory.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::tools::progress::progress;

/// The time after which unused entries are removed.
///
/// The removal happens when an entry with the same name and another key is built.
const UNUSED: Duration = Duration::from_secs(14 * 24 * 3600);

/// Returns the cache directory: `$PLIMSOLL_CACHE`, or else `plimsoll` in the XDG cache directory.
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

/// A digest of everything that goes into an entry.
#[derive(Clone, Default)]
pub struct Key(Sha256);

impl Key {
    /// Adds one named input.
    pub fn add(&mut self, name: &str, content: impl AsRef<[u8]>) -> &mut Self {
        for part in [name.as_bytes(), content.as_ref()] {
            self.0.update((part.len() as u64).to_be_bytes());
            self.0.update(part);
        }
        self
    }

    /// Adds the relative path and the content of every file below `dir`.
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

    /// Adds the key of another entry.
    pub fn add_key(&mut self, name: &str, key: &Key) -> &mut Self {
        self.add(name, key.hex())
    }

    /// Adds the text of a Rust source file without comment lines, empty lines and unit tests.
    pub fn add_source(&mut self, name: &str, text: &str) -> &mut Self {
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let lines = code.lines().filter(|line| {
            let line = line.trim_start();
            !line.is_empty() && !line.starts_with("//")
        });
        self.add(name, lines.collect::<Vec<_>>().join("\n"))
    }

    /// Returns the key as text.
    pub(crate) fn hex(&self) -> String {
        let digest = self.0.clone().finalize();
        digest[..8].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Returns the directory of the entry `name` with `key`.
///
/// If the entry does not exist, `make` fills a new directory.
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
    // The modification time of this file is the time of the last use; see `remove_unused`.
    File::create(path.join("used")).with_context(|| format!("marking {} used", path.display()))?;
    Ok(path)
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
        // A killed process leaves its work directory behind. This process holds the lock of the
        // name, so no other process works in that directory.
        let is_abandoned = has_name(&file_name, &format!("making-{name}"));
        if is_abandoned || (unused && has_name(&file_name, name)) {
            fs::remove_dir_all(&path).with_context(|| format!("removing {}", path.display()))?;
        }
    }
    Ok(())
}

/// Returns whether a file name consists of `name`, a hyphen and a suffix without hyphens.
///
/// A name can begin with another name, such as `kubernetes-disk` with `kubernetes`. A key has no
/// hyphen, and neither has the suffix of a work directory.
fn has_name(file_name: &str, name: &str) -> bool {
    let suffix = file_name.strip_prefix(name).and_then(|rest| rest.strip_prefix('-'));
    suffix.is_some_and(|suffix| !suffix.contains('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_tests_leave_the_key_unchanged() {
        let key = |text| {
            let mut key = Key::default();
            key.add_source("a.rs", text);
            key.hex()
        };
        let code = "fn a() {}\nfn b() {}\n";
        let commented = "//! A.\nfn a() {}\n\n    // B.\nfn b() {}\n#[cfg(test)]\nmod tests {}\n";
        assert_eq!(key(code), key(commented));
        assert_ne!(key(code), key("fn a() {}\nfn c() {}\n"));
    }

    #[test]
    fn entry_of_longer_name_is_another() {
        assert!(has_name("kubernetes-0123456789abcdef", "kubernetes"));
        assert!(has_name("making-kubernetes-disk-x7Yz01", "making-kubernetes-disk"));
        assert!(!has_name("kubernetes-disk-0123456789abcdef", "kubernetes"));
        assert!(!has_name("making-kubernetes-disk-x7Yz01", "making-kubernetes"));
        assert!(!has_name("kubernetes.lock", "kubernetes"));
    }
}
