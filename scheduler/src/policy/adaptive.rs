//! `adaptive`: an instance is kept while that is expected to save more than it costs.
//!
//! An idle instance of `bytes` that is kept one second more costs `price * bytes`; if the function is called in that
//! second it saves `cold` seconds of a caller's time. So it pays exactly while the chance per second of being called,
//! the hazard at its age, is above `price * bytes / cold`. The price is one number for the whole platform, so memory goes
//! where it saves most; it is set by `patience`: how long an instance of a typical function may wait for one call. The
//! hazard comes from the function's own idle times, from functions of its kind ([`Book`]) while it has few, from timers
//! that were found in its arrivals, and from the hour of the day. A plan is then the best sequence of warm and cold
//! stretches, found exactly by dynamic programming over the bins of time. A guard compares with fixed keep-alives on the
//! function's own past, and gives way to one that was clearly better.
//!
//! docs/policies.md has the reasons, the numbers and what each part is worth.

pub mod guard;
pub mod hazard;
pub mod period;

use super::book::{LASTS, NEW, SCALES, SPREADS, UPPER, scale_free};
use super::{Book, Moment, Plan, Sample, Worth};
use guard::Guard;
use hazard::{BINS, IdleTimes, bin, edges};
use period::Periods;
use serde::{Deserialize, Serialize};

/// What may be set.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Params {
    /// Seconds that an idle instance of a typical function may cost, in memory, as much as one of its cold starts.
    pub patience: f64,
    /// How much a function's cold start counts that is not typical: 1 in proportion, 0 as much as any other.
    pub cost: f32,
    /// Cost of a start ahead, in cold starts.
    pub start_price: f32,
    /// Events that the prior counts for.
    pub strength: f32,
    /// Idle times after which half is forgotten.
    pub half_life: f32,
    /// Without timers.
    pub no_periods: bool,
    /// Without borrowing from other functions.
    pub no_prior: bool,
    /// Without the hour of the day.
    pub no_rhythm: bool,
    /// Without the guard.
    pub no_guard: bool,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            patience: 1200.0,
            cost: 0.5,
            start_price: 0.05,
            strength: 0.5,
            half_life: 64.0,
            no_periods: false,
            no_prior: false,
            no_rhythm: false,
            no_guard: false,
        }
    }
}

/// Calls at this hour that an hour's average of other functions counts for.
const HOUR_STRENGTH: f32 = 8.0;
/// How much of an hour's count is left a day later.
const HOUR_FADE: f32 = 0.8;

/// What is learned of one function.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Adaptive {
    idle: IdleTimes,
    /// Levels of concurrency above the first: 2, 3 and 4, 5 and more.
    upper: Vec<IdleTimes>,
    periods: Periods,
    guard: Guard,
    /// Calls that ended an idle time, by hour of the day, and on which hour since the origin it was looked at last.
    hours: [f32; 24],
    hour: u64,
    /// Mean and variance of the logarithm of idle times, and their number, which fades.
    mean: f32,
    variance: f32,
    count: f32,
    last: f32,
    /// The plan of the idle time that runs now.
    planned: Plan,
    /// The price of a warm second then, in cold starts.
    price: f32,
}

impl Adaptive {
    /// A level that had been idle was reached.
    pub(crate) fn idle_ended(
        &mut self,
        level: usize,
        since: Moment,
        now: Moment,
        worth: Worth,
        params: &Params,
        book: &Book,
    ) -> Option<Sample> {
        #[allow(clippy::cast_possible_truncation, reason = "seconds, not exact")]
        let idle = now.since(since) as f32;
        let fade = f32::exp2(-1.0 / params.half_life.max(1.0));
        let at = bin(idle);
        let hour = book.hour(now, 0.0);
        let mut sample = Sample {
            context: 0,
            bin: u8::try_from(at).unwrap_or(u8::MAX),
            ended: true,
            hour: u8::try_from(hour).unwrap_or(0),
            first: None,
        };
        if level > 1 {
            let group = upper_group(level);
            while self.upper.len() <= group {
                self.upper.push(IdleTimes::default());
            }
            self.upper.get_mut(group)?.record(at, true, fade);
            sample.context = u16::try_from(UPPER + group).ok()?;
            return Some(sample);
        }
        self.guard
            .record(&self.planned, idle, self.price, params.start_price);
        let explained = !params.no_periods && self.periods.arrived(now, f64::from(idle));
        sample.ended = !explained;
        sample.context = u16::try_from(self.context()).ok()?;
        sample.first = (self.count == 0.0).then_some(worth);
        self.idle.record(at, !explained, fade);
        self.note_hour(now, hour);
        self.note_scale(idle, fade);
        Some(sample)
    }

