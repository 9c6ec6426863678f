//! Current status of the node: each container and each ancestor cgroup with its desired and
//! observed values. One word sums up the state of each container.
//!
//! The format is that of `plimsoll status --json` and is stable. New fields may appear, but
//! removing a field or changing its meaning requires another [`VERSION`]. Amounts are bytes or
//! `"max"`. An unknown value is `null`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::fs;
use std::panic;
use std::thread;

use plimsoll_core::incident::{Incident, IncidentKind, Subject};
use plimsoll_core::pod::{CgroupPath, QosClass};
use plimsoll_core::policy::Protection;
use plimsoll_core::policy::hierarchy::{self, Observed, Standing};
use plimsoll_core::policy::resize::{self, Throttled};
use plimsoll_core::units::{Bytes, Knob, Limit};
use serde::{Deserialize, Serialize};

use crate::cgroup::{Cgroup, CgroupError, CgroupRoot};
use crate::config::Mode;
use crate::kubelet::node::MemInfo;
use crate::report::Report;
use crate::report::Reports;
use crate::state::container::{Container, Decided, Update};
use crate::state::containers::Containers;
pub use crate::state::levels::LevelKind as Level;
use crate::state::settings::{NO_SYSTEM_SLICE, Settings};
use crate::state::shared::SharedState;

/// Version of this format.
pub const VERSION: u32 = 1;

/// Maximum number of threads that read files. Up to [`FEW`] items are not worth another thread.
const MOST_THREADS: usize = 4;
const FEW: usize = 50;

/// Status of the node.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Version of the format ([`VERSION`]).
    pub version: u32,
    /// Version of the program.
    pub plimsoll: String,
    /// Status of the node as a whole.
    pub node: NodeStatus,
    /// Cgroups above the containers, parents before children. Also the protected cgroups beside the
    /// pods.
    pub cgroups: Vec<CgroupStatus>,
    /// Containers, with the worst state first.
    pub containers: Vec<ContainerStatus>,
    /// Containers that are down but have recent reports, such as a container that is OOM-killed
    /// repeatedly.
    pub down: Vec<DownStatus>,
}

/// A container that is down at the moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DownStatus {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// UID of the pod.
    pub uid: String,
    /// Name of the container.
    pub container: String,
    /// Recent reports, latest first.
    pub reports: Vec<Report>,
}

/// Status of the node as a whole.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// Total memory of the node.
    pub memory: Option<Bytes>,
    /// Available memory, as the kernel estimates it.
    pub available: Option<Bytes>,
    /// Node allocatable: memory for all pods together.
    pub allocatable: Option<Bytes>,
    /// Limit of all pods together (`nodeGuard`). `null` without such a limit, or if kubepods is
    /// missing or unreadable.
    pub guard: Option<Bytes>,
    /// Reason why the node guard is not fully in force, or would not be in observe mode. `null` if
    /// the guard has no problem or is not configured.
    #[serde(default)]
    pub guard_problem: Option<String>,
    /// Facts about the node that could not be read, each with the reason and advice.
    #[serde(default)]
    pub problems: Vec<String>,
    /// `memory.max` of kubepods; `null` if kubepods is missing or unreadable.
    pub pods_max: Option<Limit>,
    /// Whether the container runtime is connected and has sent its pods and containers.
    pub synchronized: bool,
    /// Whether `plimsoll restore` is in force, so that the plugin sets nothing.
    pub stands_aside: bool,
    /// Whether the plugin acts, or only reports what it would do.
    #[serde(default)]
    pub mode: Mode,
    /// Reason why the brake switched the plugin to observe mode; `null` unless the brake was
    /// applied.
    #[serde(default)]
    pub brake: Option<String>,
    /// Observe mode: limit of all pods together that `nodeGuard` would set; `null` otherwise.
    #[serde(default)]
    pub planned_guard: Option<Bytes>,
    /// Observe mode: number of containers that use more than their planned `memory.high`.
    #[serde(default)]
    pub would_throttle: usize,
    /// Observe mode: number of limit decreases of the last ten minutes that would have been refused
    /// or deferred.
    #[serde(default)]
    pub would_refuse: u64,
    /// Sum of all known container requests.
    pub requests: Bytes,
    /// Sum of all container limits.
    pub limits: Bytes,
    /// Number of containers without a limit.
    pub unlimited: usize,
    /// Usage of all containers together.
    pub usage: Bytes,
}

