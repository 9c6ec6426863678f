//! The command line.

pub mod doctor;
pub mod explain;
pub mod install;
pub mod lint;
mod restore;
mod run;
mod status;

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use plimsoll_core::policy::Node;
use plimsoll_core::units::Bytes;

use crate::commands::doctor::command::Doctor;
use crate::commands::explain::Basis;
use crate::commands::install::command::{Install, Uninstall};
use crate::commands::status::StatusCommand;
use crate::config::{self, Config, NodeAllocatable};
use crate::kubelet::node::NodeMemory;
use crate::report::log::LogFormat;
use crate::state::guard_record;

/// Draws the line how deep each container may be loaded with memory.
#[derive(Parser)]
#[command(
    version,
    about,
    long_about = "\
Plimsoll is a plugin for containerd and CRI-O (NRI) that turns memory requests and limits into cgroup v2 values:

  memory.min   the request, which the kernel then never reclaims
  memory.low   the request, which the kernel reclaims last
  memory.high  request + factor x (limit - request), where throttling starts
  memory.max   the limit, which the runtime sets itself",
    after_help = "\
Exit codes: 0 fine, 1 something failed, 2 bad usage, configuration or manifest."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(Run),
    Status(StatusCommand),
    Install(Install),
    Uninstall(Uninstall),
    Restore(Restore),
    ResetBrake(ResetBrake),
    Doctor(Doctor),
    Check(Check),
    Explain(Explain),
    Lint(lint::command::Lint),
    Completions(Completions),
    Man(Man),
}

/// Run the plugin; also without any argument when a container runtime launches it.
#[derive(Args)]
#[command(
    long_about = "\
Run the plugin. It connects to the container runtime, sets the values of containers that are created or updated, brings \
those that run to theirs, and reconnects when the runtime restarts. Stop it with SIGTERM or SIGINT; containers keep \
their values. SIGHUP has it read its configuration again. SIGUSR2 has it start anew in the same process, from what is in \
the program's file by then.

Configuration comes from --config, or else from the runtime's drop-in: /etc/nri/conf.d/90-plimsoll.conf or plimsoll.conf. \
Changes of the file take effect at once. An empty file means the defaults at the start, and changes nothing later. See plimsoll check --help for the fields.

A container runtime launches what it finds in /opt/nri/plugins by the name 90-plimsoll, hands over the drop-in, and needs no \
arguments; messages then go to the journal.",
    after_long_help = "\
Examples:
  plimsoll run
  plimsoll run --config /etc/plimsoll.yaml --socket /run/nri/nri.sock"
)]
struct Run {
    /// The configuration file; without it, the runtime's drop-in, if there is one
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// The container runtime's NRI socket
    #[arg(long, value_name = "PATH", default_value = nri::DEFAULT_SOCKET)]
    socket: PathBuf,

    /// The form of messages
    #[arg(long, value_name = "FORMAT", value_enum, default_value = "text")]
    log_format: LogFormat,

    /// Where the node's file system is: its /proc, /run, /sys/fs/cgroup and /var/lib/kubelet
    #[arg(long, value_name = "DIR", default_value = "/")]
    host: PathBuf,
}

/// Put everything back to what it would be without the plugin.
#[derive(Args)]
#[command(
    long_about = "\
Give every running container, and every cgroup above the containers or beside the pods, back what it held before the plugin \
changed it; the container runtime's stored values, too. Processor values and memory.max are not touched, and no container is \
restarted. Prints what was changed, as CGROUP FILE: BEFORE -> NOW.

Works with the plugin running or not. From then on the plugin sets nothing, also after a restart, until --undo or the next \
boot. plimsoll uninstall calls this first. Calling it again does no harm.",
    after_long_help = "\
Examples:
  plimsoll restore
  plimsoll restore --undo"
)]
struct Restore {
    /// Let the plugin set values again
    #[arg(long)]
    undo: bool,

    /// The container runtime's NRI socket
    #[arg(long, value_name = "PATH", default_value = nri::DEFAULT_SOCKET)]
    socket: PathBuf,

