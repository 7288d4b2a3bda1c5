//! The best plan for what is at stake on each rung of the ladder.
//!
//! While a function is idle, any of these may be in memory: its sandbox, which stands on both others, its sessions and
//! template without it, one of the two, or nothing. Keeping costs what each takes, a call costs what it finds missing.
//! All time is cut into stretches of one hazard, and the plan is the sequence of states that yields most. A state may be
//! left for a smaller one at any time; to a larger one there is only the way over a start ahead, which makes everything.

use super::Params;
use super::hazard::{BINS, edges};
use crate::policy::plan::{LowerRung, Plan};
use crate::policy::worth::{Rung, Worth};
use serde::{Deserialize, Serialize};

/// What of a function is in memory, the least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
enum State {
    #[default]
    Nothing,
    Template,
    Session,
    Both,
    Sandbox,
}

const STATES: usize = 5;

impl State {
    const ALL: [Self; STATES] = [
        Self::Nothing,
        Self::Template,
        Self::Session,
        Self::Both,
        Self::Sandbox,
    ];

    const fn has(self, rung: LowerRung) -> bool {
        match rung {
            LowerRung::Session => matches!(self, Self::Session | Self::Both | Self::Sandbox),
            LowerRung::Template => matches!(self, Self::Template | Self::Both | Self::Sandbox),
        }
    }

    /// Whether it can become `other` without making anything.
    const fn contains(self, other: Self) -> bool {
        matches!(
            (self, other),
            (Self::Sandbox, _)
                | (_, Self::Nothing)
                | (Self::Both, Self::Both | Self::Template | Self::Session)
                | (Self::Session, Self::Session)
                | (Self::Template, Self::Template)
        )
    }
}

/// What is at stake, in cold starts of the function: by state what a call costs that meets it, and what a second of it
/// costs.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct Stakes {
    missing: [f32; STATES],
    price: [f32; STATES],
    /// Whether the rungs below the sandbox are decided about.
    lower: bool,
}

impl Stakes {
    /// Of the only instance: without it nobody uses the rungs below.
    pub(super) fn of_all(worth: &Worth, params: &Params, typical: &Rung) -> Self {
        let is_told_apart = !worth.session.is_nothing() || !worth.template.is_nothing();
        let lower = is_told_apart && !params.no_rungs;
        if !lower {
            return Self::of_one(worth.cold(), worth.sandbox.bytes, params, typical);
        }
        let (sandbox, session, template) = (worth.sandbox, worth.session, worth.template);
        let all = worth.cold().max(1e-6);
        let weight = weight(all, params, typical);
        let mut stakes = Self {
            lower,
            ..Self::default()
        };
        let each = stakes.missing.iter_mut().zip(&mut stakes.price);
        for (state, (missing, price)) in State::ALL.into_iter().zip(each) {
            let absent = |rung, cost: Rung| if state.has(rung) { 0.0 } else { cost.cold };
            let present = |rung, cost: Rung| if state.has(rung) { cost.bytes } else { 0.0 };
            let (mut bytes, mut cold) = (
                present(LowerRung::Session, session) + present(LowerRung::Template, template),
                // Models load while code does.
                absent(LowerRung::Session, session).max(absent(LowerRung::Template, template))
                    + sandbox.cold,
            );
            if state == State::Sandbox {
                (bytes, cold) = (bytes + sandbox.bytes, 0.0);
            }
            *missing = match state {
                State::Nothing => 1.0,
                State::Sandbox => 0.0,
                _ => (cold / all).clamp(0.0, 1.0).powf(params.cost),
            };
            *price = size(bytes, worth.bytes(), params, typical) / weight;
        }
        stakes
    }

    /// Of one more instance, while another holds the rungs below.
    pub(super) fn of_one_more(worth: &Worth, params: &Params, typical: &Rung) -> Self {
        let sandbox = worth.sandbox;
        Self::of_one(sandbox.cold, sandbox.bytes, params, typical)
    }

