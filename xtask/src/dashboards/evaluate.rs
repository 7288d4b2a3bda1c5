//! Whether what Prometheus answers to a panel's expressions can be true.

use super::files::{Dashboard, Panel, Target};
use super::load;
use super::prometheus::{Prometheus, Series, Window};
use super::promql;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// What `$__rate_interval` stands for: long enough that something happened in it, short enough for a check of a minute.
const RATE_INTERVAL: &str = "15s";

/// Everything that a value of this unit (Grafana's id) may be here; none for a unit that nobody has thought about.
pub(crate) fn bounds(unit: &str) -> Option<RangeInclusive<f64>> {
    const DAY: f64 = 86_400.0;
    Some(match unit {
        "percentunit" => 0.0..=1.0,
        // Times of work: nothing in this load takes a minute.
        "s" => 0.0..=60.0,
        // Times that something has lasted.
        "dtdurations" => 0.0..=DAY,
        "bytes" => 0.0..=(1_u64 << 40) as f64,
        "reqps" | "ops" => 0.0..=100_000.0,
        "short" => 0.0..=100_000.0,
        _ => return None,
    })
}

/// What one panel, annotation or variable came to.
pub(crate) struct Outcome {
    pub(crate) dashboard: String,
    pub(crate) name: String,
    pub(crate) unit: String,
    pub(crate) series: usize,
    /// Smallest and largest value, if there was one.
    pub(crate) range: Option<(f64, f64)>,
    pub(crate) problems: Vec<Problem>,
}

/// Why a panel is not right.
#[derive(Debug)]
pub(crate) enum Problem {
    /// Nothing to draw; it may come with more data.
    Empty(String),
    /// What more data will not heal.
    Wrong(String),
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Self::Empty(text) | Self::Wrong(text)) = self;
        f.write_str(text)
    }
}

/// Evaluates every panel, annotation and variable.
pub(crate) fn all(
    prometheus: &Prometheus,
    dashboards: &[Dashboard],
    window: Window,
) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for dashboard in dashboards {
        let outcome = |name: String, unit: &str, found: Found| Outcome {
            dashboard: dashboard.name.clone(),
            name,
            unit: unit.to_owned(),
            series: found.series.len(),
            range: found.range,
            problems: found.problems,
        };
        for variable in dashboard.variables() {
            let mut found = Found::default();
            match choices(prometheus, &variable.definition) {
                Ok(values) if values.iter().any(|value| value == load::FUNCTION) => {
                    found.series = values.iter().map(|_| BTreeMap::new()).collect();
                }
                Ok(values) => found.wrong(format!("'{}' is not among {values:?}", load::FUNCTION)),
                Err(error) => found.wrong(format!("{error:#}")),
            }
            outcomes.push(outcome(format!("(variable {})", variable.name), "", found));
        }
        for annotation in dashboard.annotations() {
            let found = expression(prometheus, &annotation.expr, window, 0.0..=f64::MAX);
            outcomes.push(outcome(
                format!("(annotation {})", annotation.name),
                "",
                found,
            ));
        }
        for panel in dashboard
            .panels
            .iter()
            .filter(|one| !one.targets.is_empty())
        {
            let found = whole_panel(prometheus, panel, window);
            outcomes.push(outcome(panel.title.clone(), panel.unit(), found));
        }
    }
    outcomes
}

/// The metrics that could be misspelt without anybody noticing: each one of each panel is tried.
pub(crate) fn undetected(
    prometheus: &Prometheus,
    dashboards: &[Dashboard],
    window: Window,
) -> (usize, Vec<String>) {
    let (mut tried, mut undetected) = (0, Vec::new());
    for dashboard in dashboards {
        for panel in &dashboard.panels {
            let unit = bounds(panel.unit()).unwrap_or(0.0..=f64::MAX);
            for expr in panel
                .targets
                .iter()
                .flat_map(|one| promql::misspelt(&one.expr))
            {
                tried += 1;
                if expression(prometheus, &expr, window, unit.clone())
                    .problems
                    .is_empty()
                {
                    undetected.push(format!("{}: '{}': {expr}", dashboard.name, panel.title));
                }
            }
        }
    }
    (tried, undetected)
}

