//! Room in a host's memory for what did not fit: idle sessions of that host go, if that can help.

use super::computes::Refusal;
use super::model::Wanted;
use super::process::HostProcess;
use super::supervisor::Supervisor;
use crate::room::{self, Idle};
use fnctl_core::inference::{InferenceErrorKind, SessionId};
use tokio::time::Instant;

impl Supervisor {
    /// Makes room for what a host refused. Says whether it is worth another try.
    pub(super) async fn make_room(
        &self,
        host: &HostProcess,
        wanted: &Wanted,
        refusal: &Refusal,
        round: u32,
    ) -> bool {
        if refusal.error.kind != InferenceErrorKind::TooLarge {
            return false;
        }
        let now = Instant::now();
        let others = self.rights.lock().may(&wanted.function, now);
        let budget = self.plan.config.memory.bytes();
        let chosen = match refusal.shortage.filter(|_| round <= room::ROUNDS) {
            Some(shortage) => room::choose(shortage, budget, others, self.idle_in(host, wanted)),
            None => Vec::new(),
        };
        if self.evict("budget", |id, _| chosen.contains(&id)).await > 0 {
            return true;
        }
        if refusal.shortage.is_some() {
            self.metrics.refused.inc();
        }
        if round > 1 {
            // It was given room, and did not fit all the same.
            self.rights.lock().in_vain(&wanted.function, now);
        }
        false
    }

    /// Sessions without a use that this host holds.
    fn idle_in(&self, host: &HostProcess, wanted: &Wanted) -> Vec<Idle<SessionId>> {
        let unused = self.sessions.unused().into_iter();
        let here = unused.filter_map(|one| {
            Some(Idle {
                id: one.id,
                bytes: host.bytes_of(one.id)?,
                own: one.session.wanted.function == wanted.function,
                since: one.since,
            })
        });
        here.collect()
    }
}
