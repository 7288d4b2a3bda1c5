//! The warm pool of one version, as a pure state machine: which instances are idle, who waits for one, and how many are
//! being started for those who wait.
//!
//! `S` is an instance, or a handle of one that serves several callers at once; `W` is a waiting caller. Every method takes `now` where it matters and does nothing but decide.

use crate::seats::{Back, Seats, Shareable};
use crate::service_rate::{Demand, Pace, starts};
use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::time::Duration;
use tokio::time::Instant;

/// An idle instance.
#[derive(Debug)]
pub struct Idle<S> {
    /// The instance.
    pub instance: S,
    /// Since when it has been idle.
    pub since: Instant,
}

/// The answer to a request for an instance.
#[derive(Debug, PartialEq, Eq)]
pub enum Take<S> {
    /// An idle instance, now busy.
    Warm(S),
    /// Queued under this ticket; `start` says that one more instance must be started for the queue.
    Queued {
        /// To leave the queue with.
        ticket: u64,
        /// Whether to start one.
        start: bool,
    },
    /// The pool is closed; look for its successor.
    Closed,
}

/// Where an instance goes when it is free.
#[derive(Debug, PartialEq, Eq)]
pub enum Place<S, W> {
    /// To this waiter; it stays busy.
    Waiter(S, W),
    /// It became idle, or a seat in it did.
    Idle,
    /// Nobody may use it again; ask [`PoolState::missing_after_retire`] what the queue needs now.
    Retire(S),
}

/// The pool.
#[derive(Debug)]
pub struct PoolState<S, W> {
    /// Used as a stack: the most recently used instance is the warmest, and the others can expire.
    idle: Vec<Idle<S>>,
    /// Instances that somebody uses.
    busy: usize,
    /// Callers that use them.
    leased: usize,
    seats: Seats<S>,
    starting: usize,
    waiting: VecDeque<(u64, W)>,
    next: u64,
    generation: u64,
    provisioned: usize,
    /// Instances that keep-alive leaves; never less than are provisioned.
    floor: usize,
    /// Most instances.
    max: usize,
    /// Callers that one instance serves in its life, if that is limited.
    uses: Option<NonZeroU32>,
    pace: Pace,
    /// Callers that wait elsewhere for those here to be served.
    behind: usize,
    /// Since when callers wait without an instance becoming free for them.
    stalled: Option<Instant>,
    /// How many starts are to relieve them next; doubled each time.
    relief: usize,
    closed: bool,
}

impl<S, W> Default for PoolState<S, W> {
    fn default() -> Self {
        Self {
            idle: Vec::new(),
            busy: 0,
            leased: 0,
            seats: Seats::new(),
            starting: 0,
            waiting: VecDeque::new(),
            next: 0,
            generation: 0,
            provisioned: 0,
            floor: 0,
            max: usize::MAX,
            uses: None,
            pace: Pace::default(),
            behind: 0,
            stalled: None,
            relief: 1,
            closed: false,
        }
    }
}

impl<S: Shareable, W> PoolState<S, W> {
    /// Takes a free seat in an instance that is in use, or an idle instance, or queues the caller. No more instances are being started than the queue needs by what
    /// was measured, and never more than callers wait.
    pub fn take(&mut self, waiter: impl FnOnce() -> W) -> Take<S> {
        if self.closed {
            return Take::Closed;
        }
        if let Some(handle) = self.seats.take(self.uses) {
            self.leased += 1;
            return Take::Warm(handle);
        }
        if let Some(idle) = self.idle.pop() {
            return Take::Warm(self.lend(idle.instance));
        }
        let ticket = self.next;
        self.next += 1;
        self.waiting.push_back((ticket, waiter()));
        let start = self.missing_for_queue() > 0;
        if start {
            self.starting += 1;
        }
        Take::Queued { ticket, start }
    }

    /// The first caller of a free instance begins.
    fn lend(&mut self, instance: S) -> S {
        self.busy += 1;
        self.leased += 1;
        self.seats.open(instance)
    }

    /// A free seat for the one who waits longest. To be asked, until there is none, whenever an instance found its
    /// place with a waiting caller: it may have room for more.
    pub fn seat(&mut self) -> Option<(S, W)> {
        if self.waiting.is_empty() || self.closed {
            return None;
        }
        let handle = self.seats.take(self.uses)?;
        self.leased += 1;
        self.waiting.pop_front().map(|(_, waiter)| (handle, waiter))
    }

    /// Instances that would do for those who wait, if each had one seat in it.
    fn for_waiting(&self) -> usize {
        self.waiting.len().div_ceil(self.seats.each())
    }

