//! A policy and its parameters, as written on a command line: `fixed:10m`, `histogram:range=2h,tail=95`, `adaptive:20m`.

use super::{adaptive, histogram};
use fnctl_core::units::Period;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A policy and its parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Spec {
    /// Every idle instance is kept for this time, or for the function's `keep_alive`.
    Fixed(Option<Duration>),
    /// See [`histogram`].
    Histogram(histogram::Params),
    /// See [`adaptive`].
    Adaptive(adaptive::Params),
    /// Kept until the room is needed; see [`super::greedy_dual`].
    GreedyDual,
}

/// A text that names no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is no policy: {problem}")]
pub struct SpecError {
    text: String,
    problem: String,
}

impl FromStr for Spec {
    type Err = SpecError;
    fn from_str(text: &str) -> Result<Self, SpecError> {
        let error = |problem: String| SpecError {
            text: text.chars().take(80).collect(),
            problem,
        };
        let (name, rest) = text.split_once(':').unwrap_or((text, ""));
        match name {
            "fixed" if rest.is_empty() => Ok(Self::Fixed(None)),
            "fixed" => match rest.parse::<Period>() {
                Ok(period) => Ok(Self::Fixed(Some(period.duration()))),
                Err(problem) => Err(error(problem.to_string())),
            },
            "histogram" => histogram_params(rest).map(Self::Histogram).map_err(error),
            "adaptive" => adaptive_params(rest).map(Self::Adaptive).map_err(error),
            "greedy-dual" if rest.is_empty() => Ok(Self::GreedyDual),
            "greedy-dual" => Err(error("greedy-dual has no parameters".to_owned())),
            _ => Err(error(
                "write fixed:10m, histogram, adaptive or greedy-dual; docs/policies.md has their parameters".to_owned(),
            )),
        }
    }
}

/// The parameters behind the colon: `key=value` or a bare word each.
fn parameters(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.split(',')
        .filter(|part| !part.is_empty())
        .map(|part| part.split_once('=').unwrap_or((part, "")))
}

fn number(key: &str, value: &str, from: f64, to: f64) -> Result<f64, String> {
    value
        .parse::<f64>()
        .ok()
        .filter(|number| (from..=to).contains(number))
        .ok_or_else(|| format!("{key} must be a number from {from} to {to}"))
}

fn period(key: &str, value: &str) -> Result<Duration, String> {
    value
        .parse::<Period>()
        .map(Period::duration)
        .map_err(|problem| format!("{key}: {problem}"))
}

fn histogram_params(text: &str) -> Result<histogram::Params, String> {
    let mut params = histogram::Params::default();
    for (key, value) in parameters(text) {
        match key {
            "range" => {
                let minutes = period(key, value)?.as_secs() / 60;
                params.range_minutes = u16::try_from(minutes)
                    .ok()
                    .filter(|minutes| (1..=histogram::MAX_RANGE).contains(minutes))
                    .ok_or("range must be from 1m to 24h")?;
            }
            "head" => params.head = number(key, value, 0.0, 100.0)? / 100.0,
            "tail" => params.tail = number(key, value, 0.0, 100.0)? / 100.0,
            "margin" => params.margin = number(key, value, 0.0, 100.0)? / 100.0,
            "cv" => params.representative = number(key, value, 0.0, 100.0)?,
            "standard" => params.standard = Some(period(key, value)?.as_secs_f32()),
            _ => {
                return Err(format!(
                    "histogram has no parameter '{key}'; it has range, head, tail, margin, cv, standard"
                ));
            }
        }
    }
    Ok(params)
}