    fn note_scale(&mut self, idle: f32, fade: f32) {
        let log = idle.max(0.01).ln();
        self.count = self.count * fade + 1.0;
        let off = log - self.mean;
        self.mean += off / self.count;
        self.variance += (off * (log - self.mean) - self.variance) / self.count;
        self.last = log;
    }

    fn note_hour(&mut self, now: Moment, hour: usize) {
        let absolute = now.0 / 3_600_000_000;
        if absolute / 24 > self.hour / 24 {
            let days = i32::try_from(absolute / 24 - self.hour / 24).unwrap_or(i32::MAX);
            let fade = HOUR_FADE.powi(days.min(60));
            self.hours.iter_mut().for_each(|count| *count *= fade);
        }
        self.hour = absolute;
        if let Some(count) = self.hours.get_mut(hour) {
            *count += 1.0;
        }
    }

    /// Which functions this one is like: by the scale of its idle times, how the last one compares, and how much they
    /// vary.
    fn context(&self) -> usize {
        if self.count == 0.0 {
            return NEW;
        }
        let octaves = (self.mean.exp() / 0.5).max(1.0).log2();
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a saturating conversion is meant; it is not negative"
        )]
        let scale = (octaves as usize).min(SCALES - 1);
        let last = [-1.5, -0.5, 0.5, 1.5]
            .iter()
            .filter(|limit| self.last - self.mean > **limit)
            .count();
        let spread = if self.count < 2.5 {
            1
        } else {
            [0.35, 1.3]
                .iter()
                .filter(|limit| self.variance.max(0.0).sqrt() > **limit)
                .count()
        };
        (scale * LASTS + last) * SPREADS + spread
    }

    /// How much more often this function is called at an hour than on average.
    fn rhythm(&self, hour: usize, book: &Book) -> f32 {
        let own = self.hours.get(hour).copied().unwrap_or(0.0);
        let all: f32 = self.hours.iter().sum::<f32>() / 24.0;
        (own + HOUR_STRENGTH * book.rhythm(hour)) / (all + HOUR_STRENGTH)
    }

    /// The price of a second of an idle instance of this function, in its own cold starts.
    fn price(worth: Worth, params: &Params, book: &Book) -> f32 {
        let typical = book.typical();
        let cold = (worth.cold / typical.cold).max(1e-6).powf(params.cost);
        let size = if params.cost > 0.0 {
            worth.bytes / typical.bytes
        } else {
            1.0
        };
        #[allow(clippy::cast_possible_truncation, reason = "not exact")]
        let patience = params.patience.clamp(1e-3, 1e9) as f32;
        size / (patience * cold)
    }

    /// The best plan for a level that goes idle now.
    pub(crate) fn plan(
        &mut self,
        level: usize,
        now: Moment,
        worth: Worth,
        params: &Params,
        book: &Book,
    ) -> Plan {
        let price = Self::price(worth, params, book);
        if level > 1 {
            let group = upper_group(level);
            let prior = prior(UPPER + group, params, book);
            let hazards = match self.upper.get(group) {
                Some(times) => times.hazards(&prior, params.strength),
                None => prior,
            };
            return best(&stretches(&hazards, &[]), price, params.start_price);
        }
        let prior = prior(self.context(), params, book);
        let mut hazards = self.idle.hazards(&prior, params.strength);
        if !params.no_rhythm {
            let here = self.rhythm(book.hour(now, 0.0), book);
            for (hazard, edges) in hazards.iter_mut().zip(edges().windows(2)) {
                let [from, to] = edges else { continue };
                *hazard *= if *to < 600.0 {
                    here
                } else {
                    self.rhythm(book.hour(now, (from + to) / 2.0), book)
                };
            }
        }
        let lead = worth.cold + 0.5;
        let mut firings: Vec<(f32, f32, f32)> = Vec::new();
        if !params.no_periods {
            for expected in self.periods.expected(now) {
                let from = (expected.from - lead).max(0.0);
                if expected.to > from {
                    let rate = -(1.0 - expected.chance.min(0.999)).ln() / (expected.to - from);
                    firings.push((from, expected.to, rate));
                }
            }
        }
        self.planned = best(&stretches(&hazards, &firings), price, params.start_price);
        self.price = price;
        match self.guard.instead() {
            Some(keep) if !params.no_guard => Plan::keep_for(keep),
            _ => self.planned,
        }
    }

    /// The timers that are followed.
    pub fn periods(&self) -> &Periods {
        &self.periods
    }

    /// The fixed time that the guard has put in the policy's place, in seconds.
    pub fn guarded(&self) -> Option<f32> {
        self.guard.instead()
    }

    /// Bytes it takes, on the heap and beside it.
    pub fn bytes(&self) -> usize {
        size_of::<Self>()
            + self.upper.capacity() * size_of::<IdleTimes>()
            + self.periods.bytes()
    }
}

