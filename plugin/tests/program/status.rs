//! Tests of metrics and of what `plimsoll status` prints.

use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;

use crate::harness::{
    MIB, Node, Pod, Runtime, get, memory_limit, restore, start, status, status_json,
};
use serde_json::Value;

const CONFIG: &str = "nodeAllocatable: 4Gi\nmemoryMinHeadroom: 0\nlogLevel: debug\n";

/// Returns the rows of the table, including the titles, split into words.
fn rows(text: &str) -> Vec<Vec<&str>> {
    let table = text.lines().skip_while(|line| !line.starts_with("STATE"));
    table.map(|line| line.split_whitespace().collect()).collect()
}

/// Runs a pod whose container requests 64 MiB and has a limit of 250 MiB.
async fn run(node: &Node, runtime: &Runtime, uid: &str) -> Pod {
    for file in ["actuated_pods_state", "allocated_pods_state"] {
        node.checkpoint(file, &[("b", "app", 64 * MIB), ("other", "app", 64 * MIB)]);
    }
    let pod = Pod::new("burstable", uid, 250 * MIB);
    runtime.make_cgroup(&pod);
    runtime.run(&pod).await;
    pod
}

#[tokio::test]
async fn rows_show_state_desired_and_observed_values() {
    let (node, mut daemon, runtime) = start(CONFIG).await;
    let pod = run(&node, &runtime, "b").await;
    daemon.says("outcome=unchanged").await;
    runtime.uses(&pod, 50 * MIB, 10 * MIB);
    fs::write(
        runtime.cgroup(&pod).join("memory.pressure"),
        "full avg10=1.50 avg60=0.00 avg300=0.00 total=2500000\n",
    )
    .unwrap();

    let (text, code) = status(&node, &[]).await;
    assert_eq!(code, 0, "{text}");
    let [titles, row] = &rows(&text)[..] else { panic!("{text}") };
    let of = |title: &str| row[titles.iter().position(|other| *other == title).unwrap()];
    for (title, expected) in [
        ("STATE", "protected"),
        ("CONTAINER", "default/b/app"),
        ("CLASS", "Burstable"),
        ("USAGE", "50Mi"),
        ("LOAD", "####-m------------H-M"),
        ("MIN", "64Mi"),
        ("LOW", "0"),
        ("HIGH", "231.4Mi"),
        ("MAX", "250Mi"),
        ("EFFECTIVE", "50Mi"),
        ("OVER", "0"),
        ("STALLED", "2.5s"),
        ("REQUEST", "64Mi"),
    ] {
        assert_eq!(of(title), expected, "{title}\n{text}");
    }
    let all = status_json(&node).await;
    let container = &all["containers"][0];
    assert_eq!(container["desired"], container["observed"]);
    assert_eq!(container["desired"]["min"], 64 * MIB);
    assert_eq!(container["desired"]["max"], 250 * MIB);
    assert_eq!(container["request"]["provenance"], "checkpoint-actuated");
    assert_eq!(container["workingSet"], 40 * MIB);
    assert_eq!(all["node"]["allocatable"], 4096 * MIB);
    assert_eq!(all["node"]["requests"], 64 * MIB);
    let levels: Vec<_> =
        all["cgroups"].as_array().unwrap().iter().map(|level| level["level"].clone()).collect();
    assert_eq!(levels, ["kubepods", "class", "pod"]);
    assert_eq!(all["cgroups"][2]["desired"]["min"], 64 * MIB);
    assert_eq!(all["cgroups"][2]["observed"]["min"], 64 * MIB);

    // The container uses more than its request. Later another program changes memory.max.
    runtime.uses(&pod, 150 * MIB, 20 * MIB);
    let (text, _) = status(&node, &[]).await;
    assert_eq!(rows(&text)[1][0], "over-request", "{text}");
    assert_eq!(status_json(&node).await["containers"][0]["overRequest"], 66 * MIB);
    let file = format!("{}/{}", pod.cgroup(), pod.container.id);
    fs::remove_file(runtime.cgroup(&pod).join("memory.max")).unwrap();
    let (text, _) = status(&node, &[]).await;
    assert_eq!(rows(&text)[1][0], "unread", "{text}");
    runtime.set_file(&file, "memory.max", &(200 * MIB).to_string());
    let (text, _) = status(&node, &[]).await;
    assert_eq!(rows(&text)[1][0], "drifted", "{text}");
    assert!(text.contains("!="), "{text}");
}

