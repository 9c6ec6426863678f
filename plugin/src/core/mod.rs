//! What should be: pure functions of what is known.

pub mod outcome;
pub mod pod;
pub mod policy;
pub mod requests;
pub mod units;
