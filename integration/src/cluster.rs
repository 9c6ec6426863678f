//! A cluster of one node: a real kubelet in a virtual machine and the control plane on the host.

use std::cell::Cell;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::apiserver::{self, ADMINISTRATOR, ApiServer, KUBELET, NODE, Running, SERVICE};
use crate::cache::{self, Key, progress};
use crate::durations;
use crate::fleet::{self, Place};
use crate::image::run;
use crate::kubelet::Driver;
use crate::node::{Equipment, Node};
use crate::placement;
use crate::runtime::Runtime;
use crate::support;

/// The time limit for each slow step, such as the start of the server and of the node.
const PATIENCE: Duration = Duration::from_secs(300);

/// The CNI configuration. The pods in the tests need no connections, but every pod must have a
/// network.
const NETWORK: &str = r#"{
  "cniVersion": "1.0.0", "name": "pods",
  "plugins": [{ "type": "ptp", "ipam": { "type": "host-local", "subnet": "10.88.0.0/16" } }]
}"#;

/// The kubelet's configuration: the defaults without feature gates, as most users have it.
///
/// Two waits are shorter to save time. A container in a crash loop waits 10 s and then at most 20 s
/// before each restart. The kubelet retries failed operations every 10 s instead of every minute.
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

/// The controllers that the controller manager runs: a DaemonSet and its service account need them.
const CONTROLLERS: &[&str] = &[
    "daemonset-controller",
    "garbage-collector-controller",
    "namespace-controller",
    "node-lifecycle-controller",
    "root-ca-certificate-publisher-controller",
    "serviceaccount-controller",
    "taint-eviction-controller",
];

/// A script that disables NRI in the operator's containerd configuration.
///
/// The script restarts containerd and checks that no NRI socket exists afterwards.
const SWITCH_NRI_OFF: &str = "
    printf '\n[plugins.\"io.containerd.nri.v1.nri\"]\ndisable = true\n' >>/etc/containerd/config.toml
    systemctl restart containerd
    cri version
    ! grep nri.sock /proc/net/unix";

