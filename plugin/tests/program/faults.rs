//! Tests with faults that a temporary directory tree does not cause by itself. strace kills the
//! plugin at its writes and makes system calls fail. Cgroups appear and disappear while the plugin
//! reads the hierarchy.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::harness::{self, Daemon, MIB, Node, Pod, Runtime};
use inotify::{Inotify, WatchMask};
use nri::api::Event;
use rustix::process::Signal;

const KUBEPODS: &str = "kubepods";
const BURSTABLE: &str = "kubepods/burstable";
const KNOBS: [&str; 2] = ["memory.min", "memory.low"];

/// A pod and its memory request in bytes.
type Asking = (Pod, i64);

/// Returns a node with a policy for which the plugin sets both memory.min and memory.low of
/// kubepods. Another program has set memory.low of kubepods before the plugin starts.
fn node() -> (Node, PathBuf) {
    let node = Node::new();
    let config = "nodeAllocatable: 4Gi\nmemoryReservationPolicy: TieredReservation\nmaxLimitRequestRatio: null\n";
    node.write("plimsoll.yaml", config);
    let root = node.path("host/sys/fs/cgroup");
    harness::make_files(&root.join(BURSTABLE), "max");
    harness::make_files(&root.join(KUBEPODS), "max");
    let low = root.join(KUBEPODS).join("memory.low");
    fs::write(&low, before(&low)).unwrap();
    (node, root)
}

/// Returns the content that a file has before the plugin starts.
fn before(file: &Path) -> String {
    if file.ends_with("cgroup/kubepods/memory.low") {
        (7 * MIB).to_string()
    } else {
        "0".to_owned()
    }
}

fn held(file: &Path) -> String {
    fs::read_to_string(file).unwrap().trim_end().to_owned()
}

/// Starts the plugin with a fault in the system calls on these files. `fault` is `CALL:FAULT` in
/// the syntax of strace.
fn start_with_fault(node: &Node, files: &[PathBuf], fault: &str) -> Daemon {
    let (call, _) = fault.split_once(':').unwrap();
    let mut command = Command::new("strace");
    // With -D the child process is the plugin instead of strace. With -f strace traces all threads,
    // because events and the reconcile task have a thread each. strace counts the calls of each
    // thread separately.
    command.args([
        "-D",
        "-f",
        "-y",
        "-e",
        &format!("trace={call}"),
        "-e",
        &format!("inject={fault}"),
    ]);
    command
        .args(files.iter().flat_map(|file| ["-P".as_ref(), file.as_os_str()]))
        .arg("-o")
        .arg(node.path("strace"));
    command
        .arg(env!("CARGO_BIN_EXE_plimsoll"))
        .args(node.arguments())
        .arg("--config")
        .arg(node.path("plimsoll.yaml"));
    Daemon::spawn(command)
}

fn pods(pods: &[Asking]) -> Vec<&Pod> {
    pods.iter().map(|(pod, _)| pod).collect()
}

/// Writes the pods' requests to the checkpoints, as the kubelet does.
fn record(node: &Node, pods: &[Asking]) {
    let entries: Vec<_> =
        pods.iter().map(|(pod, request)| (pod.sandbox.uid.as_str(), "app", *request)).collect();
    node.checkpoint("actuated_pods_state", &entries);
    node.checkpoint("allocated_pods_state", &entries);
}

async fn run_pods(node: &Node, runtime: &Runtime, alive: &mut Vec<Asking>) {
    for (class, uid, request, limit) in
        [("burstable", "a", 100, 400), ("burstable", "b", 60, 400), ("guaranteed", "g", 200, 200)]
    {
        let pod = Pod::new(class, uid, limit * MIB);
        alive.push((pod.clone(), request * MIB));
        record(node, alive);
        // Create the pod's cgroup, but not the container's. On a slow machine the container's
        // cgroup would exist long before the runtime reports the container.
        runtime.make_cgroup_at(&pod.cgroup());
        runtime.run(&pod).await;
    }
}

