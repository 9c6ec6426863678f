//! Drawing of a container's memory values to scale.

use plimsoll_core::units::Bytes;

use crate::commands::explain::model::ContainerExplanation;

impl ContainerExplanation {
    /// Returns a line of text that shows the protected memory, the throttling limit and the end of
    /// the scale. Returns `None` if the end of the scale is 0 or unknown.
    pub(super) fn drawing(&self) -> Option<String> {
        const CELLS: usize = 60;
        let scale = self.scale.filter(|&scale| scale > Bytes::ZERO)?;
        let cell = |bytes: Bytes| {
            let scale = u128::from(scale.get());
            let share = (u128::from(bytes.get()) * CELLS as u128 + scale / 2) / scale;
            usize::try_from(share).unwrap_or(CELLS).min(CELLS)
        };
        let (protected, mark) = match (self.memory_min.bytes, self.memory_low.bytes) {
            (Some(min), _) => (Some(min), 'm'),
            (None, low) => (low, 'l'),
        };
        let high = self.memory_high.bytes.map(cell);
        let mut line: Vec<char> = (0..=CELLS)
            .map(|at| {
                if protected.is_some_and(|bytes| at < cell(bytes)) {
                    '='
                } else if high.is_some_and(|high| at > high) {
                    '~'
                } else {
                    '-'
                }
            })
            .collect();
        // Marks in the same cell would hide each other. The mark at the end keeps its cell, and the
        // other marks move to the left.
        line[CELLS] = if self.limit.is_some() { 'M' } else { 'A' };
        let mut free = CELLS - 1;
        if let Some(high) = high {
            free = high.min(free);
            line[free] = 'H';
            free = free.saturating_sub(1);
        }
        if let Some(protected) = protected {
            line[cell(protected).min(free)] = mark;
        }
        Some(format!("0 {} {}", line.into_iter().collect::<String>(), scale.approx()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use plimsoll_core::pod::{QosClass, SpecResources};
    use plimsoll_core::policy::{Policy, ReservationPolicy};

    use super::*;
    use crate::commands::explain::container::{PodContext, explain_container};
    use crate::commands::explain::model::{Basis, ContainerKind};
    use crate::commands::explain::testing::basis;

    #[test]
    fn marks_are_to_scale_and_never_overlap() {
        let drawing = |request: u64, limit: Option<u64>, policy: ReservationPolicy| {
            let basis =
                Basis { policy: Policy { reservation: policy, ..Policy::default() }, ..basis() };
            let stated = SpecResources {
                memory_request: Some(Bytes::new(request << 20)),
                memory_limit: limit.map(|limit| Bytes::new(limit << 20)),
                ..SpecResources::default()
            };
            let pod = PodContext {
                class: QosClass::Burstable,
                memory_limit: None,
                annotations: &HashMap::new(),
                basis: &basis,
            };
            explain_container(ContainerKind::Container, "a", stated, &pod).drawing()
        };
        let expect = |left: &str, fill: char, right: &str, end: &str| {
            let fill = fill.to_string().repeat(61 - left.len() - right.len());
            Some(format!("0 {left}{fill}{right} {end}"))
        };
        use ReservationPolicy::{HardReservation, None as Nothing, TieredReservation};
        assert_eq!(
            drawing(500, Some(1000), HardReservation),
            expect(&format!("{}m", "=".repeat(30)), '-', "H~~M", "1000Mi")
        );
        assert_eq!(
            drawing(500, Some(1000), TieredReservation),
            expect(&format!("{}l", "=".repeat(30)), '-', "H~~M", "1000Mi")
        );
        assert_eq!(drawing(0, Some(1000), Nothing), expect("", '-', "H~~~~~M", "1000Mi"));
        assert_eq!(drawing(1000, Some(1000), HardReservation), expect("", '=', "mM", "1000Mi"));
        assert_eq!(drawing(999, Some(1000), HardReservation), expect("", '=', "mHM", "1000Mi"));
        assert_eq!(
            drawing(4096, None, HardReservation),
            expect(&format!("{}m", "=".repeat(30)), '-', "H~~A", "8Gi")
        );
        assert_eq!(drawing(1, Some(1000), HardReservation), expect("m", '-', "H~~~~~M", "1000Mi"));
    }
}
