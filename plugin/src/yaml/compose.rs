//! Builds values and their positions from the events of the YAML parser.

use std::collections::{BTreeMap, HashMap};

use granit_parser::{Event, Parser, ScalarStyle, ScanError, Span, StrInput, Tag};
use serde_json::{Map, Value};

use super::place::{Place, PlaceTree};
use super::problem::{SyntaxError, describe};
use super::scalar::{ScalarTag, resolve};

/// A value, its position, and the positions of its fields or items.
#[derive(Clone, Debug, PartialEq)]
pub struct PlacedValue {
    /// The value.
    pub value: Value,
    /// The positions.
    pub places: PlaceTree,
}

/// A field that a mapping has more than once. The last value counts, as in Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Duplicate {
    /// Name of the field.
    pub field: String,
    /// Position of the name where the field occurs again.
    pub place: Place,
    /// Position of the former value.
    pub first: Place,
}

/// Values of a text, up to the first mistake.
#[derive(Debug, Default)]
pub struct Parsed {
    /// The documents of the text. Only the last one may be incomplete, because of the mistake.
    pub documents: Vec<PlacedValue>,
    /// Fields that occur more than once.
    pub duplicates: Vec<Duplicate>,
    /// The first mistake.
    pub error: Option<SyntaxError>,
}

/// Maximum number of values that a text may have more than it has characters. Aliases repeat
/// values, so a short text could otherwise become arbitrarily large.
const MORE_VALUES: usize = 1 << 16;

/// Parses the YAML or JSON in `text`. `before` is the number of lines before the text in its file.
pub fn parse(text: &str, before: u64) -> Parsed {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut options = granit_parser::options! { flow_nesting_limit: 255, block_nesting_limit: 255 };
    // Comments have no meaning, and the parser limits how many it keeps.
    options.set_emit_comments(false);
    let mut composer = Composer {
        events: Parser::new_from_str_with_options(text, options),
        before,
        left: text.len() + MORE_VALUES,
        anchors: HashMap::new(),
        parsed: Parsed::default(),
    };
    while let Some((event, span)) = composer.next() {
        if let Event::DocumentStart(..) = event {
            composer.anchors.clear();
            if let Some((event, span)) = composer.next()
                && let Some(document) = composer.value(event, span)
            {
                composer.parsed.documents.push(document);
            }
        } else if let Event::StreamEnd = event {
            break;
        }
        let _ = span;
    }
    composer.parsed
}

struct Composer<'a> {
    events: Parser<'a, StrInput<'a>>,
    before: u64,
    /// Number of values that the text may still have.
    left: usize,
    anchors: HashMap<usize, PlacedValue>,
    parsed: Parsed,
}

type SpannedEvent<'a> = (Event<'a>, Span);

