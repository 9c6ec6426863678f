//! The commands `plimsoll install` and `plimsoll uninstall`. Each command shows its plan and
//! executes the plan once the user agrees.

use std::fs;
use std::io::{self, BufRead as _, IsTerminal as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::commands::doctor::{self, Mark};
use crate::commands::install::facts::InstallFacts;
use crate::commands::install::plan::{InstallMode, Plan, Refusal};
use crate::commands::install::system::SystemExecutor;
use anyhow::{Context, anyhow};
use clap::{Args, ValueEnum};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::commands::failure::Failure;
use crate::commands::output::print;

/// Checks of `plimsoll doctor` that must not fail before an installation. If another check fails,
/// the installation itself can correct the problem.
const NEEDED: [&str; 5] = ["cgroup-v2", "memory-controller", "kernel", "runtime", "configuration"];

/// The program that starts the plugin.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum ModeArgument {
    /// systemd starts the plugin as a service, which connects to the runtime. systemd restricts,
    /// watches and restarts the service
    External,
    /// The container runtime starts and ends the plugin. For a runtime that accepts no connections
    /// of plugins
    Launched,
}

/// Install or upgrade the plugin on this node, and start it.
#[derive(Args)]
#[command(
    long_about = "\
Install this program as the plugin on the node.

The command finds the container runtime (containerd or CRI-O) and its configuration. The command
prints the steps, and executes the steps after you agree, or with --yes:

  - Switch NRI on if NRI is off, which is the default of containerd 1.7. The command adds a file,
    and never changes your configuration of the runtime.
  - Write the program /usr/local/bin/plimsoll and the systemd unit. With --mode launched, write the
    program to /opt/nri/plugins instead of the unit.
  - Write the configuration /etc/nri/conf.d/90-plimsoll.conf, unless there is a configuration.
  - Restart the runtime, only if the runtime must read changed files. Containers keep running.
  - Start the plugin, and wait until the plugin is synchronized with the runtime.

Then the command runs the checks of plimsoll doctor. If a step fails or you interrupt the command,
the command undoes all earlier steps.

You can call the command again at any time: a complete installation stays unchanged. Call the
command with another --mode to change the mode, and call a newer program to upgrade. An upgrade
replaces the program, and the plugin reconnects once. Some launched plugins cannot reconnect, so
the upgrade restarts the runtime. Containers keep their values during an upgrade. If a package has
installed the program and the service, upgrade them with the package manager.

Exit code 1: a step failed, the node cannot run the plugin, or you did not agree.",
    after_long_help = "\
Examples:
  plimsoll install
  plimsoll install --yes
  ./plimsoll-new install --yes
  plimsoll install --mode launched --yes
  plimsoll install --nri-only"
)]
pub(crate) struct Install {
    /// Execute the steps without a question
    #[arg(long, short)]
    yes: bool,

    /// The program that starts the plugin
    #[arg(long, value_name = "MODE", value_enum, default_value = "external")]
    mode: ModeArgument,

    /// Only switch NRI on, and restart the runtime if NRI was off. For a plugin that is installed
    /// in another way, such as a DaemonSet
    #[arg(long, conflicts_with = "mode")]
    nri_only: bool,

    /// Run in a container, but use the host's files and commands. The container must be privileged
    /// and share the host's process namespace
    #[arg(long, requires = "nri_only", conflicts_with = "host")]
    from_container: bool,

    #[command(flatten)]
    node: Node,
}

// Not a doc comment: clap would show a doc comment here instead of the help of each command.
#[derive(Args)]
struct Node {
    /// The container runtime's NRI socket
    #[arg(long, value_name = "PATH", default_value = nri::DEFAULT_SOCKET)]
    socket: PathBuf,

    /// The root of the node's file system. The command always calls the systemctl of this machine
    #[arg(long, value_name = "DIR", default_value = "/")]
    host: PathBuf,
}

/// Restore the original values, and remove the plugin from this node.
#[derive(Args)]
#[command(
    long_about = "\
Remove the plugin from the node.

The command first restores the original values of all cgroups, as plimsoll restore does. If this
fails, the command changes nothing else. Then the command stops the plugin, and removes all files
of plimsoll install: the program, the service, the configuration even if you changed it, and the
files that switch NRI on. The command restarts the runtime if it has removed such a file.

The command prints the steps, and executes the steps after you agree, or with --yes. If a step
fails or you interrupt the command, the command undoes all earlier steps.

Files of a package, the configuration and your own settings of the service stay if the plugin was
installed from a package. The package manager removes them.",
    after_long_help = "\
Examples:
  plimsoll uninstall
  plimsoll uninstall --yes"
)]
pub(crate) struct Uninstall {
    /// Execute the steps without a question
    #[arg(long, short)]
    yes: bool,

    #[command(flatten)]
    node: Node,
}

