//! Commands that need a node, a cluster or a long build. No test of documents runs these commands,
//! but the options, files and tests in the commands must exist.

use std::collections::BTreeMap;

use crate::blocks::{self, Block, Document, Kind};
use crate::repository;
use crate::sandbox::Sandbox;

/// The repository directories from which commands in documents may use files.
const DIRECTORIES: [&str; 4] = ["deploy/", "docs/", "hack/", "integration/"];

/// The names of packages and their directories.
const PACKAGES: [(&str, &str); 4] = [
    ("plimsoll", "plugin"),
    ("plimsoll-core", "plugin/core"),
    ("nri", "proto"),
    ("integration", "integration"),
];

/// Returns the words of each command in a line, without `sudo` and comments.
fn simple_commands(line: &str) -> Vec<Vec<String>> {
    let line = line.split(" #").next().unwrap_or_default();
    let line = line.replace(" && ", " | ").replace("; ", " | ").replace(" -- ", " | ");
    let commands = line.split(" | ").map(|command| {
        let words = command.split_whitespace().skip_while(|word| *word == "sudo");
        words.map(str::to_owned).collect()
    });
    commands.collect()
}

/// Returns the files, subcommands, options and tests that a documented command mentions although
/// they do not exist.
fn missing(words: &[String], help: &mut impl FnMut(&str) -> Option<String>) -> Vec<String> {
    let mut missing = Vec::new();
    let Some((program, arguments)) = words.split_first() else {
        return missing;
    };
    let repository = repository::directory();
    for word in words {
        let is_path = DIRECTORIES.iter().any(|directory| word.starts_with(directory));
        if is_path && !repository.join(word).exists() {
            missing.push(format!("the file {word}"));
        }
    }
    if program == "plimsoll" || program.ends_with("/plimsoll") {
        let subcommand: Vec<&str> =
            arguments.iter().map(String::as_str).take_while(|word| is_subcommand(word)).collect();
        // An argument such as a shell's name looks like a subcommand, so try all prefixes.
        let texts = (1..=subcommand.len()).filter_map(|end| help(&subcommand[..end].join(" ")));
        let Some(text) = texts.last() else {
            missing.push(format!("the command plimsoll {}", subcommand.join(" ")));
            return missing;
        };
        for option in arguments.iter().filter(|word| word.starts_with("--")) {
            if !text.contains(option.as_str()) {
                missing.push(format!("the option {option} of plimsoll {}", subcommand.join(" ")));
            }
        }
    }
    if program == "cargo" {
        let after = |name: &str| {
            let index = arguments.iter().position(|word| word == name)?;
            arguments.get(index + 1).map(String::as_str)
        };
        let package = after("-p").or_else(|| after("--package"));
        let directory = package.map(|package| {
            PACKAGES.iter().find(|(name, _)| *name == package).map(|(_, directory)| directory)
        });
        match (directory, after("--test")) {
            (Some(None), _) => missing.push(format!("the package {}", package.unwrap_or_default())),
            (Some(Some(directory)), Some(test)) => {
                let tests = repository.join(directory).join("tests");
                if !tests.join(format!("{test}.rs")).exists()
                    && !tests.join(test).join("main.rs").exists()
                {
                    missing.push(format!("the test {test} of {directory}"));
                }
            }
            _ => {}
        }
    }
    missing
}

/// Returns whether a word may be a subcommand: a name in lower case.
fn is_subcommand(word: &str) -> bool {
    word.starts_with(|letter: char| letter.is_ascii_lowercase())
        && word.chars().all(|letter| letter.is_ascii_lowercase() || letter == '-')
}

/// Returns the mistakes in the commands of blocks that no test runs.
fn faults(document: &Document) -> Vec<String> {
    let sandbox = Sandbox::new(document);
    let mut known = BTreeMap::<String, Option<String>>::new();
    let mut help = |subcommand: &str| {
        let run = || {
            let output = sandbox.run(&format!("plimsoll {subcommand} --help"));
            let text = String::from_utf8(output.stdout).unwrap();
            output.status.success().then_some(text)
        };
        known.entry(subcommand.to_owned()).or_insert_with(run).clone()
    };
    let mut faults = Vec::new();
    let is_elsewhere = |block: &&Block| {
        block.kind == Kind::Elsewhere || (block.kind == Kind::NodeOutput && block.has_commands())
    };
    for block in document.blocks.iter().filter(is_elsewhere) {
        let commands = block.commands().unwrap_or_else(|error| panic!("{error}"));
        for command in commands {
            let quoted = command.text.replace('\'', r"'\''");
            if !sandbox.run(&format!("bash -nc '{quoted}'")).status.success() {
                faults.push(format!("{}: bash cannot parse {:?}", block.place, command.text));
            }
            for words in simple_commands(&command.text) {
                for name in missing(&words, &mut help) {
                    faults.push(format!(
                        "{}: {:?} names {name}, which does not exist: correct the command",
                        block.place, command.text
                    ));
                }
            }
        }
    }
    faults
}

#[test]
fn commands_for_elsewhere_name_existing_things() {
    let faults: Vec<String> = blocks::read_all().iter().flat_map(faults).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn commands_that_name_missing_things_are_found() {
    let found = |line: &str| {
        let blocks = blocks::parse("a.md", &format!("```sh node\n{line}\n```\n")).unwrap();
        faults(&Document { blocks }).len()
    };
    for right in [
        "sudo plimsoll uninstall    # restores all values",
        "plimsoll completions bash > /etc/plimsoll",
        "kubectl -n kube-system exec POD -- plimsoll restore --undo",
        "cargo test -p plimsoll --test documents && hack/check quick",
        "helm install plimsoll deploy/helm/plimsoll",
    ] {
        assert_eq!(found(right), 0, "{right}");
    }
    for wrong in [
        "sudo plimsoll deinstall",
        "kubectl -n kube-system exec POD -- plimsoll restore --redo",
        "cargo test -p plimsoll --test document",
        "cargo test -p plimsol",
        "helm install plimsoll deploy/helm/plimsol",
        "echo 'mode: observe",
    ] {
        assert_eq!(found(wrong), 1, "{wrong}");
    }
}
