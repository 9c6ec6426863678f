//! Tests of `plimsoll install` and `plimsoll uninstall` on a temporary directory tree in place of a
//! node. A test double replaces the node's systemd and processes.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use plimsoll::commands::install::{
    Action, Executor, InstallFacts, InstallMode, PathState, Plan, PlanFailure, RuntimeProduct,
    SystemExecutor,
};
use rustix::process::{Pid, Signal, kill_process};

const PROGRAM: &str = "/usr/local/bin/plimsoll";
const LAUNCHED: &str = "/opt/nri/plugins/90-plimsoll";
const SYNCHRONIZED: &str = "wait for the plugin to be synchronized with the runtime";
const CONFIG: &str = "etc/nri/conf.d/90-plimsoll.conf";
const UNIT: &str = "etc/systemd/system/plimsoll.service";
const OFF: &str = "version = 2\n[plugins.\"io.containerd.nri.v1.nri\"]\ndisable = true\nplugin_request_timeout = \"3s\"\n";
const ON: &str = "version = 3\n[plugins.\"io.containerd.nri.v1.nri\"]\ndisable = false\n";

/// A node with test doubles of systemd, the runtime and the plugin's process.
struct Node {
    directory: tempfile::TempDir,
    executor: SystemExecutor,
    runtime: &'static str,
    _cri: UnixListener,
    nri: Option<UnixListener>,
    /// The index of the call that fails, and whether the call takes effect before it fails.
    fails: Option<(usize, bool)>,
    /// The index of the call before which the user interrupts the program.
    interrupted: Option<usize>,
    /// Whether `plimsoll restore` succeeds.
    restores: bool,
    calls: Vec<String>,
}

impl Node {
    fn of_runtime(runtime: &'static str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let host = directory.path();
        for path in [
            "run/systemd/system",
            "run/nri",
            "proc/7",
            "usr/lib/systemd/system",
            "etc/systemd/system",
            "opt",
            "usr/local/bin",
        ] {
            fs::create_dir_all(host.join(path)).unwrap();
        }
        fs::create_dir(host.join("run").join(runtime)).unwrap();
        let cri = UnixListener::bind(host.join(format!("run/{runtime}/{runtime}.sock"))).unwrap();
        let executor = SystemExecutor::new(host, &host.join("run/nri/nri.sock"));
        let node = Self {
            executor,
            directory,
            runtime,
            _cri: cri,
            nri: None,
            fails: None,
            interrupted: None,
            restores: true,
            calls: Vec::new(),
        };
        let unit = format!("[Service]\nExecStart=/usr/bin/{runtime} --log-level warn\n");
        node.put(&format!("usr/lib/systemd/system/{runtime}.service"), &unit);
        node
    }

    /// Returns a node with containerd and this configuration, which determines whether NRI is on.
    fn new(config: &str) -> Self {
        let mut node = Self::of_runtime("containerd");
        node.put("etc/containerd/config.toml", config);
        node.restart_runtime();
        node
    }

    fn product(&self) -> RuntimeProduct {
        match self.runtime {
            "containerd" => RuntimeProduct::Containerd,
            "crio" => RuntimeProduct::Crio,
            other => panic!("unknown runtime {other}"),
        }
    }

    fn host(&self) -> &Path {
        self.directory.path()
    }

    fn socket(&self) -> PathBuf {
        self.host().join("run/nri/nri.sock")
    }

