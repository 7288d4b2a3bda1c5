//! What is left once nobody calls, no fault comes any more, and every keep-alive has passed: what is provisioned, and the
//! minimum of what was called.

use super::kept;
use super::store::{FakeStore, names};
use super::world::World;
use crate::audit::Audit;
use fnctl_core::version::Selector;
use std::collections::BTreeSet;

pub(super) fn quiet(world: &World, audit: &Audit, store: &FakeStore, tracked: &BTreeSet<String>) {
    let now = world.time_of_day();
    let mut books = world.books.lock();
    books.require("quiet", audit.in_flight == 0, || {
        format!("{} in flight after everybody has gone", audit.in_flight)
    });
    let used = (audit.gates[0].inside, audit.gates[1].inside);
    books.require("quiet", used == (0, 0), || {
        format!("{used:?} places of the node are taken after everybody has gone")
    });
    for lane in &audit.lanes {
        let name = &lane.function;
        let Some(function) = store.function(name) else {
            books.broken("let go", format!("{name} was removed and has a lane"));
            continue;
        };
        let live = function.resolve(&Selector::Live, 99);
        let limit = live.map_or(0, |version| kept::limit(&version.config));
        let split = function.live().is_some_and(|alias| alias.split.is_some());
        books.require("limit", split || lane.limit == limit, || {
            format!(
                "{name} has a limit of {}, its live version says {limit}",
                lane.limit
            )
        });
    }
    let existing = store.versions();
    let (mut wanted, mut units, mut bytes) = (0, 0, books.sessions);
    let mut for_ever = false;
    for function in world.names.iter().filter_map(|name| store.function(name)) {
        let live = function
            .live()
            .and_then(|alias| function.versions.get(&alias.version));
        let stays = live.is_none_or(|live| kept::is_kept_for_ever(world, &live.config));
        for_ever |= stays;
        for version in function.versions.values() {
            let key = version.key();
            let is_live = live.is_some_and(|live| live.number == version.number);
            let [provisioned, minimum] = match is_live {
                true => kept::asked(&version.config, now),
                false => [0; 2],
            };
            let called = books.ledger.is_live(&key);
            books.require("live", called.is_some() == is_live, || {
                format!("{key} is live in one book only")
            });
            let pool = audit
                .pools
                .iter()
                .find(|pool| pool.listed && pool.version == key);
            let (has, says, floor) = pool.map_or((0, 0, 0), |pool| {
                (pool.idle.len(), pool.provisioned, pool.floor)
            });
            books.require("quiet", stays || has <= floor, || {
                format!("{key} has {has} idle instances, {floor} are to be kept")
            });
            let is_named = names(&function, version.number);
            books.require("quiet", is_named || floor == 0, || {
                format!("{key} keeps {floor}, and no alias names it")
            });
            books.require("provisioned", says == provisioned, || {
                format!("{key} keeps {says} provisioned, {provisioned} are asked for")
            });
            let least = provisioned.max(if called == Some(true) { minimum } else { 0 });
            books.require("provisioned", floor >= least, || {
                format!("{key} keeps {floor}, {least} are asked for")
            });
            wanted += floor;
            let each = version.config.env.get("units");
            units += floor * each.map_or(1, |units| units.parse().unwrap());
            bytes += floor as u64 * (version.config.memory.bytes() + (256 << 10));
        }
    }
    let fits = wanted <= world.plan.slots
        && units <= world.plan.units
        && (world.plan.memory == 0 || bytes <= world.plan.memory);
    let live = books.instances();
    books.require("provisioned", !fits || for_ever || live == wanted, || {
        format!("{live} instances exist, {wanted} are to be kept")
    });
    books.require("quiet", for_ever || live <= wanted, || {
        format!("{live} instances exist, {wanted} are to be kept")
    });
    for pool in audit
        .pools
        .iter()
        .filter(|pool| !existing.contains(&pool.version))
    {
        books.broken(
            "let go",
            format!("{} was removed and has a pool", pool.version),
        );
    }
    for key in tracked {
        let known = existing.iter().any(|version| version.to_string() == *key);
        books.require("let go", known, || {
            format!("{key} was removed and has metrics")
        });
    }
}
