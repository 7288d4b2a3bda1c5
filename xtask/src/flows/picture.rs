//! A scenario as a picture: calls by what became of them above, instances by state and the queue below.

use super::caller::{Answer, Kind};
use super::scenario::Scenario;
use super::{Look, Seen};
use crate::drawing::{Area, GRID, GROUND, INK, QUIET, legend, words, write};
use anyhow::Context;
use plotters::prelude::*;

const SIZE: (u32, u32) = (960, 560);
const TEXT: i32 = 17;
const TITLE: i32 = 23;
/// Width of a bar, in seconds.
const BAR: f64 = 0.25;

/// What became of calls, from the bottom of a bar to its top.
const KINDS: [(Kind, &str, RGBColor); 5] = [
    (Kind::Warm, "warm", RGBColor(26, 127, 55)),
    (Kind::Prewarmed, "prewarmed", RGBColor(130, 80, 223)),
    (Kind::Cold, "cold", RGBColor(9, 105, 218)),
    (Kind::Refused, "refused", RGBColor(188, 76, 0)),
    (Kind::Failed, "failed", RGBColor(207, 34, 46)),
];

type State = (fn(&Look) -> u64, &'static str, RGBColor);

/// States of instances, from the bottom to the top.
const STATES: [State; 3] = [
    (|look| look.busy, "busy", RGBColor(26, 127, 55)),
    (|look| look.idle, "idle", RGBColor(172, 211, 181)),
    (|look| look.starting, "starting", RGBColor(9, 105, 218)),
];

const QUEUE: RGBColor = RGBColor(188, 76, 0);

/// One line about it.
pub(crate) fn summary(seen: &Seen) -> String {
    let counts: Vec<_> = KINDS
        .iter()
        .map(|(kind, name, _)| (count(seen, *kind), name))
        .filter(|(count, _)| *count > 0)
        .map(|(count, name)| format!("{count} {name}"))
        .collect();
    let served = |answer: &&Answer| !matches!(answer.kind, Kind::Refused | Kind::Failed);
    let mut took: Vec<f64> = seen.answers.iter().filter(served).map(|a| a.took).collect();
    took.sort_by(f64::total_cmp);
    let most = |of: fn(&Look) -> u64| seen.looks.iter().map(of).max().unwrap_or(0);
    format!(
        "{}; answered in {:.0} ms (p50), {:.0} ms (p99); at most {} instances, {} waiting",
        counts.join(", "),
        crate::bench::percentile(&took, 0.5) * 1e3,
        crate::bench::percentile(&took, 0.99) * 1e3,
        most(|look| look.idle + look.busy + look.starting),
        most(|look| look.queued),
    )
}

fn count(seen: &Seen, kind: Kind) -> usize {
    seen.answers.iter().filter(|one| one.kind == kind).count()
}

/// The picture as an SVG.
pub(crate) fn draw(scenario: &Scenario, seen: &Seen) -> anyhow::Result<String> {
    let mut picture = String::new();
    {
        let root = SVGBackend::with_string(&mut picture, SIZE).into_drawing_area();
        root.fill(&GROUND)?;
        write(&root, scenario.title, (24, 14), words(TITLE, INK))?;
        let (_, rest) = root.split_vertically(46);
        let (calls, rest) = rest.split_vertically(220);
        let (instances, caption) = rest.split_vertically(256);
        let seconds = scenario.length().as_secs_f64();
        draw_calls(&calls, seen, seconds)?;
        draw_instances(&instances, seen, seconds)?;
        write(&caption, summary(seen), (24, 6), words(TEXT, QUIET))?;
        root.present()?;
    }
    let (head, body) = picture.split_once('\n').context("an empty picture")?;
    let head = head.strip_suffix('>').unwrap_or(head);
    Ok(format!(
        "{head} role=\"img\" aria-labelledby=\"title desc\" style=\"border-radius:8px\">\n<title id=\"title\">{}</title>\n<desc id=\"desc\">{}</desc>\n{body}",
        scenario.title,
        summary(seen)
    ))
}

fn draw_calls(area: &Area<'_>, seen: &Seen, seconds: f64) -> anyhow::Result<()> {
    let mut bars: Vec<(f64, [u32; 5])> = Vec::new();
    for answer in &seen.answers {
        let from = (answer.at / BAR).floor() * BAR;
        let kind = KINDS.iter().position(|(kind, ..)| *kind == answer.kind);
        if bars.last().is_none_or(|(at, _)| *at < from) {
            bars.push((from, [0; 5]));
        }
        if let (Some((_, counts)), Some(kind)) = (bars.last_mut(), kind)
            && let Some(count) = counts.get_mut(kind)
        {
            *count += 1;
        }
    }
    let rate = |count: u32| f64::from(count) / BAR;
    let top = bars.iter().map(|(_, counts)| rate(counts.iter().sum()));
    let top = top.fold(1.0, f64::max) * 1.1;
    let mut chart = chart(area, seconds, top, "calls a second", false)?;
    for (from, counts) in &bars {
        let mut base = 0.0;
        for ((_, _, colour), count) in KINDS.iter().zip(counts) {
            let to = base + rate(*count);
            if to > base {
                let bar = [(from + 0.02, base), (from + BAR - 0.02, to)];
                chart
                    .0
                    .draw_series([Rectangle::new(bar, colour.filled())])?;
            }
            base = to;
        }
    }
    let told = KINDS.iter().filter(|(kind, ..)| count(seen, *kind) > 0);
    let told = told.map(|(_, name, colour)| ((*name).to_owned(), *colour));
    legend(area, 92, TEXT, told)
}

fn draw_instances(area: &Area<'_>, seen: &Seen, seconds: f64) -> anyhow::Result<()> {
    let all = |look: &Look| (look.idle + look.busy + look.starting).max(look.queued);
    let top = seen.looks.iter().map(all).max().unwrap_or(0).max(1) as f64 * 1.15;
    let mut chart = chart(area, seconds, top, "instances", true)?;
    for pair in seen.looks.windows(2) {
        let [look, next] = pair else { continue };
        let mut base = 0.0;
        for (of, _, colour) in STATES {
            let to = base + of(look) as f64;
            if to > base {
                let block = [(look.at, base), (next.at, to)];
                chart
                    .0
                    .draw_series([Rectangle::new(block, colour.filled())])?;
            }
            base = to;
        }
    }
    let queued = seen.looks.iter().any(|look| look.queued > 0);
    if queued {
        let line = seen.looks.iter().map(|look| (look.at, look.queued as f64));
        chart
            .0
            .draw_series(LineSeries::new(line, QUEUE.stroke_width(2)))?;
    }
    let states = STATES.iter().map(|(_, name, colour)| (*name, *colour));
    let states = states.chain(queued.then_some(("waiting", QUEUE)));
    legend(
        area,
        92,
        TEXT,
        states.map(|(name, colour)| (name.to_owned(), colour)),
    )
}

type Axes = plotters::coord::types::RangedCoordf64;
struct Chart<'a, 'b>(ChartContext<'a, SVGBackend<'b>, Cartesian2d<Axes, Axes>>);

fn chart<'a, 'b>(
    area: &'a Area<'b>,
    seconds: f64,
    top: f64,
    what: &str,
    with_time: bool,
) -> anyhow::Result<Chart<'a, 'b>> {
    let mut chart = ChartBuilder::on(area)
        .margin_left(16)
        .margin_right(24)
        .margin_top(34)
        .x_label_area_size(if with_time { 48 } else { 12 })
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..seconds, 0.0..top)?;
    let mut mesh = chart.configure_mesh();
    mesh.disable_x_mesh()
        .bold_line_style(GRID)
        .light_line_style(GROUND)
        .axis_style(QUIET)
        .label_style(words(TEXT, INK))
        .axis_desc_style(words(TEXT, INK))
        .y_desc(what)
        .y_labels(5)
        .y_label_formatter(&|value| format!("{value:.0}"));
    if with_time {
        // Steps of half a second would read 0, 0, 1, 2, 2.
        mesh.x_desc("seconds")
            .x_label_formatter(&|value| match value.fract().abs() < 1e-6 {
                true => format!("{value:.0}"),
                false => String::new(),
            });
    } else {
        mesh.x_labels(0);
    }
    mesh.draw()?;
    drop(mesh);
    Ok(Chart(chart))
}
