//! `histogram`: the hybrid histogram policy of "Serverless in the Wild" (Shahrad et al., USENIX ATC 2020, section 4).
//!
//! Per function, idle times are counted in bins of one minute up to a range of four hours. While the histogram is
//! representative (the coefficient of variation of its bin counts is high enough), the function is let go when it goes
//! idle, started again before the head of the distribution (5th percentile, rounded down to a whole minute, less a
//! margin of 10 %) and kept until its tail (99th percentile, rounded up, and 10 % more). A head that rounds to zero means
//! that it is not let go. Otherwise it is kept for the standard time, the whole range. When most idle times are beyond
//! the range, the next one is forecast and the function is warm from 15 % before to 15 % after.
//!
//! Where this differs from the paper: its forecasts come from ARIMA models fitted by a library at every idle time; here
//! the best of three members of that family is taken (see [`Forecast`]), which needs sixteen numbers and no fitting. A
//! histogram needs `least` idle times before it counts as representative, since one sample alone has the highest
//! coefficient of variation there is. The paper decides for an application, here for a function, as that is what an
//! instance belongs to.

use super::{LONGEST, Plan};
use serde::{Deserialize, Serialize};

/// What may be set; the defaults are the paper's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Params {
    /// Bins of one minute.
    pub range_minutes: u16,
    /// Part of the idle times that are shorter than the head.
    pub head: f64,
    /// Part of the idle times that are shorter than the tail.
    pub tail: f64,
    /// Safety at both ends, as a part of them.
    pub margin: f64,
    /// Least coefficient of variation of the bin counts.
    pub representative: f64,
    /// Least number of idle times seen.
    pub least: u32,
    /// Part of idle times beyond the range from which on they are forecast.
    pub rare: f64,
    /// Safety of a forecast, as a part of it.
    pub forecast_margin: f64,
    /// Seconds an instance is kept while nothing is known; unset = the range.
    pub standard: Option<f32>,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            range_minutes: 240,
            head: 0.05,
            tail: 0.99,
            margin: 0.10,
            representative: 2.0,
            least: 5,
            rare: 0.5,
            forecast_margin: 0.15,
            standard: None,
        }
    }
}

/// Longest range, in minutes: a day.
pub const MAX_RANGE: u16 = 1440;

/// The idle times of one function: 2 bytes a minute of the range, and sixteen numbers for forecasts.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Histogram {
    bins: Vec<u16>,
    total: u32,
    squares: u64,
    beyond: u32,
    forecast: Forecast,
}

