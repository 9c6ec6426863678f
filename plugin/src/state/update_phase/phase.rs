//! The phase of a container's updates, and queries about the actions that it allows.

use plimsoll_core::units::{Knob, Limit};
use tokio::time::Instant;

use plimsoll_core::policy::KNOBS;

/// Identifier of an update of the user. Newer updates have larger identifiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UpdateId(u64);

impl UpdateId {
    /// The creation of the container, or the synchronization with the runtime.
    pub const CREATION: Self = Self(0);

    /// Returns the identifier of the update with this number.
    pub const fn new(number: u64) -> Self {
        Self(number + 1)
    }
}

/// Origin of a container's limit. A request of the plugin for another limit is void once the origin
/// has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitOrigin {
    pub(super) insertion: u64,
    pub(super) update: UpdateId,
}

/// Desired values of the files in [`KNOBS`]. `None` means that the plugin leaves the file alone.
pub type StoredValues = [Option<Limit>; KNOBS.len()];

/// State of a container's updates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UpdatePhase {
    /// Number that distinguishes this phase from those of former containers with the same ID.
    pub(super) insertion: u64,
    /// Number of the events and decisions that may have changed the desired values.
    pub(super) generation: u64,
    /// Newest update of the user that set the memory limit.
    pub(super) limit_set_by: UpdateId,
    pub(super) update: Update,
    pub(super) request: Request,
    /// Whether the plugin has adopted the limit in force, which the runtime may not have stored.
    pub(super) is_limit_unstored: bool,
    /// Whether the runtime may have set another limit at the plugin's request.
    pub(super) is_limit_requested: bool,
    /// Whether the runtime may have handled a limit request of the plugin after a newer update of
    /// the user.
    pub(super) is_overtaken: bool,
    /// Time of the plugin's last request for a limit.
    pub(super) limit_requested: Option<Instant>,
    /// Time of the plugin's last request for memory values.
    pub(super) values_requested: Option<Instant>,
    pub(super) high: HighOverride,
    /// Desired values when the plugin last found them in all files.
    pub(super) stored: Option<StoredValues>,
    /// Whether the decrease began while the plugin waited for the answer to a request. The runtime
    /// may then have written the file before.
    pub(super) is_lowered_during_request: bool,
    /// Whether the plugin has written values and not read them back yet.
    pub(super) is_written: bool,
    /// Whether the runtime was too busy for the values, so that only the files hold them.
    pub(super) is_in_files_only: bool,
    /// Whether a limit decrease has lowered `memory.high`, and the runtime has not written the file
    /// since.
    pub(super) is_lowered: bool,
    /// Whether the runtime got the original values of a container that the plugin no longer
    /// manages.
    pub(super) is_unmanaged: bool,
}

/// Temporary values of `memory.high` that replace the value of the policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HighOverride {
    /// Value before a limit decrease lowered it. The value is desired if the policy leaves
    /// `memory.high` alone.
    pub(super) original: Option<Limit>,
    /// Raised value of a container that the plugin has released from the policy's value
    /// (`throttleDeadline`).
    pub(super) released: Option<Limit>,
}

impl HighOverride {
    /// Returns the values without a release.
    #[must_use]
    pub fn without_release(self) -> Self {
        Self { released: None, ..self }
    }

    /// Returns the desired `memory.high`. `policy` is the value of the policy. `None` means leave
    /// the file alone.
    pub fn desired(&self, policy: Option<Limit>) -> Option<Limit> {
        policy.max(self.released).or(self.original)
    }
}

/// The user's newest update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Update {
    /// The runtime is about to apply the update. The files may hold old and new values.
    Announced {
        id: UpdateId,
        /// Whether the plugin has replied, so that the container has the update's limits.
        is_accepted: bool,
        /// Result of the update before, for the case that the plugin refuses this one.
        former: UpdateResult,
    },
    /// The runtime applies no update.
    Ended(UpdateResult),
}

/// Result of an update of the user that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpdateResult {
    /// The plugin has read back the limits, or there was no update.
    ReadBack,
    /// The runtime reports that it has applied the update.
    Applied,
    /// The plugin does not know whether the runtime has applied an update or a request. The limits
    /// in force count.
    Unconfirmed,
}

/// The plugin's own request to the runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    None,
    /// A limit decrease of the plugin is being prepared, or the request for it waits.
    /// `memory.high` may be lowered.
    Prepared,
    /// A request for memory values, perhaps with the limit in force.
    Values {
        has_limit: bool,
    },
    /// A request for a memory limit.
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

/// Decision about a limit request of the plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitRequest {
    /// Send the request now.
    Send,
    /// Decide again later, because the runtime is handling another update or request.
    Wait,
    /// Drop the request. The user has requested a newer limit, or the preparation that prevents an
    /// OOM kill is void.
    Drop,
}

/// Meaning of a memory limit in force that differs from the container's limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitMeaning {
    /// Another program has set the limit, or an update is under way. The container's limit stays.
    Foreign,
    /// The update has failed, because the container's limit is not in force. The plugin adopts the
    /// limit in force.
    Result,
    /// The plugin does not know whether the runtime set the container's limit. The plugin adopts
    /// the limit in force.
    Adopted,
    /// The runtime may have handled an older request of the plugin last. The plugin requests the
    /// container's limit again.
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
    /// Returns whether the plugin may compare the container with the kernel and write values.
    /// During an update or an own request, the files may hold old and new values.
    pub fn may_check(&self) -> bool {
        matches!(self.update, Update::Ended(_)) && self.request == Request::None
    }

    /// Returns whether an update is under way, or a limit decrease of the plugin is prepared.
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

    /// Returns the time of the plugin's last request for a limit.
    pub fn limit_requested(&self) -> Option<Instant> {
        self.limit_requested
    }

    /// Returns whether the plugin has requested memory values since `earlier`.
    pub fn has_requested_values_since(&self, earlier: Instant) -> bool {
        self.values_requested.is_some_and(|requested| requested > earlier)
    }

    /// Returns the temporary values of `memory.high`.
    pub fn high(&self) -> HighOverride {
        self.high
    }

    /// Returns the raised `memory.high` of a released container.
    pub fn released(&self) -> Option<Limit> {
        self.high.released
    }

    /// Returns the value of `memory.high` before a limit decrease lowered it.
    pub fn original_high(&self) -> Option<Limit> {
        self.high.original
    }

    /// Returns whether the runtime may not have the desired values, although the files hold them.
    /// `high` is the desired `memory.high`. A limit decrease may have lowered the file to it.
    pub fn is_in_files_only(&self, high: Option<Limit>) -> bool {
        self.is_in_files_only || self.is_lowered && high.is_some() && high != self.high.original
    }

    /// Returns whether the files and the runtime held these values at the last check.
    pub fn has_stored(&self, values: &StoredValues) -> bool {
        self.stored.as_ref() == Some(values)
    }
}

/// Returns the desired values in the form that a phase stores.
pub fn stored_values(values: &[(Knob, Limit)]) -> StoredValues {
    KNOBS.map(|wanted| values.iter().find(|(knob, _)| *knob == wanted).map(|(_, value)| *value))
}