/// The selectors of an expression that match no series.
pub(crate) fn unmatched(prometheus: &Prometheus, expr: &str, window: Window) -> Vec<Problem> {
    let expr = substituted(expr);
    promql::selectors(&expr)
        .iter()
        .filter_map(|selector| match prometheus.range(selector.text, window) {
            Ok(series) if series.is_empty() => Some(Problem::Empty(format!(
                "no series matches {}",
                selector.text
            ))),
            Ok(_) => None,
            Err(error) => Some(Problem::Wrong(format!("{}: {error:#}", selector.text))),
        })
        .collect()
}

/// An expression with Grafana's variables filled in.
fn substituted(expr: &str) -> String {
    expr.replace("$__rate_interval", RATE_INTERVAL)
        .replace("$__interval", "2s")
        .replace("$__range", "20s")
        .replace("$function", load::FUNCTION)
}

/// The choices of a variable `label_values(metric, label)`.
fn choices(prometheus: &Prometheus, definition: &str) -> anyhow::Result<Vec<String>> {
    let inner = definition
        .strip_prefix("label_values(")
        .and_then(|rest| rest.strip_suffix(')'))
        .and_then(|inner| inner.rsplit_once(','));
    let Some((metric, label)) = inner else {
        anyhow::bail!("the check knows label_values(metric, label) only, not {definition}");
    };
    prometheus.label_values(metric.trim(), label.trim())
}

/// What came of one or more expressions.
#[derive(Default)]
struct Found {
    /// Labels to points.
    series: Vec<BTreeMap<String, String>>,
    range: Option<(f64, f64)>,
    problems: Vec<Problem>,
}

impl Found {
    fn wrong(&mut self, text: String) {
        self.problems.push(Problem::Wrong(text));
    }

    fn add(&mut self, other: Self) {
        self.series.extend(other.series);
        self.problems.extend(other.problems);
        self.range = match (self.range, other.range) {
            (Some((a, b)), Some((c, d))) => Some((a.min(c), b.max(d))),
            (one, other) => one.or(other),
        };
    }
}

fn whole_panel(prometheus: &Prometheus, panel: &Panel, window: Window) -> Found {
    let mut whole = Found::default();
    let Some(bounds) = bounds(panel.unit()) else {
        whole.wrong(format!("unit '{}' has no bounds", panel.unit()));
        return whole;
    };
    for target in &panel.targets {
        let mut found = expression(prometheus, &target.expr, window, bounds.clone());
        for label in legend_labels(target) {
            if found
                .series
                .iter()
                .any(|labels| !labels.contains_key(label))
            {
                found.wrong(format!(
                    "its legend wants a label '{label}' that is not there"
                ));
            }
        }
        whole.add(found);
    }
    if let Err(error) = quantiles_rise(prometheus, panel, window) {
        whole.wrong(format!("{error:#}"));
    }
    whole
}

fn expression(
    prometheus: &Prometheus,
    expr: &str,
    window: Window,
    bounds: RangeInclusive<f64>,
) -> Found {
    let mut found = Found {
        problems: unmatched(prometheus, expr, window),
        ..Found::default()
    };
    let series = match prometheus.range(&substituted(expr), window) {
        Ok(series) => series,
        Err(error) => {
            found.wrong(format!("{error:#}"));
            return found;
        }
    };
    found.add(judged(series, &bounds));
    found
}

/// What is wrong with a result by itself.
fn judged(series: Vec<Series>, bounds: &RangeInclusive<f64>) -> Found {
    let mut found = Found::default();
    // NaN is a gap: nothing happened to divide by. Infinity is a defect.
    let values = || {
        series
            .iter()
            .flat_map(Series::points)
            .map(|(_, value)| value)
    };
    let finite = || values().filter(|value| value.is_finite());
    found.range = finite()
        .map(|value| (value, value))
        .reduce(|(low, high), (value, _)| (low.min(value), high.max(value)));
    if found.range.is_none() {
        let text = match series.len() {
            0 => "an empty result".to_owned(),
            count => format!("no number in {count} series"),
        };
        found.problems.push(Problem::Empty(text));
    }
    if values().any(f64::is_infinite) {
        found.wrong("an infinite value".to_owned());
    }
    if let Some(value) = finite().find(|value| !bounds.contains(value)) {
        found.wrong(format!(
            "{value} is not within {} to {}",
            bounds.start(),
            bounds.end()
        ));
    }
    found.series = series.into_iter().map(|one| one.labels).collect();
    found
}

