//! The core of Plimsoll: from memory requests and limits to cgroup v2 values, with a reason for each.
//!
//! Everything here is values in, values out, except [`node`] and [`requests::checkpoint`], which read files and
//! take the paths as parameters. Numbers are whole bytes unless a type says otherwise.
//!
//! The way of a container through this crate:
//!
//! 1. [`pod::PodCgroup::parse`] finds the kubelet's QoS class in the cgroup parent.
//! 2. [`requests::checkpoint::Checkpoints::lookup`] finds what the kubelet recorded, and
//!    [`requests::annotation::Overrides::read`] what the pod asks for by annotation.
//! 3. [`requests::resolve`] chooses the best source for the request.
//! 4. [`policy::desired`] turns that into values for `memory.min`, `memory.low` and `memory.high`.
//! 5. [`service`] answers the runtime with them, and [`reconcile`] brings running containers to them and reads back.

pub mod ancestors;
pub mod brake;
pub mod cgroup;
pub mod config;
pub mod containers;
pub mod contention;
pub mod cut;
pub mod defer;
pub mod doctor;
pub mod explain;
pub mod guard;
pub mod hierarchy;
pub mod install;
pub mod kills;
pub mod lint;
pub mod node;
pub mod originals;
pub mod outcome;
pub mod pod;
pub mod pod_limit;
pub mod policy;
pub mod raised;
pub mod reconcile;
pub mod report;
pub mod requests;
pub mod rescue;
pub mod resize;
pub mod service;
pub mod stalls;
pub mod units;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Nothing in this crate that can panic runs while a lock is held, so a poisoned one holds good data.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
