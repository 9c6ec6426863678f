//! Rate limits of the writes to the API server, per pod and for the node.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

/// Rate limits per pod and for the node: a burst, then one write per interval.
const POD_RATE: Rate = Rate { burst: 10.0, every: Duration::from_secs(60) };
const NODE_RATE: Rate = Rate { burst: 50.0, every: Duration::from_secs(1) };

/// Rate limit: a burst, then one write per interval.
#[derive(Clone, Copy, Debug)]
struct Rate {
    burst: f64,
    every: Duration,
}

/// Token bucket: the number of writes that a [`Rate`] still allows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    pub(super) tokens: f64,
    pub(super) at: Instant,
}

impl Bucket {
    fn full(rate: Rate, now: Instant) -> Self {
        Self { tokens: rate.burst, at: now }
    }

    fn refill(&mut self, rate: Rate, now: Instant) {
        let more = now.saturating_duration_since(self.at).div_duration_f64(rate.every);
        *self = Self { tokens: rate.burst.min(self.tokens + more), at: now };
    }
}

/// Writes that the rate limits of the node and of each pod still allow.
#[derive(Debug)]
pub(super) struct RateLimits {
    pub(super) node: Bucket,
    /// Token buckets by pod UID. The map omits full buckets.
    pub(super) pods: HashMap<String, Bucket>,
}

impl RateLimits {
    pub(super) fn new(now: Instant) -> Self {
        Self { node: Bucket::full(NODE_RATE, now), pods: HashMap::new() }
    }

    pub(super) fn allow(&mut self, uid: &str, now: Instant) -> bool {
        self.pods.retain(|_, pod| {
            pod.refill(POD_RATE, now);
            pod.tokens < POD_RATE.burst
        });
        self.node.refill(NODE_RATE, now);
        let pod = self.pods.entry(uid.to_owned()).or_insert(Bucket::full(POD_RATE, now));
        let is_allowed = pod.tokens >= 1.0 && self.node.tokens >= 1.0;
        if is_allowed {
            pod.tokens -= 1.0;
            self.node.tokens -= 1.0;
        }
        is_allowed
    }
}
