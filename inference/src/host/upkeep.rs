//! What inference hosts need from time to time: sessions and hosts that nobody uses go, hosts are replaced, counted, and
//! ended with their platform.

use super::death::Reason;
use super::group::{Group, GroupKey};
use super::metrics::resident_bytes;
use super::model::Model;
use super::process::HostProcess;
use super::quarantine::Suspect;
use super::supervisor::{LOOK_AGAIN, SupervisedHost, Supervisor};
use crate::sessions::Reaped;
use fnctl_core::hosts::{HostStatus, Quarantine};
use fnctl_core::ids::{Digest, FunctionName};
use fnctl_core::inference::{InferenceError, SessionId};
use fnctl_core::ladder::Over;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// How long a replaced host may take to finish what is in it.
const DRAIN: Duration = Duration::from_secs(60);

impl Supervisor {
    /// Unloads sessions without a use, wherever they are. Returns how many.
    pub(super) async fn evict(
        &self,
        reason: &'static str,
        chosen: impl Fn(SessionId) -> bool,
    ) -> usize {
        self.unload(reason, &self.sessions.take_unused(chosen))
            .await
    }

    /// Unloads sessions that nobody can use any more, wherever they are. Returns how many.
    async fn unload(&self, reason: &'static str, unused: &[Arc<Model>]) -> usize {
        if unused.is_empty() {
            return 0;
        }
        // First, so that no host loads one of them once it was told.
        unused.iter().for_each(|model| model.wanted.retire());
        let ids: Vec<SessionId> = unused.iter().map(|model| model.wanted.id).collect();
        self.metrics
            .unloads
            .with_label_values(&[reason])
            .inc_by(ids.len() as u64);
        let count = ids.len();
        let groups = self.groups().into_iter();
        let hosts = groups.filter_map(|group| group.live.read().clone());
        forget_in(hosts.collect(), ids).await;
        count
    }

    fn groups(&self) -> Vec<Arc<Group>> {
        let others = self.others.lock();
        std::iter::once(self.shared.clone())
            .chain(others.values().cloned())
            .collect()
    }

    fn live_hosts(&self) -> Vec<(Arc<Group>, Arc<HostProcess>)> {
        self.groups()
            .into_iter()
            .filter_map(|group| group.alive().map(|host| (group, host)))
            .collect()
    }

    pub(super) fn observe(&self, now: Instant) {
        let hosts = self.live_hosts();
        let spare = self.spare.lock().clone().filter(|spare| spare.is_alive());
        let mut resident = 0_u64;
        let mut silence = Duration::ZERO;
        let mut counts = HashMap::from([("shared", 0), ("dedicated", 0), ("alone", 0)]);
        for (group, host) in &hosts {
            resident = resident.saturating_add(resident_bytes(host.pid));
            if !host.is_idle() {
                silence = silence.max(host.silence(now));
            }
            *counts.entry(group.key.label()).or_default() += 1;
        }
        counts.insert("spare", i64::from(spare.is_some()));
        if let Some(spare) = spare {
            resident = resident.saturating_add(resident_bytes(spare.pid));
        }
        for (kind, count) in counts {
            self.hosts.hosts.with_label_values(&[kind]).set(count);
        }
        let bytes = hosts.iter().map(|(_, host)| host.live_bytes());
        self.metrics.observe(self.sessions.len(), bytes);
        self.hosts
            .resident
            .set(i64::try_from(resident).unwrap_or(i64::MAX));
        self.hosts.silence.set(silence.as_secs_f64());
        let quarantined = self.ledger.lock().quarantined(now).count();
        self.hosts
            .quarantined
            .set(i64::try_from(quarantined).unwrap_or(i64::MAX));
    }

