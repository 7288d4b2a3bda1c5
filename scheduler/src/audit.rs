//! A look at everything the scheduler counts, for tests that compare it with what they have counted themselves.
//!
//! Every lock is only tried: in a test of one thread a lock that is taken is one that the caller of the caller holds,
//! which is a finding of its own (`Held`).

use crate::Inner;
use crate::gate::{Flow, Gate};
use crate::version_pool::VersionPool;
use fnctl_core::ids::FunctionName;
use fnctl_core::version::VersionKey;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::time::Instant;

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
    /// The gate of what is shared, and that of the processors.
    pub(crate) gates: [GateAudit; 2],
    /// Bytes of instances, and of sessions.
    pub(crate) memory: [u64; 2],
    /// Idle instances that were let go, as the metrics count them.
    pub(crate) gone: u64,
    pub(crate) lanes: Vec<LaneAudit>,
    pub(crate) pools: Vec<PoolAudit>,
}

/// The counts of a gate.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct GateAudit {
    pub(crate) inside: usize,
    pub(crate) capacity: usize,
    pub(crate) waiting: usize,
}

/// The counts of a function at a gate.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct FlowAudit {
    pub(crate) inside: usize,
    pub(crate) waiting: usize,
    /// Passes that it was ever given.
    pub(crate) given: usize,
}

/// The counts of a function.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct LaneAudit {
    pub(crate) function: FunctionName,
    pub(crate) limit: usize,
    pub(crate) max_queue: usize,
    pub(crate) permits: usize,
    pub(crate) queued: usize,
    /// For how long a permit is out, once that is known.
    pub(crate) holds: Option<Duration>,
    pub(crate) is_reserved: bool,
    /// At the gates, in their order.
    pub(crate) flows: [FlowAudit; 2],
}

/// The counts of a pool.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct PoolAudit {
    /// Which of the pools of this thread it is.
    pub(crate) number: u64,
    pub(crate) version: VersionKey,
    /// Whether calls can still reach it through its lane.
    pub(crate) listed: bool,
    pub(crate) closed: bool,
    /// Ids of the idle instances.
    pub(crate) idle: Vec<u64>,
    /// Since when each of them is idle, and until when its function's policy keeps it.
    pub(crate) kept: Vec<(Instant, Instant)>,
    pub(crate) keep_alive: Duration,
    pub(crate) busy: usize,
    /// Callers that one instance serves at the same time, and those that are served.
    pub(crate) seats: usize,
    pub(crate) leased: usize,
    /// Leases by instance.
    pub(crate) leases: BTreeMap<u64, usize>,
    /// What the autoscaler wants, if there is one.
    pub(crate) scaling: Option<ScalingAudit>,
    pub(crate) starting: usize,
    pub(crate) waiting: usize,
    pub(crate) provisioned: usize,
    pub(crate) floor: usize,
    /// Most instances, and bytes of memory of one, by its configuration.
    pub(crate) max: usize,
    pub(crate) memory: u64,
    /// What the gauges say: idle, busy, starting.
    pub(crate) gauges: [i64; 3],
}

/// What an autoscaler decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ScalingAudit {
    pub(crate) began: Instant,
    pub(crate) looked: Instant,
    pub(crate) desired: usize,
    pub(crate) panicking: bool,
}

thread_local! {
    /// Every pool that this thread has made: one that was taken out of its lane has instances as well.
    static MADE: RefCell<Vec<(u64, Weak<VersionPool>)>> = const { RefCell::new(Vec::new()) };
    static NUMBER: Cell<u64> = const { Cell::new(0) };
}

/// Notes that a pool was made.
pub(crate) fn made(pool: &Arc<VersionPool>) {
    let number = NUMBER.get();
    NUMBER.set(number + 1);
    MADE.with_borrow_mut(|made| made.push((number, Arc::downgrade(pool))));
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
        let flow = |gate: &Gate, flow: &Flow| {
            let [inside, waiting, given] = gate.try_counts(flow).ok_or(Held("a gate"))?;
            Ok(FlowAudit {
                inside,
                waiting,
                given,
            })
        };
        let flows = [
            flow(&inner.node.shared, lane.flows.shared())?,
            flow(&inner.node.running, &lane.flows.running)?,
        ];
        lanes.push(LaneAudit {
            flows,
            holds: lane.limit.try_holds().ok_or(Held("a limit"))?,
            is_reserved: lane.is_reserved(),
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
        made.retain(|(_, pool)| pool.strong_count() > 0);
        let known = made.iter();
        known
            .filter_map(|(number, pool)| Some((*number, pool.upgrade()?)))
            .collect()
    });
    let mut pools = Vec::new();
    for (number, pool) in made {
        let books = pool.books.try_lock().ok_or(Held("a pool"))?;
        let state = &books.state;
        let scaling = books.scaling().map(|(began, looked, last)| ScalingAudit {
            began,
            looked,
            desired: last.desired,
            panicking: last.panicking,
        });
        pools.push(PoolAudit {
            number,
            version: pool.version.key(),
            listed: listed.iter().any(|other| Arc::ptr_eq(other, &pool)),
            closed: state.is_closed(),
            idle: state.idle().iter().map(|idle| idle.instance.id.0).collect(),
            kept: state
                .idle()
                .iter()
                .map(|idle| (idle.since, idle.instance.until))
                .collect(),
            keep_alive: pool.version.config.keep_alive.duration(),
            busy: state.busy(),
            seats: state.seats(),
            leased: state.leased(),
            leases: books.leases(),
            scaling,
            starting: state.starting(),
            waiting: state.waiting(),
            provisioned: state.provisioned(),
            floor: state.floor(),
            max: pool.version.config.most_instances(),
            memory: pool.version.config.memory.bytes(),
            gauges: pool.metrics.gauges(),
        });
    }
    let gate = |gate: &Gate| GateAudit {
        inside: gate.fill().0,
        capacity: gate.fill().1,
        waiting: gate.waiting(),
    };
    Ok(Audit {
        gates: [gate(&inner.node.shared), gate(&inner.node.running)],
        memory: inner.node.memory.parts(),
        gone: inner.metrics.all_gone(),
        in_flight: inner.in_flight.load(Ordering::SeqCst),
        slots: inner.instances.count(),
        panics: inner.tasks.panics(),
        lanes,
        pools,
    })
}
