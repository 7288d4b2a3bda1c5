//! Who runs where and when: admission, warm pools, activation, keep-alive, reaping.
//!
//! Knows sandboxes only as the `SandboxFactory` port, so all of it is tested with fake sandboxes on a paused clock.
//! Decisions are pure ([`limit`], [`pool`]); this file and `lane` carry them out. Invariants: an instance is never both
//! leased and idle, and has no more leases than seats; permits out = invocations in flight; every wait is bounded; nothing is created, run or dropped while
//! a lock is held.

pub mod admission;
mod ahead;
#[cfg(test)]
mod audit;
pub mod autoscaler;
mod backoff;
mod body;
mod books;
mod config;
#[cfg(test)]
mod dst;
pub mod fair;
mod gate;
mod instance;
mod keep;
mod keeping;
mod lane;
mod lease;
pub mod limit;
mod measured;
pub mod memory;
mod metrics;
mod node;
mod observe;
pub mod policy;
pub mod pool;
pub mod reserved;
mod running;
pub mod seats;
pub mod service_rate;
pub mod simulator;
#[cfg(test)]
mod tests;
mod version_pool;
mod work;

pub use config::{Clock, Config, MemoryLimit};
pub use measured::{Measured, MeasuredVersion};

use async_trait::async_trait;
use dashmap::DashMap;
use fnctl_core::ids::FunctionName;
use fnctl_core::invocation::{ColdStart, StartKind, Unanswered};
use fnctl_core::log::LogSink;
use fnctl_core::ports::{Claim, InstanceStatus, Invoker, SandboxFactory};
use fnctl_core::record::Recorder;
use fnctl_core::schedule::Asked;
use fnctl_core::task::Tasks;
use fnctl_core::version::{Version, VersionKey};
use fnctl_core::{ErrorKind, Failure, Invocation, Reply, ReplySender, RequestId};
use instance::Instances;
use keep::Keep;
use keeping::Live;
use lane::{Lane, Refused};
use metrics::{Metrics, VersionMetrics};
use node::Node;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};
use tokio::sync::Notify;
use tokio::time::Instant;
use version_pool::{Checkout, VersionPool};
use work::{Acquired, InFlight, Work};

/// The scheduler of one node. Clones share it.
#[derive(Clone)]
pub struct Scheduler {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scheduler").finish_non_exhaustive()
    }
}

struct Inner {
    instances: Arc<Instances>,
    node: Arc<Node>,
    live: Live,
    keep: Arc<Keep>,
    recorder: Recorder,
    lanes: DashMap<FunctionName, Arc<Lane>>,
    metrics: Metrics,
    logs: Arc<dyn LogSink>,
    tasks: Tasks,
    draining: AtomicBool,
    in_flight: AtomicUsize,
    /// Woken when the last invocation ends.
    quiet: Notify,
}

impl Scheduler {
    /// A scheduler that starts instances with `factory`.
    pub fn new(
        config: Config,
        factory: Arc<dyn SandboxFactory>,
        tasks: Tasks,
        registry: &prometheus::Registry,
        logs: Arc<dyn LogSink>,
    ) -> prometheus::Result<Self> {
        let metrics = Metrics::register(registry, config.max_tracked_versions)?;
        let node = Arc::new(Node::new(&config));
        Metrics::register_node(registry, &node)?;
        let instances = Instances::new(factory, config.max_instances, node.memory.clone());
        Ok(Self {
            inner: Arc::new(Inner {
                instances: Arc::new(instances),
                node,
                keep: Arc::new(Keep::new(config.keep_alive_policy, config.clock.now())),
                recorder: Recorder::new(config.trace_size),
                live: Live::new(config.clock),
                lanes: DashMap::new(),
                metrics,
                logs,
                tasks,
                draining: AtomicBool::new(false),
                in_flight: AtomicUsize::new(0),
                quiet: Notify::new(),
            }),
        })
    }

