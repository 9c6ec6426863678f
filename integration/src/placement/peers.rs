//! Programs of other projects on a node.
//!
//! The programs are NRI plugins that run beside Plimsoll, and CRI-O's own tests of NRI.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::machine::Node;
use crate::placement::upload::upload;
use crate::runtime::CRIO;
use crate::tools::cache::{self, Key};
use crate::tools::command::run;
use crate::tools::debian::debian_mirror;
use crate::tools::go::{Build, Programs};

/// The directory of these programs on the node.
pub const DIRECTORY: &str = "/usr/local/libexec/peers";

/// The plugins from the NRI project.
///
/// `logger` logs events. `differ` compares each event before and after all other plugins have
/// handled it. `ulimit-adjuster` sets the rlimits that annotations request.
const PLUGINS: [&str; 3] = ["logger", "differ", "ulimit-adjuster"];

/// The path of the plugins' source in the archive of Debian 13.
///
/// Each plugin is a Go module without a version, so a module proxy does not have the module.
const SOURCE: &str =
    "pool/main/g/golang-github-containerd-nri/golang-github-containerd-nri_0.6.1.orig.tar.gz";

const SOURCE_DIGEST: &str =
    "SHA256:b35a8f297a5cf3ce9c87514de76123804893e17b2378b413fbbe9d428c40be8d";

/// CRI-O's own tests of NRI. The tests need only the socket of CRI-O.
const NRI_TEST: Programs = Programs {
    name: "nri-test",
    tags: &[
        "test",
        "containers_image_openpgp",
        "containers_image_ostree_stub",
        "exclude_graphdriver_btrfs",
    ],
    packages: &[],
    tests: &["./test/nri"],
    ..CRIO
};

/// Builds all programs if they are not in the cache.
pub fn prepare() -> Result<()> {
    plugins()?;
    NRI_TEST.obtain().map(|_| ())
}

/// Copies the plugins to a node. Builds the plugins first if they are not in the cache.
pub fn put_plugins(node: &Node) -> Result<()> {
    let built = plugins()?;
    PLUGINS.iter().try_for_each(|name| put(node, built.join(name)))
}

/// Copies `nri.test`, CRI-O's own tests of NRI, to a node.
pub fn put_nri_tests(node: &Node) -> Result<()> {
    put(node, NRI_TEST.obtain()?.join("nri.test"))
}

fn put(node: &Node, program: PathBuf) -> Result<()> {
    let uploaded = upload(node, &program)?;
    let name = program.file_name().unwrap_or_default().display();
    node.run(&format!("mkdir -p {DIRECTORY}; ln -sf {uploaded} {DIRECTORY}/{name}"))
        .with_context(|| format!("copying {name} to the node"))?;
    Ok(())
}

fn plugins() -> Result<PathBuf> {
    let build =
        Build { verb: &["build"], flags: vec!["-ldflags=-s -w".to_owned()], packages: &["."] };
    let mut key = Key::default();
    key.add("source", SOURCE_DIGEST).add("plugins", PLUGINS.join(" "));
    build.add_to(&mut key);
    cache::entry("nri-plugins", &key, |dir| {
        let work = tempfile::tempdir().context("creating a directory")?;
        let archive = work.path().join("nri.tar.gz");
        run(Command::new("/usr/lib/apt/apt-helper")
            .args(["download-file", &format!("{}/{SOURCE}", debian_mirror())])
            .arg(&archive)
            .arg(SOURCE_DIGEST))?;
        run(Command::new("tar")
            .args(["-x", "--strip-components=1", "-f"])
            .arg(&archive)
            .arg("-C")
            .arg(work.path()))?;
        PLUGINS.iter().try_for_each(|name| {
            build.run(&work.path().join("plugins").join(name), &dir.join(name))
        })
    })
}