    /// Puts a new host into the place of an old one, which goes on with what it has. Says no if the new one is dead, or the
    /// platform is ending; then the old one stays.
    async fn publish(
        self: &Arc<Self>,
        group: &Arc<Group>,
        old: &Arc<HostProcess>,
        new: &Arc<HostProcess>,
    ) -> bool {
        // Of those that come from now on somebody else has the hand on it.
        let known = new.sessions();
        // Before its death can be told, so that a dead host is never left in its place.
        *group.live.write() = Some(new.clone());
        let adopted = self.adopt(group, new);
        // Whoever ends all hosts may have looked before this one was there.
        if !adopted || self.closing.load(Ordering::SeqCst) {
            new.finish(Reason::Stopped);
            if group.take(new).is_some() {
                *group.live.write() = Some(old.clone());
            }
            return false;
        }
        // Sessions that were retired while this host was nowhere to be seen: nobody else tells it.
        let retired = known
            .into_iter()
            .filter(|id| self.sessions.get(*id).is_none());
        forget_in(vec![new.clone()], retired.collect()).await;
        true
    }

    /// Ends hosts that are not needed any more.
    fn retire(&self, now: Instant) -> usize {
        let ttl = self.plan.config.host_ttl.duration();
        let mut ended = 0;
        for (group, host) in self.live_hosts() {
            let empty = host.is_empty() && host.empty_for(now) >= ttl;
            let cleared = match &group.key {
                GroupKey::Alone(who) => !self.ledger.lock().is_alone(who, now),
                GroupKey::Shared | GroupKey::Dedicated(_) => false,
            };
            if host.is_idle() && (empty || cleared) {
                // First nobody new, then the end. Who has it in hand already runs again elsewhere.
                group.take(&host);
                host.finish(Reason::Stopped);
                ended += 1;
            } else {
                host.trim();
            }
        }
        self.others
            .lock()
            .retain(|_, group| group.live.read().is_some() || Arc::strong_count(group) > 1);
        ended
    }
}

/// Has hosts forget sessions. In a task of its own: a caller that stops waiting half-way would leave them there for ever.
pub(super) async fn forget_in(hosts: Vec<Arc<HostProcess>>, ids: Vec<SessionId>) {
    let told = tokio::spawn(async move {
        let now = Instant::now();
        for host in hosts {
            host.unload(&ids, now).await;
        }
    });
    let _ = told.await;
}

impl SupervisedHost {
    /// Sessions, and the bytes ONNX Runtime holds for all of them.
    pub(crate) fn resident(&self) -> (usize, u64) {
        let bytes = self
            .0
            .live_hosts()
            .into_iter()
            .map(|(_, host)| host.taken_bytes());
        (self.0.sessions.len(), bytes.fold(0, u64::saturating_add))
    }

    /// The hosts that run, as an operator is told.
    pub(crate) fn status(&self) -> Vec<HostStatus> {
        let of = |kind: &str, function, host: &HostProcess| HostStatus {
            pid: host.pid,
            kind: kind.to_owned(),
            function,
            sessions: host.sessions().len(),
            in_flight: host.computes.in_flight().len(),
            shared_bytes: host.computes.taken(),
            resident_bytes: resident_bytes(host.pid),
            confinement: host.confinement.clone(),
            unconfined: host.unconfined.clone(),
        };
        let spare = self.0.spare.lock().clone().filter(|spare| spare.is_alive());
        let spare = spare.map(|host| of("spare", None, &host));
        let hosts = self.0.live_hosts().into_iter();
        hosts
            .map(|(group, host)| of(group.key.label(), group.key.function().cloned(), &host))
            .chain(spare)
            .collect()
    }

    /// What is kept away from hosts.
    pub(crate) fn quarantined(&self, now: Instant) -> Vec<Quarantine> {
        let ledger = self.0.ledger.lock();
        let listed = ledger.quarantined(now).map(|(who, deaths, until)| {
            let left = until.duration_since(now).as_millis();
            Quarantine {
                model: who.model().copied(),
                function: who.function().cloned(),
                deaths,
                for_ms: u64::try_from(left).unwrap_or(u64::MAX),
            }
        });
        listed.collect()
    }

