//! The part of an image that the nodes of one distribution share.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, anyhow};

use crate::image::files::{copy_tree, node_files};
use crate::image::initrd::{busybox, write_initrd};
use crate::image::kernel::{extract_vmlinux, find_kernel};
use crate::image::oci;
use crate::image::packages::{UNREAD, bootstrap, record_versions};
use crate::image::workload::workload;
use crate::runtime::Distro;
use crate::tools::cache::{self, Key};
use crate::tools::command::run;
use crate::tools::go::{OwnProgram, Programs};

const CRICTL: Programs = Programs {
    name: "crictl",
    module: "sigs.k8s.io/cri-tools",
    version: "v1.36.0",
    tags: &[],
    version_variable: Some("sigs.k8s.io/cri-tools/pkg/version.Version"),
    packages: &["./cmd/crictl"],
    tests: &[],
};

/// The source files with the steps of the build.
const SOURCES: [(&str, &str); 6] = [
    ("base.rs", include_str!("base.rs")),
    ("files.rs", include_str!("files.rs")),
    ("packages.rs", include_str!("packages.rs")),
    ("kernel.rs", include_str!("kernel.rs")),
    ("initrd.rs", include_str!("initrd.rs")),
    ("oci.rs", include_str!("oci.rs")),
];

/// The enabled systemd units, each with the target that starts it. All other units are disabled.
const WANTED_UNITS: &[(&str, &str)] = &[
    ("sysinit.target", "systemd-journald.service"),
    ("sockets.target", "systemd-journald.socket"),
    ("sockets.target", "systemd-journald-dev-log.socket"),
    ("sockets.target", "dbus.socket"),
];

/// Returns the client that stays connected to the runtime.
fn cri() -> OwnProgram {
    OwnProgram { name: "cri", flags: vec!["-ldflags=-s -w".to_owned()] }
}

/// Returns the directory with the files that the nodes of one distribution share.
///
/// The directory contains the kernel, the initial RAM file system, the ssh key and `root`. The
/// directory `root` has all files of the node except the runtime's files.
pub(super) fn base(distro: Distro) -> Result<PathBuf> {
    let program = workload()?;
    let files = node_files();
    let (common, hook) = (files.join("common"), files.join("kernel-hook.sh"));
    let mut key = Key::default();
    for (name, text) in SOURCES {
        key.add_source(name, text);
    }
    key.add("suite", distro.suite())
        .add("program", &program)
        .add("hook", fs::read(&hook).with_context(|| format!("reading {}", hook.display()))?)
        .add_key("crictl", &CRICTL.key())
        .add_key("cri", &cri().key()?);
    key.add_tree(&common)?;
    cache::entry(&format!("base-{distro}"), &key, |dir| {
        build(distro, &hook, &common, &program, dir)
    })
}

fn build(distro: Distro, hook: &Path, common: &Path, program: &[u8], dir: &Path) -> Result<()> {
    let root = dir.join("root");
    // Build the clients and bootstrap the system at the same time. The build mostly needs processor
    // time. The bootstrap mostly downloads.
    let (crictl, cri) = thread::scope(|scope| {
        let clients =
            scope.spawn(|| CRICTL.obtain().and_then(|crictl| Ok((crictl, cri().obtain()?))));
        bootstrap(distro, hook, &root)?;
        clients.join().map_err(|_| anyhow!("the thread that builds crictl and cri panicked"))?
    })?;
    record_versions(distro, &root, &dir.join("versions"))?;
    let kernel = find_kernel(&root)?;
    extract_vmlinux(&kernel, &dir.join("vmlinux"))?;
    write_initrd(&root, &dir.join("initrd"))?;

    copy_tree(common, &root)?;
    wire_units(&root)?;
    // The installation of the ssh package generated a host key. Remove this key, because ssh-keygen
    // below needs a free path.
    let host_key = root.join("etc/ssh/ssh_host_ed25519_key");
    if host_key.exists() {
        fs::remove_file(&host_key).context("removing the package's host key")?;
    }
    for key in [&dir.join("ssh_key"), &host_key] {
        run(Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "node", "-f"])
            .arg(key))?;
    }
    let login = root.join("root/.ssh");
    fs::create_dir_all(&login).context("creating /root/.ssh on the node")?;
    fs::copy(dir.join("ssh_key.pub"), login.join("authorized_keys"))
        .context("copying the ssh key into the node")?;
    fs::copy(crictl.join("crictl"), root.join("usr/local/bin/crictl"))
        .context("copying crictl into the node")?;
    fs::copy(cri, root.join("usr/local/bin/node-cri")).context("copying cri into the node")?;
    let workload = root.join("usr/local/bin/workload");
    fs::write(&workload, program).context("copying the workload into the node")?;
    fs::set_permissions(&workload, PermissionsExt::from_mode(0o755))
        .context("making the workload executable")?;
    let busybox = fs::read(busybox(&root)?).context("reading busybox")?;
    oci::write_archive(program, &busybox, &root.join(oci::ARCHIVE.trim_start_matches('/')))?;
    for unread in UNREAD {
        let path = root.join("usr/share").join(unread);
        if path.exists() {
            fs::remove_dir_all(&path).with_context(|| format!("removing {}", path.display()))?;
        }
    }
    Ok(())
}

/// Disables all units of the packages and enables only the units that the node needs.
///
/// Every additional unit would cost emulated processor time.
fn wire_units(root: &Path) -> Result<()> {
    let units = root.join("etc/systemd/system");
    for dir in [&root.join("usr/lib/systemd/system"), &units] {
        for entry in fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))? {
            let path = entry.with_context(|| format!("listing {}", dir.display()))?.path();
            if path.extension().is_some_and(|extension| extension == "wants") {
                fs::remove_dir_all(&path)
                    .with_context(|| format!("removing {}", path.display()))?;
            }
        }
    }
    for (target, unit) in WANTED_UNITS {
        let wants = units.join(format!("{target}.wants"));
        fs::create_dir_all(&wants).with_context(|| format!("creating {}", wants.display()))?;
        symlink(format!("/usr/lib/systemd/system/{unit}"), wants.join(unit))
            .with_context(|| format!("enabling {unit}"))?;
    }
    let default = units.join("default.target");
    if default.is_symlink() {
        fs::remove_file(&default).context("removing the default target")?;
    }
    symlink("node.target", &default).context("setting the default target")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_here_is_in_a_key() {
        // The key contains the program that workload.rs builds. disk.rs builds another cache entry.
        let others = ["workload.rs", "disk.rs", "mod.rs"];
        let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/image");
        for file in fs::read_dir(here).unwrap() {
            let name = file.unwrap().file_name().into_string().unwrap();
            let is_known = SOURCES.iter().any(|(source, _)| *source == name);
            assert!(is_known || others.contains(&&*name), "{name} is in no key");
        }
    }
}
