//! Configuration file in YAML. Fields that `KubeletConfiguration` also has use its names.
//!
//! ```yaml
//! mode: enforce                            # enforce; or observe: only report, write nothing
//! memoryThrottlingFactor: 0.9              # above 0, at most 1; null: never set memory.high
//! memoryReservationPolicy: HardReservation # None, TieredReservation or HardReservation
//! memoryMinHeadroom: 2Mi                   # how far memory.min stays below the limit;
//!                                          #   0: as in Kubernetes
//! nodeAllocatable: auto                    # auto or a quantity, such as 60Gi
//! systemReservedCgroup: /system.slice      # cgroup to protect; not set by default
//! systemReserved: {memory: 500Mi}          # memory.min of that cgroup; not set by default
//! kubeReservedCgroup: /kubelet.slice       # cgroup to protect; not set by default
//! kubeReserved: {memory: 500Mi}            # memory.min of that cgroup; not set by default
//! nodeGuard: null                          # memory kept from all pods together, such as 500Mi;
//!                                          #   null: none
//! throttleDeadline: 30s                    # how long a container may be throttled at
//!                                          #   memory.high; null: no maximum
//! shrink: reject                           # reject, defer or allow limits that would OOM-kill
//! shrinkDeadline: 10m                      # how long a deferred limit is retried
//! oomRescue: null                          # null: off; {} or a mapping of these fields: on
//! # kills: 3                               #   OOM kills of a container
//! # window: 10m                            #   within this time before its limit is raised
//! # factor: 1.2                            #   new limit as multiple of the old, from 1 to 10
//! # minimum: 100Mi                         #   smallest limit increase
//! # ceiling: 10%                           #   highest limit as a quantity, or largest increase
//!                                          #   as a share of the free node allocatable
//! raisePodLimits: true                     # whether pod limits are raised to the sum of the
//!                                          #   limits of the pod's containers
//! repair: true                             # whether foreign changes of a value are repaired
//! brake:                                   # the plugin stops writing above any of these
//!                                          #   bounds; null: never
//!   repairs: 500                           #   repairs
//!   conflicts: 50                          #   values left to another writer
//!   kills: 20                              #   OOM kills by limits that the plugin has set
//!   window: 10m                            #   time within which these count
//! maxLimitRequestRatio: 4                  # highest ratio of limit to request without a
//!                                          #   warning, at least 1; null: no warning
//! metricsAddress: null                     # TCP address for metrics, such as 127.0.0.1:9477;
//!                                          #   null: none
//! containerMetrics: false                  # whether each container has metrics
//! kubeconfig: null                         # credentials for Kubernetes Events, such as
//!                                          #   /etc/plimsoll/kubeconfig; null: the service
//!                                          #   account of the plugin's pod, if any
//! logLevel: info                           # error, warn, info, debug or trace
//! ```
//!
//! Every field is optional, and an empty file is valid. If the file becomes empty while the plugin
//! runs, the configuration in force stays. [`Config::parse`] reports every mistake at once.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use plimsoll_core::pod::CgroupPath;
use plimsoll_core::policy::rescue::{Ceiling, OomRescue};
use plimsoll_core::policy::{Policy, ReservationPolicy, ThrottlingFactor};
use plimsoll_core::units::{Bytes, excerpt};
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_saphyr::options::{DuplicateKeyPolicy, MergeKeyPolicy, NonFiniteFloatPolicy};
use serde_saphyr::{Deserializer, Options, Spanned};
use thiserror::Error;

use crate::state::brake::Bounds;

/// Directory where runtimes look for the configuration of plugins.
pub const DROP_INS: &str = "/etc/nri/conf.d";

/// Maximum size of a configuration in bytes.
pub const LARGEST: usize = 1 << 20;

/// A valid configuration. A file with mistakes never yields one.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Whether the plugin writes values, or only reports them.
    pub mode: Mode,
    /// Throttling and reservation.
    pub policy: Policy,
    /// Source of node allocatable.
    pub node_allocatable: NodeAllocatable,
    /// Cgroups beside the pods that `memory.min` protects: those of the system and of Kubernetes
    /// itself.
    pub reserved: Vec<Reserved>,
    /// Memory kept from all pods together, by `memory.max` of kubepods. At least the sum of
    /// `reserved`; `None` keeps nothing.
    pub node_guard: Option<Bytes>,
    /// Maximum time that a container is throttled at `memory.high` while the node has memory to
    /// spare. `None` is no maximum.
    pub throttle_deadline: Option<Duration>,
    /// Reaction to a memory limit that would OOM-kill.
    pub shrink: Shrink,
    /// Maximum time that a deferred limit is retried.
    pub shrink_deadline: Duration,
    /// Rules for raising the limit of a container that is OOM-killed repeatedly; `None` never
    /// raises it.
    pub oom_rescue: Option<OomRescue>,
    /// Whether a pod's limits are raised to the sum of its containers' limits.
    pub raise_pod_limits: bool,
    /// Whether the plugin repairs a value that another program changed.
    pub repair: bool,
    /// Bounds above which the plugin stops writing by itself; `None` is never.
    pub brake: Option<Bounds>,
    /// Highest ratio of limit to request without a warning to the pod's owner; `None` never warns.
    pub max_limit_request_ratio: Option<f64>,
    /// TCP address that serves metrics; `None` is none.
    pub metrics_address: Option<SocketAddr>,
    /// Whether each container has metrics.
    pub container_metrics: bool,
    /// Absolute path of the file with the credentials for Kubernetes Events. `None` uses the
    /// service account of the plugin's pod. Outside of a pod, `None` disables Events.
    pub kubeconfig: Option<PathBuf>,
    /// Lowest severity that is logged.
    pub log_level: LogLevel,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            policy: Policy::default(),
            node_allocatable: NodeAllocatable::default(),
            reserved: Vec::new(),
            node_guard: None,
            throttle_deadline: Some(Self::THROTTLE_DEADLINE),
            shrink: Shrink::default(),
            shrink_deadline: Self::SHRINK_DEADLINE,
            oom_rescue: None,
            raise_pod_limits: true,
            repair: true,
            brake: Some(Bounds::default()),
            max_limit_request_ratio: Some(Self::MAX_LIMIT_REQUEST_RATIO),
            metrics_address: None,
            container_metrics: false,
            kubeconfig: None,
            log_level: LogLevel::default(),
        }
    }
}

/// Mode of the plugin: whether it acts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The plugin sets values, and refuses limit decreases that would OOM-kill.
    #[default]
    Enforce,
    /// The plugin only reports what it would do. It does not write, refuse, raise or adjust
    /// anything.
    Observe,
}

impl Mode {
    /// All modes.
    pub const ALL: [Self; 2] = [Self::Enforce, Self::Observe];
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Enforce => "enforce",
            Self::Observe => "observe",
        })
    }
}

/// Reaction to a memory limit below the container's usage that immediate reclaim cannot reach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shrink {
    /// The resize fails with an error.
    #[default]
    Reject,
    /// The rest of the update is made. The plugin sets the limit once the container uses less.
    Defer,
    /// The plugin does not intervene. The runtime sets the limit, and the kernel may OOM-kill.
    Allow,
}

impl Shrink {
    const ALL: [Self; 3] = [Self::Reject, Self::Defer, Self::Allow];
}

impl fmt::Display for Shrink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reject => "reject",
            Self::Defer => "defer",
            Self::Allow => "allow",
        })
    }
}

