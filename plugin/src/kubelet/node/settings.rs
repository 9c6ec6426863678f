//! Finds and reads the settings of this node's kubelet.
//!
//! The settings come from the configuration file, its drop-ins and the flags of the running
//! kubelet, in this order. If no process of a kubelet is visible, for example in a container
//! without the node's processes, the plugin tries the paths of the known distributions. The
//! plugin's own configuration may name the files (`kubelet`).

use std::path::Path;

use serde_json::{Map, Value};

use super::flags;
use super::kubelet_config::{KubeletReservations, MinorVersion};
use super::merge::{Unusable, merge_drop_ins, read_main};
use super::paths::KNOWN_FILES;
use crate::host::files::below;
use crate::kubelet::checkpoint::DEFAULT_DIR;
use crate::kubelet::process::{self, microk8s_flags, values};

/// Files and version of the kubelet, as far as the plugin's configuration names them. The plugin
/// finds the other files itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KubeletFiles {
    /// Path of the kubelet's configuration file (`--config`).
    pub config: Option<String>,
    /// Path of the directory with drop-ins (`--config-dir`).
    pub config_dir: Option<String>,
    /// Path of the kubelet's directory (`--root-dir`).
    pub root_dir: Option<String>,
    /// Version of the kubelet.
    pub version: Option<MinorVersion>,
}

/// Result of the search for the kubelet's settings.
#[derive(Debug, Default)]
pub struct KubeletSettings {
    /// Amounts that the kubelet reserves, and the state of its MemoryQoS. `None` if the plugin
    /// found no settings, or could not use them.
    pub reservations: Option<KubeletReservations>,
    /// Path of the kubelet's directory, which contains the checkpoints.
    pub root_dir: String,
    /// Path of the configuration file that the plugin has read or expected. `None` if the kubelet
    /// has only flags.
    pub config: Option<String>,
    /// Whether the configuration file exists, or the kubelet runs without one.
    pub is_found: bool,
    /// Files that the plugin could not use: the path and the reason.
    pub unusable: Vec<(String, String)>,
    /// Reasons why the kubelet may have other settings.
    pub doubts: Vec<String>,
}

/// The files and flags that determine the settings.
#[derive(Debug, Default)]
struct Sources {
    config: Option<String>,
    config_dir: Option<String>,
    root_dir: Option<String>,
    flags: Vec<String>,
    doubts: Vec<String>,
    /// Whether the process of the kubelet or the plugin's configuration has named the files.
    is_certain: bool,
}

impl KubeletSettings {
    /// Finds and reads the settings of the kubelet on the node whose file system is at `host`.
    pub fn discover(host: &Path, named: &KubeletFiles) -> Self {
        let sources = Sources::find(host, named);
        let root_dir = sources.root_dir.clone().unwrap_or_else(|| DEFAULT_DIR.to_owned());
        let mut settings = Self {
            root_dir,
            config: sources.config.clone(),
            doubts: sources.doubts.clone(),
            ..Self::default()
        };
        match sources.read(host) {
            Ok(Some(config)) => settings.interpret(&sources, config, named.version),
            Ok(None) => {}
            Err(Unusable { path, why }) => {
                settings.is_found = true;
                settings.unusable.push((path, why));
            }
        }
        settings
    }

    /// Applies the flags, and converts the settings into amounts.
    fn interpret(
        &mut self,
        sources: &Sources,
        mut config: Map<String, Value>,
        version: Option<MinorVersion>,
    ) {
        self.is_found = true;
        self.doubts.extend(flags::apply(&sources.flags, &mut config));
        match KubeletReservations::of(&Value::Object(config), version) {
            Ok(reservations) => self.reservations = Some(reservations),
            Err(why) => {
                let path = self.config.clone().unwrap_or_else(|| "flags of the kubelet".to_owned());
                self.unusable.push((path, why));
            }
        }
    }
}