impl Install {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        check_root(&self.node.host)?;
        if self.from_container {
            move_to_host()
                .context("cannot enter the host's mount namespace: expected a privileged container")
                .map_err(Failure::Runtime)?;
        }
        if self.nri_only {
            return self.switch_nri_on();
        }
        let report = doctor::NodeFacts::collect(&self.node.host, &self.node.socket).judge();
        let is_needed = |check: &str| NEEDED.contains(&check);
        let mut failed = report
            .checks
            .iter()
            .filter(|finding| finding.mark == Mark::Failed && is_needed(finding.check));
        if let Some(finding) = failed.next() {
            let advice = finding.advice.as_deref().unwrap_or("see plimsoll doctor");
            let why = anyhow!(
                "this node cannot run the plugin: {}: {}; do: {advice}",
                finding.check,
                finding.found
            );
            return Err(Failure::Runtime(why));
        }
        let program = std::env::current_exe().and_then(fs::read);
        let program = program.context("cannot read this program").map_err(Failure::Runtime)?;
        let facts =
            InstallFacts::collect(&self.node.host, &self.node.socket, program).map_err(refused)?;
        let mode = match self.mode {
            ModeArgument::External => InstallMode::External,
            ModeArgument::Launched => InstallMode::Launched,
        };
        let plan = facts.plan_installation(mode).map_err(refused)?;
        if plan.steps.is_empty() {
            print(format_args!(
                "nothing to do: the plugin is installed with {}\n{plan}",
                facts.runtime()
            ))?;
        } else {
            print(format_args!("To install the plugin with {}:\n{plan}", facts.runtime()))?;
            if !has_consent(self.yes)? {
                return Ok(ExitCode::FAILURE);
            }
            execute(&plan, &self.node.host, &self.node.socket)?;
        }
        let report = doctor::NodeFacts::collect(&self.node.host, &self.node.socket).judge();
        print(format_args!("\n{report}"))?;
        Ok(if report.able { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn switch_nri_on(self) -> Result<ExitCode, Failure> {
        let facts = InstallFacts::collect(&self.node.host, &self.node.socket, Vec::new())
            .map_err(refused)?;
        let plan = facts.plan_nri().map_err(refused)?;
        if !plan.steps.is_empty() {
            print(format_args!("To switch NRI on in {}:\n{plan}", facts.runtime()))?;
            if !has_consent(self.yes)? {
                return Ok(ExitCode::FAILURE);
            }
            execute(&plan, &self.node.host, &self.node.socket)?;
        }
        print(format_args!("NRI is on in {}\n", facts.runtime()))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Moves this process into the mount namespace of the host's first process.
fn move_to_host() -> io::Result<()> {
    let mounts = fs::File::open("/proc/1/ns/mnt")?;
    Ok(move_into_link_name_space(mounts.as_fd(), Some(LinkNameSpaceType::Mount))?)
}

impl Uninstall {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        check_root(&self.node.host)?;
        let facts = InstallFacts::collect(&self.node.host, &self.node.socket, Vec::new())
            .map_err(refused)?;
        let plan = facts.plan_removal().map_err(refused)?;
        if plan.steps.is_empty() {
            print(format_args!("nothing to do: the plugin is not installed\n{plan}"))?;
            return Ok(ExitCode::SUCCESS);
        }
        print(format_args!("To remove the plugin:\n{plan}"))?;
        if !has_consent(self.yes)? {
            return Ok(ExitCode::FAILURE);
        }
        execute(&plan, &self.node.host, &self.node.socket)?;
        print(format_args!("the plugin was removed from this node\n"))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn check_root(host: &Path) -> Result<(), Failure> {
    if host == Path::new("/") && !rustix::process::geteuid().is_root() {
        return Err(Failure::Runtime(anyhow!("this command needs root: call it again with sudo")));
    }
    Ok(())
}

fn refused(refusal: Refusal) -> Failure {
    Failure::Runtime(anyhow::Error::new(refusal).context("nothing was changed"))
}

/// Returns whether to execute the plan: true with `--yes`, or if the user agrees.
fn has_consent(yes: bool) -> Result<bool, Failure> {
    if yes {
        return Ok(true);
    }
    if !io::stdin().is_terminal() {
        print(format_args!(
            "nothing was changed: call the command with --yes to execute the \
            steps\n"
        ))?;
        return Ok(false);
    }
    print(format_args!("Execute these steps? [y/N] "))?;
    io::Write::flush(&mut io::stdout())
        .context("cannot write to standard output")
        .map_err(Failure::Runtime)?;
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    read.context("cannot read the answer").map_err(Failure::Runtime)?;
    let agreed = ["y", "yes"].contains(&answer.trim().to_ascii_lowercase().as_str());
    if !agreed {
        print(format_args!("nothing was changed\n"))?;
    }
    Ok(agreed)
}

fn execute(plan: &Plan, host: &Path, socket: &Path) -> Result<(), Failure> {
    let mut executor = SystemExecutor::new(host, socket);
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        let registered = signal_hook::flag::register(signal, executor.interrupted());
        registered.context("cannot install signal handlers").map_err(Failure::Runtime)?;
    }
    plan.execute(&mut executor, |step| {
        // Execute the plan even if writing to standard output fails.
        let _ = print(format_args!("{}\n", step.action));
    })
    .map_err(|failed| Failure::Runtime(failed.into()))
}
