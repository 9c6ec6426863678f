//! Draws the memory usage and limits of containers over time, recorded on a real node.
//!
//! One picture shows a limit decrease that the plugin refuses. The other picture shows a container
//! that the plugin rescues from repeated OOM kills. If the events differ from the expected ones,
//! the program fails and writes no picture.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use integration::kubelet::{self, ContainerSpec, Kubelet, MIB, Pod, PodSpec};
use integration::machine::Node;
use integration::placement::{self, Mode};
use integration::probe::cgroup::MAX;
use integration::probe::crictl;
use integration::runtime::{Driver, Runtime};
use integration::stories;
use integration::stories::recording::{self, Level, Recorder, Sample};
use integration::tools::progress::progress;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// The plugin's configuration: a limit increase after every second OOM kill.
///
/// The increase is 30 MiB instead of the default, because the container is small.
const RESCUE: &str = "oomRescue: {kills: 2, factor: 1.2, minimum: 30Mi, ceiling: 200Mi}\n";
/// The limits in MiB of the container in the OOM loop: the first one and the raised ones.
const LOOP_LIMITS: [u64; 3] = [60, 90, 120];
/// The memory in MiB that this container needs.
const LOOP_NEEDS: u64 = 104;
/// The size of one allocation in MiB.
const STEP: u64 = 4;

