//! Kubelet processes that run on the node, with their flags.
//!
//! Any pod can start a process that is named `kubelet`. The plugin trusts a process only if it runs
//! as root, in the namespaces of this program or of the node's first process, and outside of
//! kubepods. The plugin never executes a program of such a process.

use std::fs;
use std::io;
use std::path::Path;

use plimsoll_core::pod::kubepods::is_kubepods;
use serde_json::Value;

use crate::host::files::{Unreadable, below, follow_link, list, read};
use crate::yaml;

/// Maximum number of entries of `/proc` to read.
const MOST_PROCESSES: usize = 1 << 16;

/// Directory of k3s, unless `--data-dir` names another one.
const K3S_DIRECTORY: &str = "/var/lib/rancher/k3s";

/// Directory with the configuration files of k3s.
const K3S_CONFIG: &str = "/etc/rancher/k3s";

/// Flags that k3s gives its kubelet if it writes no file for the kubelet (before k3s 1.32).
const K3S_FLAGS: &str = "--eviction-hard=imagefs.available<5%,nodefs.available<5%";

/// File with the kubelet's flags of MicroK8s.
const MICROK8S_FLAGS: &str = "/var/snap/microk8s/current/args/kubelet";

/// Variables in the file with the kubelet's flags of MicroK8s, and their values.
const MICROK8S_VARIABLES: [(&str, &str); 2] = [
    ("${SNAP_DATA}", "/var/snap/microk8s/current"),
    ("${SNAP_COMMON}", "/var/snap/microk8s/common"),
];

/// A running kubelet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KubeletProcess {
    pub(crate) pid: u32,
    /// The kubelet's flags.
    pub(crate) flags: Vec<String>,
}

/// Result of a search for kubelets.
#[derive(Debug, Default)]
pub(crate) struct ProcessSearch {
    /// Kubelets of this node.
    pub(crate) kubelets: Vec<KubeletProcess>,
    /// Processes that the plugin does not trust, each with the reason.
    pub(crate) untrusted: Vec<String>,
}

/// Finds the kubelets that run on the node whose file system is at `host`.
///
/// # Errors
///
/// Fails if `/proc` or the files of a kubelet are unreadable.
pub(crate) fn find(host: &Path) -> Result<ProcessSearch, Unreadable> {
    let processes = match fs::read_dir(host.join("proc")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(ProcessSearch::default());
        }
        processes => processes?,
    };
    let mut search = ProcessSearch::default();
    for (count, process) in processes.enumerate() {
        if count == MOST_PROCESSES {
            let why = format!("expected at most {MOST_PROCESSES} entries");
            return Err(Unreadable { is_denied: false, why });
        }
        let process = process?;
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        match read_process(host, pid, &process.path(), &mut search) {
            // The process has ended in the meantime.
            Err(_) if !process.path().exists() => {}
            result => result?,
        }
    }
    search.kubelets.sort_by_key(|kubelet| kubelet.pid);
    Ok(search)
}

/// Reads the process whose directory in `/proc` is `process`. Adds the process to `search` if it is
/// a kubelet.
fn read_process(
    host: &Path,
    pid: u32,
    process: &Path,
    search: &mut ProcessSearch,
) -> Result<(), Unreadable> {
    let name = read(&process.join("comm"))?.unwrap_or_default();
    let name = name.trim_end();
    let is_k3s = matches!(name, "k3s" | "k3s-server" | "k3s-agent");
    if name != "kubelet" && name != "kubelite" && !is_k3s {
        return Ok(());
    }
    let line = read(&process.join("cmdline"))?.unwrap_or_default();
    let arguments: Vec<String> = line.split_terminator('\0').map(str::to_owned).collect();
    if is_k3s && !runs_kubelet(&arguments) {
        return Ok(());
    }
    if let Some(reason) = distrust(host, process)? {
        search.untrusted.push(format!("process {pid} ({name}) {reason}"));
        return Ok(());
    }
    let flags = match name {
        "kubelet" => arguments.into_iter().skip(1).collect(),
        "kubelite" => microk8s_flags(host, &arguments)?.ok_or_else(Unreadable::missing)?,
        _ => k3s_flags(host, &arguments)?,
    };
    search.kubelets.push(KubeletProcess { pid, flags });
    Ok(())
}