impl<'a> Composer<'a> {
    /// Returns the next event. Returns `None` at the end of the text and after a mistake.
    fn next(&mut self) -> Option<SpannedEvent<'a>> {
        if self.parsed.error.is_some() {
            return None;
        }
        match self.events.next()? {
            Ok(event) => Some(event),
            Err(error) => {
                self.parsed.error = Some(self.syntax_error(&error));
                None
            }
        }
    }

    fn syntax_error(&self, error: &ScanError) -> SyntaxError {
        let at = error.marker();
        let place = self.place_at(at.line(), at.col());
        SyntaxError { place, expected: describe(error.kind()).to_owned() }
    }

    fn place_at(&self, line: usize, column: usize) -> Place {
        Place { line: self.before + line.max(1) as u64, column: column as u64 + 1 }
    }

    fn place(&self, span: &Span) -> Place {
        self.place_at(span.start.line(), span.start.col())
    }

    fn fail(&mut self, place: Place, expected: impl Into<String>) {
        self.parsed.error.get_or_insert(SyntaxError { place, expected: expected.into() });
    }

    /// Counts a value. Returns false if the text has too many values.
    fn count(&mut self, values: usize, place: Place) -> bool {
        match self.left.checked_sub(values) {
            Some(left) => {
                self.left = left;
                true
            }
            None => {
                self.fail(place, "fewer values: the aliases repeat too many values");
                false
            }
        }
    }

    /// Returns the value that an event begins. After a mistake, the value is incomplete.
    fn value(&mut self, event: Event<'a>, span: Span) -> Option<PlacedValue> {
        let place = self.place(&span);
        if !self.count(1, place) {
            return None;
        }
        let (anchor, placed) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let Some(value) = resolve(&text, scalar_tag(style, tag.as_deref())) else {
                    self.fail(place, "a scalar of the type that its tag names");
                    return None;
                };
                (anchor, PlacedValue { value, places: PlaceTree::new(place) })
            }
            Event::SequenceStart(_, anchor, _) => (anchor, self.list(place)),
            Event::MappingStart(_, anchor, _) => (anchor, self.mapping(place)),
            Event::Alias(anchor) => {
                let Some(target) = self.anchors.get(&anchor).cloned() else {
                    self.fail(place, "an alias outside of the value that it refers to");
                    return None;
                };
                return self.count(size(&target.value), place).then_some(target);
            }
            _ => return None,
        };
        if anchor != 0 {
            self.anchors.insert(anchor, placed.clone());
        }
        Some(placed)
    }

    fn list(&mut self, place: Place) -> PlacedValue {
        let mut places = PlaceTree::new(place);
        let mut items = Vec::new();
        while let Some((event, span)) = self.next() {
            if let Event::SequenceEnd = event {
                break;
            }
            let Some(item) = self.value(event, span) else { break };
            places.parts.insert(items.len().to_string(), item.places);
            items.push(item.value);
        }
        PlacedValue { value: Value::Array(items), places }
    }

    fn mapping(&mut self, place: Place) -> PlacedValue {
        let mut places = PlaceTree::new(place);
        let mut fields = Map::new();
        let mut merged = Vec::new();
        while let Some((event, span)) = self.next() {
            if let Event::MappingEnd = event {
                break;
            }
            let key_place = self.place(&span);
            let is_merge = matches!(
                &event,
                Event::Scalar(text, ScalarStyle::Plain, _, None) if text == "<<"
            );
            let Some(key) = self.value(event, span) else { break };
            let Some((event, span)) = self.next() else { break };
            let Some(mut value) = self.value(event, span) else { break };
            if is_merge {
                merged.push((key_place, value));
                continue;
            }
            let Some(key) = key_text(key.value) else {
                self.fail(key_place, "a text, number or boolean as the name of a field");
                break;
            };
            value.places.key = key_place;
            if let Some(former) = places.parts.insert(key.clone(), value.places) {
                let duplicate =
                    Duplicate { field: key.clone(), place: key_place, first: former.key };
                self.parsed.duplicates.push(duplicate);
            }
            fields.insert(key, value.value);
        }
        for (place, value) in merged {
            self.merge(place, value, &mut fields, &mut places.parts);
        }
        PlacedValue { value: Value::Object(fields), places }
    }

    /// Adds the fields of the merge key `<<`. Fields of the mapping itself take precedence.
    fn merge(
        &mut self,
        place: Place,
        merged: PlacedValue,
        fields: &mut Map<String, Value>,
        parts: &mut BTreeMap<String, PlaceTree>,
    ) {
        let PlacedValue { value, places } = merged;
        match value {
            Value::Object(more) => {
                let mut more_parts = places.parts;
                for (field, value) in more {
                    if !fields.contains_key(&field) {
                        if let Some(places) = more_parts.remove(&field) {
                            parts.insert(field.clone(), places);
                        }
                        fields.insert(field, value);
                    }
                }
            }
            Value::Array(all) if all.iter().all(Value::is_object) => {
                let mut all_parts = places.parts;
                for (index, value) in all.into_iter().enumerate() {
                    if let Some(places) = all_parts.remove(&index.to_string()) {
                        self.merge(place, PlacedValue { value, places }, fields, parts);
                    }
                }
            }
            _ => self.fail(place, "a mapping or a list of mappings after '<<'"),
        }
    }
}

fn scalar_tag(style: ScalarStyle, tag: Option<&Tag>) -> ScalarTag {
    match tag.map(Tag::core_suffix) {
        None if style == ScalarStyle::Plain => ScalarTag::Plain,
        Some(Some("float")) => ScalarTag::Float,
        Some(Some("int" | "bool" | "null")) => ScalarTag::Other,
        _ => ScalarTag::Text,
    }
}

