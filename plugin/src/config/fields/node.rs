//! Fields for the part of the node's memory that pods cannot use.

use crate::config::fields::access::access;
use crate::config::fields::field_type::{Access, Field, Kind};
use crate::config::model::Config;
use crate::config::reserved::Owner;
use crate::config::setting::{Setting as _, Value};

pub(in crate::config) static SYSTEM_CGROUP: Field = Field {
    name: "systemReservedCgroup",
    doc: "Cgroup of the operating system that memory.min protects. \
          The field needs systemReserved.",
    kind: Kind::Cgroup,
    null: None,
    unit: "",
    default: None,
    examples: &["/system.slice"],
    is_in_chart: true,
    access: access!(reserved System, system.cgroup),
};

pub(in crate::config) static SYSTEM_RESERVED: Field = Field {
    name: "systemReserved",
    doc: "Protection of the cgroup in systemReservedCgroup. The field needs systemReservedCgroup.",
    kind: Kind::Mapping { fields: &[&SYSTEM_MEMORY], is_complete: true },
    null: None,
    unit: "",
    default: None,
    examples: &["{memory: 500Mi}"],
    is_in_chart: true,
    access: Access { set: |_, _| (), get: |config| has(config, Owner::System) },
};

static SYSTEM_MEMORY: Field = Field {
    name: "memory",
    doc: "memory.min of the cgroup.",
    kind: Kind::Quantity { may_be_zero: false },
    null: None,
    unit: "bytes",
    default: None,
    examples: &["500Mi"],
    is_in_chart: true,
    access: access!(reserved System, system.memory),
};

pub(in crate::config) static KUBE_CGROUP: Field = Field {
    name: "kubeReservedCgroup",
    doc: "Cgroup of the kubelet and the container runtime that memory.min protects. \
          The field needs kubeReserved.",
    kind: Kind::Cgroup,
    null: None,
    unit: "",
    default: None,
    examples: &["/kubelet.slice"],
    is_in_chart: true,
    access: access!(reserved Kube, kube.cgroup),
};

pub(in crate::config) static KUBE_RESERVED: Field = Field {
    name: "kubeReserved",
    doc: "Protection of the cgroup in kubeReservedCgroup. The field needs kubeReservedCgroup.",
    kind: Kind::Mapping { fields: &[&KUBE_MEMORY], is_complete: true },
    null: None,
    unit: "",
    default: None,
    examples: &["{memory: 500Mi}"],
    is_in_chart: true,
    access: Access { set: |_, _| (), get: |config| has(config, Owner::Kube) },
};

static KUBE_MEMORY: Field = Field {
    name: "memory",
    doc: "memory.min of the cgroup.",
    kind: Kind::Quantity { may_be_zero: false },
    null: None,
    unit: "bytes",
    default: None,
    examples: &["500Mi"],
    is_in_chart: true,
    access: access!(reserved Kube, kube.memory),
};

pub(in crate::config) static GUARD: Field = Field {
    name: "nodeGuard",
    doc: "Memory that the plugin keeps from all pods together by memory.max of kubepods. \
          The amount must be at least the sum of systemReserved and kubeReserved. \
          Reserve at least as much in the kubelet, or the scheduler counts on memory that pods \
          cannot have.",
    kind: Kind::Quantity { may_be_zero: false },
    null: Some("pods may use all memory that the kubelet leaves them"),
    unit: "bytes",
    default: Some("null"),
    examples: &["500Mi"],
    is_in_chart: true,
    access: access!(node_guard),
};

/// Returns the reservation for this owner, or `None` if the configuration has no reservation for
/// it.
fn has(config: &Config, owner: Owner) -> Option<Value> {
    config.reserved.iter().any(|reserved| reserved.owner == owner).then_some(Value::Mapping)
}
