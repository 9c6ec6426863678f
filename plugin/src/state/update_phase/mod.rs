//! State machine of a container's updates.
//!
//! [`UpdatePhase`] knows the user's newest update, the plugin's own request to the runtime and the
//! temporary values of `memory.high`. The type is pure: each event is one method without I/O. Other
//! methods say what the plugin may do now.
//!
//! Two parties change a container's limits through the runtime: the user and the plugin. The
//! runtime announces an update of the user, applies it and reports the end. It reports neither a
//! failure nor the order in which it handles an update of the user and a request of the plugin.
//! Therefore the plugin reads the files after each update and each own request.

mod events;
mod phase;
#[cfg(test)]
mod tests;

pub use self::phase::{
    HighOverride, LimitMeaning, LimitOrigin, LimitRequest, Party, StoredValues, UpdateId,
    UpdatePhase, UpdateResult, stored_values,
};
