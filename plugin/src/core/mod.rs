//! Decision logic: pure functions that compute the desired state from known facts.

pub mod outcome;
pub mod pod;
pub mod policy;
pub mod requests;
pub mod units;
