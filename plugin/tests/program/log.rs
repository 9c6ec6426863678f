//! Tests of the log messages and their format.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::Duration;

use crate::harness::{Daemon, MIB, Node, Pod, Runtime, memory_limit};
use nri::runtime::RequestError;
use rustix::process::Signal;
use serde_json::{Value, json};

const CONFIG: &str = "nodeAllocatable: 4Gi\nmemoryMinHeadroom: 0\nlogLevel: debug\n";

/// Runs a pod that requests 64 MiB.
async fn run(node: &Node, runtime: &Runtime) -> Pod {
    node.checkpoint("actuated_pods_state", &[("b", "app", 64 * MIB)]);
    let pod = Pod::new("burstable", "b", 250 * MIB);
    runtime.make_cgroup(&pod);
    runtime.run(&pod).await;
    runtime.uses(&pod, 150 * MIB, 20 * MIB);
    pod
}

/// Resizes the container to this limit, and checks that the plugin refuses.
async fn refuse(runtime: &Runtime, pod: &Pod, limit: i64) {
    let (sandbox, container) = (pod.sandbox.clone(), pod.container.clone());
    let answer = runtime.connection.update_container(sandbox, container, memory_limit(limit)).await;
    assert!(matches!(answer, Err(RequestError::Refused(_))), "{answer:?}");
}

#[tokio::test]
async fn json_format_logs_one_object_per_line() {
    let node = Node::new();
    node.replace("plimsoll.yaml", CONFIG);
    let config = node.path("plimsoll.yaml");
    let mut daemon =
        node.start_with(&["--config", config.to_str().unwrap(), "--log-format", "json"]);
    let runtime = node.accept().await;
    runtime.synchronize(&[]).await;
    let pod = run(&node, &runtime).await;
    daemon.says("unchanged").await;

    let of = |line: &str, fields: &[&str]| -> Vec<Value> {
        let object: Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        fields.iter().map(|field| object[field].clone()).collect()
    };
    runtime.set_file(&pod.cgroup(), "memory.min", "0");
    let repaired = daemon.says("repaired a file that another program had changed").await;
    assert_eq!(
        of(&repaired, &["level", "cgroup", "knob", "desired", "observed", "outcome"]),
        [
            json!("INFO"),
            json!(format!("/{}", pod.cgroup())),
            json!("memory.min"),
            json!((64 * MIB).to_string()),
            json!("0"),
            json!("applied")
        ],
        "{repaired}"
    );
    refuse(&runtime, &pod, 100 * MIB).await;
    let refused = daemon.says("rejected a limit decrease").await;
    assert_eq!(
        of(&refused, &["level", "pod", "container", "knob", "desired", "observed", "outcome"]),
        [
            json!("WARN"),
            json!("default/b"),
            json!("app"),
            json!("memory.max"),
            json!((100 * MIB).to_string()),
            json!((250 * MIB).to_string()),
            json!("rejected")
        ],
        "{refused}"
    );
    daemon.signal(Signal::TERM);
    while let Some(line) = daemon.messages.recv().await {
        assert!(of(&line, &["message"])[0].is_string(), "{line}");
    }

    // A fatal error is also logged as JSON. One message contains all mistakes in the configuration,
    // although the text format uses several lines.
    node.replace("plimsoll.yaml", "memoryThrottlingFactor: 2\nlogLevel: loud\n");
    let mut daemon =
        node.start_with(&["--config", config.to_str().unwrap(), "--log-format", "json"]);
    let line = daemon.says("memoryThrottlingFactor").await;
    assert_eq!(of(&line, &["level"]), [json!("ERROR")]);
    assert!(line.contains("logLevel"), "{line}");
    assert!(daemon.messages.recv().await.is_none(), "the program must log the error once");
    assert_eq!(daemon.ends().await.code(), Some(2));
}

#[tokio::test]
async fn a_fatal_error_is_one_log_line() {
    let node = Node::new();
    node.replace("plimsoll.yaml", "logLevel: loud\n");
    let config = node.path("plimsoll.yaml");
    let mut daemon = node.start_with(&["--config", config.to_str().unwrap()]);
    let line = daemon.says("logLevel").await;
    assert!(line.starts_with("ERROR "), "{line}");
    assert_eq!(daemon.messages.recv().await, None, "it is said once");
    assert_eq!(daemon.ends().await.code(), Some(2));
}

/// Shell command that discards standard error. A runtime starts plugins like this.
const NOWHERE: &str = "exec 2>/dev/null";

/// Shell command that makes standard error look like a stream to the journal. systemd starts
/// services with a stream of this kind.
const TO_JOURNAL: &str = "export JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2)";

/// Shell command that connects standard error to a pipe that no process reads.
const TO_FULL_PIPE: &str = "mkfifo \"$JOURNAL/pipe\" && exec 2<>\"$JOURNAL/pipe\"";

/// Starts the plugin with a journal socket that the test reads. The shell command `standard_error`
/// redirects standard error.
fn start_with_journal(node: &Node, standard_error: &str) -> (Daemon, UnixDatagram) {
    let directory = node.path("journal");
    fs::create_dir(&directory).unwrap();
    let journal = UnixDatagram::bind(directory.join("socket")).unwrap();
    journal.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let script = format!(
        "mount -t tmpfs none /run && mkdir -p /run/systemd/journal && mount --bind \"$JOURNAL\" /run/systemd/journal || exit 99
         {standard_error}
         exec \"$0\" \"$@\""
    );
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", &script, env!("CARGO_BIN_EXE_plimsoll")])
        .args(node.arguments());
    command.arg("--config").arg(node.path("plimsoll.yaml")).env("JOURNAL", directory);
    (Daemon::spawn(command), journal)
}

