//! Documents of a YAML file: their values, and the line at which each document starts.

use serde_saphyr::Budget;

use crate::commands::lint::located::PlacedValue;
use crate::commands::lint::place::{LONGEST_PROBLEM, Place, shown};
use crate::config::complaint;

/// Splits a file into documents, each with the number of lines before it.
///
/// YAML allows a line that starts with `---` or `...` only between documents. The function
/// therefore needs no other rule of YAML.
pub(super) fn documents(text: &[u8]) -> Vec<(u64, &[u8])> {
    let is = |line: &[u8], marker: &[u8; 3]| {
        line.strip_prefix(marker)
            .is_some_and(|rest| rest.first().is_none_or(u8::is_ascii_whitespace))
    };
    let mut documents = Vec::new();
    let (mut start, mut before, mut end) = (0, 0, 0);
    // Directives and comments before a `---` belong to the document that the `---` starts.
    let mut preamble = true;
    for (line, lines) in text.split_inclusive(|&byte| byte == b'\n').zip(0..) {
        if is(line, b"---") && !preamble {
            documents.push((before, &text[start..end]));
            (start, before) = (end, lines);
        }
        end += line.len();
        let content = line.trim_ascii_start();
        preamble &= content.is_empty() || content.starts_with(b"#") || line.starts_with(b"%");
        if is(line, b"...") {
            documents.push((before, &text[start..end]));
            (start, before, preamble) = (end, lines + 1, true);
        }
    }
    documents.push((before, &text[start..]));
    documents
}

/// Parses the YAML or JSON in `text`. Text with nothing but comments contains no document. The
/// error contains the position and the description of the problem.
pub(super) fn parse(text: &[u8]) -> Result<Vec<PlacedValue>, (Place, String)> {
    let text = std::str::from_utf8(text).map_err(|error| {
        let (valid, rest) = text.split_at(error.valid_up_to());
        let line = 1 + valid.iter().filter(|&&byte| byte == b'\n').count();
        let found = rest.first().copied().unwrap_or_default();
        (
            Place { line: line as u64, column: 1 },
            format!("expected UTF-8 text, found byte 0x{found:02x}"),
        )
    })?;
    let mut budget = Budget::default();
    // Large Lists are allowed. The expansion of aliases must not be much larger than the text
    // itself.
    budget.max_nodes = budget.max_nodes.max(text.len());
    budget.max_events = budget.max_events.max(2 * text.len());
    let options = serde_saphyr::options! {
        with_snippet: false,
        // Read an unquoted `n` or `on` as a string, not as a boolean.
        strict_booleans: true,
        budget: Some(budget),
    };
    serde_saphyr::from_multiple_with_options(text, options).map_err(|error| {
        let place = error.location().map_or(Place::START, |location| Place {
            line: location.line().max(1),
            column: location.column().max(1),
        });
        let first = if text.contains("{{") { "; if it is a template, render it first" } else { "" };
        let found = shown(complaint(&error.to_string()), LONGEST_PROBLEM);
        (place, format!("expected YAML or JSON, found: {found}{first}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::lint::testing::{found, rules};

    #[test]
    fn documents_are_where_yaml_has_them() {
        let split = |text: &'static str| -> Vec<(u64, &str)> {
            documents(text.as_bytes())
                .into_iter()
                .map(|(line, part)| (line, std::str::from_utf8(part).unwrap()))
                .collect()
        };
        assert_eq!(split(""), [(0, "")]);
        assert_eq!(split("a: 1"), [(0, "a: 1")]);
        assert_eq!(
            split("---\na: |\n  ---\n---b\n---\r\nc\n"),
            [(0, "---\na: |\n  ---\n---b\n"), (4, "---\r\nc\n")]
        );
        assert_eq!(split("# x\n\n---\na\n---"), [(0, "# x\n\n---\na\n"), (4, "---")]);
        assert_eq!(split("a\n...\nb"), [(0, "a\n...\n"), (2, "b")]);
    }

    #[test]
    fn a_template_is_told_to_be_rendered() {
        let [finding] = &found("kind: Pod\n{{- if .Values.x }}\nspec: {{ .Values.y }}\n")[..]
        else {
            panic!()
        };
        assert!(
            finding.starts_with("f.yaml:")
                && finding.ends_with("; if it is a template, render it first [syntax]"),
            "{finding}"
        );
    }

    #[test]
    fn exploding_input_is_refused() {
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for level in 1..12 {
            let previous = format!("*a{},", level - 1).repeat(10);
            bomb.push_str(&format!("a{level}: &a{level} [{previous}]\n"));
        }
        assert_eq!(rules(&bomb).len(), 1);
        assert_eq!(rules(&"[".repeat(100_000)), [(1, "syntax")]);
        assert_eq!(rules(&"---\n".repeat(5000)), []);
    }
}
