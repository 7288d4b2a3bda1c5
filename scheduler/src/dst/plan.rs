//! A seed becomes a plan: a node, its functions, and for each life of the platform what happens when.
//!
//! Everything that is random is drawn here, before anything runs, or from [`Draws::keyed`], which needs no order. So a
//! plan with some of its events left out is still a plan, and can be made smaller while it fails.

use super::deploys::{deploy, policy};
use crate::policy::Spec;
use fnctl_core::config::FunctionConfig;
use std::time::Duration;

/// A stream of numbers from a seed: SplitMix64, written out so that a seed means the same with every release of every
/// library.
#[derive(Debug, Clone)]
pub(super) struct Draws(u64);

impl Draws {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The stream of one thing: the `number`th of its `kind`.
    pub(super) fn keyed(seed: u64, kind: u64, number: u64) -> Self {
        let mut mixed = Self(seed ^ kind.wrapping_mul(0xa076_1d64_78bd_642f));
        Self(mixed.next() ^ number.wrapping_mul(0xe703_7ed1_a0b4_28db))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One of `from..=to`.
    pub(super) fn among(&mut self, from: u64, to: u64) -> u64 {
        from + self.next() % (to - from + 1)
    }

    pub(super) fn percent(&mut self, chance: u64) -> bool {
        self.among(1, 100) <= chance
    }

    pub(super) fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.among(0, of.len() as u64 - 1) as usize].clone()
    }
}

/// Which kinds of trouble a seed has, in percent. Each seed has only some: a plan where everything fails tests little.
#[derive(Debug, Clone, Default)]
pub(super) struct Trouble {
    pub(super) start_fails: u64,
    pub(super) start_hangs: u64,
    pub(super) start_panics: u64,
    pub(super) run_traps: u64,
    pub(super) run_hangs: u64,
    pub(super) run_panics: u64,
    pub(super) no_answer: u64,
    pub(super) unbegun: u64,
    pub(super) callers_leave: u64,
    pub(super) bodies_dropped: u64,
    pub(super) host_events: u64,
    pub(super) jumps: u64,
    /// The time of day is set.
    pub(super) clock: u64,
    /// Sessions take memory.
    pub(super) sessions: u64,
}

#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) slots: usize,
    /// What the worker has room for, in units; a version's sandbox takes one or more.
    pub(super) units: usize,
    /// Bytes that instances and sessions may take; 0 = no limit.
    pub(super) memory: u64,
    pub(super) max_concurrency: usize,
    pub(super) max_running: usize,
    /// The keep-alive policy of functions that do not name one.
    pub(super) policy: Spec,
    /// What a run of each function computes, in milliseconds, where functions of unequal cost contend.
    pub(super) contest: Option<Vec<u64>>,
    /// Every run computes for a millisecond, so that fair shares can be counted in turns.
    pub(super) alike: bool,
    /// Milliseconds from the beginning of a life to eight in the morning, when schedule windows open.
    pub(super) opens: u64,
    pub(super) trouble: Trouble,
    pub(super) functions: usize,
    pub(super) lives: Vec<Life>,
}

#[derive(Debug, Clone)]
pub(super) struct Life {
    pub(super) events: Vec<Event>,
    pub(super) reap_every: Duration,
    pub(super) end: End,
}

/// How a life ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// Nobody calls any more; all goes to zero; then it is drained.
    Quiet,
    /// It is drained while things happen.
    Drain { at: u64, grace: u64 },
    /// The process dies.
    Kill,
}

#[derive(Debug, Clone)]
pub(super) struct Event {
    /// Milliseconds since the life began.
    pub(super) at: u64,
    pub(super) what: What,
}