/// Waits for a journal entry whose message contains this text.
async fn entry(journal: &UnixDatagram, text: &'static str) -> BTreeMap<String, String> {
    let journal = journal.try_clone().unwrap();
    let read = move || loop {
        let mut bytes = vec![0; 1 << 20];
        let length = journal
            .recv(&mut bytes)
            .unwrap_or_else(|error| panic!("no journal entry contains {text:?}: {error}"));
        let entry = String::from_utf8(bytes[..length].to_vec()).unwrap();
        let fields = entry.lines().map(|line| line.split_once('=').expect(text));
        let fields: BTreeMap<_, _> =
            fields.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        if fields["MESSAGE"].contains(text) {
            return fields;
        }
    };
    tokio::task::spawn_blocking(read).await.unwrap()
}

#[tokio::test]
async fn journal_entries_contain_message_and_separate_fields() {
    for standard_error in [NOWHERE, TO_JOURNAL] {
        let node = Node::new();
        node.replace("plimsoll.yaml", CONFIG);
        let (mut daemon, journal) = start_with_journal(&node, standard_error);
        let runtime = node.accept().await;
        runtime.synchronize(&[]).await;
        let pod = run(&node, &runtime).await;
        entry(&journal, "outcome=unchanged").await;
        runtime.set_file(&pod.cgroup(), "memory.min", "0");
        let repaired = entry(&journal, "repaired a file that another program had changed").await;
        refuse(&runtime, &pod, 100 * MIB).await;
        let refused = entry(&journal, "rejected a limit decrease").await;
        for (field, value) in [
            ("PRIORITY", "4"),
            ("SYSLOG_IDENTIFIER", "plimsoll"),
            ("PLIMSOLL_POD", "default/b"),
            ("PLIMSOLL_CONTAINER", "app"),
            ("PLIMSOLL_KNOB", "memory.max"),
            ("PLIMSOLL_DESIRED", "104857600"),
            ("PLIMSOLL_OBSERVED", "262144000"),
            ("PLIMSOLL_OUTCOME", "rejected"),
        ] {
            assert_eq!(refused.get(field).map(String::as_str), Some(value), "{field} {refused:?}");
        }
        let message = &refused["MESSAGE"];
        assert!(
            message.contains(" pod=\"default/b\" container=\"app\"")
                && message.contains(" outcome=rejected"),
            "{message}"
        );
        assert_eq!(
            [&repaired["PRIORITY"], &repaired["PLIMSOLL_CGROUP"], &repaired["PLIMSOLL_KNOB"]],
            ["6", &format!("/{}", pod.cgroup()), "memory.min"]
        );
        daemon.signal(Signal::TERM);
        assert_eq!(
            daemon.messages.recv().await,
            None,
            "the program must log the message once: {standard_error}"
        );
        assert!(daemon.ends().await.success());
    }
}

#[tokio::test]
async fn unread_logs_delay_no_answer_or_exit() {
    for standard_error in [NOWHERE, TO_FULL_PIPE, TO_JOURNAL] {
        let node = Node::new();
        node.replace("plimsoll.yaml", CONFIG);
        let (mut daemon, journal) = start_with_journal(&node, standard_error);
        let runtime = node.accept().await;
        runtime.synchronize(&[]).await;
        let pod = run(&node, &runtime).await;
        // The plugin logs a different message for each refusal. The kernel queues only a few
        // messages per socket, and 64 KiB per pipe.
        let socket = fs::read_to_string("/proc/sys/net/unix/max_dgram_qlen").unwrap();
        let messages = (2 * socket.trim().parse::<i64>().unwrap()).clamp(600, 1200);
        for message in 0..messages {
            refuse(&runtime, &pod, 100 * MIB - 4096 * message).await;
        }
        if standard_error == NOWHERE {
            // No message is lost.
            let last = format!("desired={}", 100 * MIB - 4096 * (messages - 1));
            entry(&journal, last.leak()).await;
        }
        daemon.signal(Signal::TERM);
        if standard_error == TO_JOURNAL {
            // The journal's socket is full, but standard error is read.
            daemon.says("log messages were not written within 1s").await;
        }
        assert!(daemon.ends().await.success(), "{standard_error}");
    }
}

#[tokio::test]
async fn configuration_errors_reach_journal_or_standard_error() {
    let mistaken = || {
        let node = Node::new();
        node.replace("plimsoll.yaml", "logLevel: loud\n");
        node
    };
    // The journal has determined the unit of this stream at the start of the stream. Therefore the
    // program writes its last message to standard error.
    let node = mistaken();
    let (mut daemon, _journal) = start_with_journal(&node, TO_JOURNAL);
    daemon.says("logLevel").await;
    assert_eq!(daemon.ends().await.code(), Some(2));

    let node = mistaken();
    let (daemon, journal) = start_with_journal(&node, NOWHERE);
    assert_eq!(entry(&journal, "logLevel").await["PRIORITY"], "3");
    assert_eq!(daemon.ends().await.code(), Some(2));
}
