//! What the plugin knows of the node at this moment: every container and every cgroup above, what each should have, what the
//! kernel holds, and a word for what that amounts to.
//!
//! The form is that of `plimsoll status --json`, which stays: fields may be added, none goes or changes its meaning without
//! another [`VERSION`]. Amounts are bytes, or `"max"`; what is not known is `null`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::fs;
use std::panic;
use std::thread;

use serde::{Deserialize, Serialize};

use crate::agent::guard;
use crate::agent::service::Parts;
use crate::cgroup::{Cgroup, CgroupError, CgroupPath, CgroupRoot, Knob};
use crate::config::Mode;
use crate::core::pod::QosClass;
use crate::core::policy::Protection;
use crate::core::policy::hierarchy::{self, Observed, Standing};
use crate::core::policy::resize::{self, Throttled};
use crate::core::units::{Bytes, Limit};
use crate::kubelet::node::MemInfo;
use crate::report::{Kind, Report, Subject, What};
use crate::state::containers::{Container, Containers, Decided, Settings, Update};

/// The version of this form.
pub const VERSION: u32 = 1;

/// How many threads read files, and how many things are not worth another one.
const MOST_THREADS: usize = 4;
const FEW: usize = 50;

/// The node.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// [`VERSION`].
    pub version: u32,
    /// The program's version.
    pub plimsoll: String,
    /// The node as a whole.
    pub node: NodeStatus,
    /// The cgroups above the containers, and those beside the pods that are protected; parents before children.
    pub cgroups: Vec<CgroupStatus>,
    /// The containers, trouble first.
    pub containers: Vec<ContainerStatus>,
    /// Containers that are down at the moment, of which something was told lately: such as one that is killed again and again.
    pub down: Vec<DownStatus>,
}

/// A container that is down at the moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DownStatus {
    /// Namespace of its pod.
    pub namespace: String,
    /// Name of its pod.
    pub pod: String,
    /// Its pod's uid.
    pub uid: String,
    /// Its name.
    pub container: String,
    /// What was told of it lately, the latest first.
    pub reports: Vec<Report>,
}

/// The node as a whole.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// All memory.
    pub memory: Option<Bytes>,
    /// What is available of it, by the kernel's estimate.
    pub available: Option<Bytes>,
    /// What pods may use altogether.
    pub allocatable: Option<Bytes>,
    /// What all pods together may use (`nodeGuard`); `null` if that is not bounded, also for want of a cgroup to bound.
    pub guard: Option<Bytes>,
    /// Why the node guard is not in force, or a part of it is not, or in observe mode would not be; `null` if all is, or none is wanted.
    #[serde(default)]
    pub guard_problem: Option<String>,
    /// What of the node could not be read, why, and what to do about it.
    #[serde(default)]
    pub problems: Vec<String>,
    /// `memory.max` of kubepods; `null` if there is no such cgroup, or it cannot be read.
    pub pods_max: Option<Limit>,
    /// The container runtime is connected, and has told of its pods and containers.
    pub synchronized: bool,
    /// `plimsoll restore` was called: nothing is set.
    pub stands_aside: bool,
    /// Whether the plugin acts, or only works out what it would do.
    #[serde(default)]
    pub mode: Mode,
    /// The reason why the plugin only observes, although it is configured to act; `null` unless the brake was applied.
    #[serde(default)]
    pub brake: Option<String>,
    /// What all pods together might use by `nodeGuard` if the plugin did not only observe; `null` otherwise.
    #[serde(default)]
    pub planned_guard: Option<Bytes>,
    /// In observe mode: how many containers use more than the `memory.high` that they would have.
    #[serde(default)]
    pub would_throttle: usize,
    /// In observe mode: how many limit decreases of the last ten minutes would have been refused or deferred.
    #[serde(default)]
    pub would_refuse: u64,
    /// The sum of all containers' requests, as far as they are known.
    pub requests: Bytes,
    /// The sum of all containers' limits.
    pub limits: Bytes,
    /// How many containers have no limit.
    pub unlimited: usize,
    /// What all containers use.
    pub usage: Bytes,
}

