//! Reports as text.

use std::fmt;

use plimsoll_core::units::{Bytes, Limit};

use crate::commands::explain::KnobExplanation;
use crate::commands::lint::checks::round_up;
use crate::commands::lint::report::{CheckedContainer, Report};
use crate::commands::lint::rule::Level;

impl Report {
    /// Returns the findings as text: one line per finding, then a line with the counts. With
    /// `values`, the text also shows the values of each container.
    pub const fn text(&self, values: bool) -> impl fmt::Display {
        Text { report: self, values }
    }
}

struct Text<'a> {
    report: &'a Report,
    values: bool,
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { files, pods, findings, containers, .. } = self.report;
        for finding in findings {
            writeln!(f, "{finding}")?;
        }
        for container in containers.iter().filter(|_| self.values) {
            container.fmt(f)?;
        }
        let of_level = |level: Level| {
            let count = findings.iter().filter(|finding| finding.rule.level() == level).count();
            (count > 0).then(|| count_text(count, &level.to_string()))
        };
        let counts: Vec<String> =
            [Level::Error, Level::Warning, Level::Note].into_iter().filter_map(of_level).collect();
        let counts = if counts.is_empty() { "nothing found".to_owned() } else { counts.join(", ") };
        let [files, pods, containers] =
            [(*files, "file"), (*pods, "pod"), (containers.len(), "container")]
                .map(|(count, what)| count_text(count, what));
        writeln!(f, "{files}, {pods}, {containers}: {counts}")
    }
}

impl fmt::Display for CheckedContainer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, place, object, qos_class, ratio, container } = self;
        let ratio = ratio.map_or(String::new(), |ratio| {
            format!(", limit {} times the request", round_up(ratio))
        });
        writeln!(
            f,
            "{}:{}: {object}, {} {}:",
            file.shown, place.line, container.kind, container.name
        )?;
        let value = |knob: &KnobExplanation| match knob.value {
            Some(Limit::Bytes(bytes)) => bytes.approx(),
            Some(Limit::Max) => "max".to_owned(),
            None => "unknown".to_owned(),
        };
        let [min, low, high] =
            [&container.memory_min, &container.memory_low, &container.memory_high].map(value);
        let max = container.limit.map_or("max".to_owned(), Bytes::approx);
        writeln!(f, "  {qos_class}{ratio}; min {min}, low {low}, high {high}, max {max}")
    }
}

fn count_text(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::Path;

    use crate::commands::lint::testing::report;

    #[test]
    fn hostile_names_are_harmless_in_every_format() {
        let hostile = format!("\\e[31m\\nf.yaml:1: error: x\\u202e\\x85{}", "x".repeat(1 << 20));
        // YAML limits an implicit key (a key without `?`) to 1024 characters.
        let key = &hostile[..50];
        let text = format!(
            "kind: \"{hostile}\"\nmetadata: {{name: \"{hostile}\", namespace: \"{hostile}\", \
             annotations: {{\"{key}.plimsoll.nri.io\": \"{hostile}\", \
             throttling-factor.plimsoll.nri.io: \"{hostile}\", \
             \"reservation.plimsoll.nri.io/container.{key}\": hard}}}}\n\
             spec: {{template: {{metadata: {{annotations: \
             {{throttling-factor.plimsoll.nri.io: \"{hostile}\"}}}}, spec: {{containers: \
             [{{name: \"{hostile}\"}}]}}}}}}\n---\n\
             kind: Pod\nspec: {{containers: [{{name: \"{hostile}\", resources: {{limits: \
             {{memory: \"{hostile}\"}}}}}}]}}\n---\n\
             kind: Pod\nspec: \"{hostile}\"\n---\n{{kind: Pod, \"{key}\": 1, \
             \"{key}\": 2}}\n---\n*{hostile}\n---\n\"{hostile}\" : \"{hostile}\n"
        );
        let mut report = report(&text);
        report.add_unreadable(Path::new("\u{1b}[31m\n.yaml"), &io::Error::other("no"));
        assert_eq!(report.findings.len(), 10, "{}", report.text(false));
        let lines = report.findings.len() + 2 * report.containers.len() + 1;
        for (form, expected) in [
            (report.text(true).to_string(), Some(lines)),
            (serde_json::to_string_pretty(&report).unwrap(), None),
            (serde_json::to_string_pretty(&report.sarif()).unwrap(), None),
        ] {
            assert!(form.len() < 50_000, "{}", form.len());
            let harmful =
                |character: &char| matches!(character, '\u{1b}' | '\u{202e}' | '\u{85}' | '\u{7}');
            assert_eq!(form.chars().find(harmful), None, "{form}");
            if let Some(expected) = expected {
                assert_eq!(form.lines().count(), expected, "{form}");
            }
        }
    }
}
