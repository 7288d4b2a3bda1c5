//! What the scheduler keeps per function (a lane) and per version (a pool): the pure states behind their locks, and the
//! hand-over of instances to those who wait.

use crate::instance::{Instance, Started};
use crate::keep::FunctionKeep;
use crate::lease::Lease;
use crate::limit::{ConcurrencyLimit, Permit};
use crate::metrics::VersionMetrics;
use crate::pool::{Place, PoolState, Take};
use fnctl_core::config::{FunctionConfig, Isolation};
use fnctl_core::ids::VersionNumber;
use fnctl_core::invocation::StartKind;
use fnctl_core::ports::InstanceStatus;
use fnctl_core::version::Version;
use fnctl_core::{ErrorKind, Failure};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

/// One function: its concurrency limit, and a pool for each version that has instances.
pub(crate) struct Lane {
    /// How long its instances are kept.
    pub(crate) keep: Arc<FunctionKeep>,
    pub(crate) limit: ConcurrencyLimit,
    pub(crate) pools: Mutex<BTreeMap<VersionNumber, Arc<VersionPool>>>,
    /// The number of the version that is live; 0 while none is known to be.
    live: AtomicU32,
}

impl Lane {
    pub(crate) fn new(config: &FunctionConfig, keep: FunctionKeep) -> Self {
        Self {
            limit: ConcurrencyLimit::new(
                config.concurrency.get() as usize,
                config.queue_size as usize,
            ),
            keep: Arc::new(keep),
            pools: Mutex::new(BTreeMap::new()),
            live: AtomicU32::new(0),
        }
    }

    /// Whether this version is the live one.
    pub(crate) fn is_live(&self, number: VersionNumber) -> bool {
        self.live.load(Ordering::SeqCst) == number.0
    }

    /// Notes that a version is removed. What is asked of it from now on was asked before.
    pub(crate) fn removed(&self, number: VersionNumber) {
        let _ = self
            .live
            .compare_exchange(number.0, 0, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// Whether nothing is left to keep the lane for: no version is live, nobody waits or runs.
    pub(crate) fn is_over(&self) -> bool {
        self.is_live(VersionNumber(0)) && self.is_unused()
    }

    /// Applies the limits of the version that is live now.
    pub(crate) fn configure(&self, version: &Version) {
        self.live.store(version.number.0, Ordering::SeqCst);
        let config = &version.config;
        self.keep.configure(config);
        self.limit.resize(
            config.concurrency.get() as usize,
            config.queue_size as usize,
        );
    }

    /// Waits for a permit, for as long as the queue's time limit and the request's deadline allow.
    pub(crate) async fn admit(
        &self,
        config: &FunctionConfig,
        deadline: Instant,
        metrics: &VersionMetrics,
    ) -> Result<Permit, Failure> {
        let mut ticket = match self.limit.admit() {
            Ok(permit) => return Ok(permit),
            Err(Some(ticket)) => ticket,
            Err(None) => {
                metrics.throttled();
                return Err(Failure::new(
                    ErrorKind::Throttled,
                    "the function's concurrency limit and its queue are full; try again soon, or raise concurrency or queue_size",
                )
                .retry_after(Duration::from_secs(1)));
            }
        };
        let _depth = metrics.queue_depth();
        let until = deadline.min(Instant::now() + config.queue_timeout.duration());
        match tokio::time::timeout_at(until, ticket.wait()).await {
            Ok(Some(permit)) => Ok(permit),
            Ok(None) => Err(Failure::internal("an admission queue was closed")),
            Err(_elapsed) => Err(Failure::new(
                ErrorKind::QueueTimeout,
                "the request waited in the function's queue for as long as it may; try again, or raise concurrency or queue_timeout",
            )
            .retry_after(Duration::from_secs(1))),
        }
    }

    /// The pool of a version. A closed one is replaced.
    pub(crate) fn pool(
        &self,
        version: &Arc<Version>,
        make: impl FnOnce() -> VersionPool,
    ) -> Arc<VersionPool> {
        let mut pools = self.pools.lock();
        if let Some(pool) = pools.get(&version.number) {
            return pool.clone();
        }
        let pool = Arc::new(make());
        #[cfg(test)]
        crate::audit::made(&pool);
        pools.insert(version.number, pool.clone());
        pool
    }

    pub(crate) fn existing(&self, number: VersionNumber) -> Option<Arc<VersionPool>> {
        self.pools.lock().get(&number).cloned()
    }

    pub(crate) fn pools(&self) -> Vec<Arc<VersionPool>> {
        self.pools.lock().values().cloned().collect()
    }

    /// Takes a pool out and closes it. Returns its idle instances, to be dropped where no lock is held.
    pub(crate) fn remove(&self, number: VersionNumber) -> Vec<Instance> {
        let pool = self.pools.lock().remove(&number);
        pool.map(|pool| pool.close()).unwrap_or_default()
    }

    /// Takes a pool out if it is at zero and nobody wants it.
    pub(crate) fn close_if_unused(&self, pool: &Arc<VersionPool>) -> bool {
        let mut pools = self.pools.lock();
        // While the map is locked nobody new can get at the pool through it; who has it already sees it closed.
        let closed = pool.state.lock().close_if_unused();
        if closed
            && pools
                .get(&pool.version.number)
                .is_some_and(|current| Arc::ptr_eq(current, pool))
        {
            pools.remove(&pool.version.number);
        }
        closed
    }

    pub(crate) fn is_unused(&self) -> bool {
        self.pools.lock().is_empty() && self.limit.in_flight() == 0 && self.limit.queued() == 0
    }
}

/// What a waiting caller is handed.
type Handed = Result<Lease, Failure>;

/// The pool of one version.
pub(crate) struct VersionPool {
    pub(crate) version: Arc<Version>,
    pub(crate) metrics: Arc<VersionMetrics>,
    pub(crate) state: Mutex<PoolState<Instance, oneshot::Sender<Handed>>>,
    /// Told of every start: the outcome of the last one.
    provisioning: watch::Sender<Result<(), Failure>>,
    /// After failed starts, when provisioned instances may be started again.
    backoff: Mutex<Backoff>,
    /// Starts an instance that the state has counted as starting.
    start: Box<dyn Fn(Arc<VersionPool>) + Send + Sync>,
    /// The function's, not the version's alone.
    pub(crate) keep: Arc<FunctionKeep>,
}

/// Waits between failed starts that no caller asked for: one second, doubled each time, at most a minute.
#[derive(Default)]
struct Backoff {
    failures: u32,
    until: Option<Instant>,
}

impl Backoff {
    fn failed(&mut self, now: Instant) {
        let seconds = 1u64 << self.failures.min(6);
        self.failures = self.failures.saturating_add(1);
        self.until = Some(now + Duration::from_secs(seconds.min(60)));
    }

    fn allows(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| now >= until)
    }
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
        self.pool.state.lock().leave(self.ticket);
    }
}

