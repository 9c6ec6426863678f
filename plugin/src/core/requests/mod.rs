//! Where a container's memory request comes from.
//!
//! No runtime delivers it. [`resolve`] takes the best of what there is; the order, best first:
//!
//! 1. **The kubelet's checkpoint** ([`crate::kubelet::checkpoint`]). It alone knows a request to the byte after a resize, and that of
//!    a container in a pod with resources of its own, whose class says nothing about the container. A record without
//!    a request is an answer too: the limit if there is one (as the API server defaults it), else 0.
//! 2. **The QoS class**, where it leaves no choice: a Guaranteed container requests its limit, a BestEffort one
//!    nothing. Before the sources below, since the kubelet's word on the class outranks a pod author's annotation.
//!    A Guaranteed container without a limit (only possible with pod-level resources) stays open here.
//! 3. **`memory.min` or `memory.low` in the unified map** that the kubelet sent (its own MemoryQoS is on).
//! 4. **The annotation** `memory-request` ([`annotation`]): only where it is certain that no checkpoint has a record,
//!    and at most what `oom_score_adj` allows ([`oom_score_adj::at_most`]), else node allocatable. A pod's author could
//!    otherwise claim protection that the scheduler did not account for. While a checkpoint cannot be read, there may be
//!    a record, and the annotation has no say.
//! 5. **`oom_score_adj`, inverted** ([`oom_score_adj`]), with its error bound.
//!
//! If none of these answers, the request is unknown, which is not 0.

use std::collections::HashMap;
use std::fmt;

use crate::core::pod::{Provenance, QosClass, Request};
use crate::core::policy::{Policy, ReservationPolicy};
use crate::core::units::{Bytes, Limit};

pub mod annotation;
pub mod oom_score_adj;

use crate::kubelet::checkpoint::{Inconclusive, Record};
use annotation::Overrides;

/// What is known of a container when its request is to be found.
#[derive(Clone, Debug)]
pub struct Known<'a> {
    /// The kubelet's class for the pod; `None` where no kubelet made the pod's cgroup.
    pub class: Option<QosClass>,
    /// The container's memory limit. At an update that does not carry one (0 in NRI), the limit still in force.
    pub limit: Limit,
    /// The unified map that came with the container from the CRI client; never what this plugin added itself.
    pub unified: &'a HashMap<String, String>,
    /// The pod's overrides for this container.
    pub overrides: &'a Overrides,
    /// The container's `oom_score_adj`. An update does not carry it; the one from create is then still the best there
    /// is, since a kubelet that can resize also keeps checkpoints.
    pub oom_score_adj: Option<i64>,
    /// The node's memory (MemTotal), to which the kubelet relates `oom_score_adj`.
    pub mem_total: Option<Bytes>,
    /// Node allocatable, which bounds what an annotation may claim: a limit does not, nobody accounts for it.
    pub allocatable: Option<Bytes>,
    /// The kubelet's record, if it has one: [`crate::kubelet::checkpoint::Checkpoints::lookup`].
    pub record: Result<Option<&'a Record>, Inconclusive>,
}

/// What was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolution {
    /// The container's class: the kubelet's where there is one, else by request and limit.
    pub class: QosClass,
    /// The request; `None` is unknown.
    pub request: Option<Request>,
    /// What the operator or the pod's owner should hear of.
    pub notices: Vec<Notice>,
}

