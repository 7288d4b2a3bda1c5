//! `adaptive`: an instance is kept while that is expected to save more than it costs.
//!
//! An idle instance of `bytes` that is kept one second more costs `price * bytes`; if the function is called in that
//! second it saves `cold` seconds of a caller's time. So it pays exactly while the chance per second of being called,
//! the hazard at its age, is above `price * bytes / cold`. The same holds for each rung that the instance stands on, with
//! its own bytes and what its own absence costs (`ladder`). The price is one number for the whole platform, so memory goes
//! where it saves most; it is set by `patience`: how long an instance of a typical function may wait for one call. The
//! hazard comes from the function's own idle times, as finely as they allow (`shape`), from functions of its kind
//! ([`Book`]) while it has few, and from timers that were found in its arrivals and are no luck; if asked for, also from
//! the hour of the day. A plan is then the best sequence of stretches with all, some or none of the rungs in memory, found
//! exactly by dynamic programming over the bins of time. A guard compares with fixed keep-alives on the function's own past, and gives way to one that
//! was clearly better.
//!
//! docs/policies.md has the reasons, the numbers and what each part is worth.

pub mod guard;
pub mod hazard;
mod ladder;
pub mod period;
mod shape;

use super::book::{LASTS, NEW, SCALES, SPREADS, UPPER, scale_free};
use super::{Book, Moment, Plan, Sample, Worth};
use guard::Guard;
use hazard::{BINS, IdleTimes, bin, edges};
use ladder::{FIRINGS, Stakes, Starts, best};
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
    /// Cost of a start ahead that no timer asks for, in cold starts.
    pub doubt: f32,
    /// Events that the prior counts for.
    pub strength: f32,
    /// Idle times after which half is forgotten.
    pub half_life: f32,
    /// Without what instances cost and take: all functions are alike.
    pub no_cost: bool,
    /// Without timers.
    pub no_periods: bool,
    /// Without borrowing from other functions.
    pub no_prior: bool,
    /// With the hour of the day. Off, as it made nothing better where it was measured (docs/policies.md).
    pub rhythm: bool,
    /// How far the hazard of a stretch of time may be from the guess: events that the guess counts for.
    pub shape: f32,
    /// With the same fineness for all.
    pub no_shape: bool,
    /// Without the guard.
    pub no_guard: bool,
    /// Decides about the sandbox only: what is below goes by the platform's times.
    pub no_rungs: bool,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            patience: 1200.0,
            cost: 0.25,
            start_price: 0.01,
            doubt: 0.2,
            strength: 0.2,
            half_life: 256.0,
            no_cost: false,
            no_periods: false,
            no_prior: false,
            rhythm: false,
            shape: 1.0,
            no_shape: false,
            no_guard: false,
            no_rungs: false,
        }
    }
}

