//! State machine of a container's updates.
//!
//! [`UpdatePhase`] stores the user's newest update, the plugin's own request to the runtime and the
//! temporary values of `memory.high`. Each event is a method that does no I/O. Other methods return
//! what the plugin may do now.
//!
//! Two parties change a container's limits through the runtime: the user and the plugin. The
//! runtime announces an update of the user, applies it and reports the end. The runtime reports
//! neither failed updates nor the order in which it handles the user's updates and the plugin's
//! requests. Therefore the plugin reads the files after each update and after each of its own
//! requests.

mod events;
mod phase;
#[cfg(test)]
mod tests;

pub use self::phase::{
    HighOverride, LimitMeaning, LimitOrigin, LimitRequest, Party, StoredValues, UpdateId,
    UpdatePhase, UpdateResult,
};
