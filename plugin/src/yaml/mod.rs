//! Reads YAML and JSON as Kubernetes does. No other module parses YAML.
//!
//! kubectl and the kubelet read YAML 1.1 (`scalar.rs`), and convert it to JSON. A file may contain
//! several documents ([`documents`]). If a mapping has a field twice, the last value counts. The
//! parser below is granit-parser; this module gives its events their values, positions and
//! descriptions of mistakes.

mod compose;
mod describe;
mod documents;
mod place;
mod problem;
mod scalar;
mod typed;

use serde_json::Value;

pub use self::compose::{Duplicate, Parsed, PlacedValue, parse};
pub use self::describe::describe;
pub use self::documents::{DocumentText, documents};
pub use self::place::{Place, PlaceTree};
pub use self::problem::SyntaxError;
pub use self::typed::{WrongType, typed};

/// Returns the values of all documents in a text.
///
/// # Errors
///
/// Fails at the first text that is not YAML or JSON.
pub fn values(text: &str) -> Result<Vec<Value>, SyntaxError> {
    let mut values = Vec::new();
    for DocumentText { before, text } in documents(text.as_bytes()) {
        // Documents begin and end at line breaks or brackets, so they are valid UTF-8.
        let Parsed { documents, error, .. } = parse(&String::from_utf8_lossy(text), before);
        if let Some(error) = error {
            return Err(error);
        }
        values.extend(documents.into_iter().map(|document| document.value));
    }
    Ok(values)
}
