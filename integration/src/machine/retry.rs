//! Repeats starts that fail.

use anyhow::{Context, Result};

use crate::tools::progress::progress;

/// The number of attempts before a start counts as failed.
const STARTS: u32 = 4;

/// Tries to start something up to [`STARTS`] times and prints the error of each failed attempt.
pub(super) fn retry<T>(what: &str, mut start: impl FnMut(u32) -> Result<T>) -> Result<T> {
    let mut attempt = 1;
    loop {
        match start(attempt) {
            Err(error) if attempt < STARTS => {
                progress(&format!("{what}: attempt {attempt} of {STARTS} failed: {error:#}"));
                attempt += 1;
            }
            other => return other.with_context(|| what.to_owned()),
        }
    }
}
