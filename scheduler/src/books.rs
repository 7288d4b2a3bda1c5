//! What a pool keeps besides its state: who is busy, how much load there was, how many instances are wanted and why.
//!
//! Everything here is under the pool's lock, decides, and does nothing.

use crate::autoscaler::{Autoscaler, Decision, Rules};
use crate::instance::Instance;
use crate::pool::{Idle, PoolState};
use crate::seats::Shareable;
use crate::version_pool::Handed;
use fnctl_core::ids::{InstanceId, VersionNumber};
use fnctl_core::ports::InstanceStatus;
use fnctl_core::schedule::Asked;
use fnctl_core::{FunctionConfig, Isolation};
use std::num::NonZeroU32;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// An instance that was evicted is not started again for its floor within this time: the node was short of room.
const ROOM: Duration = Duration::from_secs(10);

/// A lease of an instance.
#[derive(Debug, Clone, Copy)]
struct Busy {
    id: InstanceId,
    handle: u64,
    /// Invocations served before.
    uses: u64,
    since: Instant,
}

pub(crate) struct Books {
    pub(crate) state: PoolState<Instance, oneshot::Sender<Handed>>,
    busy: Vec<Busy>,
    /// Whether it was called: `min_instances` holds from then on.
    called: bool,
    evicted: Option<Instant>,
    /// What configuration and windows ask for now, and the part of it that windows ask for.
    asked: Asked,
    windows: Asked,
    /// Of a version that is not live: its instances are kept for this long at most, whatever the function's policy says.
    most_kept: Option<Duration>,
    rules: Option<Rules>,
    /// Nothing without a target, and while nobody has called a version that was let go.
    scaler: Option<Autoscaler>,
    /// Load since the last look: concurrency times seconds.
    load: f64,
    looked: Instant,
    noted: Instant,
}

/// What a look decided; to be carried out without the lock.
pub(crate) struct Look {
    pub(crate) expired: Vec<Instance>,
    pub(crate) starts: usize,
    pub(crate) decision: Option<Decision>,
}

impl Books {
    pub(crate) fn new(config: &FunctionConfig, now: Instant) -> Self {
        let mut state = PoolState::default();
        state.set_max(config.most_instances());
        state.set_uses(match config.isolation {
            Isolation::Request => Some(NonZeroU32::MIN),
            Isolation::Instance => config.max_uses,
        });
        state.set_seats(config.instance_concurrency.get() as usize);
        let rules = Rules::of(config);
        Self {
            state,
            busy: Vec::new(),
            called: false,
            evicted: None,
            asked: Asked::default(),
            windows: Asked::default(),
            most_kept: None,
            rules,
            scaler: rules.map(|rules| Autoscaler::new(rules, now, 0)),
            load: 0.0,
            looked: now,
            noted: now,
        }
    }

    /// Adds the load up to now. To be called before every change.
    pub(crate) fn note(&mut self, now: Instant) {
        // A look is told its time: what was noted up to a later one is not to be counted again.
        if self.scaler.is_none() || now <= self.noted {
            return;
        }
        #[allow(clippy::cast_precision_loss, reason = "counts of invocations")]
        let concurrency = (self.state.leased() + self.state.waiting()) as f64;
        self.load += concurrency * now.saturating_duration_since(self.noted).as_secs_f64();
        self.noted = now;
    }

    /// Somebody calls it, or has called it since it is live.
    pub(crate) fn call(&mut self, now: Instant) {
        self.called = true;
        if self.scaler.is_none() {
            self.scaler = self.rules.map(|rules| Autoscaler::new(rules, now, 0));
            (self.load, self.looked, self.noted) = (0.0, now, now);
        }
    }

    /// Lets go of every instance that exists now, and of what load there was: it would start others for nobody. Returns
    /// the idle ones, and whether any were wanted for the load.
    pub(crate) fn demote(&mut self) -> (Vec<Instance>, bool) {
        let scaler = self.scaler.take();
        self.set_floor();
        (self.state.demote(), scaler.is_some())
    }

