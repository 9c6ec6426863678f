//! The command `plimsoll status`: requests the plugin's status and prints it.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anstyle::{AnsiColor, Style};
use anyhow::{Context as _, bail};
use clap::Args;
use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use plimsoll_core::pod::{CgroupPath, QosClass};
use plimsoll_core::policy::Protection;
use plimsoll_core::units::{Bytes, Limit, excerpt, harmless, printable};

use crate::commands::{Failure, print};
use crate::config::Mode;
use crate::report::status::{
    CgroupStatus, ContainerStatus, DownStatus, Level, NodeStatus, State, Status,
};
use crate::report::{Report, serve};

/// Interval between two requests of `--watch`.
const EVERY: Duration = Duration::from_secs(1);

/// Width in columns where the output is not a terminal, large enough for the whole table.
const WIDEST: usize = 1000;

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
    /// A pod, as NAME or NAMESPACE/NAME: the whole story of it
    pod: Option<String>,

    /// Only containers of this namespace
    #[arg(short, long)]
    namespace: Option<String>,

    /// Only containers in these states
    #[arg(long, value_name = "STATE,...", value_delimiter = ',', value_parser = state)]
    state: Vec<State>,

    /// Only containers of this QoS class
    #[arg(long, value_parser = class)]
    class: Option<QosClass>,

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

fn state(text: &str) -> Result<State, String> {
    State::ALL
        .into_iter()
        .find(|state| state.word() == text)
        .ok_or_else(|| format!("expected one of {}", State::ALL.map(State::word).join(", ")))
}

fn class(text: &str) -> Result<QosClass, String> {
    [QosClass::Guaranteed, QosClass::Burstable, QosClass::BestEffort]
        .into_iter()
        .find(|class| class.to_string().eq_ignore_ascii_case(text))
        .ok_or_else(|| "expected Guaranteed, Burstable or BestEffort".to_owned())
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
        status.containers.retain(|container| self.is_wanted(container));
        status.down.retain(|down| self.is_wanted_down(down));
        if let Some(pod) = &self.pod
            && status.containers.is_empty()
            && status.down.is_empty()
        {
            bail!("no containers of a pod '{}' are known on this node", excerpt(pod));
        }
        if self.json {
            return Ok(serde_json::to_string_pretty(&status)? + "\n");
        }
        Ok(if self.pod.is_some() { story(&status, now()) } else { overview(&status, screen) })
    }

    /// Returns whether the filters include a container that is down. Such a container has no class,
    /// and counts as `killed`.
    fn is_wanted_down(&self, down: &DownStatus) -> bool {
        self.pod.as_ref().is_none_or(|pod| is_pod(&down.namespace, &down.pod, pod))
            && self.namespace.as_ref().is_none_or(|namespace| down.namespace == *namespace)
            && (self.state.is_empty() || self.state.contains(&State::Killed))
            && self.class.is_none()
    }

    fn is_wanted(&self, container: &ContainerStatus) -> bool {
        self.pod.as_ref().is_none_or(|pod| is_pod(&container.namespace, &container.pod, pod))
            && self.namespace.as_ref().is_none_or(|namespace| container.namespace == *namespace)
            && (self.state.is_empty() || self.state.contains(&container.state))
            && self.class.is_none_or(|class| container.class == class)
    }
}

