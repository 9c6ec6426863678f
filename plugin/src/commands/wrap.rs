//! Text in lines of a fixed width.

use std::fmt;

/// Width of the text, in columns.
pub(super) const COLUMNS: usize = 80;

/// Writes indented text in lines of at most [`COLUMNS`]. A word that is longer than a line stays
/// whole.
pub(crate) fn wrap(f: &mut fmt::Formatter<'_>, indent: usize, text: &str) -> fmt::Result {
    wrap_after(f, &" ".repeat(indent), COLUMNS, text)
}

/// Writes text in lines of at most `columns` columns. Each line starts with `prefix`. A word that
/// is longer than a line stays whole.
pub(super) fn wrap_after(
    f: &mut dyn fmt::Write,
    prefix: &str,
    columns: usize,
    text: &str,
) -> fmt::Result {
    let mut used = 0;
    for word in text.split(' ') {
        let width = word.chars().count();
        if used > 0 && used + 1 + width <= columns {
            write!(f, " {word}")?;
            used += 1 + width;
        } else {
            let end = if used == 0 { "" } else { "\n" };
            write!(f, "{end}{prefix}{word}")?;
            used = prefix.chars().count() + width;
        }
    }
    writeln!(f)
}