    /// Instances that the queue needs on top of those being started, as far as there may be more.
    fn missing_for_queue(&self) -> usize {
        if self.closed {
            return 0;
        }
        let waiting = self.waiting.len();
        if waiting == 0 {
            return 0;
        }
        // Those behind make the queue longer, but nobody is here to take an instance for them yet.
        let demand = Demand {
            waiting: waiting + self.behind,
            busy: self.busy.saturating_sub(self.seats.retired()),
            starting: self.starting,
            seats: self.seats.each(),
            uses: self.uses,
        };
        starts(&demand, &self.pace)
            .min(self.for_waiting().saturating_sub(self.starting))
            .min(self.max.saturating_sub(self.total()))
    }

    /// Instances to start for the queue after one was retired on its release, or a start failed; they are counted as
    /// starting.
    pub fn missing_after_retire(&mut self) -> usize {
        let missing = self.missing_for_queue();
        self.starting += missing;
        missing
    }

    /// Instances to start for callers whose turn does not come although it should have: what serves them takes longer
    /// than it usually does. One for the time of a start in which nothing became free, then two, four and so on. They
    /// are counted as starting. To be called now and then.
    pub fn relieve(&mut self, now: Instant) -> usize {
        if self.waiting.is_empty() || self.closed {
            self.moves();
            return 0;
        }
        let since = *self.stalled.get_or_insert(now);
        // What is being started may be what helps: it is given twice the time that it should need.
        let patience = match (self.pace.start.get(), self.starting) {
            (None, 1..) => return 0,
            (start, 0) => start.unwrap_or_default(),
            (Some(start), 1..) => start * 2,
        };
        if now.saturating_duration_since(since) < patience {
            return 0;
        }
        self.stalled = Some(now);
        let more = self
            .relief
            .min(self.for_waiting().saturating_sub(self.starting))
            .min(self.max.saturating_sub(self.total()));
        self.relief = self.relief.saturating_mul(2);
        self.starting += more;
        more
    }

    /// Those who wait do not wait in vain.
    fn moves(&mut self) {
        self.stalled = None;
        self.relief = 1;
    }

    /// Takes note of how long an instance was leased.
    pub fn served(&mut self, took: Duration) {
        self.pace.service.add(took);
    }

    /// Takes note of how long an instance took to start.
    pub fn start_took(&mut self, took: Duration) {
        self.pace.start.add(took);
    }

    /// What was measured.
    pub fn pace(&self) -> Pace {
        self.pace
    }

    /// Says how many callers wait elsewhere for those here to be served.
    pub fn set_behind(&mut self, callers: usize) {
        self.behind = callers;
    }

    /// Sets what was measured before.
    pub fn set_pace(&mut self, pace: Pace) {
        self.pace = pace;
    }

    /// A waiting caller leaves. An instance that is being started for it comes all the same, and becomes idle.
    pub fn leave(&mut self, ticket: u64) {
        self.waiting.retain(|(queued, _)| *queued != ticket);
    }

    /// A start succeeded that began in `generation`: the new instance goes to the one who waits longest, or becomes idle.
    pub fn started(&mut self, instance: S, generation: u64, now: Instant) -> Place<S, W> {
        self.starting = self.starting.saturating_sub(1);
        self.place(instance, generation, now)
    }

    /// A start failed. Those for whom it was are told, the longest waiting first: if nothing is left that could serve,
    /// half of all, so that one failure is not everybody's, and one that stays is soon known to all. The others wait on
    /// for what is left and for what [`Self::missing_after_retire`] says, which is to be asked next.
    pub fn start_failed(&mut self) -> Vec<W> {
        self.failed(|waiting| waiting.div_ceil(2))
    }

    /// A start was given up, and none is made in its place: as after a failed one, but nobody waits for nothing.
    pub fn start_given_up(&mut self) -> Vec<W> {
        self.failed(|waiting| waiting)
    }

    fn failed(&mut self, told_of_nothing_left: impl FnOnce(usize) -> usize) -> Vec<W> {
        self.starting = self.starting.saturating_sub(1);
        let left = self.starting + self.busy;
        let waiting = self.waiting.len();
        let told = if left == 0 {
            told_of_nothing_left(waiting)
        } else if self.for_waiting() > self.starting {
            waiting.div_ceil(left + 1)
        } else {
            0
        };
        self.waiting
            .drain(..told)
            .map(|(_, waiter)| waiter)
            .collect()
    }

    /// The node had no room for a start. Whoever waits goes on waiting for those that serve; only if there is none they
    /// are told, as after a start that failed.
    pub fn start_refused(&mut self) -> Vec<W> {
        self.starting = self.starting.saturating_sub(1);
        if self.starting + self.busy > 0 {
            return Vec::new();
        }
        self.waiting.drain(..).map(|(_, waiter)| waiter).collect()
    }

