//! Timers: calls that come again after the same time, found in the last few arrivals and followed from then on.
//!
//! A period is believed as often as it was right lately: its chance of being right next is `(hits + 1/2) / (hits +
//! misses + 1)`, both fading by a tenth at each firing that was due. A function may have three. A firing shifts phase and
//! period by a part of what it was off, so that timers that drift (the next one counts from the end of the last) are
//! followed as well as those that do not.

use crate::policy::Moment;
use serde::{Deserialize, Serialize};

/// Periods that are followed at once.
const PERIODS: usize = 3;
/// Chance from which on a firing explains an arrival.
const BELIEVED: f32 = 0.6;
/// Arrivals in which new periods are looked for.
const RECENT: usize = 8;
/// Shortest period that is looked for, in seconds. A function called more often is kept by its hazard.
const SHORTEST: f64 = 45.0;
/// Longest: a week.
const LONGEST: f64 = 7.0 * 86_400.0;

/// A period that is followed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Period {
    /// Seconds from one firing to the next.
    pub seconds: f64,
    /// The last firing, or when it should have been.
    last: Moment,
    hits: f32,
    misses: f32,
    /// Mean distance of a firing from where it was due, in seconds.
    off: f64,
    /// Whether no firing was due since it was found.
    #[serde(default)]
    new: bool,
}

impl Period {
    /// Seconds by which a firing may be off.
    fn tolerance(&self) -> f64 {
        (1.0 + 3.0 * self.off).min(self.seconds * 0.2)
    }

    /// The chance that the next firing comes when it is due.
    pub fn chance(&self) -> f32 {
        (self.hits + 0.5) / (self.hits + self.misses + 1.0)
    }

    /// The chance that the next firing comes when it is due, beyond what calls every `usual` seconds at random would do.
    fn surplus(&self, usual: f64) -> f32 {
        #[allow(clippy::cast_possible_truncation, reason = "a chance")]
        let luck = (1.0 - (-2.0 * self.tolerance() / usual.max(1e-3)).exp()) as f32;
        ((self.chance() - luck) / (1.0 - luck).max(1e-3)).max(0.0)
    }

    fn missed(&mut self, count: f32) {
        for _ in 0..3 {
            if count > 0.0 {
                self.hits *= 0.9;
            }
        }
        self.misses = (self.misses * 0.9 + count.min(3.0)).min(20.0);
    }

    /// Passes over the firings that were due before `now` and did not come.
    fn advance(&mut self, now: Moment) {
        let late = now.since(self.last) - self.tolerance();
        let due = (late / self.seconds).floor();
        if due >= 1.0 {
            self.last = self.last.after_seconds(due * self.seconds);
            #[allow(clippy::cast_possible_truncation, reason = "a small count")]
            self.missed(due.min(3.0) as f32);
        }
    }

    /// Whether an arrival is a firing of this period; if so the period learns from it.
    fn fired(&mut self, now: Moment) -> bool {
        let due = self.last.after_seconds(self.seconds);
        let off = now.minus(due);
        if off.abs() > self.tolerance() {
            return false;
        }
        self.off += 0.2 * (off.abs() - self.off);
        self.last = due.after_seconds(off.max(0.0) * 0.7);
        if off < 0.0 {
            self.last = Moment(now.0.saturating_add(due.0.saturating_sub(now.0) * 3 / 10));
        }
        self.seconds = (self.seconds + 0.05 * off).clamp(SHORTEST, LONGEST);
        self.hits = self.hits * 0.9 + 1.0;
        self.misses *= 0.9;
        true
    }
}

/// A firing that is expected.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Expected {
    /// From when on, in seconds from now; may have passed.
    pub from: f32,
    /// Until when.
    pub to: f32,
    /// Its chance.
    pub chance: f32,
}

/// The periods of one function.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Periods {
    followed: Vec<Period>,
    recent: Vec<Moment>,
    /// Periods whose first firing came when it was due, and that did not; they fade.
    #[serde(default)]
    confirmed: f32,
    #[serde(default)]
    refuted: f32,
}

