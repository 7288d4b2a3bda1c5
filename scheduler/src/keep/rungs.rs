//! The rungs of the ladder in a function's history: what each was measured to cost, and how long those below an instance
//! are kept when it goes.

use super::FunctionKeep;
use crate::policy::{LowerRung, Worth, seconds};
use fnctl_core::invocation::ColdStart;
use fnctl_core::ladder::{KeptUntil, LowerRungs};
use fnctl_core::version::Version;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

impl FunctionKeep {
    /// What a start took, and what is below the instance.
    pub(crate) fn started(&self, phases: &ColdStart, lower: &LowerRungs) {
        let mut cold = phases.instantiate + phases.init;
        if *lower == LowerRungs::default() {
            // Not measured apart.
            cold += (phases.artifact + phases.compile).max(phases.model);
        }
        let mut state = self.state.lock();
        let before = state.history.worth.sandbox;
        let mut now = Worth::of(cold, 0).upon(lower);
        now.sandbox.bytes = before.bytes;
        if std::mem::replace(&mut state.timed, true) {
            state.history.worth.learn(now);
        } else {
            state.history.worth = now;
        }
    }

    /// What an instance takes, learned from a run; nothing if that was not measured.
    pub(crate) fn sized(&self, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let mut state = self.state.lock();
        let mut now = state.history.worth;
        now.sandbox.bytes = Worth::of(Duration::ZERO, bytes).sandbox.bytes;
        if std::mem::replace(&mut state.sized, true) {
            state.history.worth.learn(now);
        } else {
            state.history.worth = now;
        }
    }

    /// Until when what is below an idle instance is to be kept that goes now because its time has come. Nothing if the
    /// policy leaves that to the platform's times.
    pub(crate) fn below(&self, version: &Arc<Version>, now: Instant) -> Option<KeptUntil> {
        let moment = self.keep.moment(now);
        let state = self.state.lock();
        let planned = state
            .version
            .as_ref()
            .is_some_and(|planned| Arc::ptr_eq(planned, version));
        if !planned || state.history.in_flight() > 0 {
            return None;
        }
        #[allow(clippy::cast_possible_truncation, reason = "seconds, not exact")]
        let age = moment.since(state.idle_from) as f32;
        let until = |rung| {
            let until = state.plan.lower_until(rung, age)?;
            Some(now + seconds((until - age).max(0.0)))
        };
        Some(KeptUntil {
            session: until(LowerRung::Session)?,
            template: until(LowerRung::Template)?,
        })
    }
}
