//! What is counted of one version: numbers that lie side by side, so that an invocation touches few lines of the
//! processor's cache, and a version at zero takes little memory. What seldom happens has room only once it did.

use fnctl_core::ErrorKind;
use fnctl_core::invocation::Phase;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// Each bucket of a [`Spread`] ends at this many times the end of the one before.
const FACTOR: f64 = 2.5;

/// How times are spread over `N` buckets, the last of which has no end. The first ends at `FIRST` microseconds.
#[derive(Debug)]
pub(crate) struct Spread<const FIRST: u32, const N: usize> {
    buckets: [AtomicU64; N],
}

impl<const FIRST: u32, const N: usize> Default for Spread<FIRST, N> {
    fn default() -> Self {
        Self {
            buckets: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

impl<const FIRST: u32, const N: usize> Spread<FIRST, N> {
    /// Where the buckets that have an end end, in seconds.
    pub(crate) fn ends() -> impl Iterator<Item = f64> {
        let first = f64::from(FIRST) / 1e6;
        std::iter::successors(Some(first), |end| Some(end * FACTOR)).take(N - 1)
    }

    fn observe(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let bucket = Self::ends().take_while(|end| seconds > *end).count();
        if let Some(count) = self.buckets.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many were in each bucket.
    pub(crate) fn counts(&self) -> impl Iterator<Item = u64> {
        self.buckets.iter().map(get)
    }
}

/// A spread with the sum of its times.
#[derive(Debug, Default)]
pub(crate) struct Summed<const FIRST: u32, const N: usize> {
    pub(crate) spread: Spread<FIRST, N>,
    pub(crate) sum: Sum,
}

impl<const FIRST: u32, const N: usize> Summed<FIRST, N> {
    pub(crate) fn observe(&self, time: Duration) {
        self.spread.observe(time);
        self.sum.add(time);
    }
}

/// A sum of times, in nanoseconds.
#[derive(Debug, Default)]
pub(crate) struct Sum(AtomicU64);

impl Sum {
    fn add(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.0.fetch_add(nanos, Ordering::Relaxed);
    }

    /// In seconds.
    #[allow(clippy::cast_precision_loss, reason = "a metric is a float")]
    pub(crate) fn seconds(&self) -> f64 {
        get(&self.0) as f64 / 1e9
    }
}

/// From 100 microseconds on.
pub(crate) type Run = Spread<100, 15>;
/// From 20 microseconds on.
pub(crate) type Inference = Summed<20, 15>;
/// From 10 microseconds on.
pub(crate) type Wait = Spread<10, 17>;
/// From 10 microseconds on, for each phase.
pub(crate) type Phases = [Summed<10, 17>; Phase::ALL.len()];

/// Why idle instances are retired, as labels.
pub(crate) const REAPS: [&str; 4] = ["keep_alive", "policy", "demoted", "node_full"];

/// Why an invocation got no turn.
#[derive(Debug, Clone, Copy)]
pub(crate) enum NoTurn {
    QueueFull,
    TooLate,
    QueueTimeout,
    NodeBusy,
    TurnedOff,
}

impl NoTurn {
    pub(crate) const ALL: [Self; 5] = [
        Self::QueueFull,
        Self::TooLate,
        Self::QueueTimeout,
        Self::NodeBusy,
        Self::TurnedOff,
    ];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::TooLate => "too_late",
            Self::QueueTimeout => "queue_timeout",
            Self::NodeBusy => "node_busy",
            Self::TurnedOff => "turned_off",
        }
    }
}

/// Everything about one version. What a warm invocation changes is one line of the cache, and one in each spread.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub(crate) struct Numbers {
    pub(crate) invocations: AtomicU64,
    pub(crate) warm: AtomicU64,
    pub(crate) memory: AtomicU64,
    pub(crate) run_sum: Sum,
    pub(crate) wait_sum: Sum,
    /// Instances: idle, busy, starting.
    pub(crate) instances: [AtomicU32; 3],
    pub(crate) queue_depth: AtomicU32,
    pub(crate) prewarmed: AtomicU64,
    pub(crate) run: Run,
    pub(crate) wait: Wait,
    pub(crate) cold: AtomicU64,
    pub(crate) throttles: AtomicU64,
    pub(crate) reaps: [AtomicU64; REAPS.len()],
    pub(crate) inference: OnceLock<Box<Inference>>,
    pub(crate) phases: OnceLock<Box<Phases>>,
    rare: OnceLock<Box<Rare>>,
}

/// What most versions never have.
#[derive(Debug)]
pub(crate) struct Rare {
    pub(crate) errors: [AtomicU64; ErrorKind::ALL.len()],
    pub(crate) start_failures: [AtomicU64; ErrorKind::ALL.len()],
    pub(crate) drops: [AtomicU64; NoTurn::ALL.len()],
    pub(crate) desired: OnceLock<AtomicI64>,
    pub(crate) panicking: OnceLock<AtomicI64>,
    pub(crate) provisioned: OnceLock<AtomicI64>,
}

impl Default for Rare {
    fn default() -> Self {
        Self {
            errors: std::array::from_fn(|_| AtomicU64::new(0)),
            start_failures: std::array::from_fn(|_| AtomicU64::new(0)),
            drops: std::array::from_fn(|_| AtomicU64::new(0)),
            desired: OnceLock::new(),
            panicking: OnceLock::new(),
            provisioned: OnceLock::new(),
        }
    }
}

/// Reads a number.
pub(crate) fn get(number: &AtomicU64) -> u64 {
    number.load(Ordering::Relaxed)
}

/// Adds to a number.
pub(crate) fn add(number: &AtomicU64, count: u64) {
    number.fetch_add(count, Ordering::Relaxed);
}

/// Sets a gauge that appears with its first value.
pub(crate) fn appear(gauge: &OnceLock<AtomicI64>, value: i64) {
    gauge
        .get_or_init(AtomicI64::default)
        .store(value, Ordering::Relaxed);
}

impl Numbers {
    pub(crate) fn rare(&self) -> &Rare {
        self.rare.get_or_init(Box::default)
    }

