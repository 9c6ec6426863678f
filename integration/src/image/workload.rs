//! Builds the static program that containers run.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result};

use crate::tools::cache::{self, Key};
use crate::tools::command::run;

/// The arguments of the compiler.
const ARGUMENTS: [&str; 12] = [
    "--edition",
    "2024",
    "-C",
    "opt-level=2",
    "-C",
    "strip=symbols",
    "-C",
    "panic=abort",
    "-C",
    "target-feature=+crt-static",
    "--target",
    "x86_64-unknown-linux-gnu",
];

/// Builds the static program that containers run from `src/bin/workload.rs`. Returns its content.
pub(super) fn workload() -> Result<Vec<u8>> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = run(Command::new(&rustc).arg("-vV"))?;
    let mut key = Key::default();
    key.add_source("source", include_str!("../bin/workload.rs"))
        .add("arguments", ARGUMENTS.join(" "))
        .add("compiler", version);
    let dir = cache::entry("workload", &key, |dir| {
        run(Command::new(&rustc)
            .args(ARGUMENTS)
            .arg("-o")
            .arg(dir.join("workload"))
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bin/workload.rs")))
        .map(|_| ())
    })?;
    fs::read(dir.join("workload")).context("reading the workload's binary")
}
