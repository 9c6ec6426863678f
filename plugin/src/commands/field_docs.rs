//! Documentation of the configuration's fields as text, for the help of commands and for a
//! configuration file.

use std::fmt::{self, Write as _};

use crate::commands::wrap::{COLUMNS, wrap_after};
use crate::config::FIELDS;
use crate::config::fields::{Field, Kind};

/// Width of a configuration file, in columns.
const FILE_COLUMNS: usize = 100;

/// Help text about the configuration's fields: the default and the documentation of each field.
pub(super) struct Help;

impl fmt::Display for Help {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for field in FIELDS {
            help(f, field.name, field)?;
            for inner in field.fields() {
                help(f, &format!("{}.{}", field.name, inner.name), inner)?;
            }
        }
        Ok(())
    }
}

/// Writes a field with its default and its documentation.
fn help(f: &mut fmt::Formatter<'_>, name: &str, field: &Field) -> fmt::Result {
    writeln!(f, "\n  {name}: {}", field.default.unwrap_or("(not set)"))?;
    write_docs(f, "      ", COLUMNS, field)
}

/// Configuration file with all fields, their documentation and their defaults.
pub(super) struct DefaultFile;

impl fmt::Display for DefaultFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "\
# Configuration of Plimsoll: all fields with their defaults. Every field may be left out.
# Plimsoll reads the file /etc/nri/conf.d/90-plimsoll.conf and applies a change at once.
# Find mistakes in a file with: plimsoll check FILE
",
        )?;
        for field in FIELDS {
            writeln!(f)?;
            write_docs(f, "# ", FILE_COLUMNS, field)?;
            match field.default {
                Some(default) if default.starts_with('{') => {
                    f.write_str(&mapping(field)?)?;
                }
                Some(default) => {
                    if !field.fields().is_empty() {
                        commented_out(f, &mapping(field)?)?;
                    }
                    writeln!(f, "{}: {default}", field.name)?;
                }
                None if field.fields().is_empty() => {
                    commented_out(f, &format!("{}: {}", field.name, example(field)))?;
                }
                None => commented_out(f, &mapping(field)?)?,
            }
        }
        Ok(())
    }
}

/// Returns a mapping as YAML, with the documentation of its fields.
fn mapping(field: &Field) -> Result<String, fmt::Error> {
    let mut text = format!("{}:\n", field.name);
    for inner in field.fields() {
        // A commented-out mapping needs two more columns for `# `.
        write_docs(&mut text, "  # ", FILE_COLUMNS - 2, inner)?;
        writeln!(text, "  {}: {}", inner.name, inner.default.unwrap_or(example(inner)))?;
    }
    Ok(text)
}

/// Writes YAML text as a comment.
fn commented_out(f: &mut dyn fmt::Write, text: &str) -> fmt::Result {
    text.lines().try_for_each(|line| writeln!(f, "# {line}"))
}

/// Returns the first example of a field.
fn example(field: &Field) -> &'static str {
    field.examples.first().copied().unwrap_or_default()
}

/// Writes the documentation of a field in lines of at most `columns` columns. Each line starts with
/// `prefix`.
fn write_docs(f: &mut dyn fmt::Write, prefix: &str, columns: usize, field: &Field) -> fmt::Result {
    wrap_after(f, prefix, columns, field.doc)?;
    if let Kind::Choice(choices) = &field.kind {
        for choice in *choices {
            let text = format!("{}: {}", choice.value, choice.meaning);
            wrap_after(f, &format!("{prefix}  "), columns, &text)?;
        }
    } else {
        let unit = match field.unit {
            "" => String::new(),
            unit => format!(" Unit: {unit}."),
        };
        let text = format!("Allowed: {}.{unit}", field.expected());
        wrap_after(f, prefix, columns, &text)?;
    }
    match field.null {
        Some(effect) => wrap_after(f, prefix, columns, &format!("null: {effect}.")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn parse(text: &str) -> Config {
        Config::parse(text.as_bytes(), "f.yaml").unwrap_or_else(|errors| panic!("{errors}"))
    }

    #[test]
    fn default_file_is_the_default_configuration() {
        let file = DefaultFile.to_string();
        assert_eq!(parse(&file), Config::default());
        let fields = file.lines().filter(|line| !line.trim_start().starts_with('#'));
        assert_eq!(parse(&fields.collect::<Vec<_>>().join("\n")), Config::default());
    }

    #[test]
    fn default_file_and_help_have_every_field() {
        let (file, help) = (DefaultFile.to_string(), Help.to_string());
        for field in FIELDS {
            let (active, commented) =
                (format!("\n{}: ", field.name), format!("\n# {}:", field.name));
            let mapping = format!("\n{}:\n", field.name);
            assert!(
                file.contains(&active) || file.contains(&commented) || file.contains(&mapping),
                "{}",
                field.name
            );
            assert!(help.contains(&format!("\n  {}: ", field.name)), "{}", field.name);
            for inner in field.fields() {
                let name = format!("{}.{}", field.name, inner.name);
                assert!(help.contains(&format!("\n  {name}: ")), "{name}");
            }
        }
        assert!(file.lines().all(|line| line.chars().count() <= FILE_COLUMNS));
        assert!(help.lines().all(|line| line.chars().count() <= COLUMNS));
    }
}
