//! The two ways through a host: models that take microseconds, and all others.
//!
//! A compute of microseconds must not wait behind computes of milliseconds, neither in a queue nor for a processor. So it
//! has threads of its own ([`Lane::Express`]) that run at the platform's own niceness; the others give way to them. Which
//! way a model takes is decided by what its computes took, in CPU time of the thread that did them: time on the clock
//! would count the others' work as its own, and the busier the machine the fewer would pass. A model that was not measured
//! yet is one of the others.
//!
//! The host says what a compute took and is believed: what it can gain by a lie is a place among its own threads.

use super::rings::Submitter;
use super::shared::Shared;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// Most that a compute may take, on average, to go with the fast ones.
const EXPRESS: Duration = Duration::from_millis(1);
/// Most computes in the express lane for each of its threads: what comes beyond them is better off with all the others'
/// threads.
const PER_THREAD: usize = 4;
/// How long a full express lane may answer nothing. After that something in it is not as fast as it was, and nobody else
/// is sent after it.
const STALL: Duration = Duration::from_millis(5);
/// Most threads of the express lane.
const MOST_THREADS: usize = 4;

/// Which threads of the host take a compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Those that give way to whoever answers requests.
    Bulk,
    /// Those for models that take microseconds.
    Express,
}

impl Lane {
    /// Threads of the lane in a host of so many compute threads: no more fast ones than could run side by side. Only the
    /// platform knows, which sees what its container may use of the processors.
    pub(crate) fn threads(self, compute_threads: usize) -> usize {
        match self {
            Self::Bulk => compute_threads.max(1),
            Self::Express => {
                let cores = std::thread::available_parallelism().map_or(1, usize::from);
                compute_threads.min(cores).clamp(1, MOST_THREADS)
            }
        }
    }
}

/// Whether a run may still wait for a thread of its lane, given all that are in the host, each with its lane and its age:
/// each lane takes runs in their order, so one has surely begun only once fewer older ones of its lane are there than the
/// lane has threads.
pub(crate) fn may_wait(
    (lane, age): (Lane, u32),
    runs: &[(Lane, u32)],
    compute_threads: usize,
) -> bool {
    let is_before = |(other, theirs): &&(Lane, u32)| *other == lane && *theirs > age;
    runs.iter().filter(is_before).count() >= lane.threads(compute_threads)
}

/// What computes of one model take: a moving mean, in nanoseconds.
#[derive(Debug, Default)]
pub(crate) struct Pace(AtomicU32);

impl Pace {
    /// A compute took so many nanoseconds; zero if the host did not say.
    pub(crate) fn add(&self, took: u32) {
        if took == 0 {
            return;
        }
        let _ = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |mean| {
                Some(after(mean, took))
            });
    }

    fn get(&self) -> Option<Duration> {
        let mean = self.0.load(Ordering::Relaxed);
        (mean > 0).then(|| Duration::from_nanos(mean.into()))
    }
}

/// The mean after one more. The latest counts an eighth; zero is none yet.
fn after(mean: u32, took: u32) -> u32 {
    if mean == 0 {
        return took;
    }
    let next = u64::from(mean) - u64::from(mean) / 8 + u64::from(took) / 8;
    u32::try_from(next).unwrap_or(u32::MAX).max(1)
}

/// What is in the express lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Traffic {
    threads: usize,
    in_flight: usize,
    /// Since it last answered, or was empty.
    silent: Duration,
}

/// The lane of a compute that takes so long on average.
fn choose(pace: Option<Duration>, traffic: Traffic) -> Lane {
    let is_fast = pace.is_some_and(|pace| pace <= EXPRESS);
    let is_full = traffic.in_flight >= traffic.threads * PER_THREAD;
    let is_stalled = traffic.in_flight >= traffic.threads && traffic.silent >= STALL;
    if is_fast && !is_full && !is_stalled {
        Lane::Express
    } else {
        Lane::Bulk
    }
}

/// The platform's end of both lanes of one host.
#[derive(Debug)]
pub(crate) struct Lanes {
    bulk: Submitter,
    express: Submitter,
    threads: usize,
    traffic: Mutex<(usize, Instant)>,
}

