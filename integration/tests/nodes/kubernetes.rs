//! Tests of the scenarios in docs/kubernetes.md with the output of kubectl. The tests use a real
//! kubelet, a real API server and the published DaemonSet. Scenarios that end differently without
//! Plimsoll also run without Plimsoll.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use integration::cluster::{Cluster, Plimsoll};
use integration::kubelet::MIB;
use integration::probe::cgroup::{self, Expected, MAX};
use integration::stories::memory_high;

/// Configuration of the DaemonSet. `nodeGuard` is the kubelet's `systemReserved` (400 MiB) plus the
/// kubelet's hard eviction threshold (100 MiB). Services of the system use 300 MiB.
const CONFIG: &str = "nodeGuard: 500Mi\n";

/// Memory request of the DaemonSet's own pod, in bytes.
const OWN_REQUEST: u64 = 32 * MIB;

const BURSTABLE: &str = "kubepods.slice/kubepods-burstable.slice";

/// Timeout for steps that the kubelet does within seconds or with its next retry. On a busy
/// machine, these steps take minutes.
const PATIENCE: &str = "--timeout=300s";

/// Creates the pods of a file in `manifests/` and waits until these pods are ready.
fn apply(cluster: &Cluster, file: &str, pods: &[&str]) {
    let mut script = String::from("cd /run; ");
    for pod in pods {
        script += &format!(
            "rm -rf control/{pod}; mkdir -p control/{pod}; mkfifo control/{pod}/started; "
        );
    }
    cluster.node().run(&script).unwrap();
    let path = format!("{}/manifests/{file}", env!("CARGO_MANIFEST_DIR"));
    cluster.kubectl(&["apply", "-f", &path]).unwrap();
    let pods = pods.iter().map(|pod| format!("pod/{pod}")).collect::<Vec<_>>();
    let mut arguments = vec!["wait", "--for=condition=Ready", PATIENCE];
    arguments.extend(pods.iter().map(String::as_str));
    cluster.kubectl(&arguments).unwrap();
}

/// Sends a command to the workload in a pod and returns the answer.
fn call(cluster: &Cluster, pod: &str, command: &str) -> String {
    let answer =
        cluster.node().try_run(&format!("workload call /run/control/{pod} {command}")).unwrap();
    answer.stdout.trim().to_owned()
}

/// Returns a field of a pod from the API server.
fn field(cluster: &Cluster, pod: &str, path: &str) -> String {
    cluster.kubectl(&["get", "pod", pod, "--output", &format!("jsonpath={{{path}}}")]).unwrap()
}

fn restarts(cluster: &Cluster, pod: &str) -> u32 {
    field(cluster, pod, ".status.containerStatuses[0].restartCount").parse().unwrap()
}

/// Waits until a field of a pod has this value.
fn until(cluster: &Cluster, pod: &str, path: &str, value: &str) {
    let condition = format!("--for=jsonpath={{{path}}}={value}");
    cluster.kubectl(&["wait", PATIENCE, &condition, &format!("pod/{pod}")]).unwrap();
}

const IN_PROGRESS: &str = ".status.conditions[?(@.type==\"PodResizeInProgress\")]";
const LIMIT: &str = ".status.containerStatuses[0].resources.limits.memory";

fn resize(cluster: &Cluster, pod: &str, limit: &str) {
    let patch = format!(
        r#"{{"spec":{{"containers":[{{"name":"app","resources":{{"limits":{{"memory":"{limit}"}}}}}}]}}}}"#
    );
    cluster.kubectl(&["patch", "pod", pod, "--subresource", "resize", "--patch", &patch]).unwrap();
}

/// Waits until kubectl shows the new limit and no longer shows the condition `PodResizeInProgress`.
fn until_resized(cluster: &Cluster, pod: &str, limit: &str) {
    until_resized_at(cluster, pod, LIMIT, limit);
}

fn until_resized_at(cluster: &Cluster, pod: &str, field: &str, limit: &str) {
    until(cluster, pod, field, limit);
    let path = format!("jsonpath={{{field}}} {{{IN_PROGRESS}.type}}{{\"\\n\"}}");
    cluster
        .watch(&["get", "pod", pod, "--output", &path], |line| line.trim_end() == limit)
        .unwrap();
}

/// Waits until the kubelet has failed to resize a pod with a message that contains `because`.
fn until_refused(cluster: &Cluster, pod: &str, because: &str) {
    let path = format!("jsonpath={{{IN_PROGRESS}.reason}}: {{{IN_PROGRESS}.message}}{{\"\\n\"}}");
    cluster
        .watch(&["get", "pod", pod, "--output", &path], |line| {
            line.starts_with("Error: ") && line.contains(because)
        })
        .unwrap();
}

