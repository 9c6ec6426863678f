//! The phase of a container's updates, and queries about the actions that this phase allows.

use plimsoll_core::policy::KNOBS;
use plimsoll_core::units::Limit;
use tokio::time::Instant;

/// Identifier of a user's update. Newer updates have larger identifiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UpdateId(u64);

impl UpdateId {
    /// Identifier to use if the limit comes from the container's creation or from the
    /// synchronization with the runtime.
    pub const CREATION: Self = Self(0);

    /// Returns the identifier of the update with this number.
    pub const fn new(number: u64) -> Self {
        Self(number + 1)
    }
}

/// Origin of a container's limit. Once the origin has changed, the plugin's request to set another
/// limit is no longer valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitOrigin {
    pub(super) insertion: u64,
    pub(super) update: UpdateId,
}

/// Desired values of the files in [`KNOBS`]. `None` means that the plugin does not write the file.
pub type StoredValues = [Option<Limit>; KNOBS.len()];

/// State of a container's updates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UpdatePhase {
    /// Counter that distinguishes this container from earlier containers with the same ID.
    pub(super) insertion: u64,
    /// Counter of the events and decisions that may have changed the desired values.
    pub(super) generation: u64,
    /// Newest of the user's updates that set the memory limit.
    pub(super) limit_set_by: UpdateId,
    pub(super) update: Update,
    pub(super) request: Request,
    /// Whether the plugin has adopted the limit in force, which the runtime may not have stored.
    pub(super) is_limit_unstored: bool,
    /// Whether the runtime may have set another limit because the plugin asked for it.
    pub(super) is_limit_requested: bool,
    /// Whether the runtime may have handled the plugin's request to set a limit after the user's
    /// newer update.
    pub(super) is_overtaken: bool,
    /// Time when the plugin last asked the runtime to set a limit.
    pub(super) limit_requested: Option<Instant>,
    /// Time when the plugin last asked the runtime to set memory values.
    pub(super) values_requested: Option<Instant>,
    pub(super) high: HighOverride,
    /// Desired values that the plugin last found in all files.
    pub(super) stored: Option<StoredValues>,
    /// Whether the limit decrease began while the plugin waited for the answer to a request. In
    /// this case, the runtime may have written `memory.high` before the decrease.
    pub(super) is_lowered_during_request: bool,
    /// Whether the plugin has written values and not read them back yet.
    pub(super) is_written: bool,
    /// Whether only the files have the desired values, because the runtime was too busy to store
    /// them.
    pub(super) is_in_files_only: bool,
    /// Whether a limit decrease has lowered `memory.high`, and the runtime has not written the file
    /// since.
    pub(super) is_lowered: bool,
    /// Whether the plugin no longer manages the container, and has begun to send the original
    /// values to the runtime.
    pub(super) is_unmanaged: bool,
}

/// Temporary values for `memory.high`, which replace the policy's value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HighOverride {
    /// Value of `memory.high` before a limit decrease lowered it. If the policy has no value for
    /// `memory.high`, this value counts as the desired value.
    pub(super) original: Option<Limit>,
    /// Raised value for a container that the plugin has released from throttling at the policy's
    /// value (`throttleDeadline`).
    pub(super) released: Option<Limit>,
}

impl HighOverride {
    /// Returns a copy without the value that a release from throttling has raised.
    #[must_use]
    pub fn without_release(self) -> Self {
        Self { released: None, ..self }
    }

    /// Returns the desired `memory.high`. Returns `None` if the plugin must not write the file.
    /// `policy` is the policy's value.
    pub fn desired(&self, policy: Option<Limit>) -> Option<Limit> {
        policy.max(self.released).or(self.original)
    }
}

/// The user's newest update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Update {
    /// The runtime is about to apply the update. The files may contain both old and new values.
    Announced {
        id: UpdateId,
        /// Whether the plugin has accepted the update and stored the update's limits.
        is_accepted: bool,
        /// Result of the previous update, which counts again if the plugin refuses this update.
        former: UpdateResult,
    },
    /// The runtime is not applying any update.
    Ended(UpdateResult),
}

/// Result of a user's update that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpdateResult {
    /// The plugin has read back the limits, or there was no update.
    ReadBack,
    /// The runtime reports that it has applied the update.
    Applied,
    /// The plugin does not know whether the runtime has applied an update or a request. The plugin
    /// therefore adopts the limits in force.
    Unconfirmed,
}

/// The plugin's request that asks the runtime to change the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    None,
    /// The plugin is preparing a limit decrease, or waits to request it. The plugin may have
    /// lowered `memory.high` already.
    Prepared,
    /// A request to set memory values, perhaps together with the limit in force.
    Values {
        has_limit: bool,
    },
    /// A request to set a memory limit.
    Limit,
}

