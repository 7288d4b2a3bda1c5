//! The watch over one host: what it reports, whether it still answers, how it ends, and who is to blame.

use super::asked::Refusal;
use super::computes::InFlight;
use super::death::{self, Death, Reason};
use super::loads::Loading;
use super::process::{HostProcess, NO_ORDERS, REAP, receive, watched};
use super::protocol::{Order, Report};
use super::quarantine::Suspect;
use crate::config::Config;
use rustix::process::{Pid, PidfdFlags};
use std::collections::HashSet;
use std::io;
use std::os::fd::OwnedFd;
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

/// How long a host that was told to end has before it is killed.
const LINGER: Duration = Duration::from_millis(500);

impl HostProcess {
    /// Looks after the host until it has ended, and tells everybody.
    pub(super) async fn watch(self: Arc<Self>, mut guard: Guard, signal: OwnedFd, config: Config) {
        let reason = match watched(signal) {
            Ok(signal) => tokio::select! {
                reason = self.listen() => reason,
                reason = self.attend(&signal) => reason,
                reason = self.beat(&config) => reason,
                () = self.computes.lied.notified() => Some(Reason::Lied(
                    self.computes.take_lie().map_or("an answer", |lie| lie.0),
                )),
                () = self.end.notified() => None,
            },
            Err(_) => None,
        };
        // What it has answered is answered; and nobody who comes while its process ends is to blame.
        self.computes.collect();
        let suspects = self.suspects();
        let _ = reason.map(|reason| self.ending.set(reason));
        let status = guard
            .end(self.ending.get() == Some(&Reason::Stopped), &self.socket)
            .await;
        let reason = match (self.ending.get().cloned(), status) {
            (Some(reason), _) => reason,
            (None, Some(status)) => {
                let before = *self.oom_kills.lock();
                Reason::of_exit(status, before.is_some() && death::oom_kills() > before)
            }
            (None, None) => Reason::Hung("its process does not end"),
        };
        self.mourn(reason, suspects);
    }

    /// Who computes or loads now; only the one that is stuck, if there is one.
    fn suspects(&self) -> Vec<Suspect> {
        if let Some(stuck) = self.stuck.lock().clone() {
            return vec![stuck];
        }
        let runs = self.computes.in_flight();
        let computing = runs.iter().map(InFlight::who);
        let loading: Vec<_> = {
            let loading = self.loading.lock();
            loading.values().map(|one| one.who.clone()).collect()
        };
        let suspects: HashSet<_> = computing.chain(loading).collect();
        suspects.into_iter().collect()
    }

    /// One model does not come to an end. In a host that somebody stopped, that is nobody's fault.
    fn accuse(&self, who: Suspect, how: &'static str) -> Reason {
        let reason = self.silent(how);
        if reason.blames_a_model() {
            *self.stuck.lock() = Some(who);
        }
        reason
    }

    fn mourn(&self, reason: Reason, suspects: Vec<Suspect>) {
        let death = Death {
            reason: reason.clone(),
            inhabitants: self.inhabitants.lock().clone(),
            suspects,
            answered: self.computes.answered(),
        };
        let _ = self.dead.set(reason);
        let tell = self.on_death.lock().take();
        if let Some(tell) = tell {
            tell(&death);
        }
        // Only now: whoever starts again shall find the verdict.
        self.computes.close();
        self.turns.close();
        self.loading.lock().clear();
        self.unloads.over();
        self.gone.notify_waiters();
    }

