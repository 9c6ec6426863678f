//! Report of all findings, as text and as JSON.

use std::fmt;

use serde::Serialize;

use crate::commands::doctor::finding::{Finding, Mark};
use crate::commands::explain::wrap;

/// All findings about a node. `Display` writes text for 80 columns. The serialized report has the
/// format of `--json`.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether the plugin can work on the node: true if no check failed.
    pub able: bool,
    /// Number of checks with the mark `unknown`.
    pub unknown: usize,
    /// One finding for each check that applies.
    pub checks: Vec<Finding>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Finding { check, mark, found, advice } in &self.checks {
            for (at, line) in found.lines().enumerate() {
                let line = if at == 0 {
                    Indented(format!("{check}: {line}"))
                } else {
                    Indented(format!("  {line}"))
                };
                let line = line.to_string();
                match at {
                    0 => write!(f, "{mark:<INDENT$}{}", line.trim_start())?,
                    _ => f.write_str(&line)?,
                }
            }
            if let Some(advice) = advice {
                write!(f, "{}", Indented(format!("do: {advice}")))?;
            }
        }
        let count = |mark| self.checks.iter().filter(|finding| finding.mark == mark).count();
        let verdict = match (self.able, self.unknown) {
            (true, 0) => "Plimsoll can work on this node",
            (true, _) => "Plimsoll can work on this node, but some checks are unknown",
            (false, _) => "Plimsoll cannot work on this node",
        };
        write!(f, "{verdict}: {} failed, {} warnings", count(Mark::Failed), count(Mark::Warning))?;
        if self.unknown > 0 {
            write!(f, ", {} unknown", self.unknown)?;
        }
        f.write_str(".\n")
    }
}

/// Column at which the text of each finding starts, after the mark.
const INDENT: usize = 9;

struct Indented(String);

impl fmt::Display for Indented {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        wrap(f, INDENT, &self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tempfile::TempDir;

    use super::*;
    use crate::commands::doctor::facts::NodeFacts;
    use crate::commands::doctor::fixture::*;

    #[test]
    fn text_fits_80_columns_with_verdict_last() {
        let root = TempDir::new().unwrap();
        for facts in [
            Node::good().facts(),
            NodeFacts::collect(root.path(), Path::new("/nonexistent/nri.sock")),
        ] {
            let report = facts.judge();
            let text = report.to_string();
            for line in text.lines() {
                assert!(line.chars().count() <= 80, "{line}");
            }
            for Finding { check, mark, .. } in &report.checks {
                assert!(
                    text.lines().any(|line| line.starts_with(&format!("{mark:<9}{check}: "))),
                    "{check}: {text}"
                );
            }
            let verdict = if report.able {
                "Plimsoll can work on this node: 0 failed, 0 warnings."
            } else {
                "Plimsoll cannot work on this node: 2 failed, "
            };
            assert!(text.lines().last().unwrap().starts_with(verdict), "{text}");
        }
    }
}
