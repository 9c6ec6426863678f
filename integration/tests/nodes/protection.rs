//! Tests of memory protection on real nodes: values of the whole cgroup hierarchy, repair after
//! writes of other programs, and `plimsoll restore`.
//!
//! The control group in `control.rs` shows that the same setups end differently without the plugin.
//! Each printed time is measured by the node's clock, from the end of an action to the last moment
//! at which a file had a wrong value.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::kubelet::{ContainerSpec, Kubelet, MIB, Pod, PodSpec, Qos, SYSTEM_RESERVED};
use integration::machine::Node;
use integration::node_tests;
use integration::placement::{self, CONFIG, EXTERNAL_BINARY, journal};
use integration::probe::cgroup::{self, Expected, MAX, Settled};
use integration::probe::crictl;
use integration::runtime::Driver;
use integration::stories::pressure::{self, Contest, Left};
use integration::stories::{self, Random};

node_tests!(external: {
    restore_takes_everything_back,
}, once: {
    ancestor_protection_equals_the_sum_of_requests,
    protection_leaves_other_cgroup_files_unchanged,
    values_outlast_systemd_and_other_writers,
    another_plugin_may_claim_the_same_key,
    sums_are_exact_after_random_pod_churn,
    protection_keeps_the_working_set_under_pressure,
    reserved_cgroups_follow_configuration_and_restore,
    values_converge_after_repeated_plugin_kills,
    protection_never_exceeds_what_the_node_has,
    headroom_prevents_oom_kills_by_page_cache,
    the_guard_confines_oom_kills_to_pods,
    persistent_writers_are_reported_once_and_ignored,
});

/// Returns the default configuration.
fn config() -> String {
    "{}\n".to_owned()
}

const TIERED: &str = "memoryReservationPolicy: TieredReservation\n";

/// Distance between memory.min of a container and its limit, in bytes: the default of
/// `memoryMinHeadroom`.
const HEADROOM: u64 = 2 * MIB;
/// Promised maximum time until values are right after an event or after another program's write.
/// This maximum excludes the time that the runtime needs for the event.
const SOON: Duration = Duration::from_secs(1);
/// Number of checks that a shell on the node completes in [`SOON`] if no other program uses the
/// machine: see [`Settled`].
const SOON_LOOKS: u64 = 60;
/// Time for which values must stay right.
const HOLD: Duration = Duration::from_millis(400);
/// Timeout for values to become right.
const LIMIT: Duration = Duration::from_secs(60);

/// Current reservation policy.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Policy {
    Hard,
    Tiered,
}

/// Values of memory.min and memory.low of one cgroup, in bytes.
#[derive(Clone, Copy, Default)]
struct Protection {
    min: u64,
    low: u64,
}

impl Protection {
    fn files(self, cgroup: &str) -> [Expected; 2] {
        [
            Expected::new(cgroup, "memory.min", self.min),
            Expected::new(cgroup, "memory.low", self.low),
        ]
    }
}

/// Computes the expected protection of every cgroup from the pods alone. Requests in these tests
/// are multiples of the page size.
fn expected<'p>(
    kubelet: &Kubelet<'_>,
    policy: Policy,
    pods: impl IntoIterator<Item = &'p Pod>,
) -> Vec<Expected> {
    let mut files = Vec::new();
    let (mut top, mut burstable) = (Protection::default(), Protection::default());
    for pod in pods {
        let soft = policy == Policy::Tiered && pod.spec.qos() == Qos::Burstable;
        let protect = |bytes| {
            if soft { Protection { min: 0, low: bytes } } else { Protection { min: bytes, low: 0 } }
        };
        for container in &pod.containers {
            let Some(spec) = pod.spec.containers.iter().find(|spec| spec.name == container.name)
            else {
                continue;
            };
            let request = spec.effective_request().unwrap_or(0);
            let mut own = protect(request);
            own.min = own.min.min(spec.memory_limit.map_or(MAX, |limit| limit - HEADROOM));
            files.extend(own.files(&container.cgroup));
        }
        let own = protect(pod.live_request());
        files.extend(own.files(&pod.cgroup));
        if pod.spec.qos() == Qos::Burstable {
            burstable = Protection { min: burstable.min + own.min, low: burstable.low + own.low };
        }
        top = Protection { min: top.min + own.min + own.low, low: top.low + own.low };
    }
    files.extend(burstable.files(&kubelet.class_cgroup(Qos::Burstable)));
    files.extend(Protection::default().files(&kubelet.class_cgroup(Qos::BestEffort)));
    files.extend(top.files(kubelet.top_cgroup()));
    files
}