/// A cgroup above the containers, or a protected cgroup beside the pods.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CgroupStatus {
    /// Path below the cgroup root.
    pub cgroup: CgroupPath,
    /// Level of the cgroup.
    pub level: Level,
    /// Protection that the files should have.
    pub desired: Protection,
    /// Protection that the files have; `null` if the cgroup is missing or unreadable.
    pub observed: Option<Protection>,
    /// Reason why the observed values are unknown, with advice.
    #[serde(default)]
    pub problem: Option<String>,
    /// Part of the usage that is protected by the kernel's rule.
    pub effective: Option<Protection>,
    /// Whether the observed protection has an effect.
    pub standing: Option<Standing>,
    /// Usage of the cgroup.
    pub usage: Option<Bytes>,
    /// Limit of the cgroup.
    pub max: Option<Limit>,
    /// Reports of the cgroup, latest first.
    pub reports: Vec<Report>,
}

/// Status of a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerStatus {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// UID of the pod.
    pub uid: String,
    /// Name of the container.
    pub container: String,
    /// Id of the container in the runtime.
    pub id: String,
    /// Path of the container's cgroup below the cgroup root.
    pub cgroup: Option<CgroupPath>,
    /// State that sums up all other fields.
    pub state: State,
    /// QoS class.
    pub class: QosClass,
    /// Memory request.
    pub request: Option<RequestStatus>,
    /// Limit that the user asked for.
    pub asked: Limit,
    /// Usage (`memory.current`).
    pub usage: Option<Bytes>,
    /// Usage without inactive page cache, as the kubelet counts the working set.
    pub working_set: Option<Bytes>,
    /// Part of the working set above the request.
    pub over_request: Bytes,
    /// Whether the limit is more than `maxLimitRequestRatio` times the request.
    pub overcommitted: bool,
    /// Observe mode: whether the container uses more than its planned `memory.high`.
    #[serde(default)]
    pub would_throttle: bool,
    /// Values that the files should have. `max` is the container's limit.
    pub desired: Values,
    /// Reasons for the desired values.
    pub reasons: Reasons,
    /// Values that the files have; `null` if the files cannot be read.
    pub observed: Option<Values>,
    /// Reason why the observed values are unknown, with advice.
    #[serde(default)]
    pub problem: Option<String>,
    /// Part of the usage that is protected by the kernel's rule.
    pub effective: Option<Protection>,
    /// Whether the observed protection has an effect.
    pub standing: Option<Standing>,
    /// Time in seconds since the start that all of the container waited for memory
    /// (`memory.pressure`, full).
    pub stalled_seconds: Option<f64>,
    /// Share of the last ten seconds that all of the container waited for memory, in percent.
    pub stalled_percent: Option<f64>,
    /// Number of the container's processes that the kernel has OOM-killed.
    pub oom_kills: Option<u64>,
    /// Reports of the container, whose id may have changed. Latest first.
    pub reports: Vec<Report>,
}

/// A memory request.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestStatus {
    /// The request, or its lower bound if the request is not exact.
    pub bytes: Bytes,
    /// Upper bound of the request.
    pub at_most: Bytes,
    /// Source of the request.
    pub provenance: String,
}

/// Values of a container's files, observed or desired.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Values {
    /// `memory.min`. A desired value of `null` leaves the file alone.
    pub min: Option<Limit>,
    /// `memory.low`.
    pub low: Option<Limit>,
    /// `memory.high`.
    pub high: Option<Limit>,
    /// `memory.max`.
    pub max: Option<Limit>,
}

impl Values {
    /// Returns the number of files whose `observed` value differs from these desired values.
    pub fn differs_from(self, observed: Self) -> usize {
        let all = |values: Self| [values.min, values.low, values.high, values.max];
        all(self)
            .into_iter()
            .zip(all(observed))
            .filter(|(desired, held)| desired.is_some() && desired != held)
            .count()
    }
}

/// Reasons for the desired values of a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reasons {
    /// Reason for `memory.min`.
    pub min: String,
    /// Reason for `memory.low`.
    pub low: String,
    /// Reason for `memory.high`.
    pub high: String,
}

