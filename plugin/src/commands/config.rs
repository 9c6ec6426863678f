//! `plimsoll config`: prints configuration files.

use clap::{Args, Subcommand};

use crate::commands::failure::Failure;
use crate::commands::field_docs::DefaultFile;
use crate::commands::output::print;

/// Print a configuration file to start from.
#[derive(Args)]
pub(crate) struct ConfigCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Print a configuration file with all fields, their defaults and their documentation
    #[command(after_long_help = "\
Examples:
  plimsoll config default > 90-plimsoll.conf")]
    Default,
}

impl ConfigCommand {
    /// Prints the configuration file.
    pub(crate) fn run(self) -> Result<(), Failure> {
        match self.action {
            Action::Default => print(format_args!("{DefaultFile}")),
        }
    }
}
