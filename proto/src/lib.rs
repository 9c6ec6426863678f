//! A library for plugins of the Node Resource Interface (NRI) of containerd and CRI-O.
//!
//! A runtime informs its plugins about the events of pods and containers. When the runtime creates
//! or updates a container, the plugin may change the container's resources, mounts and environment.
//! This crate implements the protocol: a plugin implements [`Plugin`] and runs in a [`Stub`].
//!
//! ```no_run
//! use nri::api::{Container, ContainerAdjustment, PodSandbox};
//! use nri::{Creation, EventMask, Identity, Launched, Plugin, Refusal, Stub};
//!
//! /// Adds the name of the pod to the environment of every container.
//! struct PodName;
//!
//! impl Plugin for PodName {
//!     fn events(&self) -> EventMask {
//!         EventMask::CREATE_CONTAINER
//!     }
//!
//!     async fn create_container(
//!         &self,
//!         pod: PodSandbox,
//!         _: Container,
//!     ) -> Result<Creation, Refusal> {
//!         let mut adjust = ContainerAdjustment::new();
//!         adjust.env.push(nri::api::KeyValue {
//!             key: "POD_NAME".into(),
//!             value: pod.name,
//!             ..Default::default()
//!         });
//!         Ok(Creation { adjust, ..Default::default() })
//!     }
//! }
//!
//! #[tokio::main(flavor = "current_thread")]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     // SAFETY: nothing else in this process owns the descriptors that the runtime passes.
//!     let stub = match unsafe { Launched::from_env() }? {
//!         Some(launched) => Stub::launched(launched, PodName),
//!         None => Stub::external(Identity::new("10", "podname")?, PodName),
//!     };
//!     stub.run().await?;
//!     Ok(())
//! }
//! ```
//!
//! # Two ways to run
//!
//! - *External*: the user starts a process, which connects to the runtime's socket
//!   ([`DEFAULT_SOCKET`]).
//! - *Launched*: the runtime starts the plugin from the runtime's plugin directory and passes the
//!   plugin a connection ([`Launched`]).
//!
//! # Versions
//!
//! The crate works with runtimes that have NRI 0.6.1 to 0.12. These runtimes are containerd 1.7.16
//! and newer, and CRI-O 1.31 and newer. The crate hides the differences between these runtimes:
//!
//! - The crate subscribes only to events that the runtime knows. The runtime would refuse the
//!   registration of a plugin that subscribes to an unknown event.
//! - An event reaches the same method of [`Plugin`] in all versions. Before 0.12 the runtime sends
//!   most events as a StateChange, and since 0.12 each event has its own RPC.
//! - Since 0.8 a runtime may split a synchronisation into parts. The crate joins the parts.
//! - Before 0.7 a runtime does not synchronise a plugin that it launched. The crate then connects
//!   to the runtime's socket instead, because the runtime synchronises every plugin that connects
//!   there.
//! - Before 0.12 a runtime does not report its NRI version. The crate infers the version from the
//!   version of the runtime.
//! - The crate keeps or ignores fields and enum values that it does not know.
//!
//! # Failures
//!
//! After a lost connection, the crate reconnects with a growing and randomly varied delay. The
//! runtime then synchronises the plugin again. Two instances of a plugin are never registered at
//! the same time. If a handler panics, the crate logs the panic and sends an empty reply. If a
//! runtime never answers, the crate closes the connection and reconnects.
//!
//! See [`Stub::run`] for details. See [`Launched::detach`] for launched plugins that must continue
//! to run after the runtime drops them.
//!
//! # Features
//!
//! - `runtime`: the [runtime's side](runtime) of the protocol, for tests and benchmarks of plugins
//!   without a runtime.

pub mod api {
    //! The messages of the protocol. A generator made these types from `nri.proto` and kept their
    //! names.
    //!
    //! Each message works as in the crate [protobuf]: `Default` returns an empty message, and a
    //! `MessageField` may be unset.

    pub use crate::generated::nri::*;
    pub use protobuf;
}
mod answer;
mod error;
mod event;
mod generated {
    #[rustfmt::skip]
    #[allow(unreachable_pub, clippy::unwrap_used)]
    pub(crate) mod nri;
    #[rustfmt::skip]
    #[allow(unreachable_pub, clippy::unwrap_used)]
    pub(crate) mod nri_ttrpc;
}
mod handle;
mod identity;
mod instance_lock;
mod launch;
pub mod mux;
mod plugin;
#[cfg(feature = "runtime")]
pub mod runtime;
mod service;
mod stub;
mod version;

pub use error::Error;
pub use event::EventMask;
pub use handle::{Runtime, UpdateError};
pub use identity::{Identity, InvalidIdentity};
pub use launch::{LaunchError, Launched, Successor};
pub use plugin::{Configuration, Creation, Plugin, Refusal};
pub use stub::{DEFAULT_SOCKET, Stub};
pub use version::{InvalidVersion, NriVersion};
