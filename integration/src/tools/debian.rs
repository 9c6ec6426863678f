//! The Debian archive.

use std::process::Command;

/// Returns the Debian mirror that this machine's apt uses, or else the default mirror.
pub(crate) fn debian_mirror() -> String {
    let targets = Command::new("apt-get")
        .args([
            "indextargets",
            "--format",
            "$(ORIGIN)|$(LABEL)|$(REPO_URI)",
            "Identifier: Packages",
        ])
        .output();
    targets
        .ok()
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .and_then(|lines| {
            let mirror = lines.lines().find_map(|line| line.strip_prefix("Debian|Debian|"))?;
            Some(mirror.trim_end_matches('/').to_owned())
        })
        .unwrap_or_else(|| "http://deb.debian.org/debian".to_owned())
}
