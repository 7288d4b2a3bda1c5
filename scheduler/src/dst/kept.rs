//! What is to be kept of each function: which version is live, as deploys told the scheduler, and what its configuration
//! and windows ask for, reckoned here in whole milliseconds; and the rules about what a reap leaves.

use super::deploys::OPENS;
use super::world::{Books, World};
use crate::audit::{Audit, PoolAudit};
use crate::policy::Spec;
use fnctl_core::FunctionConfig;
use fnctl_core::ids::FunctionName;
use fnctl_core::version::{Version, VersionKey};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

const DAY: u128 = 86_400_000;

struct Note {
    version: Arc<Version>,
    /// It was called since it is live.
    called: bool,
    /// Since when instances are kept for their `keep_alive`, if they are.
    fixed: Option<Instant>,
}

/// Which version is live, as deploys told the scheduler.
#[derive(Default)]
pub(super) struct Ledger {
    notes: BTreeMap<FunctionName, Note>,
    /// Of functions with a lane: whether all that is in flight was admitted to a part of their own, or none of it;
    /// nothing while there is some of both.
    pub(super) apart: BTreeMap<FunctionName, Option<bool>>,
}

impl Ledger {
    /// `version` is live from now on.
    pub(super) fn activated(&mut self, world: &World, version: &Arc<Version>) {
        let function = &version.function;
        let known = self.notes.get(function);
        let called = known.is_some_and(|note| note.called && note.version.number == version.number);
        let fixed = is_fixed(world, &version.config);
        let since = known
            .and_then(|note| note.fixed)
            .unwrap_or_else(Instant::now);
        let note = Note {
            version: version.clone(),
            called,
            fixed: fixed.then_some(since),
        };
        self.notes.insert(function.clone(), note);
    }

    /// These are gone.
    pub(super) fn retired(&mut self, keys: &[VersionKey]) {
        self.notes
            .retain(|_, note| !keys.contains(&note.version.key()));
    }

    /// A version has been called.
    pub(super) fn called(&mut self, key: &VersionKey) {
        if let Some(note) = self.notes.get_mut(&key.function) {
            note.called |= note.version.number == key.number;
        }
    }

    pub(super) fn live(&self, function: &FunctionName) -> Option<&Arc<Version>> {
        self.notes.get(function).map(|note| &note.version)
    }

    /// Whether this version is live; if so, whether it was called.
    pub(super) fn is_live(&self, key: &VersionKey) -> Option<bool> {
        let note = self.notes.get(&key.function)?;
        (note.version.number == key.number).then_some(note.called)
    }

    /// Whether an instance that went idle then was to be kept for its `keep_alive`.
    pub(super) fn was_fixed(&self, function: &FunctionName, then: Instant) -> bool {
        let note = self.notes.get(function);
        note.is_none_or(|note| note.fixed.is_some_and(|since| since < then))
    }

    /// What live versions have reserved together.
    pub(super) fn reserved(&self) -> usize {
        let parts = self.notes.values();
        parts
            .filter_map(|note| note.version.config.reserved_concurrency)
            .map(|part| part as usize)
            .sum()
    }
}

/// Most invocations of a function in flight: the least of what limits them.
pub(super) fn limit(config: &FunctionConfig) -> usize {
    let reserved = config.reserved_concurrency.unwrap_or(u32::MAX);
    let each = config.instance_concurrency.get();
    let served = config
        .max_instances
        .map_or(u32::MAX, |max| max.get() * each);
    config.concurrency.get().min(reserved).min(served) as usize
}

/// What a live version is to have provisioned, and as its minimum, at this time of day.
pub(super) fn asked(config: &FunctionConfig, now: SystemTime) -> [usize; 2] {
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let since_open = (now.as_millis() % DAY + DAY - OPENS.as_millis()) % DAY;
    let mut most = [config.provisioned, config.min_instances];
    for window in &config.schedule {
        let open = window.duration.duration().as_millis();
        let ramp = window.ramp_down.duration().as_millis();
        let wanted = [window.provisioned, window.min_instances];
        let own = [config.provisioned, config.min_instances];
        for ((most, wanted), own) in most.iter_mut().zip(wanted).zip(own) {
            let extra = u128::from(wanted.saturating_sub(own));
            let left = if since_open < open {
                extra
            } else {
                let closed = since_open - open;
                // Less and less, in steps of one, the last of which goes when the time is over.
                (extra * ramp.saturating_sub(closed)).div_ceil(ramp.max(1))
            };
            *most = (*most).max(own + left as u32);
        }
    }
    most.map(|count| count as usize)
}

/// As [`asked`], at least and at most within a moment.
fn asked_about(config: &FunctionConfig, now: SystemTime) -> [[usize; 2]; 2] {
    let tick = Duration::from_millis(1);
    let around = [now - tick, now, now + tick].map(|at| asked(config, at));
    let [provisioned, least] = [0, 1].map(|which| around.map(|asked| asked[which]));
    [provisioned, least].map(|of| [of.into_iter().min().unwrap(), of.into_iter().max().unwrap()])
}

/// Whether instances of this function are kept until their room is needed.
pub(super) fn is_kept_for_ever(world: &World, config: &FunctionConfig) -> bool {
    config.keep_alive_policy.is_none() && world.plan.policy == Spec::GreedyDual
}