/// Returns the name of a field. Kubernetes converts numbers and booleans to text.
fn key_text(key: Value) -> Option<String> {
    match key {
        Value::String(text) => Some(text),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(value) => Some(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// Returns the number of values in a value.
fn size(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(size).sum(),
        Value::Object(fields) => fields.values().map(size).sum::<usize>(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn values(text: &str) -> Vec<Value> {
        let Parsed { documents, duplicates, error } = parse(text, 0);
        assert_eq!((error, duplicates), (None, Vec::new()), "{text}");
        documents.into_iter().map(|document| document.value).collect()
    }

    fn value(text: &str) -> Value {
        let [value] = <[Value; 1]>::try_from(values(text)).unwrap();
        value
    }

    fn error(text: &str) -> (u64, u64, String) {
        let SyntaxError { place, expected } = parse(text, 0).error.unwrap();
        (place.line, place.column, expected)
    }

    #[test]
    fn manifests_have_the_values_that_kubectl_reads() {
        let text = "a: 1\n";
        for (yaml, expected) in [
            ("mode: 0644", json!({"mode": 420})),
            (
                "replicas: 1e3\nport: 5.0\nnumber: 08",
                json!({"replicas": 1000, "port": 5, "number": 8}),
            ),
            ("enabled: yes\ndisabled: off", json!({"enabled": true, "disabled": false})),
            ("name: 'yes'\nother: \"0644\"", json!({"name": "yes", "other": "0644"})),
            ("a:\nb: ~\nc: null", json!({"a": null, "b": null, "c": null})),
            ("1: a\ntrue: b\n1.5: c", json!({"1": "a", "true": "b", "1.5": "c"})),
            ("data: |\n  a: 1\n  b\n", json!({"data": "a: 1\nb\n"})),
            ("data: >-\n  a\n  b\n", json!({"data": "a b"})),
            ("data: |2-\n    a\n", json!({"data": "  a"})),
            ("a: &x {b: 1}\nc: *x", json!({"a": {"b": 1}, "c": {"b": 1}})),
            (
                "base: &x {b: 1, c: 2}\nd:\n  <<: *x\n  c: 3",
                json!({"base": {"b": 1, "c": 2}, "d": {"b": 1, "c": 3}}),
            ),
            ("d: {<<: [{a: 1, b: 1}, {b: 2, c: 2}]}", json!({"d": {"a": 1, "b": 1, "c": 2}})),
            ("- a\n-\n  - b", json!(["a", ["b"]])),
            ("a:\n- b\n- c", json!({"a": ["b", "c"]})),
            (
                "{\"a\": [1, {\"b\": null}], \"c\": \"\\u00e9\\ud83d\\ude00\\/\"}",
                json!({"a": [1, {"b": null}], "c": "é😀/"}),
            ),
            ("{\n\t\"a\": 1,\n\t\"b\": [\n\t\t2\n\t]\n}\n", json!({"a": 1, "b": [2]})),
            ("a: \"1\\\n  2\"", json!({"a": "12"})),
            ("\u{feff}a: 1", json!({"a": 1})),
            ("a: 1\r\nb:\r\n  - 2\r\n", json!({"a": 1, "b": [2]})),
            (
                "a: !!str 1\nb: !!int '2'\nc: !Ref x\nd: !!float 3",
                json!({"a": "1", "b": 2, "c": "x", "d": 3}),
            ),
            ("? a\n: b", json!({"a": "b"})),
            ("a: {b: 1,}", json!({"a": {"b": 1}})),
            ("args: [--flag=a:b, 'x: y', -c]", json!({"args": ["--flag=a:b", "x: y", "-c"]})),
            ("url: http://a.b/c#d", json!({"url": "http://a.b/c#d"})),
            ("time: 2026-12-01T10:00:00Z", json!({"time": "2026-12-01T10:00:00Z"})),
            ("%YAML 1.1\n---\na: 1", json!({"a": 1})),
            ("a: *x\n".replace("*x", "x").as_str(), json!({"a": "x"})),
            (text, json!({"a": 1})),
        ] {
            assert_eq!(value(yaml), expected, "{yaml}");
        }
        assert_eq!(values("# nothing\n"), [Value::Null; 0]);
        assert_eq!(values("---\n"), [Value::Null]);
        assert_eq!(values("a\n---\nb"), [json!("a"), json!("b")]);
    }

    #[test]
    fn comments_may_have_any_length() {
        let comments = "# comment\n".repeat(500);
        assert_eq!(
            value(&format!(
                "{comments}a:\n{comments}  - b\n{comments}\n{comments}c: d # {}",
                "x".repeat(5000)
            )),
            json!({"a": ["b"], "c": "d"})
        );
    }

    #[test]
    fn the_last_of_several_values_counts() {
        let Parsed { documents, duplicates, error } = parse("a: 1\nb: {c: 2, c: 3}\na: 4\n", 10);
        assert_eq!(error, None);
        assert_eq!(documents[0].value, json!({"a": 4, "b": {"c": 3}}));
        let found: Vec<_> =
            duplicates.iter().map(|of| (of.field.as_str(), of.first.line, of.place.line)).collect();
        assert_eq!(found, [("c", 12, 12), ("a", 11, 13)]);
    }

    #[test]
    fn values_and_names_have_positions() {
        let Parsed { documents, .. } = parse("a:\n  - x\n  - {b: y}\nc/d: z\n", 0);
        let places = &documents[0].places;
        assert_eq!(places.of("/a/0"), Place { line: 2, column: 5 });
        assert_eq!(places.of("/a/1/b"), Place { line: 3, column: 9 });
        assert_eq!(places.of("/a/1/missing"), Place { line: 3, column: 5 });
        assert_eq!(places.of("/c~1d"), Place { line: 4, column: 6 });
        assert_eq!(places.parts["c/d"].key, Place { line: 4, column: 1 });
    }

    #[test]
    fn mistakes_have_positions_and_plain_words() {
        for (text, line, expected) in [
            ("a: \"b", 1, "the closing quote of a quoted text"),
            ("a: [1, 2\nb: 3", 2, "a comma or a closing bracket in a list or mapping in brackets"),
            ("a: 1\n\tb: 2", 1, "spaces for the indentation, found a tab"),
            ("a: *b", 1, "an anchor ('&name') before the alias ('*name') that refers to it"),
            ("a: &b [*b]", 1, "an alias outside of the value that it refers to"),
            ("a: \"\\q\"", 1, "a known escape sequence after a backslash, such as \\n"),
            ("a: !!int x", 1, "a scalar of the type that its tag names"),
            ("[a]: b", 1, "a text, number or boolean as the name of a field"),
            ("~: b", 1, "a text, number or boolean as the name of a field"),
            ("<<: 3", 1, "a mapping or a list of mappings after '<<'"),
            ("a: @b", 1, "quotes around a text that begins with a special character"),
            ("a: b: c", 1, "'field: value' or '- item' with the indentation of the lines before"),
            (
                "a: 1\n  b: 2",
                2,
                "'field: value' or '- item' with the indentation of the lines before",
            ),
        ] {
            let (at, _, found) = error(text);
            assert_eq!((at, found.as_str()), (line, expected), "{text}");
        }
    }

    #[test]
    fn values_before_a_mistake_are_kept() {
        let Parsed { documents, error, .. } = parse("a: 1\nb: {c: 2, d: [3\ne: @\n", 0);
        assert!(error.is_some());
        assert_eq!(documents[0].value["a"], json!(1));
    }

    #[test]
    fn exploding_aliases_are_refused() {
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for level in 1..12 {
            let previous = format!("*a{},", level - 1).repeat(10);
            bomb.push_str(&format!("a{level}: &a{level} [{previous}]\n"));
        }
        assert_eq!(error(&bomb).2, "fewer values: the aliases repeat too many values");
        assert_eq!(
            error(&"[".repeat(100_000)).2,
            "at most 255 lists and mappings inside each other"
        );
    }

    proptest! {
        #[test]
        fn any_text_is_values_or_a_mistake(text in "(a: |- |\\? |&x |\\*x|<<: |!!int |[{}\\[\\],\"'|>#%@-]|0|\n|  |.){0,30}") {
            let parsed = parse(&text, 0);
            prop_assert!(parsed.error.is_some() || parsed.documents.len() < 32);
        }
    }
}
