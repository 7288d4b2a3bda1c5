//! The pool of one version: its books behind their lock, and the hand-over of instances to those who wait.

use crate::backoff::Backoff;
use crate::books::{Books, Look};
use crate::instance::{Instance, Started};
use crate::keep::FunctionKeep;
use crate::lease::Lease;
use crate::measured::Measured;
use crate::memory::Footprint;
use crate::metrics::VersionMetrics;
use crate::pool::{Place, Take};
use crate::seats::Shareable;
use fnctl_core::config::Isolation;
use fnctl_core::invocation::StartKind;
use fnctl_core::ports::InstanceStatus;
use fnctl_core::schedule::Asked;
use fnctl_core::version::Version;
use fnctl_core::{ErrorKind, Failure};
use parking_lot::Mutex;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

/// What a waiting caller is handed.
pub(crate) type Handed = Result<Lease, Failure>;

/// The pool of one version.
pub(crate) struct VersionPool {
    pub(crate) version: Arc<Version>,
    pub(crate) metrics: VersionMetrics,
    pub(crate) books: Mutex<Books>,
    /// Processor time of an invocation on average, in microseconds.
    cost: AtomicU64,
    footprint: Mutex<Footprint>,
    /// Told of every start: the outcome of the last one.
    provisioning: watch::Sender<Result<(), Failure>>,
    /// After failed starts, when provisioned instances may be started again.
    backoff: Mutex<Backoff>,
    /// Starts an instance that the state has counted as starting.
    start: Box<dyn Fn(Arc<VersionPool>) + Send + Sync>,
    /// The function's, not the version's alone.
    pub(crate) keep: Arc<FunctionKeep>,
}

/// The answer to [`VersionPool::checkout`].
pub(crate) enum Checkout {
    Lease(Lease),
    Wait(Waiting),
    /// The pool has been closed; its lane has, or makes, another.
    Closed,
}

/// A caller's wait for an instance; leaves the queue when dropped.
pub(crate) struct Waiting {
    pool: Arc<VersionPool>,
    ticket: u64,
    handed: oneshot::Receiver<Handed>,
}

impl Future for Waiting {
    type Output = Result<Handed, oneshot::error::RecvError>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.handed).poll(cx)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // A lease that was handed over meanwhile is in the receiver, and goes back to the pool when that is dropped.
        let mut books = self.pool.books.lock();
        books.note(Instant::now());
        books.state.leave(self.ticket);
    }
}

impl VersionPool {
    /// An empty pool; `start` carries out the starts it decides on.
    pub(crate) fn new(
        version: Arc<Version>,
        metrics: VersionMetrics,
        measured: Measured,
        keep: Arc<FunctionKeep>,
        start: impl Fn(Arc<VersionPool>) + Send + Sync + 'static,
    ) -> Self {
        let now = Instant::now();
        let mut books = Books::new(&version.config, now);
        books.state.set_pace(measured.pace);
        if measured.called {
            books.call(now);
        }
        Self {
            books: Mutex::new(books),
            version,
            metrics,
            cost: AtomicU64::new(measured.cost),
            footprint: Mutex::new(measured.footprint),
            provisioning: watch::Sender::new(Ok(())),
            backoff: Mutex::default(),
            start: Box::new(start),
            keep,
        }
    }

    /// An idle instance, or a place in the queue for one. `behind` callers wait for a permit.
    pub(crate) fn checkout(self: &Arc<Self>, behind: usize) -> Checkout {
        let mut channel = None;
        let taken = self.change(|books, now| {
            books.call(now);
            books.state.set_behind(behind);
            let taken = books.state.take(|| {
                let (tx, rx) = oneshot::channel();
                channel = Some(rx);
                tx
            });
            if let Take::Warm(instance) = &taken {
                books.lend(instance, now);
            }
            taken
        });
        match (taken, channel) {
            (Take::Warm(instance), _) => {
                let kind = if instance.uses() == 0 {
                    StartKind::Prewarmed
                } else {
                    StartKind::Warm
                };
                Checkout::Lease(Lease::new(self.clone(), instance, kind))
            }
            (Take::Queued { ticket, start }, Some(handed)) => {
                let waiting = Waiting {
                    pool: self.clone(),
                    ticket,
                    handed,
                };
                self.start_more(usize::from(start));
                Checkout::Wait(waiting)
            }
            (Take::Queued { .. } | Take::Closed, _) => Checkout::Closed,
        }
    }

