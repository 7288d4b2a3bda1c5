//! Plans in which functions of dear and of cheap runs wait for the same places all the time, and the rule about them:
//! each gets the same processor time, however much of it one run takes.
//!
//! The rule is that of deficit round robin (Shreedhar and Varghese, SIGCOMM 1995): of two flows that both have somebody
//! waiting, neither is ahead of the other by more than what each may have saved, less than an entry and a quantum.

use super::plan::{Call, Draws, End, Event, Fate, Life, Plan, Reads, Run, Target, Trouble, What};
use super::world::{Books, World};
use crate::audit::{Audit, LaneAudit};
use crate::policy::Spec;
use fnctl_core::Period;
use fnctl_core::config::FunctionConfig;
use std::num::NonZeroU32;
use std::time::Duration;

/// The round's quantum, in milliseconds.
const QUANTUM: u64 = 1;
/// When all have been called once, so that what they cost is known.
const HERD: u64 = 8_000;

/// Milliseconds that two functions were served since both have waited.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Share([u64; 2]);

/// Every hundredth seed or so is such a plan.
pub(super) fn plan(seed: u64) -> Option<Plan> {
    let mut draws = Draws::keyed(seed, 77, 0);
    draws.percent(1).then(|| make(seed, &mut draws))
}

fn make(seed: u64, draws: &mut Draws) -> Plan {
    let functions = draws.among(2, 3) as usize;
    let costs: Vec<u64> = (0..functions)
        .map(|function| match function {
            0 => draws.among(1, 4),
            _ => draws.pick(&[3, 10, 25, 60]),
        })
        .collect();
    let seats = NonZeroU32::new(draws.pick(&[1, 1, 4])).unwrap();
    let mut events = Vec::new();
    let mut id = 0;
    for (function, cost) in costs.iter().enumerate() {
        let mut config = FunctionConfig {
            timeout: Period::secs(300),
            queue_timeout: Period::secs(200),
            concurrency: NonZeroU32::new(200).unwrap(),
            keep_alive: Period::secs(30),
            instance_concurrency: seats,
            ..FunctionConfig::default()
        };
        config.env.insert("model".into(), "yes".into());
        events.push(Event {
            at: 0,
            what: What::Deploy {
                function,
                config: Box::new(config),
            },
        });
        // As much of each, so that they wait for as long.
        let herd = (300 / cost).clamp(10, 150);
        for number in 0..=herd {
            id += 1;
            let at = match number {
                0 => HERD / 2,
                _ => HERD + draws.among(0, 30),
            };
            let call = call(id, function, *cost);
            let what = What::Call(call);
            events.push(Event { at, what });
        }
    }
    events.sort_by_key(|event| event.at);
    Plan {
        seed,
        slots: 16,
        units: 100,
        memory: 0,
        max_concurrency: draws.among(1, 4) as usize,
        max_running: draws.pick(&[2, 16]),
        policy: Spec::Fixed(None),
        contest: Some(costs),
        alike: false,
        opens: 0,
        trouble: Trouble::default(),
        functions,
        lives: vec![Life {
            events,
            reap_every: Duration::from_millis(700),
            end: End::Quiet,
        }],
    }
}

fn call(id: u64, function: usize, cost: u64) -> Call {
    Call {
        id,
        function,
        target: Target::Live,
        head: false,
        leaves: None,
        reads: Reads::All,
        run: Run {
            unbegun: 0,
            before: 0,
            computes: vec![cost],
            chunks: 0,
            gap: 0,
            fate: Fate::Completes,
        },
    }
}

pub(super) fn settled(books: &mut Books, world: &World, audit: &Audit) {
    let Some(costs) = &world.plan.contest else {
        return;
    };
    let Some(last) = books.last.take() else {
        return;
    };
    let lane = |audit: &Audit, function: usize| -> Option<LaneAudit> {
        let name = world.names.get(function);
        let mut lanes = audit.lanes.iter();
        lanes.find(|lane| Some(&lane.function) == name).cloned()
    };
    let shared = 0;
    for first in 0..costs.len() {
        for second in first + 1..costs.len() {
            let pair = [first, second];
            let mut waits = books.now() > Duration::from_millis(HERD);
            let mut served = books.shares.get(&pair).copied().unwrap_or_default();
            for (at, function) in pair.into_iter().enumerate() {
                let (Some(before), Some(after)) = (lane(&last, function), lane(audit, function))
                else {
                    waits = false;
                    continue;
                };
                let (before, after) = (&before.flows[shared], &after.flows[shared]);
                let given = after.given.saturating_sub(before.given);
                // One of those who waited waits still, so that there was somebody all the time.
                waits &= before.waiting > given && after.waiting > 0;
                served.0[at] += given as u64 * costs[function];
            }
            if !waits {
                let had = books.shares.remove(&pair).unwrap_or_default().0;
                if had.iter().all(|had| *had > 60) {
                    books.log(format!("{pair:?} waited together, and had {had:?} ms"));
                }
                continue;
            }
            books.shares.insert(pair, served);
            let ahead = served.0[0].abs_diff(served.0[1]);
            let most = costs[first] + costs[second] + 2 * QUANTUM;
            books.require("share", ahead <= most, || {
                format!(
                    "{pair:?} of {costs:?} ms a run had {:?} ms while both waited",
                    served.0
                )
            });
        }
    }
    books.last = Some(last);
}
