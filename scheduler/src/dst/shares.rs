//! The rules about what functions share: concurrency and who has reserved some of it, processors, memory, instances.

use super::world::{Books, World};
use crate::audit::{Audit, LaneAudit, PoolAudit};
use fnctl_core::ids::FunctionName;

/// What the host keeps of a sandbox besides its linear memory, as docs/scheduling.md says.
const OVERHEAD: u64 = 256 << 10;
const SHARED: usize = 0;
const RUNNING: usize = 1;

pub(super) fn settled(books: &mut Books, world: &World, audit: &Audit, computing: usize) {
    gates(books, audit, computing);
    reserved(books, audit, world.plan.max_concurrency);
    if world.plan.alike {
        turns(books, audit);
    }
    memory(books, audit);
    most(books, audit);
    let [least, most] = books.let_go;
    books.require("counted", (least..=most).contains(&audit.gone), || {
        format!(
            "{} idle instances were counted as let go, {least} to {most} were",
            audit.gone
        )
    });
}

fn before<'a>(books: &'a Books, lane: &LaneAudit) -> Option<&'a LaneAudit> {
    let last = books.last.as_ref()?;
    let mut lanes = last.lanes.iter();
    lanes.find(|before| before.function == lane.function)
}

fn gates(books: &mut Books, audit: &Audit, computing: usize) {
    for (which, gate) in audit.gates.iter().enumerate() {
        let name = ["what is shared", "the processors"][which];
        let sum = |of: fn(&LaneAudit, usize) -> usize| -> usize {
            audit.lanes.iter().map(|lane| of(lane, which)).sum()
        };
        let inside = sum(|lane, which| lane.flows[which].inside);
        let waiting = sum(|lane, which| lane.flows[which].waiting);
        let counts = (gate.inside, gate.waiting);
        books.require("passes", counts == (inside, waiting), || {
            format!("the gate of {name} counts {counts:?}, functions have {inside} and {waiting}")
        });
        books.require(
            "idle pass",
            gate.waiting == 0 || gate.inside >= gate.capacity,
            || {
                format!(
                    "{name}: {} wait, {} of {}",
                    gate.waiting, gate.inside, gate.capacity
                )
            },
        );
    }
    let inside = audit.gates[RUNNING].inside;
    books.require("passes", inside == computing, || {
        format!("{inside} have a processor, {computing} compute")
    });
    for lane in &audit.lanes {
        let flow = &lane.flows[RUNNING];
        books.require("turn", flow.waiting == 0 || flow.inside > 0, || {
            format!(
                "{}: {} wait for a processor, and none of its runs has one",
                lane.function, flow.waiting
            )
        });
    }
}

fn reserved(books: &mut Books, audit: &Audit, total: usize) {
    let gate = &audit.gates[SHARED];
    let (reserved, least) = (books.ledger.reserved(), total.div_ceil(10).max(1));
    books.require("reserved", reserved + least <= total, || {
        format!("{reserved} of {total} are reserved, {least} are to stay")
    });
    let left = total.saturating_sub(reserved).max(least);
    books.require("reserved", gate.capacity == left, || {
        format!(
            "{} are shared, {left} of {total} are not reserved",
            gate.capacity
        )
    });
    // A part that is reserved now takes no place back.
    let had = books
        .last
        .as_ref()
        .map_or(0, |last| last.gates[SHARED].inside);
    books.require("reserved", gate.inside <= gate.capacity.max(had), || {
        format!(
            "{} are inside of {} that are shared",
            gate.inside, gate.capacity
        )
    });
    let (mut least, mut most) = (0, 0);
    let has_lane = |name: &FunctionName| audit.lanes.iter().any(|lane| lane.function == *name);
    books.ledger.apart.retain(|name, _| has_lane(name));
    for lane in &audit.lanes {
        let apart = &mut books.ledger.apart;
        let apart = apart
            .entry(lane.function.clone())
            .or_insert(Some(lane.is_reserved));
        if lane.permits == 0 {
            *apart = Some(lane.is_reserved);
        } else if *apart != Some(lane.is_reserved) {
            *apart = None;
        }
        let apart = *apart;
        let flow = &lane.flows[SHARED];
        let waited = before(books, lane).map_or(0, |before| before.flows[SHARED].waiting);
        books.require(
            "reserved",
            !lane.is_reserved || flow.waiting <= waited,
            || {
                format!(
                    "{} has its own part and waits for what is shared",
                    lane.function
                )
            },
        );
        // Who was admitted before it had a part of its own keeps the place until the end.
        let admitted = lane.permits.saturating_sub(flow.waiting);
        most += if apart == Some(true) { 0 } else { admitted };
        least += if apart == Some(false) { admitted } else { 0 };
    }
    books.require("reserved", (least..=most).contains(&gate.inside), || {
        format!(
            "{} are inside, {least} to {most} have no part of their own",
            gate.inside
        )
    });
}

/// While a function waits for what is shared, nobody else has more than two turns to its one: all cost the same.
fn turns(books: &mut Books, audit: &Audit) {
    for lane in &audit.lanes {
        let name = &lane.function;
        let flow = &lane.flows[SHARED];
        let waits_on = before(books, lane).is_some_and(|before| {
            let before = &before.flows[SHARED];
            flow.waiting > 0 && before.waiting > 0 && before.given == flow.given
        });
        let mut turns = books.turns.remove(name).unwrap_or_default();
        if !waits_on {
            turns.clear();
        }
        for other in audit
            .lanes
            .iter()
            .filter(|other| waits_on && other.function != *name)
        {
            let given = |lane: &LaneAudit| lane.flows[SHARED].given;
            let had = before(books, other).map_or(0, given);
            let turns = turns.entry(other.function.clone()).or_default();
            *turns += given(other).saturating_sub(had);
            let turns = *turns;
            books.require("starved", turns <= 2, || {
                format!("{} had {turns} turns while {name} waited", other.function)
            });
        }
        books.turns.insert(name.clone(), turns);
    }
}

fn memory(books: &mut Books, audit: &Audit) {
    let (mut least, mut most) = (0, 0);
    for live in books.live.values().filter(|live| !live.candidate) {
        let declared = live.version.config.memory.bytes();
        least += OVERHEAD + live.memory.unwrap_or(0);
        most += OVERHEAD + live.memory.unwrap_or(declared);
    }
    for pool in &audit.pools {
        let starting = pool.starting as u64;
        least += starting * OVERHEAD;
        most += starting * (OVERHEAD + pool.memory);
    }
    let [instances, sessions] = audit.memory;
    books.require("memory", (least..=most).contains(&instances), || {
        format!("{instances} bytes are taken, {least} to {most} are there")
    });
    let told = books.sessions;
    books.require("memory", sessions == told, || {
        format!("sessions are taken for {sessions} bytes, they have {told}")
    });
}

/// No version has more instances than it may.
fn most(books: &mut Books, audit: &Audit) {
    for pool in &audit.pools {
        let (key, most) = (&pool.version, pool.max);
        let total = |pool: &PoolAudit| pool.idle.len() + pool.busy + pool.starting;
        let counted = total(pool);
        // While a version is removed a second pool of it may stand beside the first.
        let alone = !books.replaced.contains(key);
        let exist = books.live.values();
        let exist = exist.filter(|live| !live.candidate && live.version.key() == *key);
        let count = if alone {
            exist.count() + pool.starting
        } else {
            counted
        };
        books.require("max_instances", counted <= most && count <= most, || {
            format!("{key} has {counted} instances, {count} of it exist, {most} may")
        });
    }
}
