//! Plimsoll in a cluster.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cluster::kubectl::PATIENCE;
use crate::cluster::with_node::{Cluster, Plimsoll};
use crate::placement;
use crate::tools::command::run;

/// A script that disables NRI in the operator's containerd configuration.
///
/// The script restarts containerd and checks that no NRI socket exists afterwards.
const DISABLE_NRI: &str = "
    printf '\n[plugins.\"io.containerd.nri.v1.nri\"]\ndisable = true\n' \
        >>/etc/containerd/config.toml
    systemctl restart containerd
    cri version
    ! grep nri.sock /proc/net/unix";

impl Cluster {
    pub(super) fn prepare(&mut self, plimsoll: &Plimsoll) -> Result<()> {
        self.clear()?;
        if self.deployed.as_ref() == Some(plimsoll) {
            return Ok(());
        }
        self.remove()?;
        match plimsoll {
            Plimsoll::Absent => {}
            Plimsoll::Deployed(config) => self.deploy(config, "")?,
            Plimsoll::EnablingNri(config) => {
                self.node.run(DISABLE_NRI).context("disabling NRI")?;
                self.deploy(config, "components: [enable-nri]\n")?;
            }
        }
        self.deployed = Some(plimsoll.clone());
        Ok(())
    }

    /// Deploys the published manifests of Plimsoll with this configuration and these components.
    ///
    /// Returns when the runtime has synchronised with the plugin.
    fn deploy(&mut self, config: &str, components: &str) -> Result<()> {
        if !self.has_image {
            self.import_image().context("importing Plimsoll's image")?;
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
        // Until the deployment succeeds, the installation is unknown. After a failure, the next
        // test therefore removes the installation.
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
        let restore = "
            for id in $(crictl ps --quiet --name '^plimsoll$'); do
                crictl exec $id plimsoll restore
            done";
        self.node.run(restore).context("restoring the values that Plimsoll set")?;
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
        // `plimsoll restore` has left a marker file in this directory. The file prevents every
        // later plugin from setting values.
        self.node.run("rm -rf /run/plimsoll")?;
        self.deployed = Some(Plimsoll::Absent);
        Ok(())
    }

    fn kustomization(&self) -> PathBuf {
        self.server.path("plimsoll")
    }

    fn import_image(&self) -> Result<()> {
        let package = self.server.path("package");
        // The test does not need the file times in the package.
        placement::package(&package, 0)?;
        let files =
            fs::read_dir(&package).with_context(|| format!("listing {}", package.display()))?;
        let archive = files
            .filter_map(|file| Some(file.ok()?.path()))
            .find(|path| path.to_string_lossy().ends_with(".oci.tar"))
            .with_context(|| format!("{} has no image archive", package.display()))?;
        let archive =
            fs::read(&archive).with_context(|| format!("reading {}", archive.display()))?;
        let script = "cat > /run/image.tar
             ctr --namespace k8s.io images import --local /run/image.tar >/dev/null
             rm /run/image.tar";
        let output = self.node.try_run_within(PATIENCE, script, archive)?;
        ensure!(
            output.status.success(),
            "importing Plimsoll's image: {}",
            output.stderr.trim_end()
        );
        Ok(())
    }
}