/// Calls in each hour that a function is credited with, so that a few calls make no rhythm.
const HOUR_STRENGTH: f32 = 8.0;
/// Seconds after which a call no longer belongs to the last one's session.
const SESSION: f32 = 1800.0;
/// Standard deviation of the logarithm of idle times from which on they are irregular. Poisson arrivals have 1.28.
const IRREGULAR: f32 = 0.9;
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
    /// The hazards when they were last worked out, and how many plans were made since.
    #[serde(skip)]
    shaped: Option<Box<[f32; BINS]>>,
    #[serde(skip)]
    unread: u16,
    /// The plan of the idle time that runs now.
    planned: Plan,
    /// What was at stake then.
    stakes: Stakes,
    /// When it was made.
    planned_at: Moment,
    /// For how long the upper levels are kept, and when that was decided.
    upper_kept: [(Moment, f32); 3],
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
            .record(&self.planned, idle, &self.stakes, params.start_price);
        let explained =
            !params.no_periods && self.periods.arrived(now, f64::from(idle), self.usual());
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
            [0.35, 0.9, 1.45, 2.0]
                .iter()
                .filter(|limit| self.variance.max(0.0).sqrt() > **limit)
                .count()
        };
        (scale * LASTS + last) * SPREADS + spread
    }

    /// Seconds that it is usually idle: the geometric mean.
    fn usual(&self) -> f64 {
        f64::from(self.mean.exp())
    }

    /// How much more often this function is called at each hour than on average.
    fn rhythm(&self) -> [f32; 24] {
        let all = self.hours.iter().sum::<f32>() / 24.0 + HOUR_STRENGTH;
        self.hours.map(|own| (own + HOUR_STRENGTH) / all)
    }

    /// Whether its idle times neither are alike nor follow a timer.
    fn is_irregular(&self) -> bool {
        self.variance.max(0.0).sqrt() > IRREGULAR && !self.periods.is_believed(self.usual())
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
        let starts = Starts {
            due: params.start_price,
            guessed: if self.is_irregular() {
                params.doubt
            } else {
                params.start_price
            },
        };
        if level > 1 {
            let group = upper_group(level);
            let kept = self.upper_kept.get(group).copied().unwrap_or_default();
            if is_fresh(kept.0, kept.1, now) {
                return Plan::keep_for(kept.1);
            }
            let prior = prior(UPPER + group, params, book);
            let hazards = match self.upper.get(group) {
                Some(times) => times.hazards(&prior, params.strength),
                None => prior,
            };
            let stakes = Stakes::of_one_more(&worth, params, &book.typical());
            let keep = best(&hazards, &[], &stakes, starts).keep();
            if let Some(kept) = self.upper_kept.get_mut(group) {
                *kept = (now, keep.as_secs_f32());
            }
            return Plan::keep_for(keep.as_secs_f32());
        }
        if let [only] = self.planned.windows()
            && only.from == 0.0
            && self.periods.followed().is_empty()
            && is_fresh(self.planned_at, only.to, now)
        {
            return self.decided(params);
        }
        let prior = prior(self.context(), params, book);
        let mut hazards = if params.no_shape {
            self.idle.hazards(&prior, params.strength)
        } else {
            // A sixteenth more of idle times changes little.
            self.unread += 1;
            if f32::from(self.unread) * 16.0 > self.count || self.shaped.is_none() {
                self.unread = 0;
                self.shaped = Some(Box::new(self.idle.shaped(&prior, params.shape)));
            }
            self.shaped.as_deref().copied().unwrap_or(prior)
        };
        if params.rhythm {
            let rhythm = self.rhythm();
            let at = |ahead: f32| rhythm.get(book.hour(now, ahead)).copied().unwrap_or(1.0);
            for (hazard, edges) in hazards.iter_mut().zip(edges().windows(2)) {
                let [from, to] = edges else { continue };
                // Calls that follow each other within minutes are of one session: only its beginning knows the hour.
                if *from >= SESSION {
                    *hazard *= at((from + to) / 2.0);
                }
            }
        }
        let lead = worth.cold() + 0.5;
        let mut firings = [(0.0f32, 0.0f32, 0.0f32); FIRINGS];
        let mut count = 0;
        if !params.no_periods {
            for expected in self.periods.expected(now, self.usual()) {
                let from = (expected.from - lead).max(0.0);
                if expected.to > from
                    && expected.chance > 0.0
                    && let Some(firing) = firings.get_mut(count)
                {
                    let rate = -(1.0 - expected.chance.min(0.999)).ln() / (expected.to - from);
                    *firing = (from, expected.to, rate);
                    count += 1;
                }
            }
        }
        self.stakes = Stakes::of_all(&worth, params, &book.typical());
        self.planned = best(
            &hazards,
            firings.get(..count).unwrap_or_default(),
            &self.stakes,
            starts,
        );
        self.planned_at = now;
        self.decided(params)
    }

    /// The plan, or what the guard puts in its place.
    fn decided(&self, params: &Params) -> Plan {
        match self.guard.instead() {
            // What it was compared by: that all rungs go together.
            Some(keep) if !params.no_guard && self.stakes.is_about_all_rungs() => {
                Plan::keep_all_for(keep)
            }
            Some(keep) if !params.no_guard => Plan::keep_for(keep),
            _ => self.planned,
        }
    }

    /// Whether too little is known to let go earlier than the fixed time would.
    pub(crate) fn is_young(&self) -> bool {
        self.count < 2.0
    }

    /// Whether no idle time of it was seen yet.
    pub(crate) fn is_new(&self) -> bool {
        self.count == 0.0
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
            + self
                .shaped
                .iter()
                .map(|_| size_of::<[f32; BINS]>())
                .sum::<usize>()
            + self.upper.capacity() * size_of::<IdleTimes>()
            + self.periods.bytes()
    }
}

/// Whether a decision to keep for so many seconds is so young that another would be the same: a busy function is not
/// thought about at each of its calls.
fn is_fresh(made: Moment, keep: f32, now: Moment) -> bool {
    now >= made && now.since(made) < f64::from(keep.min(1800.0)) / 32.0
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
