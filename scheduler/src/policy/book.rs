//! What is learned over all functions: how long functions of a kind stay idle, and what a typical function
//! is worth. It is where a function with few idle times of its own borrows from.

use super::adaptive::hazard::{BINS, edges, width};
use super::{Moment, Rung, Sample, Worth};

/// Scales of idle times, an octave each from half a second on.
pub(crate) const SCALES: usize = 20;
/// How the last idle time compares with the usual one.
pub(crate) const LASTS: usize = 5;
/// How regular idle times are.
pub(crate) const SPREADS: usize = 5;
/// Functions without an idle time of their own.
pub(crate) const NEW: usize = SCALES * LASTS * SPREADS;
/// Levels of concurrency above the first: 2, 3 and 4, 5 and more.
pub(crate) const UPPER: usize = NEW + 1;
/// All kinds.
pub(crate) const CONTEXTS: usize = UPPER + 3;

/// Idle times after which a kind has forgotten half.
const FULL: f32 = 4_000.0;
/// Idle times of a wider kind that count as much as a narrower kind's own.
const BORROWED: f32 = 4.0;

#[derive(Debug, Clone, Copy)]
struct Kind {
    ended: [f32; BINS],
    exposed: [f32; BINS],
    seen: f32,
}

impl Kind {
    const EMPTY: Self = Self {
        ended: [0.0; BINS],
        exposed: [0.0; BINS],
        seen: 0.0,
    };

    fn learn(&mut self, bin: usize, ended: bool) {
        for (at, (exposed, width)) in self.exposed.iter_mut().zip(width()).enumerate() {
            match at.cmp(&bin) {
                std::cmp::Ordering::Less => *exposed += width,
                std::cmp::Ordering::Equal => *exposed += width / 2.0,
                std::cmp::Ordering::Greater => break,
            }
        }
        if ended && let Some(count) = self.ended.get_mut(bin) {
            *count += 1.0;
        }
        self.seen += 1.0;
        if self.seen > FULL {
            self.seen /= 2.0;
            self.ended.iter_mut().for_each(|count| *count /= 2.0);
            self.exposed.iter_mut().for_each(|time| *time /= 2.0);
        }
    }

    /// Hazards per second, leaning on those of a wider kind.
    fn hazards(&self, wider: &[f32; BINS]) -> [f32; BINS] {
        let mut hazards = *wider;
        for ((hazard, ended), exposed) in hazards.iter_mut().zip(self.ended).zip(self.exposed) {
            *hazard = (BORROWED + ended) / (BORROWED / *hazard + exposed);
        }
        hazards
    }
}

/// The hazard of idle times of which nothing is known: the same in every octave, so that no time is preferred.
pub(crate) fn scale_free() -> [f32; BINS] {
    let mut hazards = [0.0; BINS];
    for (hazard, edges) in hazards.iter_mut().zip(edges().windows(2)) {
        let middle = match edges {
            [from, to] => (from + to) / 2.0,
            _ => 1.0,
        };
        *hazard = 0.25 / middle;
    }
    hazards
}

/// What is learned over all functions.
#[derive(Debug, Clone)]
pub struct Book {
    kinds: Vec<Kind>,
    hazards: Vec<[f32; BINS]>,
    cold: (f32, f32),
    bytes: (f32, f32),
    /// Microseconds past midnight (UTC) at the origin of all moments.
    day_offset: u64,
    unpublished: u32,
    learned: u32,
}

impl Book {
    /// Knows nothing. `day_offset`: microseconds past midnight at [`Moment`] zero.
    pub fn new(day_offset: u64) -> Self {
        Self {
            kinds: vec![Kind::EMPTY; CONTEXTS],
            hazards: vec![scale_free(); CONTEXTS],
            cold: (0.0, 0.0),
            bytes: (0.0, 0.0),
            day_offset,
            unpublished: 0,
            learned: 0,
        }
    }

    /// The hour of the day, 0 to 23, `ahead` seconds after `now`.
    pub(crate) fn hour(&self, now: Moment, ahead: f32) -> usize {
        let at = now
            .after_seconds(f64::from(ahead))
            .0
            .saturating_add(self.day_offset);
        usize::try_from(at / 3_600_000_000 % 24).unwrap_or(0)
    }

    /// Learns from an idle time. Plans see it after [`Self::publish`].
    pub fn learn(&mut self, sample: &Sample) {
        if let Some(kind) = self.kinds.get_mut(usize::from(sample.context)) {
            kind.learn(usize::from(sample.bin), sample.ended);
        }
        if let Some(worth) = sample.first {
            self.meet(worth);
        }
        self.unpublished = self.unpublished.saturating_add(1);
        self.learned = self.learned.saturating_add(1);
    }

    /// Takes note of what one more function is worth.
    pub fn meet(&mut self, worth: Worth) {
        self.cold = (self.cold.0 + worth.cold().max(1e-6).ln(), self.cold.1 + 1.0);
        self.bytes = (
            self.bytes.0 + worth.bytes().max(1.0).ln(),
            self.bytes.1 + 1.0,
        );
    }

    /// Whether enough was learned since the last time that publishing is worth its hundred microseconds.
    pub fn is_stale(&self) -> bool {
        self.unpublished > (self.learned / 8).min(512)
    }

    /// Makes what was learned visible to plans.
    pub fn publish(&mut self) {
        self.unpublished = 0;
        let mut all = Kind::EMPTY;
        let mut scales = [Kind::EMPTY; SCALES];
        for (kind, scale) in self
            .kinds
            .iter()
            .take(NEW)
            .zip(scales_of().map(|scale| scale.min(SCALES - 1)))
        {
            for target in [Some(&mut all), scales.get_mut(scale)]
                .into_iter()
                .flatten()
            {
                for (sum, count) in target.ended.iter_mut().zip(kind.ended) {
                    *sum += count;
                }
                for (sum, time) in target.exposed.iter_mut().zip(kind.exposed) {
                    *sum += time;
                }
            }
        }
        let all = all.hazards(&scale_free());
        let mut by_scale = [all; SCALES];
        for (hazards, kind) in by_scale.iter_mut().zip(&scales) {
            *hazards = kind.hazards(&all);
        }
        for (at, (hazards, kind)) in self.hazards.iter_mut().zip(&self.kinds).enumerate() {
            let wider = if at < NEW {
                by_scale.get(at / (LASTS * SPREADS)).unwrap_or(&all)
            } else {
                &all
            };
            *hazards = kind.hazards(wider);
        }
    }

    /// Hazards of a kind, per second.
    pub(crate) fn hazards(&self, context: usize) -> Option<&[f32; BINS]> {
        self.hazards.get(context)
    }

    /// What all rungs of a typical function cost: the geometric mean over functions.
    pub fn typical(&self) -> Rung {
        if self.cold.1 == 0.0 {
            return Worth::UNKNOWN.sandbox;
        }
        Rung {
            cold: (self.cold.0 / self.cold.1).exp(),
            bytes: (self.bytes.0 / self.bytes.1).exp(),
        }
    }
}

/// The scale of each kind, in order.
fn scales_of() -> impl Iterator<Item = usize> {
    (0..NEW).map(|at| at / (LASTS * SPREADS))
}