#[derive(Debug, Clone)]
pub(super) enum What {
    Call(Call),
    Deploy {
        function: usize,
        config: Box<FunctionConfig>,
    },
    Rollback {
        function: usize,
    },
    /// Points `live` or another alias at one or two versions, counted from the newest.
    Alias {
        function: usize,
        live: bool,
        back: usize,
        split: Option<(usize, u8)>,
    },
    Unalias {
        function: usize,
    },
    Remove {
        function: usize,
    },
    /// Reaps as if it were that much later, or earlier.
    Reap {
        skew: i64,
    },
    Jump {
        ms: u64,
    },
    /// Sets the time of day by so much.
    SetClock {
        ms: i64,
    },
    /// The sessions of models take so much memory from now on.
    Sessions {
        mib: u64,
    },
    HostDies,
    HostHangs,
}

/// Which version a caller names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    Live,
    Latest,
    Alias,
    /// The one this many before the newest.
    Back(usize),
    /// One that has been removed since it was resolved.
    Gone,
}

#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) id: u64,
    pub(super) function: usize,
    pub(super) target: Target,
    pub(super) head: bool,
    /// The caller leaves this long after it asked, answered or not.
    pub(super) leaves: Option<u64>,
    pub(super) reads: Reads,
    pub(super) run: Run,
}

/// What a caller does with the body of its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reads {
    All,
    /// Some chunks, then drops it.
    Some(u64),
    /// Keeps it unread for so long, then reads it.
    Late(u64),
}

/// What the guest does with one call.
#[derive(Debug, Clone)]
pub(super) struct Run {
    /// How many sandboxes are found unusable before one begins.
    pub(super) unbegun: u64,
    pub(super) before: u64,
    pub(super) computes: Vec<u64>,
    pub(super) chunks: u64,
    /// Between chunks, and after the last.
    pub(super) gap: u64,
    pub(super) fate: Fate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Completes,
    TrapsBeforeHead,
    TrapsAfterHead,
    HangsBeforeHead,
    HangsAfterHead,
    PanicsBeforeHead,
    PanicsAfterHead,
    /// Returns, but has said nothing.
    NoAnswer,
}

/// What becomes of one start.
#[derive(Debug, Clone)]
pub(super) struct Start {
    /// Milliseconds of artifact, compile, model, instantiate, init.
    pub(super) phases: [u64; 5],
    pub(super) fault: Option<(usize, StartFault)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StartFault {
    Fails,
    Hangs,
    Panics,
}

impl Plan {
    /// The `number`th start of a life.
    pub(super) fn start(&self, life: usize, number: u64, calm: bool) -> Start {
        let mut draws = Draws::keyed(self.seed, 1 + life as u64, number);
        let mut phases = [0; 5];
        let slow = draws.percent(10) && !calm;
        for phase in &mut phases {
            *phase = if slow {
                draws.among(0, 400)
            } else {
                draws.among(0, 30)
            };
        }
        let phase = draws.among(0, 4) as usize;
        let trouble = &self.trouble;
        let fault = if calm {
            None
        } else if draws.percent(trouble.start_fails) {
            Some((phase, StartFault::Fails))
        } else if draws.percent(trouble.start_hangs) {
            Some((phase, StartFault::Hangs))
        } else if draws.percent(trouble.start_panics) {
            Some((phase, StartFault::Panics))
        } else {
            None
        };
        Start { phases, fault }
    }

    /// The plan of a seed.
    pub(super) fn of(seed: u64) -> Self {
        if let Some(contest) = super::contest::plan(seed) {
            return contest;
        }
        let mut draws = Draws::new(seed);
        let trouble = trouble(&mut draws);
        let functions = draws.among(1, 3) as usize;
        let mut plan = Self {
            seed,
            slots: draws.pick(&[1, 2, 3, 4, 6, 8, 12]),
            units: draws.pick(&[3, 6, 12, 100, 100]),
            memory: draws.pick(&[0, 0, 0, 12, 24, 48, 200]) << 20,
            max_concurrency: draws.pick(&[2, 4, 8, 20, 1_000]),
            max_running: draws.pick(&[1, 2, 4, 16]),
            policy: policy(&mut draws),
            contest: None,
            alike: draws.percent(30),
            opens: draws.pick(&[0, 300, 2_000, 10_000, 40_000_000]),
            trouble,
            functions,
            lives: Vec::new(),
        };
        let lives = if draws.percent(25) { 2 } else { 1 };
        let mut next_call = 0;
        for number in 0..lives {
            let life = plan.life(&mut draws, number + 1 == lives, number == 0, &mut next_call);
            plan.lives.push(life);
        }
        plan
    }