impl Periods {
    /// An invocation came after the function had been idle for so many seconds. Says whether it was a firing that was
    /// expected with confidence. `usual`: seconds that it is usually idle.
    pub fn arrived(&mut self, now: Moment, idle: f64, usual: f64) -> bool {
        let mut explained = false;
        let mut fired = false;
        for period in &mut self.followed {
            let missed = period.misses;
            period.advance(now);
            let believed = period.surplus(usual) >= BELIEVED && period.hits > 2.5;
            let late = period.misses > missed;
            let hit = period.fired(now);
            if period.new && (hit || late) {
                period.new = false;
                self.confirmed *= 0.9;
                self.refuted *= 0.9;
                if hit && !late {
                    self.confirmed += 1.0;
                } else {
                    self.refuted += 1.0;
                }
            }
            fired |= hit;
            explained |= hit && believed;
        }
        if fired {
            self.merge();
        }
        // Several invocations of one firing are one arrival.
        if idle < SHORTEST * 0.6 {
            return explained;
        }
        if !fired {
            self.look(now);
        }
        if self.recent.len() == RECENT {
            self.recent.remove(0);
        }
        self.recent.push(now);
        explained
    }

    /// Drops periods that say the same as one that is believed more.
    fn merge(&mut self) {
        for at in (1..self.followed.len()).rev() {
            let (before, rest) = self.followed.split_at_mut(at);
            let Some(own) = rest.first() else { continue };
            let same = before.iter_mut().find(|other| {
                let apart = other.tolerance().max(own.tolerance());
                (other.seconds - own.seconds).abs() <= apart
                    && other.last.minus(own.last).abs() <= apart
            });
            if let Some(other) = same {
                if own.chance() > other.chance() {
                    *other = *own;
                }
                self.followed.remove(at);
            }
        }
    }

    /// Looks for three arrivals at equal distances that end with this one.
    fn look(&mut self, now: Moment) {
        for (at, middle) in self.recent.iter().enumerate().rev() {
            let distance = now.since(*middle);
            if !(SHORTEST..=LONGEST).contains(&distance) {
                continue;
            }
            let allowed = (0.04 * distance).max(1.5);
            let found = self
                .recent
                .iter()
                .take(at)
                .find(|first| (middle.since(**first) - distance).abs() <= allowed);
            let Some(first) = found else { continue };
            // Two equal distances are often chance; how often, the function's own past says.
            let hits = 4.0 * (self.confirmed + 2.0) / (self.confirmed + self.refuted + 3.0) - 0.5;
            let period = Period {
                new: true,
                seconds: now.since(*first) / 2.0,
                last: now,
                hits: hits.min(2.0),
                misses: 3.0 - hits.min(2.0),
                off: (middle.since(*first) - distance).abs().max(0.5),
            };
            self.follow(period);
            return;
        }
    }

    fn follow(&mut self, period: Period) {
        if self.followed.len() < PERIODS {
            self.followed.push(period);
            return;
        }
        let weakest = self
            .followed
            .iter_mut()
            .min_by(|a, b| a.chance().total_cmp(&b.chance()));
        if let Some(weakest) = weakest
            && weakest.chance() < period.chance()
        {
            *weakest = period;
        }
    }

    /// The firings that are expected next, two of each period.
    pub fn expected(&self, now: Moment, usual: f64) -> impl Iterator<Item = Expected> {
        self.followed.iter().flat_map(move |period| {
            let mut current = *period;
            current.advance(now);
            let tolerance = current.tolerance();
            [1.0, 2.0].into_iter().map(move |ahead| {
                let due = current
                    .last
                    .after_seconds(current.seconds * ahead)
                    .minus(now);
                #[allow(clippy::cast_possible_truncation, reason = "seconds, not exact")]
                Expected {
                    from: (due - tolerance) as f32,
                    to: (due + tolerance) as f32,
                    chance: current.surplus(usual),
                }
            })
        })
    }