/// A cgroup above the containers, or one beside the pods that is protected.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CgroupStatus {
    /// Its path below the root.
    pub cgroup: CgroupPath,
    /// What it is.
    pub level: Level,
    /// What its files should hold.
    pub desired: Protection,
    /// What they hold; `null` if there is no such cgroup, or it cannot be read.
    pub observed: Option<Protection>,
    /// Why that is not known, and what to do about it.
    #[serde(default)]
    pub problem: Option<String>,
    /// How much of what it uses is protected, by the kernel's rule.
    pub effective: Option<Protection>,
    /// Whether what is written helps.
    pub standing: Option<Standing>,
    /// What it uses.
    pub usage: Option<Bytes>,
    /// Its limit.
    pub max: Option<Limit>,
    /// What was told of it lately, the latest first.
    pub reports: Vec<Report>,
}

/// Which level a cgroup is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// All pods.
    Kubepods,
    /// All pods of a class.
    Class,
    /// A pod.
    Pod,
    /// Beside the pods, and named by the operator.
    Reserved,
}

impl Level {
    /// The word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Kubepods => "kubepods",
            Self::Class => "class",
            Self::Pod => "pod",
            Self::Reserved => "reserved",
        }
    }
}

/// A container.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerStatus {
    /// Namespace of its pod.
    pub namespace: String,
    /// Name of its pod.
    pub pod: String,
    /// Its pod's uid.
    pub uid: String,
    /// Its name.
    pub container: String,
    /// Its id in the runtime.
    pub id: String,
    /// Its cgroup, below the root.
    pub cgroup: Option<CgroupPath>,
    /// What all this amounts to.
    pub state: State,
    /// Its QoS class.
    pub class: QosClass,
    /// Its request.
    pub request: Option<RequestStatus>,
    /// The limit that its user asks for.
    pub asked: Limit,
    /// What it uses (`memory.current`).
    pub usage: Option<Bytes>,
    /// The same without page cache that was not used lately, as the kubelet counts it.
    pub working_set: Option<Bytes>,
    /// How much more than its request that is.
    pub over_request: Bytes,
    /// Its limit is more than `maxLimitRequestRatio` times its request.
    pub overcommitted: bool,
    /// In observe mode: it uses more than the `memory.high` that it would have.
    #[serde(default)]
    pub would_throttle: bool,
    /// What its files should hold; `max` is its limit.
    pub desired: Values,
    /// Why.
    pub reasons: Reasons,
    /// What they hold; `null` if they cannot be read.
    pub observed: Option<Values>,
    /// Why that is not known, and what to do about it.
    #[serde(default)]
    pub problem: Option<String>,
    /// How much of what it uses is protected, by the kernel's rule.
    pub effective: Option<Protection>,
    /// Whether what is written helps.
    pub standing: Option<Standing>,
    /// How long all of it has waited for memory, in seconds, since it was started (`memory.pressure`, full).
    pub stalled_seconds: Option<f64>,
    /// How much of the last ten seconds that was, in percent.
    pub stalled_percent: Option<f64>,
    /// How many of its processes the kernel has killed for want of memory.
    pub oom_kills: Option<u64>,
    /// What was told of it lately, whatever ids it has had, the latest first.
    pub reports: Vec<Report>,
}

/// A request.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestStatus {
    /// The request, or the least that it can be.
    pub bytes: Bytes,
    /// The most that it can be.
    pub at_most: Bytes,
    /// Where it was learnt.
    pub provenance: String,
}

/// What a container's files hold, or should.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Values {
    /// `memory.min`; `null` is to be left alone.
    pub min: Option<Limit>,
    /// `memory.low`.
    pub low: Option<Limit>,
    /// `memory.high`.
    pub high: Option<Limit>,
    /// `memory.max`.
    pub max: Option<Limit>,
}

impl Values {
    /// How many files hold something else than they should, which is these values.
    pub fn differs_from(self, observed: Self) -> usize {
        let all = |values: Self| [values.min, values.low, values.high, values.max];
        all(self)
            .into_iter()
            .zip(all(observed))
            .filter(|(desired, held)| desired.is_some() && desired != held)
            .count()
    }
}