    /// What seldom happens, if it did.
    pub(crate) fn known_rare(&self) -> Option<&Rare> {
        self.rare.get().map(Box::as_ref)
    }

    pub(crate) fn waited(&self, time: Duration) {
        self.wait.observe(time);
        self.wait_sum.add(time);
    }

    pub(crate) fn ran(&self, took: Duration, inference: Duration, memory: u64) {
        add(&self.invocations, 1);
        self.run.observe(took);
        self.run_sum.add(took);
        if !inference.is_zero() {
            let spread = self.inference.get_or_init(Box::default);
            spread.observe(inference);
        }
        self.memory.store(memory, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_counts_in_the_first_bucket_that_ends_behind_it() {
        let wait = Wait::default();
        for micros in [0, 10, 11, 25, 26, 3_600_000_000] {
            wait.observe(Duration::from_micros(micros));
        }
        let counts: Vec<_> = wait.counts().collect();
        assert_eq!(counts.get(..3), Some([2, 2, 1].as_slice()));
        assert_eq!((counts.len(), counts.last()), (17, Some(&1)));
        let ends: Vec<_> = Wait::ends().collect();
        let usual = prometheus::exponential_buckets(0.000_01, 2.5, 16).unwrap();
        assert_eq!(ends.len(), usual.len());
        for (end, usual) in ends.iter().zip(usual) {
            assert!((end / usual - 1.0).abs() < 1e-12, "{end} {usual}");
        }
    }

    /// What a warm invocation changes besides its two buckets.
    #[test]
    fn what_is_hot_is_one_line_of_the_cache() {
        assert_eq!(std::mem::offset_of!(Numbers, run), 64);
        assert!(size_of::<Numbers>() <= 512, "{}", size_of::<Numbers>());
    }
}
