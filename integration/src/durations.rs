//! How long cases take on nodes: a line for people on standard error, also while the test runner captures what tests print, and a line
//! for programs in the directory `node-cases` beside cargo's: what came of it, seconds, seconds of these until the node was ready
//! for it, runtime and name, with tabs between them. `hack/check` makes tables of these.

use std::env;
use std::fs::File;
use std::io::{self, Write as _};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::support;

/// The directory of the files, one for each test program.
const DIRECTORY: &str = "node-cases";

static FILE: Mutex<Option<File>> = Mutex::new(None);

/// The name of this thread's case.
///
/// The test runner names a thread after its test, unless it has only one.
pub fn case_name() -> String {
    thread::current().name().unwrap_or("a case").to_owned()
}

/// Notes how long this thread's case took in all, and how long of that until its node was ready for it.
pub fn note(runtime: &str, outcome: &str, took: Duration, preparing: Duration) {
    let (case, took, preparing) = (case_name(), took.as_secs_f64(), preparing.as_secs_f64());
    let line = format!(
        "[case] {took:6.1} s, {preparing:5.1} s of them to prepare, {runtime}: {case}: {outcome}\n"
    );
    // Past the capture of `eprintln!`. Nobody is to fail for a closed terminal.
    let _ = io::stderr().write_all(line.as_bytes());
    let line = format!("{outcome}\t{took:.1}\t{preparing:.1}\t{runtime}\t{case}\n");
    if let Err(error) = append(&line) {
        let _ = writeln!(io::stderr(), "[case] the duration is not written down: {error:#}");
    }
}

/// Adds a line to this program's file, which begins anew with the program.
fn append(line: &str) -> Result<()> {
    let mut file = FILE.lock().unwrap_or_else(PoisonError::into_inner);
    if file.is_none() {
        let program = env::current_exe().context("looking for this program")?;
        let name = program.file_stem().context("this program has no name")?;
        // Without the digest that cargo adds, so that there is one file for each program.
        let name = name.to_string_lossy();
        let name = name.rsplit_once('-').map_or(&*name, |(name, _)| name);
        let path = support::directory(&program, DIRECTORY)?.join(name);
        *file = Some(File::create(&path).with_context(|| format!("creating {}", path.display()))?);
    }
    let file = file.as_mut().context("the file was opened above")?;
    file.write_all(line.as_bytes()).context("writing a line")
}
