//! Explanations as text for 80 columns.

use std::fmt;

use plimsoll_core::units::Bytes;

use crate::commands::explain::model::{ContainerExplanation, Explanation, PodExplanation};
use crate::commands::wrap::wrap;

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let allocatable = match self.node_allocatable {
            Some(bytes) => format!("{} ({bytes} bytes)", bytes.approx()),
            None => "unknown".to_owned(),
        };
        let factor =
            self.memory_throttling_factor.map_or("none".to_owned(), |factor| factor.to_string());
        wrap(f, 0, &format!("Node allocatable {allocatable}: {}.", self.node_allocatable_source))?;
        wrap(
            f,
            0,
            &format!(
                "Throttling factor {factor}, reservation policy {}, pages of {} bytes.",
                self.memory_reservation_policy, self.page_size
            ),
        )?;
        for skipped in &self.skipped {
            writeln!(f, "Skipped {skipped}: no pod in it.")?;
        }
        for pod in &self.pods {
            write!(f, "\n{pod}")?;
        }
        if self
            .pods
            .iter()
            .flat_map(|pod| &pod.containers)
            .any(|container| container.scale.is_some())
        {
            f.write_str(
                "\nDrawn to scale: m memory.min, l memory.low, H memory.high, M memory.max, A \
                 node\n\
                 allocatable where there is no limit. = is protected, ~ is throttled.\n",
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for PodExplanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.object, self.qos_class)?;
        for note in &self.notes {
            wrap(f, 2, &format!("note: {note}"))?;
        }
        for container in &self.containers {
            container.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for ContainerExplanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let defaulted =
            if self.request_defaulted_to_limit { " (defaulted to the limit)" } else { "" };
        let limit = self.limit.map_or("none".to_owned(), Bytes::quantity);
        let from_pod = if self.limit_from_pod { " (of the pod)" } else { "" };
        writeln!(
            f,
            "  {} {}: request {}{defaulted}, limit {limit}{from_pod}",
            self.kind,
            self.name,
            self.request.quantity()
        )?;
        for (name, knob) in [
            ("memory.min", &self.memory_min),
            ("memory.low", &self.memory_low),
            ("memory.high", &self.memory_high),
        ] {
            let value = match (&knob.value, knob.bytes) {
                (Some(value), Some(bytes)) => format!("{value} ({})", bytes.approx()),
                (Some(value), None) => format!("{value} (default)"),
                (None, _) => "left alone".to_owned(),
            };
            writeln!(f, "    {name:<12} {value}")?;
            wrap(f, 17, &knob.reason)?;
        }
        for note in &self.notes {
            wrap(f, 4, &format!("note: {note}"))?;
        }
        match self.drawing() {
            Some(drawing) => writeln!(f, "    {drawing}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::commands::explain::testing::{explained, pod};
    use crate::commands::wrap::COLUMNS;

    #[test]
    fn the_text_fits_80_columns() {
        let manifest =
            pod("  containers: [{name: a, resources: {requests: {memory: '1234567890'}, limits: \
             {memory: 1234567890123}}}, {name: b}]");
        let text = explained(&manifest).to_string();
        for line in text.lines() {
            assert!(line.chars().count() <= COLUMNS, "{line}");
        }
    }
}