impl Histogram {
    /// Counts an idle time, in seconds.
    pub fn record(&mut self, idle: f64, params: &Params) {
        let range = usize::from(params.range_minutes.clamp(1, MAX_RANGE));
        if self.bins.len() != range {
            self.bins.resize(range, 0);
        }
        self.forecast.record(idle);
        // A float converts to the nearest integer there is, so that what is no number counts as zero.
        #[allow(
            clippy::cast_possible_truncation,
            reason = "a saturating conversion is meant"
        )]
        let minute = (idle / 60.0) as usize;
        match self.bins.get_mut(minute) {
            Some(bin) => {
                self.squares += 2 * u64::from(*bin) + 1;
                *bin += 1;
                self.total += 1;
                if *bin == u16::MAX {
                    self.halve();
                }
            }
            None => {
                self.beyond = self.beyond.saturating_add(1);
                if self.beyond > u32::from(u16::MAX) {
                    self.halve();
                }
            }
        }
    }

    /// Keeps the shape and makes room to count.
    fn halve(&mut self) {
        self.beyond /= 2;
        self.total = 0;
        self.squares = 0;
        for bin in &mut self.bins {
            *bin /= 2;
            self.total += u32::from(*bin);
            self.squares += u64::from(*bin).pow(2);
        }
    }

    /// Coefficient of variation of the bin counts: 0 when all are the same, high when few bins hold everything.
    pub fn variation(&self) -> f64 {
        if self.total == 0 {
            return 0.0;
        }
        let (bins, total) = (self.bins.len() as f64, f64::from(self.total));
        (bins * self.squares as f64 / (total * total) - 1.0)
            .max(0.0)
            .sqrt()
    }

    /// The bin in which this part of the idle times is reached.
    fn percentile(&self, part: f64) -> usize {
        let wanted = (part * f64::from(self.total)).max(f64::MIN_POSITIVE);
        let mut seen = 0.0;
        for (minute, count) in self.bins.iter().enumerate() {
            seen += f64::from(*count);
            if seen >= wanted {
                return minute;
            }
        }
        self.bins.len().saturating_sub(1)
    }

    /// The plan at the moment the function goes idle.
    #[allow(
        clippy::cast_possible_truncation,
        reason = "seconds of at most some days lose nothing that matters"
    )]
    pub fn plan(&self, params: &Params) -> Plan {
        let range = f32::from(params.range_minutes.clamp(1, MAX_RANGE)) * 60.0;
        let all = f64::from(self.total) + f64::from(self.beyond);
        let mut plan = Plan::default();
        if all >= f64::from(params.least.max(1)) && f64::from(self.beyond) > params.rare * all {
            let next = self.forecast.next();
            let around = |part: f64| ((next * part) as f32).clamp(0.0, LONGEST);
            plan.push(
                around(1.0 - params.forecast_margin),
                around(1.0 + params.forecast_margin),
            );
        } else if self.total >= params.least && self.variation() >= params.representative {
            let head = self.percentile(params.head) as f64 * 60.0;
            let tail = (self.percentile(params.tail) + 1) as f64 * 60.0;
            plan.push(
                (head * (1.0 - params.margin)) as f32,
                (tail * (1.0 + params.margin)) as f32,
            );
        } else {
            plan.push(0.0, params.standard.unwrap_or(range));
        }
        plan
    }

    /// Bytes it takes, on the heap and beside it.
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.bins.capacity() * size_of::<u16>()
    }
}

/// Forecasts the next of a series of idle times: three one-step forecasters run side by side, and the one whose squared
/// errors were smallest so far is believed. They are members of the ARIMA family with nothing to fit but a mean and one
/// coefficient: the mean, ARIMA(0,0,0); the last value, ARIMA(0,1,0); and a first-order autoregression around the mean,
/// ARIMA(1,0,0), by least squares over the last sixteen.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Forecast {
    recent: Vec<f32>,
    errors: [f64; 3],
}

/// How many idle times a forecast looks back.
const LOOK_BACK: usize = 16;

impl Forecast {
    /// Notes an idle time, in seconds, and how far each forecaster was off.
    pub fn record(&mut self, idle: f64) {
        if !self.recent.is_empty() {
            let forecasts = self.all();
            for (error, forecast) in self.errors.iter_mut().zip(forecasts) {
                let off = forecast - idle;
                *error = *error * 0.9 + off * off;
            }
        }
        if self.recent.len() == LOOK_BACK {
            self.recent.remove(0);
        }
        #[allow(clippy::cast_possible_truncation, reason = "seconds, not exact")]
        self.recent.push(idle as f32);
    }

    /// The forecast in seconds.
    pub fn next(&self) -> f64 {
        let mut best = (f64::INFINITY, 0.0);
        for (error, forecast) in self.errors.into_iter().zip(self.all()) {
            if error < best.0 {
                best = (error, forecast);
            }
        }
        best.1.max(0.0)
    }

    fn all(&self) -> [f64; 3] {
        let values = || self.recent.iter().map(|value| f64::from(*value));
        let count = self.recent.len().max(1) as f64;
        let mean = values().sum::<f64>() / count;
        let last = values().next_back().unwrap_or(0.0);
        let spread: f64 = values().map(|value| (value - mean).powi(2)).sum();
        let together: f64 = values()
            .zip(values().skip(1))
            .map(|(a, b)| (a - mean) * (b - mean))
            .sum();
        let coefficient = if spread > 0.0 {
            (together / spread).clamp(-0.95, 0.95)
        } else {
            0.0
        };
        [mean, last, mean + coefficient * (last - mean)]
    }
}