fn main() -> Result<()> {
    progress("building the plugin");
    placement::build()?;
    let node = Node::start(Runtime::Containerd21)?;

    progress("a cut below what is used, without the plugin");
    kubelet::clear(&node)?;
    let killed = cut_that_kills(&node).context("the cut without the plugin")?;
    kubelet::clear(&node)?;
    placement::install(&node, Mode::External, "")?;
    progress("the same with it");
    let refused = cut_that_is_refused(&node).context("the cut with the plugin")?;
    progress("a loop of kills");
    kubelet::clear(&node)?;
    placement::configure(&node, RESCUE)?;
    let rescued = rescued_loop(&node).context("the loop of kills")?;

    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("plots");
    fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    for (name, panels) in
        [("rejected-cut.svg", &[refused, killed][..]), ("rescued-loop.svg", &[rescued])]
    {
        let path = directory.join(name);
        fs::write(&path, draw(panels)?).with_context(|| format!("writing {}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}

/// A chart: the recorded samples and the notes on them.
struct Panel {
    title: &'static str,
    /// The upper end of the memory axis in MiB.
    top: u64,
    samples: Vec<Sample>,
    notes: Vec<Note>,
}

/// A text beside a moment on the time axis.
struct Note {
    /// The moment in microseconds by the node's clock.
    at: u64,
    /// The height of the first line of text on the memory axis, in MiB.
    level: u64,
    /// Whether the text ends at the moment instead of beginning there.
    before: bool,
    text: String,
}

impl Note {
    fn after(at: u64, level: u64, text: impl Into<String>) -> Note {
        Note { at, level, before: false, text: text.into() }
    }

    fn before(at: u64, level: u64, text: impl Into<String>) -> Note {
        Note { before: true, ..Note::after(at, level, text) }
    }
}

/// Makes the container allocate `mib` MiB step by step.
///
/// Returns whether all allocations succeeded.
fn grow(node: &Node, pod: &Pod, mib: u64) -> Result<bool> {
    const GONE: i32 = 3;
    let output = node.try_run(&format!(
        "for _ in $(seq {}); do workload call {} alloc {} >/dev/null || exit {GONE}; sleep 0.05; done",
        mib / STEP,
        pod.container("app")?.control,
        STEP * MIB
    ))?;
    match output.status.code() {
        Some(0) => Ok(true),
        Some(GONE) => Ok(false),
        _ => bail!("allocating {mib} MiB ({}): {}", output.status, output.stderr.trim_end()),
    }
}

/// Waits, so that the picture shows a time without events.
fn wait(node: &Node, seconds: f64) -> Result<()> {
    node.run(&format!("sleep {seconds}")).map(|_| ())
}

fn cut_that_kills(node: &Node) -> Result<Panel> {
    let mut kubelet = Kubelet::start(node, Driver::Systemd)?;
    let mut pod = kubelet.run_pod(stories::ample())?;
    let recorder = Recorder::start(node, &kubelet, &pod)?;
    ensure!(grow(node, &pod, stories::NEEDS / MIB)?, "the container was killed before the cut");
    wait(node, 1.0)?;
    let asked = recorder.now()?;
    // Ignore the runtime's answer, because it depends on timing. The runtime reports success or an
    // error about the missing container.
    let _ = stories::cut(&mut kubelet, &mut pod);
    wait(node, 6.0)?;
    let samples = recorder.stop()?;
    let &[killed] = recording::kills(&samples).as_slice() else { bail!("one kill expected") };
    ensure!(killed > asked, "killed before the cut");
    let (lives, _) = stories::fate(node, &pod)?;
    ensure!(!lives, "the container lives");
    let notes =
        vec![Note::after(killed, 75, "limit of 100 MiB asked for:\nkilled by the kernel (OOM)")];
    Ok(Panel { title: "The same without Plimsoll", top: 275, samples, notes })
}

fn cut_that_is_refused(node: &Node) -> Result<Panel> {
    let mut kubelet = Kubelet::start(node, Driver::Systemd)?;
    let mut pod = kubelet.run_pod(stories::ample())?;
    let recorder = Recorder::start(node, &kubelet, &pod)?;
    ensure!(grow(node, &pod, stories::NEEDS / MIB)?, "the container was killed before the cut");
    wait(node, 1.0)?;
    let before = stories::memory(node, &pod)?;
    let asked = recorder.now()?;
    let Err(refused) = stories::cut(&mut kubelet, &mut pod) else { bail!("the cut passed") };
    let refused = crictl::reason(&refused);
    ensure!(refused.contains("would be killed"), "refused for another reason: {refused}");
    ensure!(stories::memory(node, &pod)? == before, "the refused cut has changed something");
    ensure!(grow(node, &pod, 16)?, "the container was killed after the refused cut");
    wait(node, 3.0)?;
    let freed = recorder.now()?;
    let answer = pod.container("app")?.call(node, "free")?;
    ensure!(answer.starts_with("ok"), "freeing says {answer:?}");
    wait(node, 1.5)?;
    let again = recorder.now()?;
    stories::cut(&mut kubelet, &mut pod).context("once it has freed memory")?;
    ensure!(
        stories::memory(node, &pod)?.iter().all(|memory| memory.max == 100 * MIB),
        "the cut passed, but is not made"
    );
    wait(node, 0.5)?;
    ensure!(grow(node, &pod, 64)?, "the container was killed after the cut that passed");
    wait(node, 2.0)?;
    let fate = stories::fate(node, &pod)?;
    ensure!(fate == (true, 0), "whether it lives, and kills: {fate:?}");
    let samples = recorder.stop()?;
    let limits =
        samples.iter().filter(|sample| sample.at < again).filter_map(|sample| sample.container);
    ensure!(
        limits.map(|level| level.max).all(|max| max == 250 * MIB),
        "memory.max has moved before the second cut"
    );
    let set =
        samples.iter().find(|sample| sample.container.is_some_and(|level| level.max == 100 * MIB));
    let set = set.context("no sample has the limit that was set")?.at;
    // The text after the semicolon is advice to the user and not part of the reason.
    let reason = refused.split(';').next().unwrap_or_default();
    let notes = vec![
        Note::after(
            asked,
            216,
            format!("limit of 100 MiB asked for; refused:\n{}", wrap(reason, 36)),
        ),
        Note::after(freed, 75, "frees its\nmemory"),
        Note::after(set, 212, "limit of 100 MiB\nasked for; set"),
    ];
    Ok(Panel { title: "With Plimsoll", top: 275, samples, notes })
}

fn rescued_loop(node: &Node) -> Result<Panel> {
    let mut kubelet = Kubelet::start(node, Driver::Systemd)?;
    let app = ContainerSpec::new("app").request(32 * MIB).limit(LOOP_LIMITS[0] * MIB);
    let mut pod = kubelet.run_pod(PodSpec::new("looping").container(app.clone()))?;
    let recorder = Recorder::start(node, &kubelet, &pod)?;
    let [first, second, enough] = LOOP_LIMITS;
    for (limit, fits) in
        [(first, false), (first, false), (second, false), (second, false), (enough, true)]
    {
        let has = stories::memory(node, &pod)?[1].max;
        ensure!(has == limit * MIB, "a limit of {limit} MiB expected, found {has} bytes");
        let has_all = grow(node, &pod, LOOP_NEEDS)?;
        ensure!(has_all == fits, "with {limit} MiB: whether it has what it needs: {has_all}");
        if fits {
            break;
        }
        kubelet.remove_container(&mut pod, "app")?;
        kubelet.run_container(&mut pod, &app)?;
    }
    wait(node, 4.0)?;
    ensure!(stories::fate(node, &pod)?.0, "the container does not live at last");
    let samples = recorder.stop()?;
    let (kills, raises) = (recording::kills(&samples), recording::raises(&samples));
    ensure!(kills.len() == 4, "{} moments of a kill", kills.len());
    let raised: Vec<u64> = raises.iter().map(|(_, limit)| limit / MIB).collect();
    ensure!(raised == LOOP_LIMITS[1..], "the pod's limit became {raised:?} MiB");
    let killed = kills.iter().map(|at| Note::before(*at, 20, "killed"));
    let raised = raises.iter().map(|(at, limit)| {
        let limit = limit / MIB;
        Note::after(*at, limit + 22, format!("Plimsoll raises\nthe limit to {limit} MiB"))
    });
    let notes = killed.chain(raised).collect();
    Ok(Panel {
        title: "A container that needs 104 MiB, oomRescue after two kills",
        top: 155,
        samples,
        notes,
    })
}

/// Breaks text between words into lines of at most `width` bytes. Longer words stay whole.
fn wrap(text: &str, width: usize) -> String {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("there is a line from the start");
        if line.is_empty() {
            line.push_str(word);
        } else if line.len() + 1 + word.len() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines.join("\n")
}

/// Returns step lines through values that each last until the next value.
///
/// A missing value ends a line.
fn steps(values: impl Iterator<Item = (f64, Option<f64>)>) -> Vec<Vec<(f64, f64)>> {
    let mut lines: Vec<Vec<(f64, f64)>> = Vec::new();
    let mut open = false;
    for (at, value) in values {
        // The last value lasts until this moment, even if the line ends here.
        if open && let Some(line) = lines.last_mut() {
            let &(_, last) = line.last().expect("a line begins with a point");
            // If the last two points have the same value, move the last point and add none.
            if line.len() > 1 && line[line.len() - 2].1 == last {
                line.pop();
            }
            line.push((at, last));
            if let Some(value) = value.filter(|value| *value != last) {
                line.push((at, value));
            }
        } else if let Some(value) = value {
            lines.push(vec![(at, value)]);
        }
        open = value.is_some();
    }
    lines
}

const WIDTH: u32 = 800;
const LEGEND_HEIGHT: u32 = 30;
const PANEL_HEIGHT: u32 = 270;
const LINE_HEIGHT: i32 = 15;
const FONT: &str = "sans-serif";

const USAGE: RGBColor = RGBColor(66, 120, 170);
const HIGH: RGBColor = RGBColor(225, 120, 0);
const LIMIT: RGBColor = RGBColor(190, 20, 35);
const INK: RGBColor = RGBColor(40, 40, 40);

/// Draws the charts below each other and returns the picture as SVG.
fn draw(panels: &[Panel]) -> Result<String> {
    let mut svg = String::new();
    {
        let height = LEGEND_HEIGHT
            + PANEL_HEIGHT * u32::try_from(panels.len()).context("counting charts")?;
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        let failed = |error| anyhow!("drawing: {error}");
        area.fill(&WHITE).map_err(failed)?;
        let (legend, charts) = area.split_vertically(LEGEND_HEIGHT);
        draw_legend(&legend)?;
        for (chart, panel) in charts.split_evenly((panels.len(), 1)).iter().zip(panels) {
            draw_panel(chart, panel)?;
        }
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn text_style(size: i32, horizontal: HPos) -> TextStyle<'static> {
    (FONT, size).into_font().color(&INK).pos(Pos::new(horizontal, VPos::Center))
}

fn pod_style() -> ShapeStyle {
    LIMIT.mix(0.25).stroke_width(7)
}

fn draw_legend(area: &Area<'_>) -> Result<()> {
    let middle = i32::try_from(LEGEND_HEIGHT / 2)?;
    let entries = [
        (62, "memory.current", USAGE.mix(0.4).stroke_width(12)),
        (230, "memory.high", HIGH.stroke_width(2)),
        (380, "memory.max of the container", LIMIT.stroke_width(2)),
        (622, "memory.max of its pod", pod_style()),
    ];
    for (left, name, style) in entries {
        let failed = |error| anyhow!("drawing the legend: {error}");
        area.draw(&PathElement::new([(left, middle), (left + 24, middle)], style))
            .map_err(failed)?;
        area.draw(&Text::new(name, (left + 31, middle), text_style(13, HPos::Left)))
            .map_err(failed)?;
    }
    Ok(())
}

fn draw_panel(area: &Area<'_>, panel: &Panel) -> Result<()> {
    let failed = |error| anyhow!("drawing {:?}: {error}", panel.title);
    let (Some(first), Some(last)) = (panel.samples.first(), panel.samples.last()) else {
        bail!("nothing to draw")
    };
    let seconds = |at: u64| at.saturating_sub(first.at) as f64 / 1e6;
    let mib = |bytes: u64| bytes as f64 / MIB as f64;
    let limit = |bytes: u64| (bytes != MAX).then(|| mib(bytes));

    let mut chart = ChartBuilder::on(area)
        .margin_left(8)
        .margin_right(14)
        .margin_bottom(4)
        .caption(panel.title, (FONT, 16).into_font().style(FontStyle::Bold).color(&INK))
        .x_label_area_size(36)
        .y_label_area_size(48)
        .build_cartesian_2d(0.0..seconds(last.at), 0.0..panel.top as f64)
        .map_err(failed)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(INK.mix(0.12))
        .axis_style(INK)
        .label_style(text_style(12, HPos::Left))
        .axis_desc_style(text_style(13, HPos::Left))
        .x_desc("seconds")
        .y_desc("MiB")
        .x_labels(10)
        .y_labels(6)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{y:.0}"))
        .draw()
        .map_err(failed)?;

    let current = panel.samples.iter().map(|sample| {
        let level = sample.container.map_or(0, |level| level.current);
        (seconds(sample.at), mib(level))
    });
    chart
        .draw_series(
            AreaSeries::new(current, 0.0, USAGE.mix(0.35)).border_style(USAGE.stroke_width(2)),
        )
        .map_err(failed)?;
    let of_container = |value: fn(Level) -> u64| {
        let at = |sample: &Sample| {
            (seconds(sample.at), sample.container.and_then(|level| limit(value(level))))
        };
        steps(panel.samples.iter().map(at))
    };
    for (lines, style) in [
        (
            steps(panel.samples.iter().map(|sample| (seconds(sample.at), limit(sample.pod_max)))),
            pod_style(),
        ),
        (of_container(|level| level.high), HIGH.stroke_width(2)),
        (of_container(|level| level.max), LIMIT.stroke_width(2)),
    ] {
        for line in lines {
            chart.draw_series([PathElement::new(line, style)]).map_err(failed)?;
        }
    }
    for Note { at, level, before, text } in &panel.notes {
        let (x, y) = (seconds(*at), *level as f64);
        chart.draw_series([PathElement::new([(x, 0.0), (x, y)], INK.mix(0.6))]).map_err(failed)?;
        let (aside, horizontal) = if *before { (-4, HPos::Right) } else { (4, HPos::Left) };
        for (line, below) in text.lines().zip((0..).step_by(LINE_HEIGHT as usize)) {
            let text = Text::new(line.to_owned(), (aside, below), text_style(12, horizontal));
            chart.draw_series([EmptyElement::at((x, y)) + text]).map_err(failed)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_keeps_each_value_until_the_next_and_is_interrupted_where_there_is_none() {
        let values = [Some(5.0), Some(5.0), Some(5.0), Some(9.0), None, None, Some(1.0), Some(1.0)];
        let values = (0..).map(f64::from).zip(values);
        assert_eq!(
            steps(values),
            [vec![(0.0, 5.0), (3.0, 5.0), (3.0, 9.0), (4.0, 9.0)], vec![(6.0, 1.0), (7.0, 1.0)]]
        );
    }

    #[test]
    fn text_is_broken_between_words() {
        assert_eq!(wrap("a bc def ghijkl m", 5), "a bc\ndef\nghijkl\nm");
    }

    #[test]
    fn a_picture_has_the_lines_that_there_are_and_what_is_said() {
        let level = |high| Some(Level { current: 40 * MIB, high, max: 60 * MIB });
        let sample = |at, high| Sample { at, kills: 0, pod_max: MAX, container: level(high) };
        let picture = |high| {
            let samples = vec![sample(1_000_000, high), sample(3_000_000, high)];
            let notes = vec![Note::after(2_000_000, 20, "killed\nagain")];
            draw(&[Panel { title: "loop", top: 100, samples, notes }]).unwrap()
        };
        let (with, without) = (picture(50 * MIB), picture(MAX));
        for text in ["loop", "killed", "again", "MiB", "seconds"] {
            assert!(with.contains(text), "{text}");
        }
        // The legend always has one line of this colour.
        let high = |svg: &str| svg.matches("stroke=\"#E17800\"").count();
        assert_eq!((high(&with), high(&without)), (2, 1));
    }
}