    fn of_one(cold: f32, bytes: f32, params: &Params, typical: &Rung) -> Self {
        Self::of_sandbox(size(bytes, bytes, params, typical) / weight(cold, params, typical))
    }

    /// Nothing but the sandbox, whose second costs this much.
    fn of_sandbox(price: f32) -> Self {
        Self {
            missing: [1.0, 1.0, 1.0, 1.0, 0.0],
            price: [0.0, 0.0, 0.0, 0.0, price],
            lower: false,
        }
    }

    fn missing(&self, state: State) -> f32 {
        self.missing.get(state as usize).copied().unwrap_or(1.0)
    }

    fn price(&self, state: State) -> f32 {
        self.price.get(state as usize).copied().unwrap_or_default()
    }

    /// Whether the rungs below the sandbox are decided about.
    pub(super) fn is_about_all_rungs(&self) -> bool {
        self.lower
    }

    /// The price of a second with everything in memory.
    pub(super) fn full_price(&self) -> f32 {
        self.price(State::Sandbox)
    }

    /// What a plan costs in an idle time that lasts so long: the call at its end, and what was kept until then.
    pub(super) fn of_idle_time(&self, plan: &Plan, idle: f32) -> f32 {
        let has = |rung| self.lower && plan.covers_lower(rung, idle);
        let state = match (
            plan.covers(idle),
            has(LowerRung::Session),
            has(LowerRung::Template),
        ) {
            (true, ..) => State::Sandbox,
            (_, true, true) => State::Both,
            (_, true, false) => State::Session,
            (_, false, true) => State::Template,
            (_, false, false) => State::Nothing,
        };
        let lower = [
            (LowerRung::Session, State::Session),
            (LowerRung::Template, State::Template),
        ];
        let kept: f32 = lower
            .into_iter()
            .map(|(rung, alone)| self.price(alone) * plan.lower_warm_until(rung, idle))
            .sum();
        let sandbox = self.price(State::Sandbox) - self.price(State::Both);
        self.missing(state) + kept + sandbox * plan.warm_until(idle)
    }

    /// The states that differ from each other.
    const fn states(&self) -> &'static [State] {
        if self.lower {
            &State::ALL
        } else {
            &[State::Nothing, State::Sandbox]
        }
    }
}

/// For how many seconds a function with this cold start may wait for a call with what a typical one takes.
fn weight(cold: f32, params: &Params, typical: &Rung) -> f32 {
    #[allow(clippy::cast_possible_truncation, reason = "not exact")]
    let patience = params.patience.clamp(1e-3, 1e9) as f32;
    patience * (cold / typical.cold).max(1e-6).powf(params.cost)
}

/// So many of a function's bytes, compared with what a typical function takes.
fn size(bytes: f32, all: f32, params: &Params, typical: &Rung) -> f32 {
    if params.no_cost {
        bytes / all.max(1.0)
    } else {
        bytes / typical.bytes
    }
}

/// What starts ahead cost, in cold starts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Starts {
    /// When a timer is due.
    pub(super) due: f32,
    /// When idle times alone say so: whoever believes every dip of an estimate lets go too often.
    pub(super) guessed: f32,
}

/// A stretch of time with one hazard.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Stretch {
    from: f32,
    to: f32,
    hazard: f32,
    /// The part of idle times that are not over when it begins.
    begins: f32,
    /// The part that ends in it.
    called: f32,
    /// Seconds of it, by the part of idle times that are not over.
    seconds: f32,
    /// Cost of a start ahead for it, in cold starts.
    start_price: f32,
    /// The best state in it, by the state before it.
    next: [State; STATES],
}

/// Most expected firings: two of each period.
pub(super) const FIRINGS: usize = 6;
/// Most stretches: each firing cuts twice.
const STRETCHES: usize = BINS + 2 * FIRINGS;

/// All time, cut into stretches. On the stack, as plans are made at every invocation.
struct Stretches {
    all: [Stretch; STRETCHES],
    count: usize,
}