    /// Where the node's file system is: its /proc, /run, /sys/fs/cgroup and /var/lib/kubelet
    #[arg(long, value_name = "DIR", default_value = "/")]
    host: PathBuf,
}

/// Let the plugin act again after it has stopped by itself.
#[derive(Args)]
#[command(
    long_about = "\
Let the plugin act again after the automatic brake was applied. The plugin stops writing, as in observe mode, when repairs, \
conflicts with other writers, or kills by limits that it has set exceed the bounds in its configuration (brake). Find out first \
why there were so many: plimsoll status and the log name the cause.",
    after_long_help = "\
Examples:
  plimsoll reset-brake"
)]
struct ResetBrake {
    /// Where the node's file system is, in which the plugin's directory is run/plimsoll
    #[arg(long, value_name = "DIR", default_value = "/")]
    host: PathBuf,
}

/// Validate a configuration file.
#[derive(Args)]
#[command(
    long_about = "\
Validate a configuration file and print what it amounts to, defaults included. Every mistake is reported at once, as \
FILE:LINE: field: expected ..., found ...

All fields, with their defaults:

  mode: enforce                             # enforce, or observe: work everything out and report it, and write nothing
  memoryThrottlingFactor: 0.9               # above 0, at most 1; null: never set memory.high
  memoryReservationPolicy: HardReservation  # None, TieredReservation or HardReservation
  memoryMinHeadroom: 2Mi                    # how far memory.min stays below the limit; 0: as Kubernetes has it
  nodeAllocatable: auto                     # auto, or a quantity such as 60Gi
  systemReservedCgroup: /system.slice       # with the amount: memory.min of that cgroup; not set by default
  systemReserved: {memory: 500Mi}
  kubeReservedCgroup: /kubelet.slice        # likewise
  kubeReserved: {memory: 500Mi}
  nodeGuard: null                           # how much is kept from all pods together, such as 500Mi; null: nothing
  throttleDeadline: 30s                     # how long a container may stand at memory.high; null: for ever
  shrink: reject                            # of a memory limit that would kill: reject, defer or allow
  shrinkDeadline: 10m                       # how long a deferred one is tried
  oomRescue: null                           # null: off; or {kills: 3, window: 10m, factor: 1.2, minimum: 100Mi, ceiling: 10%}
  raisePodLimits: true                      # whether a pod's limits are raised to the sum of its containers' limits
  repair: true                              # whether a value that another program changed is set again
  brake:                                    # when the plugin stops writing by itself; null: never
    repairs: 500                            #   after so many repairs,
    conflicts: 50                           #   values left to another writer,
    kills: 20                               #   or kills by limits that the plugin has set,
    window: 10m                             #   within this time
  maxLimitRequestRatio: 4                   # of which limit to request a pod's owner is warned, at least 1; null: of none
  metricsAddress: null                      # where metrics are served by TCP, such as 127.0.0.1:9477; null: nowhere
  containerMetrics: false                   # whether there are metrics of each container
  logLevel: info                            # error, warn, info, debug or trace",
    after_long_help = "\
Examples:
  plimsoll check /etc/nri/conf.d/90-plimsoll.conf
  echo 'memoryThrottlingFactor: 0.8' | plimsoll check -"
)]
struct Check {
    /// The file; - is standard input
    file: PathBuf,
}

/// Show what a pod's containers would get, and why.
#[derive(Args)]
#[command(
    long_about = "\
Show for each container of a pod the values of memory.min, memory.low and memory.high, with the reason for each, and \
draw them to scale. Needs no node and changes nothing.

The manifest may hold several documents, lists, and objects with a pod template such as Deployments. Annotations are \
honoured (<what>.plimsoll.nri.io, then nothing, /pod or /container.<name>):

  throttling-factor  a number above 0 and at most 1, or none
  reservation        none, tiered or hard, but not more than the node's policy
  memory-request     a quantity, used only where the kubelet has no record; so not here

