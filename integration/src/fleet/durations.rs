//! Records how long test cases take on nodes.
//!
//! Each case prints a readable line to standard error, even while the test runner captures output.
//! Each case also writes a machine-readable line to a file in the directory `node-cases`, which is
//! beside cargo's own directories. The fields of this line are separated by tabs: outcome, total
//! seconds, seconds until the node was ready, runtime and name. `hack/check` makes tables of these
//! lines.

use std::env;
use std::fmt;
use std::fs::File;
use std::io::{self, Write as _};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::tools::target_directory;

/// The directory with one file for each test program.
const DIRECTORY: &str = "node-cases";

static FILE: Mutex<Option<File>> = Mutex::new(None);

/// Returns the name of this thread's case.
///
/// The test runner names each thread after its test, unless the runner uses only one thread.
pub fn case_name() -> String {
    thread::current().name().unwrap_or("a case").to_owned()
}

/// The outcome of one run of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The case passed.
    Passed,
    /// The case failed.
    Failed,
    /// The case failed because its node died. The case runs once more.
    Retried,
}

impl Outcome {
    /// Returns the outcome of a run that has passed or failed. For a failed run, the outcome also
    /// depends on whether the node died.
    pub fn new(has_passed: bool, has_node_died: bool, is_last_run: bool) -> Outcome {
        match (has_passed, has_node_died && !is_last_run) {
            (true, _) => Outcome::Passed,
            (false, true) => Outcome::Retried,
            (false, false) => Outcome::Failed,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Outcome::Passed => "passed",
            Outcome::Failed => "failed",
            Outcome::Retried => "node died",
        })
    }
}

/// Records the total time of this thread's case, and the time until the node was ready.
pub fn note(runtime: &str, outcome: Outcome, took: Duration, preparing: Duration) {
    let (case, took, preparing) = (case_name(), took.as_secs_f64(), preparing.as_secs_f64());
    let line = format!(
        "[case] {took:6.1} s, {preparing:5.1} s of them to prepare, {runtime}: {case}: {outcome}\n"
    );
    // Write to standard error directly, because the test runner captures `eprintln!`. A closed
    // terminal must not make the test fail.
    let _ = io::stderr().write_all(line.as_bytes());
    let line = format!("{outcome}\t{took:.1}\t{preparing:.1}\t{runtime}\t{case}\n");
    if let Err(error) = append(&line) {
        let _ = writeln!(io::stderr(), "[case] the duration cannot be recorded: {error:#}");
    }
}

/// Appends a line to this program's file. The first line of a run replaces the old file.
fn append(line: &str) -> Result<()> {
    let mut file = FILE.lock().unwrap_or_else(PoisonError::into_inner);
    if file.is_none() {
        let program = env::current_exe().context("finding the path of this program")?;
        let name = program.file_stem().context("this program has no name")?;
        // Omit the digest that cargo appends to the name, so that each program has one file.
        let name = name.to_string_lossy();
        let name = name.rsplit_once('-').map_or(&*name, |(name, _)| name);
        let path = target_directory::directory(&program, DIRECTORY)?.join(name);
        *file = Some(File::create(&path).with_context(|| format!("creating {}", path.display()))?);
    }
    let file = file.as_mut().context("the file was opened above")?;
    file.write_all(line.as_bytes()).context("writing the duration of a case")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_last_run_on_dead_node_fails() {
        assert_eq!(Outcome::new(true, false, true), Outcome::Passed);
        assert_eq!(Outcome::new(false, true, false), Outcome::Retried);
        assert_eq!(Outcome::new(false, true, true), Outcome::Failed);
        assert_eq!(Outcome::new(false, false, false), Outcome::Failed);
    }
}