/// The installation of Plimsoll that a test needs in its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plimsoll {
    /// Plimsoll is not installed.
    Absent,
    /// The published manifests with this configuration.
    Deployed(&'static str),
    /// The same with the component `enable-nri`, on a node where NRI was disabled before.
    EnablingNri(&'static str),
}

/// A cluster with one ready node.
pub struct Cluster {
    program: PathBuf,
    server: ApiServer,
    _others: [Running; 2],
    node: Node,
    /// The current installation of Plimsoll. `None` if it is unknown.
    deployed: Option<Plimsoll>,
    has_image: bool,
}

impl Cluster {
    /// Runs a test case on the cluster that the tests of one program share.
    ///
    /// The cluster has no pods and the installation `plimsoll` when the case starts. The first test
    /// starts the cluster, and one test uses it at a time. The cluster ends when no other test
    /// waits for it, because a kubelet without pods still uses half a processor.
    ///
    /// If the virtual machine dies, the case runs once more on a new cluster. Such a death is a
    /// fault of the emulator.
    pub fn with(plimsoll: &Plimsoll, case: impl Fn(&Cluster)) {
        static SHARED: Mutex<Option<Cluster>> = Mutex::new(None);
        support::begin().expect("a file for what passes");
        let _place = Place::for_cluster();
        // A test that panicked may have left objects behind. `prepare` removes them.
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = Self::run(&mut shared, plimsoll, case);
        if !fleet::is_cluster_wanted() {
            *shared = None;
        }
        if let Err(failure) = outcome {
            panic::resume_unwind(failure);
        }
    }

    /// Runs the case. The error is the panic that ended the case.
    fn run(
        shared: &mut Option<Cluster>,
        plimsoll: &Plimsoll,
        case: impl Fn(&Cluster),
    ) -> thread::Result<()> {
        for is_last in [false, true] {
            let started = Instant::now();
            let prepared = Cell::new(None);
            let outcome = panic::catch_unwind(AssertUnwindSafe(|| {
                let cluster = shared.get_or_insert_with(start_elsewhere);
                if let Err(error) = cluster.prepare(plimsoll) {
                    panic!("the cluster is not ready for a case: {error:?}");
                }
                prepared.set(Some(started.elapsed()));
                case(cluster);
                let placement =
                    if *plimsoll == Plimsoll::Absent { "without" } else { "as a DaemonSet" };
                if let Err(error) = cluster.passed(placement) {
                    panic!("noting that the case has passed: {error:?}");
                }
            }));
            let took = started.elapsed();
            let verdict = if outcome.is_ok() { "passed" } else { "failed" };
            durations::note("cluster", verdict, took, prepared.get().unwrap_or(took));
            let Err(failure) = outcome else { break };
            match shared.as_ref().and_then(|cluster| cluster.node.fate()) {
                Some(fate) => {
                    *shared = None;
                    if is_last {
                        return Err(failure);
                    }
                    progress(&format!(
                        "the cluster's node did not last for a case, which runs once more: {fate}"
                    ));
                }
                None => return Err(failure),
            }
        }
        Ok(())
    }

    /// Records that the case passed, for the table in SUPPORT.md.
    fn passed(&self, placement: &str) -> Result<()> {
        let version = self.kubectl(&[
            "get",
            "nodes",
            "--output=jsonpath={.items[0].status.nodeInfo.kubeletVersion}",
        ])?;
        support::passed(
            &self.node,
            Driver::Systemd,
            placement,
            Some(version.trim_start_matches('v')),
        )
    }

    fn prepare(&mut self, plimsoll: &Plimsoll) -> Result<()> {
        self.clear()?;
        if self.deployed.as_ref() == Some(plimsoll) {
            return Ok(());
        }
        self.remove()?;
        match plimsoll {
            Plimsoll::Absent => {}
            Plimsoll::Deployed(config) => self.deploy(config, "")?,
            Plimsoll::EnablingNri(config) => {
                self.node.run(SWITCH_NRI_OFF).context("switching NRI off")?;
                self.deploy(config, "components: [enable-nri]\n")?;
            }
        }
        self.deployed = Some(plimsoll.clone());
        Ok(())
    }

    fn start() -> Result<Cluster> {
        let program = apiserver::program()?;
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
                "kubectl {} never showed what was wanted, but\n{}",
                arguments.join(" "),
                seen.join("\n")
            )
        })
    }

    /// Deploys the published manifests of Plimsoll with this configuration and these components.
    ///
    /// Returns when the runtime has synchronised with the plugin.
    fn deploy(&mut self, config: &str, components: &str) -> Result<()> {
        if !self.has_image {
            self.import_image().context("making Plimsoll's image known to the node")?;
            self.has_image = true;
        }
        let directory = self.kustomization();
        if directory.exists() {
            fs::remove_dir_all(&directory)
                .with_context(|| format!("removing {}", directory.display()))?;
        }
        let published = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kustomize");
        run(Command::new("cp").arg("-r").arg(&published).arg(&directory))?;
        fs::write(directory.join("base/90-plimsoll.conf"), config)
            .context("writing the configuration")?;
        fs::write(directory.join("kustomization.yaml"), format!("resources: [base]\n{components}"))
            .context("writing a kustomization")?;
        let cursor = placement::cursor(&self.node)?;
        // Until the deployment succeeds, the installation is unknown. After a failure the next test
        // then removes it.
        self.deployed = None;
        self.kubectl(&["apply", "-k", &directory.display().to_string()])?;
        let rollout = [
            "rollout",
            "status",
            "daemonset/plimsoll",
            "--namespace=kube-system",
            "--timeout=300s",
        ];
        if let Err(error) = self.kubectl(&rollout) {
            let pods = self.kubectl(&["describe", "pods", "--namespace=kube-system"])?;
            let said = self
                .node
                .run("tail -n 30 /var/log/pods/kube-system_plimsoll*/*/*.log || true")?
                .stdout;
            return Err(error.context(format!("{pods}\n{said}")));
        }
        placement::until_synchronised_since(&self.node, &cursor)
    }

    /// Restores the values that Plimsoll has set and removes Plimsoll from the cluster.
    fn remove(&mut self) -> Result<()> {
        if self.deployed == Some(Plimsoll::Absent) {
            return Ok(());
        }
        let restore = "for id in $(crictl ps --quiet --name '^plimsoll$'); do crictl exec $id plimsoll restore; done";
        self.node.run(restore).context("restoring what Plimsoll has set")?;
        self.kubectl(&[
            "delete",
            "-k",
            &self.kustomization().display().to_string(),
            "--ignore-not-found",
            "--timeout=300s",
        ])?;
        let pods = "--selector=app.kubernetes.io/name=plimsoll";
        self.kubectl(&[
            "wait",
            "--for=delete",
            "pods",
            pods,
            "--namespace=kube-system",
            "--timeout=300s",
        ])?;
        // `plimsoll restore` left a marker file there that keeps every later plugin from setting
        // values.
        self.node.run("rm -rf /run/plimsoll")?;
        self.deployed = Some(Plimsoll::Absent);
        Ok(())
    }

    fn kustomization(&self) -> PathBuf {
        self.server.path("plimsoll")
    }

    fn import_image(&self) -> Result<()> {
        let package = self.server.path("package");
        // The file times in the package do not matter here.
        placement::package(&package, 0)?;
        let files =
            fs::read_dir(&package).with_context(|| format!("listing {}", package.display()))?;
        let archive = files
            .filter_map(|file| Some(file.ok()?.path()))
            .find(|path| path.to_string_lossy().ends_with(".oci.tar"))
            .with_context(|| format!("no image in {}", package.display()))?;
        let archive =
            fs::read(&archive).with_context(|| format!("reading {}", archive.display()))?;
        let script = "cat > /run/image.tar
             ctr --namespace k8s.io images import --local /run/image.tar >/dev/null
             rm /run/image.tar";
        let output = self.node.try_run_within(PATIENCE, script, archive)?;
        ensure!(output.status.success(), "importing it: {}", output.stderr.trim_end());
        Ok(())
    }

    /// Deletes all pods and Events in the namespace `default` and waits until they are gone.
    fn clear(&self) -> Result<()> {
        self.kubectl(&["delete", "pods", "--all", "--grace-period=1", "--timeout=300s"])?;
        self.kubectl(&["delete", "events", "--all"])?;
        Ok(())
    }
}