    /// Retires the instances whose keep-alive has passed at `now`, and starts those that are missing: provisioned ones,
    /// a function's minimum, what the autoscaler wants. Returns how many were retired since the last time.
    pub fn reap(&self, now: Instant) -> usize {
        let inner = &self.inner;
        let may_start = !inner.draining.load(Ordering::Relaxed);
        if may_start {
            for version in inner.live.wanted() {
                inner.pool_of(&version);
            }
        }
        let mut reaped = inner.keep.gone();
        for lane in inner.lanes() {
            for pool in lane.pools() {
                let (asked, windows) = inner.live.asked(&pool.version);
                pool.ask(asked, windows, inner.live.is_live(&pool.version));
                let expired = pool.look(now, may_start);
                reaped += expired.len();
                pool.metrics.reaped(expired.len(), lane.keep.reason());
                drop(expired);
                if lane.close_pool_if_unused(&pool) {
                    inner.live.remember(&pool.version, pool.summary());
                    if !inner.live.is_live(&pool.version) {
                        inner.forget_at_zero(&pool.version.key());
                    }
                }
            }
        }
        // Under the lock of its place in the map nobody can look a lane up while it closes.
        inner.lanes.retain(|function, lane| {
            let closed = lane.close_if_unused();
            if closed {
                inner.keep.leaves(function);
            }
            !closed
        });
        let memory = &inner.node.memory;
        while memory.instances_are_over() && inner.evict_idle(false) {
            reaped += 1;
        }
        inner.look_ahead(now);
        reaped
    }

    /// Takes note that `version` is live: its limits, reservation and schedule hold.
    pub fn configure(&self, version: &Arc<Version>) {
        self.inner.configure(version);
    }

    /// Whether it is time to let unused sessions go: instances and sessions together take more than they may, or a start
    /// was refused for want of memory since this was asked last.
    pub fn is_short_of_memory(&self) -> bool {
        self.inner.node.memory.wants_relief()
    }

    /// Tells what the sessions of models take now, in bytes: they share the node's memory with instances.
    pub fn set_session_memory(&self, bytes: u64) {
        self.inner.node.memory.set_sessions(bytes);
    }

    /// Admits, checks an idle instance out and gives all back, without a guest: what a warm request costs here. Says
    /// whether there was one. For the benchmark.
    #[doc(hidden)]
    pub fn try_warm(&self, version: &Arc<Version>) -> bool {
        let inner = &self.inner;
        let now = Instant::now();
        let (lane, pool) = inner.pool_of(version);
        let admit = lane.admit(&pool, now + Duration::from_secs(1), &inner.node);
        let mut admit = std::pin::pin!(admit);
        let mut ctx = std::task::Context::from_waker(std::task::Waker::noop());
        match std::future::Future::poll(admit.as_mut(), &mut ctx) {
            std::task::Poll::Ready(Ok((mut permit, admitted))) => {
                let Checkout::Lease(lease) = pool.checkout(lane.queued()) else {
                    return false;
                };
                lease.release(true);
                permit.served(Instant::now(), Duration::ZERO);
                drop((admitted, permit));
                true
            }
            _ => false,
        }
    }

    /// Functions of which anything is held besides the name of their live version.
    pub fn active_functions(&self) -> usize {
        self.inner.lanes.len()
    }

    /// When the next idle instance expires or is to be started ahead.
    pub fn next_expiry(&self) -> Option<Instant> {
        let ahead = self.inner.keep.next_due(Instant::now());
        self.inner
            .lanes()
            .iter()
            .flat_map(|lane| lane.pools())
            .filter_map(|pool| pool.next_expiry())
            .chain(ahead)
            .min()
    }

    /// Invocations in flight, queued ones included.
    pub fn in_flight(&self) -> usize {
        self.inner.in_flight.load(Ordering::SeqCst)
    }

