//! Events that change the phase of a container's updates.

use plimsoll_core::units::Limit;
use tokio::time::Instant;

use super::phase::{
    HighOverride, LimitOrigin, LimitRequest, Party, Request, StoredValues, Update, UpdateId,
    UpdatePhase, UpdateResult,
};

/// Events of the user's updates.
impl UpdatePhase {
    /// The runtime is about to apply an update.
    pub fn announce(&mut self, id: UpdateId) {
        let former = match self.update {
            // The runtime did not report the end of the earlier update.
            Update::Announced { .. } => UpdateResult::Unconfirmed,
            Update::Ended(result) => result,
        };
        self.update = Update::Announced { id, is_accepted: false, former };
        // After the user's update, the plugin must prepare its own decrease again.
        if self.request == Request::Prepared {
            self.request = Request::None;
        }
        self.outdate();
    }

    /// The plugin has accepted an announced update and knows the update's limits.
    pub fn accept(&mut self, id: UpdateId, sets_limit: bool) {
        if let Update::Announced { id: announced, is_accepted, .. } = &mut self.update
            && *announced == id
        {
            *is_accepted = true;
        }
        if sets_limit {
            self.limit_set_by = id;
            self.is_limit_requested = false;
            self.is_overtaken |=
                matches!(self.request, Request::Limit | Request::Values { has_limit: true });
        }
        // With its new limits, the container may no longer need a raised memory.high.
        self.high.released = None;
        self.outdate();
    }

    /// The plugin has refused an announced update.
    pub fn refuse(&mut self, id: UpdateId) {
        if let Update::Announced { id: announced, former, .. } = self.update
            && announced == id
        {
            self.update = Update::Ended(former);
            self.outdate();
        }
    }

    /// The runtime reports that it has applied an update.
    pub fn applied(&mut self) {
        let result = match self.update {
            Update::Announced { is_accepted: true, .. } => UpdateResult::Applied,
            // The plugin does not know the limits of this update.
            Update::Announced { .. } | Update::Ended(_) => UpdateResult::Unconfirmed,
        };
        self.update = Update::Ended(result);
        // The runtime has stored new values with the update, and has written them.
        self.stored = None;
        self.is_lowered = false;
        self.is_limit_unstored = false;
        self.outdate();
    }

    /// The runtime has not reported the end of this update in time. Returns whether the plugin was
    /// still waiting for this report.
    pub fn give_up(&mut self, id: UpdateId) -> bool {
        let is_pending =
            matches!(self.update, Update::Announced { id: announced, .. } if announced == id);
        if is_pending {
            self.update = Update::Ended(UpdateResult::Unconfirmed);
            self.outdate();
        }
        is_pending
    }
}

/// Events of limit decreases and of the plugin's requests.
impl UpdatePhase {
    /// A limit decrease is about to lower `memory.high` from `high`. Returns whether the phase
    /// allows this decrease.
    pub fn begin_decrease(&mut self, by: Party, high: Limit) -> bool {
        if by == Party::Plugin {
            if !self.may_check() || self.update != Update::Ended(UpdateResult::ReadBack) {
                return false;
            }
            self.request = Request::Prepared;
        }
        // The file may still have the lowered value of an earlier decrease.
        self.high.original.get_or_insert(high);
        self.is_lowered = true;
        self.is_lowered_during_request =
            matches!(self.request, Request::Values { .. } | Request::Limit);
        self.outdate();
        true
    }

    /// The plugin cancels its own limit decrease, because the usage is too high.
    pub fn cancel_decrease(&mut self) {
        if self.request == Request::Prepared {
            self.request = Request::None;
            self.outdate();
        }
    }

    /// The plugin is about to ask the runtime to set a limit. `origin` is the origin of the
    /// container's limit at the time when the plugin chose the new limit. `is_prepared` says
    /// whether the new limit is a decrease that the plugin has prepared.
    pub fn begin_limit_request(
        &mut self,
        origin: LimitOrigin,
        is_prepared: bool,
        now: Instant,
    ) -> LimitRequest {
        let is_void =
            self.limit_origin() != origin || is_prepared && self.request != Request::Prepared;
        if is_void {
            if is_prepared {
                self.cancel_decrease();
            }
            return LimitRequest::Drop;
        }
        let is_busy = !is_prepared && self.request != Request::None;
        if is_busy || matches!(self.update, Update::Announced { .. }) {
            return LimitRequest::Wait;
        }
        self.request = Request::Limit;
        self.limit_requested = Some(now);
        LimitRequest::Send
    }

    /// The plugin is about to ask the runtime to set memory values. Returns whether the request
    /// must contain the limit in force. Without this limit, the runtime would write its stored
    /// limit, which could be lower and cause an OOM kill.
    pub fn begin_values_request(&mut self, now: Instant) -> bool {
        let has_limit = self.is_limit_unstored;
        self.request = Request::Values { has_limit };
        self.values_requested = Some(now);
        // A pending direct write must not run after the runtime's write.
        self.outdate();
        has_limit
    }

