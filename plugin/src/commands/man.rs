//! `plimsoll man`: writes the manual pages.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;

use crate::commands::failure::Failure;
use crate::commands::input::shown;

/// Write the manual pages of the program and its commands.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  plimsoll man /usr/local/share/man/man1
  man plimsoll-status")]
pub(crate) struct Man {
    /// Existing directory for the pages
    directory: PathBuf,
}

impl Man {
    /// Writes the manual pages of `program`.
    pub(crate) fn run(self, program: clap::Command) -> Result<(), Failure> {
        // Omit the page of the `help` command, because `--help` prints the same text.
        clap_mangen::generate_to(program.disable_help_subcommand(true), &self.directory)
            .with_context(|| {
                format!(
                    "cannot write manual pages to {}, expected a directory",
                    shown(&self.directory)
                )
            })
            .map_err(Failure::Runtime)
    }
}
