//! The plot of cold starts: how they are distributed, and what the median one consists of.

use super::samples::{ColdStarts, Function, PHASES};
use super::{median, percentile};
use crate::drawing::{self, Area, GRID, GROUND, INK, QUIET, words, write};
use anyhow::Context;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

const SIZE: (u32, u32) = (960, 724);
/// Sizes as plotters counts them: 1.24 of them are a pixel.
const TEXT: i32 = 18;
const TITLE: i32 = 24;
/// One for each function.
const CURVES: [RGBColor; 2] = [RGBColor(9, 105, 218), RGBColor(188, 76, 0)];
/// One for each phase.
const FILLS: [RGBColor; 6] = [
    RGBColor(110, 119, 129),
    RGBColor(154, 103, 0),
    RGBColor(207, 34, 46),
    RGBColor(9, 105, 218),
    RGBColor(130, 80, 223),
    RGBColor(26, 127, 55),
];

/// The plot as an SVG.
pub(crate) fn draw(samples: &ColdStarts) -> anyhow::Result<String> {
    let mut picture = String::new();
    {
        let root = SVGBackend::with_string(&mut picture, SIZE).into_drawing_area();
        root.fill(&GROUND)?;
        write(
            &root,
            "Cold starts: from admission to the guest's first instruction",
            (24, 16),
            words(TITLE, INK),
        )?;
        let (_, rest) = root.split_vertically(44);
        let (curves, rest) = rest.split_vertically(350);
        let (bars, caption) = rest.split_vertically(236);
        distribution(&curves, samples)?;
        composition(&bars, samples)?;
        for (line, y) in notes(samples).iter().zip([6, 30, 54]) {
            write(&caption, line, (24, y), words(TEXT, QUIET))?;
        }
        root.present()?;
    }
    described(&picture, samples)
}

/// Adds what a screen reader says, and rounded corners for a dark page.
fn described(picture: &str, samples: &ColdStarts) -> anyhow::Result<String> {
    let (head, body) = picture
        .split_once('\n')
        .context("the plot has no first line")?;
    let head = head.strip_suffix('>').unwrap_or(head);
    let figures: Vec<_> = samples
        .functions
        .iter()
        .map(|function| {
            let sorted = function.before_run();
            format!(
                "{} ({} gone): p50 {}, p99 {}",
                function.name,
                function.gone,
                time(percentile(&sorted, 0.5)),
                time(percentile(&sorted, 0.99))
            )
        })
        .collect();
    Ok(format!(
        "{head} role=\"img\" aria-labelledby=\"title desc\" style=\"border-radius:8px\">\n<title id=\"title\">Cold starts of fnctl</title>\n<desc id=\"desc\">Cumulative distribution on a logarithmic time axis, and the median of each phase. {}.</desc>\n{body}",
        figures.join("; ")
    ))
}

fn distribution(area: &Area<'_>, samples: &ColdStarts) -> anyhow::Result<()> {
    let sorted: Vec<Vec<f64>> = samples.functions.iter().map(Function::before_run).collect();
    let smallest = sorted.iter().filter_map(|values| values.first());
    let largest = sorted.iter().filter_map(|values| values.last());
    let from = smallest.copied().fold(f64::INFINITY, f64::min).max(0.001) / 1.5;
    // The text beside the last curve needs two fifths of the width, whatever the curves are.
    let last = largest.copied().fold(0.0, f64::max);
    let to = last.max(from) * (last / from).max(4.0).powf(0.6);
    let mut chart = ChartBuilder::on(area)
        .margin_left(16)
        .margin_right(24)
        .x_label_area_size(50)
        .y_label_area_size(64)
        .build_cartesian_2d((from..to).log_scale(), 0.0..104.0)?;
    chart
        .configure_mesh()
        .bold_line_style(GRID)
        .light_line_style(GROUND)
        .axis_style(QUIET)
        .label_style(words(TEXT, INK))
        .axis_desc_style(words(TEXT, INK))
        .x_desc("time (logarithmic)")
        .y_desc("part of the cold starts")
        .x_label_formatter(&|ms| time(*ms))
        .y_label_formatter(&|part| format!("{part:.0} %"))
        .y_labels(6)
        .draw()?;
    for ((function, values), colour) in samples.functions.iter().zip(&sorted).zip(CURVES) {
        chart.draw_series(LineSeries::new(steps(values), colour.stroke_width(2)))?;
        for (part, name) in [(0.5, "p50"), (0.99, "p99")] {
            let value = percentile(values, part);
            let name = if part < 0.9 {
                format!(
                    "{}, {} gone: {name} {}",
                    function.name,
                    function.gone,
                    time(value)
                )
            } else {
                format!("{name} {}", time(value))
            };
            chart.draw_series([Circle::new((value, part * 100.0), 5, colour.filled())])?;
            // Below the curve, on its right, where nothing else is.
            let style = words(TEXT, colour).pos(Pos::new(HPos::Left, VPos::Top));
            chart.draw_series([
                EmptyElement::at((value, part * 100.0)) + Text::new(name, (9, 5), style)
            ])?;
        }
    }
    Ok(())
}

/// The corners of the stairs: for each value, the part of all values that are not above it.
fn steps(sorted: &[f64]) -> Vec<(f64, f64)> {
    let all = sorted.len() as f64;
    let mut corners: Vec<(f64, f64)> = Vec::new();
    let mut height = 0.0;
    for (index, value) in sorted.iter().enumerate() {
        let next = (index + 1) as f64 / all * 100.0;
        match corners.last_mut() {
            Some((at, top)) if at == value => *top = next,
            _ => {
                corners.push((*value, height));
                corners.push((*value, next));
            }
        }
        height = next;
    }
    corners
}

