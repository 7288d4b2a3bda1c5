//! The discrete-event loop: arrivals from the trace, and what the scheduler's states decide about them.

use super::function::{Function, Warm, Work};
use super::outcome::{Band, Outcome};
use super::settings::Settings;
use super::trace::Trace;
use crate::limit::Admission;
use crate::policy::greedy_dual::GreedyDual;
use crate::policy::{Book, Moment};
use crate::pool::{Place, Take};
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::time::Duration;
use tokio::time::Instant;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Finished,
    Started,
    Expire,
    Ahead(u32),
}

struct Engine {
    settings: Settings,
    functions: Vec<Function>,
    events: BinaryHeap<Reverse<(Moment, u64, u32, Event)>>,
    sequence: u64,
    book: Book,
    node: GreedyDual,
    /// Functions with idle instances, whom to evict first in front; only kept where room is limited.
    ranks: BTreeSet<(u64, u32)>,
    bytes: u64,
    instances: u64,
    /// Where the simulated clock starts for states that know the standard library's time. Only differences count.
    base: Instant,
    /// When the trace ends. What is idle behind it is not counted.
    end: Moment,
    outcome: Outcome,
}

/// Replays a trace.
pub fn simulate(trace: &Trace, settings: &Settings) -> Outcome {
    let mut engine = Engine::new(trace, settings);
    let end = Moment(0).after_seconds(trace.seconds());
    for call in trace.calls() {
        while let Some(Reverse((at, _, function, event))) = engine.events.peek().copied() {
            if at > call.at {
                break;
            }
            engine.events.pop();
            engine.happens(at, function, event);
        }
        engine.arrives(call.at, call.function, call.micros);
    }
    // Who waits or runs when the trace ends is still served; nothing else happens behind it.
    while let Some(Reverse((at, _, function, event))) = engine.events.pop() {
        if at <= end || matches!(event, Event::Started | Event::Finished) {
            engine.happens(at, function, event);
        }
    }
    engine.into_outcome(trace, end)
}

impl Engine {
    fn new(trace: &Trace, settings: &Settings) -> Self {
        let functions = trace
            .functions()
            .iter()
            .map(|function| Function::new(function, settings))
            .collect();
        Self {
            settings: *settings,
            functions,
            events: BinaryHeap::new(),
            sequence: 0,
            book: Book::new(0),
            node: GreedyDual::default(),
            ranks: BTreeSet::new(),
            bytes: 0,
            instances: 0,
            end: Moment(0).after_seconds(trace.seconds()),
            base: Instant::now(),
            outcome: Outcome::default(),
        }
    }

    fn push(&mut self, at: Moment, function: u32, event: Event) {
        self.sequence += 1;
        self.events
            .push(Reverse((at, self.sequence, function, event)));
    }

    fn instant(&self, at: Moment) -> Instant {
        self.base + Duration::from_micros(at.0)
    }

    fn arrives(&mut self, now: Moment, index: u32, micros: Option<u32>) {
        let policy = self.settings.policy;
        let usual = u32::try_from(self.settings.duration.as_micros()).unwrap_or(u32::MAX);
        let Some(function) = self.functions.get_mut(index as usize) else {
            return;
        };
        function.counts.invocations += 1;
        let sample = function.history.arrived(now, &policy, &self.book);
        function.epoch = function.epoch.wrapping_add(1);
        if function.history.in_flight() == 1 {
            function.below.iter_mut().for_each(|rung| rung.busy(now));
        }
        let work = Work {
            at: now,
            micros: micros.unwrap_or(usual),
        };
        let admission = function.limit.admit(work);
        if let Some(sample) = sample {
            self.book.learn(&sample);
            if self.book.is_stale() {
                self.book.publish();
            }
        }
        match admission {
            Admission::Granted => self.take(now, index, work),
            Admission::Queued(_) => {}
            Admission::Full(_) => {
                if let Some(function) = self.functions.get_mut(index as usize) {
                    function.counts.refused += 1;
                    function.done(now);
                }
            }
        }
    }

    fn happens(&mut self, now: Moment, index: u32, event: Event) {
        match event {
            Event::Finished => self.finished(now, index),
            Event::Started => self.started(now, index),
            Event::Expire => self.expire(now, index),
            Event::Ahead(epoch) => self.ahead(now, index, epoch),
        }
    }

