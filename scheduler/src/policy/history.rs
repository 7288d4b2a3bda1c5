//! What is remembered of one function, whatever its policy: how many invocations are in flight, since when each level of
//! concurrency has been idle, what its instances are worth, and what its policy learned.

use super::adaptive::{self, Adaptive};
use super::greedy_dual::Standing;
use super::histogram::Histogram;
use super::{Book, LONGEST, Moment, Plan, Spec, Worth, fixed};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Levels of concurrency that are told apart; further ones are the last.
const LEVELS: usize = 64;

/// Invocations in flight, and since when each level of concurrency is idle.
///
/// Level 1 is idle while nothing is in flight, level 2 while at most one is, and so on. A pool hands out the instance
/// used last, so the instance that becomes idle when a level does is the one that serves when the level is reached again:
/// its idle time is the level's.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Activity {
    in_flight: u32,
    idle_since: Vec<Moment>,
}

impl Activity {
    /// One more invocation. Returns the level it reached, and since when that had been idle, if it ever was busy before.
    pub fn arrived(&mut self) -> (usize, Option<Moment>) {
        self.in_flight = self.in_flight.saturating_add(1);
        let level = self.in_flight as usize;
        (level, self.idle_since.get(level - 1).copied())
    }

    /// One less. Returns the level that became idle.
    pub fn finished(&mut self, now: Moment) -> usize {
        let level = (self.in_flight as usize).max(1);
        self.in_flight = self.in_flight.saturating_sub(1);
        if level <= LEVELS {
            if self.idle_since.len() < level {
                self.idle_since.resize(level, now);
            }
            if let Some(since) = self.idle_since.get_mut(level - 1) {
                *since = now;
            }
        }
        level
    }

    /// Invocations in flight.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }
}

/// An idle time that a [`Book`] learns from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    pub(crate) context: u16,
    pub(crate) bin: u8,
    pub(crate) ended: bool,
    pub(crate) first: Option<Worth>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Learner {
    Nothing,
    Histogram(Box<Histogram>),
    Adaptive(Box<Adaptive>),
}

/// What is remembered of one function.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct History {
    activity: Activity,
    learner: Learner,
    /// What starting and keeping an instance costs.
    pub worth: Worth,
    /// Its standing when room is short.
    pub standing: Standing,
}

impl History {
    /// Of a function that was never called.
    pub fn new(spec: &Spec, worth: Worth) -> Self {
        let learner = match spec {
            Spec::Fixed(_) | Spec::GreedyDual => Learner::Nothing,
            Spec::Histogram(_) => Learner::Histogram(Box::default()),
            Spec::Adaptive(_) => Learner::Adaptive(Box::default()),
        };
        Self {
            activity: Activity::default(),
            learner,
            worth,
            standing: Standing::default(),
        }
    }

    /// Whether it was kept for this kind of policy.
    pub fn suits(&self, spec: &Spec) -> bool {
        matches!(
            (&self.learner, spec),
            (Learner::Nothing, Spec::Fixed(_) | Spec::GreedyDual)
                | (Learner::Histogram(_), Spec::Histogram(_))
                | (Learner::Adaptive(_), Spec::Adaptive(_))
        )
    }

    /// An invocation arrives. What it teaches about functions in general is returned, for [`Book::learn`].
    pub fn arrived(&mut self, now: Moment, spec: &Spec, book: &Book) -> Option<Sample> {
        let (level, since) = self.activity.arrived();
        let since = since?;
        match (&mut self.learner, spec) {
            (Learner::Histogram(histogram), Spec::Histogram(params)) => {
                if level == 1 {
                    histogram.record(now.since(since), params);
                }
                None
            }
            (Learner::Adaptive(adaptive), Spec::Adaptive(params)) => {
                adaptive.idle_ended(level, since, now, self.worth, params, book)
            }
            _ => None,
        }
    }

    /// An invocation has ended.
    pub fn finished(&mut self, now: Moment) {
        self.activity.finished(now);
    }

    /// What becomes of the instance that goes idle now, after [`Self::finished`]. `keep_alive` is the function's fixed
    /// time. Only the plan of a function that has nothing in flight has windows to start for.
    pub fn plan(&mut self, now: Moment, keep_alive: Duration, spec: &Spec, book: &Book) -> Plan {
        let level = self.activity.in_flight as usize + 1;
        let plan = match (&mut self.learner, spec) {
            (Learner::Histogram(histogram), Spec::Histogram(params)) => histogram.plan(params),
            (Learner::Adaptive(adaptive), Spec::Adaptive(params)) => {
                adaptive.plan(level, now, self.worth, params, book)
            }
            (_, Spec::GreedyDual) => Plan::keep_for(LONGEST),
            (_, Spec::Fixed(time)) => fixed::plan(time.unwrap_or(keep_alive)),
            // Its history was made for another policy: the fixed time is safe.
            _ => fixed::plan(keep_alive),
        };
        let young = matches!(&self.learner, Learner::Adaptive(adaptive) if adaptive.is_young());
        if young && plan.keep() < keep_alive {
            return fixed::plan(keep_alive);
        }
        if level == 1 {
            plan
        } else {
            Plan::keep_for(plan.keep().as_secs_f32())
        }
    }

    /// Invocations in flight.
    pub fn in_flight(&self) -> u32 {
        self.activity.in_flight()
    }

    /// An invocation that is in flight while the history is begun anew.
    pub fn carried(&mut self) {
        self.activity.in_flight = self.activity.in_flight.saturating_add(1);
    }

    /// After a restart: nothing is in flight, whatever was when it was kept.
    pub fn restarted(&mut self) {
        self.activity.in_flight = 0;
    }

    /// Bytes it takes, on the heap and beside it.
    pub fn bytes(&self) -> usize {
        let learner = match &self.learner {
            Learner::Nothing => 0,
            Learner::Histogram(histogram) => histogram.bytes() + 16 * size_of::<f32>(),
            Learner::Adaptive(adaptive) => adaptive.bytes(),
        };
        size_of::<Self>() + self.activity.idle_since.capacity() * size_of::<Moment>() + learner
    }

    /// Which rules of the adaptive policy decide for this function now, for tests and reports.
    pub fn adaptive(&self) -> Option<&adaptive::Adaptive> {
        match &self.learner {
            Learner::Adaptive(adaptive) => Some(adaptive),
            _ => None,
        }
    }
}