/// A cgroup beside the pods and its protection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// Owner of the reservation.
    pub owner: Owner,
    /// Path of the cgroup.
    pub cgroup: CgroupPath,
    /// `memory.min` of the cgroup, more than 0.
    pub memory: Bytes,
}

/// Owner of a reservation beside the pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The operating system (`systemReserved`).
    System,
    /// The kubelet and the container runtime (`kubeReserved`).
    Kube,
}

impl Owner {
    const ALL: [Self; 2] = [Self::System, Self::Kube];

    /// Returns the names of the fields for the cgroup and for the amount, as the kubelet names
    /// them.
    const fn fields(self) -> (&'static str, &'static str) {
        match self {
            Self::System => (SYSTEM_CGROUP, SYSTEM_RESERVED),
            Self::Kube => (KUBE_CGROUP, KUBE_RESERVED),
        }
    }
}

/// Source of node allocatable memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NodeAllocatable {
    /// Found on the node itself: [`crate::kubelet::node::NodeMemory::discover`].
    #[default]
    Auto,
    /// A fixed amount, more than 0.
    Fixed(Bytes),
}

/// Lowest severity that is logged. Each level includes the levels before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Failures.
    Error,
    /// Conditions that may need attention.
    Warn,
    /// Changes.
    #[default]
    Info,
    /// Every decision.
    Debug,
    /// Every message exchanged.
    Trace,
}

impl LogLevel {
    const ALL: [Self; 5] = [Self::Error, Self::Warn, Self::Info, Self::Debug, Self::Trace];

    /// Returns the name in the configuration, which the `tracing` crate also uses.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// Writes the effective configuration as an equivalent file.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{MODE}: {}", self.mode)?;
        match self.policy.throttling {
            // Always write a decimal point, as in the documentation.
            Some(factor) => writeln!(f, "{THROTTLING}: {:?}", factor.get())?,
            None => writeln!(f, "{THROTTLING}: null")?,
        }
        writeln!(f, "{RESERVATION}: {}", self.policy.reservation)?;
        writeln!(f, "{HEADROOM}: {}", self.policy.headroom.quantity())?;
        match self.node_allocatable {
            NodeAllocatable::Auto => writeln!(f, "{ALLOCATABLE}: auto")?,
            NodeAllocatable::Fixed(bytes) => writeln!(f, "{ALLOCATABLE}: {}", bytes.quantity())?,
        }
        for Reserved { owner, cgroup, memory } in &self.reserved {
            let (cgroup_field, memory_field) = owner.fields();
            // A cgroup's name may contain any character. Quote the name as JSON, which is valid
            // YAML.
            writeln!(f, "{cgroup_field}: {}", serde_json::Value::from(cgroup.to_string()))?;
            writeln!(f, "{memory_field}: {{memory: {}}}", memory.quantity())?;
        }
        match self.node_guard {
            Some(kept) => writeln!(f, "{GUARD}: {}", kept.quantity())?,
            None => writeln!(f, "{GUARD}: null")?,
        }
        match self.throttle_deadline {
            Some(deadline) => writeln!(f, "{DEADLINE}: {}", humantime::format_duration(deadline))?,
            None => writeln!(f, "{DEADLINE}: null")?,
        }
        writeln!(f, "{SHRINK}: {}", self.shrink)?;
        writeln!(f, "{SHRINK_DEADLINE}: {}", humantime::format_duration(self.shrink_deadline))?;
        match &self.oom_rescue {
            Some(OomRescue { kills, window, factor, minimum, ceiling }) => {
                let (window, minimum) = (humantime::format_duration(*window), minimum.quantity());
                writeln!(
                    f,
                    "{RESCUE}: {{{KILLS}: {kills}, {WINDOW}: {window}, {FACTOR}: {factor:?}, {MINIMUM}: {minimum}, \
                     {CEILING}: {ceiling}}}"
                )?;
            }
            None => writeln!(f, "{RESCUE}: null")?,
        }
        writeln!(f, "{RAISE}: {}", self.raise_pod_limits)?;
        writeln!(f, "{REPAIR}: {}", self.repair)?;
        match &self.brake {
            Some(Bounds { repairs, conflicts, kills, window }) => {
                let window = humantime::format_duration(*window);
                writeln!(
                    f,
                    "{BRAKE}: {{{REPAIRS}: {repairs}, {CONFLICTS}: {conflicts}, {KILLS}: {kills}, {WINDOW}: {window}}}"
                )?;
            }
            None => writeln!(f, "{BRAKE}: null")?,
        }
        match self.max_limit_request_ratio {
            Some(ratio) => writeln!(f, "{RATIO}: {ratio:?}")?,
            None => writeln!(f, "{RATIO}: null")?,
        }
        match self.metrics_address {
            // Quotes are needed for the brackets of IPv6.
            Some(address) => writeln!(f, "{METRICS_ADDRESS}: \"{address}\"")?,
            None => writeln!(f, "{METRICS_ADDRESS}: null")?,
        }
        writeln!(f, "{CONTAINER_METRICS}: {}", self.container_metrics)?;
        match &self.kubeconfig {
            // Quote as JSON, as above.
            Some(path) => {
                writeln!(f, "{KUBECONFIG}: {}", serde_json::Value::from(path.to_string_lossy()))?
            }
            None => writeln!(f, "{KUBECONFIG}: null")?,
        }
        writeln!(f, "{LOG_LEVEL}: {}", self.log_level.as_str())
    }
}

const MODE: &str = "mode";
const THROTTLING: &str = "memoryThrottlingFactor";
const RESERVATION: &str = "memoryReservationPolicy";
const ALLOCATABLE: &str = "nodeAllocatable";
const HEADROOM: &str = "memoryMinHeadroom";
const SYSTEM_CGROUP: &str = "systemReservedCgroup";
const SYSTEM_RESERVED: &str = "systemReserved";
const KUBE_CGROUP: &str = "kubeReservedCgroup";
const KUBE_RESERVED: &str = "kubeReserved";
const GUARD: &str = "nodeGuard";
const DEADLINE: &str = "throttleDeadline";
const SHRINK: &str = "shrink";
const SHRINK_DEADLINE: &str = "shrinkDeadline";
const RESCUE: &str = "oomRescue";
const RAISE: &str = "raisePodLimits";
const REPAIR: &str = "repair";
const BRAKE: &str = "brake";
const RATIO: &str = "maxLimitRequestRatio";
const METRICS_ADDRESS: &str = "metricsAddress";
const CONTAINER_METRICS: &str = "containerMetrics";
const KUBECONFIG: &str = "kubeconfig";
const LOG_LEVEL: &str = "logLevel";
const FIELDS: [&str; 22] = [
    MODE,
    THROTTLING,
    RESERVATION,
    HEADROOM,
    ALLOCATABLE,
    SYSTEM_CGROUP,
    SYSTEM_RESERVED,
    KUBE_CGROUP,
    KUBE_RESERVED,
    GUARD,
    DEADLINE,
    SHRINK,
    SHRINK_DEADLINE,
    RESCUE,
    RAISE,
    REPAIR,
    BRAKE,
    RATIO,
    METRICS_ADDRESS,
    CONTAINER_METRICS,
    KUBECONFIG,
    LOG_LEVEL,
];

