//! All tests that run on nodes. All of these tests are one test program, so that the cases share
//! nodes.

mod conformance;
mod control;
mod install;
mod kubernetes;
mod plugin;
mod protection;
mod release;
mod resize;
