//! Keep-alive as it is lived: each function's history behind its lock, what is learned over all functions, and the clock
//! that both share. Decisions are [`crate::policy`]'s.
//!
//! What a function teaches about others is gathered per function and put into the book when instances are reaped, and the
//! clock of evictions is a number that rises, so that no invocation waits for a lock that another function holds.

mod rungs;

use crate::ahead::Ahead;
use crate::policy::greedy_dual::GreedyDual;
use crate::policy::{
    Book, History, Moment, Plan, Sample, Spec, Window, Worth, adaptive, histogram,
};
use crate::{Inner, Scheduler};
use dashmap::DashMap;
use fnctl_core::config::{FunctionConfig, KeepAlivePolicy};
use fnctl_core::ids::FunctionName;
use fnctl_core::record::Recorder;
use fnctl_core::version::Version;
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// Most idle times of one function that wait to be put into the book.
const MOST_SAMPLES: usize = 64;
/// Most histories that are taken over from before a restart.
const MOST_HISTORIES: usize = 100_000;

/// What all functions share.
pub(crate) struct Keep {
    /// When the platform started, on both clocks. A moment is microseconds since 1970, but never goes back.
    started: (Instant, Moment),
    usual: Spec,
    book: RwLock<Arc<Book>>,
    /// The book of those whose policy reads none.
    no_book: Book,
    node: NodeClock,
    ahead: Ahead,
    /// Instances that were let go since the last look, and not by it.
    gone: AtomicUsize,
    /// Histories from before the restart, until their functions are called.
    restored: Mutex<HashMap<FunctionName, History>>,
    functions: DashMap<FunctionName, Arc<FunctionKeep>>,
}

/// Greedy-dual's clock, as the bits of a float that is never negative: those are in the order of their floats.
#[derive(Default)]
struct NodeClock(AtomicU64);

impl NodeClock {
    fn now(&self) -> GreedyDual {
        GreedyDual::at(f64::from_bits(self.0.load(Ordering::Relaxed)))
    }

    fn rise_to(&self, node: &GreedyDual) {
        let bits = node.clock().max(0.0).to_bits();
        self.0.fetch_max(bits, Ordering::Relaxed);
    }
}