impl Sources {
    fn find(host: &Path, named: &KubeletFiles) -> Self {
        let mut sources = match process::find(host) {
            Err(error) => {
                let doubt = format!("cannot search /proc for the kubelet: {}", error.why);
                Self { doubts: vec![doubt], ..Self::default() }
            }
            Ok(search) => match &search.kubelets[..] {
                [kubelet] => Self::of_flags(kubelet.flags.clone()),
                [] => {
                    let mut doubts = search.untrusted;
                    if doubts.is_empty() {
                        doubts
                            .push("found no kubelet process, so its flags are unknown".to_owned());
                    }
                    Self { doubts, ..Self::default() }
                }
                several => {
                    let pids: Vec<_> = several.iter().map(|one| one.pid.to_string()).collect();
                    let doubt = format!("found several kubelets: processes {}", pids.join(", "));
                    Self { doubts: vec![doubt], ..Self::default() }
                }
            },
        };
        if named.config.is_some() || named.config_dir.is_some() {
            (sources.is_certain, sources.doubts) = (true, Vec::new());
        }
        let KubeletFiles { config, config_dir, root_dir, .. } = named.clone();
        sources.config = config.or(sources.config);
        sources.config_dir = config_dir.or(sources.config_dir);
        sources.root_dir = root_dir.or(sources.root_dir);
        if !sources.is_certain {
            sources.try_known_files(host);
        }
        sources
    }

    fn of_flags(flags: Vec<String>) -> Self {
        let last = |flag| values(&flags, flag).last().map(str::to_owned);
        Self {
            config: last("--config"),
            config_dir: last("--config-dir"),
            root_dir: last("--root-dir"),
            doubts: Vec::new(),
            is_certain: true,
            flags,
        }
    }

    /// Uses the files of the first known distribution whose files exist.
    fn try_known_files(&mut self, host: &Path) {
        let exists = |path: &str| below(host, path).exists();
        let known = KNOWN_FILES.iter().find(|known| {
            known.config.is_some_and(exists) || (known.config.is_none() && exists(known.config_dir))
        });
        let Some(known) = known else {
            match microk8s_flags(host, &[]) {
                Ok(Some(flags)) => {
                    let doubts = std::mem::take(&mut self.doubts);
                    *self = Self { doubts, ..Self::of_flags(flags) };
                }
                Ok(None) => self.config = Some(format!("{DEFAULT_DIR}/config.yaml")),
                Err(error) => {
                    self.doubts.push(format!("cannot read the flags of MicroK8s: {}", error.why));
                }
            }
            return;
        };
        self.config = known.config.map(str::to_owned);
        self.config_dir = Some(known.config_dir).filter(|path| !path.is_empty()).map(str::to_owned);
        if self.root_dir.is_none() && exists(known.root_dir) {
            self.root_dir = Some(known.root_dir.to_owned());
        }
    }

