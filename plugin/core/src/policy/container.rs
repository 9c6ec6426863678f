//! Computation of a container's `memory.min`, `memory.low` and `memory.high`.

use super::decision::{Decision, Desired, Setting, value};
use super::node_policy::{Node, Policy, ReservationPolicy, ThrottlingFactor};
use super::protection::Protection;
use super::reason::{Ceiling, Formula, Reason};
use crate::pod::{QosClass, Resources};
use crate::units::{Bytes, Limit, PageSize};

/// Decides the desired values of a container's memory files.
///
/// - If the request exceeds the limit, the plugin uses the limit as the request.
/// - If only bounds of the request are known, the plugin protects the lower bound, so that it
///   protects only requested memory. The plugin sets `memory.high` only above the upper bound, so
///   that the kernel never throttles requested memory.
/// - If the request is unknown, values that depend on the request stay as they are.
/// - Node allocatable replaces a missing limit, even for a Burstable container without any request.
///   Kubernetes has done the same since a fix for BestEffort pods. Before this fix, the kubelet set
///   no `memory.high` for a container without request and limit.
/// - `memory.min` is at most the limit minus [`Policy::headroom`]. This is the only deliberate
///   difference from Kubernetes.
///
/// The headroom prevents OOM kills. A pod's `memory.max` is the sum of its containers' limits. If a
/// container is protected up to its limit, the kernel cannot reclaim memory when the pod reaches
/// its limit. The kernel then OOM-kills the container because of its own page cache. In
/// measurements the container died with 4 KiB of headroom and survived with 1 MiB.
///
/// The kernel also charges other memory to the pod, such as that of the pause process. This other
/// memory does not grow with the container's limit, so the headroom is a fixed amount.
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