impl Stretches {
    /// Cuts the bins where expected firings begin and end, and adds their hazards.
    fn new(hazards: &[f32; BINS], firings: &[(f32, f32, f32)], starts: Starts) -> Self {
        let mut cuts = [f32::INFINITY; 2 * FIRINGS];
        for (cut, at) in cuts
            .iter_mut()
            .zip(firings.iter().flat_map(|(from, to, _)| [*from, *to]))
        {
            *cut = at;
        }
        cuts.sort_unstable_by(f32::total_cmp);
        let mut stretches = Self {
            all: [Stretch::default(); STRETCHES],
            count: 0,
        };
        let mut cuts = cuts.into_iter().peekable();
        for (hazard, edges) in hazards.iter().zip(edges().windows(2)) {
            let [start, end] = edges else { continue };
            let mut from = *start;
            while from < *end {
                while cuts.next_if(|cut| *cut <= from).is_some() {}
                let to = cuts.peek().map_or(*end, |cut| cut.min(*end));
                let middle = (from + to) / 2.0;
                let fires: f32 = firings
                    .iter()
                    .filter(|(begin, finish, _)| *begin <= middle && middle < *finish)
                    .map(|(_, _, rate)| rate)
                    .sum();
                if let Some(stretch) = stretches.all.get_mut(stretches.count) {
                    stretch.from = from;
                    stretch.to = to;
                    stretch.hazard = hazard + fires;
                    stretch.start_price = if fires > 0.0 {
                        starts.due
                    } else {
                        starts.guessed
                    };
                    stretches.count += 1;
                }
                from = to;
            }
        }
        stretches
    }

    /// The best plan: for each stretch a state, so that the expected cost of calls and of what is kept for them is the
    /// least. Backwards over the stretches, as what follows does not depend on how one got there.
    fn best(mut self, stakes: &Stakes) -> Plan {
        let stretches = self.all.get_mut(..self.count).unwrap_or_default();
        let mut idle = 1.0f32;
        for stretch in &mut *stretches {
            let length = stretch.to - stretch.from;
            let load = stretch.hazard * length;
            // 1 - exp(-load), from a rational approximant that is exact to second order and never leaves 0 to 1.
            let grown = load + load * load / 2.0;
            let called = idle * grown / (1.0 + grown);
            stretch.seconds = if load > 1e-9 {
                called / stretch.hazard
            } else {
                idle * length
            };
            stretch.begins = idle;
            stretch.called = called;
            idle -= called;
        }
        let states = stakes.states();
        // What the rest yields, by the state that one comes in, compared with nothing in memory for ever.
        let mut later = [0.0f32; STATES];
        for stretch in stretches.iter_mut().rev() {
            let mut yields = [0.0f32; STATES];
            for state in states {
                let at = *state as usize;
                let rest = later.get(at).copied().unwrap_or_default();
                if let Some(slot) = yields.get_mut(at) {
                    *slot = stretch.called * (1.0 - stakes.missing(*state))
                        - stakes.price(*state) * stretch.seconds
                        + rest;
                }
            }
            for before in states {
                let mut best = (f32::NEG_INFINITY, State::Nothing);
                for state in states {
                    let here = yields.get(*state as usize).copied().unwrap_or_default();
                    let value = if before.contains(*state) {
                        here
                    } else if *state == State::Sandbox {
                        here - stretch.start_price * stretch.begins * stakes.missing(*before)
                    } else {
                        continue;
                    };
                    // Of equals the one that holds least.
                    if value > best.0 {
                        best = (value, *state);
                    }
                }
                let at = *before as usize;
                if let (Some(later), Some(next)) = (later.get_mut(at), stretch.next.get_mut(at)) {
                    (*later, *next) = best;
                }
            }
        }
        plan(stretches, stakes.lower)
    }
}

