//! Selects the containers to show.

use clap::Args;
use plimsoll_core::pod::QosClass;

use crate::report::status::{ContainerStatus, DownStatus, State};

// Not a doc comment: clap would show a doc comment here instead of the help of the command.
#[derive(Args)]
pub(super) struct Selection {
    /// Show all details of one pod, given as NAME or NAMESPACE/NAME
    pub(super) pod: Option<String>,

    /// Show only containers of this namespace
    #[arg(short, long)]
    namespace: Option<String>,

    /// Show only containers in these states
    #[arg(long, value_name = "STATE,...", value_delimiter = ',', value_parser = state)]
    state: Vec<State>,

    /// Show only containers of this QoS class
    #[arg(long, value_parser = class)]
    class: Option<QosClass>,
}

impl Selection {
    /// Returns whether the filters include a container that does not run. In the status, such a
    /// container has no QoS class, and its state counts as `killed`.
    pub(super) fn includes_down(&self, down: &DownStatus) -> bool {
        self.pod.as_ref().is_none_or(|pod| is_pod(&down.namespace, &down.pod, pod))
            && self.namespace.as_ref().is_none_or(|namespace| down.namespace == *namespace)
            && (self.state.is_empty() || self.state.contains(&State::Killed))
            && self.class.is_none()
    }

    /// Returns whether the filters include a container.
    pub(super) fn includes(&self, container: &ContainerStatus) -> bool {
        self.pod.as_ref().is_none_or(|pod| is_pod(&container.namespace, &container.pod, pod))
            && self.namespace.as_ref().is_none_or(|namespace| container.namespace == *namespace)
            && (self.state.is_empty() || self.state.contains(&container.state))
            && self.class.is_none_or(|class| container.class == class)
    }
}

fn is_pod(namespace: &str, name: &str, wanted: &str) -> bool {
    match wanted.split_once('/') {
        Some((wanted, pod)) => namespace == wanted && name == pod,
        None => name == wanted,
    }
}

fn state(text: &str) -> Result<State, String> {
    State::ALL
        .into_iter()
        .find(|state| state.word() == text)
        .ok_or_else(|| format!("expected one of {}", State::ALL.map(State::word).join(", ")))
}

fn class(text: &str) -> Result<QosClass, String> {
    [QosClass::Guaranteed, QosClass::Burstable, QosClass::BestEffort]
        .into_iter()
        .find(|class| class.to_string().eq_ignore_ascii_case(text))
        .ok_or_else(|| "expected Guaranteed, Burstable or BestEffort".to_owned())
}