/// Starts, resizes and ends pods, so that the plugin raises and lowers values of ancestor cgroups.
/// `alive` always contains the pods that exist at the moment.
async fn raise_and_lower(node: &Node, runtime: &mut Runtime, alive: &mut Vec<Asking>) {
    run_pods(node, runtime, alive).await;
    for (index, request) in [(0, 150), (1, 20)] {
        alive[index].1 = request * MIB;
        record(node, alive);
        let pod = &alive[index].0;
        let updated = runtime.update(pod, harness::memory_limit(400 * MIB)).await;
        runtime.apply(pod, &updated);
        runtime.updated(pod).await;
        until_right(runtime, alive).await;
    }
    let (pod, _) = alive.remove(0);
    runtime.end(&pod).await;
}

/// Returns the files of ancestor cgroups whose value differs from the sum of their pods' requests.
fn wrong(root: &Path, alive: &[Asking]) -> Vec<PathBuf> {
    let sum = |level: &str| {
        alive
            .iter()
            .filter(|(pod, _)| pod.cgroup().starts_with(level))
            .map(|(_, request)| request)
            .sum::<i64>()
    };
    let soft = sum(BURSTABLE);
    let mut levels =
        vec![(KUBEPODS.to_owned(), [sum(KUBEPODS), soft]), (BURSTABLE.to_owned(), [0, soft])];
    levels.extend(alive.iter().map(|(pod, request)| {
        let cgroup = pod.cgroup();
        let sums = if cgroup.starts_with(BURSTABLE) { [0, *request] } else { [*request, 0] };
        (cgroup, sums)
    }));
    let files = levels.iter().flat_map(|(level, sums)| {
        KNOBS.map(|knob| root.join(level).join(knob)).into_iter().zip(sums)
    });
    files.filter(|(file, sum)| held(file) != sum.to_string()).map(|(file, _)| file).collect()
}

/// Waits until every cgroup above containers has the right values. Meanwhile the function executes
/// the plugin's requests.
async fn until_right(runtime: &mut Runtime, alive: &[Asking]) {
    let root = runtime.root.clone();
    let looks = async {
        while !wrong(&root, alive).is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let looks = tokio::time::timeout(Duration::from_secs(60), looks);
    let looked = runtime.serve_until(&pods(alive), looks).await;
    assert!(
        looked.is_ok(),
        "{:?}",
        wrong(&root, alive).iter().map(|file| (file, held(file))).collect::<Vec<_>>()
    );
}

/// Checks that no cgroup protects less memory than its children together. Returns memory.min and
/// memory.low of the cgroup.
fn assert_nothing_is_lost(cgroup: &Path) -> [i64; 2] {
    let children = fs::read_dir(cgroup)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir());
    let sums = children.map(|child| assert_nothing_is_lost(&child));
    let [min, low] = sums.fold([0, 0], |sum, child| [sum[0] + child[0], sum[1] + child[1]]);
    let own = KNOBS.map(|knob| held(&cgroup.join(knob)).parse::<i64>().unwrap());
    assert!(
        own[0] >= min && own[1] >= low,
        "{} has {own:?}, what is in it {:?}",
        cgroup.display(),
        [min, low]
    );
    own
}

