//! Decision on a container's `memory.min`, `memory.low` and `memory.high`: the desired values and
//! the reasons.
//!
//! [`desired`] is a total function of its arguments. The arithmetic equals the kubelet's to the
//! byte, with its float64 operations in their order on amd64. Source: KEP-2570,
//! `pkg/kubelet/kuberuntime/kuberuntime_container_linux.go`.

pub mod contention;
pub mod guard;
pub mod hierarchy;
pub mod pod_limit;
pub mod rescue;
pub mod resize;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::pod::{QosClass, Request, Resources};
use crate::units::{Bytes, Limit, PageSize, excerpt};

/// Throttling factor: the fraction of the way from request to limit at which throttling starts.
/// Above 0, at most 1.
///
/// A factor of 1 throttles only in the last page below the limit.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct ThrottlingFactor(f64);

impl ThrottlingFactor {
    /// The default of Kubernetes since 1.27.
    pub const DEFAULT: Self = Self(0.9);

    /// Creates a factor, or returns `None` unless the number is above 0 and at most 1.
    pub fn new(factor: f64) -> Option<Self> {
        (factor > 0.0 && factor <= 1.0).then_some(Self(factor))
    }

    /// Returns the number, above 0 and at most 1.
    pub const fn get(self) -> f64 {
        self.0
    }
}

impl fmt::Display for ThrottlingFactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for ThrottlingFactor {
    type Err = FactorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().ok().and_then(Self::new).ok_or_else(|| FactorError(excerpt(text)))
    }
}

/// Error: the text is not a throttling factor.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("expected a number above 0 and at most 1, found '{0}'")]
pub struct FactorError(String);

/// Policy for the protection of memory requests (`memoryReservationPolicy`), ordered from the
/// weakest to the strongest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReservationPolicy {
    /// No protection: `memory.min` and `memory.low` are 0.
    None,
    /// `memory.min` for Guaranteed containers, `memory.low` for Burstable containers (Kubernetes
    /// 1.36).
    TieredReservation,
    /// `memory.min` for every container with a request (Kubernetes 1.27).
    #[default]
    HardReservation,
}

impl ReservationPolicy {
    /// All policies, for messages and tests.
    pub const ALL: [Self; 3] = [Self::None, Self::TieredReservation, Self::HardReservation];
}

/// Writes the name used in the configuration.
impl fmt::Display for ReservationPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::TieredReservation => "TieredReservation",
            Self::HardReservation => "HardReservation",
        })
    }
}

/// Policy for a container: the node's configuration with the pod's overrides.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Policy {
    /// Throttling factor. With `None` the plugin never sets `memory.high`.
    pub throttling: Option<ThrottlingFactor>,
    /// Protection of the request.
    pub reservation: ReservationPolicy,
    /// Distance of `memory.min` below the container's limit (`memoryMinHeadroom`).
    pub headroom: Bytes,
}

impl Policy {
    /// Default headroom: twice the amount that measurements found sufficient.
    pub const DEFAULT_HEADROOM: Bytes = Bytes::new(2 << 20);

    /// Policy without protection and throttling: every file has the kernel's default.
    pub const OFF: Self =
        Self { throttling: None, reservation: ReservationPolicy::None, headroom: Bytes::ZERO };
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            throttling: Some(ThrottlingFactor::DEFAULT),
            reservation: ReservationPolicy::default(),
            headroom: Self::DEFAULT_HEADROOM,
        }
    }
}

/// Properties of the node that the decision depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// Memory that all pods together may use (node allocatable). The decision uses it where a
    /// container has no limit. `None` means unknown.
    pub allocatable: Option<Bytes>,
    /// The page size.
    pub page_size: PageSize,
}

/// Amount of protected memory, for one container or for everything below a cgroup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protection {
    /// Protection by `memory.min`.
    pub min: Bytes,
    /// Protection by `memory.low`.
    pub low: Bytes,
}

impl Protection {
    /// Returns the protection of files with these values. `max` becomes [`Bytes::MAX`].
    pub fn of_files(min: Limit, low: Limit) -> Self {
        let bytes = |limit: Limit| limit.bytes().unwrap_or(Bytes::new(u64::MAX));
        Self { min: bytes(min), low: bytes(low) }
    }

