//! Tests of the files that are generated from the table of configuration fields. The files are the
//! default configuration, the schema of the Helm chart, and docs/configuration.md.
//!
//! `PLIMSOLL_REGENERATE=1 cargo test -p plimsoll --test program configuration::` writes these
//! files.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use plimsoll::config::FIELDS;
use plimsoll::config::fields::{Field, Kind, Range};
use serde_json::{Value, json};

/// Compares a file of the repository with its generated text, or writes the file.
fn check(file: &str, generate: impl FnOnce(&str) -> String) {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "..", file].iter().collect();
    let text = fs::read_to_string(&path).unwrap();
    let generated = generate(&text);
    if std::env::var_os("PLIMSOLL_REGENERATE").is_some() {
        fs::write(path, generated).unwrap();
        return;
    }
    assert!(
        text == generated,
        "{file} differs from the table of the fields: run PLIMSOLL_REGENERATE=1 cargo test \
         -p plimsoll --test program configuration::"
    );
}

/// Replaces the text between the first `start` and the first `end` that follows it. The texts
/// `start` and `end` stay.
fn replaced(text: &str, start: &str, end: &str, new: &str) -> String {
    let (before, rest) = text.split_once(start).expect(start);
    let (_, after) = rest.split_once(end).expect(end);
    format!("{before}{start}{new}{end}{after}")
}

#[test]
fn the_default_file_matches_config_default() {
    let output = Command::new(env!("CARGO_BIN_EXE_plimsoll")).args(["config", "default"]).output();
    let output = output.unwrap();
    assert!(output.status.success() && output.stderr.is_empty());
    check("deploy/90-plimsoll.conf", |_| String::from_utf8(output.stdout).unwrap());
}

#[test]
fn the_chart_schema_matches_the_fields() {
    let fields: Vec<_> = FIELDS.iter().filter(|field| field.is_in_chart).collect();
    let properties = fields.iter().map(|field| {
        let schema = serde_json::to_string_pretty(&schema(field)).unwrap();
        format!("        \"{}\": {}", field.name, schema.replace('\n', "\n        "))
    });
    let properties = properties.collect::<Vec<_>>().join(",\n");
    check("deploy/helm/plimsoll/values.schema.json", |text| {
        let (values, config) = text.split_once("\n    \"config\": {\n").expect("config");
        let config =
            replaced(config, "\n      \"properties\": {\n", "\n      }\n    },\n", &properties);
        format!("{values}\n    \"config\": {{\n{config}")
    });
}

/// Returns the JSON schema of a field.
fn schema(field: &Field) -> Value {
    let amount = json!({"$ref": "#/$defs/amount"});
    let mut schema = match &field.kind {
        Kind::Choice(choices) => {
            json!({"enum": choices.iter().map(|choice| choice.value).collect::<Vec<_>>()})
        }
        Kind::Boolean => json!({"type": "boolean"}),
        Kind::Count { most } => json!({"type": "integer", "minimum": 1, "maximum": most}),
        Kind::Number(Range { least, is_above_least, most }) => {
            let minimum = if *is_above_least { "exclusiveMinimum" } else { "minimum" };
            json!({"type": "number", minimum: number(*least), "maximum": number(*most)})
        }
        Kind::Quantity { may_be_zero: true } => {
            json!({"anyOf": [{"$ref": "#/$defs/quantity"}, {"const": 0}]})
        }
        Kind::Quantity { .. } => amount,
        Kind::QuantityOrAuto => json!({"anyOf": [{"const": "auto"}, amount]}),
        Kind::QuantityOrShare => json!({"anyOf": [amount, {"$ref": "#/$defs/share"}]}),
        Kind::Duration => json!({"$ref": "#/$defs/duration"}),
        Kind::Cgroup | Kind::Path => json!({"type": "string", "pattern": "^/"}),
        Kind::KubernetesVersion => json!({"type": "string", "pattern": "^v?1\\.[0-9]+"}),
        Kind::Address => json!({"$ref": "#/$defs/address"}),
        Kind::Mapping { fields, is_complete } => {
            let properties =
                fields.iter().map(|field| (field.name.to_owned(), self::schema(field)));
            let mut schema = json!({
                "type": "object",
                "additionalProperties": false,
                "properties": properties.collect::<serde_json::Map<_, _>>(),
            });
            if *is_complete {
                schema["required"] = fields.iter().map(|field| field.name).collect();
            }
            schema
        }
    };
    if field.null.is_some() {
        schema = match schema.get("type").cloned() {
            Some(kind) => {
                schema["type"] = json!([kind, "null"]);
                schema
            }
            None => json!({"anyOf": [schema, {"type": "null"}]}),
        };
    }
    schema["description"] = match field.null {
        Some(effect) => format!("{} null: {effect}.", field.doc).into(),
        None => field.doc.into(),
    };
    if let Some(default) = field.default {
        schema["default"] = crate::harness::yaml(default);
    }
    schema
}

#[test]
fn the_documentation_table_matches_the_fields() {
    let mut rows = String::new();
    for field in FIELDS {
        row(&mut rows, field.name, field);
        for inner in field.fields() {
            row(&mut rows, &format!("{}.{}", field.name, inner.name), inner);
        }
    }
    let table = format!("\n\n| field | default | allowed | meaning |\n|---|---|---|---|\n{rows}\n");
    check("docs/configuration.md", |text| {
        replaced(
            text,
            "<!-- fields, made from plugin/src/config/fields -->",
            "<!-- end -->",
            &table,
        )
    });
}

/// Returns a number in JSON, without a decimal point if it is whole.
fn number(number: f64) -> Value {
    if number.fract() == 0.0 { json!(number as i64) } else { json!(number) }
}

/// Appends the row of a field to the rows of the documentation's table.
fn row(rows: &mut String, name: &str, field: &Field) {
    let default = field.default.map_or("not set".to_owned(), |default| format!("`{default}`"));
    let null = if field.null.is_some() { ", or null" } else { "" };
    let mut meaning = field.doc.to_owned();
    if let Kind::Choice(choices) = &field.kind {
        for choice in *choices {
            write!(meaning, "<br>`{}`: {}", choice.value, choice.meaning).unwrap();
        }
    }
    if !field.unit.is_empty() {
        write!(meaning, "<br>Unit: {}.", field.unit).unwrap();
    }
    if let Some(effect) = field.null {
        write!(meaning, "<br>`null`: {effect}.").unwrap();
    }
    let examples: Vec<_> = field.examples.iter().map(|example| format!("`{example}`")).collect();
    let example = match &field.kind {
        Kind::Choice(_) | Kind::Boolean => String::new(),
        _ => format!(", such as {}", examples.join(" or ")),
    };
    writeln!(rows, "| `{name}` | {default} | {}{example}{null} | {meaning} |", field.allowed())
        .unwrap();
}
