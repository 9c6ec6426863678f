//! Model of the plugin, the runtime, the kernel and systemd for one container. Tests run the model
//! with random orders of events. The model calls the methods of `UpdatePhase` at the same steps as
//! the plugin.

use plimsoll_core::policy::KNOBS;
use plimsoll_core::units::{Bytes, Knob, Limit};
use proptest::prelude::{Arbitrary, BoxedStrategy, Just, Strategy};
use proptest::prop_oneof;
use tokio::time::Instant;

use super::super::{
    LimitMeaning, LimitOrigin, LimitRequest, Party, StoredValues, UpdateId, UpdatePhase,
};

/// Event of the model. An event that is impossible in the current state has no effect.
#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    /// The user changes the memory limit, or only the CPU limit.
    UserUpdates { limit: Option<u64> },
    /// The plugin replies to the announced update.
    HandlerEnds(HandlerEnd),
    /// The runtime applies the announced update.
    RuntimeApplies(Applies),
    /// The runtime reports that it has applied an update.
    RuntimeReports,
    /// The plugin stops waiting for the end of the announced update.
    Deadline,
    /// The plugin retries a deferred limit decrease. `fits` says whether the memory usage allows
    /// the decrease.
    DeferralIsTried { fits: bool },
    /// An OOM rescue raises the limit.
    RescueRaises,
    /// The reconcile task takes the next request to set a limit from its queue.
    LimitWorkIsTaken,
    /// The plugin sends its request, or finds that the runtime is too busy.
    RequestIsSent { is_busy: bool },
    /// The runtime handles the plugin's request.
    RequestIsHandled,
    /// The plugin gets the answer to its request.
    RequestIsAnswered,
    /// A thread writes `memory.high`.
    FileIsWritten,
    /// The plugin checks the container.
    Check,
    /// The plugin releases the container from throttling at `memory.high`.
    Release,
    /// The plugin ends the release from throttling.
    ReleaseEnds,
    /// The runtime reconnects.
    Reconnects,
    /// The plugin is killed and starts again.
    Killed,
    /// systemd writes the values that the runtime gave it.
    SystemdWrites,
    /// Another program writes `memory.high`.
    ForeignWrite { high: u64 },
}

/// Outcome of the plugin's answer to an announced update.
#[derive(Clone, Copy, Debug)]
pub(super) enum HandlerEnd {
    Accepts,
    /// The plugin refuses a limit decrease.
    Refuses,
    /// The plugin defers a limit decrease.
    Defers,
    /// The runtime stops waiting for the plugin, and applies the user's unchanged update.
    IsDropped,
}

/// Result of an update in the runtime.
#[derive(Clone, Copy, Debug)]
pub(super) enum Applies {
    All,
    /// The update fails after the write to `memory.max`.
    LimitAlone,
    Nothing,
}

impl Arbitrary for Event {
    type Parameters = ();
    type Strategy = BoxedStrategy<Self>;

    fn arbitrary_with((): ()) -> Self::Strategy {
        let limit = || (1..=8u64).prop_map(|tens| tens * 10);
        prop_oneof![
            4 => limit().prop_map(|limit| Self::UserUpdates { limit: Some(limit) }),
            1 => Just(Self::UserUpdates { limit: None }),
            5 => prop_oneof![
                4 => Just(HandlerEnd::Accepts),
                2 => Just(HandlerEnd::Refuses),
                2 => Just(HandlerEnd::Defers),
                1 => Just(HandlerEnd::IsDropped),
            ]
            .prop_map(Self::HandlerEnds),
            5 => prop_oneof![
                4 => Just(Applies::All),
                1 => Just(Applies::LimitAlone),
                1 => Just(Applies::Nothing),
            ]
            .prop_map(Self::RuntimeApplies),
            4 => Just(Self::RuntimeReports),
            1 => Just(Self::Deadline),
            3 => proptest::bool::ANY.prop_map(|fits| Self::DeferralIsTried { fits }),
            1 => Just(Self::RescueRaises),
            4 => Just(Self::LimitWorkIsTaken),
            4 => proptest::bool::weighted(0.2).prop_map(|is_busy| Self::RequestIsSent { is_busy }),
            4 => Just(Self::RequestIsHandled),
            4 => Just(Self::RequestIsAnswered),
            3 => Just(Self::FileIsWritten),
            8 => Just(Self::Check),
            1 => Just(Self::Release),
            1 => Just(Self::ReleaseEnds),
            1 => Just(Self::Reconnects),
            1 => Just(Self::Killed),
            1 => Just(Self::SystemdWrites),
            1 => limit().prop_map(|high| Self::ForeignWrite { high }),
        ]
        .boxed()
    }
}

