//! The task of one invocation: it runs on its lease to the end, and gives back what it holds.

use crate::gate::Pass;
use crate::keep::Counted;
use crate::lane::Lane;
use crate::lease::Lease;
use crate::limit::Permit;
use crate::running::Running;
use crate::version_pool::{Checkout, VersionPool};
use crate::{Inner, draining, observe};
use fnctl_core::activity::Computes;
use fnctl_core::invocation::StartKind;
use fnctl_core::record::Recorded;
use fnctl_core::version::Version;
use fnctl_core::{ErrorKind, Failure, Invocation, ReplySender, RunEnd};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// How often a request is tried elsewhere that shared instances did not begin; its deadline bounds it as well.
const SHARED_RETRIES: u32 = 8;

/// An instance for an invocation, and the right to compute on it.
pub(crate) struct Acquired {
    pub(crate) lease: Lease,
    pub(crate) pass: Pass,
    /// Time that was spent waiting for a start.
    pub(crate) starting: Duration,
}

impl Inner {
    /// Runs an invocation on its lease to the end, then gives lease and permit back. Tries once more elsewhere if the
    /// guest had not begun.
    pub(crate) async fn run(self: Arc<Self>, mut work: Work) {
        let pool = work.lease.pool().clone();
        let metrics = &pool.metrics;
        let key = work.lease.pool().version.key();
        let deadline = work.invocation.deadline;
        let trace = work.invocation.trace.clone();
        let mut attempts = 0;
        // A shared instance that dies hands back whoever its guest has not seen, and the next may die of another's fault.
        let is_shared = work.lease.pool().version.config.instance_concurrency.get() > 1;
        let retries = if is_shared { SHARED_RETRIES } else { 1 };
        let report = loop {
            let request_id = work.invocation.request_id.clone();
            let wants_report = work.invocation.report;
            let step = trace.step("run");
            step.set("fnctl.instance", || {
                i64::try_from(work.lease.id()).unwrap_or(i64::MAX)
            });
            work.invocation.trace = step.trace().clone();
            let since = Instant::now();
            let (report, polled) = {
                let computes = Computes::default();
                let run = work.lease.run(work.invocation, work.reply.clone());
                let run = pin!(computes.scope(run));
                match Running::new(run, computes, work.pass) {
                    Some(running) => running.await,
                    None => return,
                }
            };
            let took = since.elapsed();
            observe::note_run(step, &report);
            if wants_report && !matches!(report.end, RunEnd::Unbegun(_)) {
                self.logs
                    .write(observe::report_line(&key, &request_id, took, &report));
            }
            match report.end {
                RunEnd::Unbegun(invocation) if attempts < retries => {
                    attempts += 1;
                    let pool = work.lease.pool().clone();
                    drop(work.lease);
                    work.invocation = *invocation;
                    match self.acquire_again(&work.lane, &pool, deadline).await {
                        Ok(acquired) => {
                            work.lease = acquired.lease;
                            work.pass = acquired.pass;
                            work.starting += acquired.starting;
                        }
                        Err(failure) => {
                            metrics.failed(failure.kind);
                            work.reply.send(Err(failure));
                            return;
                        }
                    }
                }
                RunEnd::Unbegun(_) => {
                    let failure = if is_shared {
                        Failure::new(
                            ErrorKind::Trap,
                            "the instances that were to serve this request died of other requests, one after the other; see the function's log, or lower instance_concurrency",
                        )
                    } else {
                        Failure::internal("two instances in a row were found unusable")
                    };
                    metrics.failed(failure.kind);
                    work.reply.send(Err(failure));
                    return;
                }
                end => {
                    if let RunEnd::Failed(failure) | RunEnd::Unseen(failure) = &end {
                        metrics.failed(failure.kind);
                        self.log_failure(&key, Some(&request_id), failure);
                    }
                    metrics.ran(took, report.inference, report.memory);
                    work.lane.keep.sized(report.memory);
                    self.recorder.add(Recorded {
                        at: work.arrived,
                        function: key.function.clone(),
                        duration: took,
                        start: work.lease.start_kind(),
                    });
                    work.lease.pool().took(polled + report.inference);
                    let is_whole = !matches!(&end, RunEnd::Failed(failure) if failure.kind == ErrorKind::Cancelled);
                    if is_whole {
                        work.permit.served(Instant::now(), work.starting);
                    }
                    break end;
                }
            }
        };
        let pool = work.lease.pool().clone();
        drop(work.counted);
        work.lease
            .release(matches!(report, RunEnd::Completed | RunEnd::Unseen(_)));
        drop(work.permit);
        if !self.draining.load(Ordering::Relaxed) {
            pool.refill(Instant::now());
        }
    }