/// State of a container in one word. Worse states come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// The kernel OOM-killed processes of the container within the last ten minutes.
    Killed,
    /// A limit decrease was refused or given up, because the container uses more.
    Refused,
    /// A limit decrease waits until the container uses less.
    Deferred,
    /// Another program keeps changing the container's files.
    Contended,
    /// The files differ from their desired values.
    Drifted,
    /// The container is throttled at `memory.high` and waits for memory.
    Throttled,
    /// Observe mode: the container uses more than its planned `memory.high`.
    WouldThrottle,
    /// The plugin raised the limit after repeated OOM kills.
    Rescued,
    /// The container uses more than its request. The kernel may reclaim the excess.
    OverRequest,
    /// Some or all of the protection has no effect, because an ancestor cgroup has less protection.
    Inert,
    /// The container has not started, or its cgroup or an ancestor cgroup cannot be read.
    Unread,
    /// The container has no protection.
    Unprotected,
    /// The container's request is protected.
    Protected,
}

impl State {
    /// All states, worst first.
    pub const ALL: [Self; 13] = [
        Self::Killed,
        Self::Refused,
        Self::Deferred,
        Self::Contended,
        Self::Drifted,
        Self::Throttled,
        Self::WouldThrottle,
        Self::Rescued,
        Self::OverRequest,
        Self::Inert,
        Self::Unread,
        Self::Unprotected,
        Self::Protected,
    ];

    /// Returns the word for the state.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Killed => "killed",
            Self::Refused => "refused",
            Self::Deferred => "deferred",
            Self::Contended => "contended",
            Self::Drifted => "drifted",
            Self::Throttled => "throttled",
            Self::WouldThrottle => "would-throttle",
            Self::Rescued => "rescued",
            Self::OverRequest => "over-request",
            Self::Inert => "inert",
            Self::Unread => "unread",
            Self::Unprotected => "unprotected",
            Self::Protected => "protected",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// Applies `of` to each item in parallel and returns the results in order. A few threads suffice,
/// because most of the work is the kernel's.
fn in_parallel<T: Sync, R: Send>(items: &[T], of: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let threads = thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
    let of = &of;
    thread::scope(|scope| {
        let parts = items.chunks(items.len().div_ceil(threads).max(FEW));
        let parts: Vec<_> = parts
            .map(|part| scope.spawn(move || part.iter().map(of).collect::<Vec<R>>()))
            .collect();
        parts
            .into_iter()
            .flat_map(|part| part.join().unwrap_or_else(|panic| panic::resume_unwind(panic)))
            .collect()
    })
}

/// Values read from a container's cgroup.
#[derive(Clone, Copy, Debug, Default)]
struct Read {
    values: Values,
    usage: Bytes,
    working_set: Option<Bytes>,
    stalled: Option<(f64, f64)>,
    oom_kills: Option<u64>,
}

impl Read {
    fn of(cgroup: &Cgroup) -> Result<Self, CgroupError> {
        let [min, low, high, max] =
            [Knob::Min, Knob::Low, Knob::High, Knob::Max].map(|knob| cgroup.read(knob));
        let values = Values { min: Some(min?), low: Some(low?), high: high.ok(), max: Some(max?) };
        let usage = cgroup.usage()?;
        Ok(Self {
            values,
            usage,
            working_set: cgroup.inactive_file().ok().map(|inactive| usage.saturating_sub(inactive)),
            stalled: cgroup
                .pressure()
                .ok()
                .map(|pressure| (pressure.percent, pressure.total.as_secs_f64())),
            oom_kills: cgroup.events().ok().map(|events| events.oom_kill),
        })
    }