/// Fields of `brake`, which also has [`KILLS`] and [`WINDOW`].
const REPAIRS: &str = "repairs";
const CONFLICTS: &str = "conflicts";

/// Fields of `oomRescue`.
const KILLS: &str = "kills";
const WINDOW: &str = "window";
const FACTOR: &str = "factor";
const MINIMUM: &str = "minimum";
const CEILING: &str = "ceiling";

impl Config {
    /// Default of `throttleDeadline`.
    pub const THROTTLE_DEADLINE: Duration = Duration::from_secs(30);

    /// Default of `shrinkDeadline`.
    pub const SHRINK_DEADLINE: Duration = Duration::from_secs(600);

    /// Default of `maxLimitRequestRatio`.
    pub const MAX_LIMIT_REQUEST_RATIO: f64 = 4.0;

    /// Returns the sum of `reserved`.
    pub fn reserved_in_all(&self) -> Bytes {
        self.reserved.iter().fold(Bytes::ZERO, |sum, reserved| sum.saturating_add(reserved.memory))
    }

    /// Parses a configuration. `source` names the configuration in messages, usually by its path.
    ///
    /// # Errors
    ///
    /// All mistakes, in the order of their lines:
    ///
    /// - unknown or repeated fields
    /// - values of the wrong type or out of range
    /// - text that is not YAML or not UTF-8
    /// - text larger than [`LARGEST`]
    pub fn parse(text: &[u8], source: &str) -> Result<Self, ConfigErrors> {
        let errors = |errors| ConfigErrors { source_name: source.to_owned(), errors };
        if text.len() > LARGEST {
            return Err(errors(vec![FieldError {
                line: 1,
                field: None,
                expected: format!("at most {LARGEST} bytes"),
                found: format!("{} bytes", text.len()),
            }]));
        }
        let text = std::str::from_utf8(text).map_err(|error| {
            let line =
                1 + text[..error.valid_up_to()].iter().filter(|&&byte| byte == b'\n').count();
            errors(vec![FieldError {
                line: line as u64,
                field: None,
                expected: "UTF-8 text".to_owned(),
                found: format!("byte 0x{:02x}", text[error.valid_up_to()]),
            }])
        })?;
        let (raw, syntax) = RawConfig::read(text);
        let (config, mut found) = raw.validate();
        found.extend(syntax);
        if found.is_empty() {
            Ok(config)
        } else {
            // Parsing stops at a syntax error, so the syntax error is already the last mistake.
            Err(errors(found))
        }
    }
}

/// All mistakes in a configuration. `Display` writes one line for each.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub struct ConfigErrors {
    /// Name of the configuration, as passed to [`Config::parse`].
    pub source_name: String,
    /// Mistakes in the order of their lines. Never empty.
    pub errors: Vec<FieldError>,
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.errors.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{}:{error}", self.source_name)?;
        }
        Ok(())
    }
}

/// One mistake in a configuration. `Display` writes `LINE: field: expected …, found …`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// Line number, from 1.
    pub line: u64,
    /// Field of the mistake; `None` outside of a field.
    pub field: Option<String>,
    /// Form that was expected.
    pub expected: String,
    /// Text that was found.
    pub found: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.line)?;
        if let Some(field) = &self.field {
            write!(f, "{field}: ")?;
        }
        write!(f, "expected {}, found {}", self.expected, self.found)
    }
}

/// Unchecked configuration: the fields in the order of the file, including unknown and repeated
/// fields.
#[derive(Default)]
struct RawConfig(Vec<(Spanned<String>, Spanned<RawValue>)>);

impl RawConfig {
    /// Reads the fields up to the first YAML error, and returns that error.
    fn read(text: &str) -> (Self, Option<FieldError>) {
        let mut raw = Self::default();
        let result = serde_saphyr::with_deserializer_from_str_with_options(
            text,
            options(),
            |deserializer: Deserializer<'_, '_>| (&mut raw).deserialize(deserializer),
        );
        let error = result.err().map(|error| {
            let error = error.without_snippet();
            FieldError {
                line: error.location().map_or(1, |location| location.line().max(1)),
                field: None,
                expected: "one 'field: value' a line, in YAML".to_owned(),
                found: excerpt(complaint(&error.to_string())),
            }
        });
        (raw, error)
    }

