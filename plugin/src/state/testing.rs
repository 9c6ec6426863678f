//! A node in a temporary directory for unit tests.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use plimsoll_core::pod::{CgroupPath, PodUid, QosClass};
use plimsoll_core::policy::hierarchy::PodPlace;
use plimsoll_core::requests::annotation::Overrides;
use plimsoll_core::units::{Bytes, CpuMax, CpuShares, Limit, PageSize};

use crate::cgroup::CgroupRoot;
use crate::config::Config;
use crate::kubelet::checkpoint::Moment;
use crate::kubelet::node::KubeletFiles;
use crate::state::brake::Tally;
use crate::state::container::Container;
use crate::state::containers::Containers;
use crate::state::levels::Levels;
use crate::state::originals::Originals;
use crate::state::records::Records;
use crate::state::settings::{MemoryFacts, Settings, discover_memory};
use crate::state::update_phase::UpdatePhase;

/// Cgroup of the only pod, to which all containers belong.
pub(crate) const POD: &str = "kubepods/burstable/poda";

/// Memory of the node: 8 GiB, half of which is available.
const MEMINFO: &str = "MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\nHugePages_Total: 0\n\
                       Hugepagesize: 2048 kB\nHugetlb: 0 kB\n";

/// A node in a temporary directory.
pub(crate) struct TestNode {
    pub(crate) host: tempfile::TempDir,
    pub(crate) root: Arc<CgroupRoot>,
    pub(crate) containers: Arc<Containers>,
}

impl TestNode {
    /// Creates a node with this configuration. The kubelet's checkpoint has no entries.
    pub(crate) fn new(config: &str) -> Self {
        let host = tempfile::tempdir().unwrap();
        let cgroups = host.path().join("sys/fs/cgroup");
        fs::create_dir_all(&cgroups).unwrap();
        fs::write(cgroups.join("cgroup.controllers"), "memory\n").unwrap();
        fs::create_dir_all(host.path().join("proc")).unwrap();
        fs::write(host.path().join("proc/meminfo"), MEMINFO).unwrap();
        let root = Arc::new(CgroupRoot::open(&cgroups).unwrap());
        let containers = containers(host.path(), config);
        Self { host, root, containers }
    }

    /// Returns the state of a plugin that was restarted on this node. This plugin knows no
    /// container yet.
    pub(crate) fn restart(&self) -> Arc<Containers> {
        containers(self.host.path(), "")
    }

    /// Returns the cgroups above containers, as a plugin without stored originals finds them.
    pub(crate) fn levels(&self, brake: Arc<Tally>) -> Arc<Levels> {
        let originals = Arc::new(Mutex::new(Originals::none(self.host.path())));
        Arc::new(Levels::new(self.root.clone(), PageSize::KIB4, originals, brake))
    }

    /// Writes a file to the node's file system.
    pub(crate) fn write(&self, path: &str, text: &str) {
        let path = self.host.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Writes a file of a cgroup.
    pub(crate) fn set(&self, cgroup: &str, file: &str, value: impl ToString) {
        let path = Path::new("sys/fs/cgroup").join(cgroup).join(file);
        self.write(path.to_str().unwrap(), &value.to_string());
    }

    /// Returns the text of a file of a cgroup.
    pub(crate) fn get(&self, cgroup: &str, file: &str) -> String {
        let path = self.host.path().join("sys/fs/cgroup").join(cgroup).join(file);
        fs::read_to_string(path).unwrap().trim().to_owned()
    }

    /// Adds a running container with this memory limit and usage, in MiB. All memory is anonymous,
    /// and there is no swap.
    pub(crate) fn run(&self, id: &str, limit: u64, usage: u64) -> Arc<Container> {
        let cgroup = format!("{POD}/{id}");
        for (file, value) in [("memory.min", "0"), ("memory.low", "0"), ("memory.high", "max")] {
            self.set(&cgroup, file, value);
        }
        self.set(&cgroup, "memory.max", limit << 20);
        self.set_usage(id, usage, 0);
        self.containers.insert(Container { started: true, ..container(id, limit) })
    }

    /// Sets a container's memory usage and the part that is page cache, both in MiB.
    pub(crate) fn set_usage(&self, id: &str, usage: u64, cache: u64) {
        let cgroup = format!("{POD}/{id}");
        self.set(&cgroup, "memory.current", usage << 20);
        self.set(&cgroup, "memory.stat", format!("inactive_file {}\n", cache << 20));
    }
}

/// Returns the state of a plugin that starts on the node whose file system is at `host`.
fn containers(host: &Path, config: &str) -> Arc<Containers> {
    let config = Config::parse(config.as_bytes(), "test").unwrap();
    let memory = MemoryFacts::from(&discover_memory(host, &KubeletFiles::default()));
    let settings = Settings::without_memory(config, host).with_memory(memory);
    // Nothing reads the checkpoint files, so every look-up is inconclusive at once.
    let (records, _) = Records::new(host.join("var/lib/kubelet"));
    let originals = Arc::new(Mutex::new(Originals::load(host).unwrap()));
    Arc::new(Containers::new(settings, records, originals))
}

/// Returns a container of one pod, with a limit in MiB.
pub(crate) fn container(id: &str, limit: u64) -> Container {
    let limit = Limit::Bytes(Bytes::new(limit << 20));
    Container {
        id: id.to_owned(),
        name: format!("name-{id}"),
        pod: "default/a".to_owned(),
        uid: PodUid::new("a"),
        sandbox: "sandbox".to_owned(),
        limit,
        asked: limit,
        phase: UpdatePhase::default(),
        cpu: CpuMax::NONE,
        cpu_shares: CpuShares::default(),
        swap_max: None,
        unified: HashMap::new(),
        overrides: Overrides::default(),
        oom_score_adj: None,
        moment: Moment::Create,
        started: false,
        has_had_processes: false,
        cgroup: Some(CgroupPath::parse(&format!("{POD}/{id}")).unwrap()),
        place: PodPlace::new(CgroupPath::parse(POD).unwrap(), QosClass::Burstable),
    }
}
