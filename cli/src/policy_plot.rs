//! The plot of `fnctl policy simulate --plot`: what each policy pays in idle memory for fewer cold starts.

use anyhow::Context;
use fnctl_platform::simulator::Outcome;
use fnctl_platform::simulator::sweep::{Family, Sweep};
use fnctl_platform::simulator::trace::Trace;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const SIZE: (u32, u32) = (960, 620);
/// Sizes as plotters counts them: 1.24 of them are a pixel.
const TEXT: i32 = 18;
const TITLE: i32 = 24;
const GROUND: RGBColor = RGBColor(255, 255, 255);
const INK: RGBColor = RGBColor(31, 35, 40);
const QUIET: RGBColor = RGBColor(89, 99, 110);
const GRID: RGBColor = RGBColor(226, 230, 234);

fn colour(family: Family) -> RGBColor {
    match family {
        Family::Fixed => RGBColor(188, 76, 0),
        Family::Histogram => RGBColor(130, 80, 223),
        Family::Adaptive => RGBColor(9, 105, 218),
    }
}

/// The plot as an SVG.
pub(crate) fn draw(
    trace: &Trace,
    curves: &[(Family, Sweep)],
    named: &[(String, Outcome)],
) -> anyhow::Result<String> {
    let calls = trace.invocations().max(1) as f64;
    let percent = |cold: f64| (cold / calls * 100.0).max(1e-4);
    let mut points: Vec<(f64, f64)> = named
        .iter()
        .map(|(_, outcome)| {
            let all = &outcome.all;
            (all.idle_gb_hours(), percent(all.cold_starts as f64))
        })
        .collect();
    let lines: Vec<(Family, Vec<(f64, f64)>)> = curves
        .iter()
        .map(|(family, sweep)| {
            let curve = sweep.curve(|_, _| true);
            let line = curve
                .points()
                .iter()
                .filter(|point| point.0 > 0.0)
                .map(|(memory, cold)| (*memory, percent(*cold)))
                .collect();
            (*family, line)
        })
        .collect();
    points.extend(lines.iter().flat_map(|(_, line)| line.iter().copied()));
    let (mut left, mut right) = (f64::INFINITY, 0.0f64);
    let (mut low, mut high) = (f64::INFINITY, 0.0f64);
    for (memory, cold) in &points {
        if *memory > 0.0 {
            left = left.min(*memory);
        }
        right = right.max(*memory);
        low = low.min(*cold);
        high = high.max(*cold);
    }
    anyhow::ensure!(
        right > 0.0 && low.is_finite() && left.is_finite(),
        "the trace has nothing to draw: no invocations, or no idle memory"
    );
    // The cheapest end of a curve keeps next to nothing; it would take half the width.
    let left = left.max(right / 300.0) * 0.9;
    let mut picture = String::new();
    {
        let root = SVGBackend::with_string(&mut picture, SIZE).into_drawing_area();
        root.fill(&GROUND)?;
        write(
            &root,
            "Cold starts against idle memory",
            (24, 16),
            TITLE,
            INK,
        )?;
        let (_, rest) = root.split_vertically(48);
        let (area, caption) = rest.split_vertically(520);
        let mut chart = ChartBuilder::on(&area)
            .margin_left(16)
            .margin_right(28)
            .x_label_area_size(54)
            .y_label_area_size(76)
            .build_cartesian_2d(
                (left..right * 1.8).log_scale(),
                (low * 0.8..high * 1.25).log_scale(),
            )?;
        chart
            .configure_mesh()
            .bold_line_style(GRID)
            .light_line_style(GROUND)
            .axis_style(QUIET)
            .label_style(("sans-serif", TEXT).into_font().color(&INK))
            .axis_desc_style(("sans-serif", TEXT).into_font().color(&INK))
            .x_desc("GiB-hours of idle instances (logarithmic)")
            .y_desc("invocations that start cold (logarithmic)")
            .x_label_formatter(&|value| short(*value))
            .y_label_formatter(&|value| format!("{} %", short(*value)))
            .draw()?;
        for (family, line) in &lines {
            let colour = colour(*family);
            let visible: Vec<_> = line
                .iter()
                .copied()
                .filter(|point| point.0 >= left)
                .collect();
            chart.draw_series(LineSeries::new(
                visible.iter().copied(),
                colour.stroke_width(2),
            ))?;
            chart.draw_series(
                visible
                    .iter()
                    .map(|point| Circle::new(*point, 3, colour.filled())),
            )?;
        }
        for (name, outcome) in named {
            let all = &outcome.all;
            let at = (all.idle_gb_hours(), percent(all.cold_starts as f64));
            if at.0 < left {
                continue;
            }
            let family = name.split(':').next().unwrap_or_default();
            let colour = lines
                .iter()
                .find(|(other, _)| other.as_str() == family)
                .map_or(INK, |(family, _)| colour(*family));
            // Fixed times are the curve furthest to the right; the others have room below on their left.
            let (side, end, offset) = if family == "fixed" {
                (HPos::Left, VPos::Bottom, (10, -4))
            } else {
                (HPos::Right, VPos::Top, (-8, 6))
            };
            let style = ("sans-serif", TEXT).into_font().color(&colour);
            let style = style.pos(Pos::new(side, end));
            chart.draw_series([EmptyElement::at(at)
                + Circle::new((0, 0), 6, colour.filled())
                + Text::new(name.clone(), offset, style)])?;
        }
        let mut x = 24;
        for (family, text) in [
            (Family::Fixed, "fixed, by its time"),
            (Family::Histogram, "histogram, by range and cut-offs"),
            (Family::Adaptive, "adaptive, by patience"),
        ] {
            caption.draw(&Rectangle::new(
                [(x, 10), (x + 14, 22)],
                colour(family).filled(),
            ))?;
            write(&caption, text, (x + 22, 8), TEXT, INK)?;
            x += 60 + 8 * i32::try_from(text.chars().count()).unwrap_or(0);
        }
        let note = format!(
            "{} invocations of {} functions over {:.0} hours; lower and further left is better.",
            trace.invocations(),
            trace.functions().len(),
            trace.seconds() / 3600.0
        );
        write(&caption, &note, (24, 30), TEXT, QUIET)?;
        root.present()?;
    }
    described(&picture, named)
}

