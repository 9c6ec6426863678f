//! Collects the status of the node as a whole.

use std::fs;

use plimsoll_core::incident::IncidentKind;
use plimsoll_core::pod::CgroupPath;
use plimsoll_core::units::{Bytes, Knob, Limit};

use crate::cgroup::{Cgroup, CgroupError, CgroupRoot};
use crate::kubelet::node::MemInfo;
use crate::report::reports::Reports;
use crate::report::status::format::{ContainerStatus, NodeStatus};
use crate::state::containers::Containers;
use crate::state::settings::{NO_SYSTEM_SLICE, Settings};
use crate::state::shared::SharedState;

impl NodeStatus {
    pub(super) fn read(state: &SharedState, reports: &Reports, rows: &[ContainerStatus]) -> Self {
        let SharedState { containers, levels, root, synchronized, .. } = state;
        let settings = containers.settings();
        let meminfo =
            fs::read_to_string(root.host().join("proc/meminfo")).map_err(|error| error.to_string());
        let meminfo =
            meminfo.and_then(|text| MemInfo::parse(&text).map_err(|error| error.to_string()));
        let problems = node_problems(containers, &settings, &meminfo);
        let sum = |of: &dyn Fn(&ContainerStatus) -> Option<Bytes>| {
            rows.iter().filter_map(of).fold(Bytes::ZERO, Bytes::saturating_add)
        };
        let kubepods = levels.open_kubepods();
        let pods_max = match &kubepods {
            Ok(Some((_, cgroup))) => cgroup.read(Knob::Max).map_err(|error| error.to_string()),
            Ok(None) => Err("there is no kubepods cgroup".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        let line = settings.guard_limit();
        let planned_guard = settings.planned_guard_limit().filter(|_| settings.observes());
        let guard_problem = if line.or(planned_guard).is_none() {
            None
        } else if let Err(why) = &pods_max {
            let is = if settings.observes() { "would not be" } else { "is not" };
            Some(format!("nodeGuard {is} in force: {why}"))
        } else {
            let kubepods = kubepods.ok().flatten();
            let waits = planned_guard
                .zip(kubepods)
                .and_then(|(line, (_, cgroup))| guard_would_wait(&cgroup, line));
            waits.or_else(|| half_a_guard(&settings, root))
        };
        Self {
            memory: settings.mem_total(),
            available: meminfo.ok().map(|meminfo| meminfo.available),
            allocatable: settings.node.allocatable,
            guard: line.filter(|_| pods_max.is_ok()),
            guard_problem,
            problems,
            mode: settings.mode(),
            brake: settings.brake.clone(),
            planned_guard,
            would_throttle: rows.iter().filter(|row| row.would_throttle).count(),
            would_refuse: reports.count_recent(|report| {
                report.planned
                    && matches!(report.kind, IncidentKind::CutRejected | IncidentKind::CutDeferred)
            }),
            pods_max: pods_max.ok(),
            synchronized: *synchronized.borrow(),
            stands_aside: settings.is_restored,
            requests: sum(&|row| row.request.as_ref().map(|request| request.bytes)),
            limits: sum(&|row| row.desired.max.and_then(Limit::bytes)),
            unlimited: rows.iter().filter(|row| row.desired.max == Some(Limit::Max)).count(),
            usage: sum(&|row| row.usage),
        }
    }
}

/// Returns a message with advice for each unknown fact about the node.
fn node_problems(
    containers: &Containers,
    settings: &Settings,
    meminfo: &Result<MemInfo, String>,
) -> Vec<String> {
    let records = containers.records.problems().into_iter();
    let mut problems: Vec<_> = records
        .map(|problem| {
            format!(
                "{problem}. See the kubelet's log: the kubelet writes the file again with \
                 each pod"
            )
        })
        .collect();
    if settings.node.allocatable.is_none() {
        problems.push(
            "node allocatable is unknown, so containers without a limit have no memory.high: set \
             nodeAllocatable, or see 'plimsoll doctor' for the reason"
                .to_owned(),
        );
    }
    if let Err(error) = meminfo {
        problems.push(format!(
            "cannot read /proc/meminfo: {error}; set --host to the node's file system with its \
             /proc"
        ));
    }
    problems
}

/// Returns a message if the pods use more memory than the limit that the node guard plans in
/// observe mode.
fn guard_would_wait(kubepods: &Cgroup, line: Bytes) -> Option<String> {
    match kubepods.usage() {
        Ok(usage) => (usage > line).then(|| {
            let (usage, line) = (usage.approx(), line.approx());
            format!(
                "nodeGuard would wait: pods use {usage}, and their limit would be {line}; \
                 nodeGuard would reclaim memory, and kill no container"
            )
        }),
        Err(error) => Some(format!("nodeGuard: cannot read the usage of kubepods: {error}")),
    }
}

/// Returns a message if the node guard cannot protect the system, because the node has no
/// system.slice.
fn half_a_guard(settings: &Settings, root: &CgroupRoot) -> Option<String> {
    if !settings.config.reserved.is_empty() {
        return None;
    }
    match root.cgroup(&CgroupPath::system_slice()) {
        Ok(_) => None,
        Err(CgroupError::Gone(_)) => {
            let protects = if settings.observes() { "would protect" } else { "protects" };
            Some(format!("{}: nothing {protects} the system", NO_SYSTEM_SLICE))
        }
        Err(error) => Some(format!("nodeGuard: cannot open system.slice: {error}")),
    }
}