/// The median of each phase: a bar per function, each with its own scale, as they are far apart.
fn composition(area: &Area<'_>, samples: &ColdStarts) -> anyhow::Result<()> {
    for (part, function) in area
        .split_evenly((samples.functions.len().max(1), 1))
        .iter()
        .zip(&samples.functions)
    {
        let medians: Vec<f64> = function.phases.iter().cloned().map(median).collect();
        let whole: f64 = medians.iter().sum();
        let (unit, factor) = if whole < 0.5 {
            ("µs", 1e3)
        } else {
            ("ms", 1.0)
        };
        let (heading, chart) = part.split_vertically(30);
        let mut chart = ChartBuilder::on(&chart)
            .margin_left(80)
            .margin_right(40)
            .x_label_area_size(44)
            .build_cartesian_2d(0.0..whole * factor * 1.02, 0.0..1.0)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .disable_y_axis()
            .light_line_style(GROUND)
            .bold_line_style(GRID)
            .axis_style(QUIET)
            .label_style(words(TEXT, INK))
            .axis_desc_style(words(TEXT, INK))
            .x_desc(format!("median of each phase ({unit})"))
            .x_label_formatter(&|value| trimmed(*value))
            .draw()?;
        let mut from = 0.0;
        for (value, fill) in medians.iter().zip(FILLS) {
            let to = from + value * factor;
            chart.draw_series([Rectangle::new([(from, 0.1), (to, 0.95)], fill.filled())])?;
            from = to;
        }
        legend(&heading, function, &medians)?;
    }
    Ok(())
}

fn legend(area: &Area<'_>, function: &Function, medians: &[f64]) -> anyhow::Result<()> {
    write(area, &function.name, (24, 9), words(TEXT, INK))?;
    let phases = PHASES.iter().zip(medians).zip(FILLS);
    let entries = phases
        .filter(|((_, value), _)| **value != 0.0)
        .map(|((phase, value), fill)| (format!("{phase} {}", time(*value)), fill));
    drawing::legend(area, 80, TEXT, entries)
}

fn notes(samples: &ColdStarts) -> [String; 3] {
    let counts: Vec<_> = samples
        .functions
        .iter()
        .map(|function| {
            format!(
                "{} of {} (end to end {})",
                function.end_to_end.len(),
                function.name,
                time(median(function.end_to_end.clone()))
            )
        })
        .collect();
    let others: Vec<_> = samples
        .functions
        .iter()
        .map(|function| {
            format!(
                "{:.0} % while {} was measured",
                function.others * 100.0,
                function.name
            )
        })
        .collect();
    [
        format!(
            "Compiled code in memory; {}: {}.",
            match samples.runs {
                1 => "one run".to_owned(),
                runs => format!("the middle one of {runs} runs"),
            },
            counts.join(", ")
        ),
        format!(
            "{}, {} cores, release build, {}. Phases under 1 µs are not told.",
            samples.processor, samples.cores, samples.measured
        ),
        format!(
            "CPU time of the machine that other programs took: {}.",
            others.join(", ")
        ),
    ]
}

/// Milliseconds in the unit that suits them.
fn time(ms: f64) -> String {
    if ms < 0.9995 {
        let digits = if ms < 0.01 { 1 } else { 0 };
        format!("{} µs", trimmed_to(ms * 1e3, digits))
    } else {
        format!("{} ms", trimmed_to(ms, 2))
    }
}

fn trimmed(value: f64) -> String {
    trimmed_to(value, 2)
}

fn trimmed_to(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_rise_to_the_whole_and_join_equal_values() {
        assert_eq!(
            steps(&[1.0, 1.0, 2.0, 4.0]),
            [
                (1.0, 0.0),
                (1.0, 50.0),
                (2.0, 50.0),
                (2.0, 75.0),
                (4.0, 75.0),
                (4.0, 100.0)
            ]
        );
    }

    #[test]
    fn times_have_the_unit_that_suits_them() {
        let times: Vec<_> = [0.0015, 0.012, 0.3, 0.9999, 1.0, 2.871].map(time).into();
        assert_eq!(
            times,
            ["1.5 µs", "12 µs", "300 µs", "1 ms", "1 ms", "2.87 ms"]
        );
    }

    #[test]
    fn a_plot_names_its_figures_and_fetches_nothing() {
        let function = |name: &str, scale: f64| Function {
            name: name.to_owned(),
            gone: "sandbox".to_owned(),
            others: 0.25,
            end_to_end: vec![scale, scale, 2.0 * scale],
            phases: vec![vec![scale / 10.0, scale / 10.0, scale / 5.0]; PHASES.len()],
        };
        let samples = ColdStarts {
            measured: "2026-01-02".to_owned(),
            cores: 3,
            processor: "a processor".to_owned(),
            runs: 1,
            functions: vec![function("echo", 0.01), function("fraud", 3.0)],
        };
        let picture = draw(&samples).unwrap();
        for expected in ["p50 1.8 ms", "3 cores", "25 %", "2026-01-02", "<desc"] {
            assert!(picture.contains(expected), "{expected} in {picture}");
        }
        assert!(!picture.contains("href"));
    }
}