/// The labels that a legend shows: `{{name}}`.
fn legend_labels(target: &Target) -> impl Iterator<Item = &str> {
    target
        .legend_format
        .split("{{")
        .skip(1)
        .filter_map(|rest| rest.split_once("}}"))
        .map(|(label, _)| label.trim())
}

/// A panel's higher quantiles must nowhere be below its lower ones.
fn quantiles_rise(prometheus: &Prometheus, panel: &Panel, window: Window) -> anyhow::Result<()> {
    let mut quantiles: Vec<(f64, &Target)> = panel
        .targets
        .iter()
        .filter_map(|target| {
            let inner = target.expr.strip_prefix("histogram_quantile(")?;
            let (quantile, _) = inner.split_once(',')?;
            Some((quantile.trim().parse().ok()?, target))
        })
        .collect();
    quantiles.sort_by(|(one, _), (other, _)| one.total_cmp(other));
    let mut lower: Option<(f64, Vec<Series>)> = None;
    for (quantile, target) in quantiles {
        let series = prometheus.range(&substituted(&target.expr), window)?;
        if let Some((below, before)) = &lower
            && let Some((low, high)) = falls(before, &series)
        {
            anyhow::bail!("quantile {quantile} is {high}, but quantile {below} is {low}");
        }
        lower = Some((quantile, series));
    }
    Ok(())
}

/// A point of the lower quantile's series that is above the same point of the higher one's.
fn falls(lower: &[Series], higher: &[Series]) -> Option<(f64, f64)> {
    let points: BTreeMap<_, f64> = lower
        .iter()
        .flat_map(|one| one.points().map(|(at, value)| ((&one.labels, at), value)))
        .collect();
    higher
        .iter()
        .flat_map(|one| one.points().map(|(at, value)| ((&one.labels, at), value)))
        .find_map(|(key, high)| {
            let low = *points.get(&key)?;
            // Interpolation within one bucket rounds.
            (high < low - 1e-9).then_some((low, high))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(version: &str, values: &[&str]) -> Series {
        let points: Vec<_> = values
            .iter()
            .zip(1..)
            .map(|(value, at)| (at, value))
            .collect();
        let json = serde_json::json!({"metric": {"version": version}, "values": points});
        serde_json::from_value(json).unwrap()
    }

    fn said(values: &[&[&str]], unit: &str) -> Vec<String> {
        let series = values.iter().map(|values| series("1", values)).collect();
        let found = judged(series, &bounds(unit).unwrap());
        found.problems.iter().map(Problem::to_string).collect()
    }

    #[test]
    fn values_that_cannot_be_true_are_told() {
        assert!(said(&[&["0", "NaN", "1"]], "percentunit").is_empty());
        for (values, unit, expected) in [
            (&[][..], "s", "an empty result"),
            (&[&["NaN", "NaN"][..]][..], "s", "no number in 1 series"),
            (&[&["1", "+Inf"][..]][..], "s", "an infinite value"),
            (
                &[&["1.01"][..]][..],
                "percentunit",
                "1.01 is not within 0 to 1",
            ),
            (&[&["-0.5"][..]][..], "s", "-0.5 is not within 0 to 60"),
            (&[&["61"][..]][..], "s", "61 is not within 0 to 60"),
        ] {
            assert_eq!(said(values, unit), [expected]);
        }
        assert!(bounds("parsecs").is_none());
    }

    #[test]
    fn a_higher_quantile_below_a_lower_one_is_told() {
        let p50 = [series("1", &["1", "2"]), series("2", &["5", "NaN"])];
        assert_eq!(falls(&p50, &[series("1", &["1", "3"])]), None);
        assert_eq!(falls(&p50, &[series("2", &["5", "1"])]), None);
        assert_eq!(falls(&p50, &[series("3", &["0", "0"])]), None);
        assert_eq!(falls(&p50, &[series("1", &["1", "1.5"])]), Some((2.0, 1.5)));
    }
}