impl Lanes {
    pub(crate) fn new(compute_threads: usize) -> Self {
        Self {
            bulk: Submitter::new(Lane::Bulk),
            express: Submitter::new(Lane::Express),
            threads: Lane::Express.threads(compute_threads),
            traffic: Mutex::new((0, Instant::now())),
        }
    }

    /// The lane for the next compute of a model. If it is the express lane, the compute counts as in it until
    /// [`Self::leave`].
    pub(crate) fn enter(&self, pace: &Pace, now: Instant) -> Lane {
        let Some(pace) = pace.get() else {
            return Lane::Bulk;
        };
        let mut traffic = self.traffic.lock();
        let (in_flight, heard) = *traffic;
        let lane = choose(
            Some(pace),
            Traffic {
                threads: self.threads,
                in_flight,
                silent: now.saturating_duration_since(heard),
            },
        );
        if lane == Lane::Express {
            traffic.0 += 1;
            if in_flight == 0 {
                traffic.1 = now;
            }
        }
        lane
    }

    /// A compute is over.
    pub(crate) fn leave(&self, lane: Lane, now: Instant) {
        if lane == Lane::Express {
            let mut traffic = self.traffic.lock();
            *traffic = (traffic.0.saturating_sub(1), now);
        }
    }

    /// Hands a slot to the lane's threads.
    pub(crate) fn push(&self, lane: Lane, shared: &Shared, slot: u32) {
        match lane {
            Lane::Bulk => self.bulk.push(shared, slot),
            Lane::Express => self.express.push(shared, slot),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAST: Option<Duration> = Some(Duration::from_micros(15));

    fn traffic(in_flight: usize, silent_ms: u64) -> Traffic {
        Traffic {
            threads: 2,
            in_flight,
            silent: Duration::from_millis(silent_ms),
        }
    }

    #[test]
    fn only_what_is_known_to_be_fast_goes_ahead() {
        for (pace, traffic, expected) in [
            (FAST, traffic(0, 0), Lane::Express),
            (Some(EXPRESS), traffic(0, 0), Lane::Express),
            (Some(EXPRESS * 2), traffic(0, 0), Lane::Bulk),
            (None, traffic(0, 0), Lane::Bulk),
            // Nothing was asked of it for long: that is not its fault.
            (FAST, traffic(0, 60_000), Lane::Express),
            (FAST, traffic(1, 60_000), Lane::Express),
            // All its threads have something that takes longer than it should.
            (FAST, traffic(2, 4), Lane::Express),
            (FAST, traffic(2, 5), Lane::Bulk),
            (FAST, traffic(7, 0), Lane::Express),
            (FAST, traffic(8, 0), Lane::Bulk),
        ] {
            assert_eq!(choose(pace, traffic), expected, "{pace:?} {traffic:?}");
        }
    }

    #[test]
    fn a_mean_follows_and_one_slow_compute_costs_the_place_for_a_while() {
        let pace = Pace::default();
        pace.add(0);
        assert_eq!(pace.get(), None, "nobody said anything");
        pace.add(15_000);
        assert_eq!(pace.get(), FAST);
        pace.add(u32::MAX);
        assert!(pace.get() > Some(EXPRESS));
        let mut needed = 0;
        while pace.get() > Some(EXPRESS) {
            pace.add(15_000);
            needed += 1;
        }
        assert!((40..90).contains(&needed), "{needed}");
        for _ in 0..200 {
            pace.add(1);
        }
        assert!(pace.get() < Some(Duration::from_micros(1)));
        assert!(pace.get().is_some(), "what takes no time is known");
    }

    #[test]
    fn a_lane_that_answers_again_is_used_again() {
        let lanes = Lanes::new(1);
        let pace = Pace::default();
        let start = Instant::now();
        assert_eq!(lanes.enter(&pace, start), Lane::Bulk);
        pace.add(15_000);
        assert_eq!(lanes.enter(&pace, start), Lane::Express);
        let later = start + STALL;
        assert_eq!(lanes.enter(&pace, later), Lane::Bulk);
        lanes.leave(Lane::Bulk, later);
        assert_eq!(lanes.enter(&pace, later), Lane::Bulk, "it still hangs");
        lanes.leave(Lane::Express, later);
        assert_eq!(lanes.enter(&pace, later), Lane::Express);
        assert_eq!(lanes.enter(&pace, later), Lane::Express);
    }
}
