//! Outputs of commands on nodes, as the documents show them. `hack/outputs` writes these outputs,
//! so nobody has to paste them.

use std::collections::BTreeSet;

use integration::tools::blocks::OUTPUTS;

use crate::blocks::{self, Block, Kind};

/// Returns the name of the output that a block shows, or an error for a block that `hack/outputs`
/// does not write.
fn output(block: &Block) -> Result<Option<&str>, String> {
    let Block { place, info, kind, comment, .. } = block;
    let name = comment.as_deref().and_then(|comment| comment.strip_prefix("output: "));
    match (kind, name) {
        (Kind::NodeOutput, None) => Err(format!(
            "{place}: expected a comment such as '<!-- output: status -->' in the line before the \
             block, found none: name an output, and let hack/outputs write the block"
        )),
        (Kind::NodeOutput, Some(name)) if !OUTPUTS.contains(&name) => Err(format!(
            "{place}: expected the name of an output, found {name:?}: use one of {}, or add the \
             output to integration/src/bin/outputs",
            OUTPUTS.join(", ")
        )),
        (Kind::NodeOutput, Some(_))
            if !(place.starts_with("README.md:") || place.starts_with("docs/")) =>
        {
            Err(format!(
                "{place}: expected an output in README.md or in docs/, which hack/outputs writes: \
                 move the block"
            ))
        }
        (Kind::NodeOutput, Some(name)) => Ok(Some(name)),
        (_, Some(name)) => Err(format!(
            "{place}: expected the info string 'console node' or 'json node' for the output \
             {name}, found {info:?}: correct the info string"
        )),
        (_, None) => Ok(None),
    }
}

#[test]
fn every_output_is_written_by_the_program() {
    let mut shown = BTreeSet::new();
    for block in blocks::read_all().iter().flat_map(|document| &document.blocks) {
        let name = output(block).unwrap_or_else(|error| panic!("{error}"));
        if block.info == "json node" {
            for line in block.text.lines() {
                serde_json::from_str::<serde_json::Value>(line)
                    .unwrap_or_else(|error| panic!("{}: {error}", block.place));
            }
        }
        shown.extend(name.map(str::to_owned));
    }
    let unused: Vec<_> = OUTPUTS.iter().filter(|name| !shown.contains(**name)).collect();
    assert!(unused.is_empty(), "expected each output in a document, found none of {unused:?}");
}

#[test]
fn outputs_without_the_program_are_found() {
    let is_right = |document: &str, text: &str| {
        let blocks = blocks::parse(document, text).unwrap();
        output(&blocks[0]).is_ok()
    };
    let right = "<!-- output: status -->\n```console node\n$ a\n```\n";
    assert!(is_right("docs/a.md", right));
    assert!(!is_right("SUPPORT.md", right));
    for wrong in [
        "```console node\n$ a\n```\n",
        "<!-- output: state -->\n```console node\n$ a\n```\n",
        "<!-- output: status -->\n\nText.\n\n```console node\n$ a\n```\n",
        "<!-- output: status -->\n```console\n$ a\n```\n",
        "<!-- output: status -->\n```text\na\n```\n",
    ] {
        assert!(!is_right("docs/a.md", wrong), "{wrong}");
    }
}
