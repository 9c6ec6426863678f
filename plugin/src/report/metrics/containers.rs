//! Series of each container, which `containerMetrics` enables.

use std::collections::HashSet;
use std::sync::atomic::AtomicU64;

use plimsoll_core::units::{Bytes, printable};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::report::metrics::table::{self, bytes, number, plain, seconds};
use crate::report::status::{ContainerStatus, Status};

/// Labels of a container, named as in cAdvisor.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfContainer {
    namespace: String,
    pod: String,
    container: String,
}

/// Registers the series of each container.
pub(super) fn register_containers(status: &Status, registry: &mut Registry) {
    let containers = labelled(status);
    let amounts = AMOUNTS.map(|(name, help, amount)| {
        let series = Family::<OfContainer, Gauge>::default();
        for (labels, container) in &containers {
            if let Some(amount) = amount(container) {
                series.get_or_create(labels).set(number(amount));
            }
        }
        bytes(name, help, series)
    });
    table::register(registry, amounts);
    let kills = Family::<OfContainer, Counter>::default();
    let stalled = Family::<OfContainer, Counter<f64, AtomicU64>>::default();
    for (labels, container) in &containers {
        if let Some(count) = container.oom_kills {
            kills.get_or_create(labels).inc_by(count);
        }
        if let Some(seconds) = container.stalled_seconds {
            stalled.get_or_create(labels).inc_by(seconds);
        }
    }
    let counters = [
        plain(
            "container_oom_events",
            "Processes of the container that were killed for want of memory",
            kills,
        ),
        seconds(
            "container_pressure_memory_stalled",
            "How long all of the container has waited for memory, as it does when memory.high \
             throttles it",
            stalled,
        ),
    ];
    table::register(registry, counters);
}

/// Returns the containers that were read, with their labels.
fn labelled(status: &Status) -> Vec<(OfContainer, &ContainerStatus)> {
    let mut seen = HashSet::new();
    // Two containers can have the same name for a moment while one ends and the next one starts.
    let containers = status.containers.iter().filter(|container| {
        let name = (&container.namespace, &container.pod, &container.container);
        container.observed.is_some() && seen.insert(name)
    });
    let labelled = containers.map(|container| {
        let labels = OfContainer {
            namespace: printable(&container.namespace),
            pod: printable(&container.pod),
            container: printable(&container.container),
        };
        (labels, container)
    });
    labelled.collect()
}

/// An amount of memory of a container.
type Amount = fn(&ContainerStatus) -> Option<Bytes>;

/// Amounts of memory of each container: name, help text and amount.
const AMOUNTS: [(&str, &str, Amount); 11] = [
    ("container_memory_usage", "What the container uses (memory.current)", |container| {
        container.usage
    }),
    (
        "container_memory_working_set",
        "The same without page cache that was not used lately",
        |container| container.working_set,
    ),
    ("container_spec_memory_limit", "Its memory.max, if that is a number", |container| {
        container.observed?.max?.bytes()
    }),
    ("container_memory_request", "Its memory request, or the least that it can be", |container| {
        Some(container.request.as_ref()?.bytes)
    }),
    ("container_memory_min", "Its memory.min", |container| container.observed?.min?.bytes()),
    ("container_memory_low", "Its memory.low", |container| container.observed?.low?.bytes()),
    ("container_memory_high", "Its memory.high, if that is a number", |container| {
        container.observed?.high?.bytes()
    }),
    ("container_memory_min_desired", "What its memory.min should be", |container| {
        container.desired.min?.bytes()
    }),
    ("container_memory_low_desired", "What its memory.low should be", |container| {
        container.desired.low?.bytes()
    }),
    (
        "container_memory_high_desired",
        "What its memory.high should be, if that is a number",
        |container| container.desired.high?.bytes(),
    ),
    ("container_over_request", "How much more than its request it uses", |container| {
        Some(container.over_request)
    }),
];
