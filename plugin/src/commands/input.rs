//! Input of commands: files, standard input and quantities on the command line.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::Context as _;
use plimsoll_core::units::Bytes;

use crate::commands::failure::Failure;
use crate::config::{self, Config};

/// Parses the value of a command-line option that is an amount of memory above 0.
pub(in crate::commands) fn quantity(text: &str) -> Result<Bytes, String> {
    match Bytes::from_quantity(text) {
        Ok(Bytes::ZERO) => Err("expected a quantity above 0".to_owned()),
        Ok(bytes) => Ok(bytes),
        Err(error) => Err(error.to_string()),
    }
}

/// Reads and validates a configuration file.
pub(in crate::commands) fn load_config(path: &Path) -> Result<Config, Failure> {
    let text = read(path, config::LARGEST)?;
    Config::parse(&text, &shown(path)).map_err(|errors| Failure::Usage(errors.into()))
}

/// Reads at most `most` + 1 bytes from a file or standard input. The extra byte shows the caller
/// that the input is too large.
pub(in crate::commands) fn read(path: &Path, most: usize) -> Result<Vec<u8>, Failure> {
    read_file(path, most)
        .with_context(|| format!("cannot read {}", shown(path)))
        .map_err(Failure::Usage)
}

/// Reads from a file or standard input like [`read`], but returns an I/O error.
pub(in crate::commands) fn read_file(path: &Path, most: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let source: Box<dyn Read> =
        if path == Path::new("-") { Box::new(io::stdin()) } else { Box::new(File::open(path)?) };
    source.take(most as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Returns the name by which messages refer to a file.
pub(in crate::commands) fn shown(path: &Path) -> String {
    if path == Path::new("-") { "standard input".to_owned() } else { path.display().to_string() }
}
