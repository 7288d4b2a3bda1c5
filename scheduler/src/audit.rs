//! A look at everything the scheduler counts, for tests that compare it with what they have counted themselves.
//!
//! Every lock is only tried: in a test of one thread a lock that is taken is one that the caller of the caller holds,
//! which is a finding of its own (`Held`).

use crate::Inner;
use crate::version_pool::VersionPool;
use fnctl_core::ids::FunctionName;
use fnctl_core::version::VersionKey;
use std::cell::RefCell;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

/// A lock was held while a sandbox was made, run or dropped; the text says which.
#[derive(Debug)]
pub(crate) struct Held(pub(crate) &'static str);

/// All counts of a scheduler.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Audit {
    /// Invocations in flight, queued ones included.
    pub(crate) in_flight: usize,
    /// Slots of the node that are taken.
    pub(crate) slots: usize,
    /// Panics of its tasks.
    pub(crate) panics: u64,
    pub(crate) lanes: Vec<LaneAudit>,
    pub(crate) pools: Vec<PoolAudit>,
}

/// The counts of a function.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct LaneAudit {
    pub(crate) function: FunctionName,
    pub(crate) limit: usize,
    pub(crate) max_queue: usize,
    pub(crate) permits: usize,
    pub(crate) queued: usize,
}

/// The counts of a pool.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct PoolAudit {
    pub(crate) version: VersionKey,
    /// Whether calls can still reach it through its lane.
    pub(crate) listed: bool,
    pub(crate) closed: bool,
    /// Ids of the idle instances.
    pub(crate) idle: Vec<u64>,
    pub(crate) busy: usize,
    pub(crate) starting: usize,
    pub(crate) waiting: usize,
    pub(crate) provisioned: usize,
    /// What the gauges say: idle, busy, starting.
    pub(crate) gauges: [i64; 3],
}

thread_local! {
    /// Every pool that this thread has made: one that was taken out of its lane has instances as well.
    static MADE: RefCell<Vec<Weak<VersionPool>>> = const { RefCell::new(Vec::new()) };
}

/// Notes that a pool was made.
pub(crate) fn made(pool: &Arc<VersionPool>) {
    MADE.with_borrow_mut(|made| made.push(Arc::downgrade(pool)));
}

/// Forgets the pools of schedulers that are gone.
pub(crate) fn forget() {
    MADE.with_borrow_mut(Vec::clear);
}

/// Looks at the scheduler, the only one of this thread. `functions` are the names that lanes may have.
pub(crate) fn audit(inner: &Inner, functions: &[FunctionName]) -> Result<Audit, Held> {
    let mut lanes = Vec::new();
    let mut listed = Vec::new();
    for function in functions {
        let found = inner.lanes.try_get(function);
        if found.is_locked() {
            return Err(Held("the map of lanes"));
        }
        let Some(lane) = found.try_unwrap().map(|lane| lane.value().clone()) else {
            continue;
        };
        let [limit, max_queue, permits, queued] = lane.limit.try_counts().ok_or(Held("a limit"))?;
        lanes.push(LaneAudit {
            function: function.clone(),
            limit,
            max_queue,
            permits,
            queued,
        });
        let pools = lane.pools.try_lock().ok_or(Held("a lane's pools"))?;
        listed.extend(pools.by_version.values().cloned());
    }
    let made: Vec<_> = MADE.with_borrow_mut(|made| {
        made.retain(|pool| pool.strong_count() > 0);
        made.iter().filter_map(Weak::upgrade).collect()
    });
    let mut pools = Vec::new();
    for pool in made {
        let books = pool.books.try_lock().ok_or(Held("a pool"))?;
        let state = &books.state;
        pools.push(PoolAudit {
            version: pool.version.key(),
            listed: listed.iter().any(|other| Arc::ptr_eq(other, &pool)),
            closed: state.is_closed(),
            idle: state.idle().iter().map(|idle| idle.instance.id.0).collect(),
            busy: state.busy(),
            starting: state.starting(),
            waiting: state.waiting(),
            provisioned: state.provisioned(),
            gauges: pool.metrics.gauges(),
        });
    }
    Ok(Audit {
        in_flight: inner.in_flight.load(Ordering::SeqCst),
        slots: inner.instances.count(),
        panics: inner.tasks.panics(),
        lanes,
        pools,
    })
}
