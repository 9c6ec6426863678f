//! The drawing of a container's usage and memory values.

use plimsoll_core::units::{Bytes, Limit};

use crate::commands::status::cell::unknown;
use crate::report::status::{ContainerStatus, Status};

/// Width of the LOAD drawing in cells, without the end mark.
const CELLS: usize = 20;

/// Returns a drawing of the usage, with marks for the memory values. The scale ends at the
/// container's limit, or without a limit at node allocatable.
pub(super) fn load(row: &ContainerStatus, status: &Status) -> String {
    let values = row.observed.unwrap_or(row.desired);
    let limit = values.max.and_then(Limit::bytes);
    let scale = limit.or(status.node.allocatable).filter(|scale| *scale > Bytes::ZERO);
    let (Some(scale), Some(usage)) = (scale, row.usage) else { return unknown() };
    let cell = |bytes: Bytes| {
        let share = u128::from(bytes.get()) * CELLS as u128 / u128::from(scale.get());
        usize::try_from(share).unwrap_or(CELLS).min(CELLS)
    };
    // Any usage above 0 fills at least one cell.
    let filled = if usage > Bytes::ZERO { cell(usage).max(1) } else { 0 };
    let mut line: Vec<char> = (0..=CELLS).map(|at| if at < filled { '#' } else { '-' }).collect();
    line[CELLS] = if limit.is_some() { 'M' } else { 'A' };
    let amount =
        |limit: Option<Limit>| limit.and_then(Limit::bytes).filter(|bytes| *bytes > Bytes::ZERO);
    let (min, low) = (amount(values.min), amount(values.low));
    // Two marks in one cell would hide each other. The end mark stays in place, and the other marks
    // move to the left.
    let mut free = CELLS - 1;
    for (mark, bytes) in
        [('H', amount(values.high)), if min >= low { ('m', min) } else { ('l', low) }]
    {
        if let Some(bytes) = bytes {
            free = cell(bytes).min(free);
            line[free] = mark;
            free = free.saturating_sub(1);
        }
    }
    line.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::status::sample::{container, status};

    #[test]
    fn usage_fills_to_scale_without_hiding_marks() {
        let drawn = |usage, min, high, max| {
            let status = status(&container("a", usage, min, high, max));
            load(&status.containers[0], &status)
        };
        assert_eq!(drawn(50, 0, "\"max\"", "100"), "##########----------M");
        assert_eq!(drawn(1, 50, "90", "100"), "#---------m-------H-M");
        assert_eq!(drawn(100, 100, "100", "100"), "##################mHM");
        assert_eq!(drawn(500, 0, "\"max\"", "\"max\""), "##########----------A");
        assert_eq!(drawn(0, 1, "\"max\"", "100"), "m-------------------M");
    }
}