    fn take(&mut self, now: Moment, index: u32, work: Work) {
        let Some(function) = self.functions.get_mut(index as usize) else {
            return;
        };
        match function.pool.take(|| work) {
            Take::Warm(instance) => {
                function.idled(now.min(self.end), &instance);
                function.counts.prewarmed_starts += u64::from(!instance.used);
                self.serve(now, index, work);
            }
            Take::Queued { start: true, .. } => self.start(now, index),
            Take::Queued { start: false, .. } | Take::Closed => {}
        }
    }

    /// Starts an instance that the pool has counted as starting, if there is room.
    fn start(&mut self, now: Moment, index: u32) {
        let Some(bytes) = self.functions.get(index as usize).map(|f| f.bytes) else {
            return;
        };
        while !self.has_room(bytes) {
            if !self.evict(now) {
                self.refuse(now, index);
                return;
            }
        }
        self.bytes += bytes;
        self.instances += 1;
        self.outcome.peak_bytes = self.outcome.peak_bytes.max(self.bytes);
        if let Some(function) = self.functions.get_mut(index as usize) {
            let served = function.history.in_flight() > 0;
            let rungs = function.below.iter_mut();
            // Models load while code does.
            let below = rungs.map(|rung| rung.needed(now, served)).max();
            let at = now.after(function.cold + below.unwrap_or_default());
            self.push(at, index, Event::Started);
        }
    }

    fn has_room(&self, bytes: u64) -> bool {
        self.settings
            .node_bytes
            .is_none_or(|limit| self.bytes + bytes <= limit)
            && self
                .settings
                .node_instances
                .is_none_or(|limit| self.instances < limit)
    }

    /// A start failed for lack of room; as live, one who waits is told.
    fn refuse(&mut self, now: Moment, index: u32) {
        let Some(function) = self.functions.get_mut(index as usize) else {
            return;
        };
        function.ahead_until = None;
        // Whoever it was started for is told.
        let told = function.pool.start_given_up().len();
        let mut admitted = Vec::new();
        for _ in 0..told {
            function.counts.refused += 1;
            function.done(now);
            admitted.extend(function.limit.release());
        }
        for work in admitted {
            self.take(now, index, work);
        }
    }

    /// Lets the idle instance of lowest priority go.
    fn evict(&mut self, now: Moment) -> bool {
        let Some((_, index)) = self.ranks.first().copied() else {
            return false;
        };
        let Some(function) = self.functions.get_mut(index as usize) else {
            return false;
        };
        let Some(instance) = function.pool.evict() else {
            return false;
        };
        function.idled(now.min(self.end), &instance);
        function.counts.evictions += 1;
        let last = function.pool.total() == 0;
        if last {
            function
                .below
                .iter_mut()
                .for_each(|rung| rung.left(now, None, 0.0));
        }
        self.node.evicted(&mut function.history.standing, last);
        self.bytes -= function.bytes;
        self.instances -= 1;
        self.rank(index);
        true
    }

    /// Brings a function's place among those to evict up to date.
    fn rank(&mut self, index: u32) {
        if self.settings.node_bytes.is_none() && self.settings.node_instances.is_none() {
            return;
        }
        let Some(function) = self.functions.get_mut(index as usize) else {
            return;
        };
        if let Some(old) = function.rank.take() {
            self.ranks.remove(&old);
        }
        if !function.pool.idle().is_empty() {
            // Priorities are not negative: their bits are in the order of their values.
            let rank = (function.history.standing.priority().to_bits(), index);
            function.rank = Some(rank);
            self.ranks.insert(rank);
        }
    }

    /// An invocation has its instance.
    fn serve(&mut self, now: Moment, index: u32, work: Work) {
        let Some(function) = self.functions.get_mut(index as usize) else {
            return;
        };
        let waited = now.0.saturating_sub(work.at.0);
        self.outcome.waits.note(waited);
        function.counts.added_seconds += waited as f64 / 1e6;
        let worth = function.history.worth;
        self.node.used(&mut function.history.standing, worth);
        let end = now.after(Duration::from_micros(u64::from(work.micros)));
        self.push(end, index, Event::Finished);
        self.rank(index);
    }

    fn started(&mut self, now: Moment, index: u32) {
        let instant = self.instant(now);
        let Some(function) = self.functions.get_mut(index as usize) else {
            return;
        };
        let until = match function.ahead_until.take() {
            // A start that took longer than its window is let go at once.
            Some(until) => until.max(now),
            // Whoever it was started for was served by another: it is kept like that one.
            None => function.until(now, &self.settings, &self.book),
        };
        let instance = Warm {
            since: now,
            until,
            used: false,
        };
        let generation = function.pool.generation();
        match function.pool.started(instance, generation, instant) {
            Place::Waiter(_, work) => {
                function.counts.cold_starts += 1;
                self.serve(now, index, work);
            }
            Place::Idle => self.arm(index, until),
            Place::Retire(_) => {}
        }
        self.rank(index);
    }

