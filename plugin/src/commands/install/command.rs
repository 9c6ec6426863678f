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

use crate::commands::{Failure, print};

/// Checks of `plimsoll doctor` that must not fail before an installation. Installing can correct a
/// failure of the other checks.
const NEEDED: [&str; 5] = ["cgroup-v2", "memory-controller", "kernel", "runtime", "configuration"];

/// Who starts the plugin.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum ModeArgument {
    /// systemd: a service that connects to the runtime. It is restricted, watched, restarted, and upgraded by itself
    External,
    /// The container runtime, with which it starts and ends. For a runtime that takes no connections of plugins
    Launched,
}

/// Put the plugin on this node, or another version of it, and start it.
#[derive(Args)]
#[command(
    long_about = "\
Put this program on the node, as the plugin. Finds the container runtime (containerd or CRI-O) and its configuration, shows what \
is to be done, and does it once you agree, or with --yes:

  - switch NRI on where it is off, as it is by default in containerd 1.7: by a file beside the operator's, which stays as it is
  - the program in /usr/local/bin, the configuration /etc/nri/conf.d/90-plimsoll.conf unless there is one, and the systemd unit,
    or with --mode launched the program in /opt/nri/plugins
  - restart the runtime, only where it has to read something anew; containers go on
  - start the plugin, and wait until it runs: the service until it is synchronized with the runtime

Then it runs the checks of plimsoll doctor. When a step fails or is interrupted, all before it is undone. Where nothing is left to do, nothing is \
done, so call it as often as you like: with another --mode to change that, with a newer program to upgrade. An upgrade replaces \
the file at once, and takes one reconnection, or a restart of a runtime that a launched plugin cannot come back to; containers \
keep their values meanwhile. Where a package brought the program and the service, they stay the package's to upgrade.

Ends with 1 if something failed, if the node is not able to run the plugin, or if nobody agreed.",
    after_long_help = "\
Examples:
  plimsoll install
  plimsoll install --yes
  ./plimsoll-new install --yes
  plimsoll install --mode launched --yes
  plimsoll install --nri-only"
)]
pub(crate) struct Install {
    /// Do it without asking
    #[arg(long, short)]
    yes: bool,

    /// Who starts the plugin
    #[arg(long, value_name = "MODE", value_enum, default_value = "external")]
    mode: ModeArgument,

    /// Only switch NRI on, and restart the runtime if it was off: for a plugin that comes in another way, such as a DaemonSet
    #[arg(long, conflicts_with = "mode")]
    nri_only: bool,

    /// Work from within a container, with the host's files and commands: it has to be privileged, and to share the host's processes
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

    /// Where the node's file system is; its systemd is reached by the systemctl of this machine all the same
    #[arg(long, value_name = "DIR", default_value = "/")]
    host: PathBuf,
}

/// Give everything back what it had, and take the plugin off this node.
#[derive(Args)]
#[command(
    long_about = "\
Take the plugin off the node. First everything gets back what it had, as by plimsoll restore; where that fails, nothing else is \
done. Then the plugin is stopped, and all that plimsoll install has put there is removed: the configuration, too, also where it \
was changed, and what switches NRI on, after which the runtime is restarted. Shows what is to be done, and does it once you agree, \
or with --yes. When a step fails or is interrupted, all before it is undone.

Where there is a package of it, what that has put there stays for the package manager to remove, and so do the configuration and \
your settings of the service.",
    after_long_help = "\
Examples:
  plimsoll uninstall
  plimsoll uninstall --yes"
)]
pub(crate) struct Uninstall {
    /// Do it without asking
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
                .context("cannot leave the container: expected it to be privileged")
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
                "nothing to do: the plugin is installed as asked, with {}\n{plan}",
                facts.runtime()
            ))?;
        } else {
            print(format_args!("To install the plugin with {}:\n{plan}", facts.runtime()))?;
            if !agreed(self.yes)? {
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
            if !agreed(self.yes)? {
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
        if !agreed(self.yes)? {
            return Ok(ExitCode::FAILURE);
        }
        execute(&plan, &self.node.host, &self.node.socket)?;
        print(format_args!("the plugin is off this node\n"))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn check_root(host: &Path) -> Result<(), Failure> {
    if host == Path::new("/") && !rustix::process::geteuid().is_root() {
        return Err(Failure::Runtime(anyhow!("expected to run as root: call it again with sudo")));
    }
    Ok(())
}

fn refused(refusal: Refusal) -> Failure {
    Failure::Runtime(anyhow::Error::new(refusal).context("nothing was changed"))
}

/// Returns whether to execute the plan: with `--yes`, or after the user agreed.
fn agreed(yes: bool) -> Result<bool, Failure> {
    if yes {
        return Ok(true);
    }
    if !io::stdin().is_terminal() {
        print(format_args!("nothing was changed: say --yes to have it done\n"))?;
        return Ok(false);
    }
    print(format_args!("Do it? [y/N] "))?;
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
        registered.context("cannot listen to signals").map_err(Failure::Runtime)?;
    }
    plan.execute(&mut executor, |step| {
        // Execute the plan even if standard output cannot be written.
        let _ = print(format_args!("{}\n", step.action));
    })
    .map_err(|failed| Failure::Runtime(failed.into()))
}
