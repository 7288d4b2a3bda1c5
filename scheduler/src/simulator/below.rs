//! The rungs below the sandboxes of a simulated function: the session of its model and its compiled code. They are there
//! while an instance is, and afterwards for as long as its policy plans, or for the platform's time.

use super::settings::Spread;
use crate::policy::{LowerRung, Moment, Plan, Rung, Worth};
use std::time::Duration;

/// A rung that is simulated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RungSettings {
    /// Seconds that making it takes.
    pub cold: Spread,
    /// Bytes that it takes.
    pub bytes: Spread,
    /// How long it is kept where the policy has no opinion.
    pub ttl: Duration,
}

impl RungSettings {
    /// What the rung of one function costs.
    pub(super) fn of(&self, function: u64, seed: u64) -> Rung {
        #[allow(clippy::cast_possible_truncation, reason = "not exact")]
        Rung {
            cold: self.cold.of(function, seed ^ 0xC01D) as f32,
            bytes: self.bytes.of(function, seed ^ 0xB17E5) as f32,
        }
    }
}

/// One rung of one function.
#[derive(Debug, Clone, Copy)]
pub(super) struct Below {
    rung: LowerRung,
    cost: Rung,
    ttl: Duration,
    /// Until when it is in memory, if it is; without end while an instance stands on it.
    until: Option<Moment>,
    /// Since when it is in memory while nobody is served.
    idle_since: Option<Moment>,
    /// Times that it was made.
    pub(super) made: u64,
    /// Byte-seconds in memory while nobody was served.
    pub(super) idle_byte_seconds: f64,
}

const ALWAYS: Moment = Moment(u64::MAX);

impl Below {
    /// Not in memory.
    pub(super) fn new(rung: LowerRung, cost: Rung, ttl: Duration) -> Self {
        Self {
            rung,
            cost,
            ttl,
            until: None,
            idle_since: None,
            made: 0,
            idle_byte_seconds: 0.0,
        }
    }

    /// Tells what it costs.
    pub(super) fn add_to(&self, worth: &mut Worth) {
        match self.rung {
            LowerRung::Session => worth.session = self.cost,
            LowerRung::Template => worth.template = self.cost,
        }
    }

    /// Counts idle time until now, and lets go of what is over.
    fn settle(&mut self, now: Moment) {
        let Some(until) = self.until else { return };
        let end = until.min(now);
        if let Some(since) = self.idle_since {
            self.idle_byte_seconds += end.since(since) * f64::from(self.cost.bytes);
            self.idle_since = Some(end.max(since));
        }
        if until <= now {
            self.until = None;
            self.idle_since = None;
        }
    }

    /// An instance starts. Says how long that waits for this rung. `served` says that somebody is being served.
    pub(super) fn needed(&mut self, now: Moment, served: bool) -> Duration {
        self.settle(now);
        let missing = self.until.is_none();
        self.until = Some(ALWAYS);
        if !missing {
            return Duration::ZERO;
        }
        self.made += 1;
        self.idle_since = (!served).then_some(now);
        Duration::try_from_secs_f32(self.cost.cold).unwrap_or_default()
    }

    /// Somebody is served from now on.
    pub(super) fn busy(&mut self, now: Moment) {
        self.settle(now);
        self.idle_since = None;
    }

    /// Nobody is served any more.
    pub(super) fn idle(&mut self, now: Moment) {
        self.settle(now);
        self.idle_since = self.until.map(|_| now);
    }

    /// The last instance went, `age` seconds after the function went idle.
    pub(super) fn left(&mut self, now: Moment, plan: Option<&Plan>, age: f32) {
        if self.until == Some(ALWAYS) {
            let planned = plan.and_then(|plan| plan.lower_until(self.rung, age));
            self.until = Some(match planned {
                Some(until) => now.after_seconds(f64::from(until - age)),
                None => now.after(self.ttl),
            });
        }
    }

    /// The trace ends.
    pub(super) fn end(&mut self, now: Moment) {
        self.settle(now);
    }
}
