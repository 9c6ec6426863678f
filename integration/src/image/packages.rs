//! The Debian packages of a node and their installation into a root directory.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::image::kernel::find_kernel;
use crate::runtime::Distro;
use crate::tools::command::run;
use crate::tools::debian::debian_mirror;
use crate::tools::progress::progress;

const PACKAGES: &[&str] = &[
    // mmdebstrap's variant `custom` installs no packages by itself. dpkg needs some of these
    // packages, and the node uses the others as essential tools.
    "base-files",
    "base-passwd",
    "bash",
    "coreutils",
    "dash",
    "debianutils",
    "diffutils",
    "dpkg",
    "findutils",
    "grep",
    "gzip",
    "hostname",
    "init-system-helpers",
    "libc-bin",
    "login",
    "mount",
    "passwd",
    "sed",
    "tar",
    "util-linux",
    // The node's other programs.
    "busybox-static",
    "containerd",
    "dbus",
    "iproute2",
    "kmod",
    "openssh-server",
    "procps",
    "runc",
    "systemd",
    "systemd-sysv",
];

/// Returns all packages of a distribution.
///
/// On forky, the result includes the packages that CRI-O and the newest containerd need; see
/// `runtime/`.
fn packages(distro: Distro) -> Vec<&'static str> {
    match distro {
        Distro::Forky => {
            [PACKAGES, &["conmon", "containernetworking-plugins", "crun", "skopeo"]].concat()
        }
        Distro::Trixie => PACKAGES.to_vec(),
    }
}

/// The directories below /usr/share that no program on the node reads.
pub(super) const UNREAD: &[&str] =
    &["doc", "man", "locale", "info", "i18n", "zoneinfo", "bash-completion", "lintian"];

pub(super) fn bootstrap(distro: Distro, hook: &Path, root: &Path) -> Result<()> {
    let mirror = debian_mirror();
    let hook = hook.to_str().context("the path of integration/node is not UTF-8")?;
    ensure!(!hook.contains('\''), "the path of integration/node must not contain a quote: {hook}");
    let suite = distro.suite();
    // Downloads from mirrors fail now and then, especially for Debian testing, which changes. A
    // retry costs little.
    const TRIES: u32 = 3;
    for attempt in 1..=TRIES {
        progress(&format!("installing Debian {suite} from {mirror}"));
        let mut command = Command::new("mmdebstrap");
        command
            .args(["--quiet", "--mode=root", "--variant=custom", "--format=directory"])
            .arg(format!("--include={}", packages(distro).join(",")))
            // A frozen or cached mirror serves expired release files. apt still verifies
            // signatures.
            .arg("--aptopt=Acquire::Check-Valid-Until \"false\"")
            .arg("--aptopt=Acquire::Retries \"5\"")
            .arg("--aptopt=APT::Install-Recommends \"false\"")
            .args(UNREAD.iter().map(|dir| format!("--dpkgopt=path-exclude=/usr/share/{dir}/*")))
            .arg(format!("--customize-hook=sh '{hook}' \"$1\""))
            .arg(suite)
            .arg(root)
            .arg(&mirror);
        match run(&mut command) {
            Ok(_) => return Ok(()),
            Err(error) if attempt < TRIES => {
                progress(&format!("attempt {attempt} of {TRIES} failed: {error:#}"));
                if root.exists() {
                    fs::remove_dir_all(root)
                        .with_context(|| format!("removing {}", root.display()))?;
                }
            }
            Err(error) => {
                return Err(error.context(format!(
                    "installing Debian {suite} from {mirror}: this needs root, the network and the \
                     keys of the suite (apt-get install debian-archive-keyring)"
                )));
            }
        }
    }
    Ok(())
}

pub(super) fn record_versions(distro: Distro, root: &Path, path: &Path) -> Result<()> {
    let listing = run(Command::new("dpkg-query")
        .arg(format!("--admindir={}", root.join("var/lib/dpkg").display()))
        .args(["--show", "--showformat=${Package} ${Version}\\n"])
        .args(
            ["containerd", "runc", "crun", "conmon", "systemd"]
                .iter()
                .filter(|name| packages(distro).contains(name)),
        ))?;
    let kernel = find_kernel(root)?;
    let kernel = kernel.strip_prefix(root).unwrap_or(&kernel).display();
    fs::write(path, format!("{listing}kernel {kernel}\n"))
        .with_context(|| format!("writing {}", path.display()))
}