    fn observed(&self) -> Observed {
        let zero = Limit::Bytes(Bytes::ZERO);
        let setting =
            Protection::of_files(self.values.min.unwrap_or(zero), self.values.low.unwrap_or(zero));
        Observed { setting, usage: self.usage }
    }
}

impl Status {
    /// Reads the status. Takes some tens of microseconds for each container.
    pub fn read(state: &SharedState, reports: &Reports) -> Self {
        let SharedState { containers, levels, root, .. } = state;
        let settings = containers.settings();
        let page = settings.node.page_size;
        let known = containers.all();
        let read = in_parallel(&known, |container| {
            let Some(path) = &container.cgroup else { return Err(NOT_STARTED.to_owned()) };
            root.cgroup(path).and_then(|cgroup| Read::of(&cgroup)).map_err(|error| match error {
                CgroupError::Gone(_) if !container.started => NOT_STARTED.to_owned(),
                error => unread(&error),
            })
        });
        let plans: Vec<_> = known
            .iter()
            .map(|container| {
                let record = containers.record(container);
                containers.plan(container, &record)
            })
            .collect();
        let levels = if settings.observes() {
            let claims = known.iter().zip(&plans).filter_map(|(container, plan)| {
                Some((container.place.as_ref()?, container.id.as_str(), plan.desired.claim?))
            });
            levels.planned_levels(&settings, claims)
        } else {
            levels.levels()
        };
        let mut above = BTreeSet::new();
        let paths = levels.iter().map(|(level, _)| Some(level.cgroup.clone()));
        for path in paths.chain(known.iter().map(|container| container.cgroup.as_ref()?.parent())) {
            let mut path = path;
            while let Some(cgroup) = path {
                path = cgroup.parent();
                if !above.insert(cgroup) {
                    break;
                }
            }
        }
        let above: Vec<_> = above.into_iter().collect();
        let limited_or_not = in_parallel(&above, |path| -> Result<_, CgroupError> {
            let cgroup = root.cgroup(path)?;
            Ok((cgroup.observe()?, cgroup.read(Knob::Max).ok()))
        });
        let mut problems = HashMap::new();
        let mut limited = HashMap::new();
        for (path, read) in above.iter().zip(limited_or_not) {
            match read {
                Ok(read) => _ = limited.insert(path, read),
                Err(error) => _ = problems.insert(path, unread(&error)),
            }
        }
        let of_containers = known.iter().zip(&read).filter_map(|(container, read)| {
            Some((container.cgroup.clone()?, read.as_ref().ok()?.observed()))
        });
        let observed: BTreeMap<_, _> = limited
            .iter()
            .map(|(path, (observed, _))| ((*path).clone(), *observed))
            .chain(of_containers)
            .collect();
        let effective = hierarchy::effective_tree(None, &observed, root.recursive_protection());

        let mut rows: Vec<_> = known
            .iter()
            .zip(&read)
            .zip(plans)
            .map(|((container, read), plan)| {
                let effective =
                    container.cgroup.as_ref().and_then(|cgroup| effective.get(cgroup)).copied();
                let told = reports.of_container(&container.uid, &container.name);
                let wait = Wait {
                    is_deferred: state.deferred.is_waiting(&container.id),
                    is_rescued: state.rescues.is_rescued(container),
                };
                container_status(&settings, container, plan, read.as_ref(), effective, told, wait)
            })
            .collect();
        // Worst state first. Within a state, the container with the largest excess over its request
        // first.
        rows.sort_by(|a, b| {
            let key = |row: &ContainerStatus| (row.state, std::cmp::Reverse(row.over_request));
            key(a).cmp(&key(b)).then_with(|| {
                (&a.namespace, &a.pod, &a.container, &a.id).cmp(&(
                    &b.namespace,
                    &b.pod,
                    &b.container,
                    &b.id,
                ))
            })
        });
        let names =
            known.iter().map(|container| (container.uid.clone(), container.name.clone())).collect();
        let pods = state.levels.pods();
        let is_down =
            |subject: &Subject| subject.uid.as_ref().is_some_and(|uid| pods.contains(uid));
        let down = reports.of_others(&names).into_iter().filter(|(subject, _)| is_down(subject));
        let down = down.map(|(subject, reports)| {
            let pod = subject.pod.unwrap_or_default();
            let (namespace, pod) = namespace_and_name(&pod);
            DownStatus {
                namespace: namespace.to_owned(),
                pod: pod.to_owned(),
                uid: subject.uid.map(|uid| uid.as_str().to_owned()).unwrap_or_default(),
                container: subject.container.unwrap_or_default(),
                reports,
            }
        });
        let cgroups = levels.into_iter().map(|(level, kind)| {
            let seen = observed.get(&level.cgroup);
            let effective = effective.get(&level.cgroup).copied();
            let standing = seen
                .zip(effective)
                .map(|(seen, effective)| Standing::of(seen.setting, seen.usage, effective));
            CgroupStatus {
                level: kind,
                desired: Protection {
                    min: level.protection.min.floor_to(page),
                    low: level.protection.low.floor_to(page),
                },
                observed: seen.map(|seen| seen.setting),
                problem: problems.remove(&level.cgroup),
                effective,
                standing,
                usage: seen.map(|seen| seen.usage),
                max: limited.get(&level.cgroup).and_then(|(_, max)| *max),
                reports: reports.of_cgroup(&level.cgroup),
                cgroup: level.cgroup,
            }
        });
        Self {
            version: VERSION,
            plimsoll: env!("CARGO_PKG_VERSION").to_owned(),
            node: NodeStatus::read(state, reports, &rows),
            cgroups: cgroups.collect(),
            containers: rows,
            down: down.collect(),
        }
    }
}

/// Reason why a container that has not started was not read.
const NOT_STARTED: &str = "it has not started yet";

/// Returns why a cgroup could not be read, with advice.
fn unread(error: &CgroupError) -> String {
    match error {
        CgroupError::Gone(_) => {
            format!("{error}: it is just being made or removed, or there is none on this node")
        }
        _ => format!(
            "{error}; let the plugin read the node's cgroups as root, and see 'plimsoll doctor'"
        ),
    }
}

/// Returns the facts about the node that are unknown, with advice.
fn node_problems(
    containers: &Containers,
    settings: &Settings,
    meminfo: &Result<MemInfo, String>,
) -> Vec<String> {
    let records = containers.records.problems().into_iter();
    let mut problems: Vec<_> = records
        .map(|problem| {
            format!("{problem}. See the kubelet's log: it writes the file anew with each pod")
        })
        .collect();
    if settings.node.allocatable.is_none() {
        problems.push(
            "node allocatable is unknown, and with it memory.high of containers without a limit: set nodeAllocatable, or see \
             'plimsoll doctor' for why it cannot be found"
                .to_owned(),
        );
    }
    if let Err(error) = meminfo {
        problems.push(format!(
            "/proc/meminfo: {error}; give --host where the node's file system is, with its /proc"
        ));
    }
    problems
}

/// Observe mode: returns a message if pods use more than the guard would leave them.
fn guard_would_wait(kubepods: &Cgroup, line: Bytes) -> Option<String> {
    match kubepods.usage() {
        Ok(usage) => (usage > line).then(|| {
            let (usage, line) = (usage.approx(), line.approx());
            format!("nodeGuard would wait: pods use {usage}, and it leaves them {line}; it would reclaim what it can, and kill nobody")
        }),
        Err(error) => Some(format!("nodeGuard: cannot read what pods use: {error}")),
    }
}

/// Returns a message if the guard protects nothing of the system, because there is no system.slice.
fn half_a_guard(settings: &Settings, root: &CgroupRoot) -> Option<String> {
    if !settings.config.reserved.is_empty() {
        return None;
    }
    match root.cgroup(&CgroupPath::system_slice()) {
        Ok(_) => None,
        Err(CgroupError::Gone(_)) => {
            let protects = if settings.observes() { "would protect" } else { "protects" };
            Some(format!("{}: nothing {protects} the system", NO_SYSTEM_SLICE))
        }
        Err(error) => Some(format!("nodeGuard: cannot look for system.slice: {error}")),
    }
}

impl NodeStatus {
    fn read(state: &SharedState, reports: &Reports, rows: &[ContainerStatus]) -> Self {
        let SharedState { containers, levels, root, synchronized, .. } = state;
        let settings = containers.settings();
        let meminfo =
            fs::read_to_string(root.host().join("proc/meminfo")).map_err(|error| error.to_string());
        let meminfo =
            meminfo.and_then(|text| MemInfo::parse(&text).map_err(|error| error.to_string()));
        let problems = node_problems(containers, &settings, &meminfo);
        let sum = |of: &dyn Fn(&ContainerStatus) -> Option<Bytes>| {
            rows.iter().filter_map(of).fold(Bytes::ZERO, Bytes::saturating_add)
        };
        let kubepods = levels.open_kubepods();
        let pods_max = match &kubepods {
            Ok(Some((_, cgroup))) => cgroup.read(Knob::Max).map_err(|error| error.to_string()),
            Ok(None) => Err("there is no kubepods cgroup".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        let line = settings.guard_line();
        let planned_guard = settings.planned_guard_line().filter(|_| settings.observes());
        let guard_problem = if line.or(planned_guard).is_none() {
            None
        } else if let Err(why) = &pods_max {
            let is = if settings.observes() { "would not be" } else { "is not" };
            Some(format!("nodeGuard {is} in force: {why}"))
        } else {
            let kubepods = kubepods.ok().flatten();
            let waits = planned_guard
                .zip(kubepods)
                .and_then(|(line, (_, cgroup))| guard_would_wait(&cgroup, line));
            waits.or_else(|| half_a_guard(&settings, root))
        };
        Self {
            memory: settings.mem_total,
            available: meminfo.ok().map(|meminfo| meminfo.available),
            allocatable: settings.node.allocatable,
            guard: line.filter(|_| pods_max.is_ok()),
            guard_problem,
            problems,
            mode: settings.mode(),
            brake: settings.brake.clone(),
            planned_guard,
            would_throttle: rows.iter().filter(|row| row.would_throttle).count(),
            would_refuse: reports.count_lately(|report| {
                report.planned
                    && matches!(report.kind, IncidentKind::CutRejected | IncidentKind::CutDeferred)
            }),
            pods_max: pods_max.ok(),
            synchronized: *synchronized.borrow(),
            stands_aside: settings.stand_aside,
            requests: sum(&|row| row.request.as_ref().map(|request| request.bytes)),
            limits: sum(&|row| row.desired.max.and_then(Limit::bytes)),
            unlimited: rows.iter().filter(|row| row.desired.max == Some(Limit::Max)).count(),
            usage: sum(&|row| row.usage),
        }
    }
}

/// Splits `namespace/name`.
fn namespace_and_name(pod: &str) -> (&str, &str) {
    pod.split_once('/').unwrap_or(("", pod))
}

/// State of a container's limit that other modules know.
#[derive(Clone, Copy, Debug)]
struct Wait {
    /// A limit decrease is deferred.
    is_deferred: bool,
    /// The plugin raised the limit as an OOM rescue.
    is_rescued: bool,
}

fn container_status(
    settings: &Settings,
    container: &Container,
    decided: Decided,
    read: Result<&Read, &String>,
    effective: Option<Protection>,
    reports: Vec<Report>,
    wait: Wait,
) -> ContainerStatus {
    let problem = read.err().cloned();
    let read = read.ok();
    let page = settings.node.page_size;
    let value = |knob| decided.value(knob).map(|value: Limit| value.floor_to(page));
    let desired = Values {
        min: value(Knob::Min),
        low: value(Knob::Low),
        high: value(Knob::High),
        max: Some(container.limit.floor_to(page)),
    };
    let observed = read.map(|read| read.values);
    let standing = read.zip(effective).map(|(read, effective)| {
        let Observed { setting, usage } = read.observed();
        Standing::of(setting, usage, effective)
    });
    let at_most = decided.request.map(|request| request.at_most);
    let working_set = read.and_then(|read| read.working_set);
    let over_request = match (working_set, at_most) {
        (Some(used), Some(request)) => used.saturating_sub(request),
        _ => Bytes::ZERO,
    };
    let overcommitted = match (container.limit, at_most, settings.config.max_limit_request_ratio) {
        (Limit::Bytes(limit), Some(request), Some(most)) => {
            resize::is_overcommitted(limit, request, most)
        }
        _ => false,
    };
    let (namespace, pod) = namespace_and_name(&container.pod);
    let facts = Facts {
        is_read: read.is_some(),
        is_changing: matches!(container.update, Update::UnderWay(_)),
        only_observes: settings.observes(),
        usage: read.map(|read| read.usage),
        desired,
        observed: observed.unwrap_or_default(),
        is_beyond_asked: container.limit > container.asked,
        wait,
        throttled: read.and_then(|read| {
            let (stalled, _) = read.stalled?;
            let high = read.values.high?;
            Some(Throttled {
                usage: read.usage,
                line: high.bytes()?,
                high,
                max: Bytes::MAX,
                stalled,
            })
        }),
        is_over: over_request > Bytes::ZERO && at_most > Some(Bytes::ZERO),
        standing,
        reports: &reports,
    };
    ContainerStatus {
        namespace: namespace.to_owned(),
        pod: pod.to_owned(),
        uid: container.uid.as_str().to_owned(),
        container: container.name.clone(),
        id: container.id.clone(),
        cgroup: container.cgroup.clone(),
        state: facts.state(),
        class: decided.class,
        request: decided.request.map(|request| RequestStatus {
            bytes: request.bytes,
            at_most: request.at_most,
            provenance: request.provenance.to_string(),
        }),
        asked: container.asked,
        usage: read.map(|read| read.usage),
        working_set,
        over_request,
        overcommitted,
        would_throttle: facts.would_throttle(),
        desired,
        reasons: Reasons {
            min: decided.desired.min.reason.to_string(),
            low: decided.desired.low.reason.to_string(),
            high: decided.desired.high.reason.to_string(),
        },
        observed,
        problem,
        effective,
        standing,
        stalled_seconds: read.and_then(|read| read.stalled).map(|(_, seconds)| seconds),
        stalled_percent: read.and_then(|read| read.stalled).map(|(percent, _)| percent),
        oom_kills: read.and_then(|read| read.oom_kills),
        reports,
    }
}

/// Facts that decide the state of a container.
#[derive(Clone, Copy, Debug)]
struct Facts<'r> {
    is_read: bool,
    is_changing: bool,
    /// Observe mode: the plugin sets nothing, so a difference is no drift.
    only_observes: bool,
    usage: Option<Bytes>,
    desired: Values,
    observed: Values,
    /// The limit is higher than the limit that the user asked for.
    is_beyond_asked: bool,
    wait: Wait,
    throttled: Option<Throttled>,
    is_over: bool,
    standing: Option<Standing>,
    /// Latest first.
    reports: &'r [Report],
}

impl Facts<'_> {
    /// Returns whether observe mode is on and the container uses more than its planned
    /// `memory.high`.
    fn would_throttle(&self) -> bool {
        self.only_observes
            && self
                .usage
                .zip(self.desired.high)
                .is_some_and(|(usage, high)| Limit::Bytes(usage) > high)
    }

