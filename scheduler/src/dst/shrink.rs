//! The smallest plan that still breaks the same rule: events left out, and what is left made plainer.

use super::drive::{Outcome, run};
use super::plan::{End, Plan, What};
use crate::policy::Spec;
use fnctl_core::FunctionConfig;
use std::sync::Arc;

/// A part of a node that may be as usual.
type Plainer = fn(&mut Plan);
/// A part of a configuration that may be as usual.
type PlainerConfig = fn(&mut FunctionConfig);

const NODE: [Plainer; 9] = [
    |plan| plan.memory = 0,
    |plan| plan.max_concurrency = 1_000,
    |plan| plan.max_running = 16,
    |plan| plan.slots = 100,
    |plan| plan.units = 100,
    |plan| plan.policy = Spec::Fixed(None),
    |plan| (plan.trouble.start_fails, plan.trouble.start_hangs) = (0, 0),
    |plan| plan.trouble.start_panics = 0,
    |plan| {
        plan.lives.iter_mut().for_each(|life| life.end = End::Quiet);
    },
];

const CONFIGS: [PlainerConfig; 10] = [
    |config| config.schedule.clear(),
    |config| config.provisioned = 0,
    |config| config.min_instances = 0,
    |config| config.max_instances = None,
    |config| config.target_concurrency = None,
    |config| config.instance_concurrency = std::num::NonZeroU32::MIN,
    |config| config.reserved_concurrency = None,
    |config| config.keep_alive_policy = None,
    |config| config.max_uses = None,
    |config| config.isolation = fnctl_core::Isolation::Instance,
];

/// Leaves out whatever the same rule breaks without: halves first, single events last.
pub(super) fn shrink(plan: &Arc<Plan>, outcome: &Outcome) -> Arc<Plan> {
    let rule = outcome.broken.first().map(|broken| broken.rule);
    let mut smallest = plan.clone();
    let take = |smallest: &mut Arc<Plan>, smaller: Plan| {
        let smaller = Arc::new(smaller);
        let broken = run(&smaller, false, None).broken;
        let same = broken.first().map(|broken| broken.rule) == rule;
        if same {
            *smallest = smaller;
        }
        same
    };
    for life in (0..plan.lives.len()).rev() {
        let mut size = smallest.lives[life].events.len().div_ceil(2);
        while size > 0 {
            let mut from = 0;
            while from < smallest.lives[life].events.len() {
                let mut smaller = smallest.as_ref().clone();
                let events = &mut smaller.lives[life].events;
                let to = (from + size).min(events.len());
                events.drain(from..to);
                if !take(&mut smallest, smaller) {
                    from += size;
                }
            }
            size /= 2;
        }
    }
    for plainer in NODE {
        let mut smaller = smallest.as_ref().clone();
        plainer(&mut smaller);
        take(&mut smallest, smaller);
    }
    for plainer in CONFIGS {
        let mut smaller = smallest.as_ref().clone();
        for event in smaller.lives.iter_mut().flat_map(|life| &mut life.events) {
            if let What::Deploy { config, .. } = &mut event.what {
                plainer(config);
            }
        }
        take(&mut smallest, smaller);
    }
    smallest
}
