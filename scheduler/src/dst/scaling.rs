//! The rules about `target_concurrency`: what an autoscaler wants is reckoned here once more, from the load as it was at
//! every instant; and, by no formula, that panic never lets go and that what is wanted ends with the load.
//!
//! Averages are those between two looks, as documented: looks closer together than 200 ms count as one.

use super::world::Books;
use crate::audit::{Audit, PoolAudit, ScalingAudit};
use crate::autoscaler::Rules;
use std::time::Duration;
use tokio::time::Instant;

const GRAIN: Duration = Duration::from_millis(200);

/// Callers over a stretch of time.
type Stretch = (Instant, Instant, f64);

/// What an autoscaler is to know and to want.
#[derive(Debug)]
pub(super) struct Scaled {
    began: Instant,
    looked: Instant,
    /// Callers that the version has now: those with an instance, and those that wait for one.
    callers: f64,
    noted: Instant,
    /// Since the last look.
    stretches: Vec<Stretch>,
    looks: Vec<Stretch>,
    panic: Option<Instant>,
    panic_most: usize,
    wanted: Vec<(Instant, usize)>,
    desired: usize,
}

/// Callers times seconds, of a stretch, from some time on and until another.
fn load(stretch: &Stretch, from: Instant, until: Instant) -> f64 {
    let (begin, end) = (stretch.0.max(from), stretch.1.min(until));
    end.saturating_duration_since(begin).as_secs_f64() * stretch.2
}

impl Scaled {
    fn new(began: Instant) -> Self {
        Self {
            began,
            looked: began,
            callers: 0.0,
            noted: began,
            stretches: Vec::new(),
            looks: Vec::new(),
            panic: Some(began),
            panic_most: 0,
            wanted: Vec::new(),
            desired: 0,
        }
    }

    fn pass(&mut self, now: Instant) {
        if now > self.noted {
            self.stretches.push((self.noted, now, self.callers));
            self.noted = now;
        }
    }

    fn instances(&self, now: Instant, window: Duration, target: f64) -> usize {
        let known = now.duration_since(self.began).min(window);
        let looks = self.looks.iter();
        let sum: f64 = looks.map(|look| load(look, now - known, now)).sum();
        (sum / known.as_secs_f64() / target - 1e-9).ceil().max(0.0) as usize
    }

    /// A look at this time, with so many instances ready. Says what is to be wanted, and whether in panic.
    fn look(&mut self, now: Instant, ready: usize, rules: &Rules) -> (usize, bool) {
        self.pass(now);
        let from = std::mem::replace(&mut self.looked, now);
        let length = now.duration_since(from).as_secs_f64();
        let stretches = self.stretches.iter();
        let sum: f64 = stretches.map(|stretch| load(stretch, from, now)).sum();
        self.stretches.retain(|stretch| stretch.1 > now);
        match self.looks.last_mut() {
            Some(last) if last.1.duration_since(last.0) < GRAIN => {
                let before = last.1.duration_since(last.0).as_secs_f64();
                last.2 = (last.2 * before + sum) / (before + length);
                last.1 = now;
            }
            _ => self.looks.push((from, now, sum / length)),
        }
        let stable = self.instances(now, rules.stable_window, rules.target);
        let sudden = self.instances(now, rules.panic_window, rules.target);
        if sudden as f64 >= rules.panic_threshold * ready.max(1) as f64 {
            if self.panic.is_none() {
                self.panic_most = ready.max(stable).max(self.desired);
            }
            self.panic = Some(now);
        } else if let Some(since) = self.panic
            && now.duration_since(since) >= rules.stable_window
        {
            self.panic = None;
        }
        let mut wanted = stable;
        if self.panic.is_some() {
            self.panic_most = self.panic_most.max(stable).max(sudden);
            wanted = self.panic_most;
        }
        self.wanted.push((now, wanted));
        let delay = rules.scale_down_delay;
        self.wanted
            .retain(|(at, _)| *at == now || now.duration_since(*at) <= delay && !delay.is_zero());
        let desired = self.wanted.iter().map(|(_, wanted)| *wanted).max();
        self.desired = desired.unwrap_or(wanted);
        (self.desired, self.panic.is_some())
    }

