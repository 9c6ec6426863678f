//! The container runtimes of the nodes and their differences.

mod distro;
mod driver;
mod kind;
mod programs;

pub use distro::Distro;
pub use driver::Driver;
pub use kind::Runtime;
pub(crate) use programs::{CRIO, install};