    /// The runtime has handled the plugin's request, or the plugin has not sent the request.
    /// `was_sent` tells whether the runtime has accepted the values.
    pub fn answered(&mut self, was_sent: bool) {
        let is_lowered_since = std::mem::take(&mut self.is_lowered_during_request);
        if was_sent && self.request != Request::Prepared {
            // The runtime may have stored other values than the last check found.
            self.stored = None;
            self.is_lowered &= is_lowered_since;
        }
        match std::mem::replace(&mut self.request, Request::None) {
            Request::Values { has_limit } => {
                self.is_limit_unstored &= !(was_sent && has_limit);
                self.is_limit_requested |= has_limit && !self.is_overtaken;
                self.is_written |= was_sent;
                self.is_in_files_only &= !was_sent;
            }
            Request::Limit => {
                self.is_limit_unstored &= !was_sent;
                self.is_limit_requested |= !self.is_overtaken;
                self.outdate();
            }
            // The request was for an earlier container with this ID.
            Request::None => {}
            other @ Request::Prepared => self.request = other,
        }
    }

    /// The runtime was too busy for the plugin's values, so the plugin writes only the files.
    pub fn write_files_only(&mut self) {
        self.is_in_files_only = true;
    }

    /// The plugin has released the container from throttling at the policy's `memory.high`, or has
    /// raised `memory.high` further after the release.
    pub fn release(&mut self, high: Limit) {
        self.high.released = Some(high);
        self.outdate();
    }

    /// The plugin has ended the container's release from throttling.
    pub fn end_release(&mut self) {
        if self.high.released.take().is_some() {
            self.outdate();
        }
    }
}

/// Events of checks and of reconnections.
impl UpdatePhase {
    /// The plugin is about to write values directly to the files.
    pub fn write(&mut self) {
        self.is_written = true;
    }

    /// The plugin no longer tries to read back the values that it wrote.
    pub fn give_up_values(&mut self) {
        self.is_written = false;
    }

    /// The plugin has read back the limits after the update. `is_adopted` says whether the plugin
    /// has adopted a memory limit that differs from the limit that the container should have.
    pub fn limits_read_back(&mut self, is_adopted: bool) {
        if matches!(self.update, Update::Ended(_)) {
            self.is_limit_unstored |= is_adopted;
            self.update = Update::Ended(UpdateResult::ReadBack);
            (self.is_limit_requested, self.is_overtaken) = (false, false);
        }
    }

    /// The plugin has found `values` in all files. Returns whether the plugin had written some of
    /// these values.
    pub fn settle(&mut self, values: StoredValues) -> bool {
        self.high.original = None;
        self.stored = (!self.is_in_files_only).then_some(values);
        self.is_lowered = false;
        std::mem::take(&mut self.is_written)
    }

    /// The plugin begins to send the runtime the original values of a container that it no longer
    /// manages.
    pub fn begin_unmanaging(&mut self) {
        self.is_unmanaged = true;
    }

    /// The plugin failed to send the original values, or it has sent them and forgets the
    /// container. Returns whether the plugin had begun to send the original values.
    pub fn end_unmanaging(&mut self) -> bool {
        std::mem::take(&mut self.is_unmanaged)
    }

    /// The container's cgroup no longer exists.
    pub fn lose_cgroup(&mut self) {
        (self.stored, self.is_written, self.is_unmanaged) = (None, false, false);
    }

    /// The runtime has reported the container again after a reconnection. `is_same_request` tells
    /// whether the user still wants the same limit. `former` is the phase before the reconnection.
    pub fn reconnect(former: &Self, is_same_request: bool) -> Self {
        let mut phase = *former;
        phase.limit_set_by = UpdateId::CREATION;
        if let Update::Announced { .. } = phase.update {
            phase.update = Update::Ended(UpdateResult::Unconfirmed);
            // The runtime does not repeat the report of an update that it has applied.
            phase.stored = None;
        }
        phase.is_limit_requested |= std::mem::take(&mut phase.is_overtaken);
        if !is_same_request {
            // With another limit, the container may no longer need a raised memory.high.
            phase.high.released = None;
        }
        phase.outdate();
        phase
    }

    /// The plugin was restarted, perhaps during a limit decrease. `original` is the stored value of
    /// `memory.high` before the decrease.
    pub fn restart(original: Option<Limit>) -> Self {
        let high = HighOverride { original, released: None };
        Self { high, is_lowered: original.is_some(), ..Self::default() }
    }

    /// The plugin has added the container to its known containers. `number` identifies this
    /// insertion.
    pub fn insert(&mut self, number: u64) {
        self.insertion = number;
    }

    /// Another event has changed the desired values.
    pub fn outdate(&mut self) {
        self.generation += 1;
    }
}
