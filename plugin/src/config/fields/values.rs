//! Fields for the memory values of containers.

use crate::config::fields::access::access;
use crate::config::fields::field_type::{Access, Choice, Field, Kind, Range};
use crate::config::setting::Setting as _;

pub(super) static MODE: Field = Field {
    name: "mode",
    doc: "Whether the plugin writes values or only reports them.",
    kind: Kind::Choice(&[
        Choice {
            value: "enforce",
            meaning: "The plugin sets values and refuses limit decreases that would OOM-kill.",
        },
        Choice {
            value: "observe",
            meaning: "The plugin computes and reports everything, but writes nothing. \
                      Values that the plugin changed before get their originals back.",
        },
    ]),
    null: None,
    unit: "",
    default: Some("enforce"),
    examples: &["observe"],
    is_in_chart: true,
    access: access!(mode),
};

pub(super) static THROTTLING: Field = Field {
    name: "memoryThrottlingFactor",
    doc: "Position of memory.high between the memory request (0) and the limit (1) of a container. \
          The kernel throttles a container above memory.high.",
    kind: Kind::Number(Range { least: 0.0, is_above_least: true, most: 1.0 }),
    null: Some("the plugin never sets memory.high"),
    unit: "",
    default: Some("0.9"),
    examples: &["0.8"],
    is_in_chart: true,
    access: access!(policy.throttling),
};

pub(super) static RESERVATION: Field = Field {
    name: "memoryReservationPolicy",
    doc: "How the kernel protects the memory request of a container. \
          The cgroups above the containers get the sums of the protection below them.",
    kind: Kind::Choice(&[
        Choice { value: "None", meaning: "The plugin protects nothing." },
        Choice {
            value: "TieredReservation",
            meaning: "memory.min is the request in Guaranteed pods, and memory.low is the request \
                      in Burstable pods.",
        },
        Choice { value: "HardReservation", meaning: "memory.min is the request in all pods." },
    ]),
    null: None,
    unit: "",
    default: Some("HardReservation"),
    examples: &["TieredReservation"],
    is_in_chart: true,
    access: access!(policy.reservation),
};

pub(super) static HEADROOM: Field = Field {
    name: "memoryMinHeadroom",
    doc: "Distance of a container's memory.min below its limit. \
          Without this distance, the container's own page cache can cause an OOM kill. \
          The value 0 gives the memory.min of Kubernetes.",
    kind: Kind::Quantity { may_be_zero: true },
    null: None,
    unit: "bytes",
    default: Some("2Mi"),
    examples: &["2Mi"],
    is_in_chart: true,
    access: access!(policy.headroom),
};

pub(super) static ALLOCATABLE: Field = Field {
    name: "nodeAllocatable",
    doc: "Memory that all pods of the node may use together. \
          This amount replaces the limit of containers without a limit. \
          With auto, the plugin reads the amount from the kubelet's configuration, the kubepods \
          cgroup and \
          /proc/meminfo.",
    kind: Kind::QuantityOrAuto,
    null: None,
    unit: "bytes",
    default: Some("auto"),
    examples: &["60Gi"],
    is_in_chart: true,
    access: access!(node_allocatable),
};
