//! A real API server, and a cluster of one node with a real kubelet.

mod apiserver;
mod case;
mod control_plane;
mod deployment;
mod kubectl;
mod programs;
mod with_node;

pub use apiserver::{ADMINISTRATOR, ApiServer, KUBELET, NODE, SERVICE};
pub use programs::prepare;
pub use with_node::{Cluster, Plimsoll};
