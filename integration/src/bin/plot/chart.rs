//! Draws charts of memory over time.

use anyhow::{Context, Result, anyhow, bail};
use integration::kubelet::MIB;
use integration::probe::cgroup::MAX;
use integration::stories::recording::{Level, Sample};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// A chart: the recorded samples and the notes on them.
pub(crate) struct Panel {
    pub(crate) title: &'static str,
    /// The upper end of the memory axis in MiB.
    pub(crate) top: u64,
    pub(crate) samples: Vec<Sample>,
    pub(crate) notes: Vec<Note>,
}

/// A text that the chart shows at a point of the time axis.
pub(crate) struct Note {
    /// The time of the note in microseconds, by the node's clock.
    at: u64,
    /// The position of the text's first line on the memory axis, in MiB.
    level: u64,
    /// True if the text ends at the time of the note. False if the text begins at this time.
    before: bool,
    text: String,
}

impl Note {
    pub(crate) fn after(at: u64, level: u64, text: impl Into<String>) -> Note {
        Note { at, level, before: false, text: text.into() }
    }

    pub(crate) fn before(at: u64, level: u64, text: impl Into<String>) -> Note {
        Note { before: true, ..Note::after(at, level, text) }
    }
}

/// Returns step lines, which keep each value until the time of the next value.
///
/// A missing value ends a line.
fn steps(values: impl Iterator<Item = (f64, Option<f64>)>) -> Vec<Vec<(f64, f64)>> {
    let mut lines: Vec<Vec<(f64, f64)>> = Vec::new();
    let mut open = false;
    for (at, value) in values {
        // Keep the last value until this time, even if the line ends here.
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
pub(crate) fn draw(panels: &[Panel]) -> Result<String> {
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

    draw_memory(&mut chart, &panel.samples, seconds).map_err(failed)?;
    draw_notes(&mut chart, &panel.notes, seconds).map_err(failed)
}

type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;
type Drawn<'a> = Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

/// Draws the usage and the limits.
fn draw_memory<'b>(
    chart: &mut Chart<'_, 'b>,
    samples: &[Sample],
    seconds: impl Fn(u64) -> f64,
) -> Drawn<'b> {
    let mib = |bytes: u64| bytes as f64 / MIB as f64;
    let limit = |bytes: u64| (bytes != MAX).then(|| mib(bytes));
    let current = samples.iter().map(|sample| {
        let level = sample.container.map_or(0, |level| level.current);
        (seconds(sample.at), mib(level))
    });
    chart.draw_series(
        AreaSeries::new(current, 0.0, USAGE.mix(0.35)).border_style(USAGE.stroke_width(2)),
    )?;
    let of_container = |value: fn(Level) -> u64| {
        let at = |sample: &Sample| {
            (seconds(sample.at), sample.container.and_then(|level| limit(value(level))))
        };
        steps(samples.iter().map(at))
    };
    for (lines, style) in [
        (
            steps(samples.iter().map(|sample| (seconds(sample.at), limit(sample.pod_max)))),
            pod_style(),
        ),
        (of_container(|level| level.high), HIGH.stroke_width(2)),
        (of_container(|level| level.max), LIMIT.stroke_width(2)),
    ] {
        for line in lines {
            chart.draw_series([PathElement::new(line, style)])?;
        }
    }
    Ok(())
}

/// Draws a line and a text for each note.
fn draw_notes<'b>(
    chart: &mut Chart<'_, 'b>,
    notes: &[Note],
    seconds: impl Fn(u64) -> f64,
) -> Drawn<'b> {
    for Note { at, level, before, text } in notes {
        let (x, y) = (seconds(*at), *level as f64);
        chart.draw_series([PathElement::new([(x, 0.0), (x, y)], INK.mix(0.6))])?;
        let (aside, horizontal) = if *before { (-4, HPos::Right) } else { (4, HPos::Left) };
        for (line, below) in text.lines().zip((0..).step_by(LINE_HEIGHT as usize)) {
            let text = Text::new(line.to_owned(), (aside, below), text_style(12, horizontal));
            chart.draw_series([EmptyElement::at((x, y)) + text])?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_line_breaks_at_missing_values() {
        let values = [Some(5.0), Some(5.0), Some(5.0), Some(9.0), None, None, Some(1.0), Some(1.0)];
        let values = (0..).map(f64::from).zip(values);
        assert_eq!(
            steps(values),
            [vec![(0.0, 5.0), (3.0, 5.0), (3.0, 9.0), (4.0, 9.0)], vec![(6.0, 1.0), (7.0, 1.0)]]
        );
    }

    #[test]
    fn notes_appear_and_unlimited_high_is_omitted() {
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
        // The legend always contains one line in the colour of memory.high.
        let high = |svg: &str| svg.matches("stroke=\"#E17800\"").count();
        assert_eq!((high(&with), high(&without)), (2, 1));
    }
}