fn settle(node: &Node, what: &str, script: &str, expected: &[Expected]) -> Result<Settled> {
    let settled =
        cgroup::settle(node, script, expected, HOLD, LIMIT).with_context(|| what.to_owned())?;
    let milliseconds = settled.after.as_secs_f64() * 1000.0;
    println!(
        "{}: {what}: right after {milliseconds:.1} ms, {} checks",
        node.runtime(),
        settled.looks
    );
    Ok(settled)
}

/// Runs a script and waits until the files have the expected values.
///
/// # Errors
///
/// Fails if the time exceeds [`SOON`] and the number of checks exceeds [`SOON_LOOKS`].
fn settled(node: &Node, what: &str, script: &str, expected: &[Expected]) -> Result<()> {
    let settled = settle(node, what, script, expected)?;
    ensure!(
        settled.after <= SOON || settled.looks <= SOON_LOOKS,
        "{what}: values must be right at once, but were right after {settled:?}"
    );
    Ok(())
}

/// Does the same as [`settled`], but for actions without a promised time. In these actions the
/// runtime must act for each container, or the plugin must start.
fn reached(node: &Node, what: &str, script: &str, expected: &[Expected]) -> Result<()> {
    settle(node, what, script, expected).map(|_| ())
}

fn app() -> ContainerSpec {
    ContainerSpec::new("app")
}

fn guaranteed() -> PodSpec {
    PodSpec::new("guaranteed").container(app().limit(64 * MIB).cpu(100))
}

fn burstable() -> PodSpec {
    PodSpec::new("burstable").container(app().request(32 * MIB).limit(96 * MIB))
}

/// Runs a guaranteed and a burstable pod.
fn two_pods(kubelet: &mut Kubelet<'_>) -> Result<[Pod; 2]> {
    kubelet.run_pods(vec![guaranteed(), burstable()])?.try_into().ok().context("running two pods")
}

fn file(cgroup: &str, name: &str) -> String {
    format!("{}/{cgroup}/{name}", cgroup::ROOT)
}

fn ancestor_protection_equals_the_sum_of_requests(node: &Node, driver: Driver) -> Result<()> {
    let mut kubelet = Kubelet::start(node, driver)?;
    let check = |kubelet: &Kubelet<'_>, what: &str, policy, pods: &[Pod]| {
        settled(node, &format!("{driver}: {what}"), "", &expected(kubelet, policy, pods))
    };
    let several = PodSpec::new("several")
        .overhead(8 * MIB)
        .container(app().request(32 * MIB).limit(96 * MIB))
        .container(ContainerSpec::new("side").request(16 * MIB));
    let mut pods = kubelet.run_pods(vec![
        guaranteed().overhead(16 * MIB),
        several,
        PodSpec::new("best").container(app()),
    ])?;
    check(&kubelet, "pods of every class", Policy::Hard, &pods)?;

    // The plugin counts a container's request only while the container runs.
    let mut for_a_while = pods[1].clone();
    let init = ContainerSpec::new("init").request(24 * MIB);
    kubelet.run_container(&mut for_a_while, &init)?;
    for_a_while.spec.containers.push(init);
    let with_init = [pods[0].clone(), for_a_while.clone(), pods[2].clone()];
    check(&kubelet, "one more container", Policy::Hard, &with_init)?;
    let end = format!("workload call {} exit 0 || true", for_a_while.container("init")?.control);
    // The runtime removes the cgroup only after it has noticed the exit.
    reached(
        node,
        &format!("{driver}: a container ended"),
        &end,
        &expected(&kubelet, Policy::Hard, &pods),
    )?;

    kubelet.remove_container(&mut pods[1], "side")?;
    check(&kubelet, "a container removed", Policy::Hard, &pods)?;
    for (request, limit) in [(48 * MIB, 128 * MIB), (20 * MIB, 80 * MIB)] {
        kubelet.resize(&mut pods[1], "app", Some(request), Some(limit))?;
        check(&kubelet, "a container resized", Policy::Hard, &pods)?;
    }

    node.write_file(CONFIG, TIERED, 0o644)?;
    reached(
        node,
        &format!("{driver}: tiered by configuration"),
        "",
        &expected(&kubelet, Policy::Tiered, &pods),
    )?;
    kubelet.remove_pod(&pods.remove(0))?;
    check(&kubelet, "a pod removed", Policy::Tiered, &pods)?;
    node.write_file(CONFIG, config(), 0o644)?;
    reached(node, &format!("{driver}: hard again"), "", &expected(&kubelet, Policy::Hard, &pods))?;

    // A pod may have a less strict policy than the node, here `tiered`.
    let soft = kubelet.run_pod(
        PodSpec::new("soft")
            .annotation("reservation.plimsoll.nri.io/pod", "tiered")
            .container(app().request(40 * MIB).limit(80 * MIB)),
    )?;
    let hard = pods[0].live_request();
    let class = Protection { min: hard, low: 40 * MIB };
    let top = Protection { min: hard + 40 * MIB, low: 40 * MIB };
    let files = [
        &Protection { min: 0, low: 40 * MIB }.files(&soft.container("app")?.cgroup)[..],
        &Protection { min: 0, low: 40 * MIB }.files(&soft.cgroup),
        &class.files(&kubelet.class_cgroup(Qos::Burstable)),
        &top.files(kubelet.top_cgroup()),
    ];
    settled(node, &format!("{driver}: tiered by annotation"), "", &files.concat())
}