    /// Carries out starts that the state has counted.
    fn start_more(self: &Arc<Self>, count: usize) {
        for _ in 0..count {
            (self.start)(self.clone());
        }
    }

    /// The generation that instances belong to whose start begins now.
    pub(crate) fn generation(&self) -> u64 {
        self.books.lock().state.generation()
    }

    /// A start that was counted, and that began in `generation`, has succeeded.
    pub(crate) fn started(self: &Arc<Self>, started: Started, generation: u64) {
        self.keep.started(&started.phases, &started.below());
        let until = self.keep.idle(&self.version, Instant::now());
        let (place, more) = self.change(|books, now| {
            books
                .state
                .start_took(now.saturating_duration_since(started.began));
            let mut instance = started.into_instance(generation);
            instance.until = until;
            let place = books.state.started(instance, generation, now);
            note_place(books, place, now)
        });
        self.settle_all(place, StartKind::Cold);
        self.start_more(more);
        *self.backoff.lock() = Backoff::default();
        let _previous = self.provisioning.send_replace(Ok(()));
    }

    /// A start that was counted has failed. For those who are not told of it, others are started.
    pub(crate) fn start_failed(self: &Arc<Self>, failure: Failure) {
        let (told, more) = self.change(|books, _| match failure.kind {
            ErrorKind::NodeFull => (books.state.start_refused(), 0),
            _ => {
                let told = books.state.start_failed();
                (told, books.state.missing_after_retire())
            }
        });
        self.tell_failure(told, failure);
        self.start_more(more);
    }

    /// A start that was counted was given up; it is not the time to make others.
    pub(crate) fn start_given_up(&self, failure: Failure) {
        let told = self.change(|books, _| books.state.start_given_up());
        self.tell_failure(told, failure);
    }

    fn tell_failure(&self, told: Vec<oneshot::Sender<Handed>>, failure: Failure) {
        for waiter in told {
            // Whoever has left meanwhile needs no telling; the next start is for the next one.
            let _ = waiter.send(Err(failure.clone()));
        }
        self.backoff.lock().failed(Instant::now());
        let _previous = self.provisioning.send_replace(Err(failure));
    }

    /// Takes an instance back. `reusable` is false after anything that may have left the guest in a bad state.
    pub(crate) fn give_back(self: &Arc<Self>, mut instance: Instance, reusable: bool) {
        let config = &self.version.config;
        let worn = config
            .max_uses
            .is_some_and(|max| instance.uses() >= u64::from(max.get()));
        let fresh_only = config.isolation == Isolation::Request && instance.uses() > 0;
        if !reusable || worn || fresh_only {
            let (gone, more) = self.change(|books, now| {
                books.end_lease(&instance, now);
                books.state.retire(instance)
            });
            if reusable {
                // It goes as its configuration says; how long what is below it stays is the policy's to say.
                let now = Instant::now();
                self.keep.idle(&self.version, now);
                self.leave(std::slice::from_ref(&gone), now);
            }
            drop(gone);
            self.start_more(more);
            return;
        }
        let kind = if instance.uses() == 0 {
            StartKind::Prewarmed
        } else {
            StartKind::Warm
        };
        let until = self.keep.idle(&self.version, Instant::now());
        instance.until = until;
        let (place, more) = self.change(|books, now| {
            books.end_lease(&instance, now);
            let generation = instance.generation;
            let place = books.state.released(instance, generation, now);
            note_place(books, place, now)
        });
        self.settle_all(place, kind);
        self.start_more(more);
        self.let_go(until);
    }

    /// Instances that are not kept at all go at once, not at the next look: until then as many would be there as were
    /// used meanwhile. `until` is that of one that was just given back.
    fn let_go(&self, until: Instant) {
        if until > Instant::now() {
            return;
        }
        let gone = self.change(|books, now| books.state.expire(now, |idle| idle.instance.until));
        self.leave(&gone, Instant::now());
        self.metrics.reaped(gone.len(), self.keep.reason());
        self.keep.let_go(gone.len());
    }

