//! The rules: what docs/architecture.md promises of the scheduler, as comparisons of its counts with the fakes' books.
//!
//! [`settled`] holds whenever nothing more can happen at an instant: every task waits for a timer or for another task.
//! There an instance is idle or runs, a start is inside the factory, and a caller waits in one known place.

use super::world::{Books, Live, World};
use super::{contest, scaling, seats, shares};
use crate::audit::{Audit, LaneAudit, PoolAudit};
use fnctl_core::ids::FunctionName;
use std::collections::BTreeSet;
use std::time::Duration;

/// Timers fire at whole milliseconds.
pub(super) const TICK: Duration = Duration::from_millis(2);

pub(super) fn settled(world: &World, audit: Audit) {
    let host = (world.host.uses(), world.host.computing());
    let computing = host.1;
    let mut books = world.books.lock();
    books.checks += 1;
    instances(&mut books, &audit, world.plan.slots);
    callers(&mut books, &audit);
    for pool in &audit.pools {
        pool_alone(&mut books, pool);
    }
    for lane in &audit.lanes {
        lane_alone(&mut books, lane, &audit);
    }
    inference(&mut books, host);
    shares::settled(&mut books, world, &audit, computing);
    seats::settled(&mut books, &audit);
    scaling::note(&mut books, &audit);
    contest::settled(&mut books, world, &audit);
    bounds(&mut books);
    let panics = books.planned_panics;
    books.require("panics", audit.panics == panics, || {
        format!("{} tasks panicked, {panics} were to", audit.panics)
    });
    if books.last.as_ref() != Some(&audit) {
        books.log(describe(&audit));
        books.last = Some(audit);
    }
}

fn sum(pools: &[PoolAudit], of: impl Fn(&PoolAudit) -> usize) -> usize {
    pools.iter().map(of).sum()
}

/// Every instance is in one place, every slot has its instance or start.
fn instances(books: &mut Books, audit: &Audit, slots: usize) {
    let (live, starting) = (books.instances(), books.starting);
    let pooled = sum(&audit.pools, |pool| pool.idle.len() + pool.busy);
    books.require("instances", pooled == live, || {
        format!("the pools have {pooled} instances, {live} sandboxes exist")
    });
    let counted = sum(&audit.pools, |pool| pool.starting);
    books.require("starts", counted == starting, || {
        format!("the pools count {counted} starts, {starting} are under way")
    });
    books.require("slots", audit.slots == live + starting, || {
        format!(
            "{} slots are taken by {live} sandboxes and {starting} starts",
            audit.slots
        )
    });
    books.require("slots", audit.slots <= slots, || {
        format!("{} slots are taken of {slots}", audit.slots)
    });
    let mut idle = BTreeSet::new();
    for id in audit.pools.iter().flat_map(|pool| &pool.idle) {
        books.require("idle once", idle.insert(id), || {
            format!("instance {id} is idle twice")
        });
    }
    // Who has a seat in it may wait for a processor still.
    let turns = |function: &FunctionName| {
        let mut lanes = audit.lanes.iter();
        let lane = lanes.find(|lane| lane.function == *function);
        lane.is_some_and(|lane| lane.flows[1].waiting > 0)
    };
    let unused = |live: &&Live| live.running.is_empty() && !turns(&live.version.function);
    let kept = books
        .live
        .iter()
        .find(|(_, live)| live.superseded.is_some() && unused(live));
    let kept = kept.map(|(id, _)| *id);
    books.require("let go", kept.is_none(), || {
        format!("sandbox {kept:?} outlives the run in which its version was superseded")
    });
    let unheard = books
        .live
        .values()
        .flat_map(|live| &live.running)
        .find(|call| books.calls.get(call).is_some_and(|asked| asked.left))
        .copied();
    books.require("leaves", unheard.is_none(), || {
        format!("call {unheard:?} runs on, its caller has left")
    });
    let failed: Vec<_> = books
        .live
        .iter()
        .filter(|(_, live)| live.failed.is_some() && unused(live))
        .map(|(id, _)| *id)
        .collect();
    books.require("failed goes", failed.is_empty(), || {
        format!("sandboxes {failed:?} failed and are still there")
    });
}

/// Permits out = invocations in flight; each waits for a permit, waits for an instance, or runs.
fn callers(books: &mut Books, audit: &Audit) {
    let running = books.running(None);
    let leased = sum(&audit.pools, |pool| pool.leased);
    // Who has an instance may wait for a processor before it is run.
    let turn: usize = audit.lanes.iter().map(|lane| lane.flows[1].waiting).sum();
    books.require(
        "leases",
        (running..=running + turn).contains(&leased),
        || format!("{leased} callers have an instance, {running} run, {turn} wait for their turn"),
    );
    let busy = sum(&audit.pools, |pool| pool.busy);
    let in_use = books.live.values();
    let in_use = in_use.filter(|live| !live.running.is_empty()).count();
    books.require("leases", (in_use..=in_use + turn).contains(&busy), || {
        format!("{busy} instances are leased, {in_use} sandboxes run, {turn} callers wait for their turn")
    });
    let queued: usize = audit.lanes.iter().map(|lane| lane.queued).sum();
    let permits: usize = audit.lanes.iter().map(|lane| lane.permits).sum();
    for lane in &audit.lanes {
        let of = |pool: &&PoolAudit| pool.version.function == lane.function;
        let waiting: usize = audit.pools.iter().filter(of).map(|pool| pool.waiting).sum();
        let running = books.running(Some(&lane.function));
        let turn: usize = lane.flows.iter().map(|flow| flow.waiting).sum();
        let counted = turn + waiting + running;
        books.require("permits", lane.permits == counted, || {
            format!(
                "{}: {} permits out, {turn} wait for their turn, {waiting} for an instance, {running} run",
                lane.function, lane.permits
            )
        });
    }
    books.require("in flight", audit.in_flight == queued + permits, || {
        format!(
            "{} are in flight: {queued} queue, {permits} have a permit",
            audit.in_flight
        )
    });
}

