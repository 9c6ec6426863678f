//! The Kubernetes programs, and a disk with them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::tools::cache::{self, Key};
use crate::tools::ext4;
use crate::tools::go::{OwnProgram, own_source};

/// The common name of the Go module, the program and the cache entry.
const NAME: &str = "kubernetes";

/// The size of the disk. The disk is sparse.
const SIZE: &str = "1G";

/// Builds the Kubernetes programs if they are not in the cache.
pub fn prepare() -> Result<()> {
    program().map(|_| ())
}

/// Returns the path of a single program that contains the Kubernetes programs.
///
/// The program is built from the Go modules at the versions in `integration/kubernetes/go.mod`.
pub(super) fn program() -> Result<PathBuf> {
    let modules = fs::read_to_string(own_source(NAME).join("go.mod"))
        .context("reading go.mod of Kubernetes")?;
    let version = modules.lines().find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes v"));
    let version = version.context("go.mod of Kubernetes does not require k8s.io/kubernetes")?;
    let (major, rest) =
        version.split_once('.').with_context(|| format!("{version:?} is not a version"))?;
    let (minor, _) =
        rest.split_once('.').with_context(|| format!("{version:?} is not a version"))?;
    // Set the version as the build of Kubernetes does, so that each program reports its version.
    let variables = [
        ("gitVersion", format!("v{version}")),
        ("gitMajor", major.to_owned()),
        ("gitMinor", minor.to_owned()),
    ];
    let variables: String = variables
        .iter()
        .map(|(name, value)| format!(" -X k8s.io/component-base/version.{name}={value}"))
        .collect();
    // Build without optimisation. An optimised build would take longer than the programs run in the
    // tests.
    let flags = vec!["-gcflags=all=-N -l".to_owned(), format!("-ldflags=-s -w{variables}")];
    OwnProgram { name: NAME, flags }.obtain()
}

/// Returns the path of a disk image with the Kubernetes programs.
pub(super) fn disk(program: &Path) -> Result<PathBuf> {
    let entry = program
        .parent()
        .and_then(Path::file_name)
        .context("the Kubernetes program is not in a cache entry")?;
    let mut key = Key::default();
    key.add("program", entry.as_encoded_bytes())
        .add("file system", ext4::OPTIONS.join(" "))
        .add("size", SIZE);
    let dir = cache::entry("kubernetes-disk", &key, |dir| {
        let root = tempfile::tempdir_in(dir).context("creating a directory")?;
        let copy = root.path().join("kubernetes");
        fs::hard_link(program, &copy).with_context(|| format!("linking {}", copy.display()))?;
        ext4::make_disk(root.path(), &dir.join("disk.img"), SIZE)
    })?;
    Ok(dir.join("disk.img"))
}