    /// Process ids of the hosts that run.
    pub(crate) fn pids(&self) -> Vec<u32> {
        let spare = self.0.spare.lock().as_ref().map(|host| host.pid);
        let hosts = self.0.live_hosts().into_iter().map(|(_, host)| host.pid);
        hosts.chain(spare).collect()
    }

    /// Unloads what nobody wants kept any more, and ends hosts that are empty for their time-to-live.
    pub(crate) async fn reap(&self, now: Instant) -> Reaped {
        let ttl = self.0.plan.config.session_ttl.duration();
        let (expired, by_policy) = self.0.sessions.take_unwanted(now, ttl);
        let reaped = Reaped {
            expired: self.0.unload(Over::TimeToLive.as_str(), &expired).await,
            by_policy: self.0.unload(Over::Policy.as_str(), &by_policy).await,
            hosts: self.0.retire(now),
        };
        {
            let mut ledger = self.0.ledger.lock();
            let remembered = ledger.forget(now);
            self.0.suspicion.store(remembered, Ordering::Relaxed);
        }
        self.0.clone().start_spare();
        self.0.observe(now);
        reaped
    }

    /// Unloads every session without a use, however short that is. Returns how many.
    pub(crate) async fn relieve(&self) -> usize {
        self.0.evict("memory", |_| true).await
    }

    /// Starts a new host for each that runs, loads its sessions there, and lets the old one finish and end. Returns how
    /// many were replaced.
    pub(crate) async fn replace(&self) -> Result<usize, InferenceError> {
        let mut replaced = 0;
        for (group, _) in self.0.live_hosts() {
            let turn = group.starting.lock().await;
            // Who is there now: the one that was may have died and have been followed by another while others were
            // replaced.
            let Some(old) = group.alive() else {
                continue;
            };
            let new = self.0.fresh().await?;
            for id in old.sessions() {
                if !old.is_alive() {
                    // Whoever waits for a host now is not to wait for all of its models.
                    break;
                }
                let Some(model) = self.0.sessions.get(id) else {
                    continue;
                };
                // In a place of one function's it is there for that one, whoever loaded it first.
                let function = group.key.function().unwrap_or(&model.wanted.function);
                // What cannot be loaded now is loaded on demand, or says why then.
                let _ = new
                    .load(&model.wanted, function, Instant::now() + DRAIN)
                    .await;
            }
            if !self.0.publish(&group, &old, &new).await {
                continue;
            }
            replaced += 1;
            // Should the new one die while the old one finishes, another is started at once.
            drop(turn);
            let drain = async {
                while !old.is_idle() {
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
            };
            let _ = tokio::time::timeout(DRAIN, drain).await;
            old.stop().await;
        }
        Ok(replaced)
    }

    /// Ends every host.
    pub(crate) async fn shut_down(&self) {
        self.0.closing.store(true, Ordering::SeqCst);
        let spare = self.0.spare.lock().take();
        let hosts = self.0.live_hosts().into_iter().map(|(_, host)| host);
        let hosts: Vec<_> = hosts.chain(spare).collect();
        for host in &hosts {
            host.finish(Reason::Stopped);
        }
        for host in hosts {
            host.stop().await;
        }
    }

    /// A function was deployed with a model, which has just been loaded: both have another chance. What the same model did
    /// in the hands of others is theirs.
    pub(crate) fn forgive(&self, digest: &Digest, function: &FunctionName) {
        self.0.ledger.lock().forgive(|who| match who {
            Suspect::Model(model, user) => model == digest && user == function,
            Suspect::Loading(model) => model == digest,
            Suspect::Function(_) => false,
        });
    }

    /// A function was deployed: so has everything that it computes.
    pub(crate) fn forgive_function(&self, function: &FunctionName) {
        self.0
            .ledger
            .lock()
            .forgive(|who| who.function() == Some(function));
    }
}