/// Returns whether this command of k3s runs a kubelet.
fn runs_kubelet(arguments: &[String]) -> bool {
    // k3s may replace its command line by one text.
    let words = arguments.iter().flat_map(|argument| argument.split(' '));
    let command = words.skip(1).find(|word| !word.starts_with('-'));
    matches!(command, Some("server" | "agent"))
        && !arguments.iter().any(|argument| argument == "--disable-agent")
}

/// Returns the reason why a process is not this node's kubelet.
fn distrust(host: &Path, process: &Path) -> Result<Option<String>, Unreadable> {
    let status = read(&process.join("status"))?.unwrap_or_default();
    let user = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    // The real, effective, saved and file system user IDs.
    let is_root = |ids: &str| ids.split_whitespace().all(|id| id == "0");
    match user {
        Some(ids) if is_root(ids) => {}
        Some(_) => return Ok(Some("does not run as root".to_owned())),
        None => return Ok(Some("has no user ID in its status".to_owned())),
    }
    let cgroups = read(&process.join("cgroup"))?.unwrap_or_default();
    let Some(cgroup) = cgroups.lines().find_map(|line| line.strip_prefix("0::")) else {
        return Ok(Some("has no path in the cgroup v2 hierarchy".to_owned()));
    };
    if cgroup.split('/').any(is_kubepods) {
        return Ok(Some("runs in a pod".to_owned()));
    }
    for namespace in ["pid", "mnt"] {
        let of = |process: &Path| match fs::read_link(process.join("ns").join(namespace)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            link => link.map(Some),
        };
        let Some(own) = of(process)? else { continue };
        let proc = host.join("proc");
        let trusted = [of(&proc.join("self"))?, of(&proc.join("1"))?];
        if !trusted.contains(&Some(own)) {
            return Ok(Some(format!("is in another {namespace} namespace")));
        }
    }
    Ok(None)
}

/// Returns the flags of the kubelet of MicroK8s. Returns `None` if the node has no file with these
/// flags. The file has one flag per line.
///
/// # Errors
///
/// Fails if the file is unreadable.
pub(crate) fn microk8s_flags(
    host: &Path,
    arguments: &[String],
) -> Result<Option<Vec<String>>, Unreadable> {
    let file = values(arguments, "--kubelet-args-file").last().unwrap_or(MICROK8S_FLAGS);
    let Some(text) = read(&follow_link(host, &below(host, file)))? else { return Ok(None) };
    let lines = text.lines().map(str::trim);
    let flags = lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(|line| {
        let unquoted = line.replace(['"', '\''], "");
        MICROK8S_VARIABLES.iter().fold(unquoted, |line, (name, value)| line.replace(name, value))
    });
    Ok(Some(flags.collect()))
}