/// Finds a container's memory request by the order of preference in the [module documentation](self).
///
/// Where no kubelet gave the pod a class, the class follows from request and limit, by memory alone: equal means
/// Guaranteed, neither means BestEffort (and so a request of 0), anything else Burstable. A limit without a request
/// does not make a Guaranteed container here: only the API server defaults one to the other, and it had no part in
/// such a pod.
pub fn resolve(known: &Known<'_>) -> Resolution {
    let mut notices = Vec::new();
    let request = find(known, &mut notices);

    if let (Some(request), Limit::Bytes(limit)) = (request, known.limit)
        && request.bytes > limit
    {
        notices.push(Notice::RequestAboveLimit { request, limit });
    }
    let (class, request) = match (known.class, request, known.limit) {
        (Some(class), request, _) => (class, request),
        (None, None, Limit::Max) => {
            (QosClass::BestEffort, Some(Request::exact(Bytes::ZERO, Provenance::QosClass)))
        }
        (None, Some(request), Limit::Max) if request.at_most == Bytes::ZERO => {
            (QosClass::BestEffort, Some(request))
        }
        (None, Some(request), Limit::Bytes(limit)) if request.bytes == limit => {
            (QosClass::Guaranteed, Some(request))
        }
        (None, request, _) => (QosClass::Burstable, request),
    };
    Resolution { class, request, notices }
}

fn find(known: &Known<'_>, notices: &mut Vec<Notice>) -> Option<Request> {
    if let Ok(Some(record)) = known.record {
        if known.overrides.memory_request.is_some() {
            notices.push(Notice::AnnotationOutranked { by: Provenance::Checkpoint(record.file) });
        }
        return Some(Request::exact(
            record.effective_request(),
            Provenance::Checkpoint(record.file),
        ));
    }
    let by_class = match (known.class, known.limit) {
        (Some(QosClass::BestEffort), _) => Some(Bytes::ZERO),
        (Some(QosClass::Guaranteed), Limit::Bytes(limit)) => Some(limit),
        _ => None,
    };
    if let Some(bytes) = by_class {
        if known.overrides.memory_request.is_some_and(|requested| requested != bytes) {
            notices.push(Notice::AnnotationOutranked { by: Provenance::QosClass });
        }
        return Some(Request::exact(bytes, Provenance::QosClass));
    }
    if let Some(bytes) = from_unified(known.unified, notices) {
        if known.overrides.memory_request.is_some_and(|requested| requested != bytes) {
            notices.push(Notice::AnnotationOutranked { by: Provenance::Unified });
        }
        return Some(Request::exact(bytes, Provenance::Unified));
    }
    if let Some(requested) = known.overrides.memory_request {
        match known.record {
            Ok(_) => return Some(from_annotation(known, requested, notices)),
            Err(Inconclusive) => notices.push(Notice::AnnotationUnconfirmed),
        }
    }
    oom_score_adj::request(known.oom_score_adj?, known.mem_total?, known.limit)
}

/// The annotated request, within what is known otherwise.
///
/// `oom_score_adj` may come from a request that is larger than the container's, so that it bounds an annotation only from
/// above. An annotation below what it says is taken, and counts as inexact: the request may be larger.
fn from_annotation(known: &Known<'_>, requested: Bytes, notices: &mut Vec<Notice>) -> Request {
    let mut bytes = requested;
    // Only the kubelet's formula is known.
    let scored = match (known.class, known.oom_score_adj, known.mem_total) {
        (Some(_), Some(adj), Some(mem_total)) => {
            oom_score_adj::request(adj, mem_total, known.limit)
                .zip(oom_score_adj::at_most(adj, mem_total))
        }
        _ => None,
    };
    if let Some((_, at_most)) = scored
        && bytes > at_most
    {
        notices.push(Notice::AnnotationAboveOomScore { requested, at_most });
        bytes = at_most;
    }
    if let Some(allocatable) = known.allocatable
        && bytes > allocatable
    {
        notices.push(Notice::AnnotationAboveAllocatable { requested, allocatable });
        bytes = allocatable;
    }
    let at_most = match scored {
        Some((scored, _)) if bytes < scored.bytes => scored.at_most,
        _ => bytes,
    };
    Request { bytes, at_most, provenance: Provenance::Annotation }
}

/// The request in the kubelet's own `memory.min` or `memory.low`. A zero is no evidence: newer kubelets send it to
/// clear what an older configuration left behind.
fn from_unified(unified: &HashMap<String, String>, notices: &mut Vec<Notice>) -> Option<Bytes> {
    ["memory.min", "memory.low"].into_iter().find_map(|key| {
        match unified.get(key)?.parse::<Bytes>() {
            Ok(Bytes::ZERO) => None,
            Ok(bytes) => Some(bytes),
            Err(error) => {
                notices.push(Notice::InvalidUnified { key, error: error.to_string() });
                None
            }
        }
    })
}

