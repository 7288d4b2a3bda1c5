//! Keep-alive policies: how long an idle instance is kept, when one is started again ahead of demand, and whom a full
//! node lets go first.
//!
//! Everything here is a pure function of a function's history and `now`: no clock, no lock, no input or output. The live
//! scheduler and the simulator call the same code. What a policy learns of one function is a [`History`]; what it learns
//! over all functions is a [`Book`]. A decision is a [`Plan`]: the windows of time, counted from the moment the function
//! went idle, in which an instance of it is to be warm. A plan without windows lets go at once.
//!
//! A history counts invocations, not instances: what it learns does not depend on what its policy did, so that a policy
//! can be compared with another on the same past. Histories are bounded in size; times that go backwards count as no
//! time.

pub mod adaptive;
mod book;
mod fixed;
pub mod greedy_dual;
pub mod histogram;
mod history;
mod spec;
#[cfg(test)]
mod tests;

pub use book::Book;
pub use history::{Activity, History, Sample};
pub use spec::{Spec, SpecError};

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Longest time an instance is kept by any policy but provisioning, in seconds: a year.
pub const LONGEST: f32 = 366.0 * 86_400.0;

/// Microseconds since an origin that its owner chose; never the time of day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Moment(pub u64);

impl Moment {
    /// This much later, at most the end of time.
    pub fn after(self, duration: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)),
        )
    }

    /// This many seconds later; nothing if that is no number or negative.
    pub fn after_seconds(self, seconds: f64) -> Self {
        self.after(Duration::try_from_secs_f64(seconds).unwrap_or_default())
    }

    /// Seconds since an earlier moment; zero if it is not earlier.
    pub fn since(self, earlier: Self) -> f64 {
        self.0.saturating_sub(earlier.0) as f64 / 1e6
    }

    /// Seconds from `other` to this, negative if this is earlier.
    pub fn minus(self, other: Self) -> f64 {
        if self >= other {
            self.since(other)
        } else {
            -other.since(self)
        }
    }
}

/// A stretch of time in which an instance is to be warm, in seconds since the function went idle.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Window {
    /// Its beginning. Zero: the instance that has just become idle is kept. Otherwise one is started ahead.
    pub from: f32,
    /// Its end.
    pub to: f32,
}

/// Most windows of a plan.
pub const WINDOWS: usize = 4;

/// When an instance of an idle function is to be warm.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Plan {
    windows: [Window; WINDOWS],
    count: usize,
}

impl Plan {
    /// Kept for this many seconds, then let go for good.
    pub fn keep_for(seconds: f32) -> Self {
        let mut plan = Self::default();
        plan.push(0.0, seconds);
        plan
    }

    /// Adds a window behind the others. One that is empty or does not fit any more is left out; one that touches the
    /// last one extends it.
    pub fn push(&mut self, from: f32, to: f32) {
        let (from, to) = (from.max(0.0), to.min(LONGEST));
        if from >= to || from.is_nan() || to.is_nan() {
            return;
        }
        let last = self
            .count
            .checked_sub(1)
            .and_then(|at| self.windows.get_mut(at));
        match last {
            Some(last) if from <= last.to => last.to = last.to.max(to),
            _ => {
                if let Some(slot) = self.windows.get_mut(self.count) {
                    *slot = Window { from, to };
                    self.count += 1;
                }
            }
        }
    }

    /// The windows, the earliest first.
    pub fn windows(&self) -> &[Window] {
        self.windows.get(..self.count).unwrap_or_default()
    }

    /// How long the instance that became idle is kept.
    pub fn keep(&self) -> Duration {
        match self.windows().first() {
            Some(first) if first.from == 0.0 => seconds(first.to),
            _ => Duration::ZERO,
        }
    }

    /// The first window that is not over `age` seconds after the function went idle, if it is one to start for. One that
    /// is nearly over is over, as times are not exact: nothing is started twice for it.
    pub fn ahead(&self, age: f32) -> Option<Window> {
        let age = age + 0.01 + age * 1e-6;
        self.windows()
            .iter()
            .copied()
            .find(|window| window.from > 0.0 && window.to > age)
    }

    /// Whether an instance would be warm at this age.
    pub fn covers(&self, age: f32) -> bool {
        self.windows()
            .iter()
            .any(|window| window.from <= age && age < window.to)
    }

    /// Seconds that an instance would be warm before this age.
    pub fn warm_until(&self, age: f32) -> f32 {
        self.windows()
            .iter()
            .map(|window| (window.to.min(age) - window.from).max(0.0))
            .sum()
    }

    /// Instances that would be started ahead before this age.
    pub fn starts_until(&self, age: f32) -> usize {
        self.windows()
            .iter()
            .filter(|window| window.from > 0.0 && window.from < age)
            .count()
    }
}

/// A span of seconds as the standard library has it.
pub fn seconds(value: f32) -> Duration {
    Duration::try_from_secs_f32(value).unwrap_or_default()
}

/// What an instance of a function is worth: what starting one costs a caller, and what keeping one takes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Worth {
    /// Seconds that a caller waits for a cold start.
    pub cold: f32,
    /// Bytes of an idle instance.
    pub bytes: f32,
}

impl Worth {
    /// What is assumed of a function that was never started.
    pub const UNKNOWN: Self = Self {
        cold: 0.25,
        bytes: 134_217_728.0,
    };

    /// From measured numbers; what is no number or not positive is made the least that counts.
    pub fn of(cold: Duration, bytes: u64) -> Self {
        Self {
            cold: cold.as_secs_f32().max(1e-4),
            bytes: (bytes as f32).max(1024.0),
        }
    }

    /// Learns from one more measured start and size: a moving mean of about eight.
    pub fn learn(&mut self, measured: Self) {
        self.cold += (measured.cold - self.cold) / 8.0;
        self.bytes += (measured.bytes - self.bytes) / 8.0;
    }
}
