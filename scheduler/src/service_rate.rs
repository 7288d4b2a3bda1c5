//! What a function was measured to take: running averages that adapt within some tens of requests.

use std::num::NonZeroU32;
use std::time::Duration;

/// An exponentially weighted average of durations.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Average {
    seconds: f64,
    samples: u32,
}

/// Weight of a new sample once there are enough.
const WEIGHT: f64 = 0.1;

impl Average {
    /// Takes a sample. The first ones count in full, so that the average does not start from nothing.
    pub fn add(&mut self, sample: Duration) {
        self.samples = self.samples.saturating_add(1);
        let weight = WEIGHT.max(1.0 / f64::from(self.samples));
        self.seconds += (sample.as_secs_f64() - self.seconds) * weight;
    }

    /// The average, if there is a sample.
    pub fn get(&self) -> Option<Duration> {
        (self.samples > 0).then(|| Duration::from_secs_f64(self.seconds.max(0.0)))
    }

    /// One of so many seconds, which are finite and not negative, that stands on so many samples.
    pub(crate) fn of(seconds: f64, samples: u32) -> Self {
        Self { seconds, samples }
    }

    /// Seconds and samples.
    pub(crate) fn parts(&self) -> (f64, u32) {
        (self.seconds, self.samples)
    }

    /// The average once it stands on some samples, for decisions that hurt when they are wrong.
    pub fn settled(&self) -> Option<Duration> {
        (self.samples >= 8).then(|| Duration::from_secs_f64(self.seconds.max(0.0)))
    }
}

/// How fast instances serve, and how fast they come: what [`starts`] weighs against each other.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pace {
    /// Time an instance is leased for one invocation.
    pub service: Average,
    /// Time an instance takes to start.
    pub start: Average,
}

/// Who waits, and what there is for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// Callers that wait.
    pub waiting: usize,
    /// Instances that serve others, every seat of them.
    pub busy: usize,
    /// Instances that are on their way.
    pub starting: usize,
    /// Callers that one instance serves at the same time.
    pub seats: usize,
    /// Callers that one instance may serve in its life, if that is limited.
    pub uses: Option<NonZeroU32>,
}