    fn settle_all(self: &Arc<Self>, (place, others): (Placed, Vec<Seated>), kind: StartKind) {
        self.settle(place, kind);
        for (instance, waiter) in others {
            self.settle(Place::Waiter(instance, waiter), kind);
        }
    }

    /// Carries out where an instance goes. No lock is held: the lease of a waiter that left comes back through here.
    fn settle(self: &Arc<Self>, place: Placed, kind: StartKind) {
        match place {
            Place::Waiter(instance, waiter) => {
                let lease = Lease::new(self.clone(), instance, kind);
                // Refused by one who has just left: dropping the lease gives the instance to the next.
                drop(waiter.send(Ok(lease)));
            }
            Place::Idle => {}
            Place::Retire(instance) => drop(instance),
        }
    }

    /// Applies what configuration and schedule ask for now, and looks what is to go and what is to come. Returns the
    /// instances that go, to be dropped where no lock is held.
    pub(crate) fn look(self: &Arc<Self>, now: Instant, may_start: bool) -> Vec<Instance> {
        let may_start = may_start && self.backoff.lock().allows(now);
        let Look {
            expired,
            starts,
            decision,
        } = self.change(|books, _| books.look(now, may_start));
        if let Some(decision) = decision {
            self.metrics.scaled(decision.desired, decision.panicking);
        }
        self.start_more(starts);
        self.leave(&expired, now);
        expired
    }

    /// Says how long what is below these instances is kept, whose time has come.
    fn leave(&self, gone: &[Instance], now: Instant) {
        // What the policy learned is about the live version.
        if !gone.is_empty()
            && self.books.lock().is_kept_by_policy()
            && let Some(until) = self.keep.below(&self.version, now)
        {
            gone.iter().for_each(|instance| instance.leave(until));
        }
    }

    /// Whether the version is live: one that is not is kept for `keep_alive`, as what the function's policy learned is not
    /// about it.
    pub(crate) fn set_live(&self, is_live: bool) {
        let time = (!is_live).then(|| self.version.config.keep_alive.duration());
        self.books.lock().keep_at_most(time);
    }

