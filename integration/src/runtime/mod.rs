//! The container runtimes of the nodes: versions, differences and programs.

mod distro;
mod driver;
mod kind;
mod modules;
mod programs;

pub use distro::Distro;
pub use driver::Driver;
pub use kind::Runtime;
pub(crate) use modules::CRIO;
pub(crate) use programs::{add_programs, install};
