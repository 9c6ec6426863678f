//! A double of the kubelet. The double changes the node in the same ways and in the same order as
//! the kubelet.
//!
//! To run a pod, the double makes the pod's cgroup, writes the checkpoint of the allocated
//! resources and runs the sandbox. For each container the double then writes the checkpoint of the
//! actuated resources, creates the container and starts the container.
//!
//! An in-place resize has these steps:
//!
//! 1. Write the checkpoint of the allocated resources.
//! 2. Raise the limit of the pod's cgroup, for a limit increase.
//! 3. Update the container through the runtime.
//! 4. Lower the limit of the pod's cgroup, for a limit decrease.
//! 5. Write the checkpoint of the actuated resources.
//!
//! A test can switch off or replace each of these steps.
//!
//! [`Kubelet::update_qos_classes`] writes the values that the kubelet writes every minute. The
//! double does not write these values by itself.

mod batch;
mod cgroups;
mod checkpoint;
mod double;
mod messages;
mod pod;
mod pods;
mod script;
mod spec;

pub use batch::clear;
pub use checkpoint::checkpoint;
pub use double::{EVICTION_HARD, Kubelet, STATE, SYSTEM_RESERVED};
pub use pod::{Container, Pod};
pub use spec::{ContainerSpec, MIB, PodSpec, Qos, quantity};