    fn put(&self, path: &str, text: &str) {
        let path = self.host().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn text(&self, path: &str) -> String {
        fs::read_to_string(self.host().join(path)).unwrap()
    }

    fn facts(&self, program: &str) -> InstallFacts {
        InstallFacts::collect(self.host(), &self.socket(), program.into()).unwrap()
    }

    fn plan(&self, program: &str, mode: InstallMode) -> Plan {
        self.facts(program).plan_installation(mode).unwrap()
    }

    fn execute(&mut self, plan: &Plan) -> Result<(), PlanFailure> {
        plan.execute(self, |_| {})
    }

    fn install(&mut self, program: &str, mode: InstallMode) {
        let plan = self.plan(program, mode);
        self.execute(&plan).unwrap();
    }

    /// Returns the path that the kernel reports for a program of the node. The kernel resolves
    /// symbolic links.
    fn without_links(&self, program: &str) -> String {
        match fs::read_link(self.host().join("opt")) {
            Ok(opt) => program.replacen("/opt/", &format!("/{}/", opt.display()), 1),
            Err(_) => program.to_owned(),
        }
    }

    /// Makes this program the running plugin. `None` means that no plugin runs.
    fn set_process(&self, program: Option<&str>) {
        let lock = self.host().join("run/nri/plimsoll.lock");
        let exe = self.host().join("proc/7/exe");
        let _ = fs::remove_file(&exe);
        let mut locks = String::new();
        if let Some(program) = program {
            fs::write(&lock, "").unwrap();
            self.put("run/plimsoll/originals", "");
            symlink(self.without_links(program), exe).unwrap();
            let unit = if program.starts_with(PROGRAM) { "plimsoll" } else { self.runtime };
            self.put("proc/7/cgroup", &format!("0::/system.slice/{unit}.service\n"));
            let lock = fs::metadata(lock).unwrap();
            let (major, minor) = (rustix::fs::major(lock.dev()), rustix::fs::minor(lock.dev()));
            locks = format!(
                "1: FLOCK  ADVISORY  WRITE 7 {major:02x}:{minor:02x}:{} 0 EOF\n",
                lock.ino()
            );
        }
        self.put("proc/locks", &locks);
    }

    fn process(&self) -> Option<String> {
        let program = fs::read_link(self.host().join("proc/7/exe")).ok()?;
        Some(program.to_str().unwrap().replace("/var/opt/", "/opt/"))
    }

    /// Simulates a restart of the runtime. The runtime listens if NRI is on and plugins may
    /// connect. The runtime also launches the program in its plugin directory.
    fn restart_runtime(&mut self) {
        self.nri = None;
        let _ = fs::remove_file(self.socket());
        if self.process().is_some_and(|program| program.starts_with(LAUNCHED)) {
            self.set_process(None);
        }
        if self.executor.execute(&Action::CheckNri(self.product(), None)).is_err() {
            return;
        }
        let config =
            fs::read_to_string(self.host().join("etc/containerd/config.toml")).unwrap_or_default();
        if !config.contains("disable_connections = true") && !config.contains("socket_path") {
            self.nri = Some(UnixListener::bind(self.socket()).unwrap());
        }
        if self.host().join(&LAUNCHED[1..]).exists() && self.process().is_none() {
            self.set_process(Some(LAUNCHED));
        }
    }

    fn systemctl(&mut self, words: &[String]) {
        let enabled =
            self.host().join("etc/systemd/system/multi-user.target.wants/plimsoll.service");
        let words: Vec<_> =
            words.iter().map(String::as_str).filter(|word| *word != "--no-block").collect();
        match words[..] {
            ["daemon-reload"] => {}
            ["enable", "plimsoll"] => {
                fs::create_dir_all(enabled.parent().unwrap()).unwrap();
                // `systemctl enable` also succeeds for an enabled unit.
                let _ = symlink("../plimsoll.service", enabled);
            }
            ["disable", "plimsoll"] => {
                let _ = fs::remove_file(enabled);
            }
            ["disable", "--now", "plimsoll"] => {
                let units = [UNIT, "usr/lib/systemd/system/plimsoll.service"];
                assert!(
                    units.iter().any(|unit| self.host().join(unit).exists()),
                    "systemd must have the unit file"
                );
                let _ = fs::remove_file(enabled);
                self.set_process(None);
            }
            ["start" | "restart", "plimsoll"] => {
                assert!(self.host().join(UNIT).exists(), "systemd must have the unit file");
                self.set_process(Some(PROGRAM));
            }
            ["stop", "plimsoll"] => self.set_process(None),
            ["restart", runtime] if runtime == self.runtime => self.restart_runtime(),
            _ => panic!("{words:?}"),
        }
    }

    /// Returns all files with their content, the running program, and whether a server listens at
    /// the NRI socket.
    fn state(&self) -> (BTreeMap<PathBuf, String>, Option<String>, bool) {
        let entries = walkdir::WalkDir::new(self.host()).into_iter().map(Result::unwrap);
        let entries = entries.filter(|entry| {
            let path = entry.path().strip_prefix(self.host()).unwrap();
            !path.starts_with("proc")
                && path != Path::new("run/nri/nri.sock")
                && !path.ends_with("multi-user.target.wants")
        });
        let files = entries.map(|entry| {
            let text = if entry.file_type().is_file() {
                fs::read_to_string(entry.path()).unwrap()
            } else {
                String::new()
            };
            (entry.into_path(), text)
        });
        // An undo creates a new file with the old content. The kernel still reports the running
        // program as deleted.
        let process = self.process().map(|program| program.replace(" (deleted)", ""));
        (files.collect(), process, self.nri.is_some())
    }
}

impl Executor for Node {
    fn execute(&mut self, action: &Action) -> Result<Vec<PathState>, String> {
        let fails = self.fails.filter(|(at, _)| *at == self.calls.len());
        self.calls.push(action.to_string());
        if let Some((_, false)) = fails {
            return Err("injected".to_owned());
        }
        let mut before = Vec::new();
        match action {
            Action::Systemctl(words) => self.systemctl(words),
            Action::Terminate(program) => {
                let program = program.replace("/var/opt/", "/opt/");
                assert!(
                    self.process()
                        .is_none_or(|process| process.trim_end_matches(" (deleted)") == program)
                );
                self.set_process(None);
            }
            Action::Replace(_) if self.process().is_none() => {
                return Err("there is none".to_owned());
            }
            Action::Replace(program) => {
                assert!(self.nri.is_some(), "it connects");
                // A broken program ends right after its start.
                let is_broken = self.text(&program[1..]) == "broken";
                self.set_process(Some(program).filter(|_| !is_broken).map(String::as_str));
            }
            // If original values are stored, `plimsoll restore` needs the runtime's socket or a
            // running plugin.
            Action::Restore if !self.restores => return Err("injected".to_owned()),
            Action::Restore => {
                let is_asked = self.nri.is_some() || self.process().is_some();
                assert!(is_asked || !self.host().join("run/plimsoll/originals").exists());
                self.put("run/plimsoll/restored", "");
            }
            Action::Write { path, .. } => {
                before = self.executor.execute(action)?;
                // The kernel appends this text to the path of a running program whose file was
                // replaced.
                if self.process().as_ref() == Some(path) {
                    self.set_process(Some(&format!("{path} (deleted)")));
                }
            }
            Action::AwaitSynchronized => assert!(self.process().is_some()),
            other => before = self.executor.execute(other)?,
        }
        match fails {
            Some(_) => Err("injected".to_owned()),
            None => Ok(before),
        }
    }

    fn restore_path(&mut self, what: PathState) -> Result<(), String> {
        self.executor.restore_path(what)
    }