    /// Sets what configuration and windows ask for together, what the windows do, and whether the version is live.
    pub(crate) fn ask(&self, asked: Asked, windows: Asked, is_live: bool) {
        self.set_live(is_live);
        self.books.lock().ask(asked, windows);
        self.metrics.provisioned(asked.provisioned);
    }

    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.books.lock().next_expiry()
    }

    /// Since when the instance that would be evicted has been idle. For a start that only fills a floor, what another
    /// floor holds, or its own, is not to go: they would take turns for ever.
    pub(crate) fn evictable(&self, only_spare: bool) -> Option<Instant> {
        let books = self.books.lock();
        let spares = !only_spare || books.state.spare() > 0;
        books.state.oldest_idle().filter(|_| spares)
    }

    /// Whether nobody waits for its starts, and no provisioned instance is missing.
    pub(crate) fn only_fills_up(&self) -> bool {
        let state = &self.books.lock().state;
        state.waiting() == 0 && state.is_provisioned()
    }

    pub(crate) fn evict(&self) -> Option<Instance> {
        let (evicted, last) = self.change(|books, now| {
            let evicted = books.evict(now);
            (evicted, books.state.total() == 0)
        });
        if evicted.is_some() {
            self.keep.evicted(last);
        }
        evicted
    }

    /// Starts an instance ahead of demand, if there is none.
    pub(crate) fn start_ahead(self: &Arc<Self>) -> bool {
        let start = self.change(|books, _| books.state.start_ahead());
        self.start_more(usize::from(start));
        start
    }

    pub(crate) fn demote(&self) -> Vec<Instance> {
        let (idle, wanted) = self.change(|books, _| books.demote());
        if wanted {
            self.metrics.scaled(0, false);
        }
        idle
    }

    pub(crate) fn close(&self) -> Vec<Instance> {
        let (idle, waiting) = self.change(|books, _| books.state.close());
        drop(waiting);
        self.provisioning.send_modify(|_| ());
        idle
    }

    /// Closes the pool if it is at zero and nobody wants it; says whether it is closed.
    pub(crate) fn close_if_unused(&self) -> bool {
        let closed = self.books.lock().close_if_unused();
        if closed {
            self.provisioning.send_modify(|_| ());
        }
        closed
    }

    /// The version is live: forgets how earlier starts went.
    pub(crate) fn promote(&self) {
        *self.backoff.lock() = Backoff::default();
        let _previous = self.provisioning.send_replace(Ok(()));
    }

    /// Starts what the floor misses, unless starts have just failed.
    pub(crate) fn refill(self: &Arc<Self>, now: Instant) {
        let floor = self.books.lock().state.floor();
        if floor == 0 || !self.backoff.lock().allows(now) {
            return;
        }
        let missing = self.change(|books, _| books.state.missing_provisioned());
        self.start_more(missing);
    }

    /// Waits until the provisioned instances are started, or one of them failed to. Callers bound the wait. False if the
    /// pool has been closed: then none ever will be.
    pub(crate) async fn provisioned_ready(&self) -> Result<bool, Failure> {
        let mut starts = self.provisioning.subscribe();
        loop {
            starts.borrow_and_update().clone()?;
            let (wants, is_closed, has) = {
                let state = &self.books.lock().state;
                let wants = state.provisioned() > 0;
                (wants, state.is_closed(), state.is_provisioned())
            };
            if !wants || (has && !is_closed) {
                return Ok(true);
            }
            if is_closed || starts.changed().await.is_err() {
                return Ok(false);
            }
        }
    }

    pub(crate) fn status(&self, now: Instant) -> Vec<InstanceStatus> {
        let version = &self.version;
        self.books.lock().status(version.number, now)
    }

    /// Processor time that an invocation is expected to take.
    pub(crate) fn cost(&self) -> Duration {
        match self.cost.load(Ordering::Relaxed) {
            0 => Duration::from_millis(1),
            micros => Duration::from_micros(micros),
        }
    }

    /// An invocation took this much processor time.
    pub(crate) fn took(&self, time: Duration) {
        let new = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1);
        // Two at the same time may lose one: it is an average.
        let old = self.cost.load(Ordering::Relaxed);
        let average = if old == 0 {
            new
        } else {
            (old * 7).saturating_add(new) / 8
        };
        self.cost.store(average.max(1), Ordering::Relaxed);
    }

    /// An instance was measured to have this much linear memory.
    pub(crate) fn measured(&self, memory: u64) {
        self.footprint.lock().add(memory);
    }

    /// What another instance will take, in bytes.
    pub(crate) fn expected_memory(&self) -> u64 {
        let declared = self.version.config.memory.bytes();
        self.footprint.lock().expected(declared)
    }

    /// What was measured of this version, to be kept when the pool goes.
    pub(crate) fn summary(&self) -> Measured {
        let (pace, called) = {
            let books = self.books.lock();
            (books.state.pace(), books.is_called())
        };
        Measured {
            pace,
            called,
            cost: self.cost.load(Ordering::Relaxed),
            footprint: *self.footprint.lock(),
        }
    }

    /// Pretends that runs and starts took so long.
    #[cfg(test)]
    pub(crate) fn teach(&self, service: Duration, start: Duration) {
        let mut books = self.books.lock();
        books.state.served(service);
        books.state.start_took(start);
    }

    /// Changes the books and tells the gauges: under the lock, so that two changes are told in the order in which they
    /// happened.
    fn change<R>(&self, change: impl FnOnce(&mut Books, Instant) -> R) -> R {
        let now = Instant::now();
        let mut books = self.books.lock();
        books.note(now);
        let outcome = change(&mut books, now);
        let state = &books.state;
        self.metrics
            .instances(state.idle().len(), state.busy(), state.starting());
        outcome
    }
}

type Placed = Place<Instance, oneshot::Sender<Handed>>;

type Seated = (Instance, oneshot::Sender<Handed>);

/// Takes note of where an instance goes and of who else finds a place in it, and of the starts that the queue needs.
fn note_place(books: &mut Books, place: Placed, now: Instant) -> ((Placed, Vec<Seated>), usize) {
    let mut others = Vec::new();
    let more = match &place {
        Place::Waiter(instance, _) => {
            books.lend(instance, now);
            while let Some((instance, waiter)) = books.state.seat() {
                books.lend(&instance, now);
                others.push((instance, waiter));
            }
            0
        }
        // Somebody may wait still: the instance may serve no more than it does.
        Place::Idle | Place::Retire(_) => books.state.missing_after_retire(),
    };
    ((place, others), more)
}
