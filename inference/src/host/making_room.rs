//! Room in a host's memory for what did not fit: idle sessions of that host go, if that can help.

use super::asked::Refusal;
use super::process::HostProcess;
use super::supervisor::Supervisor;
use super::unloads::FREEING;
use crate::room::{self, Idle};
use fnctl_core::ids::FunctionName;
use fnctl_core::inference::{InferenceErrorKind, SessionId};
use tokio::time::Instant;

impl Supervisor {
    /// Makes room for what a host refused to this function. Says whether it is worth another try.
    pub(super) async fn make_room(
        &self,
        host: &HostProcess,
        function: &FunctionName,
        refusal: &Refusal,
        round: u32,
        deadline: Instant,
    ) -> bool {
        if refusal.error.kind != InferenceErrorKind::TooLarge {
            return false;
        }
        let now = Instant::now();
        let others = self.rights.lock().may(function, now);
        let budget = self.plan.config.memory.bytes();
        let chosen = match refusal.shortage.filter(|_| round <= room::ROUNDS) {
            Some(shortage) => room::choose(shortage, budget, others, self.idle_in(host, function)),
            None => Vec::new(),
        };
        if self.evict("budget", |id| chosen.contains(&id)).await > 0 {
            // A compute goes another way than the order to unload, and would come first: refused again, it would have more
            // sessions unloaded than it needs.
            host.unloads.settled(deadline.min(now + FREEING)).await;
            return true;
        }
        if refusal.shortage.is_some() {
            self.metrics.refused.inc();
        }
        if round > 1 {
            // It was given room, and did not fit all the same.
            self.rights.lock().in_vain(function, now);
        }
        false
    }

    /// Sessions without a use that this host holds. A function's own are those that nobody else ever used.
    fn idle_in(&self, host: &HostProcess, function: &FunctionName) -> Vec<Idle<SessionId>> {
        let unused = self.sessions.unused().into_iter();
        let here = unused.filter_map(|one| {
            Some(Idle {
                id: one.id,
                bytes: host.bytes_of(one.id)?,
                own: one.session.users.lock().only() == Some(function),
                since: one.since,
            })
        });
        here.collect()
    }
}