    /// Returns the larger value for each file.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self { min: self.min.max(other.min), low: self.low.max(other.low) }
    }
}

/// Action for one cgroup v2 file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// Set the file to this value.
    Set(Limit),
    /// Use the kernel's default: 0 for `memory.min` and `memory.low`, `max` for `memory.high`. For
    /// a new container the plugin sends nothing. A file with another value must be reset.
    Default,
    /// The desired value is not known. Keep the current value.
    LeaveAlone,
}

/// Action for one cgroup v2 file, with its reason.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decision {
    /// The action.
    pub setting: Setting,
    /// The reason, which prints as a sentence with the numbers.
    pub reason: Reason,
}

impl Decision {
    const fn set(bytes: Bytes, reason: Reason) -> Self {
        Self { setting: Setting::Set(Limit::Bytes(bytes)), reason }
    }

    const fn default(reason: Reason) -> Self {
        Self { setting: Setting::Default, reason }
    }

    const fn leave_alone(reason: Reason) -> Self {
        Self { setting: Setting::LeaveAlone, reason }
    }
}

/// Desired values of a container's memory files.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Desired {
    /// `memory.min`: memory below this is never reclaimed. The value is not rounded; the kernel
    /// rounds it down to pages.
    pub min: Decision,
    /// `memory.low`: memory below this is reclaimed only when no unprotected memory is left. The
    /// value is not rounded.
    pub low: Decision,
    /// `memory.high`: above this the container is throttled and reclaimed. The value is in whole
    /// pages.
    pub high: Decision,
    /// Protection that the ancestor cgroups need for the container: the exact request without
    /// headroom. `None` means unknown.
    pub claim: Option<Protection>,
}

impl Desired {
    /// Returns the desired value of `memory.min`. `None` means keep the current value.
    pub fn min_value(&self) -> Option<Limit> {
        value(self.min.setting, Limit::Bytes(Bytes::ZERO))
    }

    /// Returns the desired value of `memory.low`. `None` means keep the current value.
    pub fn low_value(&self) -> Option<Limit> {
        value(self.low.setting, Limit::Bytes(Bytes::ZERO))
    }

    /// Returns the desired value of `memory.high`. `None` means keep the current value.
    pub fn high_value(&self) -> Option<Limit> {
        value(self.high.setting, Limit::Max)
    }
}

fn value(setting: Setting, default: Limit) -> Option<Limit> {
    match setting {
        Setting::Set(value) => Some(value),
        Setting::Default => Some(default),
        Setting::LeaveAlone => None,
    }
}

/// Upper end of the range in the formula for `memory.high`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ceiling {
    /// The container's limit.
    Limit(Bytes),
    /// Node allocatable, because the container has no limit.
    Allocatable(Bytes),
}

impl Ceiling {
    /// Returns the amount.
    pub const fn bytes(self) -> Bytes {
        match self {
            Self::Limit(bytes) | Self::Allocatable(bytes) => bytes,
        }
    }
}

impl fmt::Display for Ceiling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Limit(bytes) => write!(f, "the limit {}", bytes.quantity()),
            Self::Allocatable(bytes) => write!(f, "node allocatable {}", bytes.quantity()),
        }
    }
}

/// Reason for the value of a file. `Display` writes one plain sentence with the numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reason {
    /// The policy is `None`.
    NothingReserved,
    /// The value is the request.
    IsRequest(Request),
    /// The request exceeds the limit, so the value is the limit.
    CappedAtLimit {
        /// The original request.
        request: Request,
        /// The limit.
        limit: Bytes,
    },
    /// The request is closer to the limit than the headroom allows.
    Headroom {
        /// The request.
        request: Request,
        /// The limit.
        limit: Bytes,
        /// Memory below the limit that stays unprotected.
        headroom: Bytes,
    },
    /// The request is 0.
    RequestIsZero(Request),
    /// The request is not known.
    RequestUnknown,
    /// `TieredReservation` protects this class with the other file: `memory.min` or `memory.low`.
    OtherTier(QosClass),
    /// `HardReservation` does not use `memory.low`.
    HardUsesMin,
    /// The policy has no throttling factor.
    NoThrottling,
    /// Guaranteed containers are not throttled.
    GuaranteedNotThrottled,
    /// Request and limit are equal, so there is no range to throttle in.
    RequestEqualsLimit(Bytes),
    /// The container has no limit, and node allocatable is not known.
    AllocatableUnknown,
    /// The value is the result of the formula.
    Formula(Formula),
    /// The result is not above the request, so `memory.high` would throttle requested memory.
    NotAboveRequest(Formula),
}

