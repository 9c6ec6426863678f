//! The table with one row per container.

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};
use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use plimsoll_core::units::Bytes;

use crate::commands::status::cell::{format_pair, name_of, request, unknown};
use crate::commands::status::load::load;
use crate::commands::status::screen::Screen;
use crate::report::status::{ContainerStatus, State, Status};

/// A column of the table.
struct Column {
    title: &'static str,
    is_number: bool,
    text: fn(&ContainerStatus, &Status) -> String,
    /// The priority of the column; 0 is the highest priority. In a narrow terminal, the table omits
    /// the columns with the largest numbers.
    rank: usize,
}

/// The columns in the order of the table.
const COLUMNS: [Column; 14] = [
    Column { title: "STATE", is_number: false, text: |row, _| row.state.to_string(), rank: 0 },
    Column { title: "CONTAINER", is_number: false, text: |row, _| name_of(row), rank: 1 },
    Column { title: "CLASS", is_number: false, text: |row, _| row.class.to_string(), rank: 9 },
    Column {
        title: "USAGE",
        is_number: true,
        text: |row, _| row.usage.map_or_else(unknown, Bytes::approx),
        rank: 2,
    },
    Column { title: "LOAD", is_number: false, text: load, rank: 3 },
    Column {
        title: "MIN",
        is_number: true,
        text: |row, _| format_pair(row, |values| values.min),
        rank: 6,
    },
    Column {
        title: "LOW",
        is_number: true,
        text: |row, _| format_pair(row, |values| values.low),
        rank: 12,
    },
    Column {
        title: "HIGH",
        is_number: true,
        text: |row, _| format_pair(row, |values| values.high),
        rank: 5,
    },
    Column {
        title: "MAX",
        is_number: true,
        text: |row, _| format_pair(row, |values| values.max),
        rank: 4,
    },
    Column {
        title: "EFFECTIVE",
        is_number: true,
        text: |row, _| {
            row.effective
                .map_or_else(unknown, |effective| effective.min.max(effective.low).approx())
        },
        rank: 10,
    },
    Column { title: "OVER", is_number: true, text: |row, _| row.over_request.approx(), rank: 7 },
    Column {
        title: "STALLED",
        is_number: true,
        text: |row, _| row.stalled_seconds.map_or_else(unknown, |seconds| format!("{seconds:.1}s")),
        rank: 11,
    },
    Column {
        title: "KILLS",
        is_number: true,
        text: |row, _| row.oom_kills.map_or_else(unknown, |kills| kills.to_string()),
        rank: 8,
    },
    Column { title: "REQUEST", is_number: false, text: |row, _| request(row), rank: 13 },
];

const NAME: usize = 1;
/// Spaces between two columns.
const GAP: usize = 2;
/// Minimum width of a shortened name.
const LEAST_NAME: usize = 20;

/// Appends the table with one row per container.
pub(super) fn write_table(text: &mut String, status: &Status, screen: &Screen) {
    let rows: Vec<Vec<String>> = status
        .containers
        .iter()
        .map(|row| COLUMNS.iter().map(|column| (column.text)(row, status)).collect())
        .collect();
    let widths: Vec<usize> = (0..COLUMNS.len())
        .map(|at| {
            let cells = rows.iter().map(|row| row[at].chars().count());
            cells.max().unwrap_or(0).max(COLUMNS[at].title.len())
        })
        .collect();
    let shown = columns_that_fit(&widths, screen.columns);
    // Names get the remaining width. Long names lose characters in the middle, because names often
    // differ at the end.
    let others: usize = shown.iter().filter(|at| **at != NAME).map(|at| widths[*at] + GAP).sum();
    let name_width = screen.columns.saturating_sub(others).max(LEAST_NAME);
    let mut table = Table::new();
    table.load_preset(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(shown.iter().map(|at| COLUMNS[*at].title));
    for row in rows {
        let name = shortened(&row[NAME], name_width);
        table.add_row(shown.iter().map(|at| if *at == NAME { &name } else { &row[*at] }));
    }
    for (place, at) in shown.iter().enumerate() {
        if let Some(column) = table.column_mut(place) {
            let is_last = place + 1 == shown.len();
            column.set_padding((0, if is_last { 0 } else { GAP as u16 }));
            if COLUMNS[*at].is_number {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    // The first line is the header, then one line follows per container.
    let states = std::iter::once(None).chain(status.containers.iter().map(|row| Some(row.state)));
    for (line, state) in table.to_string().lines().zip(states) {
        let line = line.trim_end();
        let style = state.and_then(style).filter(|_| screen.has_colours);
        let _ = match (style, line.split_once(' ')) {
            (Some(style), Some((word, rest))) => writeln!(text, "{style}{word}{style:#} {rest}"),
            _ => writeln!(text, "{line}"),
        };
    }
}

/// Returns the indexes of the columns that fit into the terminal, in the order of the table.
fn columns_that_fit(widths: &[usize], columns: usize) -> Vec<usize> {
    let mut by_rank: Vec<usize> = (0..COLUMNS.len()).collect();
    by_rank.sort_by_key(|at| COLUMNS[*at].rank);
    let mut left = columns + GAP;
    let mut shown: Vec<usize> = by_rank
        .into_iter()
        .take_while(|at| {
            let width = if *at == NAME { widths[*at].min(LEAST_NAME) } else { widths[*at] } + GAP;
            let fits = left >= width;
            left = left.saturating_sub(width);
            fits
        })
        .collect();
    shown.sort_unstable();
    shown
}

fn shortened(name: &str, width: usize) -> String {
    let characters: Vec<char> = name.chars().collect();
    if characters.len() <= width {
        return name.to_owned();
    }
    let tail = (width - 1) * 2 / 3;
    let head = width - 1 - tail;
    let (head, tail) = (&characters[..head], &characters[characters.len() - tail..]);
    head.iter().chain(&['~']).chain(tail).collect()
}

fn style(state: State) -> Option<Style> {
    let colour = match state {
        State::Killed | State::Refused | State::Contended | State::Drifted => AnsiColor::Red,
        State::Deferred
        | State::Throttled
        | State::WouldThrottle
        | State::Rescued
        | State::OverRequest
        | State::Inert => AnsiColor::Yellow,
        State::Unread | State::Unprotected | State::Protected => return None,
    };
    Some(colour.on_default())
}
