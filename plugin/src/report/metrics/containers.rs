//! Metric series for each container. The setting `containerMetrics` enables these series.

use std::collections::HashSet;
use std::sync::atomic::AtomicU64;

use plimsoll_core::units::{Bytes, printable};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::report::metrics::rows::{self, bytes, number, plain, seconds};
use crate::report::status::{ContainerStatus, Status};

/// Labels of a container, with the label names of cAdvisor.
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
    rows::register(registry, amounts);
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
            "Processes of the container that the kernel OOM-killed",
            kills,
        ),
        seconds(
            "container_pressure_memory_stalled",
            "Time that all tasks of the container waited for memory, for example because \
             memory.high throttled it",
            stalled,
        ),
    ];
    rows::register(registry, counters);
}

/// Returns each container whose cgroup the plugin could read, with the container's labels.
fn labelled(status: &Status) -> Vec<(OfContainer, &ContainerStatus)> {
    let mut seen = HashSet::new();
    // While a container restarts, the old and the new container briefly have the same name.
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

/// Function that returns one amount of memory from a container's status.
type Amount = fn(&ContainerStatus) -> Option<Bytes>;

/// Metrics of a container's memory: name, help text, and the function that returns the amount.
const AMOUNTS: [(&str, &str, Amount); 11] = [
    ("container_memory_usage", "Memory usage of the container (memory.current)", |container| {
        container.usage
    }),
    (
        "container_memory_working_set",
        "Memory usage of the container without inactive page cache",
        |container| container.working_set,
    ),
    (
        "container_spec_memory_limit",
        "memory.max of the container, if it is a number",
        |container| container.observed?.max?.bytes(),
    ),
    (
        "container_memory_request",
        "Memory request of the container, or the lower bound of an \
                                  inexact request",
        |container| Some(container.request.as_ref()?.bytes),
    ),
    ("container_memory_min", "memory.min of the container", |container| {
        container.observed?.min?.bytes()
    }),
    ("container_memory_low", "memory.low of the container", |container| {
        container.observed?.low?.bytes()
    }),
    ("container_memory_high", "memory.high of the container, if it is a number", |container| {
        container.observed?.high?.bytes()
    }),
    ("container_memory_min_desired", "Desired memory.min of the container", |container| {
        container.desired.min?.bytes()
    }),
    ("container_memory_low_desired", "Desired memory.low of the container", |container| {
        container.desired.low?.bytes()
    }),
    (
        "container_memory_high_desired",
        "Desired memory.high of the container, if it is a number",
        |container| container.desired.high?.bytes(),
    ),
    (
        "container_over_request",
        "Working set of the container above its memory request",
        |container| Some(container.over_request),
    ),
];
