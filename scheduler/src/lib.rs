//! Who runs where and when: admission, warm pools, activation, keep-alive, reaping.
//!
//! Knows sandboxes only as the `SandboxFactory` port, so all of it is tested with fake sandboxes on a paused clock.
//! Decisions are pure ([`limit`], [`pool`]); this file and `lane` carry them out. Invariants: an instance is never both
//! leased and idle; permits out = invocations in flight; every wait is bounded; nothing is created, run or dropped while
//! a lock is held.

#[cfg(test)]
mod audit;
mod body;
mod config;
#[cfg(test)]
mod dst;
mod instance;
mod keep;
mod lane;
mod lease;
pub mod limit;
mod metrics;
mod observe;
pub mod policy;
pub mod pool;
pub mod simulator;
#[cfg(test)]
mod tests;

pub use config::Config;

use async_trait::async_trait;
use dashmap::DashMap;
use fnctl_core::ids::FunctionName;
use fnctl_core::invocation::{ColdStart, StartKind, Unanswered};
use fnctl_core::log::LogSink;
use fnctl_core::ports::{InstanceStatus, Invoker, SandboxFactory};
use fnctl_core::record::{Recorded, Recorder};
use fnctl_core::task::Tasks;
use fnctl_core::version::{Version, VersionKey};
use fnctl_core::{ErrorKind, Failure, Invocation, Reply, ReplySender, RequestId, RunEnd};
use instance::Instances;
use keep::{Keep, Running};
use lane::{Lane, VersionPool};
use lease::Lease;
use limit::Permit;
use metrics::{Metrics, VersionMetrics};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};
use tokio::sync::Notify;
use tokio::time::Instant;

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
    lanes: DashMap<FunctionName, Arc<Lane>>,
    keep: Arc<Keep>,
    recorder: Recorder,
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
        let instances = Arc::new(Instances::new(factory, config.max_instances));
        Ok(Self {
            inner: Arc::new(Inner {
                instances,
                lanes: DashMap::new(),
                keep: Arc::new(Keep::new(config.keep_alive_policy)),
                recorder: Recorder::new(config.trace_size),
                metrics,
                logs,
                tasks,
                draining: AtomicBool::new(false),
                in_flight: AtomicUsize::new(0),
                quiet: Notify::new(),
            }),
        })
    }

    /// Retires the instances whose keep-alive has passed at `now`, and replaces provisioned ones that are missing.
    /// Returns how many were retired.
    pub fn reap(&self, now: Instant) -> usize {
        let mut reaped = 0;
        let mut taught = Vec::new();
        for lane in self.inner.lanes() {
            taught.append(&mut lane.keep.taught());
            for pool in lane.pools() {
                let expired = pool.expire(now);
                reaped += expired.len();
                pool.metrics.reaped(expired.len(), lane.keep.reason());
                drop(expired);
                self.inner.keep_provisioned(&pool, now);
                if lane.close_if_unused(&pool) && !lane.is_live(pool.version.number) {
                    self.inner.metrics.forget(&pool.version.key());
                }
            }
            self.inner.start_ahead(&lane, now);
        }
        self.inner.keep.learn(&taught);
        // Functions that were removed while somebody still ran, or was on the way.
        self.inner.lanes.retain(|_, lane| !lane.is_over());
        reaped
    }

    /// Applies the concurrency limit of the version that is live.
    pub fn configure(&self, version: &Version) {
        self.inner.lane(version).configure(version);
    }

    /// When the next idle instance expires or is to be started ahead.
    pub fn next_expiry(&self) -> Option<Instant> {
        let now = Instant::now();
        let lanes = self.inner.lanes();
        let ahead = lanes.iter().filter_map(|lane| lane.keep.next_due(now));
        lanes
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

    fn lane(&self, version: &Version) -> Arc<Lane> {
        if let Some(lane) = self.lanes.get(&version.function) {
            return lane.value().clone();
        }
        self.lanes
            .entry(version.function.clone())
            .or_insert_with(|| Arc::new(Lane::new(&version.config, self.keep.function(version))))
            .value()
            .clone()
    }

    fn pool(self: &Arc<Self>, lane: &Lane, version: &Arc<Version>) -> Arc<VersionPool> {
        lane.pool(version, || {
            let this = Arc::downgrade(self);
            VersionPool::new(
                version.clone(),
                Arc::new(self.metrics.of(&version.key())),
                lane.keep.clone(),
                move |pool| {
                    if let Some(this) = this.upgrade() {
                        this.spawn_start(pool);
                    }
                },
            )
        })
    }

    /// Starts instances until as many exist as the version has provisioned.
    fn keep_provisioned(&self, pool: &Arc<VersionPool>, now: Instant) {
        if !self.draining.load(Ordering::Relaxed) {
            pool.keep_provisioned(now);
        }
    }

    /// Starts one instance that was reserved in the pool; whoever waits first gets it.
    fn spawn_start(self: Arc<Self>, pool: Arc<VersionPool>) {
        let this = self.clone();
        self.tasks.spawn("start-instance", async move {
            // Whatever becomes of this task, the start that the pool has counted comes to an end.
            let mut counted = CountedStart(Some(pool.clone()));
            let evict = || this.evict_idle();
            let outcome = this.instances.start(&pool.version, evict).await;
            counted.0 = None;
            match outcome {
                Ok(started) => pool.started(started),
                Err(failure) => {
                    pool.keep.cancel();
                    pool.metrics.start_failed(failure.kind);
                    this.log_failure(&pool.version.key(), None, &failure);
                    pool.start_failed(failure);
                }
            }
        });
    }

    /// Runs an invocation on its lease to the end, then gives lease and permit back. Tries once more elsewhere if the
    /// guest had not begun.
    async fn run(self: Arc<Self>, mut work: Work) {
        let metrics = work.lease.pool().metrics.clone();
        let key = work.lease.pool().version.key();
        let deadline = work.invocation.deadline;
        let trace = work.invocation.trace.clone();
        let mut attempts = 0;
        let report = loop {
            let request_id = work.invocation.request_id.clone();
            let wants_report = work.invocation.report;
            let step = trace.step("run");
            step.set("fnctl.instance", || {
                i64::try_from(work.lease.id()).unwrap_or(i64::MAX)
            });
            work.invocation.trace = step.trace().clone();
            let since = Instant::now();
            let report = work.lease.run(work.invocation, work.reply.clone()).await;
            let took = since.elapsed();
            observe::note_run(step, &report);
            if wants_report && !matches!(report.end, RunEnd::Unbegun(_)) {
                self.logs
                    .write(observe::report_line(&key, &request_id, took, &report));
            }
            match report.end {
                RunEnd::Unbegun(invocation) if attempts == 0 => {
                    attempts += 1;
                    let pool = work.lease.pool().clone();
                    drop(work.lease);
                    work.invocation = *invocation;
                    match self.acquire(&pool, deadline).await {
                        Ok(lease) => work.lease = lease,
                        Err(failure) => {
                            metrics.failed(failure.kind);
                            work.reply.send(Err(failure));
                            return;
                        }
                    }
                }
                RunEnd::Unbegun(_) => {
                    metrics.failed(ErrorKind::Internal);
                    work.reply.send(Err(Failure::internal(
                        "two instances in a row were found unusable",
                    )));
                    return;
                }
                end => {
                    if let RunEnd::Failed(failure) = &end {
                        metrics.failed(failure.kind);
                        self.log_failure(&key, Some(&request_id), failure);
                    }
                    metrics.ran(took, report.inference, report.memory);
                    work.lease.pool().keep.measured(None, Some(report.memory));
                    self.recorder.add(Recorded {
                        at: work.arrived,
                        function: key.function.clone(),
                        duration: took,
                        start: work.lease.start_kind(),
                    });
                    break end;
                }
            }
        };
        let pool = work.lease.pool().clone();
        drop(work.running);
        work.lease.release(matches!(report, RunEnd::Completed));
        drop(work.permit);
        self.keep_provisioned(&pool, Instant::now());
    }

    /// A lease on an instance: an idle one, or the first that becomes free or is started for it.
    async fn acquire(
        self: &Arc<Self>,
        pool: &Arc<VersionPool>,
        deadline: Instant,
    ) -> Result<Lease, Failure> {
        let mut pool = pool.clone();
        let waiting = loop {
            match pool.checkout() {
                lane::Checkout::Lease(lease) => return Ok(lease),
                lane::Checkout::Wait(waiting) => break waiting,
                lane::Checkout::Closed if self.draining.load(Ordering::SeqCst) => {
                    return Err(draining());
                }
                // It was closed because it was at zero, and taken out of its lane with that.
                lane::Checkout::Closed => {
                    pool = self.pool(&self.lane(&pool.version), &pool.version)
                }
            }
        };
        match tokio::time::timeout_at(deadline, waiting).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_closed)) if self.draining.load(Ordering::SeqCst) => Err(draining()),
            Ok(Err(_closed)) => Err(Failure::new(
                ErrorKind::NotFound,
                "the function was removed while the request waited",
            )),
            Err(_elapsed) => Err(Failure::new(
                ErrorKind::StartTimeout,
                "no instance was ready before the request's deadline; raise timeout, or provision instances",
            )),
        }
    }
}