/// Adds what a screen reader says, and rounded corners for a dark page.
fn described(picture: &str, named: &[(String, Outcome)]) -> anyhow::Result<String> {
    let (head, body) = picture
        .split_once('\n')
        .context("the plot has no first line")?;
    let head = head.strip_suffix('>').unwrap_or(head);
    let figures: Vec<_> = named
        .iter()
        .map(|(name, outcome)| {
            format!(
                "{}: {} cold starts at {:.1} GiB-hours",
                escaped(name),
                outcome.all.cold_starts,
                outcome.all.idle_gb_hours()
            )
        })
        .collect();
    Ok(format!(
        "{head} role=\"img\" aria-labelledby=\"title desc\" style=\"border-radius:8px\">\n<title id=\"title\">Cold starts against idle memory</title>\n<desc id=\"desc\">One curve each for fixed, histogram and adaptive keep-alive, both axes logarithmic. {}.</desc>\n{body}",
        figures.join("; ")
    ))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

fn write(
    area: &Area<'_>,
    text: &str,
    at: (i32, i32),
    size: i32,
    colour: RGBColor,
) -> anyhow::Result<()> {
    let style = ("sans-serif", size).into_font().color(&colour);
    area.draw(&Text::new(text.to_owned(), at, style))?;
    Ok(())
}

/// Two digits that count.
fn short(value: f64) -> String {
    match value {
        v if v >= 10.0 => format!("{v:.0}"),
        v if v >= 0.995 => format!("{}", (v * 10.0).round() / 10.0),
        v if v >= 0.0995 => format!("{}", (v * 100.0).round() / 100.0),
        v => format!("{}", (v * 1000.0).round() / 1000.0),
    }
}
