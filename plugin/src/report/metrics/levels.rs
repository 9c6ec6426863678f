//! Gauges of the memory protection, summed over all cgroups of a kind, such as all pod cgroups.

use std::collections::BTreeMap;

use plimsoll_core::policy::Protection;
use plimsoll_core::units::{Bytes, Knob, Limit};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::config::Mode;
use crate::report::metrics::labels::{File, Level};
use crate::report::metrics::rows::{self, bytes, count, number, plain, to_i64};
use crate::report::status::{self, CgroupStatus, Status, Values};

/// Kinds of the containers' ancestor cgroups and of the reserved cgroups outside kubepods.
const LEVELS: [status::Level; 4] =
    [status::Level::Kubepods, status::Level::Class, status::Level::Pod, status::Level::Reserved];

/// Labels of the gauge that sums the protection of all cgroups of the same kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfProtection {
    level: &'static str,
    knob: File,
    value: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfCgroup {
    level: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfDifference {
    level: Level,
}

/// Registers the gauges about protection, unreadable cgroups, unknown facts, and files whose values
/// differ from the desired values.
pub(super) fn register_levels(status: &Status, registry: &mut Registry) {
    let rows = [
        bytes(
            "protection",
            "Sums of memory.min and memory.low of all cgroups of a level: desired, observed, and \
             effective by the kernel's rule",
            protection(status),
        ),
        plain(
            "unread_cgroups",
            "Cgroups that are missing or could not be read; sums of observed values and numbers \
             of differing files leave them out",
            unread(status),
        ),
        plain(
            "unknown_facts",
            "Facts about the node that the plugin could not read, such as the kubelet's records; \
             plimsoll status names them",
            count(status.node.problems.len()),
        ),
        plain(
            "differing_files",
            "Cgroup files whose observed values differ from the desired \
                                  values",
            differences(status),
        ),
    ];
    rows::register(registry, rows);
}

/// Returns the summed protection for each kind of cgroup, each file and each kind of value
/// (desired, observed and effective).
fn protection(status: &Status) -> Family<OfProtection, Gauge> {
    let mut sums: BTreeMap<(&'static str, Knob, &'static str), Bytes> = BTreeMap::new();
    let mut add = |level, value, of: Protection| {
        for (knob, bytes) in [(Knob::Min, of.min), (Knob::Low, of.low)] {
            let sum = sums.entry((level, knob, value)).or_default();
            *sum = sum.saturating_add(bytes);
        }
    };
    for cgroup in &status.cgroups {
        let level = cgroup.level.word();
        add(level, "desired", cgroup.desired);
        add(level, "observed", cgroup.observed.unwrap_or_default());
        add(level, "effective", cgroup.effective.unwrap_or_default());
    }
    let amount = |limit: Option<Limit>| {
        limit.map_or(Bytes::ZERO, |limit| limit.bytes().unwrap_or(Bytes::MAX))
    };
    for container in &status.containers {
        let of = |values: Values| Protection { min: amount(values.min), low: amount(values.low) };
        add("container", "desired", of(container.desired));
        add("container", "observed", of(container.observed.unwrap_or_default()));
        add("container", "effective", container.effective.unwrap_or_default());
    }
    let protection = Family::<OfProtection, Gauge>::default();
    for ((level, knob, value), sum) in sums {
        protection
            .get_or_create(&OfProtection { level, knob: knob.into(), value })
            .set(number(sum));
    }
    protection
}

/// Returns the number of cgroups that the plugin could not read, for each kind of cgroup.
fn unread(status: &Status) -> Family<OfCgroup, Gauge> {
    let unread = Family::<OfCgroup, Gauge>::default();
    for level in LEVELS {
        let _ = unread.get_or_create(&OfCgroup { level: level.word() });
    }
    for cgroup in status.cgroups.iter().filter(|cgroup| cgroup.observed.is_none()) {
        unread.get_or_create(&OfCgroup { level: cgroup.level.word() }).inc();
    }
    let containers =
        status.containers.iter().filter(|container| container.observed.is_none()).count();
    unread.get_or_create(&OfCgroup { level: "container" }).set(to_i64(containers));
    unread
}

/// Returns the number of files whose values differ from the desired values, for containers and for
/// other cgroups. In observe mode the plugin writes no desired values, so both numbers are 0.
fn differences(status: &Status) -> Family<OfDifference, Gauge> {
    let (mut of_containers, mut of_ancestors) = (0, 0);
    if status.node.mode == Mode::Enforce {
        of_ancestors = status.cgroups.iter().map(differing_files).sum();
        let containers = status
            .containers
            .iter()
            .filter_map(|container| Some(container.desired.differs_from(container.observed?)));
        of_containers = containers.sum();
    }
    let differences = Family::<OfDifference, Gauge>::default();
    for (level, count) in [(Level::Container, of_containers), (Level::Ancestor, of_ancestors)] {
        differences.get_or_create(&OfDifference { level }).set(to_i64(count));
    }
    differences
}

fn differing_files(cgroup: &CgroupStatus) -> usize {
    // A desired value of 0 means that the plugin does not manage the file. The files of an unread
    // cgroup do not count as differing.
    let observed = cgroup.observed.unwrap_or(cgroup.desired);
    let pairs = [(cgroup.desired.min, observed.min), (cgroup.desired.low, observed.low)];
    let differs =
        |(desired, observed): &&(Bytes, Bytes)| *desired > Bytes::ZERO && desired != observed;
    pairs.iter().filter(differs).count()
}