    /// Whether one of them is believed.
    pub fn is_believed(&self, usual: f64) -> bool {
        let mut followed = self.followed.iter();
        followed.any(|period| period.surplus(usual) >= BELIEVED)
    }

    /// The periods that are followed.
    pub fn followed(&self) -> &[Period] {
        &self.followed
    }

    /// Bytes on the heap.
    pub fn bytes(&self) -> usize {
        self.followed.capacity() * size_of::<Period>()
            + self.recent.capacity() * size_of::<Moment>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minutes(count: u64) -> Moment {
        Moment(count * 60_000_000)
    }

    #[test]
    fn a_timer_is_found_at_its_third_firing_and_believed_soon() {
        let mut periods = Periods::default();
        let explained: Vec<_> = (0..12)
            .map(|firing| periods.arrived(minutes(firing * 15), 900.0, 900.0))
            .collect();
        assert_eq!(explained[..4], [false; 4]);
        assert!(
            explained[6..].iter().all(|explained| *explained),
            "{explained:?}"
        );
        let next = periods
            .expected(minutes(11 * 15 + 1), 900.0)
            .next()
            .unwrap();
        assert!(
            next.from < 840.0 && next.to > 840.0 && next.to - next.from < 10.0,
            "{next:?}"
        );
        assert!(next.chance > 0.85, "{next:?}");
    }

    #[test]
    fn two_timers_of_one_function_are_both_followed() {
        let mut periods = Periods::default();
        let mut arrivals: Vec<u64> = (0..40).map(|firing| firing * 20).collect();
        arrivals.extend((0..16).map(|firing| firing * 50 + 7));
        arrivals.sort_unstable();
        let mut last = 0;
        let explained: Vec<_> = arrivals
            .iter()
            .map(|at| {
                let idle = (at - last) as f64 * 60.0;
                last = *at;
                periods.arrived(minutes(*at), idle, 900.0)
            })
            .collect();
        let late = &explained[explained.len() - 20..];
        assert!(
            late.iter().filter(|explained| **explained).count() >= 17,
            "{late:?}"
        );
    }

    #[test]
    fn a_timer_that_stops_is_not_believed_for_long() {
        let mut periods = Periods::default();
        for firing in 0..20 {
            periods.arrived(minutes(firing * 15), 900.0, 900.0);
        }
        periods.arrived(minutes(19 * 15 + 400), 24_000.0, 900.0);
        let next = periods
            .expected(minutes(19 * 15 + 400), 900.0)
            .next()
            .unwrap();
        assert!(next.chance < 0.75, "{next:?}");
    }

    /// Arrivals at random: now and then three are at equal distances, and what is found then is not believed.
    #[test]
    fn luck_is_no_timer() {
        let mut periods = Periods::default();
        let mut state = 5u64;
        let mut random = move || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1u64 << 53) as f64
        };
        let (mut now, mut explained, mut promised) = (0.0, 0, 0.0);
        for _ in 0..2000 {
            let idle = -600.0 * (1.0 - random()).ln();
            now += idle;
            let at = Moment(0).after_seconds(now);
            explained += u32::from(periods.arrived(at, idle, 337.0));
            promised += periods
                .expected(at, 337.0)
                .map(|expected| expected.chance)
                .fold(0.0f32, f32::max);
        }
        assert!(explained < 60, "{explained} of 2000 were explained");
        assert!(promised < 500.0, "{promised} of 2000 were promised");
    }

    /// What is found twice counts once.
    #[test]
    fn a_timer_is_followed_once() {
        let mut periods = Periods::default();
        for firing in 0..60u64 {
            // Late by up to five seconds, so that some firings look like a timer of their own.
            let late = firing * 7 % 11 / 2;
            let at = Moment((firing * 900 + late) * 1_000_000);
            periods.arrived(at, 900.0, 900.0);
        }
        let same = periods
            .followed()
            .iter()
            .filter(|period| (period.seconds - 900.0).abs() < 20.0)
            .count();
        assert_eq!(same, 1, "{:?}", periods.followed());
    }
}