/// Inputs and result of the formula for `memory.high`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Formula {
    /// The request.
    pub request: Request,
    /// The upper end of the range.
    pub ceiling: Ceiling,
    /// The factor.
    pub factor: ThrottlingFactor,
    /// The page size.
    pub page_size: PageSize,
    /// The result in bytes, rounded down to whole pages.
    pub result: i64,
}

impl fmt::Display for Formula {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "request {} + {} x ({} - request) is {} in whole pages of {}",
            self.request, self.factor, self.ceiling, self.result, self.page_size
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NothingReserved => f.write_str("the reservation policy is None, so nothing is protected"),
            Self::IsRequest(request) => write!(f, "it is the request, {request}"),
            Self::CappedAtLimit { request, limit } => {
                write!(f, "the request {request} exceeds the limit, so it is the limit, {}", limit.quantity())
            }
            Self::Headroom { request, limit, headroom } => write!(
                f,
                "the request is {request}, and {} below the limit {} stay unprotected, so that page cache can be \
                 reclaimed before the limit kills",
                headroom.quantity(),
                limit.quantity()
            ),
            Self::RequestIsZero(request) => write!(f, "the request is {request}, so there is nothing to protect"),
            Self::RequestUnknown => f.write_str("the request is not known, so the value is left as it is"),
            Self::OtherTier(QosClass::Guaranteed) => {
                f.write_str("TieredReservation protects Guaranteed containers by memory.min instead")
            }
            Self::OtherTier(class) => {
                write!(f, "TieredReservation protects {class} containers by memory.low instead")
            }
            Self::HardUsesMin => f.write_str("HardReservation protects by memory.min instead"),
            Self::NoThrottling => f.write_str("there is no throttling factor, so memory.high is never set"),
            Self::GuaranteedNotThrottled => f.write_str("Guaranteed containers are not throttled below their limit"),
            Self::RequestEqualsLimit(bytes) => {
                write!(f, "request and limit are both {}, so there is nothing to throttle", bytes.quantity())
            }
            Self::AllocatableUnknown => {
                f.write_str("there is no limit and node allocatable is not known, so the value is left as it is")
            }
            Self::Formula(formula) => formula.fmt(f),
            Self::NotAboveRequest(formula) => {
                write!(f, "{formula}, which is not above the request, so there is no throttling")
            }
        }
    }
}

/// Decides the desired values of a container's memory files.
///
/// - A request above the limit counts as the limit.
/// - If only bounds of the request are known, protection uses the lower bound. So only requested
///   memory is protected. `memory.high` is set only above the upper bound, so that requested memory
///   is never throttled.
/// - If the request is unknown, values that depend on the request stay as they are.
/// - Node allocatable replaces a missing limit, also for a Burstable container without any request.
///   kubernetes/kubernetes has done so since its fix for BestEffort pods; before, the kubelet set
///   nothing.
/// - `memory.min` stays [`Policy::headroom`] below the limit. This is the only deliberate
///   difference from Kubernetes.
///
/// The headroom prevents OOM kills. A pod's `memory.max` is the sum of its containers' limits. If a
/// container is protected up to its limit, the kernel finds nothing to reclaim at the pod's limit.
/// The kernel then OOM-kills the container because of its own page cache. In measurements the
/// container died with 4 KiB of headroom and survived with 1 MiB.
///
/// The headroom covers the other memory charged to the pod, such as the sandbox's pause process.
/// The other memory does not grow with the limit, so the headroom is an amount, not a fraction.
pub fn desired(resources: &Resources, class: QosClass, node: &Node, policy: &Policy) -> Desired {
    let exact = reservation(resources);
    let claim = value(exact.setting, Limit::Bytes(Bytes::ZERO)).and_then(Limit::bytes);
    let hard = |bytes| Protection { min: bytes, low: Bytes::ZERO };
    let soft = |bytes| Protection { min: Bytes::ZERO, low: bytes };
    let other = Decision::default(Reason::OtherTier(class));
    let (min, low, claim) = match (policy.reservation, class) {
        (ReservationPolicy::None, _) => {
            let nothing = Decision::default(Reason::NothingReserved);
            (nothing, nothing, Some(Protection::default()))
        }
        (ReservationPolicy::HardReservation, _) => {
            let low = Decision::default(Reason::HardUsesMin);
            (below_limit(exact, resources, policy.headroom), low, claim.map(hard))
        }
        (ReservationPolicy::TieredReservation, QosClass::Guaranteed) => {
            (below_limit(exact, resources, policy.headroom), other, claim.map(hard))
        }
        (ReservationPolicy::TieredReservation, QosClass::Burstable | QosClass::BestEffort) => {
            (other, exact, claim.map(soft))
        }
    };
    Desired { min, low, high: throttling(resources, class, node, policy.throttling), claim }
}