impl Keep {
    /// `now` is the time of day.
    pub(crate) fn new(usual: Spec, now: SystemTime) -> Self {
        let since = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            started: (Instant::now(), Moment(0).after(since)),
            usual,
            book: RwLock::new(Arc::new(Book::new(0))),
            no_book: Book::new(0),
            node: NodeClock::default(),
            ahead: Ahead::default(),
            gone: AtomicUsize::new(0),
            restored: Mutex::default(),
            functions: DashMap::new(),
        }
    }

    pub(crate) fn moment(&self, now: Instant) -> Moment {
        let (instant, moment) = self.started;
        moment.after(now.saturating_duration_since(instant))
    }

    /// Does something with what is learned over all functions, if a policy reads it.
    fn with_book<R>(&self, spec: &Spec, read: impl FnOnce(&Book) -> R) -> R {
        match spec {
            Spec::Adaptive(_) => {
                let book = self.book.read().clone();
                read(&book)
            }
            Spec::Fixed(_) | Spec::Histogram(_) | Spec::GreedyDual => read(&self.no_book),
        }
    }

    /// The policy of a function.
    fn spec(&self, config: &FunctionConfig) -> Spec {
        match (config.keep_alive_policy, self.usual) {
            (None, usual) => usual,
            (Some(KeepAlivePolicy::Fixed), _) => Spec::Fixed(None),
            (Some(KeepAlivePolicy::Histogram), Spec::Histogram(params)) => Spec::Histogram(params),
            (Some(KeepAlivePolicy::Histogram), _) => Spec::Histogram(histogram::Params::default()),
            (Some(KeepAlivePolicy::Adaptive), Spec::Adaptive(params)) => Spec::Adaptive(params),
            (Some(KeepAlivePolicy::Adaptive), _) => Spec::Adaptive(adaptive::Params::default()),
        }
    }

    /// What is kept of one function. It outlives the function's lane, unless its policy learns nothing.
    pub(crate) fn function(
        self: &Arc<Self>,
        function: &FunctionName,
        config: &FunctionConfig,
    ) -> Arc<FunctionKeep> {
        if let Some(kept) = self.functions.get(function) {
            return kept.value().clone();
        }
        let entry = self.functions.entry(function.clone());
        entry
            .or_insert_with(|| self.begin(function, config))
            .clone()
    }

    fn begin(
        self: &Arc<Self>,
        function: &FunctionName,
        config: &FunctionConfig,
    ) -> Arc<FunctionKeep> {
        let spec = self.spec(config);
        let restored = self.restored.lock().remove(function);
        let restored = restored.filter(|history| history.suits(&spec));
        // One that was never started is still taken for the unknown.
        let known = restored
            .as_ref()
            .is_some_and(|history| history.worth != Worth::UNKNOWN);
        let mut history = restored.unwrap_or_else(|| History::new(&spec, Worth::UNKNOWN));
        history.restarted();
        Arc::new(FunctionKeep {
            keep: self.clone(),
            name: function.clone(),
            state: Mutex::new(State {
                ahead_until: None,
                spec,
                history,
                timed: known,
                sized: known,
                plan: Plan::default(),
                idle_from: Moment(0),
                served: 0.0,
                queued: None,
                version: None,
                samples: Vec::new(),
            }),
        })
    }

    /// All functions by name, so that what happens to them happens in an order that can be repeated.
    fn all(&self) -> Vec<(FunctionName, Arc<FunctionKeep>)> {
        let entries = self.functions.iter();
        let mut all: Vec<_> = entries
            .map(|entry| (entry.key().clone(), entry.value().clone()))
            .collect();
        all.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        all
    }

    /// Instances that went between two looks, since this was asked last.
    pub(crate) fn gone(&self) -> usize {
        self.gone.swap(0, Ordering::Relaxed)
    }

    fn named(&self, function: &FunctionName) -> Option<Arc<FunctionKeep>> {
        self.functions
            .get(function)
            .map(|kept| kept.value().clone())
    }

    /// When a function is to be looked at next, to start an instance of it ahead.
    pub(crate) fn next_due(&self, now: Instant) -> Option<Instant> {
        let moment = self.moment(now);
        let next = self.ahead.next()?;
        Some(now + Duration::from_micros(next.0.saturating_sub(moment.0)))
    }

    /// A function's lane is gone: of a policy that learns nothing there is nothing to keep when nobody holds it.
    pub(crate) fn leaves(&self, function: &FunctionName) {
        self.ahead.leaves(function);
    }

    /// Lets go of what is not worth keeping of those that have left. `is_back` says who has a lane again.
    fn let_go(&self, is_back: impl Fn(&FunctionName) -> bool) {
        for function in self.ahead.left() {
            let gone = self.functions.remove_if(&function, |_, kept| {
                Arc::strong_count(kept) == 1 && !kept.learns()
            });
            // Somebody holds it still. Whoever has a lane again leaves with that.
            let held = gone.is_none() && self.named(&function).is_some_and(|kept| !kept.learns());
            if held && !is_back(&function) {
                self.ahead.leaves(&function);
            }
        }
    }

    /// Versions of idle functions of which there is to be an instance from then on.
    #[cfg(test)]
    pub(crate) fn ahead(&self, now: Instant) -> Vec<(fnctl_core::version::VersionKey, Instant)> {
        let moment = self.moment(now);
        self.all()
            .into_iter()
            .filter_map(|(_, kept)| {
                let state = kept.state.lock();
                let window = state.window(moment)?;
                let from = state.idle_from.after_seconds(f64::from(window.from));
                let due = now + Duration::from_micros(from.0.saturating_sub(moment.0));
                let idle = state.history.in_flight() == 0;
                Some((state.version.as_ref()?.key(), due)).filter(|_| idle)
            })
            .collect()
    }

    /// Puts what functions taught into the book.
    pub(crate) fn learn(&self, samples: &[Sample]) {
        if samples.is_empty() {
            return;
        }
        let mut book = self.book.read().as_ref().clone();
        for sample in samples {
            book.learn(sample);
        }
        if book.is_stale() {
            book.publish();
        }
        *self.book.write() = Arc::new(book);
    }

    /// Takes histories over from before a restart.
    pub(crate) fn restore(&self, histories: Vec<(FunctionName, History)>) {
        // What is typical is what was typical before.
        let mut book = self.book.read().as_ref().clone();
        for (_, history) in &histories {
            if history
                .adaptive()
                .is_some_and(|adaptive| !adaptive.is_new())
            {
                book.meet(history.worth);
            }
        }
        *self.book.write() = Arc::new(book);
        let mut restored = self.restored.lock();
        restored.extend(histories.into_iter().take(MOST_HISTORIES));
    }

    /// Histories of functions that were not called since the restart.
    pub(crate) fn untouched(&self) -> Vec<(FunctionName, History)> {
        let restored = self.restored.lock();
        restored
            .iter()
            .map(|(name, history)| (name.clone(), history.clone()))
            .collect()
    }

    /// Forgets a function that was removed.
    pub(crate) fn forget(&self, function: &FunctionName) {
        self.restored.lock().remove(function);
        self.functions.remove(function);
    }
}