/// Returns the flags of the kubelet that runs as a part of k3s: from the directory with the
/// kubelet's configuration, and from `kubelet-arg` in the configuration and the flags of k3s.
fn k3s_flags(host: &Path, arguments: &[String]) -> Result<Vec<String>, Unreadable> {
    let mut data = K3S_DIRECTORY.to_owned();
    let mut own = Vec::new();
    for file in k3s_files(host)? {
        let text = read(&below(host, &file))?.unwrap_or_default();
        let documents = yaml::values(&text).map_err(|error| Unreadable {
            is_denied: false,
            why: format!("{file}:{}: expected {error}", error.place.line),
        })?;
        for document in &documents {
            let texts = |field: &str| match &document[field] {
                Value::Array(items) => items.iter().filter_map(Value::as_str).collect(),
                Value::String(text) => vec![text.as_str()],
                _ => Vec::new(),
            };
            data = texts("data-dir").last().map_or(data, |directory| (*directory).to_owned());
            // A later file replaces a list, unless the name of its field ends with a plus sign.
            if !texts("kubelet-arg").is_empty() {
                own.clear();
            }
            let flags = [texts("kubelet-arg"), texts("kubelet-arg+")].concat();
            own.extend(flags.into_iter().map(|flag| format!("--{flag}")));
        }
    }
    if let Some(directory) = values(arguments, "--data-dir").last() {
        data = directory.to_owned();
    }
    let on_line = values(arguments, "--kubelet-arg").map(|flag| format!("--{flag}"));
    let directory = format!("{data}/agent/etc/kubelet.conf.d");
    let first = match below(host, &directory).is_dir() {
        true => format!("--config-dir={directory}"),
        false => K3S_FLAGS.to_owned(),
    };
    Ok([first].into_iter().chain(own).chain(on_line).collect())
}

/// Returns the configuration files of k3s in the order in which k3s reads them.
fn k3s_files(host: &Path) -> Result<Vec<String>, Unreadable> {
    let directory = format!("{K3S_CONFIG}/config.yaml.d");
    let names = list(&below(host, &directory))?.into_iter();
    let more = names.filter(|name| name.ends_with(".yaml") || name.ends_with(".yml"));
    let main = [format!("{K3S_CONFIG}/config.yaml")].into_iter();
    Ok(main.chain(more.map(|name| format!("{directory}/{name}"))).collect())
}

