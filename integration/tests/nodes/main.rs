//! Everything that is shown on nodes with the kubelet's double. One program, so that its cases share nodes.

mod conformance;
mod control;
mod install;
mod plugin;
mod protection;
mod release;
mod resize;