Containers without a limit are measured against node allocatable. It comes from --node-allocatable, or the \
configuration, or else from this machine.",
    after_long_help = "\
Examples:
  plimsoll explain -f pod.yaml --node-allocatable 60Gi
  plimsoll explain -f pod.yaml --config /etc/nri/conf.d/90-plimsoll.conf
  kubectl get pod web -o yaml | plimsoll explain -f - --json"
)]
struct Explain {
    /// The manifest, YAML or JSON; - is standard input
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,

    /// The node's configuration file; without it, the defaults
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Memory that pods may use altogether on the node, such as 60Gi
    #[arg(long, value_name = "QUANTITY", value_parser = quantity)]
    node_allocatable: Option<Bytes>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn quantity(text: &str) -> Result<Bytes, String> {
    match Bytes::from_quantity(text) {
        Ok(Bytes::ZERO) => Err("expected a quantity above 0".to_owned()),
        Ok(bytes) => Ok(bytes),
        Err(error) => Err(error.to_string()),
    }
}

/// Print what a shell needs to complete commands and options.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  plimsoll completions bash > /usr/share/bash-completion/completions/plimsoll
  plimsoll completions zsh > /usr/local/share/zsh/site-functions/_plimsoll")]
struct Completions {
    /// The shell
    shell: Shell,
}

/// Write the manual pages, one for the program and one for each command.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  plimsoll man /usr/local/share/man/man1
  man plimsoll-status")]
struct Man {
    /// The directory to write them to, which has to be there
    directory: PathBuf,
}

/// The failure of a command, by exit code.
pub(crate) enum Failure {
    /// A failure that the user did not cause: exit code 1.
    Runtime(anyhow::Error),
    /// Invalid input from the user: exit code 2.
    Usage(anyhow::Error),
}

impl Failure {
    fn into_parts(self) -> (anyhow::Error, u8) {
        match self {
            Self::Runtime(error) => (error, 1),
            Self::Usage(error) => (error, 2),
        }
    }
}

/// Restricts host name lookups to /etc/hosts and DNS. For other sources in /etc/nsswitch.conf,
/// glibc loads modules of the node into a static program. These modules load the node's C library,
/// which differs from the C library that the program was built with.
#[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
fn look_names_up_alone() {
    use std::ffi::{c_char, c_int};

    #[allow(unsafe_code)]
    // SAFETY: the declaration matches glibc's nss.h.
    unsafe extern "C" {
        fn __nss_configure_lookup(database: *const c_char, services: *const c_char) -> c_int;
    }
    // SAFETY: both strings end with a zero byte, and glibc only reads them. No other thread runs
    // yet.
    #[allow(unsafe_code)]
    let status = unsafe { __nss_configure_lookup(c"hosts".as_ptr(), c"files dns".as_ptr()) };
    debug_assert_eq!(status, 0, "this is a database, and these are its services");
}

/// Runs the command that the command line names.
pub fn main() -> ExitCode {
    #[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
    look_names_up_alone();
    // A runtime launches plugins without arguments.
    let launched = std::env::args_os().len() < 2 && std::env::var_os("NRI_PLUGIN_SOCKET").is_some();
    let cli = if launched { Cli::parse_from(["plimsoll", "run"]) } else { Cli::parse() };
    let result = match cli.command {
        Command::Run(run) => run.run(),
        Command::Status(status) => status.run(),
        Command::Install(install) => install.run(),
        Command::Uninstall(uninstall) => uninstall.run(),
        Command::Restore(restore) => restore.run(),
        Command::ResetBrake(reset) => reset.run(),
        Command::Doctor(doctor) => doctor.run(),
        Command::Check(check) => check.run().map(|()| ExitCode::SUCCESS),
        Command::Explain(explain) => explain.run().map(|()| ExitCode::SUCCESS),
        Command::Lint(lint) => lint.run(),
        Command::Completions(completions) => completions.run().map(|()| ExitCode::SUCCESS),
        Command::Man(man) => man.run().map(|()| ExitCode::SUCCESS),
    };
    let (error, code) = match result {
        Ok(code) => return code,
        Err(failure) => failure.into_parts(),
    };
    // The alternate form prints the error and its causes on one line.
    eprintln!("{error:#}");
    ExitCode::from(code)
}

impl Completions {
    fn run(self) -> Result<(), Failure> {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "plimsoll", &mut text);
        print(format_args!("{}", String::from_utf8_lossy(&text)))
    }
}