/// The windows of each rung on the best way through the stretches.
fn plan(stretches: &[Stretch], lower: bool) -> Plan {
    let mut plan = if lower {
        Plan::of_all_rungs()
    } else {
        Plan::default()
    };
    let mut state = State::Sandbox;
    for stretch in stretches {
        state = stretch
            .next
            .get(state as usize)
            .copied()
            .unwrap_or_default();
        let (from, to) = (stretch.from, stretch.to);
        if state == State::Sandbox {
            plan.push(from, to);
        }
        for rung in [LowerRung::Session, LowerRung::Template] {
            if state.has(rung) {
                plan.push_lower(rung, from, to);
            }
        }
    }
    plan
}

/// The best plan for these hazards and firings.
pub(super) fn best(
    hazards: &[f32; BINS],
    firings: &[(f32, f32, f32)],
    stakes: &Stakes,
    starts: Starts,
) -> Plan {
    Stretches::new(hazards, firings, starts).best(stakes)
}

#[cfg(test)]
mod tests {
    use super::super::hazard::bin;
    use super::*;
    use fnctl_core::ladder::{LowerRungs, RungCost};
    use std::time::Duration;

    const STARTS: Starts = Starts {
        due: 0.05,
        guessed: 0.05,
    };

    fn of_sandbox(
        hazards: &[f32; BINS],
        firings: &[(f32, f32, f32)],
        price: f32,
        starts: Starts,
    ) -> Plan {
        best(hazards, firings, &Stakes::of_sandbox(price), starts)
    }

    #[test]
    fn a_constant_hazard_above_the_price_is_kept_and_below_it_is_not() {
        let plan = |hazard: f32| of_sandbox(&[hazard; BINS], &[], 1e-3, STARTS);
        assert_eq!(plan(2e-3).windows().len(), 1);
        assert!(plan(2e-3).keep().as_secs() > 100_000);
        assert_eq!(plan(5e-4), Plan::default());
    }

    #[test]
    fn a_firing_is_prepared_for_and_the_time_before_it_is_not_paid() {
        let firings = [(895.0, 905.0, 0.3)];
        let plan = of_sandbox(&[1e-5; BINS], &firings, 1e-3, STARTS);
        let [window] = plan.windows() else {
            panic!("{plan:?}")
        };
        assert!(
            (window.from - 895.0).abs() < 1.0 && (window.to - 905.0).abs() < 1.0,
            "{window:?}"
        );
    }

    #[test]
    fn a_gap_that_costs_less_than_a_start_is_bridged() {
        let mut hazards = [1e-6; BINS];
        hazards[bin(1.0)] = 1.0;
        hazards[bin(4.0)] = 1.0;
        let bridged = of_sandbox(&hazards, &[], 1e-3, STARTS);
        assert_eq!(bridged.windows().len(), 1, "{bridged:?}");
        let split = of_sandbox(
            &hazards,
            &[],
            0.2,
            Starts {
                due: 0.0001,
                guessed: 0.0001,
            },
        );
        assert_eq!(split.windows().len(), 2, "{split:?}");
    }

    fn rung(millis: u64, mib: u64) -> RungCost {
        RungCost {
            took: Duration::from_millis(millis),
            bytes: mib << 20,
        }
    }

    fn falling() -> [f32; BINS] {
        let mut hazards = [0.0; BINS];
        for (hazard, edges) in hazards.iter_mut().zip(edges().windows(2)) {
            *hazard = 0.5 / edges[1];
        }
        hazards
    }

    /// Ages at which each rung goes: sandbox, session, template.
    fn ages(worth: &Worth, params: &Params) -> [f32; 3] {
        let typical = Rung {
            cold: worth.cold(),
            bytes: worth.bytes(),
        };
        let plan = best(
            &falling(),
            &[],
            &Stakes::of_all(worth, params, &typical),
            STARTS,
        );
        let sandbox = plan.keep().as_secs_f32();
        let until = |rung| plan.lower_until(rung, sandbox).unwrap();
        [
            sandbox,
            until(LowerRung::Session),
            until(LowerRung::Template),
        ]
    }