    fn is_interrupted(&self) -> bool {
        self.interrupted == Some(self.calls.len())
    }
}

#[test]
fn enabling_nri_leaves_the_operators_file_unchanged() {
    let mut node = Node::new(OFF);
    node.install("new", InstallMode::External);
    assert_eq!(node.text("etc/containerd/config.toml"), OFF);
    let drop_in = node.text("etc/systemd/system/containerd.service.d/zz-plimsoll.conf");
    let command = "\n[Service]\nExecStart=\nExecStart=/usr/bin/containerd --log-level warn --config /etc/containerd/plimsoll/config.toml\n";
    assert!(drop_in.ends_with(command), "{drop_in}");
    let config: toml::Table = node.text("etc/containerd/plimsoll/config.toml").parse().unwrap();
    let expected = "version = 2\nimports = ['/etc/containerd/config.toml', '/etc/containerd/plimsoll/nri.toml']";
    assert_eq!(config, expected.parse().unwrap());
    // containerd 1.7 replaces the whole section of a plugin, so the new section repeats the
    // operator's other keys.
    let switch: toml::Table = node.text("etc/containerd/plimsoll/nri.toml").parse().unwrap();
    assert_eq!(switch, OFF.replace("true", "false").parse().unwrap());
    assert_eq!(node.process().as_deref(), Some(PROGRAM));
    assert!(node.nri.is_some());
    assert_eq!(node.text(&PROGRAM[1..]), "new");
    for (path, shipped) in [(CONFIG, "90-plimsoll.conf"), (UNIT, "plimsoll.service")] {
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(shipped);
        assert_eq!(node.text(path), fs::read_to_string(shipped).unwrap());
    }
}

#[test]
fn an_imported_directory_receives_the_nri_setting() {
    let config = "version = 2\nimports = ['conf.d/*.toml']\ndisabled_plugins = []\n";
    let mut node = Node::new(&format!("{config}{}", OFF.replace("version = 2\n", "")));
    node.install("new", InstallMode::External);
    let switch: toml::Table = node.text("etc/containerd/conf.d/zz-plimsoll.toml").parse().unwrap();
    assert_eq!(switch, OFF.replace("true", "false").parse().unwrap());
    assert!(!node.host().join("etc/systemd/system/containerd.service.d").exists());
    assert!(node.nri.is_some());
    let plan = node.facts("").plan_removal().unwrap();
    node.execute(&plan).unwrap();
    assert!(!node.host().join("etc/containerd/conf.d").exists());
}

#[test]
fn a_configuration_that_comes_later_counts_too() {
    let mut node = Node::of_runtime("containerd");
    node.install("new", InstallMode::External);
    assert!(node.nri.is_some());
    let config: toml::Table = node.text("etc/containerd/plimsoll/config.toml").parse().unwrap();
    // Go's filepath.Glob accepts this pattern. Without a `*`, containerd would read the text as a
    // file name.
    let expected = "version = 2\nimports = ['/etc/containerd/config.tom[*l]', '/etc/containerd/plimsoll/nri.toml']";
    assert_eq!(config, expected.parse().unwrap());
    assert!(!node.plan("new", InstallMode::Launched).to_string().contains("/plugins-of-mine/"));
    node.put("etc/containerd/config.toml.old", &format!("{OFF}plugin_path = '/old'\n"));
    node.put("etc/containerd/config.toml", &format!("{OFF}plugin_path = '/plugins-of-mine'\n"));
    let plan = node.plan("new", InstallMode::Launched).to_string();
    assert!(plan.contains("write /plugins-of-mine/90-plimsoll"), "{plan}");
    assert_eq!(
        node.plan("new", InstallMode::External).steps,
        [],
        "the file that switches NRI on has priority"
    );
}

#[test]
fn the_drop_in_outranks_an_operators_override() {
    let mut node = Node::new(OFF);
    let command =
        "[Service]\nExecStart=\nExecStart=/opt/containerd -config=/etc/containerd/config.toml\n";
    node.put("etc/systemd/system/containerd.service.d/override.conf", command);
    node.install("new", InstallMode::External);
    let drop_in = node.text("etc/systemd/system/containerd.service.d/zz-plimsoll.conf");
    assert!(
        drop_in.ends_with(
            "\nExecStart=/opt/containerd --config /etc/containerd/plimsoll/config.toml\n"
        ),
        "{drop_in}"
    );
    assert!(node.nri.is_some());
}

#[test]
fn nri_only_enables_nri_without_installing_plimsoll() {
    let mut node = Node::new(OFF);
    let plan = node.facts("").plan_nri().unwrap();
    node.execute(&plan).unwrap();
    assert!(node.nri.is_some());
    assert_eq!(node.text("etc/containerd/config.toml"), OFF);
    let commands: Vec<_> = node.calls.iter().filter(|call| call.starts_with("systemctl")).collect();
    assert_eq!(commands, ["systemctl daemon-reload", "systemctl restart containerd"]);
    for path in [&PROGRAM[1..], CONFIG, UNIT] {
        assert!(!node.host().join(path).exists(), "{path}");
    }
    assert_eq!(node.facts("").plan_nri().unwrap().steps, [], "NRI is on");
    // The configuration enables NRI, but the runtime has not restarted since the change.
    node.nri = None;
    let plan = node.facts("").plan_nri().unwrap();
    let actions: Vec<_> = plan.steps.iter().map(|step| step.action.to_string()).collect();
    assert_eq!(actions, ["systemctl restart containerd", "wait for the runtime's NRI socket"]);
}

#[test]
fn nri_only_is_refused_without_usable_connections() {
    let refusal = |node: &Node| node.facts("").plan_nri().unwrap_err().to_string();
    for (key, found) in [
        ("disable_connections = true", "disable_connections"),
        ("socket_path = '/run/o'", "/run/o"),
    ] {
        for config in [ON, OFF] {
            let refused = refusal(&Node::new(&format!("{config}{key}\n")));
            assert!(
                refused.contains(found) && refused.contains("change this setting"),
                "{refused}"
            );
        }
    }
    let node = Node::of_runtime("crio");
    node.put("run/crio/version", "\"1.25.3\"");
    let refused = refusal(&node);
    assert_eq!(
        refused,
        "CRI-O 1.25.3 has no NRI: upgrade it to 1.30.0 or newer, and call the command again"
    );
}

#[test]
fn from_container_uses_the_init_mount_namespace() {
    // The first process sees neither systemd nor a runtime. The caller of the program sees systemd.
    let script =
        "mount -t tmpfs none /run; mkdir -p /run/systemd/system; \"$0\" install --nri-only $1";
    let said = |from: &str| {
        let mut command = Command::new("unshare");
        command.args("--mount --pid --fork --mount-proc -- sh -c".split(' '));
        command.args(["mount -t tmpfs none /run; unshare --mount -- \"$@\"; exit 0", "sh"]);
        command.args(["sh", "-c", script, env!("CARGO_BIN_EXE_plimsoll"), from]);
        let output = command.output().unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    let without = said("");
    assert!(without.contains("expected containerd or CRI-O to run here"), "{without}");
    let from_container = said("--from-container");
    assert!(from_container.contains("systemd does not run here"), "{from_container}");
}

#[test]
fn crio_gets_a_drop_in() {
    let mut node = Node::of_runtime("crio");
    node.put("run/crio/version", "\"1.34.0\"");
    node.put("etc/crio/crio.conf.d/crio.conf", "[crio.nri]\nenable_nri = false\n");
    // Another runtime, which does not run, has left this file.
    node.put("etc/containerd/config.toml", OFF);
    node.install("new", InstallMode::Launched);
    let switch: toml::Table = node.text("etc/crio/crio.conf.d/zz-plimsoll.conf").parse().unwrap();
    assert_eq!(switch, "[crio.nri]\nenable_nri = true".parse().unwrap());
    assert_eq!(node.process().as_deref(), Some(LAUNCHED));
    let plan = node.facts("").plan_removal().unwrap();
    node.execute(&plan).unwrap();
    assert!(!node.host().join("etc/crio/crio.conf.d/zz-plimsoll.conf").exists());
    assert!(node.nri.is_none());
}

#[test]
fn reinstalling_does_nothing_and_keeps_the_configuration() {
    for mode in [InstallMode::External, InstallMode::Launched] {
        for config in [OFF, ON] {
            let mut node = Node::new(config);
            node.put(CONFIG, "memoryThrottlingFactor: 0.5\n");
            node.install("new", mode);
            assert_eq!(node.plan("new", mode).steps, [], "{mode:?}");
            assert_eq!(node.text(CONFIG), "memoryThrottlingFactor: 0.5\n");
        }
    }
}

#[test]
fn an_upgrade_restarts_nothing_but_the_plugin() {
    let mut node = Node::new(ON);
    node.install("old", InstallMode::External);
    node.calls.clear();
    node.install("new", InstallMode::External);
    assert_eq!(node.calls, [format!("write {PROGRAM}"), "systemctl restart plimsoll".to_owned()]);
    // The previous upgrade was interrupted before it restarted the plugin.
    node.set_process(Some(&format!("{PROGRAM} (deleted)")));
    node.calls.clear();
    node.install("new", InstallMode::External);
    assert_eq!(node.calls, ["systemctl restart plimsoll"]);

    let mut node = Node::new(ON);
    node.install("old", InstallMode::Launched);
    node.calls.clear();
    node.install("new", InstallMode::Launched);
    let writes = [PROGRAM, LAUNCHED].map(|path| format!("write {path}"));
    assert_eq!(node.calls[..2], writes);
    let waits = [format!("wait for {LAUNCHED} to run"), SYNCHRONIZED.to_owned()];
    assert_eq!(
        node.calls[2..],
        [&[format!("replace the running {LAUNCHED}")], &waits[..]].concat()
    );
}

#[test]
fn switching_modes_replaces_the_other_installation() {
    let mut node = Node::new(ON);
    node.install("new", InstallMode::External);
    node.install("new", InstallMode::Launched);
    assert_eq!(node.process().as_deref(), Some(LAUNCHED));
    assert!(!node.host().join(UNIT).exists());
    node.install("new", InstallMode::External);
    assert_eq!(node.process().as_deref(), Some(PROGRAM));
    assert!(!node.host().join(&LAUNCHED[1..]).exists());
    assert_eq!(node.plan("new", InstallMode::External).steps, []);
}

#[test]
fn installing_leaves_only_one_launched_program() {
    let plugins = |node: &Node| {
        let entries = fs::read_dir(node.host().join("opt/nri/plugins")).unwrap().flatten();
        let mut names: Vec<_> =
            entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    for others in [&["90-plimsoll", "95-plimsoll", "plimsoll"][..], &["plimsoll"]] {
        let prepare = || {
            let mut node = Node::new(ON);
            for name in others.iter().chain(&["10-other"]) {
                node.put(&format!("opt/nri/plugins/{name}"), "by hand");
            }
            node.restart_runtime();
            node
        };
        let mut node = prepare();
        node.install("new", InstallMode::Launched);
        assert_eq!(plugins(&node), ["10-other", "90-plimsoll"]);
        assert_eq!(
            (node.process().as_deref(), &*node.text(&LAUNCHED[1..])),
            (Some(LAUNCHED), "new")
        );
        assert_eq!(node.plan("new", InstallMode::Launched).steps, []);
        each_step_may_fail(prepare, |node| node.plan("new", InstallMode::Launched));
    }
    // The plan replaces the running program, and removes the other program.
    let node = Node::new(ON);
    for name in ["90-plimsoll", "95-plimsoll"] {
        node.put(&format!("opt/nri/plugins/{name}"), "by hand");
    }
    node.set_process(Some("/opt/nri/plugins/95-plimsoll"));
    let plan = node.plan("new", InstallMode::Launched).to_string();
    assert!(plan.contains("remove /opt/nri/plugins/90-plimsoll"), "{plan}");
    assert!(plan.contains("replace the running /opt/nri/plugins/95-plimsoll"), "{plan}");
}

#[test]
fn uninstalling_leaves_what_was_there_before() {
    for (mode, config) in [
        (InstallMode::External, OFF),
        (InstallMode::Launched, OFF),
        (InstallMode::External, ON),
        (InstallMode::Launched, ON),
    ] {
        let mut node = Node::new(config);
        node.put("etc/nri/conf.d/10-other.conf", "");
        let before = node.state();
        node.install("new", mode);
        node.put(CONFIG, "memoryThrottlingFactor: 0.5\n");
        node.put("etc/systemd/system/plimsoll.service.d/override.conf", "[Service]\n");
        node.put("run/plimsoll/restored", "");
        let plan = node.facts("").plan_removal().unwrap();
        let shown = plan.to_string();
        assert!(shown.contains("keep a copy") && shown.contains("your own settings"), "{shown}");
        node.execute(&plan).unwrap();
        assert_eq!(node.state(), before, "{mode:?}");
        assert_eq!(node.facts("").plan_removal().unwrap(), Plan::default());
    }
}

/// Makes each step of a plan fail, and checks that the undo restores the former state. Returns the
/// number of steps.
fn each_step_may_fail(prepare: impl Fn() -> Node, plan_of: impl Fn(&Node) -> Plan) -> usize {
    let steps = plan_of(&prepare()).steps.len();
    for at in 0..steps {
        for is_done in [false, true] {
            let mut node = prepare();
            let plan = plan_of(&node);
            // Only a command can fail after it has taken effect. A failed action on files undoes
            // its own changes.
            if is_done && !matches!(plan.steps[at].action, Action::Systemctl(_)) {
                continue;
            }
            let before = node.state();
            node.calls.clear();
            node.fails = Some((at, is_done));
            let failed = node.execute(&plan).unwrap_err().to_string();
            let step = &plan.steps[at].action;
            assert_eq!(failed, format!("cannot {step}: injected; all earlier steps were undone"));
            assert_eq!(node.state(), before, "{step}, done: {is_done}: {:?}", node.calls);
            let again = plan_of(&node).steps;
            assert_eq!(again, plan.steps, "a second attempt has the same plan");
        }
    }
    steps
}

#[test]
fn a_failed_step_undoes_all_earlier_ones() {
    let installed = |config: &str, mode| {
        let mut node = Node::new(config);
        node.install("old", mode);
        node
    };
    let fresh =
        each_step_may_fail(|| Node::new(OFF), |node| node.plan("new", InstallMode::External));
    assert!(fresh >= 11, "{fresh}");
    each_step_may_fail(|| Node::new(OFF), |node| node.plan("new", InstallMode::Launched));
    let upgraded = || {
        let node = installed(ON, InstallMode::External);
        node.put(UNIT, "of an older version");
        node
    };
    each_step_may_fail(upgraded, |node| node.plan("new", InstallMode::External));
    each_step_may_fail(
        || installed(ON, InstallMode::Launched),
        |node| node.plan("new", InstallMode::Launched),
    );
    each_step_may_fail(
        || installed(ON, InstallMode::External),
        |node| node.plan("new", InstallMode::Launched),
    );
    each_step_may_fail(
        || installed(ON, InstallMode::Launched),
        |node| node.plan("new", InstallMode::External),
    );
    each_step_may_fail(
        || installed(OFF, InstallMode::External),
        |node| node.facts("").plan_removal().unwrap(),
    );
    each_step_may_fail(
        || installed(OFF, InstallMode::Launched),
        |node| node.facts("").plan_removal().unwrap(),
    );
}

#[test]
fn a_program_behind_symlinked_opt_is_recognized() {
    let mut node = Node::new(ON);
    fs::remove_dir(node.host().join("opt")).unwrap();
    fs::create_dir_all(node.host().join("var/opt")).unwrap();
    symlink("var/opt", node.host().join("opt")).unwrap();
    let before = node.state();
    node.install("old", InstallMode::Launched);
    assert_eq!(
        fs::read_link(node.host().join("proc/7/exe")).unwrap(),
        Path::new("/var/opt/nri/plugins/90-plimsoll")
    );
    assert_eq!(node.plan("old", InstallMode::Launched).steps, []);
    node.install("new", InstallMode::Launched);
    assert_eq!(node.text(&LAUNCHED[1..]), "new");
    node.install("new", InstallMode::External);
    node.install("new", InstallMode::Launched);
    let plan = node.facts("").plan_removal().unwrap();
    node.execute(&plan).unwrap();
    assert_eq!(node.state(), before);
}

#[test]
fn waiting_ends_once_the_plugin_is_synchronized() {
    let host = tempfile::tempdir().unwrap();
    fs::create_dir_all(host.path().join("run/plimsoll")).unwrap();
    let socket = UnixListener::bind(host.path().join("run/plimsoll/plimsoll.sock")).unwrap();
    let mut executor = SystemExecutor::new(host.path(), &host.path().join("run/nri/nri.sock"));
    let waits = thread::spawn(move || executor.execute(&Action::AwaitSynchronized).map(drop));
    for is_synchronized in [false, false, true] {
        assert!(!waits.is_finished());
        let (mut asker, _) = socket.accept().unwrap();
        // Read the request first, because the client does not accept an answer before its request.
        let mut question = [0; 4096];
        assert!(asker.read(&mut question).unwrap() > 0);
        let node = serde_json::json!({
            "memory": null, "available": null, "allocatable": null, "guard": null, "podsMax": null,
            "synchronized": is_synchronized, "standsAside": true,
            "requests": 0, "limits": 0, "unlimited": 0, "usage": 0,
        });
        let status = serde_json::json!({
            "version": 1, "plimsoll": "0.1.0", "node": node, "cgroups": [], "containers": [], "down": [],
        });
        let status = status.to_string();
        write!(asker, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{status}", status.len())
            .unwrap();
    }
    assert_eq!(waits.join().unwrap(), Ok(()));
}

#[test]
fn without_connections_upgrades_restart_the_runtime() {
    for alone in ["disable_connections = true\n", "socket_path = '/run/other.sock'\n"] {
        let mut node = Node::new(&format!("{ON}{alone}"));
        node.install("old", InstallMode::Launched);
        assert_eq!(node.process().as_deref(), Some(LAUNCHED));
        assert_eq!(node.plan("old", InstallMode::Launched).steps, []);
        node.calls.clear();
        node.install("new", InstallMode::Launched);
        let runs = format!("wait for {LAUNCHED} to run");
        assert_eq!(
            node.calls[2..],
            ["systemctl restart containerd".to_owned(), runs, SYNCHRONIZED.to_owned()]
        );
        let upgrade = || {
            let mut node = Node::new(&format!("{ON}{alone}"));
            node.install("old", InstallMode::Launched);
            node
        };
        each_step_may_fail(upgrade, |node| node.plan("new", InstallMode::Launched));
        let plan = node.facts("").plan_removal().unwrap();
        node.execute(&plan).unwrap();
    }
    // If only the program were replaced, it would not find its configuration in this directory.
    let mut node = Node::new(&format!("{ON}plugin_config_path = '/etc/plugins'\n"));
    node.install("old", InstallMode::Launched);
    let steps = node.plan("new", InstallMode::Launched).to_string();
    assert!(
        steps.contains("systemctl restart containerd") && !steps.contains("replace the running"),
        "{steps}"
    );
}

#[test]
fn an_upgrade_exiting_at_start_is_undone() {
    let mut node = Node::new(ON);
    node.install("old", InstallMode::Launched);
    let before = node.state();
    let plan = node.plan("broken", InstallMode::Launched);
    // Make the wait for the program fail at once, because the program has already ended.
    node.fails = Some((node.calls.len() + plan.steps.len() - 2, false));
    let failed = node.execute(&plan).unwrap_err().to_string();
    assert_eq!(node.state(), before, "{failed}: {:?}", node.calls);
    assert_eq!(node.plan("old", InstallMode::Launched).steps, []);
}

#[test]
fn a_failed_restore_keeps_the_originals_file() {
    let mut node = Node::new(OFF);
    let plan = node.plan("new", InstallMode::External);
    let last = plan.steps.len() - 1;
    assert!(matches!(plan.steps[last].action, Action::Systemctl(_)));
    // The last step fails, and `plimsoll restore` during the undo also fails.
    node.fails = Some((last, true));
    node.restores = false;
    let failed = node.execute(&plan).unwrap_err().to_string();
    assert!(failed.contains("restore the original values of all cgroups: injected"), "{failed}");
    assert!(
        failed.contains("remove /run/plimsoll: kept, because the plugin still needs it"),
        "{failed}"
    );
    assert!(node.host().join("run/plimsoll/originals").exists());
}

#[test]
fn unfixable_problems_are_refused_with_advice() {
    let refusal = |config: &str, mode| {
        Node::new(config).facts("new").plan_installation(mode).unwrap_err().to_string()
    };
    let disabled = refusal(
        "version = 2\ndisabled_plugins = ['io.containerd.nri.v1.nri']\n",
        InstallMode::External,
    );
    assert!(
        disabled.contains("disabled_plugins") && disabled.contains("remove the entry"),
        "{disabled}"
    );
    let old = refusal(&OFF.replace("version = 2\n", ""), InstallMode::External);
    assert!(old.contains("containerd config migrate"), "{old}");
    let alone = refusal(&format!("{ON}disable_connections = true\n"), InstallMode::External);
    assert!(alone.contains("--mode launched"), "{alone}");
    assert!(
        Node::new(&format!("{ON}disable_connections = true\n"))
            .facts("new")
            .plan_installation(InstallMode::Launched)
            .is_ok()
    );
    let elsewhere =
        refusal(&format!("{ON}socket_path = '/run/other.sock'\n"), InstallMode::External);
    assert!(elsewhere.contains("/run/other.sock"), "{elsewhere}");
    let node = Node::new(OFF);
    node.put(
        "usr/lib/systemd/system/containerd.service",
        "[Service]\nExecStart=/usr/bin/containerd $OPTIONS\n",
    );
    let unknown =
        node.facts("new").plan_installation(InstallMode::External).unwrap_err().to_string();
    assert!(unknown.contains("cannot tell which configuration"), "{unknown}");

    let node = Node::new(ON);
    node.set_process(Some("/home/me/plimsoll"));
    let own = node.facts("new").plan_installation(InstallMode::External).unwrap_err().to_string();
    assert!(own.contains("process 7") && own.contains("/home/me/plimsoll"), "{own}");
    // A DaemonSet's program may have the same path as an installed program. The DaemonSet's program
    // holds the node's lock.
    let pod = "0::/kubepods.slice/kubepods-poda.slice/cri-containerd-b.scope\n";
    for program in ["/usr/bin/plimsoll", PROGRAM] {
        node.set_process(Some(program));
        node.put("proc/7/cgroup", pod);
        for refusal in [
            node.facts("new").plan_installation(InstallMode::External),
            node.facts("new").plan_removal(),
        ] {
            assert!(refusal.unwrap_err().to_string().contains("remove the DaemonSet"));
        }
    }

    let collect = |node: &Node| {
        InstallFacts::collect(node.host(), &node.socket(), Vec::new()).unwrap_err().to_string()
    };
    for (path, advice) in
        [(UNIT, "systemctl unmask plimsoll"), (&LAUNCHED[1..], "expected a regular file")]
    {
        let node = Node::new(ON);
        fs::create_dir_all(node.host().join("opt/nri/plugins")).unwrap();
        symlink("/dev/null", node.host().join(path)).unwrap();
        let link = collect(&node);
        assert!(link.starts_with(&format!("/{path}: ")) && link.contains(advice), "{link}");
    }

    let bare = tempfile::tempdir().unwrap();
    let collect = || {
        InstallFacts::collect(bare.path(), &bare.path().join("nri.sock"), Vec::new())
            .unwrap_err()
            .to_string()
    };
    assert!(collect().contains("systemd"));
    fs::create_dir_all(bare.path().join("run/systemd/system")).unwrap();
    assert!(collect().contains("found neither"));
}

#[test]
fn package_files_are_used_and_left_unchanged() {
    let mut node = Node::new(ON);
    node.put(
        "usr/lib/systemd/system/plimsoll.service",
        "[Service]\nExecStart=/usr/bin/plimsoll run\n",
    );
    // `systemctl edit --full` creates this copy of the package's unit.
    let edited = "[Service]\nExecStart=/usr/bin/plimsoll run --log-format json\n";
    let own = "etc/systemd/system/plimsoll.service.d/override.conf";
    node.put(UNIT, edited);
    node.put(own, "[Service]\n");
    node.put(CONFIG, "logLevel: debug\n");
    let before = node.state();
    node.install("new", InstallMode::External);
    assert!(!node.host().join(&PROGRAM[1..]).exists());
    let newer = node.plan("newer", InstallMode::External);
    assert_eq!(newer.steps, []);
    assert!(newer.to_string().contains("upgrade it with the"), "{newer}");
    node.install("new", InstallMode::Launched);
    let plan = node.facts("").plan_removal().unwrap();
    assert!(plan.to_string().contains("files of a package stay"), "{plan}");
    node.execute(&plan).unwrap();
    assert_eq!(node.state(), before);
}

#[test]
fn a_masked_package_unit_prevents_external_mode() {
    let package = "usr/lib/systemd/system/plimsoll.service";
    let unit = "[Service]\nExecStart=/usr/bin/plimsoll run\n";
    for (mask, advice) in [
        ("run/systemd/system/plimsoll.service", "systemctl unmask --runtime plimsoll"),
        // An empty unit file masks the unit, too.
        (UNIT, "systemctl unmask plimsoll"),
    ] {
        let node = Node::new(ON);
        node.put(package, unit);
        node.put(mask, "");
        let refusal = node.facts("new").plan_installation(InstallMode::External).unwrap_err();
        let refusal = refusal.to_string();
        assert!(refusal.starts_with(&format!("/{mask} masks plimsoll.service")), "{refusal}");
        assert!(refusal.contains(advice), "{refusal}");
        // The runtime launches the plugin without the unit.
        assert!(node.facts("new").plan_installation(InstallMode::Launched).is_ok());
        fs::remove_file(node.host().join(mask)).unwrap();
        assert!(node.facts("new").plan_installation(InstallMode::External).is_ok());
    }
    // The unit that install writes overrides a mask in /run.
    let mut node = Node::new(ON);
    node.put("run/systemd/system/plimsoll.service", "");
    node.install("new", InstallMode::External);
    assert_eq!(node.process().as_deref(), Some(PROGRAM));
}

#[test]
fn leftover_package_links_are_reused_or_removed() {
    let enabled = "etc/systemd/system/multi-user.target.wants/plimsoll.service";
    let left = || {
        let mut node = Node::new(ON);
        node.put("etc/systemd/system/multi-user.target.wants/other.service", "");
        symlink("/usr/lib/systemd/system/plimsoll.service", node.host().join(enabled)).unwrap();
        node.restart_runtime();
        node
    };
    for mode in [InstallMode::External, InstallMode::Launched] {
        let mut node = left();
        node.install("new", mode);
        assert_eq!(
            node.host().join(enabled).symlink_metadata().is_ok(),
            mode == InstallMode::External
        );
        let plan = node.facts("").plan_removal().unwrap();
        node.execute(&plan).unwrap();
        assert!(node.host().join(enabled).symlink_metadata().is_err(), "{mode:?}");
    }
    let mut node = left();
    let plan = node.facts("").plan_removal().unwrap();
    node.execute(&plan).unwrap();
    assert!(node.host().join(enabled).symlink_metadata().is_err());
    each_step_may_fail(left, |node| node.plan("new", InstallMode::Launched));
    each_step_may_fail(left, |node| node.facts("").plan_removal().unwrap());
}

#[test]
fn later_packages_block_no_upgrade_or_removal() {
    let mut node = Node::new(ON);
    node.install("old", InstallMode::External);
    node.put(
        "usr/lib/systemd/system/plimsoll.service",
        "[Service]\nExecStart=/usr/bin/plimsoll run\n",
    );
    node.install("new", InstallMode::External);
    assert_eq!(node.text(&PROGRAM[1..]), "new");
    let plan = node.facts("").plan_removal().unwrap();
    node.execute(&plan).unwrap();
    assert!(!node.host().join(&PROGRAM[1..]).exists() && !node.host().join(UNIT).exists());
    assert!(node.host().join(CONFIG).exists());
}

#[test]
fn postinst_enables_only_without_another_installation() {
    let enables = |prepare: &dyn Fn(&Node)| {
        let node = Node::new(ON);
        prepare(&node);
        let (called, stderr) = maintain(&node, "postinst", "configure");
        assert_ne!(
            called.contains("enable plimsoll.service"),
            stderr.contains("already"),
            "{called}{stderr}"
        );
        called.contains("enable plimsoll.service")
    };
    let shipped = fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/plimsoll.service"),
    )
    .unwrap();
    assert!(enables(&|_| {}));
    assert!(enables(&|node| node.put(UNIT, &shipped.replace("/usr/local/bin/", "/usr/bin/"))));
    assert!(enables(&|node| symlink("/dev/null", node.host().join(UNIT)).unwrap()));
    assert!(!enables(&|node| node.put(UNIT, &shipped)));
    assert!(!enables(&|node| node.put(&LAUNCHED[1..], "")));
}

#[test]
fn purge_keeps_the_link_of_another_installation() {
    let node = Node::new(ON);
    let (called, _) = maintain(&node, "postrm", "purge");
    assert_eq!(called, "deb-systemd-helper purge plimsoll.service\n");
    let mut node = Node::new(ON);
    node.install("new", InstallMode::External);
    let (called, _) = maintain(&node, "postrm", "purge");
    assert_eq!(called, "");
}

/// Runs a maintainer script of the package on a node. Test doubles replace the commands that the
/// script calls. Returns the calls and standard error.
fn maintain(node: &Node, script: &str, action: &str) -> (String, String) {
    for program in ["systemctl", "deb-systemd-helper"] {
        let text = format!("#!/bin/sh\necho {program} $* >>{}/called\n", node.host().display());
        let program = format!("usr/bin/{program}");
        node.put(&program, &text);
        fs::set_permissions(node.host().join(program), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut command = Command::new("sh");
    command
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/debian").join(script))
        .arg(action);
    command
        .env("DPKG_ROOT", node.host())
        .env("PATH", format!("{}/usr/bin:/usr/bin:/bin", node.host().display()));
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    (fs::read_to_string(node.host().join("called")).unwrap_or_default(), stderr)
}

#[test]
fn prerm_restores_unless_another_instance_runs() {
    // Test doubles replace the commands that would act on this machine. A new file system replaces
    // /run.
    let prepare = "mount -t tmpfs none /run; mkdir -p /run/systemd/system /run/nri /run/plimsoll /run/bin; cd /run/bin; \
                   printf '#!/bin/sh\\necho ${0##*/} $* >>/run/called' >plimsoll; cp plimsoll deb-systemd-invoke; \
                   printf '#!/bin/sh\\ncat /run/service' >systemctl; chmod 755 *; echo 0 >/run/service; PATH=/run/bin:$PATH";
    let removal = "sh $0 remove 2>&1; cat /run/called; test ! -e /run/plimsoll || echo kept";
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/debian/prerm");
    let said = |instance: &str| {
        let mut command = Command::new("unshare");
        command.args("--mount --pid --fork --mount-proc -- sh -c".split(' '));
        command.arg(format!("{prepare}; {instance}\n{removal}")).arg(&script);
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    let lock = "/run/nri/plimsoll.lock";
    let holds = format!(
        "flock {lock} sleep 60 >/dev/null 2>&1 & until ! flock -n {lock} true; do sleep 0.01; done"
    );
    for (instance, is_restored) in [
        (String::new(), true),
        (format!("touch {lock}"), true),
        (format!("{holds}; echo $! >/run/service"), true),
        // The service waits for the lock of the other instance.
        (format!("{holds}; echo $$ >/run/service"), false),
        (holds.clone(), false),
    ] {
        let said = said(&instance);
        let stop = "deb-systemd-invoke stop plimsoll.service\n";
        let expected =
            if is_restored { format!("plimsoll restore\n{stop}") } else { format!("{stop}kept\n") };
        assert_eq!(said, expected, "{instance}");
    }
}

/// Returns a node that passes all checks that `plimsoll install` requires.
fn able() -> Node {
    let node = Node::new(OFF);
    for path in ["sys/fs/cgroup", "proc/sys/kernel"] {
        fs::create_dir_all(node.host().join(path)).unwrap();
    }
    node.put("sys/fs/cgroup/cgroup.controllers", "memory\n");
    node.put("sys/fs/cgroup/cgroup.subtree_control", "memory\n");
    node.put("proc/sys/kernel/osrelease", "6.12.0\n");
    node.put("run/containerd/version", "");
    node
}

#[test]
fn an_interruption_between_steps_undoes_earlier_ones() {
    let steps = Node::new(OFF).plan("new", InstallMode::External).steps.len();
    for at in 0..steps {
        let mut node = Node::new(OFF);
        let plan = node.plan("new", InstallMode::External);
        let before = node.state();
        node.interrupted = Some(at);
        let failed = node.execute(&plan).unwrap_err().to_string();
        assert_eq!(
            failed,
            format!("cannot {}: interrupted; all earlier steps were undone", plan.steps[at].action)
        );
        assert_eq!(node.state(), before);
        let restarts =
            node.calls.iter().filter(|call| *call == "systemctl restart containerd").count();
        assert!([0, 2].contains(&restarts), "{:?}", node.calls);
    }
}

#[test]
fn a_signal_during_a_wait_undoes_everything() {
    // The signal arrives while the program waits for a command, or for a listener at NRI's socket.
    for (signal, restart) in
        [(Signal::TERM, "exec sleep 60"), (Signal::HUP, "exec sleep 60"), (Signal::INT, "")]
    {
        let node = able();
        let restarts = "#!/bin/sh\necho \"$*\" >>$0.called\ntest \"$*\" != 'restart containerd' || test -e $0.again || \
                        { touch $0.again\n";
        node.put("bin/systemctl", &format!("{restarts}{restart}\n}}\n"));
        for file in ["systemctl.again", "systemctl.called"] {
            node.put(&format!("bin/{file}"), "");
        }
        fs::remove_file(node.host().join("bin/systemctl.again")).unwrap();
        fs::set_permissions(node.host().join("bin/systemctl"), fs::Permissions::from_mode(0o755))
            .unwrap();
        let before = node.state().0;
        let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll"));
        command
            .args(["install", "--yes", "--host"])
            .arg(node.host())
            .arg("--socket")
            .arg(node.socket());
        command.env("PATH", format!("{}/bin:/usr/bin:/bin", node.host().display()));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let step = if restart.is_empty() {
            "wait for the runtime's NRI socket"
        } else {
            "systemctl restart containerd"
        };
        // The plan shows the same text, but indented.
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(said.any(|line| line.unwrap() == step));
        while !node.host().join("bin/systemctl.again").exists() {
            thread::sleep(Duration::from_millis(10));
        }
        assert!(node.host().join(UNIT).exists());
        kill_process(Pid::from_child(&child), signal).unwrap();
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert_eq!(stderr, format!("cannot {step}: interrupted; all earlier steps were undone\n"));
        assert_eq!(
            node.text("bin/systemctl.called"),
            "daemon-reload\nrestart containerd\n".repeat(2)
        );
        fs::remove_file(node.host().join("bin/systemctl.again")).unwrap();
        node.put("bin/systemctl.called", "");
        assert_eq!(node.state().0, before, "{stderr}");
    }
}

#[test]
fn installing_without_consent_changes_nothing() {
    let node = able();
    let before = node.state();
    let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll"));
    command.arg("install").arg("--host").arg(node.host()).arg("--socket").arg(node.socket());
    let output = command.stdin(Stdio::null()).output().unwrap();
    let [stdout, stderr] =
        [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert_eq!(output.status.code(), Some(1), "{stdout}{stderr}");
    assert!(
        stdout.starts_with(
            "To install the plugin with containerd:\n  write /usr/local/bin/plimsoll\n"
        ),
        "{stdout}{stderr}"
    );
    assert!(
        stdout.ends_with("nothing was changed: call the command with --yes to execute the steps\n"),
        "{stdout}"
    );
    assert_eq!(node.state(), before);
}

#[test]
fn an_undo_continues_without_its_terminal() {
    let node = able();
    // Each call of this `systemctl` fails without an effect if it cannot print to standard error.
    // The first restart of the runtime hangs until the user interrupts the program.
    let script = "#!/bin/sh\necho note >&2 || exit 1\necho \"$*\" >>$0.called\n\
                  test \"$*\" != 'restart containerd' || test -e $0.again || \
                  { touch $0.again; exec sleep 60; }\n";
    node.put("bin/systemctl", script);
    node.put("bin/systemctl.called", "");
    fs::set_permissions(node.host().join("bin/systemctl"), fs::Permissions::from_mode(0o755))
        .unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll"));
    command.args(["install", "--yes", "--host"]).arg(node.host());
    command.arg("--socket").arg(node.socket());
    command.env("PATH", format!("{}/bin:/usr/bin:/bin", node.host().display()));
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    while !node.host().join("bin/systemctl.again").exists() {
        thread::sleep(Duration::from_millis(10));
    }
    assert!(node.host().join(UNIT).exists());
    drop(child.stderr.take());
    kill_process(Pid::from_child(&child), Signal::HUP).unwrap();
    child.wait().unwrap();
    assert_eq!(node.text("bin/systemctl.called"), "daemon-reload\nrestart containerd\n".repeat(2));
    assert!(!node.host().join(UNIT).exists());
}
