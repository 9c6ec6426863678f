//! The core of Plimsoll: from memory requests and limits to cgroup v2 values, with a reason for each.
//!
//! [`core`] is values in, values out. Numbers are whole bytes unless a type says otherwise.
//!
//! The way of a container through this crate:
//!
//! 1. [`core::pod::PodCgroup::parse`] finds the kubelet's QoS class in the cgroup parent.
//! 2. [`kubelet::checkpoint::Checkpoints::lookup`] finds what the kubelet recorded, and
//!    [`core::requests::annotation::Overrides::read`] what the pod asks for by annotation.
//! 3. [`core::requests::resolve`] chooses the best source for the request.
//! 4. [`core::policy::desired`] turns that into values for `memory.min`, `memory.low` and `memory.high`.
//! 5. [`agent::service`] answers the runtime with them, and [`agent::reconcile`] brings running containers to them and reads back.

pub mod agent;
pub mod cgroup;
pub mod commands;
pub mod config;
pub mod core;
pub mod kubelet;
pub mod report;
pub mod state;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

/// Nothing in this crate that can panic runs while a lock is held, so a poisoned one holds good data.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does something in a thread of its own, apart from the few that there are for what blocks. Where there can be no more threads, it is
/// not done: whoever waits for its answer finds its sender gone.
pub(crate) fn in_own_thread(name: &str, work: impl FnOnce() + Send + 'static) {
    if let Err(error) = thread::Builder::new().name(name.to_owned()).spawn(work) {
        tracing::warn!(%error, "cannot start the thread {name:?}: allow the plugin's service or pod more of them (TasksMax, pids.max)");
    }
}
