//! The Plimsoll plugin and its command line.
//!
//! The crate `plimsoll-core` decides what the values should be. This crate collects the facts,
//! writes the values and reports what happened.
//!
//! The steps for one container:
//!
//! 1. [`plimsoll_core::pod::PodCgroup::parse`] finds the kubelet's QoS class in the cgroup parent.
//! 2. [`kubelet::checkpoint::Checkpoints::lookup`] finds the request in the kubelet's checkpoint
//!    files. [`plimsoll_core::requests::annotation::Overrides::read`] reads the pod's annotations.
//! 3. [`plimsoll_core::requests::resolve`] chooses the best source for the memory request.
//! 4. [`plimsoll_core::policy::desired`] computes the desired values of `memory.min`, `memory.low`
//!    and `memory.high`.
//! 5. [`agent::service`] returns the desired values to the runtime. [`agent::reconciler`] writes
//!    the values to the cgroups of running containers and reads them back.

pub mod agent;
pub mod cgroup;
pub mod commands;
pub mod config;
pub mod host;
pub mod kubelet;
pub mod report;
pub mod state;
pub mod yaml;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

/// Locks a mutex and ignores poisoning. While a lock is held, this crate runs no code that can
/// panic. Therefore the data of a poisoned mutex is valid.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `work` in a new thread instead of one of the few blocking threads of tokio.
///
/// If the kernel allows no more threads, the function logs a warning and drops `work`. A receiver
/// of the result then finds that its sender was dropped.
pub(crate) fn in_own_thread(name: &str, work: impl FnOnce() + Send + 'static) {
    if let Err(error) = thread::Builder::new().name(name.to_owned()).spawn(work) {
        tracing::warn!(%error, "cannot start the thread {name:?}: allow the plugin's service or \
                                pod more threads (TasksMax, pids.max)");
    }
}
