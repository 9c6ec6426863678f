//! Facts about a pod and its containers. Each memory request is stored together with its source.

mod effective;
pub mod kubepods;
mod path;
mod place;
mod pod_cgroup;
mod qos;
mod request;

pub use self::effective::ContainerRole;
pub use self::path::{CgroupPath, InvalidPath, SUBGROUP};
pub use self::place::PodPlace;
pub use self::pod_cgroup::{PodCgroup, PodUid};
pub use self::qos::{QosClass, SpecResources};
pub use self::request::{CheckpointFile, Provenance, Request, Resources};