/// Returns the values of a flag in the order of the command line. For a flag that does not take a
/// list, Kubernetes uses the last value.
pub(crate) fn values<'a>(
    arguments: &'a [String],
    flag: &'a str,
) -> impl Iterator<Item = &'a str> + 'a {
    arguments.iter().enumerate().filter_map(move |(at, argument)| {
        match argument.strip_prefix(flag)? {
            "" => arguments.get(at + 1).map(String::as_str),
            value => value.strip_prefix('='),
        }
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A node's file system with processes.
    struct Node(tempfile::TempDir);

    impl Node {
        fn new() -> Self {
            let node = Self(tempfile::tempdir().unwrap());
            node.process(1, "systemd", "/sbin/init\0");
            node
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn process(&self, pid: u32, name: &str, line: &str) {
            let path = format!("proc/{pid}");
            self.write(&format!("{path}/comm"), &format!("{name}\n"));
            self.write(&format!("{path}/cmdline"), line);
            self.write(&format!("{path}/status"), "Name:\tx\nUid:\t0\t0\t0\t0\n");
            self.write(&format!("{path}/cgroup"), "0::/system.slice/kubelet.service\n");
            for namespace in ["pid", "mnt"] {
                self.namespace(pid, namespace, "7");
            }
        }

        fn namespace(&self, pid: u32, name: &str, number: &str) {
            let link = self.0.path().join(format!("proc/{pid}/ns/{name}"));
            fs::create_dir_all(link.parent().unwrap()).unwrap();
            let _ = fs::remove_file(&link);
            symlink(format!("{name}:[{number}]"), link).unwrap();
        }

        fn flags(&self) -> Vec<Vec<String>> {
            let search = find(self.0.path()).unwrap();
            search.kubelets.into_iter().map(|kubelet| kubelet.flags).collect()
        }
    }

    #[test]
    fn the_nodes_kubelet_is_found() {
        let node = Node::new();
        node.process(42, "kubelet", "/usr/bin/kubelet\0--config\0/a\0--config-dir=/b\0");
        assert_eq!(node.flags(), [["--config", "/a", "--config-dir=/b"]]);
        let flags = &node.flags()[0];
        assert_eq!(values(flags, "--config").collect::<Vec<_>>(), ["/a"]);
        assert_eq!(values(flags, "--config-dir").collect::<Vec<_>>(), ["/b"]);
    }

    #[test]
    fn other_processes_of_that_name_are_untrusted() {
        for (reason, change) in [
            ("does not run as root", "status"),
            ("runs in a pod", "cgroup"),
            ("is in another pid namespace", "pid"),
            ("is in another mnt namespace", "mnt"),
        ] {
            let node = Node::new();
            node.process(42, "kubelet", "/kubelet\0--config=/a\0");
            match change {
                "status" => node.write("proc/42/status", "Uid:\t0\t1000\t0\t0\n"),
                "cgroup" => {
                    node.write("proc/42/cgroup", "0::/kubelet.slice/kubelet-kubepods.slice/x\n");
                }
                namespace => node.namespace(42, namespace, "8"),
            }
            let search = find(node.0.path()).unwrap();
            assert_eq!(search.kubelets, [], "{reason}");
            assert_eq!(search.untrusted, [format!("process 42 (kubelet) {reason}")]);
        }
    }

    #[test]
    fn a_kubelet_in_our_namespaces_counts() {
        let node = Node::new();
        node.process(42, "kubelet", "/kubelet\0");
        for pid in [42, 43] {
            node.namespace(pid, "mnt", "8");
        }
        let this = node.0.path().join("proc/self");
        symlink("43", this).unwrap();
        node.namespace(43, "pid", "7");
        assert_eq!(node.flags().len(), 1);
    }

    #[test]
    fn microk8s_keeps_flags_in_a_file() {
        let node = Node::new();
        let file = "/var/snap/microk8s/7/args/kubelet";
        let line = format!("/snap/microk8s/7/kubelite\0--kubelet-args-file={file}\0");
        node.process(42, "kubelite", &line);
        node.write(
            &file[1..],
            "# note\n--root-dir=${SNAP_COMMON}/var/lib/kubelet\n\n\
             --eviction-hard=\"memory.available<100Mi,nodefs.available<1Gi\"\n",
        );
        assert_eq!(
            node.flags(),
            [[
                "--root-dir=/var/snap/microk8s/common/var/lib/kubelet",
                "--eviction-hard=memory.available<100Mi,nodefs.available<1Gi",
            ]]
        );
    }

    #[test]
    fn k3s_runs_the_kubelet_itself() {
        let node = Node::new();
        node.process(42, "k3s-server", "/usr/local/bin/k3s server\0");
        assert_eq!(node.flags(), [[K3S_FLAGS]]);
        node.write("var/lib/rancher/k3s/agent/etc/kubelet.conf.d/00-k3s-defaults.conf", "");
        node.write("etc/rancher/k3s/config.yaml", "kubelet-arg:\n- system-reserved=memory=1Gi\n");
        let directory = "--config-dir=/var/lib/rancher/k3s/agent/etc/kubelet.conf.d";
        assert_eq!(node.flags(), [[directory, "--system-reserved=memory=1Gi"]]);
        node.write(
            "etc/rancher/k3s/config.yaml.d/1.yaml",
            "kubelet-arg+: kube-reserved=memory=1Gi",
        );
        node.write("etc/rancher/k3s/config.yaml.d/2.yaml.bak", "kubelet-arg: x");
        node.process(42, "k3s-server", "/k3s\0server\0--kubelet-arg\0v=2\0--kubelet-arg=w=3\0");
        let more = ["--kube-reserved=memory=1Gi", "--v=2", "--w=3"];
        assert_eq!(node.flags()[0][2..], more);
        node.write("etc/rancher/k3s/config.yaml.d/3.yaml", "kubelet-arg: [a=b]\ndata-dir: /data\n");
        assert_eq!(node.flags(), [[K3S_FLAGS, "--a=b", "--v=2", "--w=3"]]);
        node.process(42, "k3s-server", "/k3s\0etcd-snapshot\0");
        node.process(43, "k3s", "/k3s\0server\0--disable-agent\0");
        assert_eq!(node.flags(), [[""; 0]; 0]);
    }
}
