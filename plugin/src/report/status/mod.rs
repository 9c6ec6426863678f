//! Current status of the node: each container and each ancestor cgroup with its desired and
//! observed values. One word sums up the state of each container.
//!
//! The output of `plimsoll status --json` has this format, which is stable. New fields may appear,
//! but removing a field or changing its meaning requires another [`VERSION`]. Amounts are bytes or
//! `"max"`. An unknown value is `null`.

mod collect;
mod container;
mod format;
mod node;
mod parallel;
mod reading;
mod state;
mod tree;

pub use format::{
    CgroupStatus, ContainerStatus, DownStatus, NodeStatus, Reasons, RequestStatus, State, Status,
    VERSION, Values,
};

pub use crate::state::levels::LevelKind as Level;
