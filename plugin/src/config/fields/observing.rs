//! Fields for warnings, metrics, Events and the log.

use crate::config::fields::access::access;
use crate::config::fields::field_type::{Access, Choice, Field, Kind, Range};
use crate::config::setting::Setting as _;

pub(super) static RATIO: Field = Field {
    name: "maxLimitRequestRatio",
    doc: "Highest ratio of memory limit to memory request without a warning. \
          The plugin sends the warning to the owner of the pod.",
    kind: Kind::Number(Range { least: 1.0, is_above_least: false, most: 1e9 }),
    null: Some("the plugin never warns"),
    unit: "",
    default: Some("4"),
    examples: &["2.5"],
    is_in_chart: true,
    access: access!(max_limit_request_ratio),
};

pub(super) static METRICS_ADDRESS: Field = Field {
    name: "metricsAddress",
    doc: "TCP address that serves metrics. \
          The socket /run/plimsoll/plimsoll.sock also serves metrics at /metrics.",
    kind: Kind::Address,
    null: Some("no TCP address serves metrics"),
    unit: "",
    default: Some("null"),
    examples: &["127.0.0.1:9477"],
    is_in_chart: true,
    access: access!(metrics_address),
};

pub(super) static CONTAINER_METRICS: Field = Field {
    name: "containerMetrics",
    doc: "Whether each container has metrics by name. \
          A container then has about ten series.",
    kind: Kind::Boolean,
    null: None,
    unit: "",
    default: Some("false"),
    examples: &["true"],
    is_in_chart: true,
    access: access!(container_metrics),
};

pub(super) static KUBECONFIG: Field = Field {
    name: "kubeconfig",
    doc: "File with the credentials for Kubernetes Events on pods. \
          deploy/kustomize/base/rbac.yaml has all rights that Events need. \
          The plugin looks for no other kubeconfig.",
    kind: Kind::Path,
    null: Some("the service account of the plugin's pod; outside of a pod, no Events"),
    unit: "",
    default: Some("null"),
    examples: &["/etc/plimsoll/kubeconfig"],
    // With the Helm chart, the plugin uses the service account of its pod instead.
    is_in_chart: false,
    access: access!(kubeconfig),
};

pub(super) static LOG_LEVEL: Field = Field {
    name: "logLevel",
    doc: "Lowest severity that the plugin logs. Each level includes the levels before it.",
    kind: Kind::Choice(&[
        Choice { value: "error", meaning: "Failures." },
        Choice { value: "warn", meaning: "Conditions that may need attention." },
        Choice { value: "info", meaning: "Changes." },
        Choice { value: "debug", meaning: "Every decision." },
        Choice { value: "trace", meaning: "Every message exchanged." },
    ]),
    null: None,
    unit: "",
    default: Some("info"),
    examples: &["debug"],
    is_in_chart: true,
    access: access!(log_level),
};
