//! Checks the memory settings of pods in Kubernetes manifests (`plimsoll lint`).
//!
//! [`Report::lint`] takes the text of one file after another and collects findings. The report
//! parses each document of a file separately, so a broken document hides no findings in the other
//! documents. [`crate::commands::explain`] decides which objects are pods and which values their
//! containers would get.

mod checks;
pub(crate) mod command;
mod finding;
mod place;
mod report;
mod rule;
mod sarif;
#[cfg(test)]
mod testing;
mod text;

pub use self::finding::Finding;
pub use self::report::{LARGEST, Report};
pub use self::rule::{Level, Rule};