    /// Converts the fields into a configuration. Fields with mistakes are reported and keep their
    /// defaults.
    fn validate(self) -> (Config, Vec<FieldError>) {
        let mut config = Config::default();
        let mut errors = Vec::new();
        let mut seen: Vec<(String, u64)> = Vec::new();
        let mut cgroups: Vec<(&str, CgroupPath)> = Vec::new();
        let mut amounts: Vec<(&str, Bytes)> = Vec::new();
        for (key, value) in self.0 {
            let (field, line) = (key.value, key.referenced.line().max(1));
            let mut wrong = |expected: String, found: String| {
                errors.push(FieldError { line, field: Some(excerpt(&field)), expected, found });
            };
            if let Some((_, first)) = seen.iter().find(|(name, _)| *name == field) {
                wrong("each field once".to_owned(), format!("it again after line {first}"));
                continue;
            }
            let value = value.value;
            match field.as_str() {
                MODE => match value.one_of(Mode::ALL) {
                    Some(mode) => config.mode = mode,
                    None => wrong("enforce or observe".to_owned(), value.to_string()),
                },
                THROTTLING => match value.throttling() {
                    Some(throttling) => config.policy.throttling = throttling,
                    None => wrong("a number above 0 and at most 1, or null".to_owned(), value.to_string()),
                },
                RESERVATION => match value.one_of(ReservationPolicy::ALL) {
                    Some(reservation) => config.policy.reservation = reservation,
                    None => wrong("None, TieredReservation or HardReservation".to_owned(), value.to_string()),
                },
                ALLOCATABLE => match value.node_allocatable() {
                    Some(allocatable) => config.node_allocatable = allocatable,
                    None => wrong("auto, or a quantity above 0 such as 60Gi".to_owned(), value.to_string()),
                },
                HEADROOM => match value.quantity() {
                    Some(headroom) => config.policy.headroom = headroom,
                    None => wrong("a quantity such as 2Mi, or 0".to_owned(), value.to_string()),
                },
                SYSTEM_CGROUP | KUBE_CGROUP => match value.cgroup() {
                    Some(cgroup) => {
                        cgroups.push((if field == KUBE_CGROUP { KUBE_CGROUP } else { SYSTEM_CGROUP }, cgroup))
                    }
                    None => wrong(
                        "the path of a cgroup, such as /system.slice, beneath the root and without . or ..".to_owned(),
                        value.to_string(),
                    ),
                },
                SYSTEM_RESERVED | KUBE_RESERVED => match value.memory() {
                    Some(amount) => {
                        amounts.push((if field == KUBE_RESERVED { KUBE_RESERVED } else { SYSTEM_RESERVED }, amount));
                    }
                    None => wrong(
                        "a mapping with a quantity above 0, such as {memory: 500Mi}".to_owned(),
                        value.to_string(),
                    ),
                },
                GUARD => match value {
                    RawValue::Null => config.node_guard = None,
                    value => match value.quantity() {
                        Some(kept) if kept > Bytes::ZERO => config.node_guard = Some(kept),
                        _ => wrong("a quantity above 0 such as 500Mi, or null".to_owned(), value.to_string()),
                    },
                },
                DEADLINE => match value.duration() {
                    Some(deadline) => config.throttle_deadline = deadline,
                    None => wrong("a time above 0 such as 30s or 2m, or null".to_owned(), value.to_string()),
                },
                SHRINK => match value.one_of(Shrink::ALL) {
                    Some(shrink) => config.shrink = shrink,
                    None => wrong("reject, defer or allow".to_owned(), value.to_string()),
                },
                SHRINK_DEADLINE => match value.duration() {
                    Some(Some(deadline)) => config.shrink_deadline = deadline,
                    _ => wrong("a time above 0 such as 10m".to_owned(), value.to_string()),
                },
                RESCUE => match value.oom_rescue() {
                    Ok(rescue) => config.oom_rescue = rescue,
                    Err((expected, found)) => wrong(expected, found),
                },
                RAISE | REPAIR | CONTAINER_METRICS => match value {
                    RawValue::Bool(is_so) => match field.as_str() {
                        RAISE => config.raise_pod_limits = is_so,
                        REPAIR => config.repair = is_so,
                        _ => config.container_metrics = is_so,
                    },
                    value => wrong("true or false".to_owned(), value.to_string()),
                },
                BRAKE => match value.brake() {
                    Ok(brake) => config.brake = brake,
                    Err((expected, found)) => wrong(expected, found),
                },
                RATIO => match value {
                    RawValue::Null => config.max_limit_request_ratio = None,
                    RawValue::Number { value: ratio, .. } if (1.0..=1e9).contains(&ratio) => {
                        config.max_limit_request_ratio = Some(ratio);
                    }
                    value => wrong("a number of at least 1, or null".to_owned(), value.to_string()),
                },
                METRICS_ADDRESS => match &value {
                    RawValue::Null => config.metrics_address = None,
                    RawValue::Text(text) if text.parse::<SocketAddr>().is_ok() => {
                        config.metrics_address = text.parse().ok();
                    }
                    value => {
                        wrong("an address and a port such as 127.0.0.1:9477, or null".to_owned(), value.to_string())
                    }
                },
                KUBECONFIG => match &value {
                    RawValue::Null => config.kubeconfig = None,
                    RawValue::Text(text) if text.starts_with('/') && !text.contains('\0') => {
                        config.kubeconfig = Some(text.into());
                    }
                    value => wrong(
                        "an absolute path such as /etc/plimsoll/kubeconfig, or null".to_owned(),
                        value.to_string(),
                    ),
                },
                LOG_LEVEL => match value.one_of(LogLevel::ALL) {
                    Some(level) => config.log_level = level,
                    None => wrong("error, warn, info, debug or trace".to_owned(), value.to_string()),
                },
                unknown => {
                    let expected = match nearest_field(unknown) {
                        Some(nearest) => format!("{nearest} (did you mean that?)"),
                        None => format!("one of {}", FIELDS.join(", ")),
                    };
                    wrong(expected, "an unknown field".to_owned());
                }
            }
            seen.push((field, line));
        }
        for owner in Owner::ALL {
            let (cgroup_field, memory_field) = owner.fields();
            let cgroup = cgroups.iter().find(|(field, _)| *field == cgroup_field);
            let memory = amounts.iter().find(|(field, _)| *field == memory_field);
            let line =
                |field: &str| seen.iter().find(|(name, _)| name == field).map(|(_, line)| *line);
            let mut alone = |field: &str, other: &str| {
                // If the other field exists but is invalid, its own mistake is already reported.
                if let (Some(line), None) = (line(field), line(other)) {
                    let (field, found) = (Some(field.to_owned()), "none".to_owned());
                    errors.push(FieldError {
                        line,
                        field,
                        expected: format!("{other} beside it"),
                        found,
                    });
                }
            };
            match (cgroup, memory) {
                (Some((_, cgroup)), Some((_, memory))) => {
                    config.reserved.push(Reserved {
                        owner,
                        cgroup: cgroup.clone(),
                        memory: *memory,
                    });
                }
                (Some(_), None) => alone(cgroup_field, memory_field),
                (None, Some(_)) => alone(memory_field, cgroup_field),
                (None, None) => {}
            }
        }
        let reserved = config.reserved_in_all();
        if let (Some(kept), Some((_, line))) =
            (config.node_guard, seen.iter().find(|(name, _)| name == GUARD))
            && kept < reserved
        {
            errors.push(FieldError {
                line: *line,
                field: Some(GUARD.to_owned()),
                expected: format!(
                    "at least what {SYSTEM_RESERVED} and {KUBE_RESERVED} add up to, {}",
                    reserved.quantity()
                ),
                found: kept.quantity(),
            });
        }
        if let (Some(_), false, Some((_, line))) = (
            &config.oom_rescue,
            config.raise_pod_limits,
            seen.iter().find(|(name, _)| name == RAISE),
        ) {
            // A pod's limit also bounds its containers, so a rescue must raise both limits.
            let (expected, found) =
                (format!("true beside {RESCUE}, which raises both limits"), "false".to_owned());
            errors.push(FieldError { line: *line, field: Some(RAISE.to_owned()), expected, found });
        }
        errors.sort_by_key(|error| error.line);
        (config, errors)
    }
}

fn options() -> Options {
    serde_saphyr::options! {
        // Repeated fields arrive one by one, so that `validate` reports them with all other
        // mistakes.
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        merge_keys: MergeKeyPolicy::AsOrdinary,
        // Read "no", "on" and similar words as text.
        strict_booleans: true,
        with_snippet: false,
        // Read .nan and .inf as numbers out of range, not as broken YAML.
        non_finite_float_policy: NonFiniteFloatPolicy::PassThrough,
    }
}

fn nearest_field(unknown: &str) -> Option<&'static str> {
    FIELDS
        .into_iter()
        .map(|field| {
            (
                strsim::damerau_levenshtein(
                    &field.to_lowercase(),
                    &excerpt(unknown).to_lowercase(),
                ),
                field,
            )
        })
        // A difference of more than half of a short name is not a typing error.
        .filter(|(distance, field)| *distance <= 4.min(field.len() / 2))
        .min()
        .map(|(_, field)| field)
}

/// Returns the mistake from a message of the YAML library, without position and advice.
pub(crate) fn complaint(message: &str) -> &str {
    let line = message.lines().next().unwrap_or_default();
    let end = [" at line ", ", expected ", ";"]
        .iter()
        .filter_map(|end| line.find(end))
        .min()
        .unwrap_or(line.len());
    line[..end].trim()
}

/// Collects fields into the caller's list, which keeps the fields before a syntax error.
impl<'de> DeserializeSeed<'de> for &mut RawConfig {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for &mut RawConfig {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("fields")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_none<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_some<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key()? {
            let value = map.next_value()?;
            self.0.push((key, value));
        }
        Ok(())
    }
}

/// An unchecked value.
#[derive(Clone, Debug, PartialEq)]
enum RawValue {
    Null,
    Bool(bool),
    Number { text: String, value: f64 },
    Text(String),
    List,
    Map(Vec<(String, RawValue)>),
}

impl RawValue {
    fn throttling(&self) -> Option<Option<ThrottlingFactor>> {
        match self {
            Self::Null => Some(None),
            Self::Number { value, .. } => ThrottlingFactor::new(*value).map(Some),
            _ => None,
        }
    }

