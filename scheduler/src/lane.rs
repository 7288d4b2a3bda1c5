//! What the scheduler keeps per function: its concurrency limit and queue, its turns on the node, and the pools of its
//! versions.

use crate::Inner;
use crate::admission::Verdict;
use crate::instance::Instance;
use crate::keep::FunctionKeep;
use crate::limit::{ConcurrencyLimit, Denied, Permit};
use crate::metrics::NoTurn;
use crate::node::{Admitted, Flows, Node};
use crate::version_pool::VersionPool;
use dashmap::Entry;
use fnctl_core::config::FunctionConfig;
use fnctl_core::ids::{FunctionName, VersionNumber};
use fnctl_core::version::{Version, VersionKey};
use fnctl_core::{ErrorKind, Failure};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// One function: its concurrency limit, and a pool for each version that has instances.
pub(crate) struct Lane {
    pub(crate) limit: ConcurrencyLimit,
    pub(crate) flows: Flows,
    /// Whether its concurrency is reserved, so that it takes none of what is shared.
    is_reserved: AtomicBool,
    pub(crate) pools: Mutex<Pools>,
    /// How long its instances are kept.
    pub(crate) keep: Arc<FunctionKeep>,
}

#[derive(Default)]
pub(crate) struct Pools {
    pub(crate) by_version: BTreeMap<VersionNumber, Arc<VersionPool>>,
    closed: bool,
}