    fn life(&self, draws: &mut Draws, last: bool, first: bool, next_call: &mut u64) -> Life {
        let budget = draws.among(20, 45) as usize;
        // Long enough to learn from, for policies that do.
        let is_long = draws.percent(8);
        let length = if is_long {
            1_800_000
        } else {
            draws.pick(&[500, 2_000, 8_000, 20_000])
        };
        let mut events = Vec::new();
        if is_long {
            let function = draws.among(0, self.functions as u64 - 1) as usize;
            let period = draws.pick(&[130_000, 190_000]);
            for turn in 0..length / period {
                self.calls(
                    draws,
                    &mut events,
                    next_call,
                    function,
                    (turn * period, 1, 900),
                );
            }
        }
        if first {
            for function in 0..self.functions {
                events.push(Event {
                    at: draws.among(0, 100),
                    what: deploy(draws, self, function),
                });
            }
        }
        while events.len() < budget {
            let at = draws.among(0, length);
            let function = draws.among(0, self.functions as u64 - 1) as usize;
            match draws.among(1, 100) {
                // Steady, a burst, a herd that comes all at once.
                1..=30 => self.calls(draws, &mut events, next_call, function, (at, 6, length / 8)),
                31..=50 => self.calls(draws, &mut events, next_call, function, (at, 10, 20)),
                51..=60 => self.calls(draws, &mut events, next_call, function, (at, 14, 0)),
                61..=66 => events.push(Event {
                    at,
                    what: deploy(draws, self, function),
                }),
                // Two operators at once: the second acts while the first one's deploy is under way.
                67..=70 => {
                    events.push(Event {
                        at,
                        what: deploy(draws, self, function),
                    });
                    let function = if draws.percent(25) {
                        (function + 1) % self.functions
                    } else {
                        function
                    };
                    let what = match draws.among(1, 4) {
                        1 => deploy(draws, self, function),
                        2 => alias(draws, function),
                        _ => What::Remove { function },
                    };
                    events.push(Event {
                        at: at + draws.among(50, 130),
                        what,
                    });
                }
                71..=74 => events.push(Event {
                    at,
                    what: What::Rollback { function },
                }),
                75..=79 => events.push(Event {
                    at,
                    what: alias(draws, function),
                }),
                80 => events.push(Event {
                    at,
                    what: What::Unalias { function },
                }),
                81..=84 => events.push(Event {
                    at,
                    what: What::Remove { function },
                }),
                85 if draws.percent(self.trouble.clock) => {
                    let ms = draws.pick(&[-3_000, -500, 700, 5_000, 40_000_000]);
                    events.push(Event {
                        at,
                        what: What::SetClock { ms },
                    });
                }
                86 if draws.percent(self.trouble.sessions) => {
                    let mib = draws.pick(&[0, 0, 6, 20, 60]);
                    events.push(Event {
                        at,
                        what: What::Sessions { mib },
                    });
                }
                85..=89 => {
                    let skew = draws.pick(&[0, 0, -5_000, 1, 500, 5_000, 60_000]);
                    events.push(Event {
                        at,
                        what: What::Reap { skew },
                    });
                }
                90..=94 if draws.percent(self.trouble.jumps) => {
                    let ms = draws.pick(&[1, 50, 700, 3_000, 30_000, 3_600_000]);
                    events.push(Event {
                        at,
                        what: What::Jump { ms },
                    });
                }
                95..=100 if draws.percent(self.trouble.host_events) => {
                    for turn in 0..draws.among(1, 4) {
                        let what = draws.pick(&[What::HostDies, What::HostDies, What::HostHangs]);
                        let at = at + turn * 70;
                        events.push(Event { at, what });
                    }
                }
                _ => {}
            }
        }
        events.sort_by_key(|event| event.at);
        let end = match draws.among(1, 10) {
            1..=3 => End::Drain {
                at: draws.among(0, length + 500),
                grace: draws.pick(&[0, 50, 1_000, 10_000]),
            },
            4..=6 if !last => End::Kill,
            _ => End::Quiet,
        };
        Life {
            events,
            reap_every: Duration::from_millis(if is_long {
                draws.pick(&[4_000, 15_000])
            } else {
                draws.pick(&[40, 250, 250, 700, 5_000])
            }),
            end,
        }
    }