    fn state(&self) -> State {
        let was = |kind: IncidentKind| {
            self.reports.iter().any(|report| report.is_late() && report.kind == kind)
        };
        if was(IncidentKind::Killed) {
            return State::Killed;
        }
        if !self.is_read {
            return State::Unread;
        }
        if self.wait.is_deferred {
            return State::Deferred;
        }
        // A refusal counts only while the limit in force is still the same as then.
        let is_refused = self.reports.iter().filter(|report| report.is_late()).any(|report| {
            match &report.what {
                Some(Incident::CutRejected(cut)) => {
                    !report.planned && Some(cut.in_force) == self.observed.max
                }
                _ => false,
            }
        });
        if is_refused || (self.is_beyond_asked && !self.wait.is_rescued) {
            return State::Refused;
        }
        if self.desired.differs_from(self.observed) > 0 && !self.is_changing && !self.only_observes
        {
            // A conflict is reported only once, so its report counts even if it is old.
            let is_contended =
                self.reports.iter().any(|report| report.kind == IncidentKind::Contended);
            return if is_contended { State::Contended } else { State::Drifted };
        }
        if self.throttled.is_some_and(|throttled| throttled.is_pinned()) {
            return State::Throttled;
        }
        if self.would_throttle() {
            return State::WouldThrottle;
        }
        if self.is_beyond_asked {
            return State::Rescued;
        }
        match self.standing {
            _ if self.is_over => State::OverRequest,
            Some(Standing::Inert | Standing::Partly) => State::Inert,
            Some(Standing::Protected) => State::Protected,
            Some(Standing::Unclaimed) => State::Unprotected,
            // An ancestor cgroup could not be read.
            None => State::Unread,
        }
    }
}

#[cfg(test)]
mod tests {
    use plimsoll_core::incident::LowerLimit;
    use plimsoll_core::policy::resize::Usage;

