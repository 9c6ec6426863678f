//! Text in lines of a fixed width.

use std::fmt;

/// Width of the text, in columns.
pub(super) const COLUMNS: usize = 80;

/// Writes indented text in lines of at most [`COLUMNS`]. A longer word stays whole.
pub(crate) fn wrap(f: &mut fmt::Formatter<'_>, indent: usize, text: &str) -> fmt::Result {
    let mut used = 0;
    for word in text.split(' ') {
        let width = word.chars().count();
        if used == 0 {
            write!(f, "{:indent$}{word}", "")?;
            used = indent + width;
        } else if used + 1 + width <= COLUMNS {
            write!(f, " {word}")?;
            used += 1 + width;
        } else {
            write!(f, "\n{:indent$}{word}", "")?;
            used = indent + width;
        }
    }
    writeln!(f)
}
