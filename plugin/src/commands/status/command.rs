//! The command `plimsoll status`: requests the plugin's status and prints it.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use clap::Args;
use plimsoll_core::units::excerpt;

use crate::commands::status::node::hindrances;
use crate::commands::status::overview::overview;
use crate::commands::status::pod::story;
use crate::commands::status::screen::Screen;
use crate::commands::status::selection::Selection;
use crate::commands::{Failure, print};
use crate::report::serve;

/// Interval between two requests of `--watch`.
const EVERY: Duration = Duration::from_secs(1);

/// Show what the plugin knows of the node's containers.
#[derive(Args)]
#[command(
    long_about = "\
Show what the plugin knows of the node's containers: trouble first, in as many columns as the terminal is wide.

  state      killed         the kernel killed processes of it within the last ten minutes
             refused        a lower limit was refused, since it uses more
             deferred       a lower limit waits until it uses less
             contended      somebody else keeps setting its files
             drifted        its files are not as they should be
             throttled      it stands at memory.high, waiting for memory
             would-throttle observe mode: it uses more than the memory.high that it would have
             rescued        its limit was raised since it was killed again and again
             over-request   it uses more than it requested, which may be taken from it
             inert          what is written for it does not protect: a cgroup above has less
             unread         it has not started yet, or its cgroup or one above cannot be read
             unprotected    nothing is protected for it
             protected      its request is protected
  usage      memory.current
  load       that, drawn to scale: # in use, m memory.min, l memory.low, H memory.high, M memory.max, A node allocatable
             where there is no limit
  min..max   what the files should hold; where they hold something else, that follows after !=
  effective  how much of what it uses is protected by the kernel's rule, all cgroups above considered
  over       how much more than its request it uses, without page cache that was not used lately
  stalled    how long all of it has waited for memory since it was started
  kills      how many of its processes the kernel has killed for want of memory
  request    and where it was learnt

With the name of a pod, the whole story of that: why each value is what it is, the cgroups above, and what happened lately.",
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

    /// All columns, whatever the terminal's width
    #[arg(long)]
    wide: bool,

    /// Draw it anew every second
    #[arg(long, conflicts_with = "json")]
    watch: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,

    /// Only tell whether it sets anything: exit code 1 if the runtime is not connected, or 'plimsoll restore' was called
    #[arg(long, conflicts_with_all = ["pod", "namespace", "state", "class", "wide", "watch", "json"])]
    ready: bool,

    /// Where the node's file system is, in which the plugin's socket lies at run/plimsoll
    #[arg(long, value_name = "DIR", default_value = "/")]
    host: PathBuf,
}

impl StatusCommand {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start the asynchronous runtime")
            .map_err(Failure::Runtime)?;
        if !self.watch {
            let text = runtime
                .block_on(self.draw(&Screen::of_stdout(self.wide)))
                .map_err(Failure::Runtime)?;
            print(format_args!("{text}"))?;
            return Ok(ExitCode::SUCCESS);
        }
        loop {
            let screen = Screen::of_stdout(self.wide);
            // Continue after an error, because the plugin may start again.
            let text =
                runtime.block_on(self.draw(&screen)).unwrap_or_else(|error| format!("{error:#}\n"));
            // Shorten long lines: a line that wraps would scroll the first line off the screen.
            let lines: Vec<_> = text
                .lines()
                .take(screen.rows.saturating_sub(1))
                .map(|line| screen.cut(line))
                .collect();
            // Move the cursor home, and clear the rest of each line and everything below the last
            // one.
            let drawn = write!(io::stdout(), "\x1b[H{}\x1b[K\n\x1b[J", lines.join("\x1b[K\n"));
            if drawn.and_then(|()| io::stdout().flush()).is_err() {
                // The reader of the output is gone.
                return Ok(ExitCode::SUCCESS);
            }
            std::thread::sleep(EVERY);
        }
    }

    /// Requests the status and returns the text to print.
    async fn draw(&self, screen: &Screen) -> anyhow::Result<String> {
        let mut status = serve::ask(&self.host).await?;
        if self.ready {
            let hindrances: Vec<_> = hindrances(&status.node).collect();
            if !hindrances.is_empty() {
                bail!("not ready: {}", hindrances.join("; "));
            }
            return Ok("ready\n".to_owned());
        }
        status.containers.retain(|container| self.selection.includes(container));
        status.down.retain(|down| self.selection.includes_down(down));
        if let Some(pod) = &self.selection.pod
            && status.containers.is_empty()
            && status.down.is_empty()
        {
            bail!("no containers of a pod '{}' are known on this node", excerpt(pod));
        }
        if self.json {
            return Ok(serde_json::to_string_pretty(&status)? + "\n");
        }
        Ok(if self.selection.pod.is_some() {
            story(&status, now())
        } else {
            overview(&status, screen)
        })
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
