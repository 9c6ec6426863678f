//! Fields for throttled containers, resizes and OOM kills.

use crate::config::fields::access::access;
use crate::config::fields::field_type::{Access, Choice, Field, Kind, Range};
use crate::config::setting::Setting as _;

pub(super) static DEADLINE: Field = Field {
    name: "throttleDeadline",
    doc: "Maximum time that a container is stalled at memory.high while the node has free memory. \
          The plugin then raises memory.high in steps. \
          The plugin restores memory.high once the container uses much less.",
    kind: Kind::Duration,
    null: Some("there is no maximum"),
    unit: "ms, s, m, h or d",
    default: Some("30s"),
    examples: &["30s", "2m"],
    is_in_chart: true,
    access: access!(throttle_deadline),
};

pub(super) static SHRINK: Field = Field {
    name: "shrink",
    doc: "Reaction to a memory limit below the usage of a container that reclaim cannot reach.",
    kind: Kind::Choice(&[
        Choice { value: "reject", meaning: "The resize fails with an error and changes nothing." },
        Choice {
            value: "defer",
            meaning: "The rest of the update takes effect, and the limit follows once the \
                      container uses less. Do not use defer with a kubelet. The kubelet then \
                      believes that the resize succeeded, and lowers the pod's cgroup, which \
                      kills the container.",
        },
        Choice {
            value: "allow",
            meaning: "The runtime sets the limit, and the kernel may OOM-kill the container.",
        },
    ]),
    null: None,
    unit: "",
    default: Some("reject"),
    examples: &["allow"],
    is_in_chart: true,
    access: access!(shrink),
};

pub(super) static SHRINK_DEADLINE: Field = Field {
    name: "shrinkDeadline",
    doc: "Maximum time that the plugin retries a deferred limit.",
    kind: Kind::Duration,
    null: None,
    unit: "ms, s, m, h or d",
    default: Some("10m"),
    examples: &["10m"],
    is_in_chart: true,
    access: access!(shrink_deadline),
};

pub(in crate::config) static RESCUE: Field = Field {
    name: "oomRescue",
    doc: "Rules for raising the limit of a container that the kernel OOM-kills repeatedly. \
          Each field inside is optional: {} uses the defaults. \
          The factor must be above 1 or the minimum above 0.",
    kind: Kind::Mapping {
        fields: &[&KILLS, &WINDOW, &FACTOR, &MINIMUM, &CEILING],
        is_complete: false,
    },
    null: Some("the plugin never raises a limit after OOM kills"),
    unit: "",
    default: Some("null"),
    examples: &["{kills: 3, ceiling: 1Gi}"],
    is_in_chart: true,
    access: access!(oom_rescue),
};

static KILLS: Field = Field {
    name: "kills",
    doc: "Number of OOM kills of a container after which the plugin raises its limit.",
    kind: Kind::Count { most: 1000 },
    null: None,
    unit: "OOM kills",
    default: Some("3"),
    examples: &["5"],
    is_in_chart: true,
    access: access!(oom_rescue => kills),
};

static WINDOW: Field = Field {
    name: "window",
    doc: "Time within which the OOM kills count.",
    kind: Kind::Duration,
    null: None,
    unit: "ms, s, m, h or d",
    default: Some("10m"),
    examples: &["10m"],
    is_in_chart: true,
    access: access!(oom_rescue => window),
};

static FACTOR: Field = Field {
    name: "factor",
    doc: "New limit as a multiple of the current limit.",
    kind: Kind::Number(Range { least: 1.0, is_above_least: false, most: 10.0 }),
    null: None,
    unit: "",
    default: Some("1.2"),
    examples: &["1.5"],
    is_in_chart: true,
    access: access!(oom_rescue => factor),
};

static MINIMUM: Field = Field {
    name: "minimum",
    doc: "Smallest increase of the limit.",
    kind: Kind::Quantity { may_be_zero: true },
    null: None,
    unit: "bytes",
    default: Some("100Mi"),
    examples: &["100Mi"],
    is_in_chart: true,
    access: access!(oom_rescue => minimum),
};

static CEILING: Field = Field {
    name: "ceiling",
    doc: "Highest raised limit. \
          A share is the largest increase in percent of the node allocatable memory that no pod \
          requests.",
    kind: Kind::QuantityOrShare,
    null: None,
    unit: "bytes or percent",
    default: Some("10%"),
    examples: &["1Gi"],
    is_in_chart: true,
    access: access!(oom_rescue => ceiling),
};

pub(in crate::config) static RAISE: Field = Field {
    name: "raisePodLimits",
    doc: "Whether the plugin raises the limits of a pod to the sum of its containers' limits. \
          A resize can leave the pod's limits behind. oomRescue needs true.",
    kind: Kind::Boolean,
    null: None,
    unit: "",
    default: Some("true"),
    examples: &["false"],
    is_in_chart: true,
    access: access!(raise_pod_limits),
};