fn protection_never_exceeds_what_the_node_has(node: &Node, driver: Driver) -> Result<()> {
    let mut kubelet = Kubelet::start(node, driver)?;
    let allocatable = kubelet.allocatable();
    let (first, second) = (800 * MIB, 400 * MIB);
    let so_far = journal(node, 0)?.len();
    let pods = kubelet.run_pods(vec![
        PodSpec::new("guaranteed").container(app().limit(256 * MIB).cpu(100)),
        PodSpec::new("first").container(app().request(first)),
        PodSpec::new("second").container(app().request(second)),
    ])?;
    ensure!(
        allocatable > 300 * MIB && allocatable < 256 * MIB + first + second,
        "allocatable is {allocatable}"
    );
    // The plugin protects the whole request of the Guaranteed pod. memory.min of each container is
    // the container's whole request.
    let exact = [
        Expected::new(&pods[0].cgroup, "memory.min", 256 * MIB),
        Expected::new(&pods[0].container("app")?.cgroup, "memory.min", 256 * MIB - HEADROOM),
        Expected::new(&pods[1].container("app")?.cgroup, "memory.min", first),
        Expected::new(&pods[2].container("app")?.cgroup, "memory.min", second),
    ];
    settled(node, &format!("{driver}: more requested than there is"), "", &exact)?;
    let class = kubelet.class_cgroup(Qos::Burstable);
    let levels =
        cgroup::memory(node, &[kubelet.top_cgroup(), &class, &pods[1].cgroup, &pods[2].cgroup])?;
    let [top, class, of_first, of_second] = levels[..] else { unreachable!("four were asked for") };
    // The plugin may round each value down by a page. Both Burstable pods share the remaining
    // memory in proportion to their requests, 2 to 1.
    let near = |value: u64, wanted: u64| value <= wanted && wanted - value <= 4 * 4096;
    let rest = allocatable - 256 * MIB;
    assert!(near(top.min, allocatable), "{top:?} of {allocatable}");
    assert!(near(class.min, rest), "{class:?} of {rest}");
    assert!(
        near(of_first.min, rest / 3 * 2) && near(of_second.min, rest / 3),
        "{of_first:?} {of_second:?} of {rest}"
    );
    assert!(of_first.min + of_second.min <= class.min && class.min + 256 * MIB <= top.min);
    let said = journal(node, so_far)?;
    assert!(
        said.iter().any(|line| line.contains("allocatable")),
        "a message must name each pod's loss: {said:#?}"
    );
    kubelet.remove_pod(&pods[1])?;
    settled(
        node,
        &format!("{driver}: enough again"),
        "",
        &expected(&kubelet, Policy::Hard, [&pods[0], &pods[2]]),
    )
}

fn protection_keeps_the_working_set_under_pressure(node: &Node, driver: Driver) -> Result<()> {
    let mut kubelet = Kubelet::start(node, driver)?;
    let contest = Contest::run(node, &mut kubelet)?;
    let files = expected(&kubelet, Policy::Hard, [&contest.protected, &contest.other]);
    settled(node, &format!("{driver}: pods of the contest"), "", &files)?;
    let left = contest.below_the_limit_of_all_pods(Left::is_protected)?;
    assert!(left.is_protected(), "below the limit of all pods: {left:?}");
    let left = contest.on_a_full_node(Left::is_protected)?;
    assert!(left.is_protected(), "on a full node: {left:?}");

    // Show that a container's memory.min has no effect if memory.min of the QoS class is missing.
    // Stop the plugin first, so that no repair follows.
    let class = kubelet.class_cgroup(Qos::Burstable);
    node.run(&format!("systemctl stop plimsoll; echo 0 > {}", file(&class, "memory.min")))?;
    let left = contest.below_the_limit_of_all_pods(Left::is_shared)?;
    assert!(left.is_shared(), "without memory.min of the class: {left:?}");
    placement::until_synchronised(node, "systemctl start plimsoll")?;
    reached(node, &format!("{driver}: the plugin started again"), "", &files)?;
    let left = contest.below_the_limit_of_all_pods(Left::is_protected)?;
    assert!(left.is_protected(), "repaired: {left:?}");
    Ok(())
}

