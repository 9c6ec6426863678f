//! Removes the differences between the outputs of two runs.
//!
//! Identifiers, times and amounts of used memory differ from run to run. This module replaces each
//! of these texts by a stable value. All other text stays as a program printed it.

use anyhow::{Context, Result};

/// The title of a table's column, and the function that returns the new value of a cell.
type Rule = (&'static str, fn(&str) -> String);

/// The table columns whose values differ from run to run.
const COLUMNS: [Rule; 4] = [
    // Column of kubectl: the age of an Event, or "AGE (xCOUNT over AGE)".
    ("LAST SEEN", |_| "5s".to_owned()),
    // Columns of plimsoll status.
    ("USAGE", whole),
    ("OVER", whole),
    ("STALLED", |_| "0.0s".to_owned()),
];

/// Words that precede or follow an amount of used memory.
const USED: [(&str, &str); 7] = [
    ("in use ", ""),
    ("usage ", ""),
    ("over the request ", ""),
    ("effective ", ""),
    ("", " in use"),
    ("", " in active use"),
    ("", " reclaimable"),
];

/// The words around a number that differs from run to run, and a replacement for this number.
const NUMBERS: [(&str, &str, &str); 3] = [
    ("runs as process ", "", "812"),
    ("  ", "s ago: ", "5"),
    ("waited for memory for ", " s, ", "0.0"),
];

/// Sample times in the formats that programs print: the plugin's format and crictl's format.
const TIMES: [&str; 2] = ["2026-11-22T21:55:13.575118Z", "2026-11-22T21:55:13Z"];

/// Returns a text without values that differ from run to run.
///
/// Each pair in `names` is a value, such as a container's ID, and its stable replacement.
pub(crate) fn stable(text: &str, names: &[(&str, &str)]) -> Result<String> {
    let mut text = text.to_owned();
    for (value, name) in names {
        text = text.replace(value, name);
    }
    for (header, replacement) in COLUMNS {
        text = replace_column(&text, header, replacement)?;
    }
    let lines = text.lines().map(|line| {
        let mut line = line.trim_end().to_owned();
        for (before, after) in USED {
            line = replace_amounts(&line, before, after);
        }
        for (before, after, number) in NUMBERS {
            line = replace_number(&line, before, after, number);
        }
        for time in TIMES {
            line = replace_times(&line, time);
        }
        line + "\n"
    });
    Ok(lines.collect())
}

/// Returns an amount of memory in whole mebibytes: `128.8Mi` becomes `128Mi`, `61Ki` becomes `0`.
fn whole(amount: &str) -> String {
    match (amount.split_once('.'), amount.ends_with("Ki")) {
        (_, true) => "0".to_owned(),
        (Some((whole, _)), _) if amount.ends_with("Mi") => format!("{whole}Mi"),
        _ => amount.to_owned(),
    }
}

/// Replaces each amount of memory between two words by the amount in whole mebibytes.
fn replace_amounts(line: &str, before: &str, after: &str) -> String {
    let mut result = String::new();
    let mut rest = line;
    while let Some((start, end)) = find_number(rest, before, &["Ki", "Mi"], after) {
        result.push_str(&rest[..start]);
        result.push_str(&whole(&rest[start..end]));
        rest = &rest[end..];
    }
    result + rest
}

/// Replaces the first number that is between two words by `number`.
fn replace_number(line: &str, before: &str, after: &str, number: &str) -> String {
    match find_number(line, before, &[""], after) {
        Some((start, end)) => format!("{}{number}{}", &line[..start], &line[end..]),
        None => line.to_owned(),
    }
}

/// Returns the start and the end of the first number between two words. One of `units` must follow
/// the number.
fn find_number(text: &str, before: &str, units: &[&str], after: &str) -> Option<(usize, usize)> {
    let is_digit = |letter: char| letter.is_ascii_digit() || letter == '.';
    (0..text.len()).filter(|start| text.is_char_boundary(*start)).find_map(|start| {
        let rest = &text[start..];
        if !rest.starts_with(|letter: char| letter.is_ascii_digit())
            || text[..start].ends_with(is_digit)
            || !text[..start].ends_with(before)
        {
            return None;
        }
        let number = rest.find(|letter| !is_digit(letter)).unwrap_or(rest.len());
        let unit = units.iter().find(|unit| rest[number..].starts_with(**unit))?;
        let end = number + unit.len();
        rest[end..].starts_with(after).then_some((start, start + end))
    })
}

/// Replaces each time in the format of `sample` by `sample`.
fn replace_times(line: &str, sample: &str) -> String {
    let is_time = |text: &str| {
        text.bytes().zip(sample.bytes()).all(|(found, sample)| {
            if sample.is_ascii_digit() { found.is_ascii_digit() } else { found == sample }
        })
    };
    let place = (0..line.len()).find_map(|start| {
        let end = start + sample.len();
        line.get(start..end).filter(|text| is_time(text)).map(|_| (start, end))
    });
    match place {
        Some((start, end)) => format!("{}{sample}{}", &line[..start], &line[end..]),
        None => line.to_owned(),
    }
}

/// A table whose cells are separated by two spaces or more.
struct Table {
    rows: Vec<Vec<String>>,
    is_right: Vec<bool>,
}

/// Replaces the cells of a column in each table that has the column.
fn replace_column(text: &str, header: &str, replacement: fn(&str) -> String) -> Result<String> {
    let lines: Vec<&str> = text.lines().collect();
    let Some(first) = lines.iter().position(|line| cells(line).any(|(_, cell)| cell == header))
    else {
        return Ok(text.to_owned());
    };
    let count = lines[first..].iter().take_while(|line| !line.trim().is_empty()).count();
    let mut table = Table::parse(&lines[first..first + count])?;
    let column = table.rows[0].iter().position(|cell| cell == header);
    let column = column.context("the column of the header is missing")?;
    for row in &mut table.rows[1..] {
        row[column] = replacement(&row[column]);
    }
    let mut new: Vec<String> = lines[..first].iter().map(|line| (*line).to_owned()).collect();
    new.extend(table.format());
    new.extend(lines[first + count..].iter().map(|line| (*line).to_owned()));
    Ok(new.join("\n") + "\n")
}

/// Returns the cells of a line, each with its byte offset in the line.
fn cells(line: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut rest = line;
    let mut start = 0;
    std::iter::from_fn(move || {
        let skipped = rest.len() - rest.trim_start().len();
        start += skipped;
        rest = &rest[skipped..];
        if rest.is_empty() {
            return None;
        }
        let end = rest.find("  ").unwrap_or(rest.len());
        let cell = (start, &rest[..end]);
        start += end;
        rest = &rest[end..];
        Some(cell)
    })
}

impl Table {
    fn parse(lines: &[&str]) -> Result<Self> {
        let rows: Vec<Vec<(usize, &str)>> =
            lines.iter().map(|line| cells(line).collect()).collect();
        let columns = rows[0].len();
        for (row, line) in rows.iter().zip(lines) {
            anyhow::ensure!(
                row.len() == columns,
                "expected a row with {columns} cells, found {}: {line}",
                row.len()
            );
        }
        let is_right =
            (0..columns).map(|column| rows.iter().any(|row| row[column].0 != rows[0][column].0));
        let is_right = is_right.collect();
        let rows = rows.into_iter().map(|row| row.into_iter().map(|(_, cell)| cell.to_owned()));
        Ok(Self { rows: rows.map(Iterator::collect).collect(), is_right })
    }

    fn format(&self) -> Vec<String> {
        let width = |column: usize| {
            self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..self.is_right.len()).map(width).collect();
        let rows = self.rows.iter().map(|row| {
            let cells = row.iter().zip(&widths).zip(&self.is_right);
            let cells: Vec<String> =
                cells
                    .map(|((cell, width), is_right)| {
                        if *is_right { format!("{cell:>width$}") } else { format!("{cell:width$}") }
                    })
                    .collect();
            cells.join("  ").trim_end().to_owned()
        });
        rows.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_runs_give_the_same_text() {
        let run = |id: &str, usage: &str, over: &str, time: &str| {
            let text = format!(
                "1.2Gi for pods; requested 64Mi (5 %), in use {usage} (11 %), limits 150Mi (13 %)\n\
                 \n\
                 STATE    CONTAINER  {empty:width$}USAGE  LOAD     HIGH  {gap:gap_width$}OVER  STALLED\n\
                 refused  shop/app   {usage}  ##m-M  141.4Mi  {over}     {time}\n\
                 \n\
                 crio-{id}.scope: 141.4Mi, {usage} in use, {over} reclaimable\n\
                 {{\"timestamp\":\"2027-01-02T03:04:{id}.123456Z\"}}\n",
                empty = "",
                gap = "",
                width = usage.len() - 5,
                gap_width = over.len() - 4,
            );
            stable(&text, &[(&format!("crio-{id}"), "CONTAINER")]).unwrap()
        };
        let first = run("12", "128.8Mi", "64.8Mi", "0.0s");
        assert_eq!(first, run("34", "128.1Mi", "64.0Mi", "0.4s"));
        for part in [
            "in use 128Mi (11 %)",
            "refused  shop/app   128Mi  ##m-M",
            "141.4Mi  64Mi     0.0s",
            "CONTAINER.scope: 141.4Mi, 128Mi in use, 64Mi reclaimable",
            "2026-11-22T21:55:13.575118Z",
        ] {
            assert!(first.contains(part), "{part}:\n{first}");
        }
    }

    #[test]
    fn numbers_between_words_are_replaced() {
        for (found, expected) in [
            ("128.8Mi in use, 61Ki reclaimable", "128Mi in use, 0 reclaimable"),
            ("in use 1.2Gi", "in use 1.2Gi"),
            ("memory.high  231.4Mi", "memory.high  231.4Mi"),
            ("installed and runs as process 325", "installed and runs as process 812"),
            ("  11s ago: CutRejected", "  5s ago: CutRejected"),
            ("waited for memory for 0.3 s, 0 %", "waited for memory for 0.0 s, 0 %"),
            ("time=\"2027-01-02T03:04:05Z\"", "time=\"2026-11-22T21:55:13Z\""),
        ] {
            assert_eq!(stable(found, &[]).unwrap(), format!("{expected}\n"));
        }
    }

    #[test]
    fn ages_of_events_are_replaced() {
        let text = "LAST SEEN            TYPE     MESSAGE\n\
                    3s (x3 over 12s)     Warning  one two\n\
                    101s                 Warning  three\n";
        let expected = "LAST SEEN  TYPE     MESSAGE\n\
                        5s         Warning  one two\n\
                        5s         Warning  three\n";
        assert_eq!(stable(text, &[]).unwrap(), expected);
    }

    #[test]
    fn rows_with_missing_cells_fail() {
        let error = stable("USAGE  MAX\n1Mi\n", &[]).unwrap_err();
        assert!(error.to_string().contains("2 cells"), "{error}");
    }
}
