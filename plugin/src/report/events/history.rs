//! Events that the plugin has sent, and the decision whether an incident needs a new Event or
//! repeats an earlier incident.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::report::events::draft::EventDraft;
use crate::report::events::rates::RateLimits;
use crate::report::recent::RECENT;

/// Maximum number of sent Events that the plugin remembers to count repeated incidents.
const REMEMBERED: usize = 1024;

/// An Event that the plugin has sent.
#[derive(Debug)]
struct Sent {
    draft: EventDraft,
    /// Name of the Event.
    name: String,
    /// Time of the last incident.
    last: Instant,
    /// Number of incidents.
    count: i32,
}

/// A write to the API server.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Write {
    Create,
    /// Changes how many incidents an existing Event counts.
    Count {
        name: String,
        count: i32,
    },
}

/// Events that the plugin has sent, and the writes that the rate limits still allow.
#[derive(Debug)]
pub(super) struct History {
    limits: RateLimits,
    /// Sent Events, oldest first.
    sent: VecDeque<Sent>,
}

impl History {
    pub(super) fn new(now: Instant) -> Self {
        Self { limits: RateLimits::new(now), sent: VecDeque::new() }
    }

    /// Decides which write to the API server an incident causes. Returns `None` if the incident
    /// causes no write.
    ///
    /// # Errors
    ///
    /// [`RateExceeded`] if a new Event would exceed the rate limit of the pod or the node. A
    /// repeated incident always increases its Event's count, and the next write of the Event
    /// contains the count.
    pub(super) fn decide(
        &mut self,
        draft: &EventDraft,
        now: Instant,
    ) -> Result<Option<Write>, RateExceeded> {
        let is_recent =
            |sent: &Sent| now.saturating_duration_since(sent.last) <= Duration::from_secs(RECENT);
        // The API server refuses a second Event with the same name, so keep an old Event if the
        // next Event would have its name.
        self.sent.retain(|sent| is_recent(sent) || sent.draft.has_stable_name());
        match self
            .sent
            .iter()
            .position(|sent| sent.draft.is_like(draft))
            .and_then(|at| self.sent.remove(at))
        {
            Some(sent) if draft.is_once() => {
                self.sent.push_back(sent);
                Ok(None)
            }
            Some(before) => {
                let (count, name) = (before.count.saturating_add(1), before.name.clone());
                self.sent.push_back(Sent { last: now, count, ..before });
                Ok(self.limits.allow(&draft.uid, now).then_some(Write::Count { name, count }))
            }
            None if !self.limits.allow(&draft.uid, now) => Err(RateExceeded),
            None => {
                if self.sent.len() == REMEMBERED {
                    self.sent.pop_front();
                }
                self.sent.push_back(Sent {
                    draft: draft.clone(),
                    name: draft.name(),
                    last: now,
                    count: 1,
                });
                Ok(Some(Write::Create))
            }
        }
    }

    /// Changes how many incidents an existing Event counts.
    pub(super) fn set_count(&mut self, draft: &EventDraft, count: i32) {
        for sent in self.sent.iter_mut().filter(|sent| sent.draft.is_like(draft)) {
            sent.count = count;
        }
    }

    pub(super) fn forget(&mut self, draft: &EventDraft) {
        self.sent.retain(|sent| !sent.draft.is_like(draft));
    }
}

/// The rate limit of the pod or the node is exceeded.
#[derive(Debug, PartialEq)]
pub(super) struct RateExceeded;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::events::fixtures::{beyond_node, draft, overcommitted, rejected};

    #[tokio::test(start_paused = true)]
    async fn recent_identical_incidents_share_one_event() {
        let mut history = History::new(Instant::now());
        let mut decide = |draft: &EventDraft, after: u64| {
            history.decide(draft, Instant::now() + Duration::from_secs(after))
        };
        let first = draft("u", "app", &rejected(100));
        assert_eq!(decide(&first, 0), Ok(Some(Write::Create)));
        let counted = |count| Ok(Some(Write::Count { name: first.name(), count }));
        assert_eq!(decide(&draft("u", "app", &rejected(100)), 1), counted(2));
        assert_eq!(decide(&draft("u", "app", &rejected(100)), 599), counted(3));
        for other in [("u", "app", 90), ("u", "side", 100), ("v", "app", 100)] {
            assert_eq!(
                decide(&draft(other.0, other.1, &rejected(other.2)), 600),
                Ok(Some(Write::Create)),
                "{other:?}"
            );
        }
        assert_eq!(
            decide(&draft("u", "app", &rejected(100)), 599 + RECENT + 1),
            Ok(Some(Write::Create)),
            "long after"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn overcommitment_is_told_once_of_a_pod() {
        let mut history = History::new(Instant::now());
        let mut decide = |uid, container, after| {
            history.decide(
                &draft(uid, container, &overcommitted()),
                Instant::now() + Duration::from_secs(after),
            )
        };
        assert_eq!(decide("u", "app", 0), Ok(Some(Write::Create)));
        assert_eq!(decide("u", "app", 1), Ok(None));
        assert_eq!(decide("u", "side", 100_000), Ok(None));
        assert_eq!(decide("v", "app", 100_000), Ok(Some(Write::Create)));
    }

    #[tokio::test(start_paused = true)]
    async fn rate_limits_apply_per_pod_and_node() {
        let (mut history, start) = (History::new(Instant::now()), Instant::now());
        let different = |number: u64| draft("u", "app", &rejected(number));
        let written = |history: &mut History, now| {
            (1..=100)
                .filter(|number| {
                    history.decide(&different(*number), now) == Ok(Some(Write::Create))
                })
                .count()
        };
        assert_eq!(written(&mut history, start), 10);
        assert_eq!(
            history.decide(&different(1), start),
            Ok(None),
            "the repeated incident is counted"
        );
        assert_eq!(history.decide(&different(99), start), Err(RateExceeded));
        let later = start + Duration::from_secs(125);
        let counted = history.decide(&different(1), later);
        assert!(matches!(counted, Ok(Some(Write::Count { count: 3, .. }))), "{counted:?}");
        assert_eq!(
            written(&mut history, later),
            0,
            "the last permit of the rate limit was used to write the new count"
        );
        // The rate limit of the node.
        let mut history = History::new(start);
        let pods = (0..200).filter(|pod| {
            history.decide(&draft(&format!("u{pod}"), "app", &rejected(1)), start).is_ok()
        });
        assert_eq!(pods.count(), 50);
        assert_eq!(history.sent.len(), 50);
        history
            .decide(&draft("other", "app", &rejected(1)), start + Duration::from_secs(601))
            .unwrap();
        assert_eq!(
            (history.sent.len(), history.limits.pods.len()),
            (1, 1),
            "old Events are forgotten"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn old_event_with_stable_name_is_counted() {
        let mut history = History::new(Instant::now());
        let beyond = draft("u", "app", &beyond_node());
        assert_eq!(history.decide(&beyond, Instant::now()), Ok(Some(Write::Create)));
        let long_after = Instant::now() + Duration::from_secs(RECENT + 1);
        assert_eq!(
            history.decide(&draft("u", "app", &beyond_node()), long_after),
            Ok(Some(Write::Count { name: beyond.name(), count: 2 })),
            "the API server refuses a second Event with the name"
        );
    }
}