fn headroom_prevents_oom_kills_by_page_cache(node: &Node, driver: Driver) -> Result<()> {
    let mut kubelet = Kubelet::start(node, driver)?;
    let pod = kubelet.run_pod(pressure::small_pod())?;
    settled(node, &format!("{driver}: headroom"), "", &expected(&kubelet, Policy::Hard, [&pod]))?;
    assert_eq!(pressure::read_more_than_fits(&kubelet, node, &pod)?, pressure::read_it_all());
    assert_eq!(cgroup::events(node, &pod.cgroup)?["oom_kill"], 0);
    kubelet.remove_pod(&pod)?;

    // Without the headroom the kernel OOM-kills the same container.
    node.write_file(CONFIG, "memoryMinHeadroom: 0\n", 0o644)?;
    let pod = kubelet.run_pod(pressure::small_pod())?;
    let container = &pod.container("app")?.cgroup;
    let full = [Expected::new(container, "memory.min", pressure::SMALL_LIMIT)];
    settled(node, &format!("{driver}: no headroom"), "", &full)?;
    assert_eq!(pressure::read_more_than_fits(&kubelet, node, &pod)?, "gone");
    node.write_file(CONFIG, config(), 0o644)
}

fn values_outlast_systemd_and_other_writers(node: &Node, driver: Driver) -> Result<()> {
    let mut kubelet = Kubelet::start(node, driver)?;
    let pods = two_pods(&mut kubelet)?;
    let pod = &pods[1];
    let container = pod.container("app")?;
    let mut files = expected(&kubelet, Policy::Hard, &pods);
    let [values] = cgroup::memory(node, &[&container.cgroup])?[..] else {
        unreachable!("one was asked for")
    };
    assert!(values.high < 96 * MIB, "{values:?}");
    files.push(Expected::new(&container.cgroup, "memory.high", values.high));
    settled(node, &format!("{driver}: two pods"), "", &files)?;

    let (top, class) = (kubelet.top_cgroup(), kubelet.class_cgroup(Qos::Burstable));
    let mut writers = vec![
        ("the kubelet's update of the classes", kubelet.qos_update()),
        (
            "crictl update",
            format!("crictl update --memory {} {} >/dev/null", 96 * MIB, container.id),
        ),
        ("memory.min of all pods", format!("echo 0 > {}", file(top, "memory.min"))),
        ("memory.min of the class", format!("echo 0 > {}", file(&class, "memory.min"))),
        ("memory.min of the pod", format!("echo 0 > {}", file(&pod.cgroup, "memory.min"))),
        (
            "memory.min of the container",
            format!("echo 0 > {}", file(&container.cgroup, "memory.min")),
        ),
        ("memory.low of the class", format!("echo 1M > {}", file(&class, "memory.low"))),
        (
            "memory.low of the container",
            format!("echo 1M > {}", file(&container.cgroup, "memory.low")),
        ),
        // crun runs processes in a child cgroup of the scope. The kernel applies the lower
        // memory.high of the two cgroups.
        (
            "memory.high of the container",
            format!(
                "cd {}; echo max > memory.high; [ ! -e container ] || echo max > container/memory.high",
                file(&container.cgroup, "")
            ),
        ),
        ("daemon-reload", "systemctl daemon-reload".to_owned()),
    ];
    if driver == Driver::Systemd {
        let unit = |cgroup: &str| cgroup.rsplit('/').next().unwrap_or_default().to_owned();
        writers.push(("daemon-reexec", "systemctl daemon-reexec".to_owned()));
        writers.push((
            "a property of all pods",
            "systemctl set-property --runtime kubepods.slice CPUWeight=77".to_owned(),
        ));
        for cgroup in [&class, &pod.cgroup] {
            let command = format!("systemctl set-property --runtime {} CPUWeight=33", unit(cgroup));
            writers.push(("a property of a slice", command));
        }
    }
    let so_far = journal(node, 0)?.len();
    for (what, script) in writers {
        let named = format!("{driver}: {what}");
        if what.ends_with("of the container") {
            // The plugin repairs containers through the runtime, which takes a second in emulation.
            reached(node, &named, &script, &files)?;
        } else {
            settled(node, &named, &script, &files)?;
        }
    }

    // The plugin repairs ancestor cgroups too quickly for a shell to see the wrong value. The
    // journal shows the repair.
    let said = journal(node, so_far)?;
    for cgroup in [top, &class, &pod.cgroup] {
        let parts = [&format!("cgroup=/{cgroup} "), "memory.min", "observed=0", "outcome=applied"];
        let repaired = said.iter().any(|line| parts.iter().all(|part| line.contains(part)));
        assert!(repaired, "a message must report the repair of {cgroup}: {said:#?}");
    }

    // The plugin reports a kubelet whose own MemoryQoS writes values every minute.
    kubelet.enable_memory_qos()?;
    placement::wait_for_journal(node, "plimsoll", "MemoryQoS", "systemctl restart plimsoll")?;
    settled(node, &format!("{driver}: the kubelet's MemoryQoS"), &kubelet.qos_update(), &files)
}