/// Returns the protection for a pod's overhead. The overhead uses the same file as the containers.
pub fn overhead(bytes: Bytes, class: QosClass, policy: &Policy) -> Protection {
    match (policy.reservation, class) {
        (ReservationPolicy::None, _) => Protection::default(),
        (ReservationPolicy::HardReservation, _)
        | (ReservationPolicy::TieredReservation, QosClass::Guaranteed) => {
            Protection { min: bytes, low: Bytes::ZERO }
        }
        (ReservationPolicy::TieredReservation, _) => Protection { min: Bytes::ZERO, low: bytes },
    }
}

/// Lowers a value of `memory.min` so that the headroom below the limit stays unprotected.
fn below_limit(exact: Decision, resources: &Resources, headroom: Bytes) -> Decision {
    let (Setting::Set(Limit::Bytes(wanted)), Limit::Bytes(limit), Some(request)) =
        (exact.setting, resources.limit, resources.request)
    else {
        return exact;
    };
    let most = limit.saturating_sub(headroom);
    if wanted <= most {
        return exact;
    }
    let reason = Reason::Headroom { request, limit, headroom };
    if most == Bytes::ZERO { Decision::default(reason) } else { Decision::set(most, reason) }
}

/// Returns the decision that protects the request.
fn reservation(resources: &Resources) -> Decision {
    let Some(request) = resources.request else {
        return Decision::leave_alone(Reason::RequestUnknown);
    };
    match resources.limit {
        Limit::Bytes(limit) if request.bytes > limit => {
            Decision::set(limit, Reason::CappedAtLimit { request, limit })
        }
        _ if request.bytes == Bytes::ZERO => Decision::default(Reason::RequestIsZero(request)),
        _ => Decision::set(request.bytes, Reason::IsRequest(request)),
    }
}

/// Decides the value of `memory.high`.
fn throttling(
    resources: &Resources,
    class: QosClass,
    node: &Node,
    factor: Option<ThrottlingFactor>,
) -> Decision {
    let Some(factor) = factor else {
        return Decision::default(Reason::NoThrottling);
    };
    if class == QosClass::Guaranteed {
        return Decision::default(Reason::GuaranteedNotThrottled);
    }
    let Some(request) = resources.request else {
        return Decision::leave_alone(Reason::RequestUnknown);
    };
    let (request, ceiling) = match (resources.limit, node.allocatable) {
        (Limit::Bytes(limit), _) => (request.capped(limit), Ceiling::Limit(limit)),
        (Limit::Max, Some(allocatable)) => (request, Ceiling::Allocatable(allocatable)),
        (Limit::Max, None) => return Decision::leave_alone(Reason::AllocatableUnknown),
    };
    if resources.limit == Limit::Bytes(request.bytes) {
        return Decision::default(Reason::RequestEqualsLimit(request.bytes));
    }
    let result = memory_high(request.bytes, ceiling.bytes(), factor, node.page_size);
    let formula = Formula { request, ceiling, factor, page_size: node.page_size, result };
    match u64::try_from(result) {
        Ok(high) if high > request.at_most.get() => {
            Decision::set(Bytes::new(high), Reason::Formula(formula))
        }
        _ => Decision::default(Reason::NotAboveRequest(formula)),
    }
}