/// Values of `memory.max` and `memory.high`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Memory {
    pub(super) max: u64,
    pub(super) high: Limit,
}

/// Announced update that the plugin is answering.
#[derive(Clone, Copy, Debug)]
struct Handler {
    id: UpdateId,
    limit: Option<u64>,
    is_decrease: bool,
}

/// Update that the runtime is about to apply.
#[derive(Clone, Copy, Debug)]
struct RuntimeUpdate {
    limit: Option<u64>,
    high: Option<Limit>,
}

/// Request of the plugin to the runtime.
#[derive(Clone, Copy, Debug)]
struct OwnRequest {
    decided: UpdatePhase,
    kind: RequestKind,
    limit: Option<u64>,
    high: Option<Limit>,
    state: Progress,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum RequestKind {
    Limit,
    Values,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Progress {
    Waits,
    WasSent,
    IsHandled,
}

/// Request to set a limit, which the reconcile task has not yet taken from its queue.
#[derive(Clone, Copy, Debug)]
struct LimitWork {
    limit: u64,
    origin: LimitOrigin,
    is_prepared: bool,
}

/// State of the plugin, the runtime, the kernel and systemd for one container.
#[derive(Debug)]
pub(super) struct World {
    /// Whether the policy has a value for `memory.high`.
    has_policy: bool,
    /// Value of the container's `memory.high` before the plugin changed it.
    pub(super) found_high: Limit,
    pub(super) kernel: Memory,
    /// Values that both the runtime and systemd store.
    pub(super) stored: Memory,
    /// The plugin's state.
    pub(super) phase: UpdatePhase,
    pub(super) limit: u64,
    recorded_original: Option<Limit>,
    deferred: Option<u64>,
    limit_work: Vec<LimitWork>,
    file_writes: Vec<(UpdatePhase, Limit)>,
    handler: Option<Handler>,
    announced: Option<RuntimeUpdate>,
    /// Whether the runtime has applied an update and not reported it yet.
    is_report_due: bool,
    own: Option<OwnRequest>,
    updates: u64,
    insertions: u64,
    now: Instant,
    /// Newest limit that the runtime got, either from the user or from a later request of the
    /// plugin. `None` after a failed update.
    expected: Option<u64>,
    is_ambiguous: bool,
    /// Whether the plugin was killed when the files had its values but the runtime did not.
    pub(super) is_store_unknown: bool,
}

fn bytes(value: u64) -> Limit {
    Limit::Bytes(Bytes::new(value))
}

impl World {
    pub(super) fn new(has_policy: bool, found_high: Option<u64>) -> Self {
        let found_high = found_high.map_or(Limit::Max, bytes);
        let memory = Memory { max: 40, high: found_high };
        Self {
            has_policy,
            found_high,
            kernel: memory,
            stored: memory,
            phase: UpdatePhase::default(),
            limit: 40,
            recorded_original: None,
            deferred: None,
            limit_work: Vec::new(),
            file_writes: Vec::new(),
            handler: None,
            announced: None,
            is_report_due: false,
            own: None,
            updates: 0,
            insertions: 0,
            now: Instant::now(),
            expected: Some(40),
            is_ambiguous: false,
            is_store_unknown: false,
        }
    }

    fn policy_high(&self, limit: u64) -> Option<Limit> {
        self.has_policy.then(|| bytes(limit * 9 / 10))
    }

    /// Returns the desired `memory.high` for a container with this memory limit.
    pub(super) fn desired_high(&self, limit: u64) -> Option<Limit> {
        self.phase.high().desired(self.policy_high(limit))
    }

    fn values(&self, limit: u64) -> StoredValues {
        let high = self.desired_high(limit);
        KNOBS.map(|knob| high.filter(|_| knob == Knob::High))
    }

    pub(super) fn happens(&mut self, event: Event) {
        match event {
            Event::UserUpdates { limit } => self.announce(limit),
            Event::HandlerEnds(end) => self.end_handler(end),
            Event::RuntimeApplies(applies) => self.apply(applies),
            Event::RuntimeReports => {
                if std::mem::take(&mut self.is_report_due) {
                    self.phase.applied();
                }
            }
            Event::Deadline => self.pass_deadline(),
            Event::DeferralIsTried { fits } => self.try_deferral(fits),
            Event::RescueRaises => {
                let origin = self.phase.limit_origin();
                let work = LimitWork { limit: self.limit + 10, origin, is_prepared: false };
                self.limit_work.push(work);
            }
            Event::LimitWorkIsTaken => self.take_limit_work(),
            Event::RequestIsSent { is_busy } => self.send(is_busy),
            Event::RequestIsHandled => self.handle_request(),
            Event::RequestIsAnswered => {
                if let Some(OwnRequest { state: Progress::IsHandled, .. }) = self.own {
                    self.own = None;
                    self.phase.answered(true);
                }
            }
            Event::FileIsWritten => {
                if let Some((decided, high)) = self.file_writes.pop()
                    && self.phase.is_current(&decided)
                {
                    self.kernel.high = high;
                }
            }
            Event::Check => self.check(),
            Event::Release => {
                if self.has_policy && self.phase.result().is_some() {
                    self.phase.release(bytes(self.kernel.max));
                }
            }
            Event::ReleaseEnds => self.phase.end_release(),
            Event::Reconnects => {
                self.forget_ambiguous();
                self.phase = UpdatePhase::reconnect(&self.phase, self.limit == self.stored.max);
                self.limit = self.stored.max;
                self.lose_connection();
            }
            Event::Killed => self.kill(),
            Event::SystemdWrites => self.kernel = self.stored,
            Event::ForeignWrite { high } => self.kernel.high = bytes(high),
        }
    }

    fn announce(&mut self, limit: Option<u64>) {
        // The runtime handles one update of a container at a time.
        if self.handler.is_some() || self.announced.is_some() || self.is_report_due {
            return;
        }
        self.updates += 1;
        let id = UpdateId::new(self.updates);
        self.phase.announce(id);
        let is_decrease = limit.is_some_and(|limit| limit < self.kernel.max);
        if is_decrease {
            self.lower_high(Party::User, limit.unwrap_or_default());
        }
        self.handler = Some(Handler { id, limit, is_decrease });
    }

    /// Lowers `memory.high` for a decrease to `limit`. Returns whether the phase allows this.
    fn lower_high(&mut self, by: Party, limit: u64) -> bool {
        if !self.phase.begin_decrease(by, self.kernel.high) {
            return false;
        }
        self.recorded_original = self.phase.original_high();
        self.kernel.high = self.kernel.high.min(bytes(limit - 1));
        true
    }

    fn put_high_back(&mut self) {
        if let Some(original) = self.phase.original_high() {
            self.kernel.high = original;
        }
    }

    fn end_handler(&mut self, end: HandlerEnd) {
        let Some(Handler { id, limit, is_decrease }) = self.handler.take() else { return };
        match end {
            HandlerEnd::Refuses if is_decrease => {
                self.put_high_back();
                self.phase.refuse(id);
            }
            HandlerEnd::Defers if is_decrease => {
                self.put_high_back();
                self.deferred = limit;
                self.limit = self.kernel.max;
                self.phase.accept(id, true);
                let high = self.desired_high(self.limit);
                self.announced = Some(RuntimeUpdate { limit: Some(self.limit), high });
            }
            HandlerEnd::IsDropped => self.announced = Some(RuntimeUpdate { limit, high: None }),
            HandlerEnd::Accepts | HandlerEnd::Refuses | HandlerEnd::Defers => {
                if let Some(limit) = limit {
                    self.deferred = None;
                    self.limit = limit;
                }
                self.phase.accept(id, limit.is_some());
                let high = self.desired_high(self.limit);
                self.announced = Some(RuntimeUpdate { limit, high });
            }
        }
    }

    fn apply(&mut self, applies: Applies) {
        let Some(RuntimeUpdate { limit, high }) = self.announced.take() else { return };
        match applies {
            Applies::All => {
                self.stored = Memory {
                    max: limit.unwrap_or(self.stored.max),
                    high: high.unwrap_or(self.stored.high),
                };
                self.kernel = self.stored;
                self.is_report_due = true;
                if limit.is_some() {
                    self.expected = limit;
                }
            }
            // The kubelet tries again, so the final limit is unknown.
            Applies::LimitAlone => {
                self.kernel.max = limit.unwrap_or(self.kernel.max);
                self.expected = None;
            }
            Applies::Nothing => self.expected = None,
        }
    }

    fn pass_deadline(&mut self) {
        // The plugin always answers an update long before this deadline.
        if self.handler.is_none() && self.updates > 0 {
            let has_given_up = self.phase.give_up(UpdateId::new(self.updates));
            // The plugin adopts the limit in force, but does not know in which order the runtime
            // handled the update and the plugin's request.
            self.is_ambiguous |= has_given_up && self.phase.is_overtaken;
        }
    }

    fn try_deferral(&mut self, fits: bool) {
        let Some(limit) = self.deferred else { return };
        if self.handler.is_some() {
            return;
        }
        if self.kernel.max <= limit {
            self.deferred = None;
            return;
        }
        if !self.lower_high(Party::Plugin, limit) {
            return;
        }
        if fits {
            let origin = self.phase.limit_origin();
            self.limit_work.push(LimitWork { limit, origin, is_prepared: true });
        } else {
            self.put_high_back();
            self.phase.cancel_decrease();
        }
    }

    fn take_limit_work(&mut self) {
        let Some(work) = self.limit_work.first().copied() else { return };
        self.now += std::time::Duration::from_secs(1);
        match self.phase.begin_limit_request(work.origin, work.is_prepared, self.now) {
            LimitRequest::Wait => self.limit_work.rotate_left(1),
            LimitRequest::Drop => _ = self.limit_work.remove(0),
            LimitRequest::Send => {
                self.limit_work.remove(0);
                self.own = Some(OwnRequest {
                    decided: self.phase,
                    kind: RequestKind::Limit,
                    limit: Some(work.limit),
                    high: None,
                    state: Progress::Waits,
                });
            }
        }
    }

    fn send(&mut self, is_busy: bool) {
        let Some(own) = self.own.filter(|own| own.state == Progress::Waits) else { return };
        let is_current = if own.kind == RequestKind::Limit {
            self.phase.limit_origin() == own.decided.limit_origin()
        } else {
            self.phase.is_current(&own.decided)
        };
        if is_current && !is_busy {
            self.own = Some(OwnRequest { state: Progress::WasSent, ..own });
            return;
        }
        self.own = None;
        self.phase.answered(false);
        if is_current && own.kind == RequestKind::Values {
            self.phase.write_files_only();
            self.write_file(own.decided, own.high);
        }
    }

    fn write_file(&mut self, decided: UpdatePhase, high: Option<Limit>) {
        self.phase.write();
        self.file_writes.extend(high.map(|high| (decided, high)));
    }

    fn handle_request(&mut self) {
        let Some(own) = self.own.filter(|own| own.state == Progress::WasSent) else { return };
        if let Some(limit) = own.limit {
            // After a newer update of the user, the user's limit must be in force at the end.
            if !self.phase.is_overtaken {
                self.expected = Some(limit);
            }
        }
        self.stored.max = own.limit.unwrap_or(self.stored.max);
        self.stored.high = own.high.unwrap_or(self.stored.high);
        self.kernel = self.stored;
        self.own = Some(OwnRequest { state: Progress::IsHandled, ..own });
    }

    /// Checks the container in the same way as the reconcile task.
    fn check(&mut self) {
        if !self.phase.may_check() {
            return;
        }
        let in_force = self.kernel.max;
        let mut is_adopted = false;
        if in_force != self.limit {
            match self.phase.limit_meaning() {
                LimitMeaning::Foreign => {}
                LimitMeaning::Result | LimitMeaning::Adopted => {
                    (self.limit, is_adopted) = (in_force, true);
                }
                LimitMeaning::Overtaken if self.limit > in_force => {
                    let origin = self.phase.limit_origin();
                    let work = LimitWork { limit: self.limit, origin, is_prepared: false };
                    self.limit_work.push(work);
                }
                LimitMeaning::Overtaken => self.deferred = Some(self.limit),
            }
        }
        self.phase.limits_read_back(is_adopted);
        let desired = self.desired_high(in_force);
        let values = self.values(in_force);
        // The runtime would write its stored limit, and a lower limit could cause an OOM kill.
        let may_request = in_force <= self.limit;
        if desired.is_none_or(|desired| desired == self.kernel.high) {
            if may_request && self.phase.is_in_files_only(desired) {
                self.request_values(desired);
            } else {
                self.phase.settle(values);
                self.recorded_original = None;
            }
        } else if self.phase.has_stored(&values) {
            self.write_file(self.phase, desired);
        } else if may_request {
            self.request_values(desired);
        } else {
            self.phase.write_files_only();
            self.write_file(self.phase, desired);
        }
    }

    fn request_values(&mut self, high: Option<Limit>) {
        let limit = self.phase.begin_values_request(self.now).then_some(self.kernel.max);
        let (decided, state) = (self.phase, Progress::Waits);
        self.own = Some(OwnRequest { decided, kind: RequestKind::Values, limit, high, state });
    }

    /// Marks the expected limit as unknown if the runtime has both an update and a request when the
    /// connection is lost. The model cannot know which one the runtime handles last.
    fn forget_ambiguous(&mut self) {
        // Before the runtime accepts the next connection, it handles a request that it has already
        // received.
        self.handle_request();
        let is_pending = self.handler.is_some() || self.announced.is_some() || self.is_report_due;
        let is_sent =
            self.own.is_some_and(|own| own.limit.is_some() && own.state != Progress::Waits);
        // The plugin forgets that it must repeat the user's limit.
        let is_repeat_due = self.limit != self.stored.max && self.expected == Some(self.limit);
        self.is_ambiguous |= is_pending && is_sent || self.phase.is_overtaken || is_repeat_due;
    }

    fn lose_connection(&mut self) {
        // The runtime applies the update without waiting for the plugin.
        if let Some(Handler { limit, .. }) = self.handler.take() {
            self.announced = Some(RuntimeUpdate { limit, high: None });
        }
        self.insertions += 1;
        self.phase.insert(self.insertions);
    }

    fn kill(&mut self) {
        self.forget_ambiguous();
        // If the files have the values, the next plugin process assumes that the runtime has them
        // too.
        self.is_store_unknown |= self.phase.is_in_files_only(self.desired_high(self.kernel.max));
        self.phase = UpdatePhase::restart(self.recorded_original);
        self.limit = self.stored.max;
        self.lose_connection();
        (self.deferred, self.limit_work, self.file_writes) = (None, Vec::new(), Vec::new());
        self.own = None;
    }

    /// Completes all pending events successfully.
    pub(super) fn settle(&mut self) {
        for _ in 0..40 {
            let before = (self.kernel, self.stored, self.phase);
            for event in [
                Event::HandlerEnds(HandlerEnd::Accepts),
                Event::RuntimeApplies(Applies::All),
                Event::RuntimeReports,
                Event::Deadline,
                Event::LimitWorkIsTaken,
                Event::RequestIsSent { is_busy: false },
                Event::RequestIsHandled,
                Event::RequestIsAnswered,
                Event::FileIsWritten,
                Event::DeferralIsTried { fits: true },
                Event::Check,
            ] {
                self.happens(event);
            }
            if !self.is_busy() && before == (self.kernel, self.stored, self.phase) {
                return;
            }
        }
    }

    /// Returns the limit that must be in force at the end, if it is known.
    pub(super) fn expected(&self) -> Option<u64> {
        self.expected.filter(|_| !self.is_ambiguous)
    }

    /// Returns whether an update, a request or a write is pending.
    pub(super) fn is_busy(&self) -> bool {
        self.handler.is_some()
            || self.announced.is_some()
            || self.is_report_due
            || self.own.is_some()
            || !self.limit_work.is_empty()
            || !self.file_writes.is_empty()
            || self.deferred.is_some()
            || !self.phase.may_check()
    }
}