    use super::*;
    use crate::report::{LATELY, now};

    fn report(what: Incident, ago: u64) -> Report {
        let last = now() - ago;
        let (kind, message) = (what.kind(), what.to_string());
        Report {
            kind,
            message,
            planned: false,
            what: Some(what),
            first: last,
            last,
            count: 1,
            lately: Default::default(),
        }
    }

    fn mib(amount: u64) -> Limit {
        Limit::Bytes(Bytes::new(amount << 20))
    }

    const DEFERRED: Wait = Wait { is_deferred: true, is_rescued: false };
    const RESCUED: Wait = Wait { is_deferred: false, is_rescued: true };

    /// A container with a limit of 250 MiB whose files all have their desired values.
    fn fine() -> Facts<'static> {
        let values = Values {
            min: Some(mib(64)),
            low: Some(mib(0)),
            high: Some(mib(200)),
            max: Some(mib(250)),
        };
        Facts {
            is_read: true,
            is_changing: false,
            only_observes: false,
            usage: Some(Bytes::new(100 << 20)),
            desired: values,
            observed: values,
            is_beyond_asked: false,
            wait: Wait { is_deferred: false, is_rescued: false },
            throttled: None,
            is_over: false,
            standing: Some(Standing::Protected),
            reports: &[],
        }
    }