    fn finished(&mut self, now: Moment, index: u32) {
        let instant = self.instant(now);
        let Some(function) = self.functions.get_mut(index as usize) else {
            return;
        };
        function.done(now);
        let until = if function.pool.waiting() > 0 {
            now
        } else {
            function.until(now, &self.settings, &self.book)
        };
        let instance = Warm {
            since: now,
            until,
            used: true,
        };
        let generation = function.pool.generation();
        let placed = function.pool.released(instance, generation, instant);
        let admitted = function.limit.release();
        match placed {
            Place::Waiter(_, work) => self.serve(now, index, work),
            Place::Idle => self.arm(index, until),
            Place::Retire(_) => {}
        }
        if let Some(work) = admitted {
            self.take(now, index, work);
        }
        self.rank(index);
    }

    /// Makes sure that somebody looks when an instance's time has come.
    fn arm(&mut self, index: u32, until: Moment) {
        if let Some(function) = self.functions.get_mut(index as usize)
            && function.armed.is_none_or(|armed| until < armed)
        {
            function.armed = Some(until);
            self.push(until, index, Event::Expire);
        }
    }

    fn expire(&mut self, now: Moment, index: u32) {
        let (base, instant) = (self.base, self.instant(now));
        let at = |moment: Moment| base + Duration::from_micros(moment.0);
        let Some(function) = self.functions.get_mut(index as usize) else {
            return;
        };
        if function.armed == Some(now) {
            function.armed = None;
        }
        let expired = function
            .pool
            .expire(instant, |idle| at(idle.instance.until));
        for instance in &expired {
            function.idled(now.min(self.end), instance);
        }
        let count = expired.len() as u64;
        function.counts.expired += count;
        self.bytes -= function.bytes * count;
        self.instances -= count;
        if function.pool.total() == 0 {
            function.left(now);
        }
        let next = function
            .pool
            .next_expiry(|idle| at(idle.instance.until))
            .map(|at| Moment(u64::try_from((at - base).as_micros()).unwrap_or(u64::MAX)));
        if let Some(next) = next {
            self.arm(index, next);
        } else if function.pool.total() == 0 && function.history.in_flight() == 0 {
            #[allow(clippy::cast_possible_truncation, reason = "seconds, not exact")]
            let age = now.since(function.idle_from) as f32;
            if let Some(window) = function.plan.ahead(age) {
                let at = function.idle_from.after_seconds(f64::from(window.from));
                let epoch = function.epoch;
                self.push(at.max(now), index, Event::Ahead(epoch));
            }
        }
        self.rank(index);
    }

    fn ahead(&mut self, now: Moment, index: u32, epoch: u32) {
        let Some(function) = self.functions.get_mut(index as usize) else {
            return;
        };
        if function.epoch != epoch || !function.pool.start_ahead() {
            return;
        }
        #[allow(clippy::cast_possible_truncation, reason = "seconds, not exact")]
        let age = now.since(function.idle_from) as f32;
        let until = function.plan.ahead(age).map_or(now, |window| {
            function.idle_from.after_seconds(f64::from(window.to))
        });
        function.ahead_until = Some(until);
        function.counts.started_ahead += 1;
        self.start(now, index);
    }

    fn into_outcome(mut self, trace: &Trace, end: Moment) -> Outcome {
        let mut history = 0usize;
        for function in &mut self.functions {
            if function.counts.invocations == 0 {
                continue;
            }
            let left: Vec<_> = function
                .pool
                .idle()
                .iter()
                .map(|idle| idle.instance)
                .collect();
            for instance in &left {
                function.idled(end, instance);
            }
            for rung in &mut function.below {
                rung.end(end);
                function.counts.idle_byte_seconds += rung.idle_byte_seconds;
                function.counts.made_below += rung.made;
            }
            history += function.history.bytes();
            let band = Band::of(function.counts.invocations, trace.seconds());
            function.counts.functions = 1;
            self.outcome.all.add(&function.counts);
            self.outcome
                .classes
                .entry((function.trigger, band))
                .or_default()
                .add(&function.counts);
        }
        let functions = self.outcome.all.functions.max(1);
        self.outcome.history_bytes = u64::try_from(history).unwrap_or(u64::MAX) / functions;
        self.outcome
    }
}
