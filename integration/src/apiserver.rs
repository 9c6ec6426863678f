//! A real kube-apiserver on this machine, with Debian's etcd and nothing else of a cluster.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::cache::{self, Key};
use crate::image::run;

/// Who may do everything.
pub const ADMINISTRATOR: &str = "administrator";

/// The server. What is running of it ends with this.
pub struct ApiServer {
    directory: TempDir,
    port: u16,
    arguments: Vec<String>,
    _etcd: Running,
    server: Option<Running>,
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl ApiServer {
    /// Starts one with nothing in it. When it answers at `/readyz`, it is ready.
    pub fn start() -> Result<Self> {
        let directory = tempfile::tempdir().context("creating a directory for the API server")?;
        let path = |name: &str| directory.path().join(name);
        fs::write(path("tokens"), format!("{ADMINISTRATOR},{ADMINISTRATOR},0,system:masters\n"))
            .context("writing the administrator's token")?;
        run(Command::new("ssh-keygen").args(["-q", "-t", "ecdsa", "-m", "PEM", "-N", "", "-f"]).arg(path("key")))?;
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
            format!("--etcd-servers={etcd}"),
            "--bind-address=127.0.0.1".to_owned(),
            // Nobody goes there (RFC 5737), but it must not be this machine, nor be missing.
            "--advertise-address=192.0.2.1".to_owned(),
            format!("--secure-port={port}"),
            format!("--cert-dir={}", path("certificates").display()),
            format!("--token-auth-file={}", path("tokens").display()),
            "--authorization-mode=RBAC".to_owned(),
            "--service-account-issuer=https://plimsoll.invalid".to_owned(),
            format!("--service-account-key-file={key}"),
            format!("--service-account-signing-key-file={key}"),
            "--service-cluster-ip-range=10.0.0.0/24".to_owned(),
            // Nobody makes the accounts that pods are to have.
            "--disable-admission-plugins=ServiceAccount".to_owned(),
        ];
        let mut server = Self { port, arguments: arguments.into(), _etcd: etcd_runs, server: None, directory };
        server.start_again()?;
        Ok(server)
    }

    /// Kills the server; what it knows is in etcd.
    pub fn kill(&mut self) {
        self.server = None;
    }

    /// Starts the server after [`ApiServer::kill`].
    pub fn start_again(&mut self) -> Result<()> {
        self.server = Some(spawn(&program()?, &self.arguments, &self.directory.path().join("server.log"))?);
        Ok(())
    }

    /// A kubeconfig with this token.
    pub fn kubeconfig(&self, token: &str) -> String {
        let authority = self.directory.path().join("certificates/apiserver.crt");
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
             clusters: [{{name: test, cluster: {{server: \"https://127.0.0.1:{}\", certificate-authority: \"{}\"}}}}]\n\
             users: [{{name: test, user: {{token: \"{token}\"}}}}]\n\
             contexts: [{{name: test, context: {{cluster: test, user: test}}}}]\n",
            self.port,
            authority.display()
        )
    }

    /// What etcd and the server have said last.
    pub fn log(&self) -> String {
        let last = |name| {
            let text = fs::read_to_string(self.directory.path().join(name)).unwrap_or_default();
            let lines: Vec<_> = text.lines().collect();
            lines[lines.len().saturating_sub(15)..].join("\n")
        };
        ["etcd.log", "server.log"].map(last).join("\n")
    }
}

/// Ports that nobody listened at a moment ago.
fn free_ports<const N: usize>() -> Result<[u16; N]> {
    // All at a time, so that they differ.
    let listeners: Vec<_> =
        (0..N).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>().context("looking for free ports")?;
    let mut ports = [0; N];
    for (port, listener) in ports.iter_mut().zip(listeners) {
        *port = listener.local_addr().context("looking for free ports")?.port();
    }
    Ok(ports)
}

/// Starts a program that does not outlive this one.
fn spawn(program: &Path, arguments: &[String], log: &Path) -> Result<Running> {
    let output = File::options().create(true).append(true).open(log);
    let output = output.with_context(|| format!("creating {}", log.display()))?;
    let errors = output.try_clone().context("opening the log twice")?;
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program).args(arguments);
    let child = command.stdin(Stdio::null()).stdout(output).stderr(errors).spawn();
    let mut child =
        Running(child.context("starting setpriv: is it installed? (hack/prepare installs what is needed)")?);
    // One that cannot be started ends at once.
    let ended = child.0.try_wait().with_context(|| format!("waiting for {}", program.display()))?;
    ensure!(ended.is_none(), "{} has ended: see {}", program.display(), log.display());
    Ok(child)
}

/// kube-apiserver, built from its Go module at the version in `integration/apiserver/go.mod`.
fn program() -> Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("apiserver");
    let mut key = Key::default();
    key.add_tree(&source)?.add("recipe", "trimpath, no cgo, stripped, not optimised");
    let dir = cache::entry("kube-apiserver", &key, |dir| {
        run(Command::new("go")
            .current_dir(&source)
            .env("CGO_ENABLED", "0")
            .args(["build", "-trimpath", "-buildvcs=false", "-gcflags=all=-N -l", "-ldflags=-s -w", "-o"])
            .arg(dir.join("kube-apiserver"))
            .arg("."))
        .map(|_| ())
    })?;
    Ok(dir.join("kube-apiserver"))
}
