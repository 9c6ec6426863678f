//! A second NRI plugin for the tests. The plugin sets one value in the OCI unified map of every new
//! container.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use nri::api::{
    Container, ContainerAdjustment, LinuxContainerAdjustment, LinuxResources, PodSandbox,
};
use nri::{Creation, EventMask, Identity, Plugin, Refusal, Stub};

/// Connects to the runtime's NRI socket and sets one unified cgroup value of every new container
#[derive(Parser)]
struct Claimer {
    /// Index of the plugin: the runtime calls plugins with a lower index first
    #[arg(long, default_value = "10")]
    index: String,

    /// Unified key, such as memory.high
    #[arg(long)]
    key: String,

    /// Value of the key
    #[arg(long)]
    value: String,

    /// NRI socket of the runtime
    #[arg(long, default_value = nri::DEFAULT_SOCKET)]
    socket: PathBuf,
}

impl Plugin for Claimer {
    fn events(&self) -> EventMask {
        EventMask::CREATE_CONTAINER
    }

    async fn create_container(
        &self,
        _: PodSandbox,
        container: Container,
    ) -> Result<Creation, Refusal> {
        println!("create {}: {}={}", container.name, self.key, self.value);
        let unified = HashMap::from([(self.key.clone(), self.value.clone())]);
        let resources = LinuxResources { unified, ..LinuxResources::default() };
        let linux = LinuxContainerAdjustment {
            resources: Some(resources).into(),
            ..LinuxContainerAdjustment::default()
        };
        let adjust =
            ContainerAdjustment { linux: Some(linux).into(), ..ContainerAdjustment::default() };
        Ok(Creation { adjust, ..Creation::default() })
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let claimer = Claimer::parse();
    let identity = Identity::new(claimer.index.clone(), "claimer")?;
    let socket = claimer.socket.clone();
    Ok(Stub::external(identity, claimer).socket(socket).run().await?)
}
