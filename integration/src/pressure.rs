//! Memory pressure in arrangements that tell protected page cache from other.
//!
//! Which level's protection counts depends on where the reclaim comes from. Below the limit of all pods it is that of the
//! class, the pod and the container, while that of all pods itself plays no part. On a node that is full it is all of them.

use std::path::Path;

use anyhow::{Context, Result};

use crate::cgroup;
use crate::crictl;
use crate::kubelet::{Container, ContainerSpec, Kubelet, MIB, Pod, PodSpec};
use crate::node::Node;

/// What the protected container requests.
pub const REQUEST: u64 = 100 * MIB;
/// Page cache of each of both containers before the pressure.
pub const CACHE: u64 = 80 * MIB;
/// What all pods may use during the contest.
const ALL_PODS: u64 = 300 * MIB;
/// What the hog takes of that: with both caches it would be more than there is, with one of them it fits.
const HOG: u64 = 195 * MIB;
/// By how much it goes on.
const STEP: u64 = 8 * MIB;
/// How often a node reclaims at most.
const RECLAIMS: usize = 5;
const LIMIT: u64 = 160 * MIB;

/// A burstable container that requests memory, one of the same class that does not, both with page cache, and a hog beside
/// them.
pub struct Contest<'n> {
    node: &'n Node,
    /// The pod with the protected container `app`.
    pub protected: Pod,
    /// The pod of the other.
    pub other: Pod,
    hog: Pod,
}

/// The page cache that each container has after the pressure, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    /// Of the protected container.
    pub protected: u64,
    /// Of the other.
    pub other: u64,
}

impl Left {
    /// Whether the protected container has all its cache, at the cost of the other.
    pub fn is_protected(&self) -> bool {
        self.protected > CACHE / 100 * 95 && self.other < CACHE / 2
    }

    /// Whether both have lost a good part.
    pub fn is_shared(&self) -> bool {
        self.protected < CACHE / 100 * 80 && self.other < CACHE / 100 * 80
    }
}

impl<'n> Contest<'n> {
    /// Runs the pods below a common limit.
    pub fn run(node: &'n Node, kubelet: &mut Kubelet<'_>) -> Result<Contest<'n>> {
        kubelet.limit_pods(ALL_PODS)?;
        let app = || ContainerSpec::new("app");
        let specs = vec![
            PodSpec::new("protected").container(app().request(REQUEST).limit(LIMIT)),
            PodSpec::new("other").container(app().request(MIB).limit(LIMIT)),
            PodSpec::new("hog").container(app()),
        ];
        let pods = kubelet.run_pods(specs)?;
        let [protected, other, hog] = pods.try_into().ok().context("three pods were asked for")?;
        Ok(Contest { node, protected, other, hog })
    }

    /// Both read; then the hog beside them takes what the limit of all pods leaves, and more: step by step until what is left is as
    /// `is_wanted`, or there is nothing more to take.
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
                "the hog says {answer:?} to {taken}; left are {left:?}"
            );
            step = STEP;
            if is_wanted(&left) || left.protected + left.other < 3 * step {
                break left;
            }
        };
        hog.call(self.node, "free")?;
        Ok(left)
    }

    /// Both read; then the node reclaims whatever is not protected: again and again, at most `RECLAIMS` times, until what is left is as
    /// `is_wanted`. By the kernel's older way of reclaim: with multi-generational LRU neither 6.12 nor 7.2 heeds memory.min when asked
    /// through the root's memory.reclaim.
    pub fn on_a_full_node(&self, is_wanted: impl Fn(&Left) -> bool) -> Result<Left> {
        self.node
            .run("echo n > /sys/kernel/mm/lru_gen/enabled")
            .context("switching to the older LRU")?;
        self.fill()?;
        let mut left = self.left()?;
        for _ in 0..RECLAIMS {
            // It always fails: there is less than was asked for.
            self.node
                .run(&format!("! echo {} > {}/memory.reclaim", 4096 * MIB, cgroup::ROOT))
                .context("reclaiming all there is")?;
            left = self.left()?;
            if is_wanted(&left) {
                break;
            }
        }
        self.node
            .run("echo y > /sys/kernel/mm/lru_gen/enabled")
            .context("switching back to the LRU of before")?;
        Ok(left)
    }

    fn fill(&self) -> Result<()> {
        for pod in [&self.protected, &self.other] {
            let answer = pod.container("app")?.call(self.node, &format!("write /cache {CACHE}"))?;
            anyhow::ensure!(answer.starts_with("ok"), "writing says {answer:?}");
        }
        // What is not written to the disk yet could not be reclaimed.
        self.node.run("sync").context("writing caches back")?;
        Ok(())
    }

    fn left(&self) -> Result<Left> {
        let (protected, other) = (self.protected.container("app")?, self.other.container("app")?);
        let [protected, other] = cgroup::usage(self.node, &[&protected.cgroup, &other.cgroup])?[..]
        else {
            unreachable!("two were asked for")
        };
        Ok(Left { protected: protected.file, other: other.file })
    }
}

/// The limit of the container that [`read_more_than_fits`] is for.
pub const SMALL_LIMIT: u64 = 128 * MIB;

/// A guaranteed pod whose container has [`SMALL_LIMIT`].
pub fn small_pod() -> PodSpec {
    PodSpec::new("small").container(small_container())
}

/// Its container.
pub fn small_container() -> ContainerSpec {
    ContainerSpec::new("app").limit(SMALL_LIMIT).cpu(2000)
}

/// Fills half of the pod's memory with what cannot be reclaimed and then reads a file three times as large as its limit.
/// Returns what the workload answers: how much it read, or `gone`.
///
/// What hits a limit is a charge for a whole folio, and the container's own limit comes first unless something else in the
/// pod uses more than that. The sandbox here uses next to nothing, so it is charged with a monitor process's worth (by a
/// file in memory), and read-ahead kept small.
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
        anyhow::ensure!(answer.starts_with("ok"), "allocating says {answer:?}");
        container.call(node, "read /large")
    });
    node.run("rm /dev/shm/monitor")?;
    answer
}

/// What [`read_more_than_fits`] returns for a container that lives.
pub fn read_it_all() -> String {
    format!("ok {}", 400 * MIB)
}

/// Where the node sees the container's root. containerd's specification names it below its own directory of the container.
fn root_directory(node: &Node, container: &Container) -> Result<String> {
    let inspected = crictl::inspect(node, &container.id)?;
    let path = inspected["info"]["runtimeSpec"]["root"]["path"]
        .as_str()
        .context("no root in the specification")?;
    let bundle = format!("/run/containerd/io.containerd.runtime.v2.task/k8s.io/{}", container.id);
    Ok(Path::new(&bundle).join(path).display().to_string())
}
