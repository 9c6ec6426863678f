//! The lines about the node, and the table with one row per container.

use std::fmt::Write as _;

use plimsoll_core::units::{Bytes, Limit, excerpt, printable};

use crate::commands::status::cell::{full_name, printable_message};
use crate::commands::status::node::{describe_observe_mode, not_ready_reasons};
use crate::commands::status::screen::Screen;
use crate::commands::status::table::write_table;
use crate::report::status::{DownStatus, Level, NodeStatus, Status};

fn percent(part: Bytes, whole: Option<Bytes>) -> String {
    match whole.filter(|whole| *whole > Bytes::ZERO) {
        Some(whole) => {
            format!("{} ({:.0} %)", part.approx(), part.get() as f64 * 100.0 / whole.get() as f64)
        }
        None => part.approx(),
    }
}

/// Returns the lines about the node, and the table with one row per container.
pub(super) fn overview(status: &Status, screen: &Screen) -> String {
    let node = &status.node;
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{} for pods; requested {}, in use {}, limits {}{}",
        node.allocatable.map_or_else(|| "unknown memory".to_owned(), Bytes::approx),
        percent(node.requests, node.allocatable),
        percent(node.usage, node.allocatable),
        percent(node.limits, node.allocatable),
        if node.unlimited > 0 {
            format!(", {} without limit", node.unlimited)
        } else {
            String::new()
        },
    );
    write_node(&mut text, node, screen);
    // Omit reports about pod cgroups, because `describe_pods` shows these reports with the pod.
    for cgroup in status.cgroups.iter().filter(|cgroup| cgroup.level != Level::Pod) {
        if let Some(report) = cgroup.reports.iter().find(|report| report.is_recent()) {
            let line = format!("{}: {}", excerpt(cgroup.cgroup.as_str()), report.message);
            let _ = writeln!(text, "{}", screen.cut(&line));
        }
    }
    for DownStatus { namespace, pod, container, reports, .. } in &status.down {
        let name = full_name(namespace, pod, container);
        if let Some(report) = reports.first() {
            let _ = writeln!(text, "{}", screen.cut(&format!("down: {name}: {}", report.message)));
        }
    }
    text.push('\n');
    write_table(&mut text, status, screen);
    text
}

/// Appends the lines about the node guard, the plugin's mode and the node's problems.
fn write_node(text: &mut String, node: &NodeStatus, screen: &Screen) {
    if let Some(line) = node.guard {
        let held = match node.pods_max {
            Some(max) if max <= Limit::Bytes(line) => String::new(),
            Some(Limit::Bytes(max)) => format!("; kubepods has {}", max.approx()),
            Some(Limit::Max) => "; kubepods has max".to_owned(),
            None => "; memory.max of kubepods is unknown".to_owned(),
        };
        let line = format!("all pods together may use {} (nodeGuard){held}", line.approx());
        let _ = writeln!(text, "{}", screen.cut(&line));
    }
    if let Some(line) = node.planned_guard {
        let line = format!("all pods together might use {} (nodeGuard)", line.approx());
        let _ = writeln!(text, "{}", screen.cut(&line));
    }
    for line in describe_observe_mode(node) {
        let _ = writeln!(text, "{}", screen.cut(&line));
    }
    if let Some(problem) = &node.guard_problem {
        let _ = writeln!(text, "{}", screen.cut(&printable(problem)));
    }
    for problem in &node.problems {
        let _ = writeln!(text, "{}", printable_message(problem));
    }
    for reason in not_ready_reasons(node) {
        let _ = writeln!(text, "{}", screen.cut(reason));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::status::sample::{container, status};

    #[test]
    fn tables_fit_the_width_with_main_columns() {
        let long = container(
            "a-very-long-name-of-a-pod-that-nobody-would-type-6d4cf56db6-x2x8h",
            50,
            0,
            "90",
            "100",
        );
        let status = status(&format!("{long}, {}", container("short", 50, 0, "90", "100")));
        for columns in [80, 100, 120, 200] {
            let text = overview(&status, &Screen { columns, rows: 24, has_colours: false });
            assert!(
                text.lines().skip(1).all(|line| line.chars().count() <= columns),
                "{columns}:\n{text}"
            );
            for part in ["STATE", "CONTAINER", "USAGE", "LOAD", "MAX", "killed", "x2x8h/app"] {
                assert!(text.contains(part), "{columns}: {part}:\n{text}");
            }
            assert_eq!(text.contains("REQUEST"), columns == 200, "{text}");
        }
        let text = overview(&status, &Screen { columns: 80, rows: 24, has_colours: true });
        assert!(text.contains("\x1b[31mkilled\x1b[0m "), "{text:?}");
    }
}
