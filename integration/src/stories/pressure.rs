//! Memory pressure that shows whether the kernel protects page cache.
//!
//! The effective protection depends on the cgroup where reclaim starts. If reclaim starts at the
//! limit of all pods, the kernel respects the protection of the class, the pod and the container,
//! but not that of the cgroup of all pods. On a full node, the kernel respects the protection of
//! all these cgroups.

use std::path::Path;

use anyhow::{Context, Result};

use crate::kubelet::{Container, ContainerSpec, Kubelet, MIB, Pod, PodSpec};
use crate::machine::Node;
use crate::probe::{cgroup, crictl};

/// The memory request of the protected container in bytes.
pub const REQUEST: u64 = 100 * MIB;
/// The page cache of each of the two containers before the pressure, in bytes.
pub const CACHE: u64 = 80 * MIB;
/// The memory limit of the cgroup of all pods in a [`Contest`].
const ALL_PODS: u64 = 300 * MIB;
/// The first allocation of the best-effort container, the hog.
///
/// Under the limit of all pods, there is room for this allocation and one cache, but not for both
/// caches.
const HOG: u64 = 195 * MIB;
/// The size of each further allocation of the hog.
const STEP: u64 = 8 * MIB;
/// The maximum number of times that the node's memory is reclaimed.
const RECLAIMS: usize = 5;
const LIMIT: u64 = 160 * MIB;

/// Two burstable containers with page cache and a best-effort container, the hog. Each container is
/// in a pod of its own.
///
/// One container requests enough memory to protect its cache. The other container requests only 1
/// MiB.
pub struct Contest<'n> {
    node: &'n Node,
    /// The pod with the protected container `app`.
    pub protected: Pod,
    /// The pod of the other container.
    pub other: Pod,
    hog: Pod,
}

/// The page cache that each container has after the pressure, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    /// Page cache of the protected container.
    pub protected: u64,
    /// Page cache of the other container.
    pub other: u64,
}

impl Left {
    /// Returns whether the kernel reclaimed only the other container's cache.
    ///
    /// The protected container must have more than 95 % of its cache, and the other container less
    /// than half.
    pub fn is_protected(&self) -> bool {
        self.protected > CACHE / 100 * 95 && self.other < CACHE / 2
    }

    /// Returns whether both containers have lost more than a fifth of their cache.
    pub fn is_shared(&self) -> bool {
        self.protected < CACHE / 100 * 80 && self.other < CACHE / 100 * 80
    }
}

impl<'n> Contest<'n> {
    /// Runs the pods with a common memory limit.
    pub fn run(node: &'n Node, kubelet: &mut Kubelet<'_>) -> Result<Contest<'n>> {
        kubelet.limit_pods(ALL_PODS)?;
        let app = || ContainerSpec::new("app");
        let specs = vec![
            PodSpec::new("protected").container(app().request(REQUEST).limit(LIMIT)),
            PodSpec::new("other").container(app().request(MIB).limit(LIMIT)),
            PodSpec::new("hog").container(app()),
        ];
        let pods = kubelet.run_pods(specs)?;
        let [protected, other, hog] = pods.try_into().ok().context("running three pods")?;
        Ok(Contest { node, protected, other, hog })
    }

    /// Fills both caches and then lets the hog allocate memory until the limit of all pods is
    /// exceeded.
    ///
    /// The hog continues step by step until `is_wanted` accepts the remaining cache sizes, or the
    /// caches are nearly empty. Returns the remaining caches.
    pub fn below_the_limit_of_all_pods(&self, is_wanted: impl Fn(&Left) -> bool) -> Result<Left> {
        self.fill()?;
        let hog = self.hog.container("app")?;
        let (mut taken, mut step) = (0, HOG);
        let left = loop {
            taken += step;
            let answer = hog.call(self.node, &format!("alloc {step}"))?;
            let left = self.left()?;
            anyhow::ensure!(
                answer == format!("ok {taken}"),
                "the hog must have {taken} bytes, but answered {answer:?}; caches: {left:?}"
            );
            step = STEP;
            if is_wanted(&left) || left.protected + left.other < 3 * step {
                break left;
            }
        };
        hog.call(self.node, "free")?;
        Ok(left)
    }

    /// Fills both caches and then lets the kernel reclaim all memory that is not protected.
    ///
    /// The reclaim is repeated up to `RECLAIMS` times until `is_wanted` accepts the remaining cache
    /// sizes. Returns the remaining caches.
    ///
    /// During the reclaims, the kernel uses its older LRU algorithm. With multi-generational LRU,
    /// Linux 6.12 and 7.2 ignore memory.min for a reclaim through the root's memory.reclaim.
    pub fn on_a_full_node(&self, is_wanted: impl Fn(&Left) -> bool) -> Result<Left> {
        self.node
            .run("echo n > /sys/kernel/mm/lru_gen/enabled")
            .context("switching to the older LRU")?;
        self.fill()?;
        let mut left = self.left()?;
        for _ in 0..RECLAIMS {
            // The write always fails, because it requests more memory than the node has.
            self.node
                .run(&format!("! echo {} > {}/memory.reclaim", 4096 * MIB, cgroup::ROOT))
                .context("reclaiming all memory")?;
            left = self.left()?;
            if is_wanted(&left) {
                break;
            }
        }
        self.node
            .run("echo y > /sys/kernel/mm/lru_gen/enabled")
            .context("switching back to the multi-generational LRU")?;
        Ok(left)
    }

    fn fill(&self) -> Result<()> {
        for pod in [&self.protected, &self.other] {
            let answer = pod.container("app")?.call(self.node, &format!("write /cache {CACHE}"))?;
            anyhow::ensure!(
                answer.starts_with("ok"),
                "the workload must write a file, but answered {answer:?}"
            );
        }
        // The kernel cannot reclaim page cache that is not yet written to the disk.
        self.node.run("sync").context("writing dirty page cache to the disk")?;
        Ok(())
    }

    fn left(&self) -> Result<Left> {
        let (protected, other) = (self.protected.container("app")?, self.other.container("app")?);
        let [protected, other] = cgroup::usage(self.node, &[&protected.cgroup, &other.cgroup])?[..]
        else {
            unreachable!("the request was for two cgroups")
        };
        Ok(Left { protected: protected.file, other: other.file })
    }
}

