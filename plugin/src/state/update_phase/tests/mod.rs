mod model;

use std::time::Duration;

use plimsoll_core::units::{Bytes, Limit};
use proptest::prelude::*;
use tokio::time::Instant;

use self::model::{Event, World};
use super::*;

proptest! {
    // Each case is one order of events.
    #![proptest_config(ProptestConfig { cases: 10_000, ..ProptestConfig::default() })]

    #[test]
    fn any_event_order_reaches_the_desired_values(
        has_policy: bool,
        found_high in proptest::option::of(60..100u64),
        events in proptest::collection::vec(any::<Event>(), 1..60),
    ) {
        let mut world = World::new(has_policy, found_high);
        let is_foreign_high =
            events.iter().any(|event| matches!(event, Event::ForeignWrite { .. }));
        for event in events {
            world.happens(event);
        }
        world.happens(Event::ReleaseEnds);
        world.settle();
        prop_assert!(!world.is_busy(), "{world:?}");
        prop_assert_eq!(world.phase.original_high(), None);
        // After a failed update and a restart, the limit in force counts as a limit that another
        // program set.
        let is_foreign = world.expected().is_none() && world.kernel.max != world.limit;
        if let Some(expected) = world.expected() {
            prop_assert_eq!(world.kernel.max, expected, "memory.max is the newest limit");
            prop_assert_eq!(world.stored.max, expected, "the runtime has the newest limit");
            prop_assert_eq!(world.limit, expected, "the plugin knows the newest limit");
        }
        if !has_policy && !is_foreign_high {
            prop_assert_eq!(world.kernel.high, world.found_high, "memory.high is as found");
        }
        if let Some(desired) = world.desired_high(world.kernel.max) {
            prop_assert_eq!(world.kernel.high, desired, "memory.high is not left lowered");
            let is_open = is_foreign || world.is_store_unknown;
            prop_assert!(is_open || world.stored.high == desired, "{world:?}");
        }
    }
}

fn limit(bytes: u64) -> Limit {
    Limit::Bytes(Bytes::new(bytes))
}

fn announced(id: u64) -> UpdatePhase {
    let mut phase = UpdatePhase::default();
    phase.announce(UpdateId::new(id));
    phase
}

#[test]
fn only_accepted_updates_give_a_limit_result() {
    let mut phase = announced(1);
    assert_eq!((phase.result(), phase.may_check()), (None, false));
    phase.accept(UpdateId::new(1), true);
    phase.applied();
    assert_eq!(phase.limit_meaning(), LimitMeaning::Result);
    let mut phase = announced(1);
    phase.applied();
    assert_eq!(phase.limit_meaning(), LimitMeaning::Adopted);
}

#[test]
fn a_refused_update_leaves_the_former_result() {
    let mut phase = announced(1);
    phase.accept(UpdateId::new(1), true);
    phase.applied();
    phase.announce(UpdateId::new(2));
    phase.refuse(UpdateId::new(1));
    assert!(!phase.may_check(), "another update is announced");
    phase.refuse(UpdateId::new(2));
    assert_eq!(phase.result(), Some(UpdateResult::Applied));
}

#[test]
fn only_the_announced_update_can_time_out() {
    let mut phase = announced(2);
    assert!(!phase.give_up(UpdateId::new(1)));
    assert!(phase.give_up(UpdateId::new(2)));
    assert!(!phase.give_up(UpdateId::new(2)));
    assert_eq!(phase.limit_meaning(), LimitMeaning::Adopted);
}

#[test]
fn an_announced_update_voids_a_prepared_decrease() {
    let mut phase = UpdatePhase::default();
    assert!(phase.begin_decrease(Party::Plugin, Limit::Max));
    assert!(!phase.may_check() && phase.is_changing());
    let origin = phase.limit_origin();
    phase.announce(UpdateId::new(1));
    let decision = phase.begin_limit_request(origin, true, Instant::now());
    assert_eq!(decision, LimitRequest::Drop);
    phase.refuse(UpdateId::new(1));
    assert!(phase.may_check(), "the next check restores memory.high");
    assert_eq!(phase.high().desired(None), Some(Limit::Max));
}

#[test]
fn plugin_decreases_wait_for_updates_and_requests() {
    assert!(!announced(1).begin_decrease(Party::Plugin, Limit::Max));
    let mut phase = UpdatePhase::default();
    phase.begin_values_request(Instant::now());
    assert!(!phase.begin_decrease(Party::Plugin, Limit::Max));
    phase.answered(true);
    assert!(phase.begin_decrease(Party::Plugin, Limit::Max));
}

#[test]
fn a_user_limit_overrides_a_pending_request() {
    let mut phase = UpdatePhase::default();
    let (origin, now) = (phase.limit_origin(), Instant::now());
    assert_eq!(phase.begin_limit_request(origin, false, now), LimitRequest::Send);
    phase.announce(UpdateId::new(1));
    phase.accept(UpdateId::new(1), true);
    phase.applied();
    phase.answered(true);
    assert_eq!(phase.limit_meaning(), LimitMeaning::Overtaken);
    assert_eq!(phase.begin_limit_request(origin, false, now), LimitRequest::Drop);
    phase.limits_read_back(false);
    assert_eq!(phase.limit_meaning(), LimitMeaning::Foreign);
}

#[test]
fn requests_from_before_a_reconnection_are_dropped() {
    let mut phase = UpdatePhase::default();
    let (origin, now) = (phase.limit_origin(), Instant::now());
    let mut phase = {
        phase.announce(UpdateId::new(1));
        UpdatePhase::reconnect(&phase, true)
    };
    phase.insert(1);
    assert_eq!(phase.begin_limit_request(origin, false, now), LimitRequest::Drop);
    assert_eq!(phase.limit_meaning(), LimitMeaning::Adopted, "the update may have been applied");
}

#[test]
fn the_next_request_contains_the_adopted_limit() {
    let mut phase = announced(1);
    phase.give_up(UpdateId::new(1));
    phase.limits_read_back(true);
    assert!(phase.begin_values_request(Instant::now()), "the request contains the limit");
    phase.answered(true);
    assert!(!phase.begin_values_request(Instant::now()));
}

#[test]
fn a_lowered_high_is_in_files_only() {
    let mut phase = UpdatePhase::default();
    phase.begin_decrease(Party::User, Limit::Max);
    assert!(phase.is_in_files_only(Some(limit(90))));
    assert!(!phase.is_in_files_only(Some(Limit::Max)), "the runtime has the original value");
}

#[test]
fn a_refused_request_for_values_is_remembered() {
    let (mut phase, before) = (UpdatePhase::default(), Instant::now());
    assert!(!phase.has_requested_values_since(before));
    let now = before + Duration::from_secs(1);
    phase.begin_values_request(now);
    phase.answered(false);
    assert!(phase.has_requested_values_since(before), "no request follows at once");
    assert!(!phase.has_requested_values_since(now));
}

#[test]
fn a_busy_runtime_leaves_values_unstored() {
    let (mut phase, values) = (UpdatePhase::default(), [None, None, Some(limit(90))]);
    phase.begin_values_request(Instant::now());
    phase.answered(false);
    phase.write_files_only();
    phase.write();
    assert!(phase.settle(values));
    assert!(!phase.has_stored(&values));
    phase.begin_values_request(Instant::now());
    phase.answered(true);
    phase.settle(values);
    assert!(phase.has_stored(&values));
}