fn adaptive_params(text: &str) -> Result<adaptive::Params, String> {
    let mut params = adaptive::Params::default();
    #[allow(clippy::cast_possible_truncation, reason = "not exact")]
    let float = |key: &str, value: &str, from: f64, to: f64| {
        number(key, value, from, to).map(|number| number as f32)
    };
    for (key, value) in parameters(text) {
        match key {
            "patience" => params.patience = period(key, value)?.as_secs_f64(),
            "cost" => params.cost = float(key, value, 0.0, 1.0)?,
            "start" => params.start_price = float(key, value, 0.0, 1.0)?,
            "strength" => params.strength = float(key, value, 0.001, 1000.0)?,
            "half-life" => params.half_life = float(key, value, 1.0, 1e9)?,
            "no-cost" => {
                params.cost = 0.0;
                params.no_cost = true;
            }
            "no-periods" => params.no_periods = true,
            "no-prior" => params.no_prior = true,
            "rhythm" => params.rhythm = true,
            "doubt" => params.doubt = float(key, value, 0.0, 1.0)?,
            "shape" => params.shape = float(key, value, 0.001, 1000.0)?,
            "no-shape" => params.no_shape = true,
            "no-guard" => params.no_guard = true,
            "no-rungs" => params.no_rungs = true,
            "no-forgetting" => params.half_life = 1e9,
            _ if value.is_empty() => params.patience = period("patience", key)?.as_secs_f64(),
            _ => {
                return Err(format!(
                    "adaptive has no parameter '{key}'; it has patience, cost, start, doubt, strength, shape, half-life, no-cost, no-periods, no-prior, no-shape, rhythm, no-guard, no-rungs, no-forgetting"
                ));
            }
        }
    }
    Ok(params)
}

/// Writes `name:key=value,...`, only what is not usual.
fn listed(
    f: &mut fmt::Formatter<'_>,
    name: &str,
    parts: impl IntoIterator<Item = Option<String>>,
) -> fmt::Result {
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    f.write_str(name)?;
    if parts.is_empty() {
        return Ok(());
    }
    write!(f, ":{}", parts.join(","))
}

fn unusual<T: PartialEq + fmt::Display>(key: &str, value: T, usual: T) -> Option<String> {
    (value != usual).then(|| format!("{key}={value}"))
}

fn flag(key: &str, is_set: bool) -> Option<String> {
    is_set.then(|| key.to_owned())
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(None) => f.write_str("fixed"),
            Self::Fixed(Some(time)) => write!(f, "fixed:{}", Period(*time)),
            Self::Histogram(params) => {
                let plain = histogram::Params::default();
                let percent = |key: &str, value: f64, usual: f64| {
                    unusual(key, (value * 1e4).round() / 100.0, usual * 100.0)
                };
                let range = unusual("range", params.range_minutes, plain.range_minutes);
                let standard = params.standard.map(Duration::from_secs_f32);
                listed(
                    f,
                    "histogram",
                    [
                        range.map(|range| format!("{range}m")),
                        percent("head", params.head, plain.head),
                        percent("tail", params.tail, plain.tail),
                        percent("margin", params.margin, plain.margin),
                        unusual("cv", params.representative, plain.representative),
                        standard.map(|time| format!("standard={}", Period(time))),
                    ],
                )
            }
            Self::Adaptive(params) => {
                let plain = adaptive::Params::default();
                let patience = Period(Duration::from_secs_f64(params.patience));
                listed(
                    f,
                    "adaptive",
                    [
                        (params.patience != plain.patience).then(|| patience.to_string()),
                        flag("no-cost", params.no_cost),
                        unusual("cost", params.cost, plain.cost).filter(|_| !params.no_cost),
                        unusual("start", params.start_price, plain.start_price),
                        unusual("doubt", params.doubt, plain.doubt),
                        unusual("strength", params.strength, plain.strength),
                        unusual("shape", params.shape, plain.shape),
                        unusual("half-life", params.half_life, plain.half_life),
                        flag("no-periods", params.no_periods),
                        flag("no-prior", params.no_prior),
                        flag("no-shape", params.no_shape),
                        flag("no-guard", params.no_guard),
                        flag("no-rungs", params.no_rungs),
                        flag("rhythm", params.rhythm),
                    ],
                )
            }
            Self::GreedyDual => f.write_str("greedy-dual"),
        }
    }
}