    fn duration(&self) -> Option<Option<Duration>> {
        match self {
            Self::Null => Some(None),
            Self::Text(text) => humantime::parse_duration(text)
                .ok()
                .filter(|duration| !duration.is_zero())
                .map(Some),
            _ => None,
        }
    }

    fn quantity(&self) -> Option<Bytes> {
        match self {
            Self::Text(text) | Self::Number { text, .. } => Bytes::from_quantity(text).ok(),
            _ => None,
        }
    }

    fn node_allocatable(&self) -> Option<NodeAllocatable> {
        match self {
            Self::Text(text) if text == "auto" => Some(NodeAllocatable::Auto),
            _ => self.quantity().filter(|bytes| *bytes > Bytes::ZERO).map(NodeAllocatable::Fixed),
        }
    }

    fn cgroup(&self) -> Option<CgroupPath> {
        let Self::Text(text) = self else { return None };
        if text.contains(':') {
            return None;
        }
        CgroupPath::of_parent(text).ok()
    }

    /// Returns the amount of a Kubernetes resource list that has no resource but memory.
    fn memory(&self) -> Option<Bytes> {
        let Self::Map(fields) = self else { return None };
        match &fields[..] {
            [(name, value)] if name == "memory" => {
                value.quantity().filter(|bytes| *bytes > Bytes::ZERO)
            }
            _ => None,
        }
    }

    /// Returns the OOM rescue. The error has the expected form and the value found.
    fn oom_rescue(&self) -> Result<Option<OomRescue>, (String, String)> {
        let fields = match self {
            Self::Null => return Ok(None),
            Self::Map(fields) => fields,
            other => {
                return Err((
                    "null, or a mapping such as {kills: 3, ceiling: 1Gi}".to_owned(),
                    other.to_string(),
                ));
            }
        };
        let mut rescue = OomRescue::default();
        for (index, (field, value)) in fields.iter().enumerate() {
            let wrong = |expected: &str| Err((format!("{field}: {expected}"), value.to_string()));
            if fields[..index].iter().any(|(other, _)| other == field) {
                return Err(("each field once".to_owned(), format!("'{}' again", excerpt(field))));
            }
            match (field.as_str(), value) {
                (KILLS, Self::Number { value: kills, .. })
                    if kills.fract() == 0.0 && (1.0..=1000.0).contains(kills) =>
                {
                    rescue.kills = *kills as u32;
                }
                (KILLS, _) => return wrong("a number from 1 to 1000"),
                (WINDOW, value) => match value.duration() {
                    Some(Some(window)) => rescue.window = window,
                    _ => return wrong("a time above 0 such as 10m"),
                },
                (FACTOR, Self::Number { value: factor, .. }) if (1.0..=10.0).contains(factor) => {
                    rescue.factor = *factor
                }
                (FACTOR, _) => return wrong("a number from 1 to 10"),
                (MINIMUM, value) => match value.quantity() {
                    Some(minimum) => rescue.minimum = minimum,
                    None => return wrong("a quantity such as 100Mi, or 0"),
                },
                (CEILING, value) => match value.ceiling() {
                    Some(ceiling) => rescue.ceiling = ceiling,
                    None => {
                        return wrong("a quantity above 0 such as 1Gi, or a share from 1% to 100%");
                    }
                },
                (unknown, _) => {
                    let known = [KILLS, WINDOW, FACTOR, MINIMUM, CEILING].join(", ");
                    return Err((
                        format!("no other fields than {known}"),
                        format!("'{}'", excerpt(unknown)),
                    ));
                }
            }
        }
        if rescue.factor <= 1.0 && rescue.minimum == Bytes::ZERO {
            return Err((
                "a factor above 1, or a minimum above 0".to_owned(),
                "neither".to_owned(),
            ));
        }
        Ok(Some(rescue))
    }

    /// Returns the bounds of the brake. The error has the expected form and the value found.
    fn brake(&self) -> Result<Option<Bounds>, (String, String)> {
        let fields = match self {
            Self::Null => return Ok(None),
            Self::Map(fields) => fields,
            other => {
                return Err((
                    "null, or a mapping such as {repairs: 500}".to_owned(),
                    other.to_string(),
                ));
            }
        };
        let mut bounds = Bounds::default();
        for (index, (field, value)) in fields.iter().enumerate() {
            if fields[..index].iter().any(|(other, _)| other == field) {
                return Err(("each field once".to_owned(), format!("'{}' again", excerpt(field))));
            }
            let bound = match field.as_str() {
                REPAIRS => &mut bounds.repairs,
                CONFLICTS => &mut bounds.conflicts,
                KILLS => &mut bounds.kills,
                WINDOW => {
                    let expected =
                        || (format!("{field}: a time above 0 such as 10m"), value.to_string());
                    bounds.window = value.duration().flatten().ok_or_else(expected)?;
                    continue;
                }
                unknown => {
                    let known = [REPAIRS, CONFLICTS, KILLS, WINDOW].join(", ");
                    return Err((
                        format!("no other fields than {known}"),
                        format!("'{}'", excerpt(unknown)),
                    ));
                }
            };
            match value {
                Self::Number { value, .. }
                    if value.fract() == 0.0 && (1.0..=1e6).contains(value) =>
                {
                    *bound = *value as u32;
                }
                value => {
                    return Err((
                        format!("{field}: a number from 1 to 1000000"),
                        value.to_string(),
                    ));
                }
            }
        }
        Ok(Some(bounds))
    }

    fn ceiling(&self) -> Option<Ceiling> {
        let share = match self {
            Self::Text(text) => text.strip_suffix('%'),
            _ => None,
        };
        match share {
            Some(share) => {
                share.parse().ok().filter(|share| (1..=100).contains(share)).map(Ceiling::Share)
            }
            None => self.quantity().filter(|bytes| *bytes > Bytes::ZERO).map(Ceiling::Limit),
        }
    }

    fn one_of<T: fmt::Display + Copy, const N: usize>(&self, choices: [T; N]) -> Option<T> {
        let Self::Text(text) = self else { return None };
        choices.into_iter().find(|choice| choice.to_string() == *text)
    }
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Name of the value in messages.
impl fmt::Display for RawValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("nothing (null)"),
            Self::Bool(value) => value.fmt(f),
            Self::Number { text, .. } => write!(f, "the number {text}"),
            Self::Text(text) => write!(f, "'{}'", excerpt(text)),
            Self::List => f.write_str("a list"),
            Self::Map(_) => f.write_str("a mapping"),
        }
    }
}

impl<'de> Deserialize<'de> for RawValue {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyValue;

        impl<'de> Visitor<'de> for AnyValue {
            type Value = RawValue;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_unit<E>(self) -> Result<RawValue, E> {
                Ok(RawValue::Null)
            }

            fn visit_none<E>(self) -> Result<RawValue, E> {
                Ok(RawValue::Null)
            }

            fn visit_some<D: serde::Deserializer<'de>>(
                self,
                deserializer: D,
            ) -> Result<RawValue, D::Error> {
                deserializer.deserialize_any(self)
            }

            fn visit_bool<E>(self, value: bool) -> Result<RawValue, E> {
                Ok(RawValue::Bool(value))
            }

            fn visit_i64<E>(self, value: i64) -> Result<RawValue, E> {
                Ok(RawValue::Number { text: value.to_string(), value: value as f64 })
            }

            fn visit_u64<E>(self, value: u64) -> Result<RawValue, E> {
                Ok(RawValue::Number { text: value.to_string(), value: value as f64 })
            }

