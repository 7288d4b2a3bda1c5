//! A simulated function: its pool, its limit, what its policy learned, and what stands below its instances.

use super::below::{Below, RungSettings};
use super::outcome::Counts;
use super::settings::Settings;
use super::trace::{self, Trigger};
use crate::limit::LimitState;
use crate::policy::{Book, History, LowerRung, Moment, Plan, Worth};
use crate::pool::PoolState;
use std::time::Duration;

/// An instance.
#[derive(Debug, Clone, Copy)]
pub(super) struct Warm {
    pub(super) since: Moment,
    pub(super) until: Moment,
    pub(super) used: bool,
}

impl crate::seats::Shareable for Warm {}

/// An invocation that waits or runs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Work {
    pub(super) at: Moment,
    pub(super) micros: u32,
}

pub(super) struct Function {
    pub(super) pool: PoolState<Warm, Work>,
    pub(super) limit: LimitState<Work>,
    pub(super) history: History,
    pub(super) plan: Plan,
    pub(super) idle_from: Moment,
    /// Counts arrivals, so that a start ahead that was meant for before is known.
    pub(super) epoch: u32,
    /// When the next look at what expires is due.
    pub(super) armed: Option<Moment>,
    /// Until when an instance that is being started ahead is kept.
    pub(super) ahead_until: Option<Moment>,
    pub(super) bytes: u64,
    pub(super) cold: Duration,
    /// What its instances stand on.
    pub(super) below: Vec<Below>,
    /// Its place among those to evict, if it has one.
    pub(super) rank: Option<(u64, u32)>,
    pub(super) counts: Counts,
    pub(super) trigger: Trigger,
}

impl Function {
    /// Not called yet.
    pub(super) fn new(function: &trace::Function, settings: &Settings) -> Self {
        let seed = settings.seed;
        let cold = settings.cold.of(function.hash, settings.seed ^ 0xC01D);
        let bytes = settings.bytes.of(function.hash, settings.seed ^ 0xB17E5);
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a saturating conversion is meant"
        )]
        let bytes = bytes as u64;
        let cold = Duration::try_from_secs_f64(cold).unwrap_or_default();
        let rung = |rung, settings: Option<RungSettings>, salt: u64| {
            let settings = settings?;
            let cost = settings.of(function.hash, seed ^ salt);
            Some(Below::new(rung, cost, settings.ttl))
        };
        let below: Vec<Below> = [
            rung(LowerRung::Session, settings.session, 0x5E55),
            rung(LowerRung::Template, settings.template, 0x7E39),
        ]
        .into_iter()
        .flatten()
        .collect();
        let mut worth = Worth::of(cold, bytes);
        for below in &below {
            below.add_to(&mut worth);
        }
        Self {
            pool: PoolState::default(),
            limit: LimitState::new(settings.concurrency, settings.queue),
            history: History::new(&settings.policy, worth),
            plan: Plan::default(),
            idle_from: Moment(0),
            epoch: 0,
            armed: None,
            ahead_until: None,
            bytes,
            cold,
            below,
            rank: None,
            counts: Counts::default(),
            trigger: function.trigger,
        }
    }

    /// An invocation has ended, or was refused.
    pub(super) fn done(&mut self, now: Moment) {
        self.history.finished(now);
        if self.history.in_flight() == 0 {
            self.below.iter_mut().for_each(|rung| rung.idle(now));
        }
    }

    /// Its last instance went because its time had come.
    pub(super) fn left(&mut self, now: Moment) {
        #[allow(clippy::cast_possible_truncation, reason = "seconds, not exact")]
        let age = now.since(self.idle_from) as f32;
        let plan = (self.history.in_flight() == 0).then_some(&self.plan);
        for rung in &mut self.below {
            rung.left(now, plan, age);
        }
    }

    /// Counts the time an instance was idle.
    pub(super) fn idled(&mut self, now: Moment, instance: &Warm) {
        self.counts.idle_byte_seconds += now.since(instance.since) * self.bytes as f64;
    }

    /// Until when an instance is kept that becomes idle now.
    pub(super) fn until(&mut self, now: Moment, settings: &Settings, book: &Book) -> Moment {
        let plan = self
            .history
            .plan(now, settings.keep_alive, &settings.policy, book);
        if self.history.in_flight() == 0 {
            self.plan = plan;
            self.idle_from = now;
        }
        now.after(plan.keep())
    }
}