/// What every invocation looks at stands first.
#[repr(C)]
struct State {
    /// Until when the instance that is being started ahead is kept.
    ahead_until: Option<Moment>,
    spec: Spec,
    history: History,
    /// Whether the cold cost was measured, or is assumed.
    timed: bool,
    /// Whether the size was measured, or is assumed.
    sized: bool,
    plan: Plan,
    idle_from: Moment,
    /// Windows of the plan that end before this age, in seconds, were started for.
    served: f32,
    /// When [`Ahead`] will have it looked at.
    queued: Option<Moment>,
    /// The version whose instance went idle last, which is the one to start ahead.
    version: Option<Arc<Version>>,
    samples: Vec<Sample>,
}

impl State {
    fn set_plan(&mut self, plan: Plan) {
        self.plan = plan;
        self.served = 0.0;
    }

    /// The first window that is not over and not served, its ends counted from when it went idle.
    fn window(&self, now: Moment) -> Option<Window> {
        #[allow(clippy::cast_possible_truncation, reason = "seconds, not exact")]
        let age = now.since(self.idle_from) as f32;
        self.plan.ahead(age.max(self.served))
    }
}

/// What is kept of one function.
pub(crate) struct FunctionKeep {
    keep: Arc<Keep>,
    name: FunctionName,
    state: Mutex<State>,
}

/// An invocation that counts as in flight for as long as this lives. To be dropped before its instance goes idle.
pub(crate) struct Counted(Arc<FunctionKeep>);

impl Drop for Counted {
    fn drop(&mut self) {
        let now = self.0.keep.moment(Instant::now());
        self.0.state.lock().history.finished(now);
    }
}

impl FunctionKeep {
    /// Follows a change of the live version's policy. A history that another policy kept is begun anew.
    pub(crate) fn configure(&self, config: &FunctionConfig) {
        let spec = self.keep.spec(config);
        let mut state = self.state.lock();
        if state.spec != spec {
            if !state.history.suits(&spec) {
                let in_flight = state.history.in_flight();
                let mut history = History::new(&spec, state.history.worth);
                history.standing = state.history.standing;
                for _ in 0..in_flight {
                    history.carried();
                }
                state.history = history;
            }
            state.spec = spec;
            state.set_plan(Plan::default());
        }
    }

    /// An invocation begins.
    pub(crate) fn arrived(self: &Arc<Self>, now: Instant) -> Counted {
        let moment = self.keep.moment(now);
        let mut state = self.state.lock();
        let spec = state.spec;
        let sample = self
            .keep
            .with_book(&spec, |book| state.history.arrived(moment, &spec, book));
        if !state.plan.is_empty() {
            state.set_plan(Plan::default());
        }
        if let Some(sample) = sample
            && state.samples.len() < MOST_SAMPLES
        {
            if state.samples.is_empty() {
                self.keep.ahead.teaches(&self.name);
            }
            state.samples.push(sample);
        }
        drop(state);
        Counted(self.clone())
    }

    /// An invocation has its instance: the function moves up among those that may be evicted.
    pub(crate) fn used(&self) {
        let mut state = self.state.lock();
        let worth = state.history.worth;
        let node = self.keep.node.now();
        node.used(&mut state.history.standing, worth);
    }

    /// Where it stands when room is short.
    pub(crate) fn priority(&self) -> f64 {
        self.state.lock().history.standing.priority()
    }

    /// An instance was evicted; `last` says that it was the only one.
    pub(crate) fn evicted(&self, last: bool) {
        let mut state = self.state.lock();
        let mut node = self.keep.node.now();
        node.evicted(&mut state.history.standing, last);
        self.keep.node.rise_to(&node);
        if last {
            state.set_plan(Plan::default());
        }
    }

    /// Until when an instance is kept that goes idle now.
    pub(crate) fn idle(&self, version: &Arc<Version>, now: Instant) -> Instant {
        let keep_alive = version.config.keep_alive.duration();
        let mut state = self.state.lock();
        if let Some(until) = state.ahead_until.take() {
            let moment = self.keep.moment(now);
            return now + Duration::from_micros(until.0.saturating_sub(moment.0));
        }
        let spec = state.spec;
        if let Spec::Fixed(time) = spec {
            // Nothing is started ahead. To the nanosecond; a plan is in seconds.
            return now + time.unwrap_or(keep_alive);
        }
        let moment = self.keep.moment(now);
        let plan = self.keep.with_book(&spec, |book| {
            state.history.plan(moment, keep_alive, &spec, book)
        });
        if state.history.in_flight() == 0 {
            state.set_plan(plan);
            state.idle_from = moment;
            if !state
                .version
                .as_ref()
                .is_some_and(|known| Arc::ptr_eq(known, version))
            {
                state.version = Some(version.clone());
            }
            self.look_again(&mut state, moment);
        }
        now + plan.keep()
    }

