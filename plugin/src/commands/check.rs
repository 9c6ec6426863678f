//! `plimsoll check`: validates a configuration file.

use std::path::PathBuf;

use clap::Args;

use crate::commands::failure::Failure;
use crate::commands::field_docs::Help;
use crate::commands::input::{load_config, shown};
use crate::commands::output::print;

/// Validate a configuration file.
#[derive(Args)]
#[command(
    long_about = long_about(),
    after_long_help = "\
Examples:
  plimsoll check /etc/nri/conf.d/90-plimsoll.conf
  echo 'memoryThrottlingFactor: 0.8' | plimsoll check -"
)]
pub(crate) struct Check {
    /// Configuration file; - is standard input
    file: PathBuf,
}

impl Check {
    /// Validates the file and prints the effective configuration.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let config = load_config(&self.file)?;
        print(format_args!(
            "# {} is valid. The effective configuration:\n{config}",
            shown(&self.file)
        ))
    }
}

fn long_about() -> String {
    format!(
        "\
Validate a configuration file and print the effective configuration with its defaults. Every
mistake is reported at once, as FILE:LINE: field: expected ..., found ...

'plimsoll config default' prints a file with all fields. The fields and their defaults:
{Help}"
    )
}
