//! Functions that call crictl on a node.
//!
//! The commands send the requests that a user or the kubelet sends to the runtime.

use anyhow::{Context, Result};
use serde_json::Value;

use crate::machine::{Node, Output};

/// Returns the output of `crictl inspect`: status, stored specification and more.
pub fn inspect(node: &Node, container: &str) -> Result<Value> {
    json(node, &format!("crictl inspect {container}"))
}

/// Returns the output of `crictl inspectp`, the same information for a pod sandbox.
pub fn inspect_pod(node: &Node, sandbox: &str) -> Result<Value> {
    json(node, &format!("crictl inspectp {sandbox}"))
}

/// Returns the unified map in the stored specification of a container.
///
/// The runtime writes these values again on every update.
pub fn stored_unified(inspected: &Value) -> &Value {
    &inspected["info"]["runtimeSpec"]["linux"]["resources"]["unified"]
}

/// Runs `crictl update --memory` and returns the output even if the exit status is not 0.
pub fn try_update_memory(node: &Node, container: &str, limit: u64) -> Result<Output> {
    node.try_run(&format!("crictl update --memory {limit} {container}"))
}

/// Runs `crictl update --memory`. An exit status other than 0 is an error.
pub fn update_memory(node: &Node, container: &str, limit: u64) -> Result<()> {
    node.run(&format!("crictl update --memory {limit} {container}")).map(|_| ())
}

/// Runs `crictl exec` and returns the output even if the exit status is not 0.
pub fn exec(node: &Node, container: &str, command: &str) -> Result<Output> {
    node.try_run(&format!("crictl exec {container} {command}"))
}

/// Runs `crictl stop` without a grace period and then `crictl rm`.
///
/// `crictl stop` and `crictl rm` can fail for a moment while the container ends. This function
/// retries both commands up to seven times, as the kubelet does.
pub fn remove(node: &Node, container: &str) -> Result<()> {
    let script = format!(
        "for again in 1 1 1 1 1 1 1 0; do
             if crictl stop --timeout 0 {container} >/dev/null &&
                 crictl rm {container} >/dev/null; then break; fi
             [ $again = 1 ]
         done"
    );
    node.run(&script).map(|_| ())
}

/// Returns the runtime's reason for an error: the first line without the prefix from gRPC.
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