impl Man {
    fn run(self) -> Result<(), Failure> {
        // Omit the page of the `help` command, because `--help` prints the same text.
        clap_mangen::generate_to(Cli::command().disable_help_subcommand(true), &self.directory)
            .with_context(|| {
                format!(
                    "cannot write manual pages to {}, expected a directory",
                    shown(&self.directory)
                )
            })
            .map_err(Failure::Runtime)
    }
}

impl Check {
    fn run(self) -> Result<(), Failure> {
        let config = load_config(&self.file)?;
        print(format_args!("# {} is valid and amounts to:\n{config}", shown(&self.file)))
    }
}

impl Explain {
    fn run(self) -> Result<(), Failure> {
        let config = match &self.config {
            Some(path) => load_config(path)?,
            None => Config::default(),
        };
        let page_size = crate::cgroup::page_size();
        let (allocatable, allocatable_source) =
            match (self.node_allocatable, config.node_allocatable) {
                (Some(bytes), _) => (Some(bytes), "given by --node-allocatable".to_owned()),
                (None, NodeAllocatable::Fixed(bytes)) => {
                    (Some(bytes), "given by the configuration".to_owned())
                }
                (None, NodeAllocatable::Auto) => {
                    let host = Path::new("/");
                    let memory = NodeMemory::discover(host, page_size, guard_record::read(host));
                    for problem in &memory.problems {
                        eprintln!("note: {problem}");
                    }
                    (memory.allocatable, format!("that of this machine, from {}", memory.source))
                }
            };
        let basis = Basis {
            policy: config.policy,
            node: Node { allocatable, page_size },
            allocatable_source,
        };

        let manifest = read(&self.file, explain::LARGEST)?;
        let refused = |error: anyhow::Error| Failure::Usage(error.context(shown(&self.file)));
        let manifest = String::from_utf8(manifest)
            .map_err(|error| refused(anyhow!("expected UTF-8 text: {error}")))?;
        let explanation =
            explain::explain(&manifest, &basis).map_err(|error| refused(error.into()))?;
        if self.json {
            let json = serde_json::to_string_pretty(&explanation)
                .map_err(|error| Failure::Runtime(error.into()))?;
            print(format_args!("{json}\n"))
        } else {
            print(format_args!("{explanation}"))
        }
    }
}

fn load_config(path: &Path) -> Result<Config, Failure> {
    let text = read(path, config::LARGEST)?;
    Config::parse(&text, &shown(path)).map_err(|errors| Failure::Usage(errors.into()))
}

/// Reads a file or standard input, at most `most` + 1 bytes. The extra byte shows the caller that
/// the input is too large.
fn read(path: &Path, most: usize) -> Result<Vec<u8>, Failure> {
    read_file(path, most)
        .with_context(|| format!("cannot read {}", shown(path)))
        .map_err(Failure::Usage)
}

fn read_file(path: &Path, most: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let source: Box<dyn Read> =
        if path == Path::new("-") { Box::new(io::stdin()) } else { Box::new(File::open(path)?) };
    source.take(most as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Returns the name of a file for messages.
fn shown(path: &Path) -> String {
    if path == Path::new("-") { "standard input".to_owned() } else { path.display().to_string() }
}

/// Writes to standard output. Ignores a closed pipe, because its reader needs no more output.
fn print(text: std::fmt::Arguments<'_>) -> Result<(), Failure> {
    match io::stdout().lock().write_fmt(text) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::Runtime(
            anyhow::Error::new(error).context("cannot write to standard output"),
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_and_every_option_says_what_it_is_for() {
        let mut program = Cli::command();
        program.build();
        let commands: Vec<_> = program.get_subcommands().collect();
        assert!(commands.len() > 5);
        for command in commands {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{} {argument}", command.get_name());
            }
        }
    }
}