fn upper_group(level: usize) -> usize {
    match level {
        0..=2 => 0,
        3 | 4 => 1,
        _ => 2,
    }
}

fn prior(context: usize, params: &Params, book: &Book) -> [f32; BINS] {
    match book.hazards(context) {
        Some(hazards) if !params.no_prior => *hazards,
        _ => scale_free(),
    }
}

/// A stretch of time with one hazard.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Stretch {
    from: f32,
    to: f32,
    hazard: f32,
}

/// Cuts the bins where expected firings begin and end, and adds their hazards.
fn stretches(hazards: &[f32; BINS], firings: &[(f32, f32, f32)]) -> Vec<Stretch> {
    let mut cuts: Vec<f32> = firings
        .iter()
        .flat_map(|(from, to, _)| [*from, *to])
        .collect();
    cuts.sort_unstable_by(f32::total_cmp);
    let mut stretches = Vec::with_capacity(BINS + cuts.len());
    let mut cuts = cuts.into_iter().peekable();
    for (hazard, edges) in hazards.iter().zip(edges().windows(2)) {
        let [start, end] = edges else { continue };
        let mut from = *start;
        while from < *end {
            while cuts.next_if(|cut| *cut <= from).is_some() {}
            let to = cuts.peek().map_or(*end, |cut| cut.min(*end));
            let middle = (from + to) / 2.0;
            let fires: f32 = firings
                .iter()
                .filter(|(begin, finish, _)| *begin <= middle && middle < *finish)
                .map(|(_, _, rate)| rate)
                .sum();
            stretches.push(Stretch {
                from,
                to,
                hazard: hazard + fires,
            });
            from = to;
        }
    }
    stretches
}

/// The best plan: for each stretch warm or cold, so that the expected number of calls met warm, less the price of warm
/// time and of starts ahead, is the highest. Backwards over the stretches, as what follows does not depend on how one
/// got there.
fn best(stretches: &[Stretch], price: f32, start_price: f32) -> Plan {
    // What is still idle when a stretch begins, and what the stretch yields if it is warm.
    let mut idle = 1.0f32;
    let yields: Vec<(f32, f32)> = stretches
        .iter()
        .map(|stretch| {
            let load = stretch.hazard * (stretch.to - stretch.from);
            // 1 - exp(-load), to within a percent of it, from its Padé approximant.
            let called = idle * (load + load * load / 2.0) / (1.0 + load + load * load / 2.0);
            let warm = if stretch.hazard > 1e-12 {
                called / stretch.hazard
            } else {
                idle * (stretch.to - stretch.from)
            };
            let begins = idle;
            idle -= called;
            (begins, called - price * warm)
        })
        .collect();
    let (mut warm, mut cold) = (0.0f32, 0.0f32);
    // Whether to be warm in a stretch, by whether one was warm before it.
    let mut choices = vec![(false, false); stretches.len()];
    for ((begins, gained), choice) in yields.iter().zip(&mut choices).rev() {
        let stay = gained + warm;
        let start = stay - start_price * begins;
        *choice = (stay > cold, start > cold);
        (warm, cold) = (stay.max(cold), start.max(cold));
    }
    let mut plan = Plan::default();
    let mut is_warm = true;
    for (stretch, choice) in stretches.iter().zip(&choices) {
        is_warm = if is_warm { choice.0 } else { choice.1 };
        if is_warm {
            plan.push(stretch.from, stretch.to);
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_constant_hazard_above_the_price_is_kept_and_below_it_is_not() {
        let plan = |hazard: f32| best(&stretches(&[hazard; BINS], &[]), 1e-3, 0.05);
        assert_eq!(plan(2e-3).windows().len(), 1);
        assert!(plan(2e-3).keep().as_secs() > 100_000);
        assert_eq!(plan(5e-4), Plan::default());
    }

    #[test]
    fn a_firing_is_prepared_for_and_the_time_before_it_is_not_paid() {
        let firings = [(895.0, 905.0, 0.3)];
        let plan = best(&stretches(&[1e-5; BINS], &firings), 1e-3, 0.05);
        let [window] = plan.windows() else {
            panic!("{plan:?}")
        };
        assert!((window.from - 895.0).abs() < 1.0 && (window.to - 905.0).abs() < 1.0, "{window:?}");
    }

    #[test]
    fn a_gap_that_costs_less_than_a_start_is_bridged() {
        let mut hazards = [1e-6; BINS];
        hazards[bin(1.0)] = 1.0;
        hazards[bin(4.0)] = 1.0;
        let bridged = best(&stretches(&hazards, &[]), 1e-3, 0.05);
        assert_eq!(bridged.windows().len(), 1, "{bridged:?}");
        let split = best(&stretches(&hazards, &[]), 0.2, 0.0001);
        assert_eq!(split.windows().len(), 2, "{split:?}");
    }
}
