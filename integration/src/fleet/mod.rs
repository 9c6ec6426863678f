//! The nodes that the tests of one test binary share, and the files that list the results of the
//! test cases.

mod case;
pub mod durations;
mod macros;
mod queue;
pub mod support;

pub use case::on_node;
pub use queue::Plugin;
pub(crate) use queue::{Place, is_cluster_wanted};