/// Why files should hold what they should.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reasons {
    /// `memory.min`.
    pub min: String,
    /// `memory.low`.
    pub low: String,
    /// `memory.high`.
    pub high: String,
}

/// What all that is known of a container amounts to, in a word. What is worse comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// The kernel killed processes of it within the last ten minutes.
    Killed,
    /// A lower limit was refused, or given up, since it uses more.
    Refused,
    /// A lower limit waits until it uses less.
    Deferred,
    /// Somebody else keeps setting its files.
    Contended,
    /// Its files are not as they should be.
    Drifted,
    /// It stands at `memory.high`, waiting for memory.
    Throttled,
    /// Observe mode: it uses more than the `memory.high` that it would have.
    WouldThrottle,
    /// Its limit was raised since it was killed again and again.
    Rescued,
    /// It uses more than it requested, which may be taken from it.
    OverRequest,
    /// What is written for it does not protect: a cgroup above has less.
    Inert,
    /// It has not started yet, or its cgroup or one above cannot be read.
    Unread,
    /// Nothing is protected for it.
    Unprotected,
    /// Its request is protected.
    Protected,
}

impl State {
    /// All of them, the worst first.
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

    /// The word.
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

/// The same of each, by as many threads as there are processors, but few: most of it is the kernel's work.
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

/// What was read of a container.
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
    /// Reads all of it. Takes some tens of microseconds for each container.
    pub fn read(parts: &Parts) -> Self {
        let Parts { containers, ancestors, root, reports, .. } = parts;
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
                let record = containers.record(&container.uid, &container.name, container.moment);
                containers.plan(container, &record)
            })
            .collect();
        let levels = if settings.observes() {
            let claims = known.iter().zip(&plans).filter_map(|(container, plan)| {
                Some((container.place.as_ref()?, container.id.as_str(), plan.desired.claim?))
            });
            ancestors.planned_levels(&settings, claims)
        } else {
            ancestors.levels()
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
                    is_deferred: parts.deferrals.is_waiting(&container.id),
                    is_rescued: parts.kills.limit_for(container) == Some(container.limit),
                };
                container_status(&settings, container, plan, read.as_ref(), effective, told, wait)
            })
            .collect();
        // The worst first; among those the one that uses most beyond its request.
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
        let pods = ancestors.pods();
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
            node: NodeStatus::read(parts, &rows),
            cgroups: cgroups.collect(),
            containers: rows,
            down: down.collect(),
        }
    }
}

/// Why nothing was read of a container.
const NOT_STARTED: &str = "it has not started yet";

/// Why something could not be read, and what to do about it.
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