/// Instances to start for those who wait.
///
/// A start is worth it for whoever would wait longer for a busy instance than for a new one. Within one start time a
/// busy instance serves `start / service` of those who wait; the rest is for new ones, each of which serves as many in
/// the start time after its own. So a herd of a hundred on a function that takes a millisecond and starts in a hundred
/// gets one instance; on one that takes a second it gets a hundred. Nothing measured yet: one for each.
///
/// Of an instance that serves several at once each seat counts as one of those that serve: the same hundred get seven
/// instances of sixteen seats where they would get a hundred of one.
///
/// With `uses` limited, a busy instance has used as many of them as it has seats, and with a limit of one a start is
/// needed for each caller however fast it is served.
pub fn starts(demand: &Demand, pace: &Pace) -> usize {
    let Demand {
        waiting,
        busy,
        starting,
        seats,
        uses,
    } = *demand;
    if waiting == 0 {
        return 0;
    }
    let least = usize::from(busy + starting == 0);
    let (Some(service), Some(start)) = (pace.service.get(), pace.start.get()) else {
        let seats = uses.map_or(seats, |uses| seats.min(uses.get() as usize));
        return waiting
            .div_ceil(seats.max(1))
            .saturating_sub(starting)
            .max(least);
    };
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counts of callers, and the result is at most their number"
    )]
    let wanted = {
        // Callers served by one instance while another starts.
        let seats = seats.max(1) as f64;
        let served = seats * start.as_secs_f64() / service.as_secs_f64().max(1e-9);
        let uses = uses.map_or(f64::INFINITY, |uses| f64::from(uses.get()));
        let by_busy = served.min((uses - seats).max(0.0));
        let left = (waiting as f64 - busy as f64 * by_busy).max(0.0);
        let by_seats = left / seats.min(uses);
        (left / served.min(uses).max(1e-9)).min(by_seats).ceil() as usize
    };
    wanted.saturating_sub(starting).max(least)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demand(waiting: usize, busy: usize, starting: usize) -> Demand {
        Demand {
            waiting,
            busy,
            starting,
            seats: 1,
            uses: None,
        }
    }

    fn pace(service: u64, start: u64) -> Pace {
        let mut pace = Pace::default();
        pace.service.add(Duration::from_millis(service));
        pace.start.add(Duration::from_millis(start));
        pace
    }

    #[test]
    fn a_herd_gets_what_its_queue_needs() {
        for (waiting, busy, starting, service, start, expected) in [
            (100, 0, 0, 1, 100, 1),
            (100, 0, 0, 10, 100, 10),
            (100, 0, 0, 1000, 100, 100),
            (100, 0, 7, 10, 100, 3),
            // One busy instance serves a hundred in the time of a start.
            (50, 1, 0, 1, 100, 0),
            (101, 1, 0, 1, 100, 1),
            // A busy instance that is slow is no reason to wait.
            (1, 1, 0, 10_000, 100, 1),
            (0, 0, 0, 10, 100, 0),
            (1, 0, 1, 10, 100, 0),
        ] {
            assert_eq!(
                starts(&demand(waiting, busy, starting), &pace(service, start)),
                expected,
                "{waiting} waiting, {busy} busy, {starting} starting, {service} ms, start {start} ms"
            );
        }
    }

    #[test]
    fn an_instance_serves_no_more_than_it_may() {
        for (waiting, busy, starting, uses, expected) in [
            // Each start serves one, whatever would fit in the time of a start.
            (100, 0, 0, 1, 100),
            (100, 0, 40, 1, 60),
            // The busy ones end with the caller that they have.
            (5, 3, 0, 1, 5),
            (100, 0, 0, 10, 10),
            (100, 2, 0, 11, 8),
            (100, 0, 0, 1000, 1),
        ] {
            assert_eq!(
                starts(
                    &Demand {
                        uses: NonZeroU32::new(uses),
                        ..demand(waiting, busy, starting)
                    },
                    &pace(1, 100),
                ),
                expected,
                "{waiting} waiting, {busy} busy, {starting} starting, {uses} uses"
            );
        }
    }

    #[test]
    fn every_seat_of_an_instance_counts() {
        for (waiting, busy, starting, service, uses, expected) in [
            // Nothing is served twice within a start: as many instances as their seats need.
            (100, 0, 0, 1000, None, 7),
            (100, 0, 3, 1000, None, 4),
            // In the time of a start each seat serves ten.
            (320, 0, 0, 10, None, 2),
            (320, 1, 0, 10, None, 1),
            (320, 2, 0, 10, None, 0),
            // It may serve no more than four, seats or not.
            (8, 0, 0, 1000, Some(4), 2),
            (8, 3, 0, 10, Some(4), 2),
        ] {
            let demand = Demand {
                seats: 16,
                uses: uses.and_then(NonZeroU32::new),
                ..demand(waiting, busy, starting)
            };
            assert_eq!(starts(&demand, &pace(service, 100)), expected, "{demand:?}");
        }
        let unknown = Demand {
            seats: 16,
            ..demand(33, 0, 1)
        };
        assert_eq!(starts(&unknown, &Pace::default()), 2);
    }

    #[test]
    fn what_was_never_measured_gets_one_each() {
        assert_eq!(starts(&demand(5, 0, 2), &Pace::default()), 3);
        assert_eq!(starts(&demand(5, 3, 0), &Pace::default()), 5);
    }

    #[test]
    fn an_average_follows_within_tens_of_samples() {
        let mut average = Average::default();
        assert_eq!(average.get(), None);
        average.add(Duration::from_secs(10));
        assert_eq!(average.get(), Some(Duration::from_secs(10)));
        assert_eq!(average.settled(), None);
        for _ in 0..60 {
            average.add(Duration::from_millis(10));
        }
        assert!(average.settled().unwrap() < Duration::from_millis(200));
    }
}