/// Completes the plugin's last write, which the kill interrupted. In cgroupfs a file keeps its
/// value if a write does not complete. In this test, the file is regular, so the write has already
/// truncated it. A write to the file with the original values may be partial, so this file gets
/// only a part of a line. Another thread may have truncated one of `files`, too.
fn finish_last_write(node: &Node, files: &[PathBuf]) {
    let log = fs::read_to_string(node.path("strace")).unwrap();
    // 71 write(9</sys/fs/cgroup/kubepods/memory.min>, "4096", 4) = 4
    let mut writes: Vec<_> =
        log.lines().filter_map(|line| line.split_once("write(")?.1.split_once('<')).collect();
    let (file, _) = writes.pop().unwrap().1.split_once('>').unwrap();
    let last = |file: &str| {
        let of_file =
            |(_, write): &(_, &str)| write.strip_prefix(file)?.split('"').nth(1).map(str::to_owned);
        writes.iter().rev().find_map(of_file).unwrap_or_else(|| before(Path::new(file)))
    };
    let is_truncated =
        |file: &&PathBuf| !file.ends_with("originals") && file.exists() && held(file).is_empty();
    for file in files.iter().filter(is_truncated) {
        fs::write(file, last(file.to_str().unwrap())).unwrap();
    }
    if file.ends_with("originals") {
        let mut originals = OpenOptions::new().append(true).open(file).unwrap();
        originals.write_all(br#"{"cgroup":"kubepods","inod"#).unwrap();
    }
}

/// Kills the plugin at its nth write, starts it again and checks the result. Returns false if the
/// plugin makes fewer writes.
async fn is_killed_at_write(nth: usize) -> bool {
    let (node, root) = node();
    let levels = [
        KUBEPODS,
        BURSTABLE,
        "kubepods/burstable/poda",
        "kubepods/burstable/podb",
        "kubepods/podg",
    ];
    let levels = levels.iter().flat_map(|level| KNOBS.map(|knob| root.join(level).join(knob)));
    let files: Vec<_> = levels.chain([node.path("host/run/plimsoll/originals")]).collect();
    let daemon = start_with_fault(&node, &files, &format!("write:signal=KILL:when={nth}"));
    let mut runtime = node.accept().await;
    runtime.outlives_plugin = true;
    runtime.synchronize(&[]).await;
    let mut alive = Vec::new();
    let status = tokio::select! {
        status = daemon.ends() => status,
        () = raise_and_lower(&node, &mut runtime, &mut alive) => return false,
    };
    assert_eq!(status.signal(), Some(Signal::KILL.as_raw()), "{status}");
    finish_last_write(&node, &files);
    assert_nothing_is_lost(&root.join(KUBEPODS));

    // The runtime continues without the plugin.
    pods(&alive)
        .into_iter()
        .filter(|pod| !runtime.cgroup(pod).exists())
        .for_each(|pod| runtime.make_cgroup(pod));
    let daemon = node.start();
    let mut runtime = node.accept().await;
    runtime.synchronize(&pods(&alive)).await;
    until_right(&mut runtime, &alive).await;
    assert_nothing_is_lost(&root.join(KUBEPODS));

    // From now on, only the plugin's file `originals` contains the original values.
    daemon.kill().await;
    let mut restore = Command::new(env!("CARGO_BIN_EXE_plimsoll"));
    restore.arg("restore").args(node.arguments().into_iter().skip(1));
    let restored = tokio::task::spawn_blocking(move || restore.output());
    let serve = async {
        let mut runtime = node.accept().await;
        runtime.synchronize(&pods(&alive)).await;
        runtime.serve_until(&pods(&alive), std::future::pending()).await
    };
    let output =
        tokio::select! { output = restored => output.unwrap().unwrap(), never = serve => never };
    assert!(output.status.success(), "{output:?}");
    let containers =
        alive.iter().flat_map(|(pod, _)| KNOBS.map(|knob| runtime.cgroup(pod).join(knob)));
    for file in files
        .into_iter()
        .chain(containers)
        .filter(|file| file.exists() && !file.ends_with("originals"))
    {
        assert_eq!(held(&file), before(&file), "killed at write {nth}: {}", file.display());
    }
    true
}

#[tokio::test]
async fn sigkill_at_any_write_loses_no_protection() {
    let next = AtomicUsize::new(1);
    let rounds = async || while is_killed_at_write(next.fetch_add(1, Ordering::Relaxed)).await {};
    tokio::join!(rounds(), rounds());
    let writes = next.into_inner() - 3;
    assert!(writes > 20, "only {writes}");
}

/// Restores a file's content after each of `failures` failed writes. In cgroupfs a file keeps its
/// value when a write fails. In this test, the write truncates a regular file.
fn keep(file: &Path, failures: usize) {
    let held = held(file);
    let mut inotify = Inotify::init().unwrap();
    inotify.watches().add(file, WatchMask::MODIFY).unwrap();
    // Keep the file open. If the test closed the file, the plugin would get an inotify event.
    let file = OpenOptions::new().write(true).open(file).unwrap();
    std::thread::spawn(move || {
        for _ in 0..failures {
            // A write that succeeds leaves the file empty only for a moment. After a failed write,
            // the file stays empty for `FAULT_DELAY`.
            let is_empty = || file.metadata().unwrap().len() == 0;
            let stays_empty = || {
                std::thread::sleep(FAULT_DELAY / 4);
                is_empty()
            };
            while !(is_empty() && stays_empty()) {
                if !is_empty() {
                    inotify.read_events_blocking(&mut [0; 4096]).unwrap();
                }
            }
            file.write_all_at(held.as_bytes(), 0).unwrap();
        }
    });
}

/// Time for which a failed system call delays the plugin.
const FAULT_DELAY: Duration = Duration::from_millis(200);

/// Number of threads that write to ancestor cgroups: one for events and one for the reconcile task.
const WRITERS: usize = 2;

/// Starts pods while a system call fails for a file of an ancestor cgroup. The first `failures`
/// calls of each thread fail. Returns the plugin's warnings about cgroups whose protection it cannot
/// set.
async fn passing_fault(
    level: &str,
    knob: &str,
    call: &str,
    error: &str,
    failures: usize,
) -> Vec<String> {
    let (node, root) = node();
    let file = root.join(level).join(knob);
    if call == "write" {
        keep(&file, WRITERS * failures);
    }
    // The delay gives `keep` the time to restore the file's content.
    let delay = FAULT_DELAY.as_micros();
    let fault = format!("{call}:error={error}:delay_exit={delay}:when=1..{failures}");
    let mut daemon = start_with_fault(&node, std::slice::from_ref(&file), &fault);
    let mut runtime = node.accept().await;
    runtime.synchronize(&[]).await;
    let mut alive = Vec::new();
    run_pods(&node, &runtime, &mut alive).await;
    let mut unset = wrong(&root, &alive);
    unset.retain(|unset| unset.parent() != file.parent());
    assert!(unset.is_empty(), "the plugin must set {unset:?} in spite of {error}");
    until_right(&mut runtime, &alive).await;
    daemon.signal(Signal::TERM);
    let mut warnings = Vec::new();
    while let Some(line) = daemon.messages.recv().await {
        assert!(!line.contains("another program"), "{error}: {line}");
        // Other warnings are right, too: a container that runs while the file has the wrong value
        // has no protection. The plugin may also have read the file before `keep` restored it, so
        // ignore warnings about an empty file.
        let is_about_file = line.contains("WARN cannot set the protection of a cgroup");
        warnings.extend(Some(line).filter(|line| is_about_file && !line.contains("found ''")));
    }
    let injected = held(&node.path("strace")).matches("(INJECTED)").count();
    assert!((failures..=WRITERS * failures).contains(&injected), "{error}: {injected} faults");
    warnings
}

#[tokio::test]
async fn temporary_errors_are_logged_once_and_retried() {
    let cases = [
        (KUBEPODS, "memory.min", "write", "EBUSY", "Device or resource busy"),
        (BURSTABLE, "memory.low", "write", "EINVAL", "Invalid argument"),
        (KUBEPODS, "memory.low", "write", "EROFS", "Read-only file system"),
        (BURSTABLE, "memory.low", "write", "EACCES", "Permission denied"),
        (KUBEPODS, "memory.min", "read", "EIO", "Input/output error"),
    ];
    let cases = cases.map(|(level, knob, call, error, text)| async move {
        let warnings = passing_fault(level, knob, call, error, 5).await;
        let [line] = &warnings[..] else { panic!("{error}: {warnings:#?}") };
        let cgroup = format!("cgroup=/{level} ");
        for part in [&cgroup, knob, text, "outcome=failed", "Check that"] {
            assert!(line.contains(part), "{part}: {line}");
        }
        assert!(call == "read" || line.contains("desired=104857600"), "{line}");
    });
    futures::future::join_all(cases).await;
    // The kernel returns this error for a cgroup that was just removed.
    assert!(passing_fault(KUBEPODS, "memory.min", "write", "ENODEV", 1).await.is_empty());
}

#[tokio::test]
async fn cgroups_recreated_during_walks_get_their_values() {
    let (node, _) = node();
    let mut daemon = node.start();
    let mut runtime = node.accept().await;
    runtime.synchronize(&[]).await;
    let mut alive = Vec::new();
    run_pods(&node, &runtime, &mut alive).await;
    let containers =
        pods(&alive).into_iter().map(|pod| (runtime.cgroup(pod), runtime.read(pod, "memory.max")));
    let containers: Vec<_> = containers.collect();
    let restless = std::thread::spawn(move || {
        for (container, max) in containers.iter().cycle().take(500) {
            let pod = container.parent().unwrap();
            fs::remove_dir_all(pod).unwrap();
            harness::make_files(pod, "max");
            harness::make_files(container, max);
        }
    });
    let mut walks = 0;
    while walks < 100 || !restless.is_finished() {
        runtime.synchronize(&pods(&alive)).await;
        for pod in pods(&alive) {
            runtime.pod_event(Event::RUN_POD_SANDBOX, pod).await;
            runtime.create(pod).await;
            runtime.started(pod).await;
        }
        walks += 1;
    }
    restless.join().unwrap();
    runtime.synchronize(&pods(&alive)).await;
    until_right(&mut runtime, &alive).await;
    daemon.signal(Signal::TERM);
    while let Some(line) = daemon.messages.recv().await {
        assert!(!line.contains("panicked"), "{line}");
    }
}

#[tokio::test]
async fn a_full_disk_prevents_only_storing_originals() {
    let (node, root) = node();
    fs::create_dir_all(node.path("host/run/plimsoll")).unwrap();
    let mut command = Command::new("unshare");
    let fill = "mount -t tmpfs -o size=4k none \"$STATE\" && head -c 4096 /dev/zero >\"$STATE/full\" && exec \"$0\" \"$@\"";
    command
        .args(["--mount", "sh", "-c", fill, env!("CARGO_BIN_EXE_plimsoll")])
        .args(node.arguments());
    command
        .arg("--config")
        .arg(node.path("plimsoll.yaml"))
        .env("STATE", node.path("host/run/plimsoll"));
    let mut daemon = Daemon::spawn(command);
    let mut runtime = node.accept().await;
    let pod = Pod::new("burstable", "before", 400 * MIB);
    let mut alive = vec![(pod.clone(), 50 * MIB)];
    record(&node, &alive);
    runtime.make_cgroup(&pod);
    runtime.synchronize(&[&pod]).await;
    runtime.serve_update(&[&pod]).await;
    let said = daemon.says("cannot store the original values of containers").await;
    assert!(
        said.contains("No space left on device") && said.contains("plimsoll restore"),
        "{said}"
    );
    raise_and_lower(&node, &mut runtime, &mut alive).await;
    until_right(&mut runtime, &alive).await;
    assert_eq!(wrong(&root, &alive), [] as [PathBuf; 0]);
    daemon.signal(Signal::TERM);
    while let Some(line) = daemon.messages.recv().await {
        assert!(
            !line.contains("cannot store the original values of containers"),
            "the plugin must log each failure once: {line}"
        );
    }
}