/// Returns the protection for memory of a whole pod: its overhead, or its own request. The same
/// file (`memory.min` or `memory.low`) protects the containers' requests.
pub fn pod_protection(bytes: Bytes, class: QosClass, policy: &Policy) -> Protection {
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

/// Computes `memory.high` with the same arithmetic operations as the kubelet, in the same order.
///
/// As in the kubelet, the function rounds down to bytes before the division by the page size.
/// KEP-2570 rounds down only after the division. The conversion to an integer then drops the
/// fraction of the quotient. With amounts near 2^63, the multiplication overflows and wraps around,
/// as in Go.
fn memory_high(request: Bytes, limit: Bytes, factor: ThrottlingFactor, page: PageSize) -> i64 {
    let request = request.get() as f64;
    let limit = limit.get() as f64;
    let high = (request + (limit - request) * factor.get()).floor();
    ((high / page.get() as f64) as i64).wrapping_mul(page.get() as i64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pod::{Provenance, Request};

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
    fn high_matches_the_examples_of_kep_2570() {
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
    fn memory_high_matches_the_table_from_go() {
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
    fn no_reservation_policy_throttles_guaranteed_containers() {
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
    fn headroom_reduces_min_but_not_the_claim() {
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
            "the request is 64Mi (pod-spec), and 2Mi below the limit 64Mi stay unprotected, so \
             that page cache can be reclaimed before the limit kills"
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
    fn policy_and_class_decide_the_overhead_file() {
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
                pod_protection(mib(8), class, &policy(reservation)),
                expected,
                "{reservation} {class}"
            );
        }
    }

    #[test]
    fn burstable_protection_follows_the_reservation_policy() {
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
    fn best_effort_is_throttled_below_node_allocatable() {
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
    fn node_allocatable_replaces_a_missing_limit() {
        assert_eq!(high(&container(192 * MIB, None), QosClass::Burstable, 0.5), set(mib(4192)));
        assert_eq!(high(&container(0, None), QosClass::Burstable, 0.5), set(mib(4096)));
    }

    #[test]
    fn unknown_allocatable_leaves_high_alone_without_limit() {
        let wanted =
            desired(&container(MIB, None), QosClass::Burstable, &node(None), &Policy::default());
        assert_eq!(wanted.high, Decision::leave_alone(Reason::AllocatableUnknown));
        assert_eq!(wanted.min.setting, set(mib(1)));
    }

    #[test]
    fn an_unknown_request_leaves_dependent_files_alone() {
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
    fn request_equal_to_limit_is_not_throttled() {
        let wanted = desired(
            &container(MIB, Some(MIB)),
            QosClass::Burstable,
            &node(None),
            &Policy::default(),
        );
        assert_eq!(wanted.high, Decision::default(Reason::RequestEqualsLimit(mib(1))));
    }

    #[test]
    fn a_request_is_capped_at_the_limit() {
        let policy = Policy { headroom: Bytes::ZERO, ..Policy::default() };
        let wanted =
            desired(&container(2 * MIB, Some(MIB)), QosClass::Burstable, &node(None), &policy);
        assert_eq!(wanted.min.setting, set(mib(1)));
        assert_eq!(wanted.claim, Some(Protection { min: mib(1), low: Bytes::ZERO }));
        assert_eq!(
            wanted.min.reason.to_string(),
            "the request 2Mi (pod-spec) exceeds the limit, so the value is the limit, 1Mi"
        );
        assert_eq!(wanted.high.setting, Setting::Default);
    }

    #[test]
    fn request_above_allocatable_is_not_throttled() {
        assert_eq!(high(&container(8193 * MIB, None), QosClass::Burstable, 0.9), Setting::Default);
    }

    #[test]
    fn request_limit_gap_below_page_is_unthrottled() {
        assert_eq!(
            high(&container(MIB, Some(MIB + 4095)), QosClass::Burstable, 0.9),
            Setting::Default
        );
        assert_eq!(high(&container(0, Some(4095)), QosClass::Burstable, 1.0), Setting::Default);
    }

    #[test]
    fn lower_bound_protects_and_upper_bound_throttles() {
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
            "request 500Mi to 600Mi (oom-score-adj) + 0.9 x (the limit 1000Mi - request) is \
             996147200 in whole pages of 4096"
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
        // float64 cannot represent the limit exactly. The kernel rounds both values to pages, so
        // `memory.high` and `memory.max` become equal.
        let near = Bytes::new(most - 4096).saturating_add(Bytes::new(1));
        assert_eq!(wanted(0, Some(most - 4096)).high.setting, set(near));
        assert_eq!(wanted(most, None).high.setting, Setting::Default);
        assert_eq!(wanted(most, Some(1)).min.setting, set(Bytes::new(1)));
        assert_eq!(wanted(0, Some(0)).high.setting, Setting::Default);
    }

    fn amounts() -> impl Strategy<Value = u64> {
        // The amounts stay below 2^52. Above 2^53 float64 cannot represent every integer, and the
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
        fn high_lies_between_protection_and_limit(
            low in amounts(),
            error in amounts(),
            limit in proptest::option::of(amounts()),
            allocatable in proptest::option::of(amounts()),
            class in classes(),
            policy in policies(),
        ) {
            let request = Request {
                bytes: Bytes::new(low),
                at_most: Bytes::new(low + error),
                provenance: Provenance::OomScoreAdj,
            };
            let limit = limit.map_or(Limit::Max, |limit| Limit::Bytes(Bytes::new(limit)));
            let node = node(allocatable.map(Bytes::new));
            let wanted =
                desired(&Resources { request: Some(request), limit }, class, &node, &policy);
            let min = wanted.min_value().unwrap();
            let low = wanted.low_value().unwrap();
            prop_assert!(min <= limit && low <= limit);
            if let Some(high) = wanted.high_value() {
                prop_assert!(min.max(low) <= high);
                if let Setting::Set(Limit::Bytes(high)) = wanted.high.setting {
                    prop_assert_eq!(high.floor_to(node.page_size), high);
                    prop_assert!(Limit::Bytes(high) <= limit);
                    prop_assert!(
                        high > request.capped(limit.bytes().unwrap_or(Bytes::MAX)).at_most
                    );
                }
            }
            for decision in [wanted.min, wanted.low, wanted.high] {
                prop_assert!(!decision.reason.to_string().is_empty());
            }
        }

        #[test]
        fn desired_accepts_any_resources(
            low: u64,
            error: u64,
            limit: i64,
            allocatable in proptest::option::of(any::<u64>()),
            class in classes(),
            policy in policies(),
        ) {
            let request = Request {
                bytes: Bytes::new(low),
                at_most: Bytes::new(low.saturating_add(error)),
                provenance: Provenance::Annotation,
            };
            let limit = Limit::from_cri(limit, PageSize::KIB4).unwrap_or(Limit::Max);
            let node = node(allocatable.map(Bytes::new));
            let _ = desired(&Resources { request: Some(request), limit }, class, &node, &policy);
        }
    }
}