    /// Starts what is provisioned of a version that has become live, and waits until it is there. Callers bound the wait.
    pub(crate) async fn provision(self: &Arc<Self>, version: &Arc<Version>) -> Result<(), Failure> {
        loop {
            let (asked, windows) = self.live.asked(version);
            let pool = if asked.provisioned > 0 {
                Some(self.pool_of(version).1)
            } else {
                let lane = self.existing_lane(&version.function);
                lane.and_then(|lane| lane.existing(version.number))
            };
            let Some(pool) = pool else { return Ok(()) };
            pool.promote();
            pool.ask(asked, windows, true);
            if !self.draining.load(Ordering::Relaxed) {
                pool.refill(Instant::now());
            }
            if pool.provisioned_ready().await? {
                return Ok(());
            }
            // The pool was closed: for good, or because it was at zero and was not yet asked for anything.
            if self.draining.load(Ordering::SeqCst) {
                return Err(draining());
            }
            if !self.live.is_live(version) {
                return Err(Failure::new(
                    ErrorKind::Conflict,
                    "the version was removed, or replaced by another, before its provisioned instances were started; deploy it again if it is still wanted",
                ));
            }
        }
    }

    /// A lease on an instance: an idle one, or the first that becomes free or is started for it. Who waits for a start
    /// does not compute, so the pass is given back meanwhile.
    pub(crate) async fn acquire(
        self: &Arc<Self>,
        lane: &Lane,
        pool: &Arc<VersionPool>,
        deadline: Instant,
        pass: Pass,
    ) -> Result<Acquired, Failure> {
        let mut pool = pool.clone();
        let waiting = loop {
            match pool.checkout(lane.queued()) {
                Checkout::Lease(lease) => {
                    return Ok(Acquired {
                        lease,
                        pass,
                        starting: Duration::ZERO,
                    });
                }
                Checkout::Wait(waiting) => break waiting,
                Checkout::Closed if self.draining.load(Ordering::SeqCst) => {
                    return Err(draining());
                }
                // It was closed because it was at zero, and taken out of its lane with that.
                Checkout::Closed => match self.pool(lane, &pool.version) {
                    Some(successor) => pool = successor,
                    None => return Err(Failure::internal("a lane was closed under its permit")),
                },
            }
        };
        drop(pass);
        let since = Instant::now();
        let lease = match tokio::time::timeout_at(deadline, waiting).await {
            Ok(Ok(outcome)) => outcome?,
            Ok(Err(_closed)) if self.draining.load(Ordering::SeqCst) => return Err(draining()),
            Ok(Err(_closed)) => {
                return Err(Failure::new(
                    ErrorKind::NotFound,
                    "the function was removed while the request waited",
                ));
            }
            Err(_elapsed) => {
                return Err(Failure::new(
                    ErrorKind::StartTimeout,
                    "no instance was ready before the request's deadline; raise timeout, or provision instances",
                ));
            }
        };
        let starting = match lease.start_kind() {
            StartKind::Cold => since.elapsed(),
            StartKind::Prewarmed | StartKind::Warm => Duration::ZERO,
        };
        let pass = self.enter(lane, &pool, deadline).await?;
        Ok(Acquired {
            lease,
            pass,
            starting,
        })
    }

    /// As [`Self::acquire`], for one that has no pass any more.
    async fn acquire_again(
        self: &Arc<Self>,
        lane: &Lane,
        pool: &Arc<VersionPool>,
        deadline: Instant,
    ) -> Result<Acquired, Failure> {
        let pass = self.enter(lane, pool, deadline).await?;
        self.acquire(lane, pool, deadline, pass).await
    }

    /// Waits for a turn on a processor.
    async fn enter(
        &self,
        lane: &Lane,
        pool: &VersionPool,
        deadline: Instant,
    ) -> Result<Pass, Failure> {
        let turn = self.node.running.enter(&lane.flows.running, pool.cost());
        match tokio::time::timeout_at(deadline, turn).await {
            Ok(Some(pass)) => Ok(pass),
            Ok(None) => Err(Failure::internal("an admission queue was closed")),
            Err(_elapsed) => Err(Failure::new(
                ErrorKind::Overloaded,
                "the node was busy with other requests until this one's deadline; try again later, or raise scheduler.max_running",
            )
            .retry_after(Duration::from_secs(1))),
        }
    }
}

/// What the task of one invocation works with.
pub(crate) struct Work {
    pub(crate) invocation: Invocation,
    pub(crate) arrived: SystemTime,
    /// Dropped before the lease is, so that the instance goes idle with nothing of this in flight.
    pub(crate) counted: Counted,
    pub(crate) lane: Arc<Lane>,
    pub(crate) lease: Lease,
    pub(crate) pass: Pass,
    pub(crate) starting: Duration,
    pub(crate) permit: Permit,
    /// Its place in what is shared of the node's concurrency.
    pub(crate) _shared: Option<Pass>,
    pub(crate) reply: ReplySender,
    pub(crate) _in_flight: InFlight,
}

/// Counts an invocation for as long as it lives.
pub(crate) struct InFlight(Arc<Inner>);

impl InFlight {
    pub(crate) fn enter(inner: &Arc<Inner>) -> Self {
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