fn protection_leaves_other_cgroup_files_unchanged(node: &Node, driver: Driver) -> Result<()> {
    let mut kubelet = Kubelet::start(node, driver)?;
    node.run("systemctl stop plimsoll")?;
    let pods = two_pods(&mut kubelet)?;
    // Forbid swap and limit CPU time. systemd could change these values by mistake.
    for pod in &pods {
        let script = match driver {
            Driver::Systemd => {
                let unit = pod.cgroup.rsplit('/').next().unwrap_or_default();
                format!(
                    "systemctl set-property --runtime {unit} MemorySwapMax=0 CPUQuota=50% CPUWeight=40"
                )
            }
            Driver::Cgroupfs => {
                let set =
                    [("memory.swap.max", "0"), ("cpu.max", "50000 100000"), ("cpu.weight", "40")];
                set.map(|(name, value)| format!("echo {value} > {}; ", file(&pod.cgroup, name)))
                    .concat()
            }
        };
        node.run(&script)?;
    }
    let mut cgroups = vec![kubelet.top_cgroup().to_owned(), kubelet.class_cgroup(Qos::Burstable)];
    cgroups.extend(pods.iter().map(|pod| pod.cgroup.clone()));
    let others = || -> Result<String> {
        let files: String = cgroups
            .iter()
            .flat_map(|group| OTHERS.map(|name| format!(" {}", file(group, name))))
            .collect();
        Ok(node.run(&format!("grep . {files}"))?.stdout)
    };
    let before = others()?;
    placement::until_synchronised(node, "systemctl start plimsoll")?;
    reached(node, &format!("{driver}: protection"), "", &expected(&kubelet, Policy::Hard, &pods))?;
    // The values must also survive a daemon-reload, after which systemd handles all units again.
    let reloaded = expected(&kubelet, Policy::Hard, &pods);
    settled(node, &format!("{driver}: daemon-reload"), "systemctl daemon-reload", &reloaded)?;
    assert_eq!(others()?, before);
    Ok(())
}

/// Cgroup files that the plugin's protection must not change.
const OTHERS: [&str; 6] =
    ["memory.high", "memory.max", "memory.swap.max", "cpu.max", "cpu.weight", "pids.max"];

fn persistent_writers_are_reported_once_and_ignored(node: &Node, driver: Driver) -> Result<()> {
    let mut kubelet = Kubelet::start(node, driver)?;
    let pods = two_pods(&mut kubelet)?;
    let sum: u64 = pods.iter().map(Pod::live_request).sum();
    let contended = file(kubelet.top_cgroup(), "memory.min");
    settled(node, &format!("{driver}: two pods"), "", &expected(&kubelet, Policy::Hard, &pods))?;
    // Before the writer undoes a repair, it adds a line to /run/repairs.
    let unit = format!("writer-{driver}");
    let writer = format!(
        "echo -n >/run/repairs; systemd-run --quiet --collect --unit {unit} bash -c 'while sleep 0.3; do
             read -r value <{contended}; [ $value = 0 ] || {{ echo >>/run/repairs; echo 0 >{contended}; }}
         done'"
    );
    let so_far = journal(node, 0)?.len();
    placement::wait_for_journal(node, "plimsoll", "outcome=contended", &writer)?;
    let repairs = || -> Result<usize> { Ok(node.read("/run/repairs")?.lines().count()) };
    let mut lines = journal(node, so_far)?;
    lines.retain(|line| line.contains("outcome=contended"));
    let [line] = &lines[..] else {
        anyhow::bail!("the plugin must report one message, but reported {lines:#?}")
    };
    for part in
        [kubelet.top_cgroup(), "memory.min", &format!("desired={sum}"), "observed=0", "repairs="]
    {
        assert!(line.contains(part), "the message must contain {part:?}: {line:?}");
    }
    let repaired = repairs()?;
    assert!((1..=10).contains(&repaired), "repaired {repaired} times");
    // The writer continues. The plugin sleeps and ignores the writer, so the conflict costs no
    // processor time.
    let woken = node.run(
        "woken() { awk '/^voluntary_ctxt_switches/ { sum += $2 } END { print sum }' /proc/$1/task/*/status; }
         process=$(systemctl show plimsoll --property MainPID --value)
         before=$(woken $process); sleep 3; echo $(($(woken $process) - before))",
    )?;
    let woken: u64 = woken.stdout.trim().parse().context("reading the number of wakeups")?;
    println!("{} {driver}: {repaired} repairs, then woken {woken} times in 3 s", node.runtime());
    assert!(woken < 100, "the plugin must not wake up more than 100 times in 3 s: {woken}");
    assert_eq!(repairs()?, repaired);
    // The plugin still repairs the other cgroups above containers.
    let class = file(&kubelet.class_cgroup(Qos::Burstable), "memory.min");
    let others = expected(&kubelet, Policy::Hard, &pods);
    let others: Vec<Expected> =
        others.into_iter().filter(|file| file.cgroup != kubelet.top_cgroup()).collect();
    settled(
        node,
        &format!("{driver}: beside the contention"),
        &format!("echo 0 > {class}"),
        &others,
    )?;
    node.run(&format!("systemctl stop {unit}; rm /run/repairs"))?;
    placement::restart_plugin(node)?;
    reached(node, &format!("{driver}: after it"), "", &expected(&kubelet, Policy::Hard, &pods))
}