    /// Instances that exist now, over all functions.
    pub fn instances(&self) -> usize {
        self.inner.instances.count()
    }

    /// Refuses new invocations and waits until the running ones have ended, at most for `grace`. Says whether they all
    /// did.
    pub async fn drain(&self, grace: Duration) -> bool {
        self.inner.draining.store(true, Ordering::SeqCst);
        let quiet = async {
            loop {
                let woken = self.inner.quiet.notified();
                if self.inner.in_flight.load(Ordering::SeqCst) == 0 {
                    return;
                }
                woken.await;
            }
        };
        let drained = tokio::time::timeout(grace, quiet).await.is_ok();
        for lane in self.inner.lanes() {
            for pool in lane.pools() {
                drop(pool.close());
            }
        }
        drained
    }
}

impl Inner {
    /// The lanes as they are now, by name, so that what happens to them happens in an order that can be repeated; no map
    /// shard stays locked.
    fn lanes(&self) -> Vec<Arc<Lane>> {
        let entries = self.lanes.iter();
        let mut lanes: Vec<_> = entries
            .map(|entry| (entry.key().clone(), entry.value().clone()))
            .collect();
        lanes.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        lanes.into_iter().map(|(_, lane)| lane).collect()
    }

    fn existing_lane(&self, function: &FunctionName) -> Option<Arc<Lane>> {
        self.lanes.get(function).map(|lane| lane.value().clone())
    }

    fn lane(&self, version: &Version) -> Arc<Lane> {
        if let Some(lane) = self.lanes.get(&version.function) {
            return lane.value().clone();
        }
        self.lanes
            .entry(version.function.clone())
            .or_insert_with(|| {
                // Limits are the live version's, whichever version is called.
                let live = self.live.of(&version.function);
                let config = live.as_ref().map_or(&version.config, |live| &live.config);
                let keep = self.keep.function(&version.function, config);
                Arc::new(Lane::new(&version.function, config, keep))
            })
            .value()
            .clone()
    }

    fn configure(&self, version: &Arc<Version>) {
        let function = &version.function;
        self.live.set(version);
        let reserved = version.config.reserved_concurrency;
        self.node.reserve(function, reserved);
        self.metrics.reserved(function, reserved);
        if let Some(lane) = self.existing_lane(function) {
            lane.configure(&version.config);
            for pool in lane.pools() {
                pool.set_live(self.live.is_live(&pool.version));
            }
        }
    }

    /// The pool of a version, in the lane of its function.
    fn pool_of(self: &Arc<Self>, version: &Arc<Version>) -> (Arc<Lane>, Arc<VersionPool>) {
        loop {
            // A lane that is closed leaves the map in the same step.
            let lane = self.lane(version);
            if let Some(pool) = self.pool(&lane, version) {
                return (lane, pool);
            }
        }
    }

    fn pool(self: &Arc<Self>, lane: &Lane, version: &Arc<Version>) -> Option<Arc<VersionPool>> {
        lane.pool(version, || {
            let this = Arc::downgrade(self);
            let pool = VersionPool::new(
                version.clone(),
                self.metrics.of(&version.key()),
                self.live.recall(version),
                lane.keep.clone(),
                move |pool| {
                    if let Some(this) = this.upgrade() {
                        this.spawn_start(pool);
                    }
                },
            );
            pool.set_live(self.live.is_live(version));
            pool
        })
    }

    /// Starts one instance that was reserved in the pool; whoever waits first gets it.
    fn spawn_start(self: Arc<Self>, pool: Arc<VersionPool>) {
        let (this, generation) = (self.clone(), pool.generation());
        self.tasks.spawn("start-instance", async move {
            // Whatever becomes of this task, the start that the pool has counted comes to an end.
            let mut counted = CountedStart(Some(pool.clone()));
            let evict = || this.evict_idle(pool.only_fills_up());
            let expected = pool.expected_memory();
            let outcome = this.instances.start(&pool.version, expected, evict).await;
            counted.0 = None;
            match outcome {
                Ok(started) => pool.started(started, generation),
                Err(failure) => {
                    pool.keep.cancel();
                    pool.metrics.start_failed(failure.kind);
                    this.log_failure(&pool.version.key(), None, &failure);
                    pool.start_failed(failure);
                }
            }
        });
    }
}

