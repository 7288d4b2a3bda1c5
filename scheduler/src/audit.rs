//! A look at everything the scheduler counts, for tests that compare it with what they have counted themselves.
//!
//! Every lock is only tried: in a test of one thread a lock that is taken is one that the caller of the caller holds,
//! which is a finding of its own (`Held`).

use crate::Inner;
use crate::lane::VersionPool;
use fnctl_core::ids::FunctionName;
use fnctl_core::version::VersionKey;
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

/// The pools that were ever seen and still exist: those that were taken out of their lane have instances as well.
#[derive(Default)]
pub(crate) struct Known(Vec<Weak<VersionPool>>);

/// Looks at the scheduler. `functions` are the names that lanes may have.
pub(crate) fn audit(
    inner: &Inner,
    functions: &[FunctionName],
    known: &mut Known,
) -> Result<Audit, Held> {
    known.0.retain(|pool| pool.strong_count() > 0);
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
        let limit = lane.limit.0.try_lock().ok_or(Held("a limit"))?;
        lanes.push(LaneAudit {
            function: function.clone(),
            limit: limit.limit(),
            max_queue: limit.max_queue(),
            permits: limit.in_flight(),
            queued: limit.queued(),
        });
        drop(limit);
        let pools = lane.pools.try_lock().ok_or(Held("a lane's pools"))?;
        listed.extend(pools.values().cloned());
    }
    for pool in &listed {
        if !known.0.iter().any(|seen| seen.as_ptr() == Arc::as_ptr(pool)) {
            known.0.push(Arc::downgrade(pool));
        }
    }
    let mut pools = Vec::new();
    for pool in known.0.iter().filter_map(Weak::upgrade) {
        let state = pool.state.try_lock().ok_or(Held("a pool"))?;
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
