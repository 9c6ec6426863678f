//! Runs commands on a node as a user types the commands, and returns their output.

use std::fmt::Write as _;

use anyhow::{Result, bail};
use integration::machine::Node;

use crate::stable::stable;

/// Replacements for commands that a node lacks. `sudo` changes nothing, because the user is root.
const FUNCTIONS: &str = "sudo() { \"$@\"; }\nwget() { busybox wget \"$@\"; }\ncd /root\n";

/// The end of a question. A document shows the answer after the question, as a terminal does.
const QUESTION: &str = "[y/N] ";

/// A command as a document shows it. The command must succeed.
pub(crate) struct Step<'s> {
    command: &'s str,
    input: &'s str,
}

impl<'s> Step<'s> {
    /// Returns a command for which the user types no text.
    pub(crate) fn new(command: &'s str) -> Self {
        Self { command, input: "" }
    }

    /// Sets the text that the user types.
    pub(crate) fn input(mut self, input: &'s str) -> Self {
        self.input = input;
        self
    }
}

/// Runs commands on the node and returns the commands with their outputs.
///
/// Each pair in `names` is a value and its name in documents, such as a container's ID and
/// `CONTAINER`. The commands contain these names. The function replaces each name by its value
/// before the node runs a command.
pub(crate) fn record(node: &Node, names: &[(&str, &str)], steps: &[Step<'_>]) -> Result<String> {
    let mut session = String::new();
    for Step { command, input } in steps {
        let mut script = (*command).to_owned();
        for (value, name) in names {
            script = script.replace(name, value);
        }
        if !input.is_empty() {
            // A program asks a question only if its standard input is a terminal.
            let command = script.trim_start_matches("sudo ");
            script = format!(
                "status=0; printf '{input}' | systemd-run --pty --quiet --wait --collect \\
                     --working-directory /root sh -c '{command} >/run/typed 2>&1' || status=$?
                 cat /run/typed; (exit $status)"
            );
        }
        // In a user's shell, only the last command of a pipe determines the exit code.
        let script = format!("set +euo pipefail\n{FUNCTIONS}{{\n{script}\n}} 2>&1");
        let output = node.try_run(&script)?;
        if !output.status.success() {
            bail!(
                "expected exit code 0 from {command:?}, found {}:\n{}",
                output.status,
                output.stdout
            );
        }
        let _ = write!(
            session,
            "$ {command}\n{}",
            output.stdout.replace(QUESTION, &format!("{QUESTION}{input}"))
        );
        if !session.ends_with('\n') {
            session.push('\n');
        }
    }
    stable(&session, names)
}