/// What of the node is not known.
fn node_problems(
    containers: &Containers,
    settings: &Settings,
    meminfo: &Result<MemInfo, String>,
) -> Vec<String> {
    let records = containers.record_problems().into_iter();
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

/// Says in observe mode that pods use more than the guard would leave them.
fn guard_would_wait(kubepods: &Cgroup, line: Bytes) -> Option<String> {
    match kubepods.usage() {
        Ok(usage) => (usage > line).then(|| {
            let (usage, line) = (usage.approx(), line.approx());
            format!("nodeGuard would wait: pods use {usage}, and it leaves them {line}; it would reclaim what it can, and kill nobody")
        }),
        Err(error) => Some(format!("nodeGuard: cannot read what pods use: {error}")),
    }
}

/// Says that the guard protects nothing of the system, as there is no cgroup of it.
fn half_a_guard(settings: &Settings, root: &CgroupRoot) -> Option<String> {
    if !settings.config.reserved.is_empty() {
        return None;
    }
    match root.cgroup(&CgroupPath::system_slice()) {
        Ok(_) => None,
        Err(CgroupError::Gone(_)) => {
            let protects = if settings.observes() { "would protect" } else { "protects" };
            Some(format!("{}: nothing {protects} the system", guard::NO_SYSTEM_SLICE))
        }
        Err(error) => Some(format!("nodeGuard: cannot look for system.slice: {error}")),
    }
}

impl NodeStatus {
    fn read(parts: &Parts, rows: &[ContainerStatus]) -> Self {
        let Parts { containers, ancestors, root, reports, synchronized, .. } = parts;
        let settings = containers.settings();
        let meminfo =
            fs::read_to_string(root.host().join("proc/meminfo")).map_err(|error| error.to_string());
        let meminfo =
            meminfo.and_then(|text| MemInfo::parse(&text).map_err(|error| error.to_string()));
        let problems = node_problems(containers, &settings, &meminfo);
        let sum = |of: &dyn Fn(&ContainerStatus) -> Option<Bytes>| {
            rows.iter().filter_map(of).fold(Bytes::ZERO, Bytes::saturating_add)
        };
        let kubepods = guard::kubepods(root, ancestors);
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
                report.planned && matches!(report.kind, Kind::CutRejected | Kind::CutDeferred)
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

/// The parts of `namespace/name`.
fn namespace_and_name(pod: &str) -> (&str, &str) {
    pod.split_once('/').unwrap_or(("", pod))
}

/// What others know of a container's limit.
#[derive(Clone, Copy, Debug)]
struct Wait {
    /// A lower one waits.
    is_deferred: bool,
    /// It was raised by ourselves.
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

/// What a container's state is judged by.
#[derive(Clone, Copy, Debug)]
struct Facts<'r> {
    is_read: bool,
    is_changing: bool,
    /// Nothing is set, so what differs is no trouble.
    only_observes: bool,
    usage: Option<Bytes>,
    desired: Values,
    observed: Values,
    /// It has a higher limit than its user asks for.
    is_beyond_asked: bool,
    wait: Wait,
    throttled: Option<Throttled>,
    is_over: bool,
    standing: Option<Standing>,
    /// The latest first.
    reports: &'r [Report],
}

impl Facts<'_> {
    /// It uses more than the `memory.high` that it would have.
    fn would_throttle(&self) -> bool {
        self.only_observes
            && self
                .usage
                .zip(self.desired.high)
                .is_some_and(|(usage, high)| Limit::Bytes(usage) > high)
    }

    fn state(&self) -> State {
        let was =
            |kind: Kind| self.reports.iter().any(|report| report.is_late() && report.kind == kind);
        if was(Kind::Killed) {
            return State::Killed;
        }
        if !self.is_read {
            return State::Unread;
        }
        if self.wait.is_deferred {
            return State::Deferred;
        }
        // As long as the limit is what it was then.
        let is_refused = self.reports.iter().filter(|report| report.is_late()).any(|report| {
            match &report.what {
                Some(What::CutRejected(cut)) => {
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
            // It is told once, however long it goes on.
            let is_contended = self.reports.iter().any(|report| report.kind == Kind::Contended);
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
            // A cgroup above could not be read.
            None => State::Unread,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::policy::resize::Usage;
    use crate::report::{LATELY, LowerLimit, now};

    fn report(what: What, ago: u64) -> Report {
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

    /// A container with a limit of 250 MiB, all of it as it should be.
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
        let killed = What::Killed {
            limit: None,
            by_own_limit: true,
            kills: 1,
            window: std::time::Duration::ZERO,
        };
        let (desired, observed) = (mib(64), mib(0));
        let contended = What::Contended { knob: Knob::Min, desired, observed, repairs: 5 };
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
            // What would be set is no drift.
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
            (State::Refused, fine(), vec![report(What::CutRejected(cut), LATELY - 5)]),
            (State::Protected, fine(), vec![report(What::CutRejected(cut), LATELY + 5)]),
            // It has another limit since.
            (State::Rescued, rescued, vec![report(What::CutRejected(cut), 0)]),
            // What it has it does not have for a rescue: it was given up.
            (
                State::Refused,
                Facts { is_beyond_asked: true, ..fine() },
                vec![report(What::CutGivenUp(cut), LATELY + 5)],
            ),
            (State::Deferred, Facts { is_beyond_asked: true, wait: DEFERRED, ..fine() }, vec![]),
            (
                State::Unread,
                Facts { is_read: false, ..fine() },
                vec![report(What::CutRejected(cut), 0)],
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
