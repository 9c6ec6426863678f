//! Output of commands.

use std::io::{self, Write};

use crate::commands::failure::Failure;

/// Writes to standard output. Ignores a closed pipe, because the program that closed the pipe needs
/// no more output.
pub(in crate::commands) fn print(text: std::fmt::Arguments<'_>) -> Result<(), Failure> {
    match io::stdout().lock().write_fmt(text) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::Runtime(
            anyhow::Error::new(error).context("cannot write to standard output"),
        )),
        _ => Ok(()),
    }
}
