//! Splits a file into documents.

use serde::de::IgnoredAny;

/// The text of one document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DocumentText<'a> {
    /// Number of lines in the file before the document.
    pub before: u64,
    /// The text.
    pub text: &'a [u8],
}

/// Splits a file into documents. Documents are separated by `---`, or are JSON objects one after
/// the other, such as the output of `jq -c`.
pub fn documents(text: &[u8]) -> Vec<DocumentText<'_>> {
    yaml_documents(text).into_iter().flat_map(json_objects).collect()
}

/// Splits YAML at the lines that begin with `---` or `...`. YAML allows such a line only between
/// documents. The function therefore needs no other rule of YAML.
fn yaml_documents(text: &[u8]) -> Vec<DocumentText<'_>> {
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
            documents.push(DocumentText { before, text: &text[start..end] });
            (start, before) = (end, lines);
        }
        end += line.len();
        let content = line.trim_ascii_start();
        preamble &= content.is_empty() || content.starts_with(b"#") || line.starts_with(b"%");
        if is(line, b"...") {
            documents.push(DocumentText { before, text: &text[start..end] });
            (start, before, preamble) = (end, lines + 1, true);
        }
    }
    documents.push(DocumentText { before, text: &text[start..] });
    documents
}

/// Splits JSON objects that follow one another. Returns any other text unchanged.
fn json_objects(document: DocumentText<'_>) -> Vec<DocumentText<'_>> {
    let DocumentText { mut before, text } = document;
    if text.trim_ascii_start().first() != Some(&b'{') {
        return vec![document];
    }
    let mut objects = Vec::new();
    let mut start = 0;
    let mut values = serde_json::Deserializer::from_slice(text).into_iter::<IgnoredAny>();
    while let Some(value) = values.next() {
        if value.is_err() {
            // The text may be YAML with brackets.
            return vec![document];
        }
        let object = &text[start..values.byte_offset()];
        objects.push(DocumentText { before, text: object });
        before += object.iter().filter(|&&byte| byte == b'\n').count() as u64;
        start = values.byte_offset();
    }
    objects
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &'static str) -> Vec<(u64, &'static str)> {
        let documents = documents(text.as_bytes()).into_iter();
        documents.map(|of| (of.before, std::str::from_utf8(of.text).unwrap())).collect()
    }

    #[test]
    fn documents_are_where_yaml_has_them() {
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
    fn json_objects_in_a_row_are_documents() {
        assert_eq!(
            split("{\"a\": 1}\n{\n\"b\": 2}{\"c\": 3}\n"),
            [(0, "{\"a\": 1}"), (0, "\n{\n\"b\": 2}"), (2, "{\"c\": 3}")]
        );
        assert_eq!(split("{a: 1}\n"), [(0, "{a: 1}\n")]);
        assert_eq!(split(" {\"a\": 1}"), [(0, " {\"a\": 1}")]);
    }
}