#[tokio::test]
async fn refusals_and_repairs_are_shown_and_counted() {
    let (node, mut daemon, runtime) = start(CONFIG).await;
    let pod = run(&node, &runtime, "b").await;
    let other = run(&node, &runtime, "other").await;
    runtime.uses(&pod, 150 * MIB, 20 * MIB);
    runtime.uses(&other, 10 * MIB, 0);
    for _ in 0..3 {
        let call = runtime.connection.update_container(
            pod.sandbox.clone(),
            pod.container.clone(),
            memory_limit(100 * MIB),
        );
        let refused = call.await.unwrap_err().to_string();
        assert!(refused.contains("would be killed"), "{refused}");
    }
    runtime.set_file(&pod.cgroup(), "memory.min", "0");
    daemon.says("repaired a file that another program had changed").await;

    let (text, _) = status(&node, &[]).await;
    assert_eq!(rows(&text)[1][..2], ["refused", "default/b/app"], "trouble first: {text}");
    assert_eq!(rows(&text).len(), 3, "{text}");
    let (text, _) = status(&node, &["--state", "refused,killed"]).await;
    assert_eq!(rows(&text).len(), 2, "{text}");
    let (text, _) = status(&node, &["--namespace", "elsewhere"]).await;
    assert_eq!(rows(&text).len(), 1, "{text}");
    for name in ["b", "default/b"] {
        let (text, code) = status(&node, &[name]).await;
        assert_eq!(code, 0);
        for part in [
            "default/b/app: refused (Burstable, id-b)",
            "memory.min         64Mi  the value is the request",
            "pod kubepods/burstable/podb",
            "class kubepods/burstable",
            "kubepods kubepods",
            "CutRejected: rejected a memory limit decrease from 250Mi to 100Mi, which would OOM-kill: 150Mi in use, 20Mi reclaimable",
            "3 times since",
            "Repaired: another program set memory.min to 0",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("default/other"), "{text}");
    }
    let (text, code) = status(&node, &["nobody"]).await;
    assert_eq!((code, text.trim()), (1, "found no containers of a pod 'nobody' on this node"));

    let text = node.metrics().await;
    for line in [
        "plimsoll_resizes_total{outcome=\"rejected\"} 3",
        &format!("plimsoll_resize_rejected_bytes_total {}", 3 * 150 * MIB),
        "plimsoll_repairs_total{level=\"ancestor\",knob=\"memory.min\"} 1",
        "plimsoll_nri_connections_total 1",
        "plimsoll_nri_request_duration_seconds_count{event=\"UpdateContainer\"} 3",
        "plimsoll_containers{state=\"refused\"} 1",
        "plimsoll_containers{state=\"protected\"} 1",
        "plimsoll_container_requests{provenance=\"checkpoint-actuated\"} 2",
        &format!("plimsoll_node_allocatable_bytes {}", 4096 * MIB),
        &format!(
            "plimsoll_protection_bytes{{level=\"kubepods\",knob=\"memory.min\",value=\"desired\"}} {}",
            128 * MIB
        ),
        &format!(
            "plimsoll_protection_bytes{{level=\"kubepods\",knob=\"memory.min\",value=\"observed\"}} {}",
            128 * MIB
        ),
        &format!("plimsoll_over_request_bytes {}", 66 * MIB),
        "plimsoll_over_request_containers 1",
        "plimsoll_beyond_node_containers 0",
        "plimsoll_unlimited_containers 0",
        "plimsoll_inert_containers 0",
        "plimsoll_container_requests{provenance=\"unknown\"} 0",
        "plimsoll_differing_files{level=\"container\"} 0",
        "# EOF",
    ] {
        assert!(text.lines().any(|other| other == line), "{line}\n{text}");
    }
    assert!(!text.contains("default") && !text.contains("\"app\""), "no names: {text}");
    // After another update, the refusal no longer determines the state.
    runtime.uses(&pod, 50 * MIB, 20 * MIB);
    runtime
        .connection
        .update_container(pod.sandbox.clone(), pod.container.clone(), memory_limit(200 * MIB))
        .await
        .unwrap();
    runtime.set_file(
        &format!("{}/{}", pod.cgroup(), pod.container.id),
        "memory.max",
        &(200 * MIB).to_string(),
    );
    assert_ne!(status_json(&node).await["containers"][0]["state"], "refused");
}