/// The memory limit in bytes of the container for [`read_more_than_fits`].
pub const SMALL_LIMIT: u64 = 128 * MIB;

/// Returns a guaranteed pod whose container has the limit [`SMALL_LIMIT`].
pub fn small_pod() -> PodSpec {
    PodSpec::new("small").container(small_container())
}

/// Returns the container of [`small_pod`].
pub fn small_container() -> ContainerSpec {
    ContainerSpec::new("app").limit(SMALL_LIMIT).cpu(2000)
}

/// Fills half of the pod's memory limit with anonymous memory and then reads a file of three times
/// the limit.
///
/// Returns the workload's answer: the number of bytes that it read, or `gone`.
///
/// The usage must reach the pod's limit before it reaches the container's equal limit. The kernel
/// charges whole folios, so the other memory of the pod must be larger than one folio. The sandbox
/// of the test uses almost no memory. A file in memory therefore charges 1 MiB to the sandbox, as
/// much as a monitor process would use. A small read-ahead keeps the folios small.
pub fn read_more_than_fits(kubelet: &Kubelet<'_>, node: &Node, pod: &Pod) -> Result<String> {
    let monitor =
        format!("echo $$ > {}/{}/cgroup.procs", cgroup::ROOT, kubelet.sandbox_cgroup(pod));
    node.run(&format!("sh -c '{monitor}; head --bytes {MIB} /dev/zero > /dev/shm/monitor'"))
        .context("charging the sandbox")?;
    let container = pod.container("app")?;
    let root = root_directory(node, container)?;
    node.run(&format!(
        "echo 128 > /sys/block/vda/queue/read_ahead_kb; truncate --size {} {root}/large",
        400 * MIB
    ))?;
    let answer = container.call(node, &format!("alloc {}", 60 * MIB)).and_then(|answer| {
        anyhow::ensure!(
            answer.starts_with("ok"),
            "the workload must allocate memory, but answered {answer:?}"
        );
        container.call(node, "read /large")
    });
    node.run("rm /dev/shm/monitor")?;
    answer
}

/// Returns the answer of [`read_more_than_fits`] for a container that survives.
pub fn read_it_all() -> String {
    format!("ok {}", 400 * MIB)
}

/// Returns the path on the node of the container's root directory.
///
/// In containerd's specification the path is relative to containerd's directory for the container.
fn root_directory(node: &Node, container: &Container) -> Result<String> {
    let inspected = crictl::inspect(node, &container.id)?;
    let path = inspected["info"]["runtimeSpec"]["root"]["path"]
        .as_str()
        .context("the container's specification has no root")?;
    let bundle = format!("/run/containerd/io.containerd.runtime.v2.task/k8s.io/{}", container.id);
    Ok(Path::new(&bundle).join(path).display().to_string())
}
