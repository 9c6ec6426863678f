//! State of the plugin, partly kept in files that survive a restart.

pub mod brake;
pub mod containers;
pub mod guard_record;
pub mod originals;
pub mod raised;
