//! Explains the values that a pod's containers would get, from the manifest alone (`plimsoll
//! explain`).

pub(crate) mod command;
mod container;
mod drawing;
mod manifest;
mod model;
mod pod;
mod read;
mod resources;
#[cfg(test)]
mod testing;
mod text;

pub use self::manifest::explain;
pub(crate) use self::manifest::{list_items, object_name, pod_template};
pub use self::model::{
    Basis, ContainerExplanation, ContainerKind, ExplainError, Explanation, KnobExplanation,
    LARGEST, PodExplanation,
};
pub(crate) use self::pod::explain_template;
pub(crate) use crate::commands::wrap::wrap;