/// Party that wants to lower a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Party {
    /// The user, with an announced update.
    User,
    /// The plugin, with a deferred limit decrease.
    Plugin,
}

/// Decision about the plugin's request to set a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitRequest {
    /// Send the request now.
    Send,
    /// Decide again later, because the runtime is handling another update or request.
    Wait,
    /// Drop the request. The user has asked for a newer limit, or the limit decrease is no longer
    /// prepared.
    Drop,
}

/// Meaning of a memory limit in force that differs from the container's limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitMeaning {
    /// Another program has set the limit, or an update is under way. The plugin keeps the
    /// container's limit.
    Foreign,
    /// The container's limit is not in force, so the update has failed. The plugin adopts the limit
    /// in force.
    Result,
    /// The plugin does not know whether the runtime set the container's limit. The plugin adopts
    /// the limit in force.
    Adopted,
    /// The runtime may have handled an older request of the plugin last. The plugin asks the
    /// runtime again to set the container's limit.
    Overtaken,
}

impl Default for UpdatePhase {
    fn default() -> Self {
        Self {
            insertion: 0,
            generation: 0,
            limit_set_by: UpdateId::CREATION,
            update: Update::Ended(UpdateResult::ReadBack),
            request: Request::None,
            is_limit_unstored: false,
            is_limit_requested: false,
            is_overtaken: false,
            limit_requested: None,
            values_requested: None,
            high: HighOverride::default(),
            stored: None,
            is_written: false,
            is_in_files_only: false,
            is_lowered: false,
            is_lowered_during_request: false,
            is_unmanaged: false,
        }
    }
}

/// Queries.
impl UpdatePhase {
    /// Returns whether the plugin may check the files and write values. During an update or a
    /// request of the plugin, the files may contain both old and new values.
    pub fn may_check(&self) -> bool {
        matches!(self.update, Update::Ended(_)) && self.request == Request::None
    }

    /// Returns whether an update is under way, or the plugin is preparing a limit decrease or waits
    /// to request it.
    pub fn is_changing(&self) -> bool {
        matches!(self.update, Update::Announced { .. }) || self.request == Request::Prepared
    }

    /// Returns the result of the user's newest update. Returns `None` while the update is under
    /// way.
    pub fn result(&self) -> Option<UpdateResult> {
        match self.update {
            Update::Announced { .. } => None,
            Update::Ended(result) => Some(result),
        }
    }

    /// Returns whether no event and no decision has changed the desired values since `earlier`.
    pub fn is_current(&self, earlier: &Self) -> bool {
        (self.insertion, self.generation) == (earlier.insertion, earlier.generation)
    }

    /// Returns the origin of the container's limit.
    pub fn limit_origin(&self) -> LimitOrigin {
        LimitOrigin { insertion: self.insertion, update: self.limit_set_by }
    }

    /// Returns what the memory limit in force means.
    pub fn limit_meaning(&self) -> LimitMeaning {
        match self.update {
            Update::Announced { .. } => LimitMeaning::Foreign,
            Update::Ended(UpdateResult::Applied) if self.is_overtaken => LimitMeaning::Overtaken,
            _ if self.is_limit_requested => LimitMeaning::Adopted,
            Update::Ended(UpdateResult::Unconfirmed) => LimitMeaning::Adopted,
            Update::Ended(UpdateResult::Applied) => LimitMeaning::Result,
            Update::Ended(UpdateResult::ReadBack) => LimitMeaning::Foreign,
        }
    }

    /// Returns the time when the plugin last asked the runtime to set a limit.
    pub fn limit_requested(&self) -> Option<Instant> {
        self.limit_requested
    }

    /// Returns whether the plugin has asked the runtime to set memory values since `earlier`.
    pub fn has_requested_values_since(&self, earlier: Instant) -> bool {
        self.values_requested.is_some_and(|requested| requested > earlier)
    }

    /// Returns the temporary values of `memory.high`.
    pub fn high(&self) -> HighOverride {
        self.high
    }

    /// Returns the raised `memory.high` if the plugin has released the container from throttling.
    pub fn released(&self) -> Option<Limit> {
        self.high.released
    }

    /// Returns the value that `memory.high` had before a limit decrease lowered it.
    pub fn original_high(&self) -> Option<Limit> {
        self.high.original
    }

    /// Returns whether the files have the desired values, but the runtime may not have them. A
    /// limit decrease may have lowered `memory.high` to its desired value, `high`.
    pub fn is_in_files_only(&self, high: Option<Limit>) -> bool {
        self.is_in_files_only || self.is_lowered && high.is_some() && high != self.high.original
    }

    /// Returns whether the files and the runtime had these values at the last check.
    pub fn has_stored(&self, values: &StoredValues) -> bool {
        self.stored.as_ref() == Some(values)
    }
}