/// A start that ended without saying how: it panicked, or the runtime is going down.
struct CountedStart(Option<Arc<VersionPool>>);

impl Drop for CountedStart {
    fn drop(&mut self) {
        if let Some(pool) = self.0.take() {
            pool.keep.cancel();
            pool.start_given_up(Failure::internal("the start of an instance was given up"));
        }
    }
}

fn draining() -> Failure {
    Failure::new(
        ErrorKind::Draining,
        "the platform is shutting down; try again on another node, or in a moment",
    )
    .retry_after(Duration::from_secs(5))
}

impl Inner {
    /// Tells the platform's log and the function's own.
    fn log_failure(&self, key: &VersionKey, request_id: Option<&RequestId>, failure: &Failure) {
        self.logs
            .write(observe::failure_line(key, request_id, failure));
        observe::log_failure(key, request_id, failure);
    }
}

#[async_trait]
impl Invoker for Scheduler {
    async fn invoke(&self, invocation: Invocation) -> Result<Reply, Unanswered> {
        let inner = &self.inner;
        let in_flight = InFlight::enter(inner);
        if inner.draining.load(Ordering::SeqCst) {
            return Err(draining().into());
        }
        let version = invocation.version.clone();
        let mut phases = ColdStart::default();
        let since = Instant::now();
        let step = invocation.trace.step("admit");
        let (lane, pool, permit) = loop {
            let (lane, pool) = inner.pool_of(&version);
            let admitted = lane.admit(&pool, invocation.deadline, &inner.node).await;
            match admitted {
                Ok(admitted) => break (lane, pool, Ok(admitted)),
                Err(Refused::Failed(failure)) => break (lane, pool, Err(failure)),
                Err(Refused::Closed) => {}
            }
        };
        let metrics: &VersionMetrics = &pool.metrics;
        let unanswered = |failure: Failure, phases: ColdStart| {
            metrics.failed(failure.kind);
            Unanswered {
                failure,
                start: None,
                phases,
            }
        };

        phases.queue = since.elapsed();
        observe::note_outcome(step, permit.as_ref().err());
        metrics.queued(phases.queue);
        let (permit, admitted) = permit.map_err(|failure| unanswered(failure, phases))?;
        let arrived = SystemTime::now();
        let counted = lane.keep.arrived(Instant::now());

        // A guest that was asked by somebody who left is stopped: the guard goes with this future, and later with the
        // response's body.
        let guard = body::CancelGuard::new(invocation.cancelled.clone());
        let is_head = invocation.request.method() == http::Method::HEAD;
        let step = invocation.trace.step("acquire");
        let acquired = inner
            .acquire(&lane, &pool, invocation.deadline, admitted.pass)
            .await;
        if let Ok(Acquired { lease, .. }) = &acquired
            && lease.start_kind() == StartKind::Cold
            && let Some(began) = lease.began()
        {
            observe::record_phases(step.trace(), began, &lease.phases());
        }
        observe::note_outcome(step, acquired.as_ref().err());
        if let Err(failure) = &acquired {
            // The start itself is nobody's request: whoever waited for it finds the cause under their own id.
            let id = Some(&invocation.request_id);
            let line = observe::failure_line(&version.key(), id, failure);
            inner.logs.write(line);
        }
        let Acquired {
            lease,
            pass,
            starting,
        } = acquired.map_err(|failure| unanswered(failure, phases))?;
        lane.keep.used();
        let start = lease.start_kind();
        let started = lease.phases();
        phases = ColdStart {
            queue: phases.queue,
            ..started
        };
        metrics.started(start, &phases);
        if start == StartKind::Cold {
            let request_id = &invocation.request_id;
            inner.logs.write(observe::cold_start_line(
                &version.key(),
                request_id,
                &phases,
            ));
        }

        let (reply, head) = ReplySender::new();
        let since = Instant::now();
        let work = Work {
            invocation,
            arrived,
            counted,
            lane,
            lease,
            pass,
            starting,
            permit,
            _shared: admitted._shared,
            reply,
            _in_flight: in_flight,
        };
        inner.tasks.spawn("run-invocation", inner.clone().run(work));
        let answer = head
            .await
            .unwrap_or_else(|_| Err(Failure::internal("the run ended without an answer")));
        match answer {
            Ok(response) => {
                let response = body::guarded(response, guard, is_head);
                Ok(Reply {
                    response,
                    start,
                    phases,
                    run: since.elapsed(),
                })
            }
            Err(failure) => {
                guard.disarm();
                Err(Unanswered {
                    failure,
                    start: Some(start),
                    phases,
                })
            }
        }
    }

