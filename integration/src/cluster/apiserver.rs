//! A real kube-apiserver on this machine with Debian's etcd.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cluster::programs::program;
use crate::machine::Node;
use crate::tools::command::run;
use crate::tools::process::{Running, free_ports, spawn};
use crate::tools::run_directory::RunDir;

/// The user name and bearer token of the cluster administrator (group `system:masters`).
pub const ADMINISTRATOR: &str = "administrator";

/// The bearer token of the kubelet on the node [`NODE`]. The token belongs to the user
/// `system:node:node`.
pub const KUBELET: &str = "kubelet";

/// The node's name. No other node can join, because the kubelet's token is valid for this node
/// only.
pub const NODE: &str = "node";

/// The address and port of the service `kubernetes`: the first address of the service range.
///
/// The node's virtual machine forwards this address to the server, so the cluster needs no
/// kube-proxy.
pub const SERVICE: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 0, 2, 97), 443);

/// An API server with its etcd. Dropping this value kills both processes.
pub struct ApiServer {
    directory: RunDir,
    port: u16,
    arguments: Vec<String>,
    _etcd: Running,
    server: Option<Running>,
}

impl ApiServer {
    /// Starts an API server without objects.
    ///
    /// The server is ready when it answers at `/readyz`. The server may become ready only after the
    /// function has returned.
    pub fn start() -> Result<Self> {
        // No controller creates the service accounts of pods here, so this admission plugin would
        // reject pods.
        Self::start_with(&["--disable-admission-plugins=ServiceAccount", "--allow-privileged=true"])
    }

    /// Starts an API server for a whole cluster, in which pods have service accounts.
    pub(crate) fn start_for_cluster() -> Result<Self> {
        Self::start_with(&["--allow-privileged=true"])
    }

    fn start_with(more: &[&str]) -> Result<Self> {
        let directory = RunDir::create()?;
        let path = |name: &str| directory.path.join(name);
        let tokens = format!(
            "{ADMINISTRATOR},{ADMINISTRATOR},0,system:masters\n\
             {KUBELET},system:node:{NODE},1,system:nodes\n"
        );
        fs::write(path("tokens"), tokens).context("writing tokens")?;
        run(Command::new("ssh-keygen")
            .args(["-q", "-t", "ecdsa", "-m", "PEM", "-N", "", "-f"])
            .arg(path("key")))?;
        let [client, peer, port] = free_ports()?;
        let etcd = format!("http://127.0.0.1:{client}");
        let etcd_arguments = [
            "--unsafe-no-fsync".to_owned(),
            format!("--data-dir={}", path("etcd").display()),
            format!("--listen-client-urls={etcd}"),
            format!("--advertise-client-urls={etcd}"),
            format!("--listen-peer-urls=http://127.0.0.1:{peer}"),
        ];
        let etcd_runs = spawn(Path::new("etcd"), &etcd_arguments, &path("etcd.log"))?;
        let key = path("key").display().to_string();
        let arguments = [
            "kube-apiserver".to_owned(),
            format!("--etcd-servers={etcd}"),
            "--bind-address=127.0.0.1".to_owned(),
            // No client uses this documentation address (RFC 5737). The server requires an
            // advertised address outside this machine.
            "--advertise-address=192.0.2.1".to_owned(),
            format!("--secure-port={port}"),
            format!("--cert-dir={}", path("certificates").display()),
            format!("--token-auth-file={}", path("tokens").display()),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--service-account-issuer=https://plimsoll.invalid".to_owned(),
            format!("--service-account-key-file={key}"),
            format!("--service-account-signing-key-file={key}"),
            // The first address of this range is SERVICE.
            "--service-cluster-ip-range=10.0.2.96/28".to_owned(),
        ];
        let arguments =
            arguments.into_iter().chain(more.iter().map(|&argument| argument.to_owned())).collect();
        let mut server = Self { port, arguments, _etcd: etcd_runs, server: None, directory };
        server.start_again()?;
        Ok(server)
    }

    /// Kills the server process. etcd keeps running and keeps all objects.
    pub fn kill(&mut self) {
        self.server = None;
    }

    /// Starts the server again after [`ApiServer::kill`].
    pub fn start_again(&mut self) -> Result<()> {
        self.server = Some(spawn(&program()?, &self.arguments, &self.path("kube-apiserver.log"))?);
        Ok(())
    }

    /// Returns the path of the file `name` in the server's directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path.join(name)
    }

    /// Returns the path of the certificate that the server generated.
    ///
    /// The file also contains the certificate of the authority that signed it.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.path("certificates/apiserver.crt")
    }

    /// Returns the path of the key that signs the tokens of service accounts.
    pub(crate) fn key(&self) -> PathBuf {
        self.path("key")
    }

    /// Returns the server's port on this machine's loopback address.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Makes the server reachable from a node outside a cluster, and writes a kubeconfig there.
    ///
    /// The kubeconfig contains `token`. `path` is the absolute path of the kubeconfig on the node.
    pub fn connect(&self, node: &Node, token: &str, path: &str) -> Result<()> {
        node.forward(self.port)?;
        let certificate =
            fs::read(self.certificate()).context("reading the server's certificate")?;
        let place = format!("{path}.crt");
        node.write_file(&place, certificate, 0o644)?;
        let kubeconfig = kubeconfig((Ipv4Addr::LOCALHOST, self.port), Path::new(&place), token);
        node.write_file(path, kubeconfig, 0o600)
    }

    /// Returns a kubeconfig that contains `token`, for use on this machine.
    pub fn kubeconfig(&self, token: &str) -> String {
        kubeconfig((Ipv4Addr::LOCALHOST, self.port), &self.certificate(), token)
    }

    /// Returns the last 15 log lines of etcd and of each control plane program.
    pub fn log(&self) -> String {
        let last = |name| {
            let text = fs::read_to_string(self.path(name)).unwrap_or_default();
            let lines: Vec<_> = text.lines().collect();
            lines[lines.len().saturating_sub(15)..].join("\n")
        };
        ["etcd.log", "kube-apiserver.log", "kube-controller-manager.log", "kube-scheduler.log"]
            .map(last)
            .join("\n")
    }
}

/// Returns a kubeconfig with the server's address, the path of its certificate and a token.
pub(crate) fn kubeconfig(server: (Ipv4Addr, u16), certificate: &Path, token: &str) -> String {
    let ((address, port), certificate) = (server, certificate.display());
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
         clusters: [{{name: test, cluster: {{server: \"https://{address}:{port}\", \
         certificate-authority: \"{certificate}\"}}}}]\n\
         users: [{{name: test, user: {{token: \"{token}\"}}}}]\n\
         contexts: [{{name: test, context: {{cluster: test, user: test}}}}]\n"
    )
}
