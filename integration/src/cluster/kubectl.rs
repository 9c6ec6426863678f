//! Runs kubectl on this machine.

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cluster::apiserver::ApiServer;
use crate::tools::command::run;

/// The time limit for each slow step, such as the start of the server and of the node.
pub(super) const PATIENCE: Duration = Duration::from_secs(300);

pub(super) fn kubectl(program: &Path, server: &ApiServer, arguments: &[&str]) -> Result<String> {
    run(kubectl_command(program, server).args(arguments))
        .with_context(|| format!("kubectl {}", arguments.join(" ")))
}

pub(super) fn kubectl_command(program: &Path, server: &ApiServer) -> Command {
    let mut command = Command::new(program);
    command
        .arg("kubectl")
        .env("KUBECONFIG", server.path("admin.conf"))
        .env("KUBECACHEDIR", server.path("kubectl"));
    command
}

pub(super) fn until_ready(program: &Path, server: &ApiServer) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match kubectl(program, server, &["get", "--raw", "/readyz"]) {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > deadline => {
                bail!("the API server is not ready: {error:#}\n{}", server.log())
            }
            // Poll, because the server does not signal when it begins to listen.
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    }
}
