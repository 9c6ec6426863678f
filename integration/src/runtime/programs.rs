//! The programs of runtimes that have no Debian package.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::runtime::kind::Runtime;
use crate::runtime::modules::{CONTAINERD, CRIO};
use crate::tools::cache::Key;
use crate::tools::command::run;
use crate::tools::go::Programs;

/// Adds to a cache key the programs that [`install`] installs.
pub(crate) fn add_programs(runtime: Runtime, key: &mut Key) {
    match runtime {
        Runtime::Containerd17 | Runtime::Containerd21 => {}
        Runtime::Containerd24 => {
            key.add_key("containerd", &CONTAINERD.key());
        }
        Runtime::Crio136 => {
            key.add_key("crio", &CRIO.key());
        }
    }
    key.add_source("programs.rs", include_str!("programs.rs"));
}

/// Installs the programs without a Debian package into the root directory of a node with this
/// runtime.
///
/// The files must not exist there before.
pub(crate) fn install(runtime: Runtime, root: &Path) -> Result<()> {
    match runtime {
        Runtime::Containerd17 | Runtime::Containerd21 => Ok(()),
        // Do not use /opt/containerd, because every containerd first looks for shims in this
        // directory. Debian's containerd would start an incompatible shim.
        Runtime::Containerd24 => copy_programs(CONTAINERD, &root.join("opt/containerd-2.4/bin")),
        Runtime::Crio136 => {
            let destination = root.join("usr/local/bin");
            copy_programs(CRIO, &destination)?;
            // pinns, CRI-O's helper that pins namespaces, is a C program in CRI-O's Go module.
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