            fn visit_i128<E>(self, value: i128) -> Result<RawValue, E> {
                Ok(RawValue::Number { text: value.to_string(), value: value as f64 })
            }

            fn visit_u128<E>(self, value: u128) -> Result<RawValue, E> {
                Ok(RawValue::Number { text: value.to_string(), value: value as f64 })
            }

            fn visit_f64<E>(self, value: f64) -> Result<RawValue, E> {
                Ok(RawValue::Number { text: value.to_string(), value })
            }

            fn visit_str<E>(self, value: &str) -> Result<RawValue, E> {
                Ok(RawValue::Text(value.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<RawValue, A::Error> {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(RawValue::List)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawValue, A::Error> {
                let mut fields = Vec::new();
                while let Some((key, value)) = map.next_entry::<RawValue, RawValue>()? {
                    let key = if let RawValue::Text(text) = key { text } else { key.to_string() };
                    fields.push((key, value));
                }
                Ok(RawValue::Map(fields))
            }
        }

        deserializer.deserialize_any(AnyValue)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text.as_bytes(), "f.yaml").map_err(|errors| errors.to_string())
    }

    #[test]
    fn an_empty_configuration_is_the_default() {
        for text in ["", "\n\n", "# nothing\n", "---\n", "{}", "null", "---\n# x\n...\n"] {
            assert_eq!(parse(text), Ok(Config::default()), "{text:?}");
        }
        let config = Config::default();
        assert_eq!(config.policy.throttling, ThrottlingFactor::new(0.9));
        assert_eq!(config.policy.reservation, ReservationPolicy::HardReservation);
        assert_eq!(config.node_allocatable, NodeAllocatable::Auto);
        assert_eq!(config.log_level, LogLevel::Info);
    }

    fn reserved(owner: Owner, cgroup: &str, memory: u64) -> Reserved {
        Reserved { owner, cgroup: CgroupPath::parse(cgroup).unwrap(), memory: Bytes::new(memory) }
    }

    #[test]
    fn a_reserved_cgroup_without_its_amount_is_a_mistake_and_so_is_the_reverse() {
        assert_eq!(
            parse("systemReservedCgroup: /system.slice\nkubeReserved: {memory: 1Gi}").unwrap_err(),
            "f.yaml:1: systemReservedCgroup: expected systemReserved beside it, found none\n\
             f.yaml:2: kubeReserved: expected kubeReservedCgroup beside it, found none"
        );
        // An invalid amount is reported once, not also as a missing field.
        let error =
            parse("systemReservedCgroup: /system.slice\nsystemReserved: {memory: 0}").unwrap_err();
        assert_eq!(error.lines().count(), 1, "{error}");
    }

    #[test]
    fn what_is_kept_from_pods_is_at_least_what_is_promised_beside_them() {
        let system = "systemReservedCgroup: /system.slice\nsystemReserved: {memory: 500Mi}\n";
        let kube = "kubeReservedCgroup: /kubelet.slice\nkubeReserved: {memory: 1Gi}\n";
        assert_eq!(
            parse(&format!("{system}{kube}nodeGuard: 1500Mi")).unwrap_err(),
            "f.yaml:5: nodeGuard: expected at least what systemReserved and kubeReserved add up to, 1524Mi, found 1500Mi"
        );
        assert!(parse(&format!("{system}{kube}nodeGuard: 1524Mi")).is_ok());
        assert_eq!(
            parse("nodeGuard: 0").unwrap_err(),
            "f.yaml:1: nodeGuard: expected a quantity above 0 such as 500Mi, or null, found the number 0"
        );
        assert_eq!(parse("nodeGuard: null"), Ok(Config::default()));
    }

    #[test]
    fn every_field_is_read() {
        assert_eq!(
            parse(
                "mode: observe\nmemoryThrottlingFactor: 0.5\nmemoryReservationPolicy: TieredReservation\nmemoryMinHeadroom: 1Mi\n\
                 nodeAllocatable: 60Gi\nsystemReservedCgroup: system.slice\nsystemReserved: {memory: 500Mi}\n\
                 kubeReserved:\n  memory: 1Gi\nkubeReservedCgroup: /kubelet.slice/kubelet.service\n\
                 nodeGuard: 2Gi\nthrottleDeadline: 2m 5s\nshrink: defer\nshrinkDeadline: 1h\n\
                 oomRescue: {kills: 5, window: 1m, factor: 2, minimum: 1Mi, ceiling: 1Gi}\nraisePodLimits: true\n\
                 repair: false\nbrake: {repairs: 7, conflicts: 6, kills: 5, window: 1m}\nmaxLimitRequestRatio: 2.5\n\
                 metricsAddress: 127.0.0.1:9477\ncontainerMetrics: true\nkubeconfig: /k\nlogLevel: debug\n"
            ),
            Ok(Config {
                mode: Mode::Observe,
                policy: Policy {
                    throttling: ThrottlingFactor::new(0.5),
                    reservation: ReservationPolicy::TieredReservation,
                    headroom: Bytes::new(1 << 20),
                },
                node_allocatable: NodeAllocatable::Fixed(Bytes::new(60 << 30)),
                reserved: vec![
                    reserved(Owner::System, "/system.slice", 500 << 20),
                    reserved(Owner::Kube, "/kubelet.slice/kubelet.service", 1 << 30),
                ],
                node_guard: Some(Bytes::new(2 << 30)),
                throttle_deadline: Some(Duration::from_secs(125)),
                shrink: Shrink::Defer,
                shrink_deadline: Duration::from_secs(3600),
                oom_rescue: Some(OomRescue {
                    kills: 5,
                    window: Duration::from_secs(60),
                    factor: 2.0,
                    minimum: Bytes::new(1 << 20),
                    ceiling: Ceiling::Limit(Bytes::new(1 << 30)),
                }),
                raise_pod_limits: true,
                repair: false,
                brake: Some(Bounds {
                    repairs: 7,
                    conflicts: 6,
                    kills: 5,
                    window: Duration::from_secs(60)
                }),
                max_limit_request_ratio: Some(2.5),
                metrics_address: Some(SocketAddr::from(([127, 0, 0, 1], 9477))),
                container_metrics: true,
                kubeconfig: Some("/k".into()),
                log_level: LogLevel::Debug,
            })
        );
    }

    #[test]
    fn a_rescue_is_off_unless_there_is_a_mapping() {
        assert_eq!(parse("oomRescue: null").unwrap().oom_rescue, None);
        assert_eq!(parse("oomRescue: {}").unwrap().oom_rescue, Some(OomRescue::default()));
        let share = parse("oomRescue: {ceiling: 25%}").unwrap().oom_rescue.unwrap();
        assert_eq!(share.ceiling, Ceiling::Share(25));
        for (text, complaint) in [
            ("on", "expected null, or a mapping such as {kills: 3, ceiling: 1Gi}, found 'on'"),
            ("{kills: 0}", "expected kills: a number from 1 to 1000, found the number 0"),
            ("{kills: 1.5}", "expected kills: a number from 1 to 1000, found the number 1.5"),
            ("{window: 0s}", "expected window: a time above 0 such as 10m, found '0s'"),
            ("{factor: 0.9}", "expected factor: a number from 1 to 10, found the number 0.9"),
            (
                "{minimum: -1}",
                "expected minimum: a quantity such as 100Mi, or 0, found the number -1",
            ),
            (
                "{ceiling: 0%}",
                "expected ceiling: a quantity above 0 such as 1Gi, or a share from 1% to 100%, found '0%'",
            ),
            (
                "{ceiling: 101%}",
                "expected ceiling: a quantity above 0 such as 1Gi, or a share from 1% to 100%, found '101%'",
            ),
            (
                "{factor: 1, minimum: 0}",
                "expected a factor above 1, or a minimum above 0, found neither",
            ),
            (
                "{kill: 3}",
                "expected no other fields than kills, window, factor, minimum, ceiling, found 'kill'",
            ),
            ("{kills: 3, kills: 4}", "expected each field once, found 'kills' again"),
        ] {
            let error = parse(&format!("oomRescue: {text}")).unwrap_err();
            assert_eq!(error, format!("f.yaml:1: oomRescue: {complaint}"), "{text}");
        }
        assert!(
            parse("shrink: never\nshrinkDeadline: null")
                .unwrap_err()
                .contains("f.yaml:2: shrinkDeadline: expected a time")
        );
    }

    #[test]
    fn the_brake_has_bounds_or_is_off() {
        assert_eq!(parse("").unwrap().brake, Some(Bounds::default()));
        assert_eq!(parse("brake: null").unwrap().brake, None);
        assert_eq!(
            parse("brake: {kills: 1}").unwrap().brake,
            Some(Bounds { kills: 1, ..Bounds::default() })
        );
        for (text, complaint) in [
            ("on", "expected null, or a mapping such as {repairs: 500}, found 'on'"),
            ("{kills: 0}", "expected kills: a number from 1 to 1000000, found the number 0"),
            (
                "{repairs: 1e7}",
                "expected repairs: a number from 1 to 1000000, found the number 10000000",
            ),
            ("{window: 0s}", "expected window: a time above 0 such as 10m, found '0s'"),
            ("{window: null}", "expected window: a time above 0 such as 10m, found nothing (null)"),
            (
                "{kill: 3}",
                "expected no other fields than repairs, conflicts, kills, window, found 'kill'",
            ),
            ("{kills: 3, kills: 4}", "expected each field once, found 'kills' again"),
        ] {
            let error = parse(&format!("brake: {text}")).unwrap_err();
            assert_eq!(error, format!("f.yaml:1: brake: {complaint}"), "{text}");
        }
    }

    #[test]
    fn a_rescue_needs_pods_to_be_raised() {
        assert_eq!(
            parse("oomRescue: {}\nraisePodLimits: false").unwrap_err(),
            "f.yaml:2: raisePodLimits: expected true beside oomRescue, which raises both limits, found false"
        );
        assert!(parse("raisePodLimits: false").is_ok());
    }

    #[test]
    fn null_means_never_to_throttle_and_none_is_a_policy() {
        for null in ["null", "~", ""] {
            let config =
                parse(&format!("memoryThrottlingFactor: {null}\nmemoryReservationPolicy: None"))
                    .unwrap();
            assert_eq!(config.policy, Policy { headroom: Policy::DEFAULT_HEADROOM, ..Policy::OFF });
        }
    }

    #[test]
    fn an_amount_may_be_a_number() {
        for (text, bytes) in [
            ("4294967296", 4_294_967_296),
            ("1e9", 1_000_000_000),
            ("'512Mi'", 512 << 20),
            ("0x100000", 1 << 20),
        ] {
            let config = parse(&format!("nodeAllocatable: {text}"));
            assert_eq!(
                config.map(|config| config.node_allocatable),
                Ok(NodeAllocatable::Fixed(Bytes::new(bytes))),
                "{text}"
            );
        }
    }

    #[test]
    fn every_error_is_reported_with_line_field_and_form() {
        let text = "\
# comment
memoryThrottlingFactor: 1.5
memoryReservationPolicy: hard

nodeAllocatable: 60GB
logLevel: [debug]
logLevel: debug
memoryThrottlingfactor: 0.9
color: red
";
        assert_eq!(
            parse(text).unwrap_err(),
            "\
f.yaml:2: memoryThrottlingFactor: expected a number above 0 and at most 1, or null, found the number 1.5
f.yaml:3: memoryReservationPolicy: expected None, TieredReservation or HardReservation, found 'hard'
f.yaml:5: nodeAllocatable: expected auto, or a quantity above 0 such as 60Gi, found '60GB'
f.yaml:6: logLevel: expected error, warn, info, debug or trace, found a list
f.yaml:7: logLevel: expected each field once, found it again after line 6
f.yaml:8: memoryThrottlingfactor: expected memoryThrottlingFactor (did you mean that?), found an unknown field
f.yaml:9: color: expected one of mode, memoryThrottlingFactor, memoryReservationPolicy, memoryMinHeadroom, nodeAllocatable, \
             systemReservedCgroup, systemReserved, kubeReservedCgroup, kubeReserved, nodeGuard, throttleDeadline, shrink, \
             shrinkDeadline, oomRescue, raisePodLimits, repair, brake, maxLimitRequestRatio, metricsAddress, containerMetrics, kubeconfig, logLevel, found an \
             unknown field"
        );
    }

    #[test]
    fn values_of_the_wrong_type_or_range_are_errors() {
        for line in [
            "memoryThrottlingFactor: 0",
            "memoryThrottlingFactor: -0.5",
            "memoryThrottlingFactor: .nan",
            "memoryThrottlingFactor: .inf",
            "memoryThrottlingFactor: '0.9'",
            "memoryThrottlingFactor: none",
            "memoryThrottlingFactor: true",
            "memoryThrottlingFactor: [0.9]",
            "memoryThrottlingFactor: {a: 1}",
            "mode: off",
            "mode: null",
            "mode: Observe",
            "raisePodLimits: yes",
            "raisePodLimits: null",
            "repair: 1",
            "shrink: never",
            "brake: true",
            "brake: 5",
            "throttleDeadline: 0s",
            "maxLimitRequestRatio: 0.5",
            "maxLimitRequestRatio: many",
            "metricsAddress: 9477",
            "metricsAddress: localhost:9477",
            "containerMetrics: yes",
            "kubeconfig: ~/.kube/config",
            "kubeconfig: 5",
            "kubeconfig: {}",
            "throttleDeadline: 30",
            "throttleDeadline: soon",
            "throttleDeadline: -1s",
            "memoryReservationPolicy: null",
            "memoryReservationPolicy: none",
            "memoryReservationPolicy: 1",
            "nodeAllocatable: null",
            "nodeAllocatable: 0",
            "nodeAllocatable: -1Gi",
            "nodeAllocatable: 16Ei",
            "nodeAllocatable: Auto",
            "nodeAllocatable: true",
            "nodeAllocatable: 99999999999999999999999999999999",
            "memoryMinHeadroom: -1",
            "memoryMinHeadroom: null",
            "memoryMinHeadroom: 2%",
            "systemReservedCgroup: /",
            "systemReservedCgroup: /system.slice/../..",
            "systemReservedCgroup: a.slice:b:c",
            "systemReservedCgroup: 1",
            "kubeReservedCgroup: [a]",
            "systemReserved: 500Mi",
            "systemReserved: {}",
            "systemReserved: {memory: 0}",
            "systemReserved: {memory: 1Gi, cpu: 1}",
            "kubeReserved: {cpu: 1}",
            "kubeReserved: {memory: {a: b}}",
            "logLevel: INFO",
            "logLevel: 3",
            "logLevel: off",
            "logLevel:",
        ] {
            let error = parse(line).unwrap_err();
            let field = line.split(':').next().unwrap();
            assert!(error.starts_with(&format!("f.yaml:1: {field}: expected ")), "{line}: {error}");
            assert_eq!(error.lines().count(), 1, "{line}: {error}");
        }
    }

    #[test]
    fn what_is_no_mapping_is_an_error_with_a_line() {
        for text in [
            "- a\n- b",
            "text",
            "3",
            "\"",
            "a: b: c",
            "a: [",
            "{",
            "a: 1\n---\na: 2",
            "\tlogLevel: x",
            "a: *b",
            "? [a]\n: b",
            "<<: {a: b}",
            "%YAML 9",
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.lines().all(|line| line.starts_with("f.yaml:")), "{text:?}: {error}");
            assert!(error.contains("expected "), "{text:?}: {error}");
        }
    }

