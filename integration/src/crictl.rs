//! crictl on the node: what a person or the kubelet asks of the runtime, one command a call.

use anyhow::{Context, Result};
use serde_json::Value;

use crate::node::{Node, Output};

/// `crictl inspect`: status, stored specification and more.
pub fn inspect(node: &Node, container: &str) -> Result<Value> {
    json(node, &format!("crictl inspect {container}"))
}

/// `crictl inspectp`: the same for a pod sandbox.
pub fn inspect_pod(node: &Node, sandbox: &str) -> Result<Value> {
    json(node, &format!("crictl inspectp {sandbox}"))
}

/// The unified map in the stored specification of a container: what the runtime writes again on every update.
pub fn stored_unified(inspected: &Value) -> &Value {
    &inspected["info"]["runtimeSpec"]["linux"]["resources"]["unified"]
}

/// `crictl update --memory`; any exit status is an answer.
pub fn try_update_memory(node: &Node, container: &str, limit: u64) -> Result<Output> {
    node.try_run(&format!("crictl update --memory {limit} {container}"))
}

/// `crictl update --memory`.
pub fn update_memory(node: &Node, container: &str, limit: u64) -> Result<()> {
    node.run(&format!("crictl update --memory {limit} {container}")).map(|_| ())
}

/// `crictl exec`.
pub fn exec(node: &Node, container: &str, command: &str) -> Result<Output> {
    node.try_run(&format!("crictl exec {container} {command}"))
}

/// `crictl stop` without a grace period, then `crictl rm`. While a container is just ending either fails for a moment: they are tried
/// again, as by the kubelet.
pub fn remove(node: &Node, container: &str) -> Result<()> {
    let script = format!(
        "for again in 1 1 1 1 1 1 1 0; do
             if crictl stop --timeout 0 {container} >/dev/null && crictl rm {container} >/dev/null; then break; fi
             [ $again = 1 ]
         done"
    );
    node.run(&script).map(|_| ())
}

/// What the runtime gave as the reason of an error: the text behind gRPC's own.
pub fn reason(error: &anyhow::Error) -> String {
    let error = format!("{error:#}");
    let reason =
        error.split("desc = ").last().and_then(|text| text.lines().next()).unwrap_or_default();
    reason.trim_end_matches('"').to_owned()
}

fn json(node: &Node, command: &str) -> Result<Value> {
    let output = node.run(command)?;
    serde_json::from_str(&output.stdout).with_context(|| format!("reading the answer of {command}"))
}
