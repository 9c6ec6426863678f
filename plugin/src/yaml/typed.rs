//! Converts values into typed fields, and describes values of a wrong type.

use plimsoll_core::units::excerpt;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_path_to_error::Segment;
use thiserror::Error;

use super::describe::describe;

/// A field whose value has a wrong type. `Display` writes the field, the expected and the found
/// type.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{field}: expected {expected}, found {found}")]
pub struct WrongType {
    /// JSON pointer to the value.
    pub pointer: String,
    /// Path of the field for readers, such as `spec.containers[0].tty`.
    pub field: String,
    /// Description of the expected type.
    pub expected: &'static str,
    /// Description of the value.
    pub found: String,
}

/// Converts a value into a type. Ignores fields that the type does not have.
///
/// # Errors
///
/// Fails if a field has a wrong type. The error describes the first such field.
pub fn typed<T: DeserializeOwned>(value: &Value) -> Result<T, WrongType> {
    // serde_path_to_error is slow, so use it only after a first attempt has failed.
    T::deserialize(value).or_else(|_| serde_path_to_error::deserialize(value)).map_err(
        |error: serde_path_to_error::Error<serde_json::Error>| {
            let pointer = json_pointer(error.path());
            let found = value.pointer(&pointer).map_or_else(|| "nothing".to_owned(), describe);
            WrongType {
                pointer,
                field: excerpt(&error.path().to_string()),
                expected: expected_type(&error.inner().to_string()),
                found,
            }
        },
    )
}

/// Returns the type that a field should have. `message` is the error of the JSON library, which
/// names the type in its own words.
fn expected_type(message: &str) -> &'static str {
    let expected = message.rsplit_once("expected ").map_or("", |(_, expected)| expected);
    match expected {
        "Quantity" => "a quantity such as 128Mi",
        "IntOrString" | "enum IntOrString" => "a number or a text",
        _ if expected.starts_with("a boolean") => "true or false",
        _ if expected.starts_with("a string") => "a text (put quotes around it)",
        _ if expected.starts_with("a sequence") => "a list",
        "i32" | "i64" | "u16" | "u32" | "u64" => "a whole number",
        "f32" | "f64" => "a number",
        // The names of structures begin with a capital letter.
        _ if expected.starts_with("a map")
            || expected.starts_with("struct ")
            || expected.starts_with(char::is_uppercase) =>
        {
            "a mapping"
        }
        _ => "a value of another type",
    }
}

/// Converts a path to a JSON pointer.
fn json_pointer(path: &serde_path_to_error::Path) -> String {
    path.iter().fold(String::new(), |pointer, segment| match segment {
        Segment::Seq { index } => format!("{pointer}/{index}"),
        Segment::Map { key } => format!("{pointer}/{}", key.replace('~', "~0").replace('/', "~1")),
        Segment::Enum { .. } | Segment::Unknown => pointer,
    })
}
