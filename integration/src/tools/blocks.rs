//! Blocks in documents that show the output of commands on a node.
//!
//! Each block follows an HTML comment with the name of the output: `<!-- output: NAME -->`.
//! `hack/outputs` writes the text between the fences of the block.

use std::collections::BTreeMap;

use anyhow::{Result, bail};

/// The names of all outputs.
pub const OUTPUTS: [&str; 11] = [
    "doctor",
    "events",
    "install",
    "install-plan",
    "log",
    "metrics",
    "refused",
    "status",
    "status-observe",
    "status-pod",
    "values",
];

/// Returns the name in a line that announces an output, such as `<!-- output: status -->`.
pub fn name(line: &str) -> Option<&str> {
    line.trim().strip_prefix("<!-- output: ")?.strip_suffix(" -->")
}

/// Replaces the blocks of a document that show outputs.
///
/// Returns the new document and the names of the outputs that changed. `outputs` contains the text
/// of each output under the name of the output.
pub fn replace(
    document: &str,
    outputs: &BTreeMap<&'static str, String>,
) -> Result<(String, Vec<String>)> {
    let (mut new, mut changed) = (String::new(), Vec::new());
    let mut lines = document.lines();
    while let Some(line) = lines.next() {
        push(&mut new, line);
        let Some(name) = name(line) else { continue };
        let Some(output) = outputs.get(name) else {
            bail!(
                "expected the name of an output, found {name:?}: use one of {}",
                OUTPUTS.join(", ")
            );
        };
        let fence = lines.next().unwrap_or_default();
        let Some((indent, _)) = fence.split_once("```") else {
            bail!("expected a fenced block below the comment of output {name}, found {fence:?}");
        };
        push(&mut new, fence);
        let end = format!("{indent}```");
        let old: Vec<&str> = lines.by_ref().take_while(|line| *line != end).collect();
        let text: Vec<String> =
            output.lines().map(|line| format!("{indent}{line}").trim_end().to_owned()).collect();
        if old != text {
            changed.push(name.to_owned());
        }
        for line in text.iter().chain([&end]) {
            push(&mut new, line);
        }
    }
    Ok((new, changed))
}

fn push(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changed_blocks_are_replaced() {
        let outputs = BTreeMap::from([("status", "$ a\nb\n\nc\n".to_owned()), ("log", "d".into())]);
        let document = "One.\n\n<!-- output: status -->\n```console node\nold\n```\n\n\
            - item\n\n  <!-- output: log -->\n  ```json node\n  d\n  ```\n\n```sh\nold\n```\n";
        let (new, changed) = replace(document, &outputs).unwrap();
        assert_eq!(new, document.replacen("old", "$ a\nb\n\nc", 1));
        assert_eq!(changed, ["status"]);
        assert_eq!(replace(&new, &outputs).unwrap(), (new, vec![]));
    }

    #[test]
    fn unknown_names_and_missing_blocks_fail() {
        let outputs = BTreeMap::from([("status", String::new())]);
        for wrong in ["<!-- output: state -->\n```\n```\n", "<!-- output: status -->\n\n```\n```\n"]
        {
            replace(wrong, &outputs).unwrap_err();
        }
    }
}
