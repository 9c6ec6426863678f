//! Commands of the program, and their output and exit codes.

use std::process::Command;

use crate::harness::daemon::Daemon;
use crate::harness::node::Node;
use crate::harness::runtime::Runtime;

/// Starts the plugin with this configuration and a runtime without containers.
pub async fn start(config: &str) -> (Node, Daemon, Runtime) {
    let node = Node::new();
    node.replace("plimsoll.yaml", config);
    let daemon = node.start();
    let runtime = node.accept().await;
    runtime.synchronize(&[]).await;
    (node, daemon, runtime)
}

/// Runs `plimsoll restore`. Returns the command's exit code and output.
pub async fn restore(node: &Node, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll"));
    command.arg("restore").args(node.arguments().into_iter().skip(1)).args(arguments);
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let said = [output.stdout, output.stderr]
        .map(|said| String::from_utf8_lossy(&said).into_owned())
        .concat();
    (output.status.code(), said)
}

/// Runs the program with these arguments on this node. Returns the program's output and exit code.
pub async fn plimsoll(node: &Node, arguments: &[&str]) -> (String, i32) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll"));
    command.args(arguments).arg("--host").arg(node.path("host"));
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text =
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    (text, output.status.code().unwrap())
}

/// Runs `plimsoll status`. Returns the command's output and exit code.
pub async fn status(node: &Node, arguments: &[&str]) -> (String, i32) {
    plimsoll(node, &[&["status"], arguments].concat()).await
}

/// Returns the output of `plimsoll status --json`.
pub async fn status_json(node: &Node) -> serde_json::Value {
    let (text, code) = status(node, &["--json"]).await;
    assert_eq!(code, 0, "`plimsoll status --json` must succeed, but printed:\n{text}");
    serde_json::from_str(&text).unwrap()
}