fn is_pod(namespace: &str, name: &str, wanted: &str) -> bool {
    match wanted.split_once('/') {
        Some((wanted, pod)) => namespace == wanted && name == pod,
        None => name == wanted,
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Returns the reasons why the plugin sets no values, or sets none for new containers.
fn hindrances(node: &NodeStatus) -> impl Iterator<Item = &'static str> {
    let waits = (!node.synchronized)
        .then_some("waiting for the container runtime: new containers get no values");
    let stands_aside =
        "'plimsoll restore' was called: nothing is set any more, until 'plimsoll restore --undo'";
    waits.into_iter().chain(node.stands_aside.then_some(stands_aside))
}

/// Returns the messages for a plugin that only observes; empty otherwise.
fn observing(node: &NodeStatus) -> Vec<String> {
    if node.mode == Mode::Enforce || node.stands_aside {
        return Vec::new();
    }
    let why = match &node.brake {
        Some(brake) => {
            format!("brake applied after {brake}: nothing is set, until 'plimsoll reset-brake'")
        }
        None => "observe mode: nothing is set, raised or refused".to_owned(),
    };
    let would = format!(
        "what would be set comes before '!='; {} containers would be throttled now, {} limit decreases would have been refused \
         within ten minutes",
        node.would_throttle, node.would_refuse
    );
    vec![why, would]
}

/// The size and colours of the output.
struct Screen {
    columns: usize,
    rows: usize,
    has_colours: bool,
}

impl Screen {
    fn of_stdout(wide: bool) -> Self {
        let is_terminal = io::stdout().is_terminal();
        let size = rustix::termios::tcgetwinsize(io::stdout())
            .ok()
            .filter(|size| is_terminal && size.ws_col > 0);
        let columns = size.filter(|_| !wide).map_or(WIDEST, |size| size.ws_col.into());
        let rows = size.map_or(usize::MAX, |size| size.ws_row.into());
        // https://no-color.org
        let has_colours =
            is_terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { columns, rows, has_colours }
    }
}

impl Screen {
    /// Shortens a line to the terminal's width. Lines with styles stay whole.
    fn cut(&self, line: &str) -> String {
        if line.contains('\x1b') {
            // Only table rows have styles, and the table fits the terminal already.
            return line.to_owned();
        }
        line.chars().take(self.columns).collect()
    }
}

/// A column of the table.
struct Column {
    title: &'static str,
    is_number: bool,
    text: fn(&ContainerStatus, &Status) -> String,
    /// The priority, 0 is the highest. A narrow terminal omits the columns with the highest ranks.
    rank: usize,
}

/// Width of the LOAD drawing in cells, without the end mark.
const CELLS: usize = 20;

/// The columns in the order of the table.
const COLUMNS: [Column; 14] = [
    Column { title: "STATE", is_number: false, text: |row, _| row.state.to_string(), rank: 0 },
    Column { title: "CONTAINER", is_number: false, text: |row, _| name_of(row), rank: 1 },
    Column { title: "CLASS", is_number: false, text: |row, _| row.class.to_string(), rank: 9 },
    Column {
        title: "USAGE",
        is_number: true,
        text: |row, _| row.usage.map_or_else(unknown, Bytes::approx),
        rank: 2,
    },
    Column { title: "LOAD", is_number: false, text: load, rank: 3 },
    Column {
        title: "MIN",
        is_number: true,
        text: |row, _| pair(row, |values| values.min),
        rank: 6,
    },
    Column {
        title: "LOW",
        is_number: true,
        text: |row, _| pair(row, |values| values.low),
        rank: 12,
    },
    Column {
        title: "HIGH",
        is_number: true,
        text: |row, _| pair(row, |values| values.high),
        rank: 5,
    },
    Column {
        title: "MAX",
        is_number: true,
        text: |row, _| pair(row, |values| values.max),
        rank: 4,
    },
    Column {
        title: "EFFECTIVE",
        is_number: true,
        text: |row, _| {
            row.effective
                .map_or_else(unknown, |effective| effective.min.max(effective.low).approx())
        },
        rank: 10,
    },
    Column { title: "OVER", is_number: true, text: |row, _| row.over_request.approx(), rank: 7 },
    Column {
        title: "STALLED",
        is_number: true,
        text: |row, _| row.stalled_seconds.map_or_else(unknown, |seconds| format!("{seconds:.1}s")),
        rank: 11,
    },
    Column {
        title: "KILLS",
        is_number: true,
        text: |row, _| row.oom_kills.map_or_else(unknown, |kills| kills.to_string()),
        rank: 8,
    },
    Column { title: "REQUEST", is_number: false, text: |row, _| request(row), rank: 13 },
];

fn unknown() -> String {
    "?".to_owned()
}

fn full_name(namespace: &str, pod: &str, container: &str) -> String {
    [namespace, pod, container].map(printable).join("/")
}

fn name_of(row: &ContainerStatus) -> String {
    full_name(&row.namespace, &row.pod, &row.container)
}

fn show(limit: Limit) -> String {
    limit.bytes().map_or_else(|| "max".to_owned(), Bytes::approx)
}

/// Returns the desired value, and after `!=` the observed value if it differs.
fn pair(row: &ContainerStatus, of: fn(&crate::report::status::Values) -> Option<Limit>) -> String {
    match (of(&row.desired), row.observed.as_ref().map(of)) {
        (Some(desired), Some(Some(observed))) if desired != observed => {
            let [rough, other] = [show(desired), show(observed)];
            if rough == other {
                format!("{desired}!={observed}")
            } else {
                format!("{rough}!={other}")
            }
        }
        (Some(desired), _) => show(desired),
        (None, Some(Some(observed))) => show(observed),
        (None, _) => unknown(),
    }
}

fn request(row: &ContainerStatus) -> String {
    match &row.request {
        Some(request) if request.bytes == request.at_most => {
            format!("{} {}", request.bytes.approx(), excerpt(&request.provenance))
        }
        Some(request) => {
            format!(
                "{}..{} {}",
                request.bytes.approx(),
                request.at_most.approx(),
                excerpt(&request.provenance)
            )
        }
        None => unknown(),
    }
}

/// Draws the usage and the marks of the memory values to the scale of the limit. Without a limit,
/// the scale is node allocatable.
fn load(row: &ContainerStatus, status: &Status) -> String {
    let values = row.observed.unwrap_or(row.desired);
    let limit = values.max.and_then(Limit::bytes);
    let scale = limit.or(status.node.allocatable).filter(|scale| *scale > Bytes::ZERO);
    let (Some(scale), Some(usage)) = (scale, row.usage) else { return unknown() };
    let cell = |bytes: Bytes| {
        let share = u128::from(bytes.get()) * CELLS as u128 / u128::from(scale.get());
        usize::try_from(share).unwrap_or(CELLS).min(CELLS)
    };
    // Any usage above 0 fills at least one cell.
    let filled = if usage > Bytes::ZERO { cell(usage).max(1) } else { 0 };
    let mut line: Vec<char> = (0..=CELLS).map(|at| if at < filled { '#' } else { '-' }).collect();
    line[CELLS] = if limit.is_some() { 'M' } else { 'A' };
    let amount =
        |limit: Option<Limit>| limit.and_then(Limit::bytes).filter(|bytes| *bytes > Bytes::ZERO);
    let (min, low) = (amount(values.min), amount(values.low));
    // Two marks on one cell would hide each other. The end mark stays in place, and the other marks
    // move to the left.
    let mut free = CELLS - 1;
    for (mark, bytes) in
        [('H', amount(values.high)), if min >= low { ('m', min) } else { ('l', low) }]
    {
        if let Some(bytes) = bytes {
            free = cell(bytes).min(free);
            line[free] = mark;
            free = free.saturating_sub(1);
        }
    }
    line.into_iter().collect()
}

fn percent(part: Bytes, whole: Option<Bytes>) -> String {
    match whole.filter(|whole| *whole > Bytes::ZERO) {
        Some(whole) => {
            format!("{} ({:.0} %)", part.approx(), part.get() as f64 * 100.0 / whole.get() as f64)
        }
        None => part.approx(),
    }
}

/// Returns the lines about the node and a table with one row per container.
fn overview(status: &Status, screen: &Screen) -> String {
    let node = &status.node;
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{} for pods; requested {}, in use {}, limits {}{}",
        node.allocatable.map_or_else(|| "unknown memory".to_owned(), Bytes::approx),
        percent(node.requests, node.allocatable),
        percent(node.usage, node.allocatable),
        percent(node.limits, node.allocatable),
        if node.unlimited > 0 {
            format!(", {} without limit", node.unlimited)
        } else {
            String::new()
        },
    );
    if let Some(line) = node.guard {
        let held = match node.pods_max {
            Some(max) if max <= Limit::Bytes(line) => String::new(),
            Some(Limit::Bytes(max)) => format!("; kubepods has {}", max.approx()),
            Some(Limit::Max) => "; kubepods has max".to_owned(),
            None => "; what kubepods has is unknown".to_owned(),
        };
        let line = format!("all pods together may use {} (nodeGuard){held}", line.approx());
        let _ = writeln!(text, "{}", screen.cut(&line));
    }
    if let Some(line) = node.planned_guard {
        let line = format!("all pods together might use {} (nodeGuard)", line.approx());
        let _ = writeln!(text, "{}", screen.cut(&line));
    }
    for line in observing(node) {
        let _ = writeln!(text, "{}", screen.cut(&line));
    }
    if let Some(problem) = &node.guard_problem {
        let _ = writeln!(text, "{}", screen.cut(&printable(problem)));
    }
    for problem in &node.problems {
        let _ = writeln!(text, "{}", sentence(problem));
    }
    for hindrance in hindrances(node) {
        let _ = writeln!(text, "{}", screen.cut(hindrance));
    }
    // Reports about the cgroups of pods are shown only with the pod (`story`).
    for cgroup in status.cgroups.iter().filter(|cgroup| cgroup.level != Level::Pod) {
        if let Some(report) = cgroup.reports.iter().find(|report| report.is_late()) {
            let line = format!("{}: {}", excerpt(cgroup.cgroup.as_str()), report.message);
            let _ = writeln!(text, "{}", screen.cut(&line));
        }
    }
    for DownStatus { namespace, pod, container, reports, .. } in &status.down {
        let name = full_name(namespace, pod, container);
        if let Some(report) = reports.first() {
            let _ = writeln!(text, "{}", screen.cut(&format!("down: {name}: {}", report.message)));
        }
    }
    text.push('\n');
    let rows: Vec<Vec<String>> = status
        .containers
        .iter()
        .map(|row| COLUMNS.iter().map(|column| (column.text)(row, status)).collect())
        .collect();
    let widths: Vec<usize> = (0..COLUMNS.len())
        .map(|at| {
            let cells = rows.iter().map(|row| row[at].chars().count());
            cells.max().unwrap_or(0).max(COLUMNS[at].title.len())
        })
        .collect();
    let shown = columns_that_fit(&widths, screen.columns);
    // The remaining width is for names. Long names are shortened in the middle, because their ends
    // distinguish them.
    let others: usize = shown.iter().filter(|at| **at != NAME).map(|at| widths[*at] + GAP).sum();
    let name_width = screen.columns.saturating_sub(others).max(LEAST_NAME);
    let mut table = Table::new();
    table.load_preset(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(shown.iter().map(|at| COLUMNS[*at].title));
    for row in rows {
        let name = shortened(&row[NAME], name_width);
        table.add_row(shown.iter().map(|at| if *at == NAME { &name } else { &row[*at] }));
    }
    for (place, at) in shown.iter().enumerate() {
        if let Some(column) = table.column_mut(place) {
            let is_last = place + 1 == shown.len();
            column.set_padding((0, if is_last { 0 } else { GAP as u16 }));
            if COLUMNS[*at].is_number {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    // The first line is the header, then one line follows per container.
    let states = std::iter::once(None).chain(status.containers.iter().map(|row| Some(row.state)));
    for (line, state) in table.to_string().lines().zip(states) {
        let line = line.trim_end();
        let style = state.and_then(style).filter(|_| screen.has_colours);
        let _ = match (style, line.split_once(' ')) {
            (Some(style), Some((word, rest))) => writeln!(text, "{style}{word}{style:#} {rest}"),
            _ => writeln!(text, "{line}"),
        };
    }
    text
}

const NAME: usize = 1;
/// Spaces between two columns.
const GAP: usize = 2;
/// Least width of a shortened name.
const LEAST_NAME: usize = 20;

/// Returns the indexes of the columns that fit the terminal, in the order of the table.
fn columns_that_fit(widths: &[usize], columns: usize) -> Vec<usize> {
    let mut by_rank: Vec<usize> = (0..COLUMNS.len()).collect();
    by_rank.sort_by_key(|at| COLUMNS[*at].rank);
    let mut left = columns + GAP;
    let mut shown: Vec<usize> = by_rank
        .into_iter()
        .take_while(|at| {
            let width = if *at == NAME { widths[*at].min(LEAST_NAME) } else { widths[*at] } + GAP;
            let fits = left >= width;
            left = left.saturating_sub(width);
            fits
        })
        .collect();
    shown.sort_unstable();
    shown
}

fn shortened(name: &str, width: usize) -> String {
    let characters: Vec<char> = name.chars().collect();
    if characters.len() <= width {
        return name.to_owned();
    }
    let tail = (width - 1) * 2 / 3;
    let head = width - 1 - tail;
    let (head, tail) = (&characters[..head], &characters[characters.len() - tail..]);
    head.iter().chain(&['~']).chain(tail).collect()
}

fn style(state: State) -> Option<Style> {
    let colour = match state {
        State::Killed | State::Refused | State::Contended | State::Drifted => AnsiColor::Red,
        State::Deferred
        | State::Throttled
        | State::WouldThrottle
        | State::Rescued
        | State::OverRequest
        | State::Inert => AnsiColor::Yellow,
        State::Unread | State::Unprotected | State::Protected => return None,
    };
    Some(colour.on_default())
}

/// Returns everything known about the containers of a pod, or of several pods with the same name.
fn story(status: &Status, now: u64) -> String {
    let mut text = String::new();
    let mut told: Vec<&CgroupPath> = Vec::new();
    for row in &status.containers {
        let _ = writeln!(
            text,
            "{}: {} ({}, {})\n  {}",
            name_of(row),
            row.state,
            row.class,
            excerpt(&row.id),
            load(row, status)
        );
        if let Some(problem) = &row.problem {
            let _ = writeln!(text, "  cannot be read: {}", sentence(problem));
        }
        let working_set = row.working_set.map_or_else(unknown, Bytes::approx);
        let _ = writeln!(
            text,
            "  usage {}, of which {working_set} in active use; request {}; over that {}",
            row.usage.map_or_else(unknown, Bytes::approx),
            request(row),
            row.over_request.approx()
        );
        let reasons = &row.reasons;
        for (file, value, reason) in [
            ("memory.min ", pair(row, |values| values.min), &reasons.min),
            ("memory.low ", pair(row, |values| values.low), &reasons.low),
            ("memory.high", pair(row, |values| values.high), &reasons.high),
        ] {
            let _ = writeln!(text, "  {file}  {value:>10}  {reason}");
        }
        let asked = if Some(row.asked) == row.desired.max {
            String::new()
        } else {
            format!("  asked for: {}", show(row.asked))
        };
        let _ = writeln!(text, "  memory.max   {:>10}{asked}", pair(row, |values| values.max));
        if let (Some(effective), Some(standing)) = (row.effective, row.standing) {
            let _ = writeln!(text, "  effective    {}: {standing}", protection(effective));
        }
        if let (Some(seconds), Some(percent), Some(kills)) =
            (row.stalled_seconds, row.stalled_percent, row.oom_kills)
        {
            let _ = writeln!(
                text,
                "  waited for memory for {seconds:.1} s, {percent:.0} % of the last ten seconds; {kills} processes killed"
            );
        }
        tell(&mut text, &row.reports, now);
        text.push('\n');
        // The ancestor cgroups, from the pod upwards.
        let mut above = row.cgroup.as_ref().and_then(CgroupPath::parent);
        while let Some(path) = above {
            if let Some(cgroup) = status.cgroups.iter().find(|cgroup| cgroup.cgroup == path)
                && !told.contains(&&cgroup.cgroup)
            {
                told.push(&cgroup.cgroup);
            }
            above = path.parent();
        }
    }
    for DownStatus { namespace, pod, container, reports, .. } in &status.down {
        let name = full_name(namespace, pod, container);
        let _ = writeln!(text, "{name}: down at the moment");
        tell(&mut text, reports, now);
        text.push('\n');
    }
    for path in told {
        if let Some(cgroup) = status.cgroups.iter().find(|cgroup| cgroup.cgroup == *path) {
            tell_cgroup(&mut text, cgroup, now);
        }
    }
    text
}

/// Makes a message that may contain another program's text safe to print. The limit of 2000
/// characters keeps its end, which says what to do.
fn sentence(text: &str) -> String {
    harmless(text, 2000, &['\'', '"'])
}

fn protection(of: Protection) -> String {
    match (of.min, of.low) {
        (min, Bytes::ZERO) => min.approx(),
        (min, low) => format!("min {}, low {}", min.approx(), low.approx()),
    }
}

fn tell_cgroup(text: &mut String, cgroup: &CgroupStatus, now: u64) {
    let _ = writeln!(text, "{} {}", cgroup.level.word(), excerpt(cgroup.cgroup.as_str()));
    let or_unknown = |value: Option<Protection>| value.map_or_else(unknown, protection);
    let _ = writeln!(
        text,
        "  usage {}, limit {}; protection {}, read back {}, effective {}{}",
        cgroup.usage.map_or_else(unknown, Bytes::approx),
        cgroup.max.map_or_else(unknown, show),
        protection(cgroup.desired),
        or_unknown(cgroup.observed),
        or_unknown(cgroup.effective),
        cgroup.standing.map(|standing| format!(": {standing}")).unwrap_or_default()
    );
    if let Some(problem) = &cgroup.problem {
        let _ = writeln!(text, "  cannot be read: {}", sentence(problem));
    }
    tell(text, &cgroup.reports, now);
}

fn tell(text: &mut String, reports: &[Report], now: u64) {
    for report in reports {
        let ago = |then: u64| {
            humantime::format_duration(Duration::from_secs(now.saturating_sub(then))).to_string()
        };
        let times = if report.count > 1 {
            format!(", {} times since {} ago", report.count, ago(report.first))
        } else {
            String::new()
        };
        let _ = writeln!(
            text,
            "  {} ago{times}: {}: {}",
            ago(report.last),
            report.kind,
            report.message
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(containers: &str) -> Status {
        let text = format!(
            r#"{{"version": 1, "plimsoll": "0", "node": {{"memory": null, "available": null, "allocatable": 1000, "guard": null, "podsMax": null, "synchronized": true, "standsAside": false,
            "requests": 64, "limits": 250, "unlimited": 0, "usage": 50}}, "cgroups": [], "containers": [{containers}], "down": []}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    /// Returns a container as JSON. The tests choose amounts relative to a limit of 100.
    fn container(name: &str, usage: u64, min: u64, high: &str, max: &str) -> String {
        let values = format!(r#"{{"min": {min}, "low": 0, "high": {high}, "max": {max}}}"#);
        format!(
            r#"{{"namespace": "default", "pod": "{name}", "uid": "u", "container": "app", "id": "i", "cgroup": null, "state": "killed",
            "class": "Burstable", "request": null, "asked": {max}, "usage": {usage}, "workingSet": null, "overRequest": 0, "overcommitted": false,
            "desired": {values}, "reasons": {{"min": "", "low": "", "high": ""}}, "observed": {values}, "effective": null,
            "standing": null, "stalledSeconds": null, "stalledPercent": null, "oomKills": null, "reports": []}}"#
        )
    }

    #[test]
    fn the_load_is_drawn_to_scale_and_its_marks_stay_apart() {
        let drawn = |usage, min, high, max| {
            let status = status(&container("a", usage, min, high, max));
            load(&status.containers[0], &status)
        };
        assert_eq!(drawn(50, 0, "\"max\"", "100"), "##########----------M");
        assert_eq!(drawn(1, 50, "90", "100"), "#---------m-------H-M");
        assert_eq!(drawn(100, 100, "100", "100"), "##################mHM");
        assert_eq!(drawn(500, 0, "\"max\"", "\"max\""), "##########----------A");
        assert_eq!(drawn(0, 1, "\"max\"", "100"), "m-------------------M");
    }

    #[test]
    fn a_table_is_no_wider_than_the_terminal_and_says_most_in_what_there_is() {
        let long = container(
            "a-very-long-name-of-a-pod-that-nobody-would-type-6d4cf56db6-x2x8h",
            50,
            0,
            "90",
            "100",
        );
        let status = status(&format!("{long}, {}", container("short", 50, 0, "90", "100")));
        for columns in [80, 100, 120, 200] {
            let text = overview(&status, &Screen { columns, rows: 24, has_colours: false });
            assert!(
                text.lines().skip(1).all(|line| line.chars().count() <= columns),
                "{columns}:\n{text}"
            );
            for part in ["STATE", "CONTAINER", "USAGE", "LOAD", "MAX", "killed", "x2x8h/app"] {
                assert!(text.contains(part), "{columns}: {part}:\n{text}");
            }
            assert_eq!(text.contains("REQUEST"), columns == 200, "{text}");
        }
        let text = overview(&status, &Screen { columns: 80, rows: 24, has_colours: true });
        assert!(text.contains("\x1b[31mkilled\x1b[0m "), "{text:?}");
    }
}
