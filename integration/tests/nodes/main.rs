//! All tests that run on nodes. All node tests are in one test program, so that the cases share
//! nodes.

mod conformance;
mod control;
mod install;
mod kubernetes;
mod plugin;
mod protection;
mod release;
mod resize;