    /// Reads the configuration file and its drop-ins. Returns `None` if the file does not exist.
    fn read(&self, host: &Path) -> Result<Option<Map<String, Value>>, Unusable> {
        let mut config = match &self.config {
            Some(path) => match read_main(host, path)? {
                Some(config) => config,
                None => return Ok(None),
            },
            None => Map::new(),
        };
        if let Some(directory) = &self.config_dir {
            merge_drop_ins(host, directory, &mut config)?;
        }
        Ok(Some(config))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use plimsoll_core::units::Bytes;

    use super::*;

    const HEADER: &str = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";

    /// Creates a node with these files, and with a kubelet that has these flags.
    fn node(flags: Option<&str>, files: &[(&str, &str)]) -> tempfile::TempDir {
        let host = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = below(host.path(), path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        if let Some(flags) = flags {
            write("/proc/42/comm", "kubelet\n");
            write("/proc/42/status", "Uid:\t0\t0\t0\t0\n");
            write("/proc/42/cgroup", "0::/system.slice/kubelet.service\n");
            write("/proc/42/cmdline", &format!("kubelet\0{}\0", flags.replace(' ', "\0")));
        }
        for (path, text) in files {
            let header = if path.ends_with("args/kubelet") { "" } else { HEADER };
            let text = match text.starts_with('{') {
                true => (*text).to_owned(),
                false => format!("{header}{text}"),
            };
            write(path, &text);
        }
        host
    }

    /// Returns what the kubelet keeps from pods on a node with 16 GiB, in MiB.
    fn kept(settings: &KubeletSettings) -> u64 {
        let of = settings.reservations.as_ref().unwrap();
        let eviction = of.eviction.of(Bytes::new(16 << 30));
        [of.system, of.kube, eviction].iter().map(|bytes| bytes.get()).sum::<u64>() >> 20
    }

    /// One distribution: flags of its kubelet, files in its format, the reserved memory with the
    /// kubelet's process in MiB, and without a visible process, and the kubelet's directory.
    type Distribution<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], u64, Option<u64>, &'a str);

    #[test]
    fn each_distribution_has_exact_amounts() {
        let default = DEFAULT_DIR;
        let cases: &[Distribution<'_>] = &[
            (
                "kubeadm",
                "--bootstrap-kubeconfig=/etc/b --config=/var/lib/kubelet/config.yaml",
                &[("/var/lib/kubelet/config.yaml", "systemReserved: {memory: 1Gi}\n")],
                1124,
                Some(1124),
                default,
            ),
            (
                "kubeadm with drop-ins",
                "--config=/var/lib/kubelet/config.yaml --config-dir=/etc/kubernetes/kubelet.conf.d",
                &[
                    ("/var/lib/kubelet/config.yaml", "systemReserved: {memory: 1Gi}\n"),
                    (
                        "/etc/kubernetes/kubelet.conf.d/1.conf",
                        "evictionHard: {memory.available: 1Gi}",
                    ),
                ],
                2048,
                Some(1124),
                default,
            ),
            (
                "kubeadm with flags",
                "--config=/var/lib/kubelet/config.yaml --kube-reserved=cpu=1,memory=2Gi \
                 --eviction-hard=memory.available<200Mi",
                &[("/var/lib/kubelet/config.yaml", "kubeReserved: {memory: 1Gi}\n")],
                2248,
                Some(1124),
                default,
            ),
            (
                "EKS",
                "--config /etc/kubernetes/kubelet/config.json --config-dir \
                 /etc/kubernetes/kubelet/config.json.d",
                &[
                    (
                        "/etc/kubernetes/kubelet/config.json",
                        r#"{"kind": "KubeletConfiguration", "kubeReserved": {"memory": "574Mi"},
                            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "10%"}}"#,
                    ),
                    (
                        "/etc/kubernetes/kubelet/config.json.d/40-nodeadm.conf",
                        r#"{"apiVersion": "kubelet.config.k8s.io/v1beta1",
                            "kind": "KubeletConfiguration", "kubeReserved": {"memory": "893Mi"}}"#,
                    ),
                ],
                993,
                Some(993),
                default,
            ),
            (
                "GKE",
                "--v=2 --config /home/kubernetes/kubelet-config.yaml",
                &[(
                    "/home/kubernetes/kubelet-config.yaml",
                    "evictionHard: {memory.available: 100Mi}\nkubeReserved: {memory: 1843Mi}\n",
                )],
                1943,
                Some(1943),
                default,
            ),
            (
                "AKS with flags",
                "--eviction-hard=memory.available<100Mi,nodefs.available<10% \
                 --kube-reserved=cpu=100m,memory=1638Mi,pid=1000",
                &[],
                1738,
                None,
                default,
            ),
            (
                "AKS with a file",
                "--config=/etc/default/kubeletconfig.json",
                &[(
                    "/etc/default/kubeletconfig.json",
                    r#"{"kind": "KubeletConfiguration", "kubeReserved": {"memory": "650Mi"},
                        "evictionHard": {"memory.available": "100Mi"}}"#,
                )],
                750,
                Some(750),
                default,
            ),
            (
                "RKE2",
                "--config-dir=/var/lib/rancher/rke2/agent/etc/kubelet.conf.d --node-ip=10.0.0.1",
                &[(
                    "/var/lib/rancher/rke2/agent/etc/kubelet.conf.d/00-rke2-defaults.conf",
                    "evictionHard: {imagefs.available: 5%, nodefs.available: 5%}\n",
                )],
                0,
                Some(0),
                default,
            ),
            (
                "k0s",
                "--root-dir=/var/lib/k0s/kubelet --config=/var/lib/k0s/kubelet/config.yaml",
                &[("/var/lib/k0s/kubelet/config.yaml", "kubeReserved: {memory: 512Mi}\n")],
                612,
                Some(612),
                "/var/lib/k0s/kubelet",
            ),
            (
                "MicroK8s",
                "--root-dir=/var/snap/microk8s/common/var/lib/kubelet \
                 --eviction-hard=memory.available<100Mi,nodefs.available<1Gi",
                &[(
                    "/var/snap/microk8s/current/args/kubelet",
                    "--root-dir=${SNAP_COMMON}/var/lib/kubelet\n\
                     --eviction-hard=\"memory.available<100Mi,nodefs.available<1Gi\"\n",
                )],
                100,
                Some(100),
                "/var/snap/microk8s/common/var/lib/kubelet",
            ),
            (
                "OpenShift",
                "--config=/etc/kubernetes/kubelet.conf --container-runtime-endpoint=/c",
                &[(
                    "/etc/kubernetes/kubelet.conf",
                    r#"{"kind": "KubeletConfiguration", "systemReserved": {"memory": "1Gi"},
                        "evictionHard": null}"#,
                )],
                1124,
                Some(1124),
                default,
            ),
            (
                "Talos",
                "--config=/etc/kubernetes/kubelet.yaml",
                &[(
                    "/etc/kubernetes/kubelet.yaml",
                    "systemReserved: {cpu: 50m, memory: 384Mi, pid: '100'}\n",
                )],
                484,
                Some(484),
                default,
            ),
            (
                "Bottlerocket",
                "--config /etc/kubernetes/kubelet/config --root-dir /var/lib/kubelet",
                &[(
                    "/etc/kubernetes/kubelet/config",
                    "kubeReserved:\n  cpu: \"70m\"\n  memory: \"874Mi\"\n",
                )],
                974,
                Some(974),
                default,
            ),
            (
                "kOps",
                "--config=/var/lib/kubelet/kubelet.conf",
                &[("/var/lib/kubelet/kubelet.conf", "kubeReserved: {memory: 512Mi}\n")],
                612,
                Some(612),
                default,
            ),
            (
                "kubespray",
                "--config=/etc/kubernetes/kubelet-config.yaml",
                &[(
                    "/etc/kubernetes/kubelet-config.yaml",
                    "kubeReserved:\n  memory: 256Mi\nsystemReserved:\n  memory: 512Mi\n",
                )],
                868,
                Some(868),
                default,
            ),
        ];
        for &(name, flags, files, with_process, without, root_dir) in cases {
            let host = node(Some(flags), files);
            let settings = KubeletSettings::discover(host.path(), &KubeletFiles::default());
            assert_eq!(settings.unusable, [], "{name}");
            assert_eq!(settings.doubts, [""; 0], "{name}");
            assert_eq!(
                (kept(&settings), settings.root_dir.as_str()),
                (with_process, root_dir),
                "{name}"
            );
            fs::remove_dir_all(host.path().join("proc")).unwrap();
            let settings = KubeletSettings::discover(host.path(), &KubeletFiles::default());
            assert_eq!(settings.doubts.len(), 1, "{name}");
            assert_eq!(settings.reservations.is_some().then(|| kept(&settings)), without, "{name}");
        }
    }

    #[test]
    fn the_plugins_configuration_names_files() {
        let files = [
            ("/a.yaml", "systemReserved: {memory: 1Gi}"),
            ("/d/1.conf", "kubeReserved: {memory: 1Gi}"),
        ];
        let host = node(None, &files);
        let named = KubeletFiles {
            config: Some("/a.yaml".to_owned()),
            config_dir: Some("/d".to_owned()),
            root_dir: Some("/r".to_owned()),
            version: None,
        };
        let settings = KubeletSettings::discover(host.path(), &named);
        assert_eq!(settings.doubts, [""; 0]);
        assert_eq!((kept(&settings), settings.root_dir.as_str()), (2148, "/r"));
        // The flags of a visible kubelet still count.
        let host = node(Some("--config=/b.yaml --kube-reserved=memory=3Gi"), &files);
        let settings = KubeletSettings::discover(host.path(), &named);
        assert_eq!(kept(&settings), 4196);
    }

    #[test]
    fn unusable_files_give_no_amounts() {
        let host = node(Some("--config=/a.yaml"), &[("/a.yaml", "systemReserved: {memory: lots}")]);
        let settings = KubeletSettings::discover(host.path(), &KubeletFiles::default());
        assert!(settings.is_found && settings.reservations.is_none());
        let [(path, why)] = &settings.unusable[..] else { panic!("{settings:?}") };
        assert_eq!(path, "/a.yaml");
        assert!(why.starts_with("systemReserved.memory: expected a quantity"), "{why}");
        let host = node(Some("--config=/a.yaml"), &[]);
        let settings = KubeletSettings::discover(host.path(), &KubeletFiles::default());
        assert!(!settings.is_found && settings.reservations.is_none());
        assert_eq!(settings.config.as_deref(), Some("/a.yaml"));
    }

    #[test]
    fn several_kubelets_are_a_doubt() {
        let host = node(Some("--config=/a.yaml"), &[("/a.yaml", "")]);
        for file in ["comm", "status", "cgroup", "cmdline"] {
            let text = fs::read(host.path().join("proc/42").join(file)).unwrap();
            fs::create_dir_all(host.path().join("proc/43")).unwrap();
            fs::write(host.path().join("proc/43").join(file), text).unwrap();
        }
        let settings = KubeletSettings::discover(host.path(), &KubeletFiles::default());
        assert_eq!(settings.doubts, ["found several kubelets: processes 42, 43"]);
        assert!(settings.reservations.is_none());
    }
}
