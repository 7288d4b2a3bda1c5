//! Keep-alive policies: how long an idle instance is kept, when one is started again ahead of demand, and whom a full
//! node lets go first.
//!
//! Everything here is a pure function of a function's history and `now`: no clock, no lock, no input or output. The live
//! scheduler and the simulator call the same code. What a policy learns of one function is a [`History`]; what it learns
//! over all functions is a [`Book`]. A decision is a [`Plan`]: the windows of time, counted from the moment the function
//! went idle, in which an instance of it is to be warm, and those in which what it stands on is to be in memory. A plan
//! without windows lets go at once.
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
mod plan;
mod spec;
#[cfg(test)]
mod tests;
mod worth;

pub use book::Book;
pub use history::{Activity, History, Sample};
pub use plan::{LowerRung, Plan, WINDOWS, Window};
pub use spec::{Spec, SpecError};
pub use worth::{Rung, Worth};

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

/// A span of seconds as the standard library has it.
pub fn seconds(value: f32) -> Duration {
    Duration::try_from_secs_f32(value).unwrap_or_default()
}