/// A start that ended without saying how: it panicked, or the runtime is going down.
struct CountedStart(Option<Arc<VersionPool>>);

impl Drop for CountedStart {
    fn drop(&mut self) {
        if let Some(pool) = self.0.take() {
            pool.start_failed(Failure::internal("the start of an instance was given up"));
        }
    }
}

/// What the task of one invocation works with.
struct Work {
    invocation: Invocation,
    arrived: SystemTime,
    /// Dropped before the lease is, so that the instance goes idle with nothing of this in flight.
    running: Running,
    lease: Lease,
    permit: Permit,
    reply: ReplySender,
    _in_flight: InFlight,
}

/// Counts an invocation for as long as it lives.
struct InFlight(Arc<Inner>);

impl InFlight {
    fn enter(inner: &Arc<Inner>) -> Self {
        inner.in_flight.fetch_add(1, Ordering::SeqCst);
        Self(inner.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.0.in_flight.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.quiet.notify_waiters();
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
        let lane = inner.lane(&version);
        let pool = inner.pool(&lane, &version);
        let metrics: &VersionMetrics = &pool.metrics;
        let mut phases = ColdStart::default();
        let unanswered = |failure: Failure, phases: ColdStart| {
            metrics.failed(failure.kind);
            Unanswered {
                failure,
                start: None,
                phases,
            }
        };

        let since = Instant::now();
        let step = invocation.trace.step("admit");
        let permit = lane
            .admit(&version.config, invocation.deadline, metrics)
            .await;
        phases.queue = since.elapsed();
        observe::note_outcome(step, permit.as_ref().err());
        metrics.queued(phases.queue);
        let permit = permit.map_err(|failure| unanswered(failure, phases))?;
        let arrived = SystemTime::now();
        let running = lane.keep.arrived(Instant::now());

        // A guest that was asked by somebody who left is stopped: the guard goes with this future, and later with the
        // response's body.
        let guard = body::CancelGuard::new(invocation.cancelled.clone());
        let is_head = invocation.request.method() == http::Method::HEAD;
        let step = invocation.trace.step("acquire");
        let lease = inner.acquire(&pool, invocation.deadline).await;
        if let Ok(lease) = &lease
            && lease.start_kind() == StartKind::Cold
            && let Some(began) = lease.began()
        {
            observe::record_phases(step.trace(), began, &lease.phases());
        }
        observe::note_outcome(step, lease.as_ref().err());
        if let Err(failure) = &lease {
            // The start itself is nobody's request: whoever waited for it finds the cause under their own id.
            let id = Some(&invocation.request_id);
            let line = observe::failure_line(&version.key(), id, failure);
            inner.logs.write(line);
        }
        let lease = lease.map_err(|failure| unanswered(failure, phases))?;
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
            running,
            lease,
            permit,
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
        let lane = inner.lane(&version);
        lane.configure(&version);
        let pool = inner.pool(&lane, &version);
        pool.set_provisioned(version.config.provisioned as usize);
        inner.keep_provisioned(&pool, Instant::now());
        let limit = version.config.start_timeout.duration();
        let ready = tokio::time::timeout(limit, pool.provisioned_ready()).await;
        // Ready or not, calls go to the new version from now on.
        self.demote(&lane, &retired);
        ready.unwrap_or_else(|_| {
            Err(Failure::new(
                ErrorKind::StartTimeout,
                "the provisioned instances did not start in time; see the platform's log",
            ))
        })
    }

    fn retire(&self, versions: &[VersionKey]) {
        for key in versions {
            if let Some(lane) = self
                .inner
                .lanes
                .get(&key.function)
                .map(|lane| lane.value().clone())
            {
                lane.removed(key.number);
                drop(lane.remove(key.number));
                lane.keep.cancel();
            }
            self.inner.metrics.forget(key);
        }
        if let Some(key) = versions.first() {
            self.inner.keep.forget(&key.function);
            self.inner.recorder.forget(&key.function);
            self.inner
                .lanes
                .remove_if(&key.function, |_, lane| lane.is_over());
        }
    }

    fn status(&self, function: &FunctionName) -> Vec<InstanceStatus> {
        let Some(lane) = self
            .inner
            .lanes
            .get(function)
            .map(|lane| lane.value().clone())
        else {
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
    fn demote(&self, lane: &Lane, retired: &[VersionKey]) {
        if !retired.is_empty() {
            lane.keep.cancel();
        }
        for key in retired {
            if let Some(pool) = lane.existing(key.number) {
                pool.set_provisioned(0);
                let idle = pool.demote();
                pool.metrics.reaped(idle.len(), "demoted");
                drop(idle);
            } else {
                // It was at zero already.
                self.inner.metrics.forget(key);
            }
        }
    }
}
