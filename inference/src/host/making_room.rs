//! Room in a host's memory for what did not fit: idle sessions of that host go, if that can help.

use super::asked::Refusal;
use super::process::HostProcess;
use super::supervisor::Supervisor;
use super::unloads::FREEING;
use crate::room::{self, Idle, Rights};
use fnctl_core::ids::FunctionName;
use fnctl_core::inference::{InferenceErrorKind, SessionId};
use parking_lot::Mutex;
use std::collections::HashSet;
use tokio::time::Instant;

/// Others' room that a function took. Unless what it took it for comes to something, it was in vain: also if the caller
/// stops waiting, so that a short deadline is no way around the restraint.
pub(super) struct Taken<'a> {
    rights: &'a Mutex<Rights>,
    function: &'a FunctionName,
    others: bool,
}

impl<'a> Taken<'a> {
    pub(super) fn nothing(rights: &'a Mutex<Rights>, function: &'a FunctionName) -> Self {
        Self {
            rights,
            function,
            others: false,
        }
    }

    /// It was put to use.
    pub(super) fn used(mut self) {
        self.others = false;
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if self.others {
            self.rights.lock().in_vain(self.function, Instant::now());
        }
    }
}

impl Supervisor {
    /// Makes room for what a host refused to this function. Says whether it is worth another try.
    pub(super) async fn make_room(
        &self,
        host: &HostProcess,
        taken: &mut Taken<'_>,
        refusal: &Refusal,
        round: u32,
        deadline: Instant,
    ) -> bool {
        let function = taken.function;
        if refusal.error.kind != InferenceErrorKind::TooLarge {
            return false;
        }
        let now = Instant::now();
        let others = self.rights.lock().may(function, now);
        let budget = self.plan.config.memory.bytes();
        let chosen = match refusal.shortage.filter(|_| round <= room::ROUNDS) {
            Some(shortage) => {
                let idle = self.idle_in(host, function);
                let own: HashSet<_> = idle
                    .iter()
                    .filter(|one| one.own)
                    .map(|one| one.id)
                    .collect();
                let chosen = room::choose(shortage, budget, others, idle);
                taken.others |= chosen.iter().any(|id| !own.contains(id));
                chosen
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_gives_up_took_others_room_in_vain() {
        let rights = Mutex::new(Rights::default());
        let function: FunctionName = "f".parse().unwrap();
        let may = || rights.lock().may(&function, Instant::now());
        drop(Taken::nothing(&rights, &function));
        assert!(may(), "it took nothing");
        let took = || {
            let mut taken = Taken::nothing(&rights, &function);
            taken.others = true;
            taken
        };
        took().used();
        assert!(may());
        drop(took());
        assert!(!may());
    }
}
