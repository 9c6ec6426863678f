//! Mistakes in a configuration.

use std::fmt;

use thiserror::Error;

/// All mistakes in a configuration. `Display` writes one line for each.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub struct ConfigErrors {
    /// Name of the configuration, as passed to [`crate::config::Config::parse`].
    pub source_name: String,
    /// Mistakes in the order of their lines. Never empty.
    pub errors: Vec<FieldError>,
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.errors.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{}:{error}", self.source_name)?;
        }
        Ok(())
    }
}

/// One mistake in a configuration. `Display` writes `LINE: field: expected …, found …`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// Line number, from 1.
    pub line: u64,
    /// Field with the mistake. `None` for a mistake outside of any field.
    pub field: Option<String>,
    /// Description of what the plugin expected.
    pub expected: String,
    /// Description of what the configuration contains instead.
    pub found: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.line)?;
        if let Some(field) = &self.field {
            write!(f, "{field}: ")?;
        }
        write!(f, "expected {}, found {}", self.expected, self.found)
    }
}
