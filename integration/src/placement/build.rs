//! Builds the plugin and its packages on this machine.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Result, anyhow};

use crate::tools::command::run;

/// Builds the release version of the plugin once per process and returns the path of the binary.
pub fn build() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| build_once().map_err(|error| format!("{error:#}")));
    built.clone().map_err(|error| anyhow!(error))
}

fn build_once() -> Result<PathBuf> {
    let output = run(&mut Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../hack/build")))?;
    Ok(PathBuf::from(output.trim_end()))
}

/// Makes the release packages of the plugin in `directory`.
///
/// The packages include `plimsoll_VERSION_ARCHITECTURE.deb` and `….oci.tar`. All file times in the
/// packages are `epoch`, in seconds since 1970.
pub fn package(directory: &Path, epoch: u64) -> Result<()> {
    run(Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../hack/package"))
        .arg(build()?)
        .arg(directory)
        .env("SOURCE_DATE_EPOCH", epoch.to_string()))?;
    Ok(())
}
