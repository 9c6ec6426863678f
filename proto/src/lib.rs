//! Plugins for the Node Resource Interface (NRI), by which containerd and CRI-O let others take part in the life of pods
//! and containers.
//!
//! A plugin is told of every event of a pod or container and may change a container's resources, mounts, environment and
//! more while it is created or updated. This crate speaks the protocol; a plugin implements [`Plugin`] and leaves the rest
//! to [`Stub`]:
//!
//! ```no_run
//! use nri::api::{Container, ContainerAdjustment, PodSandbox};
//! use nri::{Creation, EventMask, Identity, Launched, Plugin, Refusal, Stub};
//!
//! /// Puts the name of its pod into the environment of every container.
//! struct PodName;
//!
//! impl Plugin for PodName {
//!     fn events(&self) -> EventMask {
//!         EventMask::CREATE_CONTAINER
//!     }
//!
//!     async fn create_container(&self, pod: PodSandbox, _: Container) -> Result<Creation, Refusal> {
//!         let mut adjust = ContainerAdjustment::new();
//!         adjust.env.push(nri::api::KeyValue { key: "POD_NAME".into(), value: pod.name, ..Default::default() });
//!         Ok(Creation { adjust, ..Default::default() })
//!     }
//! }
//!
//! #[tokio::main(flavor = "current_thread")]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let stub = match Launched::from_env()? {
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
//! - *External*: a process that you start connects to the runtime's socket, [`DEFAULT_SOCKET`].
//! - *Launched*: the runtime starts the plugin from its plugin directory and hands over a connection, [`Launched`].
//!
//! # Versions
//!
//! Works with runtimes that have NRI 0.6.1 to 0.12, that is containerd 1.7.16 and newer and CRI-O 1.31 and newer. What differs
//! between them stays in here:
//!
//! - Events that the runtime does not know are left out of the subscription, where NRI would fail the registration.
//! - Events reach the same method of [`Plugin`] whether they come as a StateChange (before 0.12) or as an RPC of their own.
//! - A synchronisation that comes in parts (from 0.8) is put together.
//! - A plugin launched by a runtime before 0.7, which does not synchronise it, comes over the socket instead, which does.
//! - The version is inferred from the runtime's where the runtime does not tell it (before 0.12).
//! - Fields and enum values that this crate does not know are carried along or ignored.
//!
//! # What it survives
//!
//! A lost connection is made again, with a growing and randomly varied delay, and the plugin is synchronised again. Two
//! instances of a plugin are never registered at once. A panic in a handler is logged and answered with nothing. A runtime
//! that never answers is left and tried again. See [`Stub::run`], and [`Launched::detach`] for plugins that shall outlive
//! being dropped by the runtime that launched them.
//!
//! # Features
//!
//! - `runtime`: the [runtime's side](runtime) of the protocol, to test and measure plugins without a runtime.

pub mod api {
    //! The messages of the protocol, generated from `nri.proto`. Their names are those of the wire.
    //!
    //! They are [protobuf] messages: `Default` gives an empty one, a `MessageField` may be unset.

    pub use crate::generated::nri::*;
    pub use protobuf;
}
mod event;
mod generated {
    #[rustfmt::skip]
    #[allow(unreachable_pub, clippy::unwrap_used)]
    pub(crate) mod nri;
    #[rustfmt::skip]
    #[allow(unreachable_pub, clippy::unwrap_used)]
    pub(crate) mod nri_ttrpc;
}
mod launch;
pub mod mux;
mod plugin;
#[cfg(feature = "runtime")]
pub mod runtime;
mod service;
mod stub;
mod version;

pub use event::EventMask;
pub use launch::{LaunchError, Launched, Successor};
pub use plugin::{Configuration, Creation, Plugin, Refusal};
pub use stub::{DEFAULT_SOCKET, Error, Identity, InvalidIdentity, Runtime, Stub, UpdateError};
pub use version::{InvalidVersion, NriVersion};