    fn calls(
        &self,
        draws: &mut Draws,
        events: &mut Vec<Event>,
        next_call: &mut u64,
        function: usize,
        (from, most, spread): (u64, u64, u64),
    ) {
        for _ in 0..draws.among(1, most) {
            *next_call += 1;
            let call = self.call(draws, *next_call, function);
            events.push(Event {
                at: from + draws.among(0, spread),
                what: What::Call(call),
            });
        }
    }

    fn call(&self, draws: &mut Draws, id: u64, function: usize) -> Call {
        let trouble = &self.trouble;
        let before_head = draws.percent(50);
        let choose = |before, after| if before_head { before } else { after };
        let fate = if draws.percent(trouble.run_traps) {
            choose(Fate::TrapsBeforeHead, Fate::TrapsAfterHead)
        } else if draws.percent(trouble.run_hangs) {
            choose(Fate::HangsBeforeHead, Fate::HangsAfterHead)
        } else if draws.percent(trouble.run_panics) {
            choose(Fate::PanicsBeforeHead, Fate::PanicsAfterHead)
        } else if draws.percent(trouble.no_answer) {
            Fate::NoAnswer
        } else {
            Fate::Completes
        };
        let unbegun = if draws.percent(trouble.unbegun) {
            draws.among(1, 2)
        } else {
            0
        };
        let chunks = draws.pick(&[0, 0, 1, 3]);
        Call {
            id,
            function,
            target: match draws.among(1, 20) {
                1..=14 => Target::Live,
                15 => Target::Latest,
                16 => Target::Alias,
                17..=18 => Target::Back(draws.among(0, 2) as usize),
                _ => Target::Gone,
            },
            head: draws.percent(5),
            leaves: draws
                .percent(trouble.callers_leave)
                .then(|| draws.pick(&[0, 1, 20, 60, 200, 1_000])),
            reads: if draws.percent(trouble.bodies_dropped) {
                draws.pick(&[
                    Reads::Some(0),
                    Reads::Some(1),
                    Reads::Late(100),
                    Reads::Late(3_000),
                ])
            } else {
                Reads::All
            },
            run: Run {
                unbegun,
                before: draws.pick(&[0, 0, 1, 5, 30, 200]),
                computes: if self.alike {
                    vec![1]
                } else {
                    (0..draws.pick(&[0, 1, 1, 3]))
                        .map(|_| draws.among(0, 60))
                        .collect()
                },
                chunks,
                gap: draws.pick(&[0, 1, 40]),
                fate,
            },
        }
    }
}

fn trouble(draws: &mut Draws) -> Trouble {
    let mut some = |chances: &[u64]| {
        if draws.percent(45) {
            draws.pick(chances)
        } else {
            0
        }
    };
    Trouble {
        start_fails: some(&[5, 20, 60]),
        start_hangs: some(&[5, 20]),
        start_panics: some(&[5, 20]),
        run_traps: some(&[5, 20, 50]),
        run_hangs: some(&[5, 15]),
        run_panics: some(&[5, 15]),
        no_answer: some(&[5]),
        unbegun: some(&[10, 40]),
        callers_leave: some(&[10, 40]),
        bodies_dropped: some(&[10, 50]),
        host_events: some(&[50, 100]),
        jumps: some(&[50, 100]),
        clock: some(&[100]),
        sessions: some(&[100]),
    }
}

fn alias(draws: &mut Draws, function: usize) -> What {
    What::Alias {
        function,
        live: draws.percent(50),
        back: draws.among(0, 2) as usize,
        split: draws
            .percent(40)
            .then(|| (draws.among(0, 2) as usize, draws.among(1, 99) as u8)),
    }
}
