//! Fields for changes by other programs and for the automatic brake.

use crate::config::fields::access::access;
use crate::config::fields::field_type::{Access, Field, Kind};
use crate::config::setting::Setting as _;

pub(super) static REPAIR: Field = Field {
    name: "repair",
    doc: "Whether the plugin restores a value that another program changed. \
          With false, the foreign value stays until the desired value of the cgroup changes.",
    kind: Kind::Boolean,
    null: None,
    unit: "",
    default: Some("true"),
    examples: &["false"],
    is_in_chart: true,
    access: access!(repair),
};

pub(super) static BRAKE: Field = Field {
    name: "brake",
    doc: "Bounds above which the plugin stops writing, as in observe mode. \
          'plimsoll reset-brake' lets the plugin write again. \
          Each field inside is optional.",
    kind: Kind::Mapping { fields: &[&REPAIRS, &CONFLICTS, &KILLS, &WINDOW], is_complete: false },
    null: Some("the plugin never stops by itself"),
    unit: "",
    default: Some("{repairs: 500, conflicts: 50, kills: 20, window: 10m}"),
    examples: &["{repairs: 500}"],
    is_in_chart: true,
    access: access!(brake),
};

static REPAIRS: Field = Field {
    name: "repairs",
    doc: "Maximum number of values that the plugin restores after other programs changed them.",
    kind: Kind::Count { most: 1_000_000 },
    null: None,
    unit: "repairs",
    default: Some("500"),
    examples: &["100"],
    is_in_chart: true,
    access: access!(brake => repairs),
};

static CONFLICTS: Field = Field {
    name: "conflicts",
    doc: "Maximum number of values that the plugin leaves to another writer.",
    kind: Kind::Count { most: 1_000_000 },
    null: None,
    unit: "conflicts",
    default: Some("50"),
    examples: &["10"],
    is_in_chart: true,
    access: access!(brake => conflicts),
};

static KILLS: Field = Field {
    name: "kills",
    doc: "Maximum number of OOM kills by limits that the plugin has set. \
          These are the limit of nodeGuard, and a deferred limit shortly after the plugin set it.",
    kind: Kind::Count { most: 1_000_000 },
    null: None,
    unit: "OOM kills",
    default: Some("20"),
    examples: &["5"],
    is_in_chart: true,
    access: access!(brake => kills),
};

static WINDOW: Field = Field {
    name: "window",
    doc: "Time within which the repairs, conflicts and kills count.",
    kind: Kind::Duration,
    null: None,
    unit: "ms, s, m, h or d",
    default: Some("10m"),
    examples: &["10m"],
    is_in_chart: true,
    access: access!(brake => window),
};