fn lane_alone(books: &mut Books, lane: &LaneAudit, audit: &Audit) {
    let name = &lane.function;
    let before = books.last.as_ref().and_then(|last| {
        let found = last.lanes.iter().find(|before| before.function == *name);
        found.map(|before| (before.permits, before.queued))
    });
    let (permits, queued) = before.unwrap_or((0, 0));
    // A limit that was lowered takes no permit back, and a queue that was shortened sends nobody away.
    books.require("limit", lane.permits <= lane.limit.max(permits), || {
        format!("{name}: {} permits out of {}", lane.permits, lane.limit)
    });
    books.require("queue", lane.queued <= lane.max_queue.max(queued), || {
        format!("{name}: {} in a queue of {}", lane.queued, lane.max_queue)
    });
    books.require(
        "idle permit",
        lane.queued == 0 || lane.permits >= lane.limit,
        || {
            format!(
                "{name}: {} queue, {} of {} permits out",
                lane.queued, lane.permits, lane.limit
            )
        },
    );
    let most = books.most.entry(name.clone()).or_insert(0);
    let floors = audit
        .pools
        .iter()
        .filter(|pool| pool.version.function == *name);
    *most = (*most).max(lane.limit + floors.map(|pool| pool.floor).max().unwrap_or(0));
    let most = *most;
    for pool in audit
        .pools
        .iter()
        .filter(|pool| pool.version.function == *name)
    {
        let total = pool.idle.len() + pool.busy + pool.starting;
        books.require("herd", total <= most, || {
            format!(
                "{}: {total} instances and starts, {most} could ever be wanted",
                pool.version
            )
        });
    }
}

fn pool_alone(books: &mut Books, pool: &PoolAudit) {
    let key = &pool.version;
    books.require(
        "waits for nothing",
        pool.waiting == 0 || pool.idle.is_empty(),
        || {
            format!(
                "{key}: {} wait and {} are idle",
                pool.waiting,
                pool.idle.len()
            )
        },
    );
    books.require(
        "waits for nothing",
        pool.waiting == 0 || pool.starting + pool.busy > 0,
        || format!("{key}: {} wait, nothing is busy or starting", pool.waiting),
    );
    books.require(
        "closed",
        !pool.closed || (pool.idle.is_empty() && pool.waiting == 0),
        || {
            format!(
                "{key} is closed, {:?} are idle, {} wait",
                pool.idle, pool.waiting
            )
        },
    );
    let counts = [pool.idle.len(), pool.busy, pool.starting].map(|count| count as i64);
    // The gauges are the version's: while it is removed, or after a drain, an earlier pool may share them.
    if !pool.listed {
        books.replaced.insert(key.clone());
    }
    let alone = !books.replaced.contains(key);
    books.require("gauges", !alone || pool.gauges == counts, || {
        format!("{key}: the gauges say {:?}, it is {counts:?}", pool.gauges)
    });
}

/// A session is used for as long as a sandbox has it.
fn inference(books: &mut Books, (uses, computing): (usize, usize)) {
    let with_model = |version: &fnctl_core::Version| {
        version
            .config
            .env
            .get("model")
            .is_some_and(|model| model == "yes")
    };
    let sandboxes = books
        .live
        .values()
        .filter(|live| with_model(&live.version))
        .count();
    let (least, most) = (sandboxes, sandboxes + books.starting + 8);
    books.require("sessions", (least..=most).contains(&uses), || {
        format!("{uses} sessions are used by {sandboxes} sandboxes")
    });
    let running = books.running(None);
    books.require("sessions", computing <= running, || {
        format!("{computing} computes for {running} runs")
    });
}

/// Nobody waits beyond the deadline. After a jump of the clock the timers need one more turn.
fn bounds(books: &mut Books) {
    let now = tokio::time::Instant::now();
    let turn = books.last_at.replace(now);
    let late: Vec<_> = books
        .calls
        .iter()
        .filter(|(_, asked)| !asked.over && turn.is_some_and(|turn| asked.deadline + TICK < turn))
        .map(|(id, _)| *id)
        .collect();
    books.require("late", late.is_empty(), || {
        format!("calls {late:?} wait beyond their deadline")
    });
}

fn describe(audit: &Audit) -> String {
    let mut text = format!("  slots {} in flight {}", audit.slots, audit.in_flight);
    for lane in &audit.lanes {
        let LaneAudit {
            function,
            limit,
            permits,
            queued,
            ..
        } = lane;
        text += &format!(" | {function} {permits}/{limit} queued {queued}");
    }
    for pool in &audit.pools {
        let PoolAudit {
            version,
            idle,
            busy,
            starting,
            waiting,
            ..
        } = pool;
        let gone = if pool.listed { "" } else { " (unlisted)" };
        text += &format!(
            " | {version}{gone} idle {idle:?} busy {busy} starting {starting} waiting {waiting}"
        );
    }
    text
}
