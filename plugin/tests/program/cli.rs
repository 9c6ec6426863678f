//! Black-box tests of the program: arguments, output and exit codes.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

fn plimsoll(args: &[&str], stdin: &str) -> Ran {
    let mut child = Command::new(env!("CARGO_BIN_EXE_plimsoll"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The program may have ended without reading its standard input.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    Ran {
        code: status.code().expect("not killed"),
        stdout: String::from_utf8(stdout).unwrap(),
        stderr: String::from_utf8(stderr).unwrap(),
    }
}

fn file(dir: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn as_str(path: &Path) -> &str {
    path.to_str().unwrap()
}

const POD: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  containers:
  - name: app
    resources: {requests: {memory: 128Mi}, limits: {memory: 1Gi}}
";

#[test]
fn check_shows_the_configuration_with_defaults() {
    let dir = TempDir::new().unwrap();
    let path = file(&dir, "p.conf", "memoryThrottlingFactor: 0.8\n");
    let ran = plimsoll(&["check", as_str(&path)], "");
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    assert_eq!(
        ran.stdout,
        format!(
            "# {} is valid. The effective configuration:\nmode: enforce\nmemoryThrottlingFactor: \
             0.8\nmemoryReservationPolicy: HardReservation\n\
             memoryMinHeadroom: 2Mi\nnodeAllocatable: auto\nnodeGuard: null\nkubelet: null\nthrottleDeadline: \
             30s\nshrink: reject\n\
             shrinkDeadline: 10m\noomRescue: null\nraisePodLimits: true\nrepair: true\n\
             brake: {{repairs: 500, conflicts: 50, kills: 20, window: 10m}}\nmaxLimitRequestRatio: \
             4.0\nmetricsAddress: null\ncontainerMetrics: false\nkubeconfig: null\nlogLevel: \
             info\n",
            path.display()
        )
    );
}

#[test]
fn check_reports_every_error_and_exits_2() {
    let dir = TempDir::new().unwrap();
    let path = file(&dir, "p.conf", "memoryThrottlingFactor: 2\n\nlogLevel: loud\n");
    let ran = plimsoll(&["check", as_str(&path)], "");
    assert_eq!((ran.code, ran.stdout.as_str()), (2, ""));
    assert_eq!(
        ran.stderr.replace(as_str(&path), "F"),
        "F:1: memoryThrottlingFactor: expected a number above 0 and at most 1, or null, found the \
         number 2\n\
         F:3: logLevel: expected error, warn, info, debug or trace, found 'loud'\n"
    );
}

#[test]
fn a_configuration_may_come_from_standard_input() {
    let ran = plimsoll(&["check", "-"], "a: 1");
    assert_eq!(ran.code, 2);
    assert!(
        ran.stderr.starts_with("standard input:1: a: expected one of mode, "),
        "{}",
        ran.stderr
    );
}

#[test]
fn errors_name_the_unreadable_file() {
    let ran = plimsoll(&["check", "/nonexistent/p.conf"], "");
    assert_eq!(ran.code, 2);
    assert_eq!(
        ran.stderr,
        "cannot read /nonexistent/p.conf: No such file or directory (os error 2)\n"
    );
    let ran = plimsoll(&["explain", "-f", "/"], "");
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.starts_with("cannot read /: "), "{}", ran.stderr);
}

#[test]
fn bad_usage_exits_2_and_help_0() {
    for args in [
        &[][..],
        &["sail"],
        &["check"],
        &["config"],
        &["explain"],
        &["explain", "-f", "-", "--node-allocatable", "lots"],
        &["explain", "-f", "-", "--node-allocatable", "0"],
    ] {
        assert_eq!(plimsoll(args, POD).code, 2, "{args:?}");
    }
    for args in [
        &["--help"][..],
        &["check", "--help"],
        &["config", "default"],
        &["explain", "--help"],
        &["--version"],
    ] {
        let ran = plimsoll(args, "");
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{args:?}");
    }
    assert!(plimsoll(&["explain", "--help"], "").stdout.contains("Examples:"));
}

#[test]
fn explain_shows_values_reasons_and_a_drawing() {
    let ran = plimsoll(&["explain", "-f", "-", "--node-allocatable", "8Gi"], POD);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    assert_eq!(
        ran.stdout,
        "\
Node allocatable 8Gi (8589934592 bytes): given by --node-allocatable.
Throttling factor 0.9, reservation policy HardReservation, pages of 4096 bytes.

Pod web: Burstable
  container app: request 128Mi, limit 1Gi
    memory.min   134217728 (128Mi)
                 the value is the request, 128Mi (pod-spec)
    memory.low   0 (default)
                 HardReservation protects by memory.min instead
    memory.high  979787776 (934.4Mi)
                 request 128Mi (pod-spec) + 0.9 x (the limit 1Gi - request) is
                 979787776 in whole pages of 4096
    0 ========m----------------------------------------------H~~~~M 1Gi

Drawn to scale: m memory.min, l memory.low, H memory.high, M memory.max, A node
allocatable where there is no limit. = is protected, ~ is throttled.
"
    );
}

#[test]
fn an_explanation_follows_the_configuration() {
    let dir = TempDir::new().unwrap();
    let config = "memoryThrottlingFactor: null\nmemoryReservationPolicy: \
                  TieredReservation\nnodeAllocatable: 4Gi\n";
    let config = file(&dir, "p.conf", config);
    let pod = file(&dir, "pod.yaml", POD);
    let ran = plimsoll(&["explain", "-f", as_str(&pod), "--config", as_str(&config), "--json"], "");
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    let json: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(json["nodeAllocatable"], 4_294_967_296u64);
    assert_eq!(json["memoryThrottlingFactor"], serde_json::Value::Null);
    let container = &json["pods"][0]["containers"][0];
    assert_eq!(
        (&json["pods"][0]["qosClass"], &container["name"]),
        (&"Burstable".into(), &"app".into())
    );
    for (knob, value, setting) in [
        ("memoryMin", 0.into(), "default"),
        ("memoryLow", 134_217_728.into(), "set"),
        ("memoryHigh", serde_json::Value::from("max"), "default"),
    ] {
        assert_eq!(
            (&container[knob]["value"], &container[knob]["setting"]),
            (&value, &setting.into()),
            "{knob}"
        );
        assert!(container[knob]["reason"].is_string(), "{knob}");
    }
}

#[test]
fn explain_defaults_to_this_machines_allocatable() {
    let ran = plimsoll(&["explain", "-f", "-"], POD);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stdout.contains("of this machine, from"), "{}", ran.stdout);
}

#[test]
fn explain_names_the_invalid_manifest_field() {
    let dir = TempDir::new().unwrap();
    let path = file(&dir, "pod.yaml", &POD.replace("1Gi", "1GB"));
    let ran = plimsoll(&["explain", "-f", as_str(&path)], "");
    assert_eq!((ran.code, ran.stdout.as_str()), (2, ""));
    assert!(ran.stderr.ends_with(
        "pod.yaml: Pod web, container app: resources.limits.memory: expected a quantity such as \
         128Mi, 1.5Gi, 500M or \
         1e9, found '1GB'\n"
    ), "{}", ran.stderr);
}

#[test]
fn a_closed_stdout_is_no_failure() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_plimsoll"))
        .args(["check", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    drop(child.stdin.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}

#[test]
fn doctor_exits_1_with_advice_after_failures() {
    let host = TempDir::new().unwrap();
    let socket = host.path().join("nri.sock");
    let args = ["doctor", "--host", as_str(host.path()), "--socket", as_str(&socket)];
    let ran = plimsoll(&args, "");
    assert_eq!((ran.code, ran.stderr.as_str()), (1, ""));
    assert!(ran.stdout.contains(
        "failed   cgroup-v2: expected cgroup v2 at /sys/fs/cgroup, found no cgroups\n         \
         do: mount cgroup2 there"
    ));
    assert!(ran.stdout.contains("Plimsoll cannot work on this node: 2 failed, "), "{}", ran.stdout);
}

#[test]
fn doctor_exits_0_despite_warnings() {
    let host = TempDir::new().unwrap();
    std::fs::create_dir_all(host.path().join("sys/fs/cgroup")).unwrap();
    file(&host, "sys/fs/cgroup/cgroup.controllers", "memory\n");
    let socket = host.path().join("nri.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let args = ["doctor", "--host", as_str(host.path()), "--socket", as_str(&socket), "--json"];
    let ran = plimsoll(&args, "");
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{}", ran.stdout);
    let json: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(json["able"], true);
    let check = |name: &str| {
        json["checks"]
            .as_array()
            .unwrap()
            .iter()
            .find(|check| check["check"] == name)
            .unwrap()
            .clone()
    };
    assert_eq!(
        check("cgroup-v2"),
        serde_json::json!({"check": "cgroup-v2", "mark": "ok", "found": "cgroup v2 is mounted at /sys/fs/cgroup"})
    );
    assert_eq!(check("runtime")["mark"], "warning");
    assert!(check("runtime")["do"].as_str().unwrap().starts_with("start containerd or CRI-O"));

    drop(listener);
    // Another test may be about to start a program. Until then, its new process holds a copy of the
    // listener.
    while std::os::unix::net::UnixStream::connect(&socket).is_ok() {
        std::thread::yield_now();
    }
    let ran = plimsoll(&args, "");
    assert_eq!(ran.code, 1, "{}", ran.stdout);
    let json: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(json["able"], false);
    // The help describes every check.
    let help = plimsoll(&["doctor", "--help"], "").stdout;
    for check in json["checks"].as_array().unwrap() {
        assert!(help.contains(&format!("  {} ", check["check"].as_str().unwrap())), "{check}");
    }
}

#[test]
fn lint_searches_directories_and_tolerates_warnings() {
    let dir = TempDir::new().unwrap();
    std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
    file(&dir, "a/b/pod.yml", POD);
    file(&dir, "a/service.json", "{\"kind\": \"Service\"}");
    file(&dir, "a/readme.md", "[");
    file(&dir, "z.yaml", &POD.replace("128Mi", "512Mi"));
    // lint follows neither a symbolic link that forms a loop nor a symbolic link to a missing file.
    std::os::unix::fs::symlink(dir.path(), dir.path().join("a/loop")).unwrap();
    std::os::unix::fs::symlink("/nonexistent", dir.path().join("a/gone.yaml")).unwrap();
    let ran = plimsoll(&["lint", as_str(dir.path())], "");
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    assert_eq!(
        ran.stdout.replace(as_str(dir.path()), "D"),
        "D/a/b/pod.yml:7: warning: Pod web, container app: memory limit 1Gi is 8 times the request \
         128Mi, expected at \
         most 4 times [limit-request-ratio]\n3 files, 2 pods, 2 containers: 1 warning\n"
    );
    assert_eq!(
        plimsoll(&["lint", as_str(dir.path()), "--max-ratio", "8"], "").stdout.lines().count(),
        1
    );
    for (level, code) in [("note", 1), ("warning", 1), ("error", 0)] {
        assert_eq!(
            plimsoll(&["lint", as_str(dir.path()), "--fail-on", level], "").code,
            code,
            "{level}"
        );
    }
}

#[test]
fn a_broken_manifest_hides_no_other_findings() {
    let dir = TempDir::new().unwrap();
    let broken = file(&dir, "broken.yaml", "kind: [\n");
    let pod = file(&dir, "pod.yaml", POD);
    let ran =
        plimsoll(&["lint", as_str(&broken), "/nonexistent.yaml", as_str(&pod), "-"], "kind: Pod");
    assert_eq!((ran.code, ran.stderr.as_str()), (2, ""));
    let starts = [
        &format!("{}:1: error: expected a comma or a closing bracket in a list", broken.display()),
        "/nonexistent.yaml:1: error: cannot read the file: No such file or directory (os error 2) \
         [unreadable]",
        &format!("{}:7: warning: Pod web, container app: ", pod.display()),
        "standard input:1: error: Pod without a name: expected a spec with containers, found none \
         [invalid]",
        "4 files, 2 pods, 1 container: 3 errors, 1 warning",
    ];
    assert_eq!(ran.stdout.lines().count(), starts.len(), "{}", ran.stdout);
    for (line, start) in ran.stdout.lines().zip(starts) {
        assert!(line.starts_with(start), "{line}");
    }
}

#[test]
fn lint_without_manifests_is_bad_usage() {
    let dir = TempDir::new().unwrap();
    let ran = plimsoll(&["lint", as_str(dir.path())], "");
    assert_eq!((ran.code, ran.stdout.as_str()), (2, ""));
    assert!(
        ran.stderr.ends_with(": expected *.yaml, *.yml or *.json in the directory, found none\n"),
        "{}",
        ran.stderr
    );
    for args in
        [&["lint"][..], &["lint", "-", "--max-ratio", "0.5"], &["lint", "-", "--max-ratio", "nan"]]
    {
        assert_eq!(plimsoll(args, POD).code, 2, "{args:?}");
    }
}

#[test]
fn lint_json_and_sarif_have_relative_paths() {
    let dir = TempDir::new().unwrap();
    file(&dir, "pod.yaml", POD);
    let lint = |path: &str, format: &str| -> serde_json::Value {
        let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll"));
        let output =
            command.args(["lint", path, "--format", format]).current_dir(&dir).output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    // The path of the current directory may contain symbolic links.
    let absolute = dir.path().canonicalize().unwrap();
    for path in [".", "pod.yaml", as_str(&absolute)] {
        let sarif = lint(path, "sarif");
        let result = &sarif["runs"][0]["results"][0];
        let place = &result["locations"][0]["physicalLocation"];
        assert_eq!(
            (&result["ruleId"], &result["level"]),
            (&"limit-request-ratio".into(), &"warning".into())
        );
        assert_eq!(
            (&place["artifactLocation"]["uri"], &place["region"]["startLine"]),
            (&"pod.yaml".into(), &7.into())
        );
        let json = lint(path, "json");
        assert_eq!(
            (&json["findings"][0]["file"], &json["maxRatio"]),
            (&"pod.yaml".into(), &4.0.into())
        );
        assert_eq!(json["containers"][0]["memoryHigh"]["value"], 979_787_776);
    }
}

#[test]
fn lint_uses_the_configuration_not_this_machine() {
    let dir = TempDir::new().unwrap();
    let config = file(&dir, "p.conf", "memoryThrottlingFactor: 0.5\nnodeAllocatable: 4Gi\n");
    let pod = POD.replace(", limits: {memory: 1Gi}", "");
    let values =
        |args: &[&str]| plimsoll(&[&["lint", "-", "--values"], args].concat(), &pod).stdout;
    assert!(
        values(&[]).contains("  Burstable; min 128Mi, low 0, high unknown, max max\n"),
        "{}",
        values(&[])
    );
    assert!(
        values(&["--config", as_str(&config)]).contains(" high 2.1Gi,"),
        "{}",
        values(&["--config", as_str(&config)])
    );
    assert!(values(&["--node-allocatable", "1Gi"]).contains(" high 934.4Mi,"));
}

#[test]
fn the_help_of_lint_names_every_rule() {
    let help = plimsoll(&["lint", "--help"], "").stdout;
    for rule in plimsoll::commands::lint::Rule::ALL {
        let lines = help.lines().filter(|line| {
            line.split_whitespace()
                .collect::<Vec<_>>()
                .starts_with(&[&rule.level().to_string(), rule.id()])
                && line.ends_with(rule.summary())
        });
        assert_eq!(lines.count(), 1, "{}: {help}", rule.id());
    }
}

#[test]
fn shell_completions_contain_every_command() {
    let help = plimsoll(&["--help"], "").stdout;
    let commands = help.lines().skip_while(|line| !line.starts_with("Commands:")).skip(1);
    let commands: Vec<_> = commands.map_while(|line| line.split_whitespace().next()).collect();
    assert!(commands.contains(&"status") && commands.contains(&"completions"), "{commands:?}");
    for shell in ["bash", "zsh", "fish"] {
        let ran = plimsoll(&["completions", shell], "");
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{shell}");
        assert!(commands.iter().all(|command| ran.stdout.contains(command)), "{shell}");
    }
    assert_eq!(plimsoll(&["completions", "cmd"], "").code, 2);
}

#[test]
fn manual_pages_list_every_command_and_option() {
    let help = plimsoll(&["--help"], "").stdout;
    let commands = help.lines().skip_while(|line| !line.starts_with("Commands:")).skip(1);
    let commands: Vec<_> = commands.map_while(|line| line.split_whitespace().next()).collect();
    let directory = TempDir::new().unwrap();
    let ran = plimsoll(&["man", as_str(directory.path())], "");
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (0, "", ""));
    for command in commands.iter().filter(|command| **command != "help") {
        let page = std::fs::read_to_string(directory.path().join(format!("plimsoll-{command}.1")))
            .unwrap();
        let help = plimsoll(&[command, "--help"], "").stdout;
        let options =
            help.split_whitespace().filter(|word| word.starts_with("--") && word.len() > 2);
        for option in options {
            let option = option.trim_matches(|c: char| !c.is_ascii_alphanumeric());
            // The manual page writes each dash with a backslash. Without the backslash, the dash
            // could become another character.
            assert!(page.contains(&option.replace('-', r"\-")), "{command} {option}: {page}");
        }
    }
    let overview = std::fs::read_to_string(directory.path().join("plimsoll.1")).unwrap();
    assert!(
        commands.iter().all(|command| overview.contains(&command.replace('-', r"\-"))),
        "{overview}"
    );
    let ran = plimsoll(&["man", as_str(&directory.path().join("nowhere"))], "");
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr.contains("nowhere") && ran.stderr.contains("expected a directory"),
        "{}",
        ran.stderr
    );
}
