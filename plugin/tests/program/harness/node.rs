//! The file system of a node, and the ways to start the program on it.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use nri::runtime::{Connection, Options};
use tokio::net::{UnixListener, UnixStream};

use crate::harness::daemon::{Daemon, LAUNCHER};
use crate::harness::http::get;
use crate::harness::runtime::Runtime;

/// A directory with the layout of a node's file system, and the socket of the node's runtime.
pub struct Node {
    pub directory: tempfile::TempDir,
    pub listener: UnixListener,
}

impl Node {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for path in ["host/sys/fs/cgroup", "host/proc", "host/var/lib/kubelet", "run"] {
            fs::create_dir_all(directory.path().join(path)).unwrap();
        }
        let listener = UnixListener::bind(directory.path().join("run/nri.sock")).unwrap();
        let node = Self { directory, listener };
        node.write("host/sys/fs/cgroup/cgroup.controllers", "memory\n");
        node.write(
            "host/proc/meminfo",
            "MemTotal:        8388608 kB\nHugetlb:               0 kB\n",
        );
        node.write(
            "plimsoll.yaml",
            "nodeAllocatable: 4Gi\nmemoryMinHeadroom: 0\nlogLevel: debug\n",
        );
        node
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    pub fn write(&self, path: &str, content: &str) {
        fs::write(self.path(path), content).unwrap();
    }

    /// Replaces a file by a rename, as the kubelet and editors do.
    pub fn replace(&self, path: &str, content: &str) {
        self.write("new", content);
        fs::rename(self.path("new"), self.path(path)).unwrap();
    }

    pub fn start(&self) -> Daemon {
        self.start_with(&["--config", self.path("plimsoll.yaml").to_str().unwrap()])
    }

    pub fn start_with(&self, arguments: &[&str]) -> Daemon {
        let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll"));
        command.args(self.arguments()).args(arguments);
        Daemon::spawn(command)
    }

    pub fn arguments(&self) -> Vec<String> {
        let path = |path| self.path(path).to_str().unwrap().to_owned();
        ["run".into(), "--host".into(), path("host"), "--socket".into(), path("run/nri.sock")]
            .into()
    }

    /// Launches the plugin as a runtime does. A shell with [`LAUNCHER`] is the parent process, in
    /// the role of the runtime.
    pub fn launch(&self) -> (Daemon, UnixStream) {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut command = Command::new("sh");
        command
            .args(["-c", LAUNCHER])
            .arg(env!("CARGO_BIN_EXE_plimsoll"))
            .args(self.arguments())
            .env_clear()
            .env("NRI_PLUGIN_NAME", "plimsoll")
            .env("NRI_PLUGIN_IDX", "90")
            .env("NRI_PLUGIN_SOCKET", "3")
            // The shell finds `tail` through PATH.
            .env("PATH", std::env::var_os("PATH").unwrap())
            .stdin(Stdio::from(OwnedFd::from(theirs)));
        let daemon = Daemon::spawn(command);
        ours.set_nonblocking(true).unwrap();
        (daemon, UnixStream::from_std(ours).unwrap())
    }

    pub async fn trunk(&self) -> UnixStream {
        self.listener.accept().await.unwrap().0
    }

    /// Accepts the plugin's connection. The runtime has not reported any container yet.
    pub async fn accept(&self) -> Runtime {
        // Use long timeouts, because other programs may slow down the machine.
        let patience = Duration::from_secs(30);
        let options = Options {
            request_timeout: patience,
            registration_timeout: patience,
            ..Options::default()
        };
        self.serve(self.trunk().await, options).await
    }

    /// Returns the metrics from the socket, without the HTTP header.
    pub async fn metrics(&self) -> String {
        let socket = self.path("host/run/plimsoll/plimsoll.sock");
        let connect = || std::os::unix::net::UnixStream::connect(socket).unwrap();
        let answer = tokio::task::spawn_blocking(move || get(connect(), "/metrics")).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(
            head.starts_with("HTTP/1.1 200") && head.contains("application/openmetrics-text"),
            "{head}"
        );
        body.to_owned()
    }

    pub async fn serve(&self, trunk: UnixStream, options: Options) -> Runtime {
        let (connection, updates) = Connection::accept(trunk, options).await.unwrap();
        Runtime {
            connection,
            updates,
            root: self.path("host/sys/fs/cgroup"),
            outlives_plugin: false,
        }
    }
}
