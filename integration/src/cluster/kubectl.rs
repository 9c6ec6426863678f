//! Runs kubectl on this machine.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cluster::apiserver::{ADMINISTRATOR, ApiServer};
use crate::cluster::programs::program;
use crate::tools::command::run;

/// The time limit for each slow step, such as the start of the server and of the node.
pub(super) const PATIENCE: Duration = Duration::from_secs(300);

impl ApiServer {
    /// Waits until the server answers, with a time limit, and prepares [`ApiServer::kubectl`].
    pub fn until_ready(&self) -> Result<()> {
        fs::write(self.path("admin.conf"), self.kubeconfig(ADMINISTRATOR))
            .context("writing a kubeconfig")?;
        until_ready(&program()?, self)
    }

    /// Runs kubectl as the administrator and returns its standard output.
    ///
    /// An exit status other than 0 is an error.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        kubectl(&program()?, self, arguments)
    }
}

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
