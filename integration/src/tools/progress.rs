//! Progress messages of slow steps.

/// Prints a line to standard error, so that the user sees the progress of slow steps.
pub fn progress(line: &str) {
    eprintln!("[node] {line}");
}
