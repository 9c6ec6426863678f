//! The programs of runtimes that have no Debian package.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::runtime::kind::Runtime;
use crate::tools::command::run;
use crate::tools::go::Programs;

const CONTAINERD: Programs = Programs {
    name: "containerd",
    module: "github.com/containerd/containerd/v2",
    version: "v2.4.2",
    tags: &["no_btrfs", "no_devmapper", "no_zfs"],
    version_variable: Some("github.com/containerd/containerd/v2/version.Version"),
    packages: &["./cmd/containerd", "./cmd/containerd-shim-runc-v2", "./cmd/ctr"],
    tests: &[],
};

pub(crate) const CRIO: Programs = Programs {
    name: "crio",
    module: "github.com/cri-o/cri-o",
    version: "v1.36.3",
    // These tags exclude or replace everything that needs C libraries.
    tags: &[
        "containers_image_openpgp",
        "containers_image_ostree_stub",
        "exclude_graphdriver_btrfs",
    ],
    version_variable: None,
    packages: &["./cmd/crio"],
    tests: &[],
};

/// Installs the programs without a Debian package into the root directory of a node with this
/// runtime.
///
/// The files must not exist there before.
pub(crate) fn install(runtime: Runtime, root: &Path) -> Result<()> {
    match runtime {
        Runtime::Containerd17 | Runtime::Containerd21 => Ok(()),
        // Not /opt/containerd: every containerd looks for shims there first. Debian's containerd
        // would start a shim from there that does not work with it.
        Runtime::Containerd24 => copy_programs(CONTAINERD, &root.join("opt/containerd-2.4/bin")),
        Runtime::Crio136 => {
            let destination = root.join("usr/local/bin");
            copy_programs(CRIO, &destination)?;
            // pinns, CRI-O's helper that pins namespaces, is a C program in CRI-O's module.
            let sources = CRIO.source()?.join("pinns/src");
            run(Command::new("cc")
                .args(["-std=c99", "-Os", "-static", "-o"])
                .arg(destination.join("pinns"))
                .args(["pinns.c", "sysctl.c"].map(|file| sources.join(file))))
            .map(|_| ())
        }
    }
}

fn copy_programs(programs: Programs, destination: &Path) -> Result<()> {
    fs::create_dir_all(destination)
        .with_context(|| format!("creating {}", destination.display()))?;
    let built = programs.obtain()?;
    for package in programs.packages {
        let name = package.rsplit('/').next().unwrap_or(package);
        fs::copy(built.join(name), destination.join(name))
            .with_context(|| format!("copying {name} into the node"))?;
    }
    Ok(())
}
