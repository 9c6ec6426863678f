//! Descriptions of mistakes in YAML.

use granit_parser::ErrorKind as Kind;
use thiserror::Error;

use super::place::Place;

/// A text that is not YAML or JSON. `Display` writes what was expected, without the position.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{expected}")]
pub struct SyntaxError {
    /// Position of the mistake.
    pub place: Place,
    /// What was expected at this position.
    pub expected: String,
}

/// Describes a mistake in words that a writer of YAML knows.
pub(super) fn describe(kind: &Kind) -> &'static str {
    match kind {
        Kind::UnclosedQuotedScalar
        | Kind::DocumentIndicatorInQuotedScalar
        | Kind::InvalidQuotedScalarIndent => "the closing quote of a quoted text",
        Kind::InvalidTrailingSingleQuotedScalar | Kind::InvalidTrailingDoubleQuotedScalar => {
            "nothing after the closing quote of a quoted text"
        }
        Kind::UnknownQuotedScalarEscape
        | Kind::InvalidQuotedScalarHexEscape
        | Kind::InvalidLowSurrogateHexEscape
        | Kind::InvalidLowSurrogate
        | Kind::MissingLowSurrogate
        | Kind::UnpairedLowSurrogate
        | Kind::InvalidUnicodeEscape => "a known escape sequence after a backslash, such as \\n",
        Kind::UnclosedFlowCollection { .. }
        | Kind::UnexpectedEofFlowSequence
        | Kind::UnexpectedEofFlowMapping
        | Kind::UnexpectedEofImplicitFlowMapping
        | Kind::ExpectedFlowMappingSeparator
        | Kind::InvalidColonPlacement
        | Kind::ExpectedFlowSequenceSeparator => {
            "a comma or a closing bracket in a list or mapping in brackets"
        }
        Kind::MismatchedFlowCollectionEnd { .. } | Kind::MisplacedFlowCollectionEnd => {
            "an opening bracket for each closing bracket"
        }
        Kind::TabNotAllowed
        | Kind::TabInBlockIndentation
        | Kind::TabInIndentation
        | Kind::TabAtBlockScalarStart
        | Kind::TabInPlainScalar => "spaces for the indentation, found a tab",
        Kind::UnknownAnchor => "an anchor ('&name') before the alias ('*name') that refers to it",
        Kind::UnexpectedCharacter { .. } | Kind::PlainScalarStartsWithDashFlowIndicator => {
            "quotes around a text that begins with a special character"
        }
        Kind::RecursionLimitExceeded => "at most 255 lists and mappings inside each other",
        Kind::ZeroBlockScalarIndent
        | Kind::InvalidBlockScalarHeader
        | Kind::InvalidBlockScalarIndent => {
            "a text block ('|' or '>') with more indentation than its field"
        }
        Kind::CommentNotSeparated | Kind::CommentInterceptedScalar => "a space before '#'",
        Kind::InvalidIndentation
        | Kind::ExpectedBlockMappingKey
        | Kind::ExpectedBlockSequenceEntry
        | Kind::SimpleKeyExpected
        | Kind::InvalidSimpleKey
        | Kind::MappingKeyNotAllowed
        | Kind::MappingValueNotAllowed
        | Kind::InvalidMappingValueWhitespace
        | Kind::BlockSequenceEntryNotAllowed
        | Kind::BlockEntryInFlowCollection
        | Kind::UnexpectedEofBlockSequence
        | Kind::UnexpectedEofBlockMapping => {
            "'field: value' or '- item' with the indentation of the lines before"
        }
        _ => "YAML or JSON",
    }
}
