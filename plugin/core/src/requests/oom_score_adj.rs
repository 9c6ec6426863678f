//! Estimate of a container's memory request, computed from `oom_score_adj`.
//!
//! The kubelet gives a Burstable container the value `1000 - 1000 * request / MemTotal`, as a whole
//! number from 3 to 999 (`pkg/kubelet/qos/policy.go`). The values -997 and 1000 belong to other
//! classes and do not depend on the request.
//!
//! The result is an estimate. Newer kubelets do not compute `oom_score_adj` from the container's
//! own request alone. Each of these cases lowers `oom_score_adj` and thereby raises the estimate
//! above the request:
//!
//! - A sidecar gets the lowest value of the pod's ordinary containers if this value is lower than
//!   its own (1.29 and later).
//! - If a pod-level request exceeds the sum of the containers' requests, the kubelet (from 1.34)
//!   adds a share of the difference. Kubelets from 1.37 also add memory of dynamic resources.
//! - With the feature gate KubeletOOMScoreAdjTieBreak (after 1.37), `oom_score_adj` is lower by up
//!   to 9 on a node with 1 TiB of memory.
//!
//! The estimate is therefore a reliable upper bound of the request, but no reliable lower bound.
//! The runtime does not show which containers these cases affect. The estimate never exceeds the
//! container's limit. Kubelets from 1.33 have checkpoints, so the plugin needs no estimate with
//! these kubelets.

use crate::pod::{Provenance, Request};
use crate::units::{Bytes, Limit};

/// The value for a Burstable container that requests nearly all of the node's memory or more.
const LOWEST: i64 = 3;
/// The value for a Burstable container with a request of 0 or nearly 0.
const HIGHEST: i64 = 999;

/// Computes the memory request from `oom_score_adj`, for a node with `mem_total` bytes of memory.
/// The result covers every request up to `mem_total` for which the kubelet's formula gives this
/// value. Both bounds are at most the limit, because no request may exceed the limit.
///
/// Returns `None` if the kubelet never gives this value to Burstable containers.
pub fn request(oom_score_adj: i64, mem_total: Bytes, limit: Limit) -> Option<Request> {
    if !(LOWEST..=HIGHEST).contains(&oom_score_adj) {
        return None;
    }
    // The result of floor(1000 * request / total) lies between `first` and `last`, inclusive.
    let (first, last) = match 1000 - oom_score_adj as u64 {
        1 => (0, 1),
        997 => (997, u64::MAX),
        steps => (steps, steps),
    };
    let at_least = |steps: u64| (u128::from(steps) * u128::from(mem_total.get())).div_ceil(1000);
    let bytes = Bytes::new(u64::try_from(at_least(first)).unwrap_or(u64::MAX));
    let at_most = if last == u64::MAX {
        mem_total.max(bytes)
    } else {
        Bytes::new(u64::try_from(at_least(last + 1).saturating_sub(1)).unwrap_or(u64::MAX))
            .max(bytes)
    };
    let request = Request { bytes, at_most, provenance: Provenance::OomScoreAdj };
    Some(limit.bytes().map_or(request, |limit| request.capped(limit)))
}

/// Returns the largest request that a container with this `oom_score_adj` may have. The result is
/// the upper bound of [`request`] plus a thousandth of `mem_total`, because the kubelet may have
/// read another MemTotal when it started. Returns `None` in the same cases as [`request`].
pub fn at_most(oom_score_adj: i64, mem_total: Bytes) -> Option<Bytes> {
    let request = request(oom_score_adj, mem_total, Limit::Max)?;
    Some(request.at_most.saturating_add(Bytes::new(mem_total.get() / 1000)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Computes the `oom_score_adj` that the kubelet gives to a Burstable container.
    fn kubelet(request: u64, mem_total: u64) -> i64 {
        let adj = 1000 - (1000 * request as i128 / mem_total as i128) as i64;
        adj.clamp(LOWEST, HIGHEST)
    }

    #[test]
    fn values_of_other_classes_say_nothing() {
        for adj in [-1000, -999, -997, 0, 2, 1000, 1001, i64::MIN, i64::MAX] {
            assert_eq!(request(adj, Bytes::new(1 << 30), Limit::Max), None, "{adj}");
        }
    }

    #[test]
    fn request_bounds_are_thousandths_of_memory() {
        let bounds = |adj| {
            request(adj, Bytes::new(1_000_000), Limit::Max)
                .map(|r| (r.bytes.get(), r.at_most.get()))
        };
        assert_eq!(bounds(999), Some((0, 1999)));
        assert_eq!(bounds(998), Some((2000, 2999)));
        assert_eq!(bounds(500), Some((500_000, 500_999)));
        assert_eq!(bounds(4), Some((996_000, 996_999)));
        assert_eq!(bounds(3), Some((997_000, 1_000_000)));
    }

    #[test]
    fn the_limit_caps_the_estimated_request() {
        let request = request(3, Bytes::new(1_000_000), Limit::Bytes(Bytes::new(5000))).unwrap();
        assert_eq!((request.bytes.get(), request.at_most.get()), (5000, 5000));
    }

    proptest! {
        #[test]
        fn the_bounds_contain_the_kubelets_request(
            mem_total in 1u64 << 20..1 << 44,
            share in 0.0f64..=1.0,
        ) {
            let truth = (mem_total as f64 * share) as u64;
            let found =
                request(kubelet(truth, mem_total), Bytes::new(mem_total), Limit::Max).unwrap();
            prop_assert!(found.bytes.get() <= truth && truth <= found.at_most.get());
            prop_assert!(found.error_bound().get() <= 3 * mem_total / 1000 + 1);
        }

        #[test]
        fn any_score_gives_ordered_bounds(adj: i64, mem_total: u64, limit: i64) {
            let limit = Limit::from_cri(limit, crate::units::PageSize::KIB4).unwrap_or(Limit::Max);
            if let Some(found) = request(adj, Bytes::new(mem_total), limit) {
                prop_assert!(found.bytes <= found.at_most);
            }
            let _ = request(3 + adj.rem_euclid(997), Bytes::new(mem_total), limit);
        }
    }
}