/// Waits for an Event of a pod with this reason, whose message contains `text`. Returns the
/// reporting component, the type and the message.
fn event(cluster: &Cluster, pod: &str, reason: &str, text: &str) -> String {
    let selector = format!("involvedObject.name={pod},reason={reason}");
    let path = "jsonpath={.reportingComponent} {.type}: {.message}{\"\\n\"}";
    let arguments = ["get", "events", "--field-selector", &selector, "--output", path];
    cluster.watch(&arguments, |line| line.contains(text)).unwrap()
}

/// Returns the cgroups of a pod and of its first container.
fn cgroups(cluster: &Cluster, pod: &str) -> [String; 2] {
    let uid = field(cluster, pod, ".metadata.uid").replace('-', "_");
    let id = field(cluster, pod, ".status.containerStatuses[0].containerID");
    let id = id.strip_prefix("containerd://").unwrap();
    let pod = format!("{BURSTABLE}/kubepods-burstable-pod{uid}.slice");
    let container = format!("{pod}/cri-containerd-{id}.scope");
    [pod, container]
}

/// Waits until cgroup files have these values.
fn settle(cluster: &Cluster, expected: &[(&str, &'static str, u64)]) {
    let expected: Vec<_> =
        expected.iter().map(|&(cgroup, file, value)| Expected::new(cgroup, file, value)).collect();
    cgroup::settle(cluster.node(), "", &expected, Duration::ZERO, Duration::from_secs(60)).unwrap();
}

/// Lets the container `stress` use 150 MiB. Returns the smallest limit in whole MiB that is at
/// least 1 MiB above the usage of the pod. The kubelet accepts this limit. Plimsoll refuses the
/// limit, because 1/25 of a limit must stay free.
fn fill(cluster: &Cluster, pod: &str) -> u64 {
    assert!(call(cluster, "stress", &format!("alloc {}", 150 * MIB)).starts_with("ok"));
    // Reclaim memory first. Without this reclaim, Plimsoll could later reclaim enough memory to
    // accept the limit.
    let root = cgroup::ROOT;
    let script =
        format!("echo 64M > {root}/{pod}/memory.reclaim || true; cat {root}/{pod}/memory.current");
    let used: u64 = cluster.node().run(&script).unwrap().stdout.trim().parse().unwrap();
    used.div_ceil(MIB) + 1
}

mod alone {
    use super::*;

    #[test]
    fn a_tight_decrease_kills_later_without_plimsoll() {
        Cluster::with(&Plimsoll::Absent, |cluster| {
            apply(cluster, "stress.yaml", &["stress"]);
            let [pod, container] = cgroups(cluster, "stress");
            settle(
                cluster,
                &[
                    (&container, "memory.min", 0),
                    (&container, "memory.high", MAX),
                    (&pod, "memory.min", 0),
                ],
            );
            let tight = fill(cluster, &pod);
            resize(cluster, "stress", &format!("{tight}Mi"));
            until_resized(cluster, "stress", &format!("{tight}Mi"));
            settle(
                cluster,
                &[(&container, "memory.max", tight * MIB), (&pod, "memory.max", tight * MIB)],
            );
            assert_eq!(restarts(cluster, "stress"), 0);
            assert_eq!(call(cluster, "stress", &format!("alloc {}", 5 * MIB)), "gone");
            until(
                cluster,
                "stress",
                ".status.containerStatuses[0].lastState.terminated.reason",
                "OOMKilled",
            );
            assert_eq!(restarts(cluster, "stress"), 1);
        });
    }
}

mod plimsoll {
    use super::*;

    #[test]
    fn pod_values_follow_resizes_except_killing_decreases() {
        Cluster::with(&Plimsoll::Deployed(CONFIG), |cluster| {
            apply(cluster, "stress.yaml", &["stress"]);
            let [pod, container] = cgroups(cluster, "stress");
            settle(
                cluster,
                &[
                    (&container, "memory.min", 100 * MIB),
                    (&container, "memory.high", memory_high(100 * MIB, 200 * MIB)),
                    (&container, "memory.max", 200 * MIB),
                    (&pod, "memory.min", 100 * MIB),
                    (&pod, "memory.high", MAX),
                    (&pod, "memory.max", 200 * MIB),
                    (BURSTABLE, "memory.min", 100 * MIB + OWN_REQUEST),
                    ("kubepods.slice", "memory.min", 100 * MIB + OWN_REQUEST),
                ],
            );
            resize(cluster, "stress", "300Mi");
            until_resized(cluster, "stress", "300Mi");
            settle(
                cluster,
                &[
                    (&container, "memory.high", memory_high(100 * MIB, 300 * MIB)),
                    (&container, "memory.max", 300 * MIB),
                    (&pod, "memory.max", 300 * MIB),
                ],
            );

            let tight = fill(cluster, &pod);
            // The kubelet itself refuses a limit below the usage and does not ask the runtime.
            resize(cluster, "stress", "120Mi");
            until_refused(cluster, "stress", "below current usage");
            // The kubelet accepts a limit slightly above the usage, but Plimsoll refuses the limit.
            resize(cluster, "stress", &format!("{tight}Mi"));
            until_refused(cluster, "stress", "plimsoll");
            let kubelets = event(cluster, "stress", "ResizeError", "plimsoll");
            assert!(kubelets.starts_with("kubelet Warning: "), "{kubelets}");
            let ours = event(cluster, "stress", "CutRejected", "rejected");
            let note = format!(
                "plimsoll Warning: container app: rejected a memory limit decrease from 300Mi to {tight}Mi"
            );
            assert!(ours.starts_with(&note), "{ours}");
            let described = cluster.kubectl(&["describe", "pod", "stress"]).unwrap();
            assert!(
                described
                    .lines()
                    .any(|line| line.contains("CutRejected") && line.contains("plimsoll")),
                "{described}"
            );
            settle(
                cluster,
                &[(&container, "memory.max", 300 * MIB), (&pod, "memory.max", 300 * MIB)],
            );
            assert!(call(cluster, "stress", &format!("alloc {}", 5 * MIB)).starts_with("ok"));
            assert_eq!(restarts(cluster, "stress"), 0);

            // Once the container has freed memory, the kubelet's next attempt succeeds.
            assert!(call(cluster, "stress", "free").starts_with("ok"));
            until_resized(cluster, "stress", &format!("{tight}Mi"));
            settle(
                cluster,
                &[(&container, "memory.max", tight * MIB), (&pod, "memory.max", tight * MIB)],
            );
            assert_eq!(restarts(cluster, "stress"), 0);
        });
    }
}

/// Scenarios that run only in `hack/check full`. Each scenario takes minutes on an emulated node
/// with a kubelet.
#[cfg(feature = "every-combination")]
mod more {
    use super::*;

    const CPU_REQUEST: &str = ".status.containerStatuses[0].resources.requests.cpu";

    /// Resizes the CPU request of a pod's container in place.
    fn resize_cpu(cluster: &Cluster, pod: &str, request: &str) {
        let patch = format!(
            r#"{{"spec":{{"containers":[{{"name":"app","resources":{{"requests":{{"cpu":"{request}"}}}}}}]}}}}"#
        );
        cluster
            .kubectl(&["patch", "pod", pod, "--subresource", "resize", "--patch", &patch])
            .unwrap();
    }

    /// Returns the log lines of Plimsoll's container.
    fn logged(cluster: &Cluster) -> Vec<String> {
        let log = cluster
            .node()
            .run("crictl logs $(crictl ps --quiet --name '^plimsoll$') 2>&1")
            .unwrap()
            .stdout;
        log.lines().map(str::to_owned).collect()
    }

    /// Field with the current memory limit at pod level, for all containers of the pod together.
    const POD_LIMIT: &str = ".status.resources.limits.memory";

    fn resize_shared(cluster: &Cluster, limit: &str) {
        let patch = format!(r#"{{"spec":{{"resources":{{"limits":{{"memory":"{limit}"}}}}}}}}"#);
        cluster
            .kubectl(&["patch", "pod", "shared", "--subresource", "resize", "--patch", &patch])
            .unwrap();
    }

    /// Creates the pod `shared`, lets it use 130 MiB and returns its cgroup.
    fn shared(cluster: &Cluster) -> String {
        apply(cluster, "shared.yaml", &["shared"]);
        let [pod, container] = cgroups(cluster, "shared");
        settle(cluster, &[(&pod, "memory.max", 200 * MIB), (&container, "memory.max", 110 * MIB)]);
        assert!(call(cluster, "shared", &format!("alloc {}", 80 * MIB)).starts_with("ok"));
        pod
    }

    mod alone {
        use super::*;

        /// If the user changes only the pod-level limit, the kubelet does not check the usage.
        #[test]
        fn pod_limit_below_usage_kills_without_plimsoll() {
            Cluster::with(&Plimsoll::Absent, |cluster| {
                shared(cluster);
                resize_shared(cluster, "115Mi");
                let ended =
                    "jsonpath={.status.containerStatuses[*].lastState.terminated.reason}{\"\\n\"}";
                cluster
                    .watch(&["get", "pod", "shared", "--output", ended], |line| {
                        line.contains("OOMKilled")
                    })
                    .unwrap();
            });
        }
    }

    mod plimsoll {
        use super::*;

        #[test]
        fn limit_increase_during_backoff_ends_crash_loop() {
            Cluster::with(&Plimsoll::Deployed(CONFIG), |cluster| {
                let path = format!("{}/manifests/hungry.yaml", env!("CARGO_MANIFEST_DIR"));
                cluster.kubectl(&["apply", "-f", &path]).unwrap();
                // After the second restart the container is down for 20 seconds.
                let state = "jsonpath={.status.containerStatuses[0]['restartCount', 'state.terminated.reason', 'state.waiting.reason']}{\"\\n\"}";
                let is_down =
                    |line: &str| ["2 OOMKilled", "2 CrashLoopBackOff"].contains(&line.trim_end());
                cluster.watch(&["get", "pod", "hungry", "--output", state], is_down).unwrap();
                let [pod, _] = cgroups(cluster, "hungry");
                settle(cluster, &[(&pod, "memory.max", 100 * MIB)]);
                resize(cluster, "hungry", "200Mi");
                until_resized(cluster, "hungry", "200Mi");
                // Wait until a container has all the memory that it needs. On a slow machine the
                // kubelet restarts the container one more time before the resize. The kernel then
                // OOM-kills the container one more time.
                let root = cgroup::ROOT;
                let script = format!(
                    "timeout 110 sh -c 'until awk \"/^anon / && \\$2 >= {} {{ print FILENAME; found = 1; exit }} END {{ exit !found }}\" \
                         {root}/{pod}/cri-containerd-*.scope/memory.stat 2>/dev/null; do sleep 0.1; done'",
                    128 * MIB
                );
                let stat = cluster.node().run(&script).unwrap().stdout;
                let container = stat
                    .trim()
                    .strip_prefix(&format!("{root}/"))
                    .unwrap()
                    .strip_suffix("/memory.stat")
                    .unwrap();
                until(cluster, "hungry", ".status.containerStatuses[0].ready", "true");
                let before = restarts(cluster, "hungry");
                assert!(before >= 3, "{before}");
                settle(
                    cluster,
                    &[
                        (&pod, "memory.max", 200 * MIB),
                        (container, "memory.max", 200 * MIB),
                        (container, "memory.min", 32 * MIB),
                        (container, "memory.high", memory_high(32 * MIB, 200 * MIB)),
                    ],
                );
                // After this wait, the kernel does not kill the container again.
                assert_eq!(cgroups(cluster, "hungry"), [pod, container.to_owned()]);
                assert_eq!(restarts(cluster, "hungry"), before);
            });
        }

        /// With each update, a kubelet in its default configuration sends the kernel's default
        /// values of memory files.
        #[test]
        fn memory_values_survive_cpu_resizes_without_contention() {
            Cluster::with(&Plimsoll::Deployed(CONFIG), |cluster| {
                apply(cluster, "stress.yaml", &["stress"]);
                let [_, container] = cgroups(cluster, "stress");
                let own: [(&str, &'static str, u64); 3] = [
                    (&container, "memory.min", 100 * MIB),
                    (&container, "memory.high", memory_high(100 * MIB, 200 * MIB)),
                    (&container, "memory.max", 200 * MIB),
                ];
                settle(cluster, &own);
                let before = logged(cluster).len();
                for hundredths in 11..=17 {
                    let request = format!("{}m", 10 * hundredths);
                    resize_cpu(cluster, "stress", &request);
                    until_resized_at(cluster, "stress", CPU_REQUEST, &request);
                }
                settle(cluster, &own);
                assert_eq!(restarts(cluster, "stress"), 0);
                let said = logged(cluster).split_off(before);
                let updates = said
                    .iter()
                    .filter(|line| line.contains("update") && line.contains("default/stress"))
                    .count();
                assert!(updates >= 7, "{updates} updates: {said:#?}");
                assert!(said.iter().all(|line| !line.contains("contended")), "{said:#?}");
            });
        }

        #[test]
        fn refused_pod_limit_decrease_succeeds_after_freeing() {
            Cluster::with(&Plimsoll::Deployed(CONFIG), |cluster| {
                let pod = shared(cluster);
                resize_shared(cluster, "115Mi");
                until_refused(cluster, "shared", "memory limit of the pod not lowered");
                let ours = event(cluster, "shared", "CutRejected", "rejected");
                assert!(ours.starts_with("plimsoll Warning: "), "{ours}");
                settle(cluster, &[(&pod, "memory.max", 200 * MIB)]);
                assert!(call(cluster, "shared", &format!("alloc {}", 5 * MIB)).starts_with("ok"));
                assert_eq!(restarts(cluster, "shared"), 0);

                // Once the pod has freed memory, the kubelet's next attempt succeeds.
                assert!(call(cluster, "shared", "free").starts_with("ok"));
                until_resized_at(cluster, "shared", POD_LIMIT, "115Mi");
                settle(cluster, &[(&pod, "memory.max", 115 * MIB)]);
                assert_eq!(restarts(cluster, "shared"), 0);
            });
        }

        #[test]
        fn overcommit_kills_only_pods_above_their_requests() {
            const USE: [(&str, u64); 5] =
                [("a", 150), ("b", 75), ("c", 640), ("d", 300), ("e", 300)];
            Cluster::with(&Plimsoll::Deployed(CONFIG), |cluster| {
                apply(cluster, "pods.yaml", &USE.map(|(name, _)| name));
                let memory = cluster
                    .node()
                    .run("awk '$1 == \"MemTotal:\" { printf \"%d\", $2 * 1024 }' /proc/meminfo")
                    .unwrap();
                let memory: u64 = memory.stdout.trim().parse().unwrap();
                let requests = 5 * 80 * MIB + 80 * MIB + OWN_REQUEST;
                settle(
                    cluster,
                    &[
                        ("kubepods.slice", "memory.max", memory - 500 * MIB),
                        ("kubepods.slice", "memory.min", requests),
                        ("system.slice", "memory.min", 375 * MIB),
                    ],
                );
                let ready = "jsonpath={.status.conditions[?(@.type==\"Ready\")]['status', 'lastTransitionTime']}";
                let before = cluster.kubectl(&["get", "node", "node", "--output", ready]).unwrap();
                assert!(before.starts_with("True "), "{before}");

                let mut script = String::new();
                for (name, uses) in USE {
                    script += &format!(
                        "workload call /run/control/{name} alloc {} >/dev/null &\n",
                        uses * MIB
                    );
                }
                cluster.node().run(&(script + "wait")).unwrap();

                // The kernel OOM-kills the container of pod c, d or e. The kubelet restarts the
                // container and evicts no pod. The node as a whole is never out of memory.
                let last = "jsonpath={.metadata.name} {.status.containerStatuses[0].lastState.terminated.reason}{\"\\n\"}";
                let killed =
                    |line: &str| ["c OOMKilled", "d OOMKilled", "e OOMKilled"].contains(&line);
                cluster.watch(&["get", "pods", "--output", last], killed).unwrap();
                cluster
                    .kubectl(&["wait", "--for=condition=Ready", PATIENCE, "pods", "--all"])
                    .unwrap();
                for name in ["a", "b"] {
                    assert_eq!(
                        (restarts(cluster, name), call(cluster, name, "touch").starts_with("ok")),
                        (0, true),
                        "{name}"
                    );
                }
                let events = cluster.kubectl(&["get", "events", "--all-namespaces"]).unwrap();
                assert!(!events.contains("SystemOOM") && !events.contains("Evicted"), "{events}");
                assert_eq!(
                    cluster.kubectl(&["get", "node", "node", "--output", ready]).unwrap(),
                    before
                );
            });
        }

        #[test]
        fn the_init_container_enables_disabled_nri() {
            Cluster::with(&Plimsoll::EnablingNri(CONFIG), |cluster| {
                let path =
                    "jsonpath={.items[0].status.initContainerStatuses[0].state.terminated.reason}";
                let pods = [
                    "get",
                    "pods",
                    "--namespace=kube-system",
                    "--selector=app.kubernetes.io/name=plimsoll",
                ];
                let ended = cluster.kubectl(&[&pods[..], &["--output", path]].concat()).unwrap();
                assert_eq!(ended, "Completed");
                apply(cluster, "stress.yaml", &["stress"]);
                let [pod, container] = cgroups(cluster, "stress");
                settle(
                    cluster,
                    &[(&container, "memory.min", 100 * MIB), (&pod, "memory.min", 100 * MIB)],
                );
                // The operator's configuration file is unchanged.
                let off = cluster
                    .node()
                    .run("grep -A 1 nri.v1.nri /etc/containerd/config.toml")
                    .unwrap()
                    .stdout;
                assert!(off.ends_with("disable = true\n"), "{off}");
            });
        }
    }
}
