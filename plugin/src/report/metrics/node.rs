//! Gauges of the node and of all containers together.

use plimsoll_core::policy::hierarchy::Standing;
use plimsoll_core::units::{Bytes, Limit};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::config::Mode;
use crate::report::metrics::rows::{self, Row, bytes, count, gauge, one_if, plain, real, to_i64};
use crate::report::status::{ContainerStatus, NodeStatus, State, Status};

/// Value of the label `provenance` for an unknown request.
const UNKNOWN: &str = "unknown";

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfState {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfProvenance {
    provenance: String,
}

/// Registers the gauges of the node and of all containers together.
pub(super) fn register_node(status: &Status, registry: &mut Registry) {
    rows::register(registry, memory(&status.node));
    rows::register(registry, modes(&status.node));
    rows::register(registry, sums(status));
    rows::register(registry, containers_with_a_property(status));
    rows::register(registry, containers_by(status));
}

/// Returns the gauges of the node's memory.
fn memory(node: &NodeStatus) -> Vec<Row> {
    let ratio = |part: Bytes, whole: Bytes| real(part.get() as f64 / whole.get() as f64);
    let mut rows = Vec::new();
    if let Some(allocatable) = node.allocatable {
        let help = "Node allocatable: memory for all pods together";
        rows.push(bytes("node_allocatable", help, gauge(allocatable)));
        if allocatable > Bytes::ZERO {
            rows.extend([
                plain(
                    "limits_to_allocatable_ratio",
                    "Sum of all containers' memory limits divided by node allocatable; \
                     containers without a limit do not count",
                    ratio(node.limits, allocatable),
                ),
                plain(
                    "requests_to_allocatable_ratio",
                    "Sum of all containers' memory requests divided by node allocatable",
                    ratio(node.requests, allocatable),
                ),
            ]);
        }
    }
    if let Some(line) = node.guard {
        rows.push(bytes("guard", "Limit of all pods together that nodeGuard sets", gauge(line)));
    }
    if let Some(max) = node.pods_max {
        let max = max.bytes().map_or(f64::INFINITY, |max| max.get() as f64);
        rows.push(bytes("kubepods_max", "memory.max of kubepods", real(max)));
    }
    if node.requests > Bytes::ZERO {
        rows.push(plain(
            "usage_to_requests_ratio",
            "Memory usage of all containers divided by the sum of their memory requests",
            ratio(node.usage, node.requests),
        ));
    }
    rows
}

/// Returns the gauges that show whether the plugin sets values.
fn modes(node: &NodeStatus) -> Vec<Row> {
    let mut rows = vec![
        plain(
            "synchronized",
            "1 while the container runtime is connected and has sent its pods and containers",
            one_if(node.synchronized),
        ),
        plain(
            "stands_aside",
            "1 after 'plimsoll restore', while the plugin sets nothing",
            one_if(node.stands_aside),
        ),
        plain(
            "observe_mode",
            "1 while the plugin is in observe mode and sets nothing",
            one_if(node.mode == Mode::Observe),
        ),
        plain(
            "brake_applied",
            "1 while the brake keeps the plugin in observe mode, until an operator resets the \
             brake",
            one_if(node.brake.is_some()),
        ),
    ];
    rows.extend(node.planned_guard.map(|line| {
        bytes(
            "planned_guard",
            "Limit of all pods together that nodeGuard would set outside of observe mode",
            gauge(line),
        )
    }));
    rows
}

/// Returns the gauges that sum an amount over all containers.
fn sums(status: &Status) -> [Row; 1] {
    let over = status.containers.iter().map(|container| container.over_request);
    [bytes(
        "over_request",
        "Sum of the containers' working sets above their memory requests",
        gauge(over.fold(Bytes::ZERO, Bytes::saturating_add)),
    )]
}

/// Function that returns whether a container has a property.
type Property = fn(&ContainerStatus) -> bool;

/// Metrics that count the containers with a property: name, help text and property.
const PROPERTIES: [(&str, &str, Property); 5] = [
    (
        "over_request_containers",
        "Containers whose working set is above their memory request",
        |container| container.over_request > Bytes::ZERO,
    ),
    (
        "overcommitted_containers",
        "Containers whose memory limit is more than maxLimitRequestRatio times their request",
        |container| container.overcommitted,
    ),
    ("unlimited_containers", "Containers without a memory limit", |container| {
        container.desired.max == Some(Limit::Max)
    }),
    (
        "would_throttle_containers",
        "Containers that use more than their planned memory.high in observe mode",
        |container| container.would_throttle,
    ),
    (
        "inert_containers",
        "Containers whose protection has no effect or only a part of it, because a cgroup above \
         has less",
        |container| matches!(container.standing, Some(Standing::Inert | Standing::Partly)),
    ),
];

/// Returns, for each property, the number of containers that have the property.
fn containers_with_a_property(status: &Status) -> Vec<Row> {
    let number = |is_counted: &dyn Fn(&ContainerStatus) -> bool| {
        count(status.containers.iter().filter(|container| is_counted(container)).count())
    };
    let rows = PROPERTIES.iter().map(|(name, help, has)| plain(name, help, number(has)));
    // The count is unknown without node allocatable, so omit the metric.
    let beyond_node = status.node.allocatable.map(|allocatable| {
        plain(
            "beyond_node_containers",
            "Containers whose memory limit or request is more than node allocatable",
            number(&|container| is_beyond(container, allocatable)),
        )
    });
    rows.chain(beyond_node).collect()
}

/// Returns whether the limit or the request of the container is more than node allocatable.
fn is_beyond(container: &ContainerStatus, allocatable: Bytes) -> bool {
    let request = container.request.as_ref().map(|request| request.bytes);
    let limit = container.desired.max.and_then(Limit::bytes);
    limit.max(request).is_some_and(|most| most > allocatable)
}

/// Returns the number of containers in each state, and for each source of the memory request.
fn containers_by(status: &Status) -> [Row; 2] {
    let states = Family::<OfState, Gauge>::default();
    for state in State::ALL {
        let count = status.containers.iter().filter(|container| container.state == state).count();
        let state = state.word();
        states.get_or_create(&OfState { state }).set(to_i64(count));
    }
    let provenances = Family::<OfProvenance, Gauge>::default();
    // Export this series even with the value 0, because an alert may depend on the series.
    let _ = provenances.get_or_create(&OfProvenance { provenance: UNKNOWN.to_owned() });
    for container in &status.containers {
        let provenance =
            container.request.as_ref().map_or(UNKNOWN, |request| &request.provenance).to_owned();
        provenances.get_or_create(&OfProvenance { provenance }).inc();
    }
    [
        plain("containers", "Containers, by their state in plimsoll status", states),
        plain(
            "container_requests",
            "Containers, by the source of their memory requests",
            provenances,
        ),
    ]
}