    #[test]
    fn the_worst_that_is_known_is_the_state() {
        let cut = LowerLimit { limit: mib(100), in_force: mib(250), usage: Usage::default() };
        let killed = Incident::Killed {
            limit: None,
            by_own_limit: true,
            kills: 1,
            window: std::time::Duration::ZERO,
        };
        let (desired, observed) = (mib(64), mib(0));
        let contended = Incident::Contended { knob: Knob::Min, desired, observed, repairs: 5 };
        let raised = Values { max: Some(mib(300)), ..fine().desired };
        let written = Values { min: Some(mib(0)), ..fine().observed };
        let rescued = Facts {
            desired: raised,
            observed: raised,
            is_beyond_asked: true,
            wait: RESCUED,
            ..fine()
        };
        let throttled = Some(Throttled {
            usage: Bytes::new(200 << 20),
            line: Bytes::new(200 << 20),
            high: mib(200),
            max: Bytes::MAX,
            stalled: 80.0,
        });
        for (state, facts, reports) in [
            (State::Protected, fine(), vec![]),
            (State::Unprotected, Facts { standing: Some(Standing::Unclaimed), ..fine() }, vec![]),
            (State::Inert, Facts { standing: Some(Standing::Partly), ..fine() }, vec![]),
            (State::Unread, Facts { standing: None, ..fine() }, vec![]),
            (
                State::OverRequest,
                Facts { is_over: true, standing: Some(Standing::Inert), ..fine() },
                vec![],
            ),
            (State::Rescued, Facts { is_over: true, ..rescued }, vec![]),
            (State::Throttled, Facts { throttled, ..rescued }, vec![]),
            (State::Drifted, Facts { throttled, observed: written, ..fine() }, vec![]),
            // In observe mode a difference is no drift.
            (State::Protected, Facts { only_observes: true, observed: written, ..fine() }, vec![]),
            (
                State::WouldThrottle,
                Facts { only_observes: true, usage: Some(Bytes::new(201 << 20)), ..fine() },
                vec![],
            ),
            (State::Protected, Facts { usage: Some(Bytes::new(201 << 20)), ..fine() }, vec![]),
            (State::Protected, Facts { observed: written, is_changing: true, ..fine() }, vec![]),
            (
                State::Contended,
                Facts { observed: written, ..fine() },
                vec![report(contended, LATELY + 100)],
            ),
            (State::Refused, fine(), vec![report(Incident::CutRejected(cut), LATELY - 5)]),
            (State::Protected, fine(), vec![report(Incident::CutRejected(cut), LATELY + 5)]),
            // The limit has changed since the refusal.
            (State::Rescued, rescued, vec![report(Incident::CutRejected(cut), 0)]),
            // The limit is above the user's limit without a rescue, because the plugin gave up a
            // deferred limit.
            (
                State::Refused,
                Facts { is_beyond_asked: true, ..fine() },
                vec![report(Incident::CutGivenUp(cut), LATELY + 5)],
            ),
            (State::Deferred, Facts { is_beyond_asked: true, wait: DEFERRED, ..fine() }, vec![]),
            (
                State::Unread,
                Facts { is_read: false, ..fine() },
                vec![report(Incident::CutRejected(cut), 0)],
            ),
            (State::Killed, Facts { is_read: false, ..fine() }, vec![report(killed, LATELY - 5)]),
        ] {
            let facts = Facts { reports: &reports, ..facts };
            assert_eq!(facts.state(), state, "{facts:#?}");
        }
    }

    #[test]
    fn what_is_left_alone_does_not_differ() {
        let desired = Values { min: Some(mib(1)), low: None, high: Some(Limit::Max), max: None };
        let observed =
            Values { min: Some(mib(1)), low: Some(mib(5)), high: Some(mib(7)), max: Some(mib(9)) };
        assert_eq!(desired.differs_from(observed), 1);
    }

    #[test]
    fn many_things_are_done_in_parallel_and_come_in_their_order() {
        let items: Vec<usize> = (0..1000).collect();
        assert_eq!(
            in_parallel(&items, |item| item * 2),
            items.iter().map(|item| item * 2).collect::<Vec<_>>()
        );
        assert!(in_parallel(&[] as &[usize], |item| *item).is_empty());
    }
}