    /// A caller is done with an instance: it, or the seat, is free again.
    pub fn released(&mut self, instance: S, generation: u64, now: Instant) -> Place<S, W> {
        self.moves();
        let usable = !self.closed && generation == self.generation;
        if usable
            && !self.waiting.is_empty()
            && self.seats.pass_on(&instance, self.uses)
            && let Some((_, waiter)) = self.waiting.pop_front()
        {
            return Place::Waiter(instance, waiter);
        }
        self.leased = self.leased.saturating_sub(1);
        match self.seats.give_back(instance, !usable) {
            Back::Whole(instance) if usable => {
                self.busy = self.busy.saturating_sub(1);
                self.place(instance, generation, now)
            }
            Back::Whole(instance) | Back::Retired(instance) => {
                self.busy = self.busy.saturating_sub(1);
                Place::Retire(instance)
            }
            Back::Others(handle) if !usable => Place::Retire(handle),
            Back::Others(_) => Place::Idle,
        }
    }

    /// A caller is done with an instance that nobody may begin to use again. Returns what is to be dropped, and how many
    /// instances are to be started in its place for those who wait; they are counted as starting.
    pub fn retire(&mut self, instance: S) -> (S, usize) {
        self.moves();
        self.leased = self.leased.saturating_sub(1);
        let gone = match self.seats.give_back(instance, true) {
            Back::Whole(instance) | Back::Retired(instance) => {
                self.busy = self.busy.saturating_sub(1);
                instance
            }
            Back::Others(handle) => handle,
        };
        let more = self.missing_for_queue().min(1);
        self.starting += more;
        (gone, more)
    }

    fn place(&mut self, instance: S, generation: u64, now: Instant) -> Place<S, W> {
        if self.closed {
            return Place::Retire(instance);
        }
        match self.waiting.pop_front() {
            Some((_, waiter)) => Place::Waiter(self.lend(instance), waiter),
            None if generation != self.generation => Place::Retire(instance),
            None => {
                self.idle.push(Idle {
                    instance,
                    since: now,
                });
                Place::Idle
            }
        }
    }

    /// Takes out the instances whose time has come, as `until` says of each, but leaves as many as the floor says.
    pub fn expire(&mut self, now: Instant, until: impl Fn(&Idle<S>) -> Instant) -> Vec<S> {
        let mut spare = self.spare();
        self.idle
            .extract_if(.., |idle| {
                let goes = spare > 0 && until(idle) <= now;
                spare -= usize::from(goes);
                goes
            })
            .map(|idle| idle.instance)
            .collect()
    }

    /// Instances above the floor.
    pub fn spare(&self) -> usize {
        self.total().saturating_sub(self.floor)
    }

    /// When the next instance could expire.
    pub fn next_expiry(&self, until: impl Fn(&Idle<S>) -> Instant) -> Option<Instant> {
        if self.spare() == 0 {
            return None;
        }
        self.idle.iter().map(until).min()
    }

    /// Whether one is to be started ahead of demand: there is none. It is counted as starting.
    pub fn start_ahead(&mut self) -> bool {
        let start = !self.closed && self.total() == 0;
        self.starting += usize::from(start);
        start
    }

    /// Since when the longest idle instance that is not provisioned has been idle.
    pub fn oldest_idle(&self) -> Option<Instant> {
        if self.total() <= self.provisioned {
            return None;
        }
        self.idle.first().map(|idle| idle.since)
    }

    /// Takes out the instance that has been idle longest.
    pub fn evict(&mut self) -> Option<S> {
        self.oldest_idle()?;
        Some(self.idle.remove(0).instance)
    }

    /// Lets go of every instance that exists now: idle ones are returned, busy and starting ones are retired when they
    /// are free. Instances started later are kept again.
    pub fn demote(&mut self) -> Vec<S> {
        self.generation += 1;
        self.seats.retire_all();
        self.idle.drain(..).map(|idle| idle.instance).collect()
    }

    /// Ends the pool. Returns the idle instances and those who wait.
    pub fn close(&mut self) -> (Vec<S>, Vec<W>) {
        self.closed = true;
        (
            self.demote(),
            self.waiting.drain(..).map(|(_, waiter)| waiter).collect(),
        )
    }

    /// Closes the pool if it has nothing and is asked for nothing.
    pub fn close_if_unused(&mut self) -> bool {
        if self.total() == 0 && self.waiting.is_empty() && self.floor == 0 {
            self.closed = true;
        }
        self.closed
    }

    /// How many instances are to be kept whatever the traffic.
    pub fn set_provisioned(&mut self, count: usize) {
        self.set_floor(count, count);
    }

