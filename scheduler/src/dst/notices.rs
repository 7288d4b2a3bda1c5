//! The rules are worth something: each of these breaks one behind the scheduler's back, and the harness must say which.

use super::drive::{Platform, Sabotage, run};
use super::plan::{End, Event, Life, Plan, Trouble, What};
use crate::admission::Verdict;
use crate::version_pool::{Checkout, VersionPool};
use fnctl_core::FunctionConfig;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Breaks something in many plans; in each where it could, the first rule found broken is `rule`.
fn noticed(rule: &'static str, break_it: impl Fn(&Platform) + Send + Sync + 'static) {
    let sabotage: Sabotage = Arc::new(break_it);
    let mut found = BTreeSet::new();
    for seed in 0..80 {
        let outcome = run(&Arc::new(Plan::of(seed)), false, Some(&sabotage));
        found.extend(outcome.broken.first().map(|broken| broken.rule));
    }
    assert_eq!(found, BTreeSet::from([rule]));
}

fn pools(platform: &Platform) -> Vec<Arc<VersionPool>> {
    let lanes = platform.scheduler.inner.lanes();
    lanes.iter().flat_map(|lane| lane.pools()).collect()
}

#[test]
fn a_permit_that_is_never_given_back() {
    noticed("permits", |platform| {
        for lane in platform.scheduler.inner.lanes() {
            let permit = lane.limit.admit(Instant::now(), |_| Verdict::Wait);
            if let Ok(permit) = permit {
                std::mem::forget(permit);
            }
        }
    });
}

#[test]
fn a_start_that_is_counted_and_not_made() {
    noticed("starts", |platform| {
        for pool in pools(platform) {
            let state = &mut pool.books.lock().state;
            let more = state.total() + 1;
            state.set_provisioned(more);
            state.missing_provisioned();
        }
    });
}

#[test]
fn an_instance_that_is_leased_to_nobody() {
    noticed("leases", |platform| {
        for pool in pools(platform) {
            let is_idle = !pool.books.lock().state.idle().is_empty();
            if is_idle && let Checkout::Lease(lease) = pool.checkout(0) {
                std::mem::forget(lease);
            }
        }
    });
}

#[test]
fn a_sandbox_that_is_dropped_under_a_lock() {
    noticed("locks", |platform| {
        for pool in pools(platform) {
            let evicted = pool.evict();
            let _held = pool.books.lock();
            drop(evicted);
        }
    });
}

#[test]
fn a_fake_that_lies_about_a_sandbox() {
    noticed("instances", |platform| {
        for pool in pools(platform) {
            platform.world.books.lock().made(&pool.version, 0, u64::MAX);
        }
    });
}

#[test]
fn a_panic_that_nobody_planned() {
    noticed("panics", |platform| {
        let tasks = &platform.scheduler.inner.tasks;
        tasks.spawn("unplanned", async {
            std::panic::resume_unwind(Box::new("quietly"))
        });
    });
}

#[test]
fn a_pass_that_is_never_given_back() {
    noticed("passes", |platform| {
        for lane in platform.scheduler.inner.lanes() {
            platform
                .scheduler
                .inner
                .node
                .running
                .force(&lane.flows.running);
        }
    });
}

#[test]
fn a_reservation_that_nobody_deployed() {
    noticed("reserved", |platform| {
        let node = &platform.scheduler.inner.node;
        node.reserve(&"nobody".parse().unwrap(), Some(1));
    });
}

#[test]
fn memory_that_nobody_has() {
    noticed("memory", |platform| {
        let budget = &platform.scheduler.inner.node.memory;
        std::mem::forget(budget.take(1));
    });
}

#[test]
fn an_eviction_that_is_counted_and_not_made() {
    noticed("counted", |platform| {
        if let Some(pool) = pools(platform).first() {
            pool.metrics.evicted(1);
        }
    });
}

#[test]
fn two_deploys_at_once_do_not_reserve_too_much_together() {
    let mut plan = Plan::of(0);
    plan.trouble = Trouble::default();
    (plan.functions, plan.max_concurrency, plan.units) = (2, 6, 100);
    let deploy = |function| {
        let config = FunctionConfig {
            reserved_concurrency: Some(3),
            ..FunctionConfig::default()
        };
        let config = Box::new(config);
        let what = What::Deploy { function, config };
        Event { at: 0, what }
    };
    plan.lives = vec![Life {
        events: vec![deploy(0), deploy(1)],
        reap_every: Duration::from_millis(250),
        end: End::Quiet,
    }];
    let outcome = run(&Arc::new(plan), true, None);
    assert_eq!(outcome.broken, []);
    let lines = outcome.lines.iter();
    let candidates = lines.filter(|line| line.contains(":0 begins"));
    assert_eq!(candidates.count(), 1, "the second is refused");
}

/// Whatever a rerun would do in another way shows in the trace's hash.
#[test]
fn an_event_that_comes_in_another_order() {
    let plan = Arc::new(Plan::of(3));
    let sabotage = |word: &'static str| -> Sabotage {
        Arc::new(move |platform| platform.world.log(|| word.to_owned()))
    };
    let hash = |word| run(&plan, false, Some(&sabotage(word))).hash;
    assert_eq!(hash("one way"), hash("one way"));
    assert_ne!(hash("one way"), hash("another way"));
}