    #[test]
    fn mistakes_before_a_syntax_error_are_reported_too() {
        let error =
            parse("logLevel: loud\nnodeAllocatable: [1\nmemoryThrottlingFactor: 2\n").unwrap_err();
        assert!(error.starts_with("f.yaml:1: logLevel: expected error, warn"), "{error}");
        assert!(error.contains("\nf.yaml:"), "{error}");
    }

    #[test]
    fn bytes_that_are_no_text_are_found_on_their_line() {
        let errors = Config::parse(b"logLevel: info\n\xff", "f.yaml").unwrap_err();
        assert_eq!(errors.to_string(), "f.yaml:2: expected UTF-8 text, found byte 0xff");
    }

    #[test]
    fn oversized_and_exploding_input_is_refused() {
        let error = Config::parse(&vec![b'#'; LARGEST + 1], "f.yaml").unwrap_err();
        assert_eq!(
            error.to_string(),
            "f.yaml:1: expected at most 1048576 bytes, found 1048577 bytes"
        );
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for level in 1..12 {
            let previous = format!("*a{},", level - 1).repeat(10);
            bomb.push_str(&format!("a{level}: &a{level} [{previous}]\n"));
        }
        assert!(parse(&bomb).is_err());
        assert!(parse(&"[".repeat(100_000)).is_err());
    }