/// Whether this function's instances are kept for their `keep_alive`, neither more nor less.
fn is_fixed(world: &World, config: &FunctionConfig) -> bool {
    use fnctl_core::config::KeepAlivePolicy;
    match config.keep_alive_policy {
        Some(policy) => policy == KeepAlivePolicy::Fixed,
        None => world.plan.policy == Spec::Fixed(None),
    }
}

/// What was there before a reap.
pub(super) struct Before {
    audit: Audit,
    then: Instant,
    over: bool,
    ahead: Vec<(VersionKey, Instant)>,
}

impl Before {
    pub(super) fn look(world: &World, then: Instant) -> Option<Self> {
        let audit = world.audit()?;
        super::scaling::note(&mut world.books.lock(), &audit);
        let limit = world.plan.memory;
        let over = limit > 0 && audit.memory.iter().sum::<u64>() > limit;
        Some(Self {
            audit,
            then,
            over,
            ahead: world.ahead(then),
        })
    }

    /// Whether nothing is to go in this reap but what was idle for its keep-alive.
    pub(super) fn is_strict(&self, world: &World) -> bool {
        let books = world.books.lock();
        let configs = self.audit.pools.iter().map(|pool| {
            let live = books.ledger.live(&pool.version.function);
            live.is_some_and(|live| is_fixed(world, &live.config))
        });
        self.then <= Instant::now() && !self.over && configs.into_iter().all(|fixed| fixed)
    }
}

fn total(pool: &PoolAudit) -> usize {
    pool.idle.len() + pool.busy + pool.starting
}

/// Until when each idle instance is kept: as the function's policy says, if it is of the live version; otherwise no longer
/// than for its `keep_alive`.
pub(super) fn until(books: &Books, pool: &PoolAudit) -> Vec<Instant> {
    let is_live = books.ledger.is_live(&pool.version).is_some();
    let kept = pool.kept.iter();
    kept.map(|(since, until)| match is_live {
        true => *until,
        false => (*until).min(*since + pool.keep_alive),
    })
    .collect()
}

fn overdue(books: &Books, pool: &PoolAudit, then: Instant) -> usize {
    let until = until(books, pool);
    until.into_iter().filter(|until| *until <= then).count()
}

/// What a reap left, and what it took: `gone` are the sandboxes that went.
pub(super) fn reaped(
    world: &World,
    before: &Before,
    after: &Audit,
    gone: &BTreeMap<VersionKey, usize>,
    may_start: bool,
) {
    let then = before.then;
    let now = world.time_of_day();
    let mut books = world.books.lock();
    super::scaling::reaped(&mut books, &before.audit, after, then);
    let open = |pool: &&PoolAudit| pool.listed && !pool.closed;
    for pool in after.pools.iter().filter(open) {
        let key = &pool.version;
        let called = books.ledger.is_live(key);
        let [provisioned, least] = match called {
            None => [[0; 2]; 2],
            Some(_) => asked_about(&books.ledger.live(&key.function).unwrap().config, now),
        };
        let holds = (provisioned[0]..=provisioned[1]).contains(&pool.provisioned);
        books.require("asked", holds, || {
            format!(
                "{key} keeps {} provisioned, {provisioned:?} are asked for at {now:?}",
                pool.provisioned
            )
        });
        // One that nobody has run yet may have been called, and left.
        let floor = provisioned[0].max(if called == Some(true) { least[0] } else { 0 });
        let desired = pool.scaling.map_or(0, |scaling| scaling.desired);
        let (floor, most) = (floor.max(desired), desired.max(least[1]));
        let holds = (floor..=provisioned[1].max(most)).contains(&pool.floor);
        books.require("asked", holds, || {
            format!(
                "{key} keeps {} of {provisioned:?}, {least:?} and {desired}, called: {called:?}",
                pool.floor
            )
        });
        let left = overdue(&books, pool, then).min(total(pool).saturating_sub(pool.floor));
        books.require("reaped", left == 0, || {
            format!("{left} instances of {key} are overdue")
        });
        let evictable = total(pool) > pool.provisioned && !pool.idle.is_empty();
        let [instances, sessions] = after.memory;
        let limit = world.plan.memory;
        // What sessions leave; and a quarter, whatever they take.
        let over = limit > 0 && instances > limit.saturating_sub(sessions).max(limit / 4);
        books.require("memory", !over || !evictable, || {
            format!("{instances} and {sessions} bytes are in use of {limit}, and {key} has idle instances")
        });
    }
    for pool in before.audit.pools.iter().filter(open) {
        let key = &pool.version;
        let same = |other: &&PoolAudit| open(other) && other.version == *key;
        let floor = after.pools.iter().find(same).map_or(0, |pool| pool.floor);
        let expired = overdue(&books, pool, then).min(total(pool).saturating_sub(floor));
        let went = gone.get(key).copied().unwrap_or(0);
        let holds = went == expired || (before.over && went > expired);
        books.require("reaped", holds, || {
            format!(
                "{went} instances of {key} went, {expired} had expired above a floor of {floor}"
            )
        });
    }
    for (key, due) in &before.ahead {
        let of = |pool: &&PoolAudit| pool.version.function == key.function;
        let had: usize = before.audit.pools.iter().filter(of).map(total).sum();
        let has: usize = after.pools.iter().filter(of).map(total).sum();
        let wanted = may_start && had == 0 && *due <= then && books.ledger.is_live(key).is_some();
        if wanted && has > 0 {
            books.log(format!("{key} is started ahead"));
        }
        books.require("ahead", !wanted || has > 0, || {
            format!("{key} was to be started ahead, and is not")
        });
    }
}