    /// Takes what the host reports. None at its end.
    async fn listen(&self) -> Option<Reason> {
        loop {
            match receive(&self.socket).await {
                Ok(Some(Report::Loaded {
                    session,
                    result,
                    bytes,
                    shortage,
                })) => {
                    let Some(loading) = self.loading.lock().remove(&session) else {
                        return Some(Reason::Lied("a model that nobody asked for"));
                    };
                    *self.heard.lock() = Instant::now();
                    let loaded = match result {
                        Ok(info) => Ok((info, bytes)),
                        Err(error) => Err(Refusal { error, shortage }),
                    };
                    let _ = loading.done.send(loaded);
                }
                Ok(Some(Report::Unloaded { session })) => {
                    if !self.unloads.done(session) {
                        return Some(Reason::Lied("the end of a session that nobody gave up"));
                    }
                    *self.heard.lock() = Instant::now();
                }
                Ok(Some(Report::Pong(number))) => {
                    let asked = self.pings.load(Ordering::Relaxed);
                    if number != asked || self.ponged.swap(number, Ordering::Relaxed) == number {
                        return Some(Reason::Lied("an answer to a question nobody asked"));
                    }
                    *self.heard.lock() = Instant::now();
                }
                Ok(Some(_)) => return Some(Reason::Lied("a frame out of turn")),
                Ok(None) => return None,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    return Some(Reason::Lied("a frame that cannot be read"));
                }
                Err(_) => return None,
            }
        }
    }

    /// Takes answers when the host signals them.
    async fn attend(&self, signal: &AsyncFd<OwnedFd>) -> Option<Reason> {
        loop {
            self.computes.collect_and_arm();
            match signal.readable().await {
                // Every write is an event of its own, so that the counter needs no reading.
                Ok(mut ready) => ready.clear_ready(),
                Err(_) => return None,
            }
        }
    }

    /// Asks from time to time whether the host is still there, while something depends on it.
    async fn beat(&self, config: &Config) -> Option<Reason> {
        let mut beats = tokio::time::interval(config.heartbeat.duration());
        beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let limit = self.patience;
        let mut asked_at: Option<Instant> = None;
        let mut unheard: Option<Instant> = None;
        loop {
            beats.tick().await;
            let now = Instant::now();
            // The count is the whole machine's: only what comes right before a death says something about it.
            *self.oom_kills.lock() = death::oom_kills();
            if let Some(asked) = asked_at {
                if self.ponged.load(Ordering::Relaxed) == self.pings.load(Ordering::Relaxed) {
                    asked_at = None;
                } else if now.duration_since(asked) >= limit {
                    return Some(self.silent("no sign of life"));
                }
            }
            self.computes.excuse_queued(config.compute_threads, now);
            let runs = self.computes.in_flight();
            if let Some(stuck) = runs.iter().find(|run| is_stuck(run, now, limit)) {
                return Some(self.accuse(stuck.who(), "a run goes on after it was to end"));
            }
            for run in runs.iter().filter(|run| run.cancelled.is_some()) {
                let (slot, run) = (run.slot, run.run);
                let _ = self.order(&Order::Cancel { slot, run }, &[]);
            }
            let overdue = {
                let loading = self.loading.lock();
                let late = |one: &&Loading| now.saturating_duration_since(one.since) >= one.limit;
                let overdue = loading.values().find(late);
                overdue.map(|one| one.who.clone())
            };
            if let Some(who) = overdue {
                let how = "a model does not come to the end of its loading";
                return Some(self.accuse(who, how));
            }
            if asked_at.is_none() && !(runs.is_empty() && self.loading.lock().is_empty()) {
                let number = self.pings.fetch_add(1, Ordering::Relaxed) + 1;
                if self.order(&Order::Ping(number), &[]).is_ok() {
                    (asked_at, unheard) = (Some(now), None);
                } else {
                    // Its socket is full: it will be asked again, but not for ever.
                    self.ponged.store(number, Ordering::Relaxed);
                    let since = *unheard.get_or_insert(now);
                    if now.duration_since(since) >= limit {
                        return Some(self.silent(NO_ORDERS));
                    }
                }
            } else if asked_at.is_none() {
                unheard = None;
            }
        }
    }
}

fn is_stuck(run: &InFlight, now: Instant, limit: Duration) -> bool {
    run.cancelled
        .is_some_and(|since| now.saturating_duration_since(since) >= limit)
}

/// A process that does not outlive this value.
pub(super) struct Guard(pub(super) Option<Child>);

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            // It is dead by now, or will be in a moment; without a wait it would stay as a zombie.
            let _ = std::thread::Builder::new()
                .name("fnctl-reap".into())
                .spawn(move || child.wait());
        }
    }
}

impl Guard {
    /// Ends the process, gently if that is wanted, and says how it ended.
    async fn end(
        &mut self,
        gently: bool,
        socket: &AsyncFd<OwnedFd>,
    ) -> Option<std::process::ExitStatus> {
        let child = self.0.as_mut()?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw)?;
        let descriptor = rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK).ok()?;
        let exited = watched(descriptor).ok()?;
        if gently {
            // The end of the socket is the order to end.
            let _ = rustix::net::shutdown(socket.get_ref(), rustix::net::Shutdown::Both);
            if tokio::time::timeout(LINGER, exited.readable())
                .await
                .is_err()
            {
                let _ = child.kill();
            }
        } else if tokio::time::timeout(Duration::from_millis(20), exited.readable())
            .await
            .is_err()
        {
            // Not dead by itself: it closed its socket, hangs, or lied.
            let _ = child.kill();
        }
        let _ = tokio::time::timeout(REAP, exited.readable()).await.ok()?;
        let status = child.try_wait().ok().flatten();
        if status.is_some() {
            self.0 = None;
        }
        status
    }
}