/// Why a request was not admitted.
pub(crate) enum Refused {
    Failed(Failure),
    /// The lane was at rest and has been taken away; there is, or will be, another.
    Closed,
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Lane {
    pub(crate) fn new(
        function: &FunctionName,
        config: &FunctionConfig,
        keep: Arc<FunctionKeep>,
    ) -> Self {
        keep.configure(config);
        Self {
            limit: ConcurrencyLimit::new(config.most_in_flight(), config.queue_size as usize),
            flows: Flows::new(function),
            is_reserved: AtomicBool::new(config.reserved_concurrency.is_some()),
            pools: Mutex::default(),
            keep,
        }
    }

    /// Applies the limits of the version that is live now.
    pub(crate) fn configure(&self, config: &FunctionConfig) {
        self.keep.configure(config);
        self.is_reserved
            .store(config.reserved_concurrency.is_some(), Ordering::Relaxed);
        self.limit
            .resize(config.most_in_flight(), config.queue_size as usize);
    }

    /// Waits for a permit and for the node's places, for as long as the queue's time limit and the request's deadline
    /// allow. Who cannot be answered in time is refused at once.
    pub(crate) async fn admit(
        &self,
        pool: &VersionPool,
        deadline: Instant,
        node: &Node,
    ) -> Result<(Permit, Admitted), Refused> {
        let now = Instant::now();
        let patience = pool.version.config.queue_timeout.duration();
        let remaining = deadline.saturating_duration_since(now);
        let permit = self.limit.admit(now, |queue| match queue.limit {
            // Nothing is ever served.
            0 => Verdict::TooLate(Duration::ZERO),
            _ => queue.judge(remaining, patience),
        });
        let is_reserved = self.is_reserved.load(Ordering::Relaxed);
        if let Ok(permit) = permit {
            if let Some(admitted) = node.try_admit(&self.flows, is_reserved) {
                return Ok((permit, admitted));
            }
            let until = deadline.min(now + patience);
            return self.admit_to_node(permit, pool, until, node).await;
        }
        let mut ticket = match permit {
            Ok(_) => return Err(Failure::internal("a permit was lost").into()),
            Err(Denied::Queued(ticket)) => ticket,
            Err(Denied::Closed) => return Err(Refused::Closed),
            Err(Denied::Full(after)) => {
                pool.metrics.throttled();
                pool.metrics.dropped(NoTurn::QueueFull);
                return Err(throttled("the function's concurrency limit and its queue are full; try again soon, or raise concurrency or queue_size")
                    .retry_after(after)
                    .into());
            }
            Err(Denied::TooLate(_)) if self.limit.fill().1 == 0 => {
                pool.metrics.throttled();
                pool.metrics.dropped(NoTurn::TurnedOff);
                return Err(throttled("the function is turned off: its reserved_concurrency is 0; deploy it with more, or without").into());
            }
            Err(Denied::TooLate(after)) => {
                pool.metrics.throttled();
                pool.metrics.dropped(NoTurn::TooLate);
                return Err(throttled("the function's queue is longer than this request may wait; try again later, or raise concurrency")
                    .retry_after(after)
                    .into());
            }
        };
        let depth = pool.metrics.queue_depth();
        let until = deadline.min(now + patience);
        let permit = match tokio::time::timeout_at(until, ticket.wait()).await {
            Ok(Some(permit)) => permit,
            Ok(None) => return Err(Failure::internal("an admission queue was closed").into()),
            Err(_elapsed) => {
                pool.metrics.dropped(NoTurn::QueueTimeout);
                return Err(Failure::new(
                    ErrorKind::QueueTimeout,
                    "the request waited in the function's queue for as long as it may; try again, or raise concurrency or queue_timeout",
                )
                .retry_after(self.limit.retry_after())
                .into());
            }
        };
        drop(depth);
        self.admit_to_node(permit, pool, until, node).await
    }

    async fn admit_to_node(
        &self,
        permit: Permit,
        pool: &VersionPool,
        until: Instant,
        node: &Node,
    ) -> Result<(Permit, Admitted), Refused> {
        let is_reserved = self.is_reserved.load(Ordering::Relaxed);
        let _depth = pool.metrics.queue_depth();
        let places = node.admit(&self.flows, is_reserved, pool.cost());
        match tokio::time::timeout_at(until, places).await {
            Ok(Some(admitted)) => Ok((permit, admitted)),
            Ok(None) => Err(Failure::internal("an admission queue was closed").into()),
            Err(_elapsed) => {
                pool.metrics.dropped(NoTurn::NodeBusy);
                Err(Failure::new(
                    ErrorKind::Overloaded,
                    "the node is busy with other requests for longer than this one may wait; try again later, or raise scheduler.max_running or scheduler.max_concurrency",
                )
                .retry_after(self.limit.retry_after())
                .into())
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn is_reserved(&self) -> bool {
        self.is_reserved.load(Ordering::Relaxed)
    }

    /// Callers that wait for a permit.
    pub(crate) fn queued(&self) -> usize {
        self.limit.queued()
    }

    /// The pool of a version; nothing if the lane has been taken away.
    pub(crate) fn pool(
        &self,
        version: &Arc<Version>,
        make: impl FnOnce() -> VersionPool,
    ) -> Option<Arc<VersionPool>> {
        let mut pools = self.pools.lock();
        if let Some(pool) = pools.by_version.get(&version.number) {
            return Some(pool.clone());
        }
        if pools.closed {
            return None;
        }
        let pool = Arc::new(make());
        #[cfg(test)]
        crate::audit::made(&pool);
        pools.by_version.insert(version.number, pool.clone());
        Some(pool)
    }

    pub(crate) fn existing(&self, number: VersionNumber) -> Option<Arc<VersionPool>> {
        self.pools.lock().by_version.get(&number).cloned()
    }

    pub(crate) fn pools(&self) -> Vec<Arc<VersionPool>> {
        self.pools.lock().by_version.values().cloned().collect()
    }

    /// Takes a pool out and closes it. Returns its idle instances, to be dropped where no lock is held.
    pub(crate) fn remove(&self, number: VersionNumber) -> Vec<Instance> {
        let pool = self.pools.lock().by_version.remove(&number);
        pool.map(|pool| pool.close()).unwrap_or_default()
    }

    /// Takes a pool out if it is at zero and nobody wants it.
    pub(crate) fn close_pool_if_unused(&self, pool: &Arc<VersionPool>) -> bool {
        let mut pools = self.pools.lock();
        // While the map is locked nobody new can get at the pool through it; who has it already sees it closed.
        let closed = pool.close_if_unused();
        if closed
            && pools
                .by_version
                .get(&pool.version.number)
                .is_some_and(|current| Arc::ptr_eq(current, pool))
        {
            pools.by_version.remove(&pool.version.number);
        }
        closed
    }

    /// Closes the lane if it has no pool and nobody is in flight or waits. Who has it already sees it closed.
    pub(crate) fn close_if_unused(&self) -> bool {
        let mut pools = self.pools.lock();
        pools.closed |= pools.by_version.is_empty() && self.limit.close_if_unused();
        pools.closed
    }
}

impl Inner {
    /// Forgets the numbers of a version that is not live and at zero. If a pool of it was made meanwhile, as by a roll
    /// back, they stay, and go with that: under the lock under which a lane is made, and that of its pools, nobody can
    /// make one that would count where nobody looks.
    pub(crate) fn forget_at_zero(&self, key: &VersionKey) {
        let forget = || self.metrics.forget(key);
        match self.lanes.entry(key.function.clone()) {
            Entry::Vacant(_nobody) => forget(),
            Entry::Occupied(lane) => {
                let pools = lane.get().pools.lock();
                if !pools.by_version.contains_key(&key.number) {
                    forget();
                }
            }
        }
    }
}

fn throttled(message: &'static str) -> Failure {
    Failure::new(ErrorKind::Throttled, message)
}
