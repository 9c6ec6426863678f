//! Container runtimes on the node and their NRI configuration.
//!
//! Sources: containerd `docs/NRI.md` and `cmd/containerd/server/config` of 1.7 and 2.3; CRI-O
//! `internal/config/nri` and `pkg/config`.

pub(crate) mod containerd;
pub(crate) mod crio;
pub(crate) mod detect;
pub(crate) mod kind;
pub(crate) mod nri_settings;
mod program;
