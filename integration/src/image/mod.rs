//! Boot files of a node: a disk, a kernel and an initial RAM file system from Debian packages.

mod base;
mod disk;
mod files;
mod initrd;
mod kernel;
mod oci;
mod packages;
mod workload;

pub use disk::Image;
pub(crate) use oci::ARCHIVE;
pub use oci::{NRI_TEST_IMAGE, PAUSE, WORKLOAD};