/// Starts a cluster in a thread that never ends.
///
/// The kernel kills the cluster's processes when the thread that started them ends. A test's thread
/// would end too early.
fn start_elsewhere() -> Cluster {
    let (started, cluster) = mpsc::channel();
    thread::spawn(move || {
        // `start_elsewhere` waits for this result, so sending cannot fail.
        let _ = started.send(Cluster::start());
        loop {
            thread::park();
        }
    });
    match cluster.recv() {
        Ok(Ok(cluster)) => cluster,
        Ok(Err(error)) => panic!("the cluster does not start: {error:?}"),
        Err(_) => panic!("the thread that starts the cluster has ended"),
    }
}

fn kubectl(program: &Path, server: &ApiServer, arguments: &[&str]) -> Result<String> {
    run(kubectl_command(program, server).args(arguments))
        .with_context(|| format!("kubectl {}", arguments.join(" ")))
}

fn kubectl_command(program: &Path, server: &ApiServer) -> Command {
    let mut command = Command::new(program);
    command
        .arg("kubectl")
        .env("KUBECONFIG", server.path("admin.conf"))
        .env("KUBECACHEDIR", server.path("kubectl"));
    command
}

fn until_ready(program: &Path, server: &ApiServer) -> Result<()> {
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

/// Starts a control plane program that communicates only with the API server.
fn start(program: &Path, server: &ApiServer, name: &str, more: &[String]) -> Result<Running> {
    let arguments = [
        name.to_owned(),
        format!("--kubeconfig={}", server.path("admin.conf").display()),
        "--leader-elect=false".to_owned(),
        "--secure-port=0".to_owned(),
    ];
    let arguments: Vec<_> = arguments.into_iter().chain(more.iter().cloned()).collect();
    apiserver::spawn(program, &arguments, &server.path(&format!("{name}.log")))
}

/// Returns the path of a disk image with the Kubernetes programs.
fn disk(program: &Path) -> Result<PathBuf> {
    let mut key = Key::default();
    key.add("program", program.display().to_string()).add("recipe", "ext4 without a journal");
    let dir = cache::entry("kubernetes-disk", &key, |dir| {
        let root = tempfile::tempdir_in(dir).context("creating a directory")?;
        let copy = root.path().join("kubernetes");
        fs::hard_link(program, &copy).with_context(|| format!("linking {}", copy.display()))?;
        run(Command::new("mke2fs")
            .args([
                "-q",
                "-t",
                "ext4",
                "-O",
                "^has_journal,^metadata_csum",
                "-E",
                "root_owner=0:0",
                "-d",
            ])
            .arg(root.path())
            .arg(dir.join("disk.img"))
            .arg("1G"))
        .map(|_| ())
    })?;
    Ok(dir.join("disk.img"))
}
