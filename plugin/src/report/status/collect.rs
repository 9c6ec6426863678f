//! Collects the status from the plugin's state and the cgroups.

use std::cmp::Reverse;
use std::sync::Arc;

use plimsoll_core::incident::Subject;
use plimsoll_core::policy::hierarchy::Level;

use crate::report::recent::Report;
use crate::report::reports::Reports;
use crate::report::status::container::{KnownContainer, namespace_and_name};
use crate::report::status::format::{ContainerStatus, DownStatus, NodeStatus, Status, VERSION};
use crate::report::status::parallel::in_parallel;
use crate::report::status::reading;
use crate::report::status::state::LimitChange;
use crate::report::status::tree::CgroupTree;
use crate::state::container::{Container, DesiredState};
use crate::state::levels::LevelKind;
use crate::state::settings::Settings;
use crate::state::shared::SharedState;

impl Status {
    /// Reads the status. Takes some tens of microseconds for each container.
    pub fn read(state: &SharedState, reports: &Reports) -> Self {
        let SharedState { containers, root, .. } = state;
        let settings = containers.settings();
        let known = containers.all();
        let read = in_parallel(&known, |container| reading::read(root, container));
        let plans: Vec<_> = known
            .iter()
            .map(|container| {
                let record = containers.record(container);
                containers.plan(container, &record)
            })
            .collect();
        let levels = levels(state, &settings, &known, &plans);
        let tree = CgroupTree::read(root, &levels, &known, &read);
        let rows = known.iter().zip(&read).zip(plans).map(|((container, read), desired_state)| {
            let known = KnownContainer {
                container,
                desired_state,
                read: read.as_ref(),
                effective: container.cgroup.as_ref().and_then(|cgroup| tree.effective(cgroup)),
                reports: reports.of_container(&container.uid, &container.name),
                change: LimitChange {
                    is_deferred: state.deferred.is_waiting(&container.id),
                    is_rescued: state.rescues.is_rescued(container),
                },
            };
            known.status(&settings)
        });
        let mut rows: Vec<_> = rows.collect();
        sort(&mut rows);
        let down = down(state, reports, &known);
        let cgroups = levels.into_iter().map(|(level, kind)| {
            let reports = reports.of_cgroup(&level.cgroup);
            tree.status(level, kind, settings.node.page_size, reports)
        });
        Self {
            version: VERSION,
            plimsoll: env!("CARGO_PKG_VERSION").to_owned(),
            node: NodeStatus::read(state, reports, &rows),
            cgroups: cgroups.collect(),
            containers: rows,
            down,
        }
    }
}

/// Returns the ancestor cgroups of the containers and the reserved cgroups, each with its desired
/// protection. In observe mode, returns the planned protection instead.
fn levels(
    state: &SharedState,
    settings: &Settings,
    known: &[Arc<Container>],
    plans: &[DesiredState],
) -> Vec<(Level, LevelKind)> {
    if !settings.observes() {
        return state.levels.levels();
    }
    let claims = known.iter().zip(plans).filter_map(|(container, plan)| {
        Some((container.place.as_ref()?, container.id.as_str(), plan.desired.claim?))
    });
    state.levels.planned_levels(settings, claims)
}

/// Sorts the containers by state, worst state first. Within a state, the container with the largest
/// excess over its request comes first.
fn sort(rows: &mut [ContainerStatus]) {
    rows.sort_by(|a, b| {
        let key = |row: &ContainerStatus| (row.state, Reverse(row.over_request));
        key(a).cmp(&key(b)).then_with(|| {
            (&a.namespace, &a.pod, &a.container, &a.id).cmp(&(
                &b.namespace,
                &b.pod,
                &b.container,
                &b.id,
            ))
        })
    });
}

/// Returns the containers that do not run but have recent reports.
fn down(state: &SharedState, reports: &Reports, known: &[Arc<Container>]) -> Vec<DownStatus> {
    let names =
        known.iter().map(|container| (container.uid.clone(), container.name.clone())).collect();
    let pods = state.levels.pods();
    let is_down = |subject: &Subject| subject.uid.as_ref().is_some_and(|uid| pods.contains(uid));
    let down = reports.of_others(&names).into_iter().filter(|(subject, _)| is_down(subject));
    down.map(|(subject, reports)| down_status(subject, reports)).collect()
}

fn down_status(subject: Subject, reports: Vec<Report>) -> DownStatus {
    let pod = subject.pod.unwrap_or_default();
    let (namespace, pod) = namespace_and_name(&pod);
    DownStatus {
        namespace: namespace.to_owned(),
        pod: pod.to_owned(),
        uid: subject.uid.map(|uid| uid.as_str().to_owned()).unwrap_or_default(),
        container: subject.container.unwrap_or_default(),
        reports,
    }
}