    /// How many are to be kept whatever the traffic, and how many keep-alive leaves, which are at least as many. The
    /// difference may be evicted.
    pub fn set_floor(&mut self, provisioned: usize, floor: usize) {
        self.provisioned = provisioned;
        self.floor = floor.max(provisioned);
    }

    /// Most instances; more are not started, whoever waits.
    pub fn set_max(&mut self, max: usize) {
        self.max = max.max(1);
    }

    /// How many callers one instance serves in its life; nothing is no limit.
    pub fn set_uses(&mut self, uses: Option<NonZeroU32>) {
        self.uses = uses;
    }

    /// How many callers one instance serves at the same time. To be set before there is any.
    pub fn set_seats(&mut self, each: usize) {
        self.seats.set_each(each);
    }

    /// Instances that must be started so that as many exist as are provisioned; they are counted as starting.
    pub fn missing_provisioned(&mut self) -> usize {
        self.missing(self.provisioned)
    }

    /// Instances that must be started so that as many exist as the floor says; they are counted as starting.
    pub fn missing_floor(&mut self) -> usize {
        self.missing(self.floor)
    }

    fn missing(&mut self, wanted: usize) -> usize {
        let missing = if self.closed {
            0
        } else {
            wanted.min(self.max).saturating_sub(self.total())
        };
        self.starting += missing;
        missing
    }

    /// How many keep-alive leaves.
    pub fn floor(&self) -> usize {
        self.floor
    }

    /// Whether as many instances are started as are provisioned.
    pub fn is_provisioned(&self) -> bool {
        self.idle.len() + self.busy >= self.provisioned
    }

    /// How many instances are kept whatever the traffic.
    pub fn provisioned(&self) -> usize {
        self.provisioned
    }

    /// Whether the pool has ended.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// The generation that instances started now belong to.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Idle instances, the longest idle first.
    pub fn idle(&self) -> &[Idle<S>] {
        &self.idle
    }

    /// Instances that somebody uses.
    pub fn busy(&self) -> usize {
        self.busy
    }

    /// Callers that use an instance.
    pub fn leased(&self) -> usize {
        self.leased
    }

    /// How many callers one instance serves at the same time.
    pub fn seats(&self) -> usize {
        self.seats.each()
    }

    /// Instances being started.
    pub fn starting(&self) -> usize {
        self.starting
    }

    /// Callers waiting.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Idle, busy and starting together: what exists or will in a moment.
    pub fn total(&self) -> usize {
        self.idle.len() + self.busy + self.starting
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_millis(100);

    /// One instance is busy with something that takes longer than it should, and `waiting` wait.
    fn stalled(waiting: u32) -> (PoolState<u32, u32>, Instant) {
        let mut pool = PoolState::default();
        let now = Instant::now();
        pool.served(Duration::from_millis(1));
        pool.start_took(START);
        assert!(matches!(pool.take(|| 0), Take::Queued { start: true, .. }));
        assert_eq!(pool.started(0, 0, now), Place::Waiter(0, 0));
        for waiter in 1..=waiting {
            assert!(matches!(
                pool.take(|| waiter),
                Take::Queued { start: false, .. }
            ));
        }
        (pool, now)
    }

    #[test]
    fn relief_doubles_until_something_is_free() {
        let (mut pool, mut now) = stalled(10);
        assert_eq!(pool.relieve(now), 0);
        let mut relief = Vec::new();
        for _ in 0..9 {
            now += START;
            relief.push(pool.relieve(now));
        }
        // What starts is given twice the time.
        assert_eq!(relief, [1, 0, 2, 0, 4, 0, 3, 0, 0]);
        let (mut pool, mut now) = stalled(10);
        pool.set_max(3);
        pool.relieve(now);
        let mut total = 0;
        for instance in 1..20 {
            now += START * 2;
            total += pool.relieve(now);
            if pool.starting() > 0 {
                // One that comes for them is not yet a sign that those who are busy go on.
                pool.started(instance, 0, now);
            }
        }
        assert_eq!((total, pool.total()), (2, 3));
        pool.released(0, 0, now);
        pool.set_max(100);
        assert_eq!(pool.relieve(now + START), 0);
        assert_eq!(pool.relieve(now + START * 2), 1);
    }

    #[test]
    fn a_failed_start_is_told_to_half_and_the_rest_gets_another() {
        let mut pool: PoolState<u32, u32> = PoolState::default();
        pool.served(Duration::from_millis(1));
        pool.start_took(START);
        for waiter in 0..100 {
            pool.take(|| waiter);
        }
        let mut rounds = Vec::new();
        while pool.starting() > 0 {
            rounds.push(pool.start_failed().len());
            pool.missing_after_retire();
        }
        assert_eq!(rounds, [50, 25, 13, 6, 3, 2, 1]);
        assert_eq!(pool.waiting(), 0);
    }
}