impl VersionPool {
    /// An empty pool; `start` carries out the starts it decides on.
    pub(crate) fn new(
        version: Arc<Version>,
        metrics: Arc<VersionMetrics>,
        keep: Arc<FunctionKeep>,
        start: impl Fn(Arc<VersionPool>) + Send + Sync + 'static,
    ) -> Self {
        Self {
            version,
            metrics,
            state: Mutex::default(),
            provisioning: watch::Sender::new(Ok(())),
            backoff: Mutex::default(),
            start: Box::new(start),
            keep,
        }
    }

    /// An idle instance, or a place in the queue for one.
    pub(crate) fn checkout(self: &Arc<Self>) -> Checkout {
        let mut channel = None;
        let taken = self.change(|state| {
            state.take(|| {
                let (tx, rx) = oneshot::channel();
                channel = Some(rx);
                tx
            })
        });
        match (taken, channel) {
            (Take::Warm(instance), _) => {
                let kind = if instance.uses == 0 {
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
                if start {
                    (self.start)(self.clone());
                }
                Checkout::Wait(waiting)
            }
            (Take::Queued { .. } | Take::Closed, _) => Checkout::Closed,
        }
    }

    /// A start that was counted has succeeded.
    pub(crate) fn started(self: &Arc<Self>, started: Started) {
        self.keep.measured(Some(&started.phases), None);
        let now = Instant::now();
        let until = self.keep.idle(&self.version, now);
        let place = self.change(|state| {
            let generation = state.generation();
            let mut instance = started.into_instance(generation);
            instance.until = until;
            state.started(instance, generation, now)
        });
        self.settle(place, StartKind::Cold);
        *self.backoff.lock() = Backoff::default();
        let _previous = self.provisioning.send_replace(Ok(()));
    }

    /// A start that was counted has failed.
    pub(crate) fn start_failed(&self, failure: Failure) {
        let told = self.state.lock().start_failed();
        if let Some(waiter) = told {
            // Whoever has left meanwhile needs no telling; the next start is for the next one.
            let _ = waiter.send(Err(failure.clone()));
        }
        self.backoff.lock().failed(Instant::now());
        let _previous = self.provisioning.send_replace(Err(failure));
        self.observe();
    }

    /// Takes an instance back. `reusable` is false after anything that may have left the guest in a bad state.
    pub(crate) fn give_back(self: &Arc<Self>, mut instance: Instance, reusable: bool) {
        let worn = self
            .version
            .config
            .max_uses
            .is_some_and(|max| instance.uses >= u64::from(max.get()));
        let fresh_only = self.version.config.isolation == Isolation::Request && instance.uses > 0;
        if !reusable || worn || fresh_only {
            let start = self.state.lock().retired();
            drop(instance);
            if start {
                (self.start)(self.clone());
            }
            self.observe();
            return;
        }
        let generation = instance.generation;
        let kind = if instance.uses == 0 {
            StartKind::Prewarmed
        } else {
            StartKind::Warm
        };
        let now = Instant::now();
        instance.until = self.keep.idle(&self.version, now);
        let place = self.change(|state| state.released(instance, generation, now));
        self.settle(place, kind);
    }

    /// Carries out where an instance goes. No lock is held: the lease of a waiter that left comes back through here.
    fn settle(self: &Arc<Self>, place: Place<Instance, oneshot::Sender<Handed>>, kind: StartKind) {
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

    pub(crate) fn expire(&self, now: Instant) -> Vec<Instance> {
        let expired = self.state.lock().expire(now, |idle| idle.instance.until);
        self.observe();
        expired
    }

    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.state.lock().next_expiry(|idle| idle.instance.until)
    }

    pub(crate) fn oldest_idle(&self) -> Option<Instant> {
        self.state.lock().oldest_idle()
    }

    pub(crate) fn evict(&self) -> Option<Instance> {
        let (evicted, last) = {
            let mut state = self.state.lock();
            (state.evict(), state.total() == 0)
        };
        if evicted.is_some() {
            self.keep.evicted(last);
        }
        self.observe();
        evicted
    }

    /// Starts an instance ahead of demand, if there is none.
    pub(crate) fn start_ahead(self: &Arc<Self>) -> bool {
        let start = self.state.lock().start_ahead();
        if start {
            (self.start)(self.clone());
            self.observe();
        }
        start
    }

    pub(crate) fn demote(&self) -> Vec<Instance> {
        let idle = self.state.lock().demote();
        self.observe();
        idle
    }

    pub(crate) fn close(&self) -> Vec<Instance> {
        let (idle, waiting) = self.state.lock().close();
        drop(waiting);
        self.observe();
        idle
    }

    /// Sets how many instances are kept whatever the traffic, and forgets how earlier starts went.
    pub(crate) fn set_provisioned(&self, count: usize) {
        self.state.lock().set_provisioned(count);
        *self.backoff.lock() = Backoff::default();
        let _previous = self.provisioning.send_replace(Ok(()));
    }

    /// Starts the provisioned instances that are missing, unless starts have just failed.
    pub(crate) fn keep_provisioned(self: &Arc<Self>, now: Instant) {
        if self.version.config.provisioned == 0 || !self.backoff.lock().allows(now) {
            return;
        }
        let missing = self.change(PoolState::missing_provisioned);
        for _ in 0..missing {
            (self.start)(self.clone());
        }
    }

    /// Waits until the provisioned instances are started, or one of them failed to. Callers bound the wait.
    pub(crate) async fn provisioned_ready(&self) -> Result<(), Failure> {
        let mut starts = self.provisioning.subscribe();
        loop {
            starts.borrow_and_update().clone()?;
            if self.state.lock().is_provisioned() {
                return Ok(());
            }
            if starts.changed().await.is_err() {
                return Ok(());
            }
        }
    }

    pub(crate) fn status(&self, now: Instant) -> Vec<InstanceStatus> {
        let state = self.state.lock();
        let version = self.version.number;
        let idle = state.idle().iter().map(|idle| InstanceStatus {
            id: idle.instance.id,
            version,
            state: "idle",
            uses: idle.instance.uses,
            idle_ms: Some(
                u64::try_from(now.saturating_duration_since(idle.since).as_millis())
                    .unwrap_or(u64::MAX),
            ),
        });
        let others = [("busy", state.busy()), ("starting", state.starting())];
        let unnamed = others.into_iter().flat_map(|(name, count)| {
            std::iter::repeat_with(move || InstanceStatus {
                id: fnctl_core::ids::InstanceId(0),
                version,
                state: name,
                uses: 0,
                idle_ms: None,
            })
            .take(count)
        });
        idle.chain(unnamed).collect()
    }

    /// Changes the state and tells the gauges.
    fn change<R>(
        &self,
        change: impl FnOnce(&mut PoolState<Instance, oneshot::Sender<Handed>>) -> R,
    ) -> R {
        let mut state = self.state.lock();
        let outcome = change(&mut state);
        self.metrics
            .instances(state.idle().len(), state.busy(), state.starting());
        outcome
    }

    /// Tells the gauges. Under the lock, so that two changes are told in the order in which they happened.
    fn observe(&self) {
        let state = self.state.lock();
        self.metrics
            .instances(state.idle().len(), state.busy(), state.starting());
    }
}
