//! What a simulation counted.

use super::trace::Trigger;
use std::collections::BTreeMap;
use std::time::Duration;

/// How often a function is called, on average over the trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Band {
    /// Less than once an hour.
    Rare,
    /// At least once an hour.
    Hourly,
    /// At least every ten minutes.
    Frequent,
    /// At least once a minute.
    Busy,
}

impl Band {
    /// Every band, the rarest first.
    pub const ALL: [Self; 4] = [Self::Rare, Self::Hourly, Self::Frequent, Self::Busy];

    /// Of so many calls in so many seconds.
    pub fn of(calls: u64, seconds: f64) -> Self {
        let hourly = calls as f64 / (seconds / 3600.0).max(1e-9);
        match hourly {
            rate if rate < 1.0 => Self::Rare,
            rate if rate < 6.0 => Self::Hourly,
            rate if rate < 60.0 => Self::Frequent,
            _ => Self::Busy,
        }
    }

    /// The word in reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rare => "under 1/h",
            Self::Hourly => "1 to 6/h",
            Self::Frequent => "6 to 60/h",
            Self::Busy => "over 60/h",
        }
    }
}

/// Sums over some functions.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Counts {
    /// Functions that were called.
    pub functions: u64,
    /// Invocations.
    pub invocations: u64,
    /// Invocations that waited for an instance to start.
    pub cold_starts: u64,
    /// Invocations that got an instance that was started ahead and not used before.
    pub prewarmed_starts: u64,
    /// Instances started ahead.
    pub started_ahead: u64,
    /// Instances let go because their time had come.
    pub expired: u64,
    /// Instances let go to make room.
    pub evictions: u64,
    /// Invocations refused: queue or node were full.
    pub refused: u64,
    /// Sessions and templates made for a start, where they are told apart from instances.
    pub made_below: u64,
    /// Byte-seconds of idle instances, and of what they stand on while nobody is served.
    pub idle_byte_seconds: f64,
    /// Seconds that invocations waited for an instance or a place.
    pub added_seconds: f64,
}

impl Counts {
    /// Adds another sum.
    pub fn add(&mut self, other: &Self) {
        self.functions += other.functions;
        self.invocations += other.invocations;
        self.cold_starts += other.cold_starts;
        self.prewarmed_starts += other.prewarmed_starts;
        self.started_ahead += other.started_ahead;
        self.expired += other.expired;
        self.evictions += other.evictions;
        self.refused += other.refused;
        self.made_below += other.made_below;
        self.idle_byte_seconds += other.idle_byte_seconds;
        self.added_seconds += other.added_seconds;
    }

    /// GiB-hours of idle instances.
    pub fn idle_gb_hours(&self) -> f64 {
        self.idle_byte_seconds / f64::from(1 << 30) / 3600.0
    }
}

/// How long invocations waited: counts in bins of an eighth of an octave, from a microsecond on.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Waits {
    none: u64,
    bins: Vec<u64>,
}

impl Default for Waits {
    fn default() -> Self {
        Self {
            none: 0,
            bins: vec![0; 320],
        }
    }
}

impl Waits {
    pub(crate) fn note(&mut self, micros: u64) {
        if micros == 0 {
            self.none += 1;
            return;
        }
        let octave = micros.ilog2();
        let eighth = if octave >= 3 {
            (micros >> (octave - 3)) & 7
        } else {
            (micros << (3 - octave)) & 7
        };
        let at = u64::from(octave) * 8 + eighth;
        let last = self.bins.len().saturating_sub(1);
        if let Some(bin) = self
            .bins
            .get_mut(usize::try_from(at).unwrap_or(last).min(last))
        {
            *bin += 1;
        }
    }

    /// The wait that this part of the invocations did not exceed, to within a tenth.
    fn percentile(&self, part: f64) -> Duration {
        let all = self.none + self.bins.iter().sum::<u64>();
        let wanted = part * all as f64;
        let mut seen = self.none as f64;
        if seen >= wanted {
            return Duration::ZERO;
        }
        for (octave, eighths) in (0i32..).zip(self.bins.chunks(8)) {
            for (eighth, count) in (0i32..).zip(eighths) {
                seen += *count as f64;
                if seen >= wanted {
                    let micros = 2f64.powi(octave) * (1.0 + (f64::from(eighth) + 0.5) / 8.0);
                    return Duration::try_from_secs_f64(micros / 1e6).unwrap_or_default();
                }
            }
        }
        Duration::ZERO
    }
}

/// What a simulation counted.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Outcome {
    /// By trigger and by how often the function is called.
    pub classes: BTreeMap<(Trigger, Band), Counts>,
    /// Over all functions.
    pub all: Counts,
    /// Most bytes of instances at once.
    pub peak_bytes: u64,
    /// Largest mean number of bytes that a function's history took at the end.
    pub history_bytes: u64,
    pub(crate) waits: Waits,
}

impl Outcome {
    /// The added latency that this part of the invocations did not exceed.
    pub fn added(&self, part: f64) -> Duration {
        self.waits.percentile(part)
    }

    /// Sums over the classes that `which` picks.
    pub fn of(&self, which: impl Fn(Trigger, Band) -> bool) -> Counts {
        let mut sum = Counts::default();
        for ((trigger, band), counts) in &self.classes {
            if which(*trigger, *band) {
                sum.add(counts);
            }
        }
        sum
    }
}
