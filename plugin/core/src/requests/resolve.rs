//! Chooses the source of a container's memory request.

use std::collections::HashMap;

use super::annotation::Overrides;
use super::notice::Notice;
use super::oom_score_adj;
use super::record::{Inconclusive, Record};
use crate::pod::{Provenance, QosClass, Request};
use crate::units::{Bytes, Limit};

/// Known facts about a container, from which the plugin determines its memory request.
#[derive(Clone, Debug)]
pub struct RequestFacts<'a> {
    /// The pod's class from the kubelet. `None` if the kubelet did not create the pod's cgroup.
    pub class: Option<QosClass>,
    /// The container's memory limit. For an update without a limit (0 in NRI), this is the limit in
    /// force.
    pub limit: Limit,
    /// OCI's `unified` map that the CRI client sent with the container, without this plugin's
    /// additions.
    pub unified: &'a HashMap<String, String>,
    /// The pod's overrides for this container.
    pub overrides: &'a Overrides,
    /// The `oom_score_adj` that the container got at its creation. An update contains no
    /// `oom_score_adj`. If the kubelet supports in-place resize, the plugin does not need this
    /// value, because the kubelet has checkpoints.
    pub oom_score_adj: Option<i64>,
    /// The node's memory (MemTotal), from which the kubelet computes `oom_score_adj`.
    pub mem_total: Option<Bytes>,
    /// Node allocatable, the upper bound of an annotated request. The container's limit cannot be
    /// the upper bound, because the scheduler does not account for limits.
    pub allocatable: Option<Bytes>,
    /// The kubelet's checkpoint entry for the container, if there is one.
    pub record: Result<Option<&'a Record>, Inconclusive>,
}

/// Memory request that the plugin found for a container, with the container's class and notices.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolution {
    /// The container's class, from the kubelet or else from request and limit.
    pub class: QosClass,
    /// The request. `None` means unknown.
    pub request: Option<Request>,
    /// Notices for the operator or the pod's owner.
    pub notices: Vec<Notice>,
}

/// Finds a container's memory request in the order of the [module documentation](super).
///
/// If no kubelet states the class, the plugin derives it from the memory request and limit. If
/// request and limit are equal, the class is Guaranteed. If the container has neither, the class is
/// BestEffort and the request is zero. In all other cases the class is Burstable.
///
/// A limit without a request does not make a container Guaranteed here. The API server sets a
/// missing request to the limit, so it never sends a limit without a request.
pub fn resolve(known: &RequestFacts<'_>) -> Resolution {
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

fn find(known: &RequestFacts<'_>, notices: &mut Vec<Notice>) -> Option<Request> {
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

/// Returns the request from the annotation, lowered to the other known upper bounds.
///
/// The kubelet may compute `oom_score_adj` from more than the container's request, so the estimate
/// is only an upper bound of an annotated request. The plugin also uses an annotated request below
/// the estimated range, but treats it as inexact, because the true request may be larger.
fn from_annotation(
    known: &RequestFacts<'_>,
    requested: Bytes,
    notices: &mut Vec<Notice>,
) -> Request {
    let mut bytes = requested;
    // If no kubelet created the pod, the formula behind `oom_score_adj` is unknown.
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

/// Returns the request from the `memory.min` or `memory.low` that the kubelet's MemoryQoS feature
/// sent. The function ignores zero, because newer kubelets send zero to clear values of an older
/// configuration.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::CheckpointFile;

    const MIB: u64 = 1 << 20;

    fn mib(amount: u64) -> Bytes {
        Bytes::new(amount * MIB)
    }

    /// Values that [`RequestFacts`] borrows.
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
            resolve(&RequestFacts {
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
            "the kubelet may have a record"
        );
        assert_eq!(case.resolve().notices, [Notice::AnnotationUnconfirmed]);
        case.is_inconclusive = false;
        case.overrides.memory_request = None;
        assert_eq!(case.request(), Some((mib(40), Provenance::OomScoreAdj)));
        case.oom_score_adj = None;
        assert_eq!(case.request(), None);
    }

    #[test]
    fn only_a_record_outranks_the_guaranteed_limit() {
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
    fn guaranteed_requests_without_limit_are_unknown() {
        let case = Case::no_source(Some(QosClass::Guaranteed), Limit::Max);
        assert_eq!(case.resolve().request, None);
    }

    #[test]
    fn a_best_effort_container_requests_nothing_exactly() {
        let case = Case::no_source(Some(QosClass::BestEffort), Limit::Max);
        assert_eq!(case.resolve().request, Some(Request::exact(Bytes::ZERO, Provenance::QosClass)));
    }

    #[test]
    fn records_without_request_mean_limit_or_zero() {
        let mut case = Case::no_source(Some(QosClass::Burstable), Limit::Max);
        assert_eq!(case.resolve().request, None, "no record");
        case.record = Some(record(None, None));
        assert_eq!(case.request().map(|found| found.0), Some(Bytes::ZERO));
        case.record = Some(record(None, Some(64)));
        assert_eq!(
            case.request().map(|found| found.0),
            Some(mib(64)),
            "the request defaults to the limit"
        );
        case.record = Some(record(Some(0), Some(64)));
        assert_eq!(case.request().map(|found| found.0), Some(Bytes::ZERO), "an explicit 0 is 0");
    }

    #[test]
    fn burstable_requests_without_sources_are_unknown() {
        for limit in [Limit::Max, Limit::Bytes(mib(64))] {
            assert_eq!(Case::no_source(Some(QosClass::Burstable), limit).resolve().request, None);
        }
    }

    #[test]
    fn only_valid_nonzero_unified_protection_counts() {
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
            "unified memory.min: expected a whole number of bytes up to 9223372036854775807, \
             found 'max'; it is ignored"
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
    fn allocatable_memory_caps_an_annotated_request() {
        let mut case = Case::no_source(Some(QosClass::Burstable), Limit::Max);
        case.overrides.memory_request = Some(mib(100_000));
        assert_eq!(case.request(), Some((mib(900), Provenance::Annotation)));
        assert_eq!(
            case.resolve().notices[0].to_string(),
            "annotation memory-request 100000Mi exceeds node allocatable 900Mi, which is used"
        );
    }

    /// An `oom_score_adj` of 960 means a request of 40 to 41 MiB on a node with 1000 MiB.
    #[test]
    fn an_oom_score_caps_the_annotated_request() {
        let mut case = Case::no_source(Some(QosClass::Burstable), Limit::Max);
        case.oom_score_adj = Some(960);
        for (annotated, bytes, at_most) in [
            (30, mib(30), Bytes::new(41 * MIB - 1)),
            (40, mib(40), mib(40)),
            // The upper bound is higher by a thousandth of MemTotal, because the kubelet may have
            // read another MemTotal.
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
            "annotation memory-request 3000Mi exceeds what the kubelet's oom_score_adj allows, \
             44040191, which is used"
        );
        // A client that is not the kubelet may use another formula.
        case.class = None;
        assert_eq!(case.request(), Some((mib(900), Provenance::Annotation)));
    }

    #[test]
    fn an_unknown_class_follows_request_and_limit() {
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
}
