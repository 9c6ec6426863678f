//! A cluster of one node: a real kubelet in a virtual machine and the control plane on the host.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::cluster::apiserver::{self, ADMINISTRATOR, ApiServer, KUBELET, NODE, SERVICE};
use crate::cluster::control_plane::{CONTROLLERS, start};
use crate::cluster::kubectl::{PATIENCE, kubectl, kubectl_command, until_ready};
use crate::cluster::programs::{disk, program};
use crate::machine::{Equipment, Node};
use crate::runtime::Runtime;
use crate::tools::process::Running;
use crate::tools::progress::progress;

/// The CNI configuration. The pods in the tests need no connections, but every pod must have a
/// network.
const NETWORK: &str = r#"{
  "cniVersion": "1.0.0", "name": "pods",
  "plugins": [{ "type": "ptp", "ipam": { "type": "host-local", "subnet": "10.88.0.0/16" } }]
}"#;

/// The kubelet's configuration: the defaults without feature gates, as on most nodes.
///
/// To save time, two delays are shorter. A container in a crash loop waits 10 s and then at most 20
/// s before each restart. The kubelet retries failed operations every 10 s instead of every minute.
const CONFIGURATION: &str = "\
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
authentication: {anonymous: {enabled: false}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
systemReserved: {memory: 400Mi}
syncFrequency: 10s
clusterDNS: [192.0.2.53]
crashLoopBackOff: {maxContainerRestartPeriod: 20s}
";

const UNIT: &str = "\
[Unit]
Description=kubelet
After=containerd.service

[Service]
ExecStart=/opt/kubernetes/kubernetes kubelet --kubeconfig=/etc/kubernetes/kubelet.conf \
 --config=/var/lib/kubelet/config.yaml --node-ip=10.0.2.15
Restart=always
OOMScoreAdjust=-999
";

/// The installation of Plimsoll that a test needs in its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plimsoll {
    /// Plimsoll is not installed.
    Absent,
    /// Plimsoll from the published manifests, with this configuration.
    Deployed(&'static str),
    /// Like `Deployed`, with the component `enable-nri`, on a node where NRI was disabled before.
    EnablingNri(&'static str),
}

/// A cluster with one ready node.
pub struct Cluster {
    program: PathBuf,
    pub(super) server: ApiServer,
    _others: [Running; 2],
    pub(super) node: Node,
    /// The current installation of Plimsoll. `None` if the installation is unknown.
    pub(super) deployed: Option<Plimsoll>,
    pub(super) has_image: bool,
}

impl Cluster {
    pub(super) fn start() -> Result<Cluster> {
        let program = program()?;
        let disk = disk(&program)?;
        let started = Instant::now();
        let server = ApiServer::start_for_cluster()?;
        fs::write(server.path("admin.conf"), server.kubeconfig(ADMINISTRATOR))
            .context("writing a kubeconfig")?;
        let node = Node::boot(
            Runtime::Containerd24,
            &Equipment { disk, relay: (SERVICE.0, SERVICE.1, server.port()) },
        )?;
        until_ready(&program, &server)?;
        let controllers = [
            format!("--controllers={}", CONTROLLERS.join(",")),
            format!("--root-ca-file={}", server.certificate().display()),
            format!("--service-account-private-key-file={}", server.key().display()),
        ];
        let others = [
            start(&program, &server, "kube-controller-manager", &controllers)?,
            start(&program, &server, "kube-scheduler", &[])?,
        ];
        let cluster = Cluster {
            program,
            server,
            _others: others,
            node,
            deployed: Some(Plimsoll::Absent),
            has_image: false,
        };
        let outcome = cluster.start_kubelet().and_then(|()| {
            let seconds = format!("--timeout={}s", PATIENCE.as_secs());
            let node = format!("node/{NODE}");
            cluster.kubectl(&["wait", "--for=create", &seconds, &node])?;
            cluster.kubectl(&["wait", "--for=condition=Ready", &seconds, &node])?;
            // The API server rejects pods until this service account exists.
            cluster.kubectl(&["wait", "--for=create", &seconds, "serviceaccount/default"])
        });
        if let Err(error) = outcome {
            let kubelet =
                cluster.node.run("journalctl --unit kubelet --output cat | tail -n 40")?.stdout;
            return Err(error.context(format!("{}\nkubelet:\n{kubelet}", cluster.server.log())));
        }
        progress(&format!("the cluster is ready after {:.1} s", started.elapsed().as_secs_f64()));
        Ok(cluster)
    }

    fn start_kubelet(&self) -> Result<()> {
        let certificate =
            fs::read(self.server.certificate()).context("reading the server's certificate")?;
        let place = "/etc/kubernetes/ca.crt";
        self.node.write_file(place, certificate, 0o644)?;
        let kubeconfig = apiserver::kubeconfig(SERVICE, Path::new(place), KUBELET);
        self.node.write_file("/etc/kubernetes/kubelet.conf", kubeconfig, 0o600)?;
        self.node.write_file("/var/lib/kubelet/config.yaml", CONFIGURATION, 0o644)?;
        self.node.write_file("/etc/cni/net.d/10-pods.conflist", NETWORK, 0o644)?;
        self.node.write_file("/etc/systemd/system/kubelet.service", UNIT, 0o644)?;
        self.node.run(
            "mkdir -p /opt/kubernetes
             mount -o ro -t ext4 /dev/vdb /opt/kubernetes
             mkdir -p /opt/cni
             ln -s /usr/lib/cni /opt/cni/bin
             systemctl daemon-reload
             systemctl start kubelet",
        )?;
        Ok(())
    }

    /// Returns the node.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Runs kubectl as the administrator and returns its standard output.
    ///
    /// An exit status other than 0 is an error.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        kubectl(&self.program, &self.server, arguments)
    }

    /// Runs kubectl with `--watch` and returns the first line of output that `is_wanted` accepts.
    pub fn watch(&self, arguments: &[&str], is_wanted: impl Fn(&str) -> bool) -> Result<String> {
        let mut child = kubectl_command(&self.program, &self.server)
            .args(arguments)
            .args(["--watch", &format!("--request-timeout={}s", PATIENCE.as_secs())])
            .stdout(Stdio::piped())
            .spawn()
            .context("starting kubectl")?;
        let output = child.stdout.take().context("kubectl has no output")?;
        let mut seen = Vec::new();
        let found = BufReader::new(output).lines().map_while(Result::ok).find(|line| {
            seen.push(line.clone());
            is_wanted(line)
        });
        // An error only means that kubectl has already ended.
        let _ = child.kill();
        child.wait().context("waiting for kubectl")?;
        found.with_context(|| {
            format!(
                "kubectl {} must print the expected line, but printed:\n{}",
                arguments.join(" "),
                seen.join("\n")
            )
        })
    }

    /// Deletes all pods and Events in the namespace `default` and waits until they are gone.
    pub(super) fn clear(&self) -> Result<()> {
        self.kubectl(&["delete", "pods", "--all", "--grace-period=1", "--timeout=300s"])?;
        self.kubectl(&["delete", "events", "--all"])?;
        Ok(())
    }
}