#[tokio::test]
async fn tcp_serves_container_metrics_but_no_status() {
    let (node, mut daemon, runtime) = start(CONFIG).await;
    run(&node, &runtime, "b").await;
    // This port was free a moment ago, and no other program uses it yet.
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert!(TcpStream::connect(address).is_err());
    node.replace(
        "plimsoll.yaml",
        &format!("{CONFIG}metricsAddress: {address}\ncontainerMetrics: true\n"),
    );
    daemon.says("serving metrics").await;
    let ask = |path: &'static str| {
        tokio::task::spawn_blocking(move || get(TcpStream::connect(address).unwrap(), path))
    };
    let text = ask("/metrics").await.unwrap();
    let labels = "{namespace=\"default\",pod=\"b\",container=\"app\"}";
    assert!(
        text.contains(&format!("plimsoll_container_spec_memory_limit_bytes{labels} {}", 250 * MIB)),
        "{text}"
    );
    // Only root may see names and reasons, so the plugin does not serve /status over TCP.
    assert!(ask("/status").await.unwrap().starts_with("HTTP/1.1 404"));
    node.replace("plimsoll.yaml", CONFIG);
    daemon.says("configuration changed").await;
    for _ in 0..500 {
        if TcpStream::connect(address).is_err() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("still served");
}

#[tokio::test]
async fn a_root_only_socket_tolerates_idle_clients() {
    let (node, daemon, runtime) = start(CONFIG).await;
    let socket = node.path("host/run/plimsoll/plimsoll.sock");
    status(&node, &[]).await;
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&socket), mode(socket.parent().unwrap())), (0o600, 0o700));
    let stuck: Vec<_> = (0..20).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    run(&node, &runtime, "b").await;
    let (text, code) = status(&node, &[]).await;
    assert_eq!(code, 0, "{text}");
    drop(stuck);
    // The old process leaves its socket behind. The socket does not hinder the new process.
    drop((daemon, runtime));
    let mut daemon = node.start();
    let runtime = node.accept().await;
    runtime.synchronize(&[]).await;
    let (text, code) = status(&node, &[]).await;
    assert_eq!(code, 0, "{text}");
    daemon.signal(rustix::process::Signal::TERM);
    while daemon.messages.recv().await.is_some() {}
    let (text, code) = status(&node, &[]).await;
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("plimsoll.sock") && text.contains("run the plugin"), "{text}");
}

#[tokio::test]
async fn oom_killed_containers_are_shown_while_down() {
    let (node, mut daemon, runtime) = start(CONFIG).await;
    let pod = run(&node, &runtime, "b").await;
    let events = "low 0\nhigh 0\nmax 7\noom 1\noom_kill 1\noom_group_kill 0";
    for cgroup in [format!("{}/{}", pod.cgroup(), pod.container.id), pod.cgroup()] {
        runtime.set_file(
            &cgroup,
            "memory.events",
            "low 0\nhigh 0\nmax 7\noom 0\noom_kill 0\noom_group_kill 0",
        );
    }
    runtime.started(&pod).await;
    for cgroup in [format!("{}/{}", pod.cgroup(), pod.container.id), pod.cgroup()] {
        runtime.set_file(&cgroup, "memory.events", events);
    }
    daemon.says("the kernel OOM-killed processes of the container").await;
    let (text, _) = status(&node, &[]).await;
    assert_eq!(rows(&text)[1][0], "killed", "{text}");
    fs::remove_dir_all(runtime.cgroup(&pod)).unwrap();
    runtime.stop(&pod).await;
    let (text, _) = status(&node, &[]).await;
    let down =
        "down: default/b/app: OOM-killed by the limit of the container or its pod (250Mi): 1 times";
    assert!(text.contains(down) && rows(&text).len() == 1, "{text}");
    let (text, code) = status(&node, &["b"]).await;
    assert!(code == 0 && text.contains("default/b/app: down at the moment"), "{text}");
    assert!(node.metrics().await.contains("plimsoll_oom_kills_total{by=\"limit\"} 1\n"));
    // `plimsoll status` shows no container whose pod is gone.
    runtime.pod_event(nri::api::Event::STOP_POD_SANDBOX, &pod).await;
    let (text, _) = status(&node, &[]).await;
    assert!(!text.contains("down:"), "{text}");
}