/// The policy for one container: the node's, with the pod's overrides.
///
/// Pod authors are not trusted: an override may ask for less protection than the node's policy gives (`None` below
/// `TieredReservation` below `HardReservation`), not for more, since protection is taken from everybody else on the
/// node. Throttling concerns only the container itself and may be set freely on a node that throttles; one that does not,
/// throttles nobody.
pub fn overridden(node: &Policy, overrides: &Overrides) -> (Policy, Vec<Notice>) {
    let mut notices = Vec::new();
    let reservation = match overrides.reservation {
        Some(asked) if asked > node.reservation => {
            notices.push(Notice::ReservationAboveNode { asked, allowed: node.reservation });
            node.reservation
        }
        Some(asked) => asked,
        None => node.reservation,
    };
    let throttling = match overrides.throttling {
        Some(Some(_)) if node.throttling.is_none() => {
            notices.push(Notice::ThrottlingOff);
            None
        }
        Some(asked) => asked,
        None => node.throttling,
    };
    (Policy { throttling, reservation, ..*node }, notices)
}

/// Something that does not stop the work, but that somebody should hear of. `Display` is one sentence for the log,
/// without the names of pod and container, which the caller has.
#[derive(Clone, Debug, PartialEq)]
pub enum Notice {
    /// An annotation's value is not of the expected form; the annotation is ignored.
    InvalidAnnotation {
        /// The annotation's key.
        key: String,
        /// What was expected and found.
        error: String,
    },
    /// An annotation in this plugin's name that it does not know; it has no effect.
    UnknownAnnotation {
        /// The annotation's key, shortened.
        key: String,
    },
    /// More unknown annotations, not listed.
    MoreUnknownAnnotations {
        /// How many.
        count: usize,
    },
    /// The annotated memory request is not used because a better source has spoken.
    AnnotationOutranked {
        /// The better source.
        by: Provenance,
    },
    /// The annotated memory request is not used, as the kubelet's checkpoint cannot be read.
    AnnotationUnconfirmed,
    /// The annotated memory request exceeds what `oom_score_adj` allows, which is used instead.
    AnnotationAboveOomScore {
        /// What the annotation asks for.
        requested: Bytes,
        /// What `oom_score_adj` allows.
        at_most: Bytes,
    },
    /// The annotated memory request exceeds node allocatable, which is used instead.
    AnnotationAboveAllocatable {
        /// What the annotation asks for.
        requested: Bytes,
        /// Node allocatable.
        allocatable: Bytes,
    },
    /// The annotated reservation is stronger than the node's policy, which is used instead.
    ReservationAboveNode {
        /// What the annotation asks for.
        asked: ReservationPolicy,
        /// What the node's policy gives.
        allowed: ReservationPolicy,
    },
    /// The annotation asks for throttling on a node that throttles nobody.
    ThrottlingOff,
    /// The request exceeds the limit, which is used instead.
    RequestAboveLimit {
        /// The request.
        request: Request,
        /// The limit.
        limit: Bytes,
    },
    /// A value in the unified map is not a number of bytes; it is ignored.
    InvalidUnified {
        /// The key.
        key: &'static str,
        /// What was expected and found.
        error: String,
    },
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidAnnotation { key, error } => write!(f, "annotation {key}: {error}; it is ignored"),
            Self::UnknownAnnotation { key } => write!(
                f,
                "annotation {key} is not known and has no effect; expected memory-request, throttling-factor or \
                 reservation before .{domain}, then nothing, /pod or /container.<name>",
                domain = annotation::DOMAIN
            ),
            Self::MoreUnknownAnnotations { count } => {
                write!(f, "{count} more annotations of {} are not known", annotation::DOMAIN)
            }
            Self::AnnotationOutranked { by } => {
                write!(f, "annotation memory-request is ignored, as the request is known better ({by})")
            }
            Self::AnnotationUnconfirmed => f.write_str(
                "annotation memory-request is ignored while the kubelet's checkpoint cannot be read: it may have the \
                 request, which outranks the annotation",
            ),
            Self::AnnotationAboveOomScore { requested, at_most } => write!(
                f,
                "annotation memory-request {} exceeds what the kubelet's oom_score_adj allows, {}, which is used",
                requested.quantity(),
                at_most.quantity()
            ),
            Self::AnnotationAboveAllocatable { requested, allocatable } => write!(
                f,
                "annotation memory-request {} exceeds node allocatable {}, which is used",
                requested.quantity(),
                allocatable.quantity()
            ),
            Self::ReservationAboveNode { asked, allowed } => write!(
                f,
                "annotation reservation asks for {asked}, but this node allows at most {allowed}, which is used"
            ),
            Self::ThrottlingOff => f.write_str(
                "annotation throttling-factor has no effect, because memoryThrottlingFactor is null on this node",
            ),
            Self::RequestAboveLimit { request, limit } => {
                write!(f, "request {request} exceeds the limit {}, which is used", limit.quantity())
            }
            Self::InvalidUnified { key, error } => write!(f, "unified {key}: {error}; it is ignored"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::pod::CheckpointFile;
    use crate::core::policy::ThrottlingFactor;

    const MIB: u64 = 1 << 20;

    fn mib(amount: u64) -> Bytes {
        Bytes::new(amount * MIB)
    }

    /// Owns what [`Known`] borrows. Every source speaks; tests silence those they do not want.
    struct Case {
        class: Option<QosClass>,
        limit: Limit,
        unified: HashMap<String, String>,
        overrides: Overrides,
        oom_score_adj: Option<i64>,
        record: Option<Record>,
        is_inconclusive: bool,
    }

    impl Case {
        fn every_source() -> Self {
            Self {
                class: Some(QosClass::Burstable),
                limit: Limit::Bytes(mib(512)),
                unified: HashMap::from([("memory.min".to_owned(), mib(20).to_string())]),
                overrides: Overrides { memory_request: Some(mib(30)), ..Overrides::default() },
                oom_score_adj: Some(960),
                record: Some(record(Some(10), None)),
                is_inconclusive: false,
            }
        }

        fn no_source(class: Option<QosClass>, limit: Limit) -> Self {
            Self {
                class,
                limit,
                unified: HashMap::new(),
                overrides: Overrides::default(),
                oom_score_adj: None,
                record: None,
                is_inconclusive: false,
            }
        }

        fn resolve(&self) -> Resolution {
            resolve(&Known {
                class: self.class,
                limit: self.limit,
                unified: &self.unified,
                overrides: &self.overrides,
                oom_score_adj: self.oom_score_adj,
                mem_total: Some(mib(1000)),
                allocatable: Some(mib(900)),
                record: if self.is_inconclusive {
                    Err(Inconclusive)
                } else {
                    Ok(self.record.as_ref())
                },
            })
        }

        fn request(&self) -> Option<(Bytes, Provenance)> {
            self.resolve().request.map(|request| (request.bytes, request.provenance))
        }
    }

    fn record(request: Option<u64>, limit: Option<u64>) -> Record {
        Record { file: CheckpointFile::Actuated, request: request.map(mib), limit: limit.map(mib) }
    }

    #[test]
    fn the_best_source_that_speaks_is_taken() {
        let mut case = Case::every_source();
        assert_eq!(
            case.request(),
            Some((mib(10), Provenance::Checkpoint(CheckpointFile::Actuated)))
        );
        case.record = None;
        assert_eq!(case.request(), Some((mib(20), Provenance::Unified)));
        case.unified.clear();
        assert_eq!(case.request(), Some((mib(30), Provenance::Annotation)));
        case.is_inconclusive = true;
        assert_eq!(
            case.request(),
            Some((mib(40), Provenance::OomScoreAdj)),
            "there may be a record"
        );
        assert_eq!(case.resolve().notices, [Notice::AnnotationUnconfirmed]);
        case.is_inconclusive = false;
        case.overrides.memory_request = None;
        assert_eq!(case.request(), Some((mib(40), Provenance::OomScoreAdj)));
        case.oom_score_adj = None;
        assert_eq!(case.request(), None);
    }

    #[test]
    fn a_guaranteed_container_requests_its_limit_unless_the_kubelet_recorded_otherwise() {
        let mut case = Case { class: Some(QosClass::Guaranteed), ..Case::every_source() };
        assert_eq!(
            case.request(),
            Some((mib(10), Provenance::Checkpoint(CheckpointFile::Actuated)))
        );
        case.record = None;
        assert_eq!(case.request(), Some((mib(512), Provenance::QosClass)));
        assert_eq!(
            case.resolve().notices,
            [Notice::AnnotationOutranked { by: Provenance::QosClass }]
        );
    }

    #[test]
    fn a_guaranteed_container_without_limit_is_not_guessed() {
        let case = Case::no_source(Some(QosClass::Guaranteed), Limit::Max);
        assert_eq!(case.resolve().request, None);
    }

    #[test]
    fn a_best_effort_container_requests_nothing_exactly() {
        let case = Case::no_source(Some(QosClass::BestEffort), Limit::Max);
        assert_eq!(case.resolve().request, Some(Request::exact(Bytes::ZERO, Provenance::QosClass)));
    }

    #[test]
    fn a_record_without_a_request_is_an_answer() {
        let mut case = Case::no_source(Some(QosClass::Burstable), Limit::Max);
        assert_eq!(case.resolve().request, None, "no record");
        case.record = Some(record(None, None));
        assert_eq!(case.request().map(|found| found.0), Some(Bytes::ZERO));
        case.record = Some(record(None, Some(64)));
        assert_eq!(case.request().map(|found| found.0), Some(mib(64)), "defaulted to the limit");
        case.record = Some(record(Some(0), Some(64)));
        assert_eq!(case.request().map(|found| found.0), Some(Bytes::ZERO), "an explicit 0 is 0");
    }

    #[test]
    fn a_burstable_container_of_which_nothing_is_known_stays_unknown() {
        for limit in [Limit::Max, Limit::Bytes(mib(64))] {
            assert_eq!(Case::no_source(Some(QosClass::Burstable), limit).resolve().request, None);
        }
    }

    #[test]
    fn unified_low_counts_like_min_and_zero_or_garbage_do_not() {
        let mut case = Case::no_source(Some(QosClass::Burstable), Limit::Max);
        case.unified = HashMap::from([("memory.low".to_owned(), "4096".to_owned())]);
        assert_eq!(case.request(), Some((Bytes::new(4096), Provenance::Unified)));
        case.unified.insert("memory.min".to_owned(), "0".to_owned());
        assert_eq!(case.request(), Some((Bytes::new(4096), Provenance::Unified)));
        case.unified = HashMap::from([("memory.min".to_owned(), "max".to_owned())]);
        let resolution = case.resolve();
        assert_eq!(resolution.request, None);
        assert_eq!(
            resolution.notices[0].to_string(),
            "unified memory.min: expected a whole number of bytes up to 9223372036854775807, found 'max'; it is ignored"
        );
    }

    #[test]
    fn a_request_above_the_limit_is_reported() {
        let mut case = Case::no_source(Some(QosClass::Burstable), Limit::Bytes(mib(10)));
        case.overrides.memory_request = Some(mib(11));
        assert_eq!(
            case.resolve().notices[0].to_string(),
            "request 11Mi (annotation) exceeds the limit 10Mi, which is used"
        );
    }

    #[test]
    fn an_annotation_cannot_claim_more_than_the_node_has() {
        let mut case = Case::no_source(Some(QosClass::Burstable), Limit::Max);
        case.overrides.memory_request = Some(mib(100_000));
        assert_eq!(case.request(), Some((mib(900), Provenance::Annotation)));
        assert_eq!(
            case.resolve().notices[0].to_string(),
            "annotation memory-request 100000Mi exceeds node allocatable 900Mi, which is used"
        );
    }

    /// 960 means a request of 40 to 41 MiB of 1000.
    #[test]
    fn an_annotation_is_bounded_by_the_oom_score() {
        let mut case = Case::no_source(Some(QosClass::Burstable), Limit::Max);
        case.oom_score_adj = Some(960);
        for (annotated, bytes, at_most) in [
            (30, mib(30), Bytes::new(41 * MIB - 1)),
            (40, mib(40), mib(40)),
            // A thousandth of memory beyond, for what the kubelet may have read of it.
            (41, mib(41), mib(41)),
            (42, Bytes::new(42 * MIB - 1), Bytes::new(42 * MIB - 1)),
            (3000, Bytes::new(42 * MIB - 1), Bytes::new(42 * MIB - 1)),
        ] {
            case.overrides.memory_request = Some(mib(annotated));
            let request = Request { bytes, at_most, provenance: Provenance::Annotation };
            let resolution = case.resolve();
            assert_eq!(resolution.request, Some(request), "{annotated}");
            assert_eq!(resolution.notices.is_empty(), annotated < 42, "{annotated}");
        }
        assert_eq!(
            case.resolve().notices[0].to_string(),
            "annotation memory-request 3000Mi exceeds what the kubelet's oom_score_adj allows, 44040191, which is used"
        );
        // Not every runtime's client has the kubelet's formula.
        case.class = None;
        assert_eq!(case.request(), Some((mib(900), Provenance::Annotation)));
    }

    #[test]
    fn without_a_kubelet_the_class_follows_from_request_and_limit() {
        let mut case = Case::no_source(None, Limit::Max);
        assert_eq!(
            (case.resolve().class, case.request()),
            (QosClass::BestEffort, Some((Bytes::ZERO, Provenance::QosClass)))
        );
        case.overrides.memory_request = Some(mib(10));
        assert_eq!(case.resolve().class, QosClass::Burstable);
        case.limit = Limit::Bytes(mib(10));
        assert_eq!(case.resolve().class, QosClass::Guaranteed);
        case.limit = Limit::Bytes(mib(20));
        assert_eq!(case.resolve().class, QosClass::Burstable);
        case.overrides.memory_request = None;
        assert_eq!((case.resolve().class, case.request()), (QosClass::Burstable, None));
    }

    #[test]
    fn an_override_may_weaken_the_nodes_policy_and_not_strengthen_it() {
        use ReservationPolicy::{HardReservation, None as Nothing, TieredReservation};
        for (node, asked, expected, refused) in [
            (HardReservation, Nothing, Nothing, false),
            (HardReservation, TieredReservation, TieredReservation, false),
            (HardReservation, HardReservation, HardReservation, false),
            (TieredReservation, HardReservation, TieredReservation, true),
            (TieredReservation, Nothing, Nothing, false),
            (Nothing, TieredReservation, Nothing, true),
        ] {
            let node = Policy { reservation: node, ..Policy::default() };
            let overrides = Overrides { reservation: Some(asked), ..Overrides::default() };
            let (policy, notices) = overridden(&node, &overrides);
            assert_eq!((policy.reservation, !notices.is_empty()), (expected, refused));
        }
    }

    #[test]
    fn an_override_sets_or_removes_throttling() {
        let half = ThrottlingFactor::new(0.5);
        for (asked, expected) in
            [(None, Some(ThrottlingFactor::DEFAULT)), (Some(half), half), (Some(None), None)]
        {
            let overrides = Overrides { throttling: asked, ..Overrides::default() };
            assert_eq!(
                overridden(&Policy::default(), &overrides),
                (Policy { throttling: expected, ..Policy::default() }, vec![])
            );
        }
        // Where nobody is throttled, nobody is.
        let overrides = Overrides { throttling: Some(half), ..Overrides::default() };
        let off = Policy { throttling: None, ..Policy::default() };
        assert_eq!(overridden(&off, &overrides), (off, vec![Notice::ThrottlingOff]));
    }
}