/// Computes `memory.high` with the kubelet's expression, operation by operation.
///
/// As in the kubelet, the floor comes before the division by the page size. The text of the KEP has
/// the floor after the division. The conversion to an integer then drops the fraction. The
/// multiplication wraps as in Go, which only happens with amounts near 2^63.
fn memory_high(request: Bytes, limit: Bytes, factor: ThrottlingFactor, page: PageSize) -> i64 {
    let request = request.get() as f64;
    let limit = limit.get() as f64;
    let high = (request + (limit - request) * factor.get()).floor();
    ((high / page.get() as f64) as i64).wrapping_mul(page.get() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::Provenance;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn mib(amount: u64) -> Bytes {
        Bytes::new(amount * MIB)
    }

    fn factor(factor: f64) -> ThrottlingFactor {
        ThrottlingFactor::new(factor).unwrap()
    }

    fn node(allocatable: Option<Bytes>) -> Node {
        Node { allocatable, page_size: PageSize::KIB4 }
    }

    fn container(request: u64, limit: Option<u64>) -> Resources {
        Resources {
            request: Some(Request::exact(Bytes::new(request), Provenance::PodSpec)),
            limit: limit.map_or(Limit::Max, |limit| Limit::Bytes(Bytes::new(limit))),
        }
    }

    fn set(bytes: Bytes) -> Setting {
        Setting::Set(Limit::Bytes(bytes))
    }

    fn high(resources: &Resources, class: QosClass, throttling: f64) -> Setting {
        let policy = Policy { throttling: Some(factor(throttling)), ..Policy::default() };
        desired(resources, class, &node(Some(mib(8192))), &policy).high.setting
    }

    /// Examples from the tables of KEP-2570, "Alpha v1.27", which assume pages of 1 MiB.
    #[test]
    fn the_examples_of_kep_2570_come_out_as_written() {
        let mut cases: Vec<(u64, f64, Option<u64>)> =
            (0..10).map(|step| (step * 100, 0.9, Some(900 + step * 10))).collect();
        cases.extend([
            (500, 0.6, Some(800)),
            (800, 0.6, Some(920)),
            (1000, 0.6, None),
            (500, 0.8, Some(900)),
            (850, 0.8, Some(970)),
            (500, 0.4, Some(700)),
        ]);
        let node = Node { allocatable: None, page_size: PageSize::new(MIB).unwrap() };
        for (request, throttling, expected) in cases {
            let policy = Policy { throttling: Some(factor(throttling)), ..Policy::default() };
            let resources = container(request * MIB, Some(1000 * MIB));
            let high = desired(&resources, QosClass::Burstable, &node, &policy).high_value();
            let expected = expected.map_or(Limit::Max, |expected| Limit::Bytes(mib(expected)));
            assert_eq!(high, Some(expected), "request {request} factor {throttling}");
        }
    }

    #[test]
    fn the_grid_up_to_64_gib_equals_the_table_computed_by_go() {
        let table = include_str!("../../tests/data/memory_high.csv");
        let mut rows = 0;
        for row in table.lines().filter(|line| !line.starts_with('#')) {
            let columns: Vec<&str> = row.split(',').collect();
            let [request, limit, throttling, page, expected] = columns[..] else { panic!("{row}") };
            let result = memory_high(
                request.parse().unwrap(),
                limit.parse().unwrap(),
                throttling.parse().unwrap(),
                PageSize::new(page.parse().unwrap()).unwrap(),
            );
            assert_eq!(result, expected.parse::<i64>().unwrap(), "{row}");
            rows += 1;
        }
        assert!(rows > 3000, "{rows} rows");
    }

    #[test]
    fn a_guaranteed_container_is_protected_and_not_throttled() {
        for (policy, min, low) in [
            (ReservationPolicy::HardReservation, set(mib(62)), Setting::Default),
            (ReservationPolicy::TieredReservation, set(mib(62)), Setting::Default),
            (ReservationPolicy::None, Setting::Default, Setting::Default),
        ] {
            let policy = Policy { reservation: policy, ..Policy::default() };
            let resources = container(64 * MIB, Some(64 * MIB));
            let wanted = desired(&resources, QosClass::Guaranteed, &node(None), &policy);
            assert_eq!((wanted.min.setting, wanted.low.setting), (min, low));
            assert_eq!(wanted.high, Decision::default(Reason::GuaranteedNotThrottled));
        }
    }

    #[test]
    fn min_stays_a_headroom_below_the_limit_and_the_claim_does_not() {
        let wanted = |request: u64, limit: u64, headroom: u64| {
            let policy = Policy { headroom: mib(headroom), ..Policy::default() };
            let wanted = desired(
                &container(request * MIB, Some(limit * MIB)),
                QosClass::Burstable,
                &node(None),
                &policy,
            );
            assert_eq!(wanted.claim, Some(Protection { min: mib(request), low: Bytes::ZERO }));
            wanted.min
        };
        assert_eq!(wanted(64, 64, 2).setting, set(mib(62)));
        assert_eq!(
            wanted(64, 64, 2).reason.to_string(),
            "the request is 64Mi (pod-spec), and 2Mi below the limit 64Mi stay unprotected, so that page cache can be \
             reclaimed before the limit kills"
        );
        assert_eq!(wanted(63, 64, 2).setting, set(mib(62)));
        assert_eq!(wanted(62, 64, 2).setting, set(mib(62)));
        assert!(matches!(wanted(62, 64, 2).reason, Reason::IsRequest(_)));
        assert_eq!(wanted(64, 64, 0).setting, set(mib(64)));
        assert_eq!(wanted(2, 2, 2).setting, Setting::Default);
    }

    #[test]
    fn soft_protection_needs_no_headroom() {
        let policy =
            Policy { reservation: ReservationPolicy::TieredReservation, ..Policy::default() };
        let wanted = desired(
            &container(64 * MIB, Some(64 * MIB)),
            QosClass::Burstable,
            &node(None),
            &policy,
        );
        assert_eq!(wanted.low.setting, set(mib(64)));
        assert_eq!(wanted.claim, Some(Protection { min: Bytes::ZERO, low: mib(64) }));
    }

    #[test]
    fn overhead_counts_by_the_file_of_its_class() {
        let policy = |reservation| Policy { reservation, ..Policy::default() };
        let hard = Protection { min: mib(8), low: Bytes::ZERO };
        let soft = Protection { min: Bytes::ZERO, low: mib(8) };
        for (reservation, class, expected) in [
            (ReservationPolicy::HardReservation, QosClass::BestEffort, hard),
            (ReservationPolicy::TieredReservation, QosClass::Guaranteed, hard),
            (ReservationPolicy::TieredReservation, QosClass::Burstable, soft),
            (ReservationPolicy::None, QosClass::Guaranteed, Protection::default()),
        ] {
            assert_eq!(
                overhead(mib(8), class, &policy(reservation)),
                expected,
                "{reservation} {class}"
            );
        }
    }

    #[test]
    fn a_burstable_container_is_protected_by_the_tier_of_the_policy() {
        for (policy, min, low) in [
            (ReservationPolicy::HardReservation, set(mib(64)), Setting::Default),
            (ReservationPolicy::TieredReservation, Setting::Default, set(mib(64))),
            (ReservationPolicy::None, Setting::Default, Setting::Default),
        ] {
            let policy = Policy { reservation: policy, ..Policy::default() };
            let resources = container(64 * MIB, Some(128 * MIB));
            let wanted = desired(&resources, QosClass::Burstable, &node(None), &policy);
            assert_eq!((wanted.min.setting, wanted.low.setting), (min, low));
            assert_eq!(wanted.high_value(), Some(Limit::Bytes(Bytes::new(127_504_384))));
        }
    }

    #[test]
    fn a_best_effort_container_is_throttled_below_node_allocatable() {
        let wanted = desired(
            &container(0, None),
            QosClass::BestEffort,
            &node(Some(mib(1000))),
            &Policy::default(),
        );
        assert_eq!(wanted.min.setting, Setting::Default);
        assert_eq!(wanted.low.setting, Setting::Default);
        assert_eq!(wanted.high.setting, set(mib(900)));
    }

    #[test]
    fn node_allocatable_stands_in_for_a_missing_limit() {
        assert_eq!(high(&container(192 * MIB, None), QosClass::Burstable, 0.5), set(mib(4192)));
        assert_eq!(high(&container(0, None), QosClass::Burstable, 0.5), set(mib(4096)));
    }

    #[test]
    fn without_limit_and_allocatable_high_is_left_alone() {
        let wanted =
            desired(&container(MIB, None), QosClass::Burstable, &node(None), &Policy::default());
        assert_eq!(wanted.high, Decision::leave_alone(Reason::AllocatableUnknown));
        assert_eq!(wanted.min.setting, set(mib(1)));
    }

    #[test]
    fn an_unknown_request_leaves_what_depends_on_it_alone() {
        let resources = Resources { request: None, limit: Limit::Bytes(mib(128)) };
        let wanted =
            |policy: Policy| desired(&resources, QosClass::Burstable, &node(None), &policy);
        let hard = wanted(Policy::default());
        assert_eq!((hard.min_value(), hard.high_value()), (None, None));
        assert_eq!(hard.low_value(), Some(Limit::Bytes(Bytes::ZERO)));
        let tiered = wanted(Policy {
            reservation: ReservationPolicy::TieredReservation,
            ..Policy::default()
        });
        assert_eq!(
            (tiered.min_value(), tiered.low_value()),
            (Some(Limit::Bytes(Bytes::ZERO)), None)
        );
        let off = wanted(Policy::OFF);
        assert_eq!(off.min_value(), Some(Limit::Bytes(Bytes::ZERO)));
        assert_eq!(off.low_value(), Some(Limit::Bytes(Bytes::ZERO)));
        assert_eq!(off.high_value(), Some(Limit::Max));
    }

    #[test]
    fn a_request_equal_to_the_limit_is_not_throttled() {
        let wanted = desired(
            &container(MIB, Some(MIB)),
            QosClass::Burstable,
            &node(None),
            &Policy::default(),
        );
        assert_eq!(wanted.high, Decision::default(Reason::RequestEqualsLimit(mib(1))));
    }

    #[test]
    fn a_request_above_the_limit_counts_as_the_limit() {
        let policy = Policy { headroom: Bytes::ZERO, ..Policy::default() };
        let wanted =
            desired(&container(2 * MIB, Some(MIB)), QosClass::Burstable, &node(None), &policy);
        assert_eq!(wanted.min.setting, set(mib(1)));
        assert_eq!(wanted.claim, Some(Protection { min: mib(1), low: Bytes::ZERO }));
        assert_eq!(
            wanted.min.reason.to_string(),
            "the request 2Mi (pod-spec) exceeds the limit, so it is the limit, 1Mi"
        );
        assert_eq!(wanted.high.setting, Setting::Default);
    }

    #[test]
    fn a_request_above_node_allocatable_is_not_throttled() {
        assert_eq!(high(&container(8193 * MIB, None), QosClass::Burstable, 0.9), Setting::Default);
    }

    #[test]
    fn less_than_a_page_between_request_and_limit_is_not_throttled() {
        assert_eq!(
            high(&container(MIB, Some(MIB + 4095)), QosClass::Burstable, 0.9),
            Setting::Default
        );
        assert_eq!(high(&container(0, Some(4095)), QosClass::Burstable, 1.0), Setting::Default);
    }

    #[test]
    fn an_inexact_request_protects_its_lower_bound_and_throttles_only_above_its_upper_one() {
        let vague = |low, high| Resources {
            request: Some(Request {
                bytes: mib(low),
                at_most: mib(high),
                provenance: Provenance::OomScoreAdj,
            }),
            limit: Limit::Bytes(mib(1000)),
        };
        let wanted =
            |resources| desired(&resources, QosClass::Burstable, &node(None), &Policy::default());
        let near = wanted(vague(500, 600));
        assert_eq!((near.min.setting, near.high.setting), (set(mib(500)), set(mib(950))));
        assert_eq!(
            near.high.reason.to_string(),
            "request 500Mi to 600Mi (oom-score-adj) + 0.9 x (the limit 1000Mi - request) is 996147200 in whole pages of 4096"
        );
        let far = wanted(vague(500, 960));
        assert_eq!((far.min.setting, far.high.setting), (set(mib(500)), Setting::Default));
    }

    #[test]
    fn absurd_amounts_are_decided_without_overflow() {
        let wanted = |request, limit| {
            let policy = Policy {
                throttling: Some(factor(1.0)),
                headroom: Bytes::ZERO,
                ..Policy::default()
            };
            desired(
                &container(request, limit),
                QosClass::Burstable,
                &node(Some(Bytes::MAX)),
                &policy,
            )
        };
        let most = Bytes::MAX.get();
        // float64 cannot represent the limit exactly. The kernel rounds to pages, so high and max
        // become equal.
        let near = Bytes::new(most - 4096).saturating_add(Bytes::new(1));
        assert_eq!(wanted(0, Some(most - 4096)).high.setting, set(near));
        assert_eq!(wanted(most, None).high.setting, Setting::Default);
        assert_eq!(wanted(most, Some(1)).min.setting, set(Bytes::new(1)));
        assert_eq!(wanted(0, Some(0)).high.setting, Setting::Default);
    }

    #[test]
    fn a_factor_is_above_0_and_at_most_1() {
        for text in ["0", "-0.1", "1.0001", "NaN", "inf", "", "0,9", "none"] {
            assert!(text.parse::<ThrottlingFactor>().is_err(), "{text}");
        }
        assert_eq!("1".parse(), Ok(factor(1.0)));
        assert_eq!("0.0001".parse(), Ok(factor(0.0001)));
    }

    #[test]
    fn policies_are_ordered_by_strength() {
        assert!(ReservationPolicy::ALL.is_sorted());
    }

    fn amounts() -> impl Strategy<Value = u64> {
        // The amounts stay below 2^52. Above 2^53 float64 does not represent every byte, and the
        // kubelet's own expression may exceed the limit.
        prop_oneof![0u64..1 << 20, 0u64..1 << 36, 0u64..1 << 52]
    }

    fn classes() -> impl Strategy<Value = QosClass> {
        prop_oneof![
            Just(QosClass::Guaranteed),
            Just(QosClass::Burstable),
            Just(QosClass::BestEffort)
        ]
    }

    fn policies() -> impl Strategy<Value = Policy> {
        (proptest::option::of(1u32..=1000), proptest::sample::select(&ReservationPolicy::ALL[..]))
            .prop_map(|(thousandths, reservation)| Policy {
                headroom: Bytes::ZERO,
                throttling: thousandths.map(|thousandths| factor(f64::from(thousandths) / 1000.0)),
                reservation,
            })
    }

    proptest! {
        #[test]
        fn protection_is_at_most_high_and_high_at_most_max(
            low in amounts(), error in amounts(), limit in proptest::option::of(amounts()),
            allocatable in proptest::option::of(amounts()), class in classes(), policy in policies(),
        ) {
            let request = Request {
                bytes: Bytes::new(low), at_most: Bytes::new(low + error), provenance: Provenance::OomScoreAdj,
            };
            let limit = limit.map_or(Limit::Max, |limit| Limit::Bytes(Bytes::new(limit)));
            let node = node(allocatable.map(Bytes::new));
            let wanted = desired(&Resources { request: Some(request), limit }, class, &node, &policy);
            let min = wanted.min_value().unwrap();
            let low = wanted.low_value().unwrap();
            prop_assert!(min <= limit && low <= limit);
            if let Some(high) = wanted.high_value() {
                prop_assert!(min.max(low) <= high);
                if let Setting::Set(Limit::Bytes(high)) = wanted.high.setting {
                    prop_assert_eq!(high.floor_to(node.page_size), high);
                    prop_assert!(Limit::Bytes(high) <= limit);
                    prop_assert!(high > request.capped(limit.bytes().unwrap_or(Bytes::MAX)).at_most);
                }
            }
            for decision in [wanted.min, wanted.low, wanted.high] {
                prop_assert!(!decision.reason.to_string().is_empty());
            }
        }

        #[test]
        fn no_input_panics(low: u64, error: u64, limit: i64, allocatable in proptest::option::of(any::<u64>()), class in classes(), policy in policies()) {
            let request = Request {
                bytes: Bytes::new(low), at_most: Bytes::new(low.saturating_add(error)), provenance: Provenance::Annotation,
            };
            let limit = Limit::from_cri(limit, PageSize::KIB4).unwrap_or(Limit::Max);
            let node = node(allocatable.map(Bytes::new));
            let _ = desired(&Resources { request: Some(request), limit }, class, &node, &policy);
        }
    }
}