fn another_plugin_may_claim_the_same_key(node: &Node, driver: Driver) -> Result<()> {
    let mut kubelet = Kubelet::start(node, driver)?;
    let theirs = 50 * MIB;
    let high = stories::memory_high(32 * MIB, 96 * MIB);
    for (key, name) in [("memory.high", "high"), ("memory.min", "min")] {
        let so_far = journal(node, 0)?.len();
        placement::claim(node, Path::new(env!("CARGO_BIN_EXE_claimer")), key, &theirs.to_string())?;
        let pod = kubelet
            .run_pod(PodSpec::new(name).container(app().request(32 * MIB).limit(96 * MIB)))?;
        placement::unclaim(node)?;
        let container = pod.container("app")?;
        let said = journal(node, so_far)?;
        assert!(
            said.iter().any(|line| line.contains("has set this") && line.contains(key)),
            "a message must name {key}: {said:#?}"
        );
        // The runtime refuses to create a container if two plugins set the same key, so the plugin
        // omits the key. The plugin sets its own value once the container runs.
        let own = [("memory.min", 32 * MIB), ("memory.high", high)];
        let own = own.map(|(key, value)| Expected::new(&container.cgroup, key, value));
        reached(node, &format!("{driver}: {key} is claimed"), "", &own)?;
        settled(
            node,
            &format!("{driver}: the pod's sum"),
            "",
            &[Expected::new(&pod.cgroup, "memory.min", 32 * MIB)],
        )?;
        kubelet.remove_pod(&pod)?;
    }
    Ok(())
}

/// Returns a pod of a random QoS class. The pod is so small that all pods of a test fit on the
/// node.
fn random_pod(random: &mut Random, turn: u64) -> PodSpec {
    let mut spec = PodSpec::new(&format!("pod-{turn}"));
    let request = (1 + random.below(16)) * 64 * 4096;
    let class = random.below(4);
    if class > 0 && random.below(3) == 0 {
        spec = spec.overhead((1 + random.below(8)) * 4096);
    }
    match class {
        0 => spec.container(app()),
        1 => spec.container(app().limit(16 * MIB + request).cpu(100)),
        2 => spec.container(app().request(request).limit(request + 16 * MIB)),
        _ => spec.container(app().request(request)),
    }
}

/// Runs batches of random pods. After each batch, the function may resize one pod and then removes
/// `batch - 1` pods. Returns the pods that remain.
fn churn(
    kubelet: &mut Kubelet<'_>,
    random: &mut Random,
    batches: u64,
    batch: u64,
) -> Result<Vec<Pod>> {
    let mut pods: Vec<Pod> = Vec::new();
    for turn in 0..batches {
        let specs = (0..batch).map(|index| random_pod(random, turn * batch + index)).collect();
        pods.extend(kubelet.run_pods(specs)?);
        let resized = random.below(pods.len() as u64) as usize;
        let pod = &mut pods[resized];
        if pod.spec.qos() == Qos::Burstable && pod.spec.memory_limit().is_some() {
            kubelet.resize(pod, "app", Some(5 * MIB), Some(30 * MIB))?;
        }
        let mut gone = Vec::new();
        for _ in 0..batch - 1 {
            gone.push(pods.swap_remove(random.below(pods.len() as u64) as usize));
        }
        kubelet.remove_pods(&gone)?;
    }
    Ok(pods)
}

