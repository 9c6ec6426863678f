//! Details of one pod.

use std::fmt::Write as _;
use std::time::Duration;

use plimsoll_core::pod::CgroupPath;
use plimsoll_core::policy::Protection;
use plimsoll_core::units::{Bytes, excerpt};

use crate::commands::status::cell::{
    format_limit, format_pair, format_protection, full_name, name_of, printable_message, request,
    unknown,
};
use crate::commands::status::load::load;
use crate::report::Report;
use crate::report::status::{CgroupStatus, ContainerStatus, DownStatus, Status};

/// Returns the details of the containers of a pod, or of several pods with the same name.
pub(super) fn describe_pods(status: &Status, now: u64) -> String {
    let mut text = String::new();
    let mut ancestors: Vec<&CgroupPath> = Vec::new();
    for row in &status.containers {
        write_container(&mut text, row, status, now);
        text.push('\n');
        // Collect the ancestor cgroups, from the pod's cgroup upwards.
        let mut above = row.cgroup.as_ref().and_then(CgroupPath::parent);
        while let Some(path) = above {
            if let Some(cgroup) = status.cgroups.iter().find(|cgroup| cgroup.cgroup == path)
                && !ancestors.contains(&&cgroup.cgroup)
            {
                ancestors.push(&cgroup.cgroup);
            }
            above = path.parent();
        }
    }
    for DownStatus { namespace, pod, container, reports, .. } in &status.down {
        let name = full_name(namespace, pod, container);
        let _ = writeln!(text, "{name}: down at the moment");
        write_reports(&mut text, reports, now);
        text.push('\n');
    }
    for path in ancestors {
        if let Some(cgroup) = status.cgroups.iter().find(|cgroup| cgroup.cgroup == *path) {
            write_cgroup(&mut text, cgroup, now);
        }
    }
    text
}

/// Appends the details of a container.
fn write_container(text: &mut String, row: &ContainerStatus, status: &Status, now: u64) {
    let _ = writeln!(
        text,
        "{}: {} ({}, {})\n  {}",
        name_of(row),
        row.state,
        row.class,
        excerpt(&row.id),
        load(row, status)
    );
    if let Some(problem) = &row.problem {
        let _ = writeln!(text, "  cannot be read: {}", printable_message(problem));
    }
    let working_set = row.working_set.map_or_else(unknown, Bytes::approx);
    let _ = writeln!(
        text,
        "  usage {}, of which {working_set} in active use; request {}; over the request {}",
        row.usage.map_or_else(unknown, Bytes::approx),
        request(row),
        row.over_request.approx()
    );
    write_values(text, row);
    if let (Some(seconds), Some(percent), Some(kills)) =
        (row.stalled_seconds, row.stalled_percent, row.oom_kills)
    {
        let _ = writeln!(
            text,
            "  waited for memory for {seconds:.1} s, {percent:.0} % of the last ten seconds; \
             {kills} processes killed"
        );
    }
    write_reports(text, &row.reports, now);
}

/// Appends the memory values of a container, with their reasons.
fn write_values(text: &mut String, row: &ContainerStatus) {
    let reasons = &row.reasons;
    for (file, value, reason) in [
        ("memory.min ", format_pair(row, |values| values.min), &reasons.min),
        ("memory.low ", format_pair(row, |values| values.low), &reasons.low),
        ("memory.high", format_pair(row, |values| values.high), &reasons.high),
    ] {
        let _ = writeln!(text, "  {file}  {value:>10}  {reason}");
    }
    let asked = if Some(row.asked) == row.desired.max {
        String::new()
    } else {
        format!("  asked for: {}", format_limit(row.asked))
    };
    let _ = writeln!(text, "  memory.max   {:>10}{asked}", format_pair(row, |values| values.max));
    if let (Some(effective), Some(standing)) = (row.effective, row.standing) {
        let _ = writeln!(text, "  effective    {}: {standing}", format_protection(effective));
    }
}

fn write_cgroup(text: &mut String, cgroup: &CgroupStatus, now: u64) {
    let _ = writeln!(text, "{} {}", cgroup.level.word(), excerpt(cgroup.cgroup.as_str()));
    let or_unknown = |value: Option<Protection>| value.map_or_else(unknown, format_protection);
    let _ = writeln!(
        text,
        "  usage {}, limit {}; protection {}, read back {}, effective {}{}",
        cgroup.usage.map_or_else(unknown, Bytes::approx),
        cgroup.max.map_or_else(unknown, format_limit),
        format_protection(cgroup.desired),
        or_unknown(cgroup.observed),
        or_unknown(cgroup.effective),
        cgroup.standing.map(|standing| format!(": {standing}")).unwrap_or_default()
    );
    if let Some(problem) = &cgroup.problem {
        let _ = writeln!(text, "  cannot be read: {}", printable_message(problem));
    }
    write_reports(text, &cgroup.reports, now);
}

fn write_reports(text: &mut String, reports: &[Report], now: u64) {
    for report in reports {
        let ago = |then: u64| {
            humantime::format_duration(Duration::from_secs(now.saturating_sub(then))).to_string()
        };
        let times = if report.count > 1 {
            format!(", {} times since {} ago", report.count, ago(report.first))
        } else {
            String::new()
        };
        let _ = writeln!(
            text,
            "  {} ago{times}: {}: {}",
            ago(report.last),
            report.kind,
            report.message
        );
    }
}
