//! The command `plimsoll status`: requests the plugin's status and prints it.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use clap::Args;
use plimsoll_core::units::excerpt;

use crate::commands::failure::Failure;
use crate::commands::output::print;
use crate::commands::status::node::not_ready_reasons;
use crate::commands::status::overview::overview;
use crate::commands::status::pod::describe_pods;
use crate::commands::status::screen::Screen;
use crate::commands::status::selection::Selection;
use crate::report::serve;

/// Interval between two requests of `--watch`.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);

/// Show the state of the node's containers.
#[derive(Args)]
#[command(
    long_about = "\
Show the plugin's view of the node's containers. Containers with problems come first. A narrow
terminal shows fewer columns.

  state      killed         the kernel killed its processes within the last ten minutes
             refused        a limit decrease was refused, because the container uses more memory
             deferred       a limit decrease waits until the container uses less memory
             contended      another program keeps changing its cgroup files
             drifted        its cgroup files differ from the desired values
             throttled      it is throttled at memory.high
             would-throttle observe mode: it uses more than the desired memory.high
             rescued        its limit was raised after repeated OOM kills
             over-request   it uses more than its request, so the kernel may reclaim the excess
             inert          its protection has no effect, because a cgroup above it has less
             unread         it has not started yet, or a cgroup file cannot be read
             unprotected    it has no protection
             protected      its request is protected
  usage      memory.current
  load       usage drawn to scale: # usage, m memory.min, l memory.low, H memory.high,
             M memory.max, or A node allocatable for a container without a limit
  min..max   the desired values of the cgroup files; a different observed value follows after !=
  effective  the part of its usage that the kernel protects, with all cgroups above considered
  over       its usage above the request, without page cache that was not used recently
  stalled    the time for which all its processes have waited for memory since its start
  kills      the number of its processes that the kernel killed for lack of memory
  request    the memory request, and its source

With the name of a pod, the command shows the reason for each value, the cgroups above the pod, and
recent events.",
    after_long_help = "\
Examples:
  plimsoll status
  plimsoll status --watch --namespace shop
  plimsoll status --state refused,throttled
  plimsoll status shop/web-6d4cf56db6-x2x8h
  plimsoll status --json | jq '.containers[] | select(.state == \"killed\")'"
)]
pub(crate) struct StatusCommand {
    #[command(flatten)]
    selection: Selection,

    /// Show all columns, also in a narrow terminal
    #[arg(long)]
    wide: bool,

    /// Refresh the output every second
    #[arg(long, conflicts_with = "json")]
    watch: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,

    /// Only report whether the plugin sets values. Exit code 1: the runtime is not connected, or
    /// 'plimsoll restore' was called
    #[arg(
        long,
        conflicts_with_all = ["pod", "namespace", "state", "class", "wide", "watch", "json"]
    )]
    ready: bool,

    /// The root of the node's file system, with the plugin's socket in run/plimsoll
    #[arg(long, value_name = "DIR", default_value = "/")]
    host: PathBuf,
}

impl StatusCommand {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the asynchronous runtime")
            .map_err(Failure::Runtime)?;
        if !self.watch {
            let text = runtime
                .block_on(self.render(&Screen::of_stdout(self.wide)))
                .map_err(Failure::Runtime)?;
            print(format_args!("{text}"))?;
            return Ok(ExitCode::SUCCESS);
        }
        loop {
            let screen = Screen::of_stdout(self.wide);
            // Continue after an error, because the plugin may start again later.
            let text = runtime
                .block_on(self.render(&screen))
                .unwrap_or_else(|error| format!("{error:#}\n"));
            // Shorten long lines, because a wrapped line would scroll the first line off the
            // screen.
            let lines: Vec<_> = text
                .lines()
                .take(screen.rows.saturating_sub(1))
                .map(|line| screen.cut(line))
                .collect();
            // Move the cursor home. Clear the rest of each line, and everything below the last
            // line.
            let drawn = write!(io::stdout(), "\x1b[H{}\x1b[K\n\x1b[J", lines.join("\x1b[K\n"));
            if drawn.and_then(|()| io::stdout().flush()).is_err() {
                // The terminal or the program that reads the output is gone.
                return Ok(ExitCode::SUCCESS);
            }
            std::thread::sleep(REFRESH_INTERVAL);
        }
    }

    /// Requests the status and returns the text to print.
    async fn render(&self, screen: &Screen) -> anyhow::Result<String> {
        let mut status = serve::ask(&self.host).await?;
        if self.ready {
            let not_ready_reasons: Vec<_> = not_ready_reasons(&status.node).collect();
            if !not_ready_reasons.is_empty() {
                bail!("not ready: {}", not_ready_reasons.join("; "));
            }
            return Ok("ready\n".to_owned());
        }
        status.containers.retain(|container| self.selection.includes(container));
        status.down.retain(|down| self.selection.includes_down(down));
        if let Some(pod) = &self.selection.pod
            && status.containers.is_empty()
            && status.down.is_empty()
        {
            bail!("found no containers of a pod '{}' on this node", excerpt(pod));
        }
        if self.json {
            return Ok(serde_json::to_string_pretty(&status)? + "\n");
        }
        Ok(if self.selection.pod.is_some() {
            describe_pods(&status, now())
        } else {
            overview(&status, screen)
        })
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