    async fn activate(
        &self,
        version: Arc<Version>,
        retired: Vec<VersionKey>,
    ) -> Result<(), Failure> {
        let inner = &self.inner;
        inner.configure(&version);
        let limit = version.config.start_timeout.duration();
        let ready = tokio::time::timeout(limit, inner.provision(&version)).await;
        // Ready or not, calls go to the new version from now on.
        self.demote(&retired);
        // How long models and code are kept was said for what was live before.
        inner.instances.forget(&version.function);
        ready.unwrap_or_else(|_| {
            Err(Failure::new(
                ErrorKind::StartTimeout,
                "the provisioned instances did not start in time; see the platform's log",
            ))
        })
    }

    fn retire(&self, versions: &[VersionKey]) {
        let inner = &self.inner;
        for key in versions {
            if inner.live.remove(key) {
                inner.node.reserve(&key.function, None);
                inner.metrics.reserved(&key.function, None);
            }
            if let Some(lane) = inner.existing_lane(&key.function) {
                drop(lane.remove(key.number));
                lane.keep.cancel();
            }
            inner.metrics.forget(key);
        }
        if let Some(key) = versions.first() {
            inner.instances.forget(&key.function);
            if inner.live.of(&key.function).is_none() {
                inner.keep.forget(&key.function);
                inner.recorder.forget(&key.function);
            }
            let closed = inner
                .lanes
                .remove_if(&key.function, |_, lane| lane.close_if_unused());
            if closed.is_some() {
                inner.keep.leaves(&key.function);
            }
        }
    }

    fn claim(&self, version: &Version) -> Result<Claim, Failure> {
        let node = &self.inner.node;
        node.claim(&version.function, &version.config)
            .map(Claim::new)
    }

    fn status(&self, function: &FunctionName) -> Vec<InstanceStatus> {
        let Some(lane) = self.inner.existing_lane(function) else {
            return Vec::new();
        };
        let now = Instant::now();
        lane.pools()
            .iter()
            .flat_map(|pool| pool.status(now))
            .collect()
    }
}

impl Scheduler {
    /// Lets go of the instances of versions that are no longer live: idle ones now, busy ones when they are free.
    fn demote(&self, retired: &[VersionKey]) {
        for key in retired {
            let lane = self.inner.existing_lane(&key.function);
            if let Some(lane) = &lane {
                lane.keep.cancel();
            }
            if let Some(pool) = lane.and_then(|lane| lane.existing(key.number)) {
                pool.ask(Asked::default(), Asked::default(), false);
                let idle = pool.demote();
                pool.metrics.reaped(idle.len(), "demoted");
                drop(idle);
            } else {
                // It was at zero already.
                self.inner.forget_at_zero(key);
            }
        }
    }
}
