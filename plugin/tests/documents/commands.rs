//! Commands that need no node. The commands must have the exit codes and outputs that the documents
//! show.

use std::process::Output;

use crate::blocks::{self, Block, Document, Kind};
use crate::sandbox::Sandbox;

/// A line of output that stands for any number of lines.
const OMITTED: [&str; 2] = ["…", "..."];

/// Returns whether the lines are those that a document shows. In the document, a line `…` stands
/// for any number of lines.
fn matches(shown: &[String], lines: &[&str]) -> bool {
    match shown.split_first() {
        None => lines.is_empty(),
        Some((first, rest)) if OMITTED.contains(&first.trim()) => {
            (0..=lines.len()).any(|omitted| matches(rest, &lines[omitted..]))
        }
        Some((first, rest)) => {
            lines.split_first().is_some_and(|(line, lines)| line == first && matches(rest, lines))
        }
    }
}

/// Runs the commands of a script or session. Returns an error for the first command whose result
/// differs from the document.
fn run(block: &Block, sandbox: &Sandbox) -> Result<(), String> {
    if block.kind == Kind::Script {
        let output = sandbox.run(&format!("set -e\n{}", block.text));
        return has_succeeded(block, &block.text, &output);
    }
    let commands = block.commands()?;
    let mut status = 0;
    for (index, command) in commands.iter().enumerate() {
        let output = sandbox.run(&format!("(exit {status})\n{}", command.text));
        let shows_status = commands.get(index + 1).is_some_and(|next| next.text == "echo $?");
        if !shows_status {
            has_succeeded(block, &command.text, &output)?;
        }
        status = output.status.code().unwrap_or(-1);
        let printed = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<&str> = printed.lines().collect();
        if !matches(&command.output, &lines) {
            return Err(format!(
                "{}: expected the output that the document shows for:\n{}\nfound:\n{printed}\
                 Correct the document or the program.",
                block.place, command.text
            ));
        }
    }
    Ok(())
}

fn has_succeeded(block: &Block, command: &str, output: &Output) -> Result<(), String> {
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "{}: expected exit code 0, found {}:\n{command}\n{}If the code is intended, show it with \
         '$ echo $?' in a console block. A block that needs more than this machine has an info \
         string that says so, see CONTRIBUTING.md.",
        block.place,
        output.status,
        String::from_utf8_lossy(&output.stdout)
    ))
}

/// Runs the blocks of a document and returns how many blocks ran.
fn run_all(document: &Document) -> Result<usize, String> {
    let sandbox = Sandbox::new(document);
    let mut ran = 0;
    for block in &document.blocks {
        if matches!(block.kind, Kind::Script | Kind::Session) {
            run(block, &sandbox)?;
            ran += 1;
        }
    }
    Ok(ran)
}

#[test]
fn documented_commands_have_the_documented_output() {
    let mut ran = 0;
    for document in blocks::read_all() {
        ran += run_all(&document).unwrap_or_else(|error| panic!("{error}"));
    }
    assert!(ran >= 4, "only {ran} blocks ran");
}

#[test]
fn wrong_commands_and_outputs_are_found() {
    let outcome = |text: &str| {
        let blocks = blocks::parse("a.md", text).unwrap();
        run_all(&Document { blocks })
    };
    for right in [
        "```sh\nplimsoll config default >a.conf\nplimsoll check a.conf\n```",
        "```console\n$ echo a\na\n$ printf 'a\\nb\\nc\\n'\n…\nc\n```",
        "```console\n$ printf 'a\\nb\\n'\na\n  …\n$ false\n$ echo $?\n1\n```",
        "```yaml a.yaml\na: 1\n```\n\n```console\n$ cat a.yaml\na: 1\n```",
    ] {
        outcome(right).unwrap_or_else(|error| panic!("{right}: {error}"));
    }
    for wrong in [
        "```sh\nplimsoll config defaults\n```",
        "```sh\nfalse\ntrue\n```",
        "```console\n$ echo a\nb\n```",
        "```console\n$ echo a\n```",
        "```console\n$ printf 'a\\nb\\n'\na\n```",
        "```console\n$ printf 'a\\nb\\n'\nb\n…\n```",
        "```console\n$ false\n```",
        "```console\n$ false\n$ echo $?\n2\n```",
        "```console\na\n```",
    ] {
        assert!(outcome(wrong).is_err(), "{wrong}");
    }
}