    #[test]
    fn foreign_text_in_messages_stays_on_one_line() {
        let error = parse("\"a\\nb\": \"c\\nd\"\nlogLevel: \"e\\nf\"").unwrap_err();
        assert_eq!(error.lines().count(), 2, "{error}");
    }

    fn rescues() -> impl Strategy<Value = OomRescue> {
        let ceilings = prop_oneof![
            (1..=Bytes::MAX.get()).prop_map(|bytes| Ceiling::Limit(Bytes::new(bytes))),
            (1..=100u64).prop_map(Ceiling::Share),
        ];
        (1..=1000u32, 1..=1_000_000u64, 101..=1000u32, 0..=Bytes::MAX.get(), ceilings).prop_map(
            |(kills, window, hundredths, minimum, ceiling)| OomRescue {
                kills,
                window: Duration::from_millis(window),
                factor: f64::from(hundredths) / 100.0,
                minimum: Bytes::new(minimum),
                ceiling,
            },
        )
    }

    fn configs() -> impl Strategy<Value = Config> {
        (
            proptest::option::of(1u32..=1000),
            proptest::sample::select(&ReservationPolicy::ALL[..]),
            proptest::option::of(1..=Bytes::MAX.get()),
            0..=Bytes::MAX.get(),
            proptest::option::of(("[ -~]{1,20}", 1..=Bytes::MAX.get())),
            proptest::option::of(1..=1_000_000u64),
            (
                proptest::sample::select(&Shrink::ALL[..]),
                1..=1_000_000u64,
                proptest::option::of(rescues()),
                (proptest::sample::select(&Mode::ALL[..]), any::<bool>(), any::<bool>()),
                proptest::option::of((
                    1..=1_000_000u32,
                    1..=1_000_000u32,
                    1..=1_000_000u32,
                    1..=1_000_000u64,
                )),
            ),
            (
                proptest::option::of(1.0..1e9),
                proptest::option::of(
                    any::<std::net::IpAddr>().prop_map(|ip| SocketAddr::new(ip, 9477)),
                ),
                any::<bool>(),
                proptest::option::of(0..=Bytes::MAX.get()),
                proptest::option::of("/[ -~ü]{0,20}"),
            ),
            proptest::sample::select(&LogLevel::ALL[..]),
        )
            .prop_map(
                |(
                    thousandths,
                    reservation,
                    allocatable,
                    headroom,
                    system,
                    deadline,
                    shrink,
                    seen,
                    log_level,
                )| Config {
                    max_limit_request_ratio: seen.0,
                    metrics_address: seen.1,
                    container_metrics: seen.2,
                    // At least the sum of `reserved`.
                    node_guard: seen.3.map(|most| {
                        Bytes::new(system.as_ref().map_or(1, |(_, memory)| *memory).max(most))
                    }),
                    kubeconfig: seen.4.map(PathBuf::from),
                    throttle_deadline: deadline.map(Duration::from_millis),
                    shrink: shrink.0,
                    shrink_deadline: Duration::from_millis(shrink.1),
                    oom_rescue: shrink.2,
                    mode: shrink.3.0,
                    raise_pod_limits: shrink.2.is_some() || shrink.3.1,
                    repair: shrink.3.2,
                    brake: shrink.4.map(|(repairs, conflicts, kills, window)| Bounds {
                        repairs,
                        conflicts,
                        kills,
                        window: Duration::from_millis(window),
                    }),
                    policy: Policy {
                        throttling: thousandths.and_then(|thousandths| {
                            ThrottlingFactor::new(f64::from(thousandths) / 1000.0)
                        }),
                        reservation,
                        headroom: Bytes::new(headroom),
                    },
                    reserved: system
                        .and_then(|(name, memory)| {
                            let cgroup = CgroupPath::parse(&format!("/x/{name}")).ok()?;
                            let fine = !cgroup.as_str().contains(':');
                            fine.then_some(Reserved {
                                owner: Owner::System,
                                cgroup,
                                memory: Bytes::new(memory),
                            })
                        })
                        .into_iter()
                        .collect(),
                    node_allocatable: allocatable.map_or(NodeAllocatable::Auto, |bytes| {
                        NodeAllocatable::Fixed(Bytes::new(bytes))
                    }),
                    log_level,
                },
            )
    }

    proptest! {
        #[test]
        fn printing_then_parsing_is_identity(config in configs()) {
            prop_assert_eq!(parse(&config.to_string()), Ok(config));
        }

        #[test]
        fn any_bytes_are_a_configuration_or_errors(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            if let Err(errors) = Config::parse(&bytes, "f.yaml") {
                prop_assert!(!errors.errors.is_empty());
            }
        }

        #[test]
        fn anything_like_yaml_is_a_configuration_or_errors(text in "((memoryThrottlingFactor|logLevel|nodeAllocatable|x): ?|[-\\[\\]{}&*!|>'\"%@`,?:#~]|[0-9a-z.]{0,3}| |\n){0,20}") {
            if let Err(errors) = Config::parse(text.as_bytes(), "f.yaml") {
                prop_assert!(errors.to_string().lines().count() == errors.errors.len());
            }
        }
    }
}
