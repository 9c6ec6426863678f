//! A minimal plugin that prints the synchronization and the main events of pods and containers.
//!
//! Start it beside the runtime with `cargo run --example logger`, or install it as
//! /opt/nri/plugins/10-logger.

use nri::api::{Container, ContainerUpdate, LinuxResources, PodSandbox};
use nri::{Creation, EventMask, Identity, Launched, Plugin, Refusal, Stub};

struct Logger;

fn log(event: &str, pod: &PodSandbox, container: &str) -> Result<(), Refusal> {
    println!("{event} {}/{} {container}", pod.namespace, pod.name);
    Ok(())
}

impl Plugin for Logger {
    fn events(&self) -> EventMask {
        EventMask::RUN_POD_SANDBOX
            | EventMask::STOP_POD_SANDBOX
            | EventMask::CREATE_CONTAINER
            | EventMask::START_CONTAINER
            | EventMask::UPDATE_CONTAINER
            | EventMask::STOP_CONTAINER
    }

    async fn synchronize(
        &self,
        pods: Vec<PodSandbox>,
        containers: Vec<Container>,
    ) -> Result<Vec<ContainerUpdate>, Refusal> {
        println!("Synchronize {} pods, {} containers", pods.len(), containers.len());
        Ok(Vec::new())
    }

    async fn run_pod_sandbox(&self, pod: PodSandbox) -> Result<(), Refusal> {
        log("RunPodSandbox", &pod, "")
    }

    async fn stop_pod_sandbox(&self, pod: PodSandbox) -> Result<(), Refusal> {
        log("StopPodSandbox", &pod, "")
    }

    async fn create_container(
        &self,
        pod: PodSandbox,
        container: Container,
    ) -> Result<Creation, Refusal> {
        log("CreateContainer", &pod, &container.name)?;
        Ok(Creation::default())
    }

    async fn start_container(&self, pod: PodSandbox, container: Container) -> Result<(), Refusal> {
        log("StartContainer", &pod, &container.name)
    }

    async fn update_container(
        &self,
        pod: PodSandbox,
        container: Container,
        resources: LinuxResources,
    ) -> Result<Vec<ContainerUpdate>, Refusal> {
        log("UpdateContainer", &pod, &format!("{} {:?}", container.name, resources.unified))?;
        Ok(Vec::new())
    }

    async fn stop_container(
        &self,
        pod: PodSandbox,
        container: Container,
    ) -> Result<Vec<ContainerUpdate>, Refusal> {
        log("StopContainer", &pod, &container.name)?;
        Ok(Vec::new())
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt::init();
    // SAFETY: nothing else in this process owns the descriptors that the runtime passes.
    #[allow(unsafe_code)]
    let launched = unsafe { Launched::from_env() }?;
    let stub = match launched {
        Some(launched) => Stub::launched(launched, Logger),
        None => Stub::external(Identity::new("10", "logger")?, Logger),
    };
    Ok(stub.run().await?)
}