#[tokio::test]
async fn clients_that_never_read_block_no_others() {
    let (node, _daemon, runtime) = start(&format!("{CONFIG}containerMetrics: true\n")).await;
    // With this many pods, no answer fits into the kernel's socket buffer.
    let pods: Vec<_> =
        (0..400).map(|number| Pod::new("burstable", &format!("pod-{number}"), 250 * MIB)).collect();
    runtime.synchronize(&pods.iter().collect::<Vec<_>>()).await;
    let (text, _) = status(&node, &["--json"]).await;
    assert!(text.len() > 300_000, "{}", text.len());
    let stuck = || {
        let mut stream = UnixStream::connect(node.path("host/run/plimsoll/plimsoll.sock")).unwrap();
        write!(stream, "GET /status HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        stream
    };
    let stuck: Vec<_> = (0..30).map(|_| stuck()).collect();
    let (text, code) = status(&node, &["--state", "killed"]).await;
    assert_eq!(code, 0, "{text}");
    assert!(node.metrics().await.ends_with("# EOF\n"));
    drop(stuck);
}

#[tokio::test]
async fn hostile_names_and_annotations_do_no_harm() {
    let (node, mut daemon, runtime) = start(&format!("{CONFIG}containerMetrics: true\n")).await;
    // Three of these texts have a total size of 3 MiB, and a message may have at most 4 MiB.
    let hostile = |from: &str| {
        format!("{from}\x1b[2J\"evil\"\\\n}} 1\nplimsoll_evil 1\n{}", "x".repeat(1 << 20))
    };
    let mut pod = Pod::new("burstable", "b", 250 * MIB)
        .annotate("throttling-factor.plimsoll.nri.io", &hostile("0.5"))
        .annotate(&format!("{}.plimsoll.nri.io", hostile("a")), "1");
    pod.sandbox.name = hostile("pod");
    pod.sandbox.namespace = "\x1b]0;evil\x07\r\n".into();
    pod.container.name = "a\r\nb\x07".into();
    runtime.make_cgroup(&pod);
    runtime.run(&pod).await;
    runtime.uses(&pod, 150 * MIB, 20 * MIB);
    let (sandbox, container) = (pod.sandbox.clone(), pod.container.clone());
    assert!(
        runtime
            .connection
            .update_container(sandbox, container, memory_limit(100 * MIB))
            .await
            .is_err()
    );
    let is_harmful = |character: char| character.is_control() && character != '\n';
    for arguments in [&[][..], &["--json"], &["--wide"]] {
        let (text, code) = status(&node, arguments).await;
        assert_eq!(code, 0);
        assert!(!text.contains(is_harmful), "{arguments:?}");
        assert!(!text.lines().any(|line| line.starts_with("plimsoll_evil")), "{arguments:?}");
        assert!(text.len() < 20_000, "{arguments:?}: {}", text.len());
    }
    let text = node.metrics().await;
    let series = text.lines().filter(|line| !line.starts_with('#'));
    for line in series {
        let (name, value) =
            (line.split(['{', ' ']).next().unwrap(), line.rsplit(' ').next().unwrap());
        assert!(
            name.starts_with("plimsoll_")
                && name != "plimsoll_evil"
                && value.parse::<f64>().is_ok(),
            "{line}"
        );
    }
    assert!(text.contains("plimsoll_container_spec_memory_limit_bytes{"));
    assert!(!text.contains(is_harmful) && text.len() < 50_000, "{}", text.len());
    daemon.signal(rustix::process::Signal::TERM);
    let mut lines = Vec::new();
    while let Some(line) = daemon.messages.recv().await {
        assert!(
            !line.contains(is_harmful) && line.len() < 5000 && !line.starts_with("plimsoll_evil"),
            "{line:.1000}"
        );
        lines.push(line);
    }
    for said in ["expected a number above 0", "rejected a limit decrease"] {
        assert!(lines.iter().any(|line| line.contains(said)), "{said}: {lines:#?}");
    }
}

#[tokio::test]
async fn guard_limits_are_shown_beside_kubepods_max() {
    let (node, mut daemon, runtime) = start(&format!("{CONFIG}nodeGuard: 5Gi\n")).await;
    let pod = run(&node, &runtime, "b").await;
    runtime.uses(&pod, 4000 * MIB, 0);
    runtime.set_file("kubepods", "memory.stat", "anon 4194304000\n");
    daemon.says("the plugin sets the limit when pods use less").await;
    let (text, _) = status(&node, &[]).await;
    assert!(text.contains("all pods together may use 3Gi (nodeGuard); kubepods has max"), "{text}");
    let said = "kubepods: deferred the nodeGuard limit of 3Gi, which would OOM-kill pods: 3.9Gi in use, 0 reclaimable";
    assert!(text.contains(said), "{text}");
    let all = status_json(&node).await;
    assert_eq!(
        (&all["node"]["guard"], &all["node"]["podsMax"]),
        (&Value::from(3_u64 << 30), &Value::from("max"))
    );
    runtime.uses(&pod, 10 * MIB, 0);
    runtime.holds("kubepods", "memory.max", 3072 * MIB).await;
    let (text, _) = status(&node, &[]).await;
    assert!(text.contains("all pods together may use 3Gi (nodeGuard)\n"), "{text}");
}

#[tokio::test]
async fn an_ineffective_guard_shows_its_reason_only() {
    let (node, _daemon, runtime) = start(&format!("{CONFIG}nodeGuard: 5Gi\n")).await;
    let (text, _) = status(&node, &[]).await;
    assert!(text.contains("nodeGuard is not in force: there is no kubepods cgroup\n"), "{text}");
    assert!(!text.contains("all pods together may use"), "{text}");
    let all = status_json(&node).await;
    assert_eq!((&all["node"]["guard"], &all["node"]["podsMax"]), (&Value::Null, &Value::Null));
    let metrics = node.metrics().await;
    assert!(
        !metrics.contains("plimsoll_guard_bytes") && !metrics.contains("plimsoll_kubepods_max"),
        "{metrics}"
    );
    // The cgroup that the node guard should protect does not exist.
    assert!(metrics.contains("plimsoll_unread_cgroups{level=\"reserved\"} 1\n"), "{metrics}");

    runtime.make_cgroup_at("kubepods");
    let (text, _) = status(&node, &[]).await;
    assert!(
        text.contains("nodeGuard found no cgroup system.slice: nothing protects the system\n"),
        "{text}"
    );
    runtime.make_cgroup_at("system.slice");
    let (text, _) = status(&node, &[]).await;
    assert!(!text.contains("system.slice"), "{text}");
    assert_eq!(status_json(&node).await["node"]["guardProblem"], Value::Null);
}

#[tokio::test]
async fn observe_mode_shows_obstacles_to_the_guard() {
    let (node, _daemon, runtime) = start(&format!("{CONFIG}mode: observe\nnodeGuard: 5Gi\n")).await;
    let shown = async || status(&node, &[]).await.0;
    let text = shown().await;
    assert!(
        text.contains("nodeGuard would not be in force: there is no kubepods cgroup\n"),
        "{text}"
    );

    runtime.make_cgroup_at("kubepods");
    let text = shown().await;
    assert!(
        text.contains("nodeGuard found no cgroup system.slice: nothing would protect the system\n"),
        "{text}"
    );
    runtime.make_cgroup_at("system.slice");
    assert_eq!(status_json(&node).await["node"]["guardProblem"], Value::Null);

    runtime.set_file("kubepods", "memory.current", &(4 * 1024 * MIB).to_string());
    let text = shown().await;
    assert!(
        text.contains("nodeGuard would wait: pods use 4Gi, and their limit would be 3Gi"),
        "{text}"
    );
    assert_eq!(runtime.file("kubepods", "memory.max"), "max");
}

#[tokio::test]
async fn readiness_requires_synchronization_and_no_restore() {
    let (node, mut daemon, runtime) = start(CONFIG).await;
    let is_ready = async || {
        let (text, code) = status(&node, &["--ready"]).await;
        let synchronized = status_json(&node).await["node"]["synchronized"].as_bool().unwrap();
        let metric = format!("\nplimsoll_synchronized {}\n", i32::from(synchronized));
        let metrics = node.metrics().await;
        assert!(metrics.contains(&metric), "{metrics}");
        (text, code, synchronized)
    };
    let ready = ("ready\n".to_owned(), 0, true);
    assert_eq!(is_ready().await, ready);

    // The plugin has registered again, but the runtime has not sent its containers yet.
    drop(runtime);
    let runtime = node.accept().await;
    let (text, code, synchronized) = is_ready().await;
    assert!(text.contains("not ready: waiting for the container runtime"), "{text}");
    assert_eq!((code, synchronized), (1, false));
    let (text, code) = status(&node, &[]).await;
    assert!(code == 0 && text.contains("waiting for the container runtime"), "{text}");
    runtime.synchronize(&[]).await;
    assert_eq!(is_ready().await, ready);

    let (code, said) = restore(&node, &[]).await;
    assert_eq!(code, Some(0), "{said}");
    daemon.says("'plimsoll restore' was called").await;
    let (text, code, synchronized) = is_ready().await;
    assert!(
        text.contains("not ready: 'plimsoll restore' was called")
            && text.contains("restore --undo"),
        "{text}"
    );
    assert_eq!((code, synchronized), (1, true));
    let (code, said) = restore(&node, &["--undo"]).await;
    assert_eq!(code, Some(0), "{said}");
    daemon.says("'plimsoll restore' was undone").await;
    assert_eq!(is_ready().await, ready);
}

#[tokio::test]
async fn unreadable_files_show_a_reason_and_advice() {
    let (node, mut daemon, runtime) = start(CONFIG).await;
    let pod = run(&node, &runtime, "b").await;
    daemon.says("outcome=unchanged").await;
    assert_eq!(status_json(&node).await["node"]["problems"], Value::Array(Vec::new()));
    assert!(node.metrics().await.contains("plimsoll_unknown_facts 0\n"));

    node.replace("host/var/lib/kubelet/actuated_pods_state", "{\"data\": 7}");
    fs::write(runtime.cgroup(&pod).join("memory.min"), "much").unwrap();
    let (text, _) = status(&node, &[]).await;
    let line = text
        .lines()
        .find(|line| line.contains("actuated_pods_state"))
        .unwrap_or_else(|| panic!("{text}"));
    assert!(
        line.contains("expected JSON with a string 'data'")
            && line.contains("See the kubelet's log"),
        "{line}"
    );
    assert!(rows(&text)[1].starts_with(&["unread"]), "{text}");
    node.replace("host/proc/meminfo", "nothing\n");
    assert!(node.metrics().await.contains("plimsoll_unknown_facts 2\n"));
    assert!(status(&node, &[]).await.0.contains("/proc/meminfo: "), "{text}");
    let (text, _) = status(&node, &["b"]).await;
    let line = text
        .lines()
        .find(|line| line.contains("cannot be read:"))
        .unwrap_or_else(|| panic!("{text}"));
    assert!(line.contains("memory.min") && line.contains("'plimsoll doctor'"), "{line}");
}