    /// Has it looked at when the next window of its plan begins.
    fn look_again(&self, state: &mut State, now: Moment) {
        let Some(window) = state.window(now) else {
            return;
        };
        let at = state
            .idle_from
            .after_seconds(f64::from(window.from))
            .max(now);
        if state.queued.is_none_or(|queued| at < queued) {
            state.queued = Some(at);
            self.keep.ahead.start_at(at, &self.name);
        }
    }

    /// The version to start an instance of, if the plan wants one warm now. For a window it is said once.
    pub(crate) fn due(&self, now: Instant) -> Option<Arc<Version>> {
        let moment = self.keep.moment(now);
        let mut state = self.state.lock();
        // It comes through here for the time that it was queued for, or for an earlier one that was superseded.
        state.queued = state.queued.filter(|queued| *queued > moment);
        if state.history.in_flight() > 0 {
            // It will be planned anew when it goes idle.
            return None;
        }
        let window = state.window(moment)?;
        let from = state.idle_from.after_seconds(f64::from(window.from));
        let until = state.idle_from.after_seconds(f64::from(window.to));
        let begins = from <= moment;
        if begins {
            state.served = window.to;
        }
        self.look_again(&mut state, moment);
        if !begins || state.ahead_until.is_some() {
            return None;
        }
        let version = state.version.clone()?;
        state.ahead_until = Some(until);
        Some(version)
    }

    /// There is an instance already where one was to be started ahead.
    pub(crate) fn not_needed(&self) {
        self.state.lock().ahead_until = None;
    }

    /// A start ahead came to nothing, or its version is not live any more: nothing is planned.
    pub(crate) fn cancel(&self) {
        let mut state = self.state.lock();
        state.set_plan(Plan::default());
        state.ahead_until = None;
        state.version = None;
    }

    /// Instances of it went without a look.
    pub(crate) fn let_go(&self, count: usize) {
        if count > 0 {
            self.keep.gone.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// Whether its policy learns from its past.
    fn learns(&self) -> bool {
        !matches!(self.state.lock().spec, Spec::Fixed(_))
    }

    /// Why an instance of it expires, as a metric's label.
    pub(crate) fn reason(&self) -> &'static str {
        match self.state.lock().spec {
            Spec::Fixed(_) => "keep_alive",
            _ => "policy",
        }
    }

    /// What it taught since the last time.
    pub(crate) fn taught(&self) -> Vec<Sample> {
        std::mem::take(&mut self.state.lock().samples)
    }

    /// Its history, to be kept over a restart.
    pub(crate) fn history(&self) -> History {
        self.state.lock().history.clone()
    }
}

impl Scheduler {
    /// What was invoked lately.
    pub fn recorder(&self) -> &Recorder {
        &self.inner.recorder
    }

    /// What was learned of each function, to be kept over a restart.
    pub fn histories(&self) -> Vec<(FunctionName, History)> {
        let mut histories = self.inner.keep.untouched();
        for (function, kept) in self.inner.keep.all() {
            histories.push((function, kept.history()));
        }
        histories.truncate(MOST_HISTORIES);
        histories
    }

    /// Takes over what was learned before a restart, of functions that are not called yet.
    pub fn restore_histories(&self, histories: Vec<(FunctionName, History)>) {
        self.inner.keep.restore(histories);
    }
}

impl Inner {
    /// Puts what functions taught into the book, and starts an instance of each that is at zero and whose policy wants
    /// one warm now.
    pub(crate) fn look_ahead(self: &Arc<Self>, now: Instant) {
        let keep = &self.keep;
        keep.let_go(|function| self.lanes.contains_key(function));
        let kept = |function: &FunctionName| keep.named(function);
        let taught: Vec<_> = keep
            .ahead
            .taught()
            .iter()
            .filter_map(kept)
            .flat_map(|kept| kept.taught())
            .collect();
        if !self.draining.load(Ordering::Relaxed) {
            let due = keep.ahead.due(keep.moment(now));
            for kept in due.iter().filter_map(kept) {
                if let Some(version) = kept.due(now) {
                    if !self.live.is_live(&version) {
                        kept.cancel();
                    } else if !self.pool_of(&version).1.start_ahead() {
                        kept.not_needed();
                    }
                }
            }
        }
        self.keep.learn(&taught);
    }

    /// Retires an idle instance of the function of lowest greedy-dual priority, to make room on a full node; of equals
    /// the one that has been idle longest. `only_spare` leaves those that a floor holds.
    pub(crate) fn evict_idle(&self, only_spare: bool) -> bool {
        let pools: Vec<_> = self.lanes().iter().flat_map(|lane| lane.pools()).collect();
        let lowest = pools
            .iter()
            .filter_map(|pool| Some((pool.keep.priority(), pool.evictable(only_spare)?, pool)))
            .min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        lowest.is_some_and(|(_, _, pool)| {
            let evicted = pool.evict();
            pool.metrics.evicted(usize::from(evicted.is_some()));
            evicted.is_some()
        })
    }
}