    #[test]
    fn each_rung_is_kept_for_what_it_saves_and_takes() {
        let in_proportion = Params {
            cost: 1.0,
            ..Params::default()
        };
        let sandbox = Worth::of(Duration::from_millis(10), 32 << 20);
        let dear_session = sandbox.upon(&LowerRungs {
            session: rung(400, 64),
            template: rung(2, 16),
        });
        let [sandbox_goes, session_goes, template_goes] = ages(&dear_session, &in_proportion);
        assert!(
            session_goes > 4.0 * sandbox_goes && session_goes > 4.0 * template_goes,
            "{sandbox_goes} {session_goes} {template_goes}"
        );
        // The same model in ten times the memory goes earlier.
        let large = sandbox.upon(&LowerRungs {
            session: rung(400, 640),
            template: rung(2, 16),
        });
        let typical = Rung {
            cold: dear_session.cold(),
            bytes: dear_session.bytes(),
        };
        let plan = |worth: &Worth| {
            let stakes = Stakes::of_all(worth, &in_proportion, &typical);
            best(&falling(), &[], &stakes, STARTS)
        };
        let until = |plan: &Plan| plan.lower_until(LowerRung::Session, plan.keep().as_secs_f32());
        assert!(until(&plan(&large)) < until(&plan(&dear_session)));
    }

    #[test]
    fn without_costs_rungs_are_still_not_for_nothing() {
        let alike = Params {
            cost: 0.0,
            no_cost: true,
            ..Params::default()
        };
        let worth = Worth::of(Duration::from_millis(10), 32 << 20).upon(&LowerRungs {
            session: rung(400, 64),
            template: rung(2, 16),
        });
        let [sandbox, session, template] = ages(&worth, &alike);
        // A call finds everything or nothing, as far as this knows.
        assert_eq!([session, template], [sandbox; 2]);
        assert!(sandbox > 60.0 && sandbox < 3600.0, "{sandbox}");
    }

    #[test]
    fn a_session_outlives_the_gap_before_a_firing_where_that_is_cheaper_than_loading_it_again() {
        let params = Params::default();
        let worth = Worth::of(Duration::from_millis(5), 256 << 20).upon(&LowerRungs {
            session: rung(2000, 4),
            template: rung(1, 1),
        });
        let typical = Rung {
            cold: 0.5,
            bytes: 268_435_456.0,
        };
        let stakes = Stakes::of_all(&worth, &params, &typical);
        let plan = best(&[1e-5; BINS], &[(895.0, 905.0, 0.3)], &stakes, STARTS);
        assert_eq!(plan.windows().len(), 1, "{plan:?}");
        let session = plan.lower_until(LowerRung::Session, 0.0).unwrap();
        assert!(session >= 895.0, "{plan:?}");
    }

    #[test]
    fn what_a_plan_costs_is_what_it_kept_and_what_the_call_missed() {
        let params = Params::default();
        let worth = Worth::of(Duration::from_millis(100), 10 << 20).upon(&LowerRungs {
            session: rung(100, 10),
            template: rung(50, 10),
        });
        let typical = Rung {
            cold: worth.cold(),
            bytes: worth.bytes(),
        };
        let stakes = Stakes::of_all(&worth, &params, &typical);
        let mut plan = Plan::of_all_rungs();
        plan.push(0.0, 60.0);
        plan.push_lower(LowerRung::Session, 0.0, 120.0);
        plan.push_lower(LowerRung::Template, 0.0, 60.0);
        let second = 1.0 / 1200.0 / 3.0;
        let cases = [
            (30.0, 90.0 * second),
            // Sandbox and template are missing: 150 of 200 ms.
            (100.0, 0.75f32.powf(0.25) + (180.0 + 40.0) * second),
            (500.0, 1.0 + (180.0 + 60.0) * second),
        ];
        for (idle, expected) in cases {
            let cost = stakes.of_idle_time(&plan, idle);
            assert!((cost - expected).abs() < 1e-4, "{idle}: {cost} {expected}");
        }
    }
}
