//! State of the plugin. A part of this state is in files that survive a restart of the plugin.

pub mod atomic_file;
pub mod brake;
pub mod container;
pub mod containers;
pub mod deferred;
pub mod guard_record;
pub mod kill_counts;
pub mod levels;
pub mod originals;
pub mod pod_view;
pub mod raised;
pub mod records;
pub mod rescues;
pub mod resolved;
pub mod settings;
pub mod shared;
#[cfg(test)]
pub(crate) mod testing;
pub mod traffic;
pub mod update_phase;
