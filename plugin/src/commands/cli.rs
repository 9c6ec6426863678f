//! Command line of the program; runs the command that the user names.

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::commands::check::Check;
use crate::commands::completions::Completions;
use crate::commands::config::ConfigCommand;
use crate::commands::doctor::command::Doctor;
use crate::commands::explain::command::Explain;
#[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
use crate::commands::host_names::look_names_up_alone;
use crate::commands::install::command::{Install, Uninstall};
use crate::commands::lint::command::Lint;
use crate::commands::man::Man;
use crate::commands::restore::arguments::{ResetBrake, Restore};
use crate::commands::run::arguments::Run;
use crate::commands::status::StatusCommand;

/// Sets the memory protection and throttling of each container on a node.
#[derive(Parser)]
#[command(
    version,
    about,
    long_about = "\
Plimsoll is a plugin (NRI) for containerd and CRI-O. It turns the memory requests and limits of
pods into cgroup v2 values:

  memory.min   the request: the kernel never reclaims this memory
  memory.low   the request: the kernel reclaims this memory last
  memory.high  request + factor x (limit - request): the kernel throttles above it
  memory.max   the limit: the container runtime sets it",
    after_help = "\
Exit codes: 0 success, 1 failure, 2 mistake in usage, configuration or manifest."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(Run),
    Status(StatusCommand),
    Install(Install),
    Uninstall(Uninstall),
    Restore(Restore),
    ResetBrake(ResetBrake),
    Doctor(Doctor),
    Check(Check),
    Config(ConfigCommand),
    Explain(Explain),
    Lint(Lint),
    Completions(Completions),
    Man(Man),
}

/// Runs the command that the command line specifies.
pub fn main() -> ExitCode {
    #[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
    look_names_up_alone();
    // A runtime launches plugins without arguments.
    let launched = std::env::args_os().len() < 2 && std::env::var_os("NRI_PLUGIN_SOCKET").is_some();
    let cli = if launched { Cli::parse_from(["plimsoll", "run"]) } else { Cli::parse() };
    let result = match cli.command {
        Command::Run(run) => run.run(),
        Command::Status(status) => status.run(),
        Command::Install(install) => install.run(),
        Command::Uninstall(uninstall) => uninstall.run(),
        Command::Restore(restore) => restore.run(),
        Command::ResetBrake(reset) => reset.run(),
        Command::Doctor(doctor) => doctor.run(),
        Command::Check(check) => check.run().map(|()| ExitCode::SUCCESS),
        Command::Config(config) => config.run().map(|()| ExitCode::SUCCESS),
        Command::Explain(explain) => explain.run().map(|()| ExitCode::SUCCESS),
        Command::Lint(lint) => lint.run(),
        Command::Completions(completions) => {
            completions.run(Cli::command()).map(|()| ExitCode::SUCCESS)
        }
        Command::Man(man) => man.run(Cli::command()).map(|()| ExitCode::SUCCESS),
    };
    let (error, code) = match result {
        Ok(code) => return code,
        Err(failure) => failure.into_parts(),
    };
    // Only `run` starts a logger. `run` logs its failure itself, unless the log cannot show the
    // last message of a process. `{error:#}` prints the error and its causes on one line.
    eprintln!("{error:#}");
    ExitCode::from(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_and_option_has_help_text() {
        let mut program = Cli::command();
        program.build();
        let commands: Vec<_> = program.get_subcommands().collect();
        assert!(commands.len() > 5);
        for command in commands {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{} {argument}", command.get_name());
            }
        }
    }
}
