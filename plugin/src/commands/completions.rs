//! `plimsoll completions`: prints the completions for a shell.

use clap::Args;
use clap_complete::Shell;

use crate::commands::failure::Failure;
use crate::commands::output::print;

/// Print the completions of commands and options for a shell.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  plimsoll completions bash > /usr/share/bash-completion/completions/plimsoll
  plimsoll completions zsh > /usr/local/share/zsh/site-functions/_plimsoll")]
pub(crate) struct Completions {
    /// Shell
    shell: Shell,
}

impl Completions {
    /// Prints the shell completions for `program`.
    pub(crate) fn run(self, mut program: clap::Command) -> Result<(), Failure> {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut program, "plimsoll", &mut text);
        print(format_args!("{}", String::from_utf8_lossy(&text)))
    }
}
