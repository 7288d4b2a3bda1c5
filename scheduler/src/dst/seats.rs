//! The rules about instances that several callers share: who sits where, and that nobody stands beside a free seat.

use super::world::{Books, seats};
use crate::audit::Audit;
use std::collections::BTreeSet;

pub(super) fn settled(books: &mut Books, audit: &Audit) {
    sandboxes(books);
    leases(books, audit);
    free(books, audit);
}

/// No sandbox runs more calls than it has seats, none runs anything once it is dead, and each call runs in one place.
fn sandboxes(books: &mut Books) {
    let mut found = Vec::new();
    let mut running = BTreeSet::new();
    for (id, live) in &books.live {
        let (taken, most) = (live.running.len(), seats(&live.version));
        if taken > most {
            found.push(format!("sandbox {id} runs {taken} calls on {most} seats"));
        }
        if live.dead && taken > 0 {
            found.push(format!("sandbox {id} is dead, and runs {:?}", live.running));
        }
        for call in &live.running {
            if !running.insert(*call) {
                found.push(format!("call {call} has two seats"));
            }
        }
    }
    for text in found {
        books.broken("seats", text);
    }
}

/// The scheduler's leases are on seats that there are.
fn leases(books: &mut Books, audit: &Audit) {
    for pool in &audit.pools {
        let key = &pool.version;
        let most = pool.leases.values().max().copied().unwrap_or(0);
        books.require("seats", most <= pool.seats, || {
            format!(
                "{key}: an instance of {} seats has {most} leases",
                pool.seats
            )
        });
        let counted = (pool.leases.len(), pool.leases.values().sum::<usize>());
        books.require("seats", counted == (pool.busy, pool.leased), || {
            format!(
                "{key}: {counted:?} instances and leases are known, {} and {} are counted",
                pool.busy, pool.leased
            )
        });
    }
}

/// Nobody waits while an instance in use has a seat for them. A seat may be that of one who waits for a processor; and
/// with `max_uses` an instance lends no more than it may serve, whoever of those begins.
fn free(books: &mut Books, audit: &Audit) {
    for pool in audit.pools.iter().filter(|pool| pool.listed) {
        let key = &pool.version;
        let mut lanes = audit.lanes.iter();
        let lane = lanes.find(|lane| lane.function == key.function);
        let turns = lane.map_or(0, |lane| lane.flows[1].waiting);
        let mut limited = false;
        let of = books.live.values();
        let of = of.filter(|live| !live.candidate && live.version.key() == *key);
        let free: usize = of
            .inspect(|live| limited |= live.version.config.max_uses.is_some())
            .map(|live| live.free_seats())
            .sum();
        // While a function is removed a second pool of the version may stand beside the first.
        let alone = !books.replaced.contains(key);
        let holds = !alone || limited || pool.waiting == 0 || free <= turns;
        books.require("free seat", holds, || {
            format!("{key}: {} wait beside {free} free seats", pool.waiting)
        });
    }
}