/// Lists files in which systemd keeps memory.min or memory.low for units of removed pods.
fn leftovers(node: &Node) -> Result<String> {
    let script = "[ -d /run/systemd/system.control ] || exit 0
         { grep -lrE 'Memory(Min|Low)=' /run/systemd/system.control || true; } | while read -r file; do
             unit=$(basename $(dirname $file) .d)
             if [ \"$(systemctl show $unit --property ActiveState --value)\" != active ]; then echo $file; fi
         done";
    Ok(node.run(script)?.stdout)
}

fn sums_are_exact_after_random_pod_churn(node: &Node, driver: Driver) -> Result<()> {
    let mut kubelet = Kubelet::start(node, driver)?;
    let seed = 20_260_000 + driver as u64;
    let pods = churn(&mut kubelet, &mut Random::new(seed), 3, 4)
        .with_context(|| format!("seed {seed}"))?;
    settled(
        node,
        &format!("{driver}: churn, seed {seed}"),
        "",
        &expected(&kubelet, Policy::Hard, &pods),
    )?;
    assert_eq!(leftovers(node)?, "");
    // Remove eight pods at a time. If a runtime stops many pods at once, the stop of each pod takes
    // longer.
    pods.chunks(8).try_for_each(|some| kubelet.remove_pods(some))?;
    settled(node, &format!("{driver}: all gone"), "", &expected(&kubelet, Policy::Hard, []))?;
    assert_eq!(leftovers(node)?, "");
    Ok(())
}

fn values_converge_after_repeated_plugin_kills(node: &Node, driver: Driver) -> Result<()> {
    let mut kubelet = Kubelet::start(node, driver)?;
    // systemd restarts the plugin one second after a kill.
    node.run(
        "systemd-run --quiet --collect --unit killer \
         bash -c 'while sleep 1.$((RANDOM % 10)); do systemctl kill --signal KILL plimsoll; done'",
    )?;
    let pods = churn(&mut kubelet, &mut Random::new(7), 2, 3);
    placement::until_synchronised(node, "systemctl stop killer; systemctl restart plimsoll")?;
    reached(
        node,
        &format!("{driver}: killed during churn"),
        "",
        &expected(&kubelet, Policy::Hard, &pods?),
    )?;
    assert_eq!(leftovers(node)?, "");
    Ok(())
}

fn restore_takes_everything_back(node: &Node, driver: Driver) -> Result<()> {
    let mut kubelet = Kubelet::start(node, driver)?;
    let pods = two_pods(&mut kubelet)?;
    let ours = expected(&kubelet, Policy::Hard, &pods);
    settled(node, &format!("{driver}: two pods"), "", &ours)?;
    // The kernel's defaults, as in the control group.
    let mut default = ours.clone();
    for pod in &pods {
        default.push(Expected::new(&pod.container("app")?.cgroup, "memory.high", MAX));
    }
    for file in default.iter_mut().filter(|file| file.file != "memory.high") {
        file.value = 0;
    }
    let lives = || -> Result<_> {
        let groups: Vec<&str> = pods.iter().map(|pod| pod.containers[0].cgroup.as_str()).collect();
        let limits =
            cgroup::memory(node, &groups)?.into_iter().map(|memory| (memory.max, memory.swap_max));
        let files = groups.iter().flat_map(|group| {
            let files = ["container/cgroup.procs", "cgroup.procs", "cpu.max", "cpu.weight"];
            files.map(|name| format!(" {}", file(group, name)))
        });
        // With crun the processes are in a child cgroup of the scope, and with runc in the scope
        // itself.
        let files = node.run(&format!("grep -s . {} || true", files.collect::<String>()))?.stdout;
        Ok((limits.collect::<Vec<_>>(), files))
    };
    let before = lives()?;
    let changed = |output: &str| output.lines().filter(|line| line.contains("memory.")).count();

    // Restore while the plugin runs.
    let said = node.run("plimsoll restore")?.stdout;
    println!("{said}");
    for group in [kubelet.top_cgroup(), &pods[0].cgroup, &pods[1].containers[0].cgroup] {
        assert!(
            said.lines().any(|line| line.contains(group)),
            "the output must name {group}:\n{said}"
        );
    }
    reached(node, &format!("{driver}: restored beside the plugin"), "", &default)?;
    for pod in &pods {
        let inspected = crictl::inspect(node, &pod.container("app")?.id)?;
        for (key, default) in [("memory.min", "0"), ("memory.low", "0"), ("memory.high", "max")] {
            let stored =
                crictl::stored_unified(&inspected)[key].as_str().unwrap_or(default).to_owned();
            assert_eq!(stored, default, "{key} of {}", pod.spec.name);
        }
    }
    assert_eq!(
        changed(&node.run("plimsoll restore")?.stdout),
        0,
        "a second restore must change nothing"
    );
    // After a restart, the plugin still sets nothing. An update of a container also sets no value.
    placement::restart_plugin(node)?;
    let update =
        format!("crictl update --memory {} {} >/dev/null", 96 * MIB, pods[1].container("app")?.id);
    settled(node, &format!("{driver}: the plugin stands aside"), &update, &default)?;
    reached(node, &format!("{driver}: restore undone"), "plimsoll restore --undo", &ours)?;

    // Restore without a running plugin, after a new program has replaced the program file.
    let replace = format!(
        "cp {EXTERNAL_BINARY} {EXTERNAL_BINARY}.new; mv {EXTERNAL_BINARY}.new {EXTERNAL_BINARY}"
    );
    let said = node.run(&format!("{replace}; systemctl stop plimsoll; plimsoll restore"))?.stdout;
    assert!(changed(&said) > 0, "{said}");
    let reload = if driver == Driver::Systemd { "systemctl daemon-reload" } else { "" };
    reached(node, &format!("{driver}: restored without the plugin"), reload, &default)?;
    assert_eq!(leftovers(node)?, "");
    assert_eq!(lives()?, before, "values of other writers must not change");
    placement::until_synchronised(node, "systemctl start plimsoll")?;
    reached(node, &format!("{driver}: started after restore"), "", &default)?;
    reached(node, &format!("{driver}: restore undone again"), "plimsoll restore --undo", &ours)
}

fn reserved_cgroups_follow_configuration_and_restore(node: &Node, driver: Driver) -> Result<()> {
    let _kubelet = Kubelet::start(node, driver)?;
    let reserved = |bytes| [Expected::new("system.slice", "memory.min", bytes)];
    let configure = "systemReservedCgroup: /system.slice\nsystemReserved: {memory: 100Mi}\n";
    node.write_file(CONFIG, configure, 0o644)?;
    reached(node, &format!("{driver}: reserved"), "", &reserved(100 * MIB))?;
    for writer in ["systemctl daemon-reload", "echo 0 > /sys/fs/cgroup/system.slice/memory.min"] {
        settled(node, &format!("{driver}: reserved, {writer}"), writer, &reserved(100 * MIB))?;
    }
    reached(node, &format!("{driver}: restored"), "plimsoll restore", &reserved(0))?;
    reached(node, &format!("{driver}: undone"), "plimsoll restore --undo", &reserved(100 * MIB))?;
    node.write_file(CONFIG, config(), 0o644)?;
    reached(node, &format!("{driver}: no longer reserved"), "systemctl daemon-reload", &reserved(0))
}

fn the_guard_confines_oom_kills_to_pods(node: &Node, driver: Driver) -> Result<()> {
    let mut kubelet = Kubelet::start(node, driver)?;
    let kept = 400 * MIB;
    let line = (kubelet.capacity() - kept) / 4096 * 4096;
    let guarded = [
        Expected::new(kubelet.top_cgroup(), "memory.max", line),
        Expected::new("system.slice", "memory.min", kept / 4 * 3),
    ];
    node.write_file(CONFIG, "nodeGuard: 400Mi\n", 0o644)?;
    reached(node, &format!("{driver}: memory is kept from pods"), "", &guarded)?;
    let balloon = stories::balloon(&mut kubelet, node, 0)?;
    println!("{} {driver}: with nodeGuard: {balloon:?}", node.runtime());
    assert_eq!(balloon.node_kills, 0, "{balloon:?}");
    let top = format!("/{}", kubelet.top_cgroup());
    assert!(
        !balloon.limit_kills.is_empty() && balloon.limit_kills.iter().all(|by| *by == top),
        "{balloon:?}"
    );
    assert!(["a", "b"].iter().all(|within| balloon.alive.contains(within)), "{balloon:?}");
    assert_eq!((balloon.runtime.failures, balloon.service.failures), (0, 0), "{balloon:?}");
    // A measurement showed 2 and 9 pages with nodeGuard, and 24,000 and more pages without
    // nodeGuard. The test does not check times, because they depend on the load of this machine.
    assert!(
        balloon.refaults < 2048,
        "the kernel must not reclaim the system's page cache: {balloon:?}"
    );

    // The node guard's values must be set again soon after systemd or a restarted kubelet writes
    // its own values.
    for (what, script) in [
        ("daemon-reload", "systemctl daemon-reload".to_owned()),
        ("the kubelet's update", kubelet.qos_update()),
    ] {
        settled(node, &format!("{driver}: {what}"), &script, &guarded)?;
    }
    kubelet.limit_pods(kubelet.capacity() - 10 * MIB)?;
    reached(node, &format!("{driver}: a higher limit"), "", &guarded)?;
    let lower = [Expected::new(kubelet.top_cgroup(), "memory.max", 900 * MIB), guarded[1].clone()];
    kubelet.limit_pods(900 * MIB)?;
    settled(node, &format!("{driver}: a lower limit"), "", &lower)?;
    kubelet.update_qos_classes()?;
    reached(node, &format!("{driver}: the kubelet's own again"), "", &guarded)?;

    // Without nodeGuard the plugin restores the previous values.
    node.write_file(CONFIG, config(), 0o644)?;
    let before = [
        Expected::new(
            kubelet.top_cgroup(),
            "memory.max",
            (kubelet.capacity() - SYSTEM_RESERVED) / 4096 * 4096,
        ),
        Expected::new("system.slice", "memory.min", 0),
    ];
    reached(node, &format!("{driver}: nothing is kept any more"), "", &before)
}