    pub(crate) fn is_called(&self) -> bool {
        self.called
    }

    /// How long instances of the version are kept at most; nothing for the live one.
    pub(crate) fn keep_at_most(&mut self, time: Option<Duration>) {
        self.most_kept = time;
    }

    /// Whether the function's policy alone decides how long instances are kept: the version is live.
    pub(crate) fn is_kept_by_policy(&self) -> bool {
        self.most_kept.is_none()
    }

    /// Until when an idle instance is kept.
    fn until(most_kept: Option<Duration>, idle: &Idle<Instance>) -> Instant {
        let until = idle.instance.until;
        most_kept.map_or(until, |time| until.min(idle.since + time))
    }

    /// When the next instance could expire.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        let most_kept = self.most_kept;
        self.state.next_expiry(|idle| Self::until(most_kept, idle))
    }

    /// An instance is leased.
    pub(crate) fn lend(&mut self, instance: &Instance, now: Instant) {
        self.busy.push(Busy {
            id: instance.id,
            handle: instance.handle,
            uses: instance.uses(),
            since: now,
        });
    }

    /// A lease has ended. If the instance served, it is measured.
    pub(crate) fn end_lease(&mut self, instance: &Instance, now: Instant) {
        let is_it = |busy: &Busy| busy.id == instance.id && busy.handle == instance.handle;
        let place = self.busy.iter().rposition(is_it);
        let Some(place) = place else { return };
        let busy = self.busy.swap_remove(place);
        if instance.served {
            self.state.served(now.saturating_duration_since(busy.since));
        }
    }

    /// Sets what is asked for: by configuration and windows together, and by the windows.
    pub(crate) fn ask(&mut self, asked: Asked, windows: Asked) {
        self.asked = asked;
        self.windows = windows;
        self.set_floor();
    }

    fn set_floor(&mut self) -> usize {
        let provisioned = self.asked.provisioned as usize;
        let least = if self.called {
            self.asked.min_instances as usize
        } else {
            0
        };
        let desired = self.desired();
        self.state.set_floor(provisioned, least.max(desired));
        desired
    }

    fn desired(&self) -> usize {
        let scaler = self.scaler.as_ref();
        scaler.map_or(0, |scaler| scaler.last().desired)
    }

    /// Looks what is to go and what is to come. `may_start` is false while starts are backed off.
    pub(crate) fn look(&mut self, now: Instant, may_start: bool) -> Look {
        self.note(now);
        // Something may have been noted since the time of this look was read.
        let until = self.noted.max(now);
        let length = until.saturating_duration_since(self.looked).as_secs_f64();
        let ready = self.state.idle().len() + self.state.busy();
        let decision = match &mut self.scaler {
            Some(scaler) if length > 0.0 => {
                Some(scaler.decide(self.looked, until, self.load / length, ready))
            }
            _ => None,
        };
        if decision.is_some() {
            (self.load, self.looked) = (0.0, until);
        }
        self.set_floor();
        let most_kept = self.most_kept;
        let expired = self.state.expire(now, |idle| Self::until(most_kept, idle));
        let has_room = self
            .evicted
            .is_none_or(|at| now.saturating_duration_since(at) >= ROOM);
        let mut starts = self.state.relieve(now);
        if may_start {
            starts += if has_room {
                self.state.missing_floor()
            } else {
                self.state.missing_provisioned()
            };
        }
        Look {
            expired,
            starts,
            decision,
        }
    }

    /// The instance that has been idle longest, to make room.
    pub(crate) fn evict(&mut self, now: Instant) -> Option<Instance> {
        let evicted = self.state.evict()?;
        self.evicted = Some(now);
        Some(evicted)
    }

    /// Whether the pool may go: nothing is there, asked for or expected.
    pub(crate) fn close_if_unused(&mut self) -> bool {
        let at_rest = self.scaler.as_ref().is_none_or(Autoscaler::is_at_rest);
        // What was called keeps its minimum; but one that has nothing, because the node had no room for it, may go.
        at_rest && self.state.close_if_unused()
    }

    /// Every instance, why it exists, and when it will go.
    pub(crate) fn status(&self, version: VersionNumber, now: Instant) -> Vec<InstanceStatus> {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let (total, spare) = (self.state.total(), self.state.spare());
        let idle = self.state.idle().iter().enumerate().map(|(index, idle)| {
            let for_ms = now.saturating_duration_since(idle.since);
            let left = Self::until(self.most_kept, idle).saturating_duration_since(now);
            // The longest idle go first; this many are there when all before it are gone.
            let (why, expires_in_ms) = if index < spare {
                let why = format!("keep-alive, goes in {:.1}s", left.as_secs_f64());
                (why, Some(millis(left)))
            } else {
                (self.kept_because(total - index).to_owned(), None)
            };
            InstanceStatus {
                id: idle.instance.id,
                version,
                state: "idle",
                uses: idle.instance.uses(),
                idle_ms: Some(millis(for_ms)),
                why,
                expires_in_ms,
            }
        });
        let seats = self.state.seats();
        let by_instance = self.busy.iter().enumerate().filter_map(|(at, first)| {
            let same = |busy: &&Busy| busy.id == first.id;
            let of = self.busy.get(at..)?.iter().filter(same);
            // Each instance once, where its first lease stands.
            let is_first = seats == 1 || !self.busy.get(..at)?.iter().any(|busy| same(&busy));
            is_first.then(|| (of.clone().count(), of.map(|busy| busy.since).min(), first))
        });
        let busy = by_instance.map(|(leases, since, first)| InstanceStatus {
            id: first.id,
            version,
            state: "busy",
            uses: first.uses,
            idle_ms: None,
            why: busy_because(leases, seats, now, since.unwrap_or(now)),
            expires_in_ms: None,
        });
        let waiting = self.state.waiting();
        let starting = (0..self.state.starting()).map(|index| InstanceStatus {
            id: InstanceId(0),
            version,
            state: "starting",
            uses: 0,
            idle_ms: None,
            why: if waiting > 0 {
                format!("starting for {waiting} waiting")
            } else {
                format!("starting: {}", self.kept_because(total - index))
            },
            expires_in_ms: None,
        });
        idle.chain(busy).chain(starting).collect()
    }

    /// Why there is a `rank`-th instance although nobody uses it.
    fn kept_because(&self, rank: usize) -> &'static str {
        let within = |count: u32| rank <= count as usize;
        if within(self.windows.provisioned) {
            "provisioned by a schedule"
        } else if within(self.asked.provisioned) {
            "provisioned"
        } else if within(self.windows.min_instances) {
            "min_instances of a schedule"
        } else if within(self.asked.min_instances) {
            "min_instances"
        } else if rank <= self.desired() {
            "target_concurrency"
        } else {
            "its caller has left, or was served by another"
        }
    }
}

#[cfg(test)]
impl Books {
    /// Leases by instance.
    pub(crate) fn leases(&self) -> std::collections::BTreeMap<u64, usize> {
        let mut leases = std::collections::BTreeMap::new();
        for busy in &self.busy {
            *leases.entry(busy.id.0).or_insert(0) += 1;
        }
        leases
    }

    /// Since when the autoscaler has a history, when it decided last, and what.
    pub(crate) fn scaling(&self) -> Option<(Instant, Instant, Decision)> {
        let scaler = self.scaler.as_ref()?;
        Some((scaler.began(), self.looked, scaler.last()))
    }
}

/// Why an instance is busy, for people.
fn busy_because(leases: usize, seats: usize, now: Instant, since: Instant) -> String {
    let seconds = now.saturating_duration_since(since).as_secs_f64();
    match seats {
        1 => format!("busy for {seconds:.1}s"),
        _ => format!("busy with {leases} of {seats} for {seconds:.1}s"),
    }
}
