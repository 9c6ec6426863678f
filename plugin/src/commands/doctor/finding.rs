//! Finding of one check: the observed state, the mark (result) and the advice.

use std::fmt;

use plimsoll_core::units::harmless;
use serde::Serialize;

/// Maximum number of names that a finding lists.
pub(crate) const MOST_NAMES: usize = 16;

/// Maximum length of a text in a finding, in characters.
pub(crate) const LONGEST: usize = 4000;

/// Result of a check, ordered from best to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mark {
    /// The node meets the requirement.
    Ok,
    /// The plugin works, but with a restriction.
    Warning,
    /// The check cannot determine the result, for instance because an expected file is unreadable.
    Unknown,
    /// The plugin cannot work.
    Failed,
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Unknown => "unknown",
            Self::Failed => "failed",
        })
    }
}

/// Finding of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Name of the check, which stays the same in all versions.
    pub check: &'static str,
    /// Result of the check.
    pub mark: Mark,
    /// Observed state.
    pub found: String,
    /// Advice for the operator; absent if the result is ok.
    #[serde(rename = "do", skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Finding {
    /// Creates a finding without advice.
    pub(super) fn ok(check: &'static str, found: impl AsRef<str>) -> Self {
        Self { check, mark: Mark::Ok, found: shown(found.as_ref()), advice: None }
    }

    pub(super) fn warning(
        check: &'static str,
        found: impl AsRef<str>,
        advice: impl AsRef<str>,
    ) -> Self {
        let (found, advice) = (shown(found.as_ref()), Some(shown(advice.as_ref())));
        Self { check, mark: Mark::Warning, found, advice }
    }

    pub(super) fn unknown(
        check: &'static str,
        found: impl AsRef<str>,
        advice: impl AsRef<str>,
    ) -> Self {
        Self { mark: Mark::Unknown, ..Self::warning(check, found, advice) }
    }

    pub(super) fn failed(
        check: &'static str,
        found: impl AsRef<str>,
        advice: impl AsRef<str>,
    ) -> Self {
        Self { mark: Mark::Failed, ..Self::warning(check, found, advice) }
    }

    /// Merges the findings of one check into one finding with the worst mark. If the check has no
    /// findings, returns an ok finding with the text `otherwise`.
    pub(super) fn all(
        check: &'static str,
        otherwise: impl AsRef<str>,
        findings: Vec<Self>,
    ) -> Self {
        let join = |texts: Vec<String>| texts.join("; ");
        let Some(mark) = findings.iter().map(|finding| finding.mark).max() else {
            return Self::ok(check, otherwise);
        };
        let (found, advice): (Vec<_>, Vec<_>) =
            findings.into_iter().map(|finding| (finding.found, finding.advice)).unzip();
        let mut advice: Vec<_> = advice.into_iter().flatten().collect();
        advice.dedup();
        Self { check, mark, found: join(found), advice: Some(join(advice)) }
    }
}

/// Escapes another program's text, so that the text cannot control the terminal. Keeps line breaks,
/// quotes and backslashes.
pub(crate) fn shown(text: &str) -> String {
    harmless(text, LONGEST, &['\n', '\'', '"', '\\'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped_and_text_shortened() {
        let finding = Finding::warning("nri", "\u{1b}[31m\u{202e}'x'\r", "x".repeat(LONGEST + 9));
        assert_eq!(finding.found, "\\u{1b}[31m\\u{202e}'x'\\r");
        assert_eq!(finding.advice.unwrap().chars().count(), LONGEST + 1);
    }
}
