//! The size of the output, and whether the output has colours.

use std::io::{self, IsTerminal as _};

/// Width in columns if the output is not a terminal. The width is large enough for the whole table.
const WIDEST: usize = 1000;

/// The size of the output, and whether the output has colours.
pub(super) struct Screen {
    pub(super) columns: usize,
    pub(super) rows: usize,
    pub(super) has_colours: bool,
}

impl Screen {
    pub(super) fn of_stdout(wide: bool) -> Self {
        let is_terminal = io::stdout().is_terminal();
        let size = rustix::termios::tcgetwinsize(io::stdout())
            .ok()
            .filter(|size| is_terminal && size.ws_col > 0);
        let columns = size.filter(|_| !wide).map_or(WIDEST, |size| size.ws_col.into());
        let rows = size.map_or(usize::MAX, |size| size.ws_row.into());
        // https://no-color.org
        let has_colours =
            is_terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { columns, rows, has_colours }
    }
}

impl Screen {
    /// Shortens a line to the terminal's width. Returns a line with styles unchanged.
    pub(super) fn cut(&self, line: &str) -> String {
        if line.contains('\x1b') {
            // Only table rows have styles, and the table already fits the terminal.
            return line.to_owned();
        }
        line.chars().take(self.columns).collect()
    }
}