    /// What it knows, in seconds since it began.
    fn told(&self) -> String {
        let since = |at: &Instant| at.duration_since(self.began).as_secs_f64();
        let looks = self.looks.iter();
        let looks: Vec<_> = looks.map(|it| (since(&it.0), since(&it.1), it.2)).collect();
        let (panic, wanted) = (self.panic.as_ref().map(since), &self.wanted.len());
        format!(
            "panic {panic:?} most {} wanted {wanted} looks {looks:?}",
            self.panic_most
        )
    }

    /// Whether the load has been over for so long that nothing can be wanted for it.
    fn is_over(&self, rules: &Rules) -> bool {
        let most = rules.panic_window + rules.stable_window + rules.scale_down_delay;
        // The last look that has any of it in its average.
        let last = self.looks.iter().rfind(|look| look.2 > 0.0);
        let end = last.map_or(self.began, |look| look.1);
        self.looked.duration_since(end) > most
    }
}

fn rules(books: &Books, pool: &PoolAudit) -> Option<Rules> {
    // One that was neither called nor started yet is live.
    let live = books.ledger.live(&pool.version.function);
    let live = live.filter(|live| live.key() == pool.version);
    let known = books.versions.get(&pool.version).or(live);
    Rules::of(&known?.config)
}

/// Takes note of the load until now, and of who calls from now on.
pub(super) fn note(books: &mut Books, audit: &Audit) {
    let now = Instant::now();
    let scaling = |number: u64| {
        let pool = audit.pools.iter().find(|pool| pool.number == number);
        pool.and_then(|pool| pool.scaling)
    };
    books.scaled.retain(|number, _| scaling(*number).is_some());
    for pool in &audit.pools {
        let Some(ScalingAudit { began, .. }) = pool.scaling else {
            continue;
        };
        let scaled = books.scaled.entry(pool.number);
        let scaled = scaled.or_insert_with(|| Scaled::new(began));
        if scaled.began != began {
            *scaled = Scaled::new(began);
        }
        scaled.pass(now);
        scaled.callers = (pool.leased + pool.waiting) as f64;
    }
}

/// What the looks of a reap decided, which was told it is `then`.
pub(super) fn reaped(books: &mut Books, before: &Audit, after: &Audit, then: Instant) {
    for pool in after.pools.iter().filter(|pool| pool.listed) {
        let (key, desired) = (&pool.version, pool.scaling.map_or(0, |it| it.desired));
        let unwanted = books.unwanted.contains(key);
        books.require("scaling", !unwanted || desired == 0, || {
            format!("{key} wants {desired}, nobody has called it since it was let go")
        });
        let Some((scaling, rules)) = pool.scaling.zip(rules(books, pool)) else {
            continue;
        };
        // The reap itself may have made the pool.
        let known = books.scaled.remove(&pool.number);
        let mut scaled = known.unwrap_or_else(|| Scaled::new(scaling.began));
        let found = (scaling.desired, scaling.panicking);
        let (looked, was) = (scaled.looked, (scaled.desired, scaled.panic.is_some()));
        books.require(
            "scaling",
            pool.closed || scaling.looked >= then.min(looked.max(then)),
            || format!("{key} was not looked at"),
        );
        if scaling.looked > looked && scaled.began == scaling.began {
            let same = before.pools.iter().find(|it| it.number == pool.number);
            let ready = same.map_or(0, |pool| pool.idle.len() + pool.busy);
            let expected = scaled.look(scaling.looked, ready, &rules);
            books.require("scaling", found == expected, || {
                format!(
                    "{key} wants {found:?} (panics), it is to want {expected:?} {}",
                    scaled.told()
                )
            });
            if was.1 && found.1 {
                books.require("panic", found.0 >= was.0, || {
                    format!("{key} wants {} in panic, and wanted {}", found.0, was.0)
                });
                if scaled.instances(scaling.looked, rules.stable_window, rules.target) < found.0 {
                    books.log(format!("{key} is not to scale down in panic"));
                }
            } else if found.0 < was.0 {
                books.log(format!("{key} scales down from {} to {}", was.0, found.0));
            }
            let over = scaled.is_over(&rules);
            books.require("scaling", !over || found.0 == 0, || {
                format!(
                    "{key} wants {} long after its load {}",
                    found.0,
                    scaled.told()
                )
            });
        }
        books.scaled.insert(pool.number, scaled);
    }
}
