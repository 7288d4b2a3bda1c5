//! What the fakes and the callers of one life have seen: the books that the scheduler's are compared with, the trace
//! that a rerun must repeat, and the rules that were found broken.

use super::contest::Share;
use super::deploys::OPENS;
use super::kept::Ledger;
use super::plan::{Plan, Start};
use super::scaling::{self, Scaled};
use crate::Inner;
use crate::audit::{self, Audit};
use fnctl_core::ids::FunctionName;
use fnctl_core::version::{Version, VersionKey};
use fnctl_core::{ErrorKind, Isolation};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// What happened, as a hash and, where somebody will read it, as text.
#[derive(Debug, Clone, Default)]
pub(super) struct Trace {
    hasher: DefaultHasher,
    /// One line an event, if they are kept.
    pub(super) lines: Option<Vec<String>>,
}

impl Trace {
    pub(super) fn new(keep: bool) -> Self {
        Self {
            hasher: DefaultHasher::new(),
            lines: keep.then(Vec::new),
        }
    }

    fn line(&mut self, at: Duration, text: String) {
        at.hash(&mut self.hasher);
        text.hash(&mut self.hasher);
        if let Some(lines) = &mut self.lines {
            lines.push(format!("{:>9.3}s  {text}", at.as_secs_f64()));
        }
    }

    pub(super) fn hash(&self) -> u64 {
        self.hasher.finish()
    }
}

/// A rule that was found broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Broken {
    /// The rule, as one word or two.
    pub(super) rule: &'static str,
    pub(super) text: String,
}

/// A sandbox that exists.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) version: Arc<Version>,
    /// Made by a deploy to see whether it starts; the scheduler knows nothing of it.
    pub(super) candidate: bool,
    /// Calls that it runs.
    pub(super) running: BTreeSet<u64>,
    /// Since when it must not begin another: it failed, or gave one up.
    pub(super) failed: Option<Instant>,
    /// It is gone with everything that ran in it.
    pub(super) dead: bool,
    /// Since when its version is superseded: it may end what it runs, and no more.
    pub(super) superseded: Option<Instant>,
    pub(super) uses: u32,
    pub(super) made: Instant,
    pub(super) free_since: Instant,
    pub(super) units: usize,
    /// Linear memory in bytes, as its last run reported it.
    pub(super) memory: Option<u64>,
}

impl Live {
    /// Whether it may serve another.
    fn is_usable(&self) -> bool {
        self.failed.is_none() && self.superseded.is_none() && self.uses < most_uses(&self.version)
    }

    /// Seats that are free for others, if it is in use and may serve another.
    pub(super) fn free_seats(&self) -> usize {
        if self.running.is_empty() || !self.is_usable() {
            return 0;
        }
        seats(&self.version).saturating_sub(self.running.len())
    }
}

/// A reap that is under way.
pub(super) struct Reaping {
    /// Whether nothing goes but what has been idle for its keep-alive.
    pub(super) strict: bool,
    /// Sandboxes that went.
    pub(super) gone: BTreeMap<VersionKey, usize>,
}

/// How an invocation was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Answer {
    Response,
    Failure(ErrorKind),
}

/// What a call is to meet at admission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outlook {
    Unknown,
    /// A permit, or a place in the queue.
    Taken,
    /// The queue is full, or too long for it.
    Refused,
    /// The function is turned off.
    Off,
}

/// A call that was made.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) version: VersionKey,
    pub(super) at: Instant,
    pub(super) deadline: Instant,
    pub(super) outlook: Outlook,
    /// How often the sandbox that began it had been used before, and when it was made.
    pub(super) begun_in: Option<(u32, Instant)>,
    pub(super) unbegun_left: u64,
    /// Sandboxes that handed it back.
    pub(super) handed_back: u32,
    /// Sandboxes that began it.
    pub(super) begun: u32,
    /// What its guest answered.
    pub(super) sent: Option<Answer>,
    pub(super) completed: bool,
    /// Its caller has left, with something still to come.
    pub(super) left: bool,
    /// Its caller has the answer, or has left.
    pub(super) over: bool,
}

/// See the module.
pub(super) struct Books {
    pub(super) began: Option<Instant>,
    pub(super) trace: Trace,
    pub(super) broken: Vec<Broken>,
    pub(super) live: BTreeMap<u64, Live>,
    next_sandbox: u64,
    starts: u64,
    /// Starts that have begun, and since when their version is superseded, if it is.
    pub(super) begun: BTreeMap<u64, (VersionKey, Option<Instant>)>,
    /// Starts of the scheduler's that are under way.
    pub(super) starting: usize,
    /// Units that starts have taken for sandboxes to come.
    pub(super) units_taken: usize,
    pub(super) calls: BTreeMap<u64, Asked>,
    /// Every version that was called or started.
    pub(super) versions: BTreeMap<VersionKey, Arc<Version>>,
    pub(super) planned_panics: u64,
    /// No fault from now on.
    pub(super) calm: bool,
    /// What deploys told the scheduler.
    pub(super) ledger: Ledger,
    /// What sessions take, in bytes.
    pub(super) sessions: u64,
    /// Turns that others had at the gate of what is shared, since a function that waits there had its last.
    pub(super) turns: BTreeMap<FunctionName, BTreeMap<FunctionName, usize>>,
    /// What autoscalers are to want, by the number of their pools.
    pub(super) scaled: BTreeMap<u64, Scaled>,
    /// Versions that were let go, and that nobody has called since.
    pub(super) unwanted: BTreeSet<VersionKey>,
    /// What functions were served while they waited for the same places.
    pub(super) shares: BTreeMap<[usize; 2], Share>,
    /// Idle sandboxes that were let go, at least and at most.
    pub(super) let_go: [u64; 2],
    /// Instances are let go because their function is removed.
    pub(super) retiring: bool,
    /// Instances may be let go because the platform drains.
    pub(super) draining: bool,
    /// What limits and floors have been at most, for the most instances that may exist.
    pub(super) most: BTreeMap<FunctionName, usize>,
    /// Versions whose pool was taken out of its lane while it had something.
    pub(super) replaced: BTreeSet<VersionKey>,
    pub(super) last: Option<Audit>,
    pub(super) last_at: Option<Instant>,
    pub(super) checks: u64,
    /// The process has ended, and its tasks are dropped: in an order that tokio decides by numbers that the whole test
    /// process shares, so it is not part of the trace.
    pub(super) ended: bool,
    /// Set while `reap` runs.
    pub(super) reaping: Option<Reaping>,
}

pub(super) struct World {
    pub(super) plan: Arc<Plan>,
    pub(super) life: usize,
    pub(super) names: Vec<FunctionName>,
    pub(super) books: Mutex<Books>,
    pub(super) host: super::host::Host,
    /// Milliseconds by which the time of day was set.
    pub(super) skew: AtomicI64,
    scheduler: Mutex<Weak<Inner>>,
}

impl World {
    pub(super) fn new(plan: Arc<Plan>, life: usize, trace: Trace) -> Arc<Self> {
        audit::forget();
        let names = (0..plan.functions).map(name).collect();
        Arc::new(Self {
            plan,
            life,
            names,
            books: Mutex::new(Books {
                began: None,
                trace,
                broken: Vec::new(),
                live: BTreeMap::new(),
                next_sandbox: 0,
                starts: 0,
                begun: BTreeMap::new(),
                starting: 0,
                units_taken: 0,
                calls: BTreeMap::new(),
                versions: BTreeMap::new(),
                planned_panics: 0,
                calm: false,
                most: BTreeMap::new(),
                replaced: BTreeSet::new(),
                last: None,
                last_at: None,
                checks: 0,
                ended: false,
                reaping: None,
                ledger: Ledger::default(),
                sessions: 0,
                turns: BTreeMap::new(),
                scaled: BTreeMap::new(),
                unwanted: BTreeSet::new(),
                shares: BTreeMap::new(),
                let_go: [0; 2],
                retiring: false,
                draining: false,
            }),
            host: super::host::Host::default(),
            skew: AtomicI64::new(0),
            scheduler: Mutex::new(Weak::new()),
        })
    }

    /// Life begins.
    pub(super) fn begin(&self, scheduler: &Arc<Inner>) {
        *self.scheduler.lock() = Arc::downgrade(scheduler);
        self.books.lock().began = Some(Instant::now());
        self.log(|| format!("life {}", self.life + 1));
    }

    /// The time of day: from a while before eight in the morning of a Monday.
    pub(super) fn time_of_day(&self) -> SystemTime {
        let eight = SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_571_200) + OPENS;
        let now = eight - Duration::from_millis(self.plan.opens) + self.books.lock().now();
        let skew = self.skew.load(Ordering::Relaxed);
        let by = Duration::from_millis(skew.unsigned_abs());
        if skew < 0 { now - by } else { now + by }
    }

    /// The scheduler's memory in use, and its limit, in bytes.
    pub(super) fn memory(&self) -> Option<([u64; 2], u64)> {
        let inner = self.scheduler.lock().upgrade()?;
        let memory = &inner.node.memory;
        Some((memory.parts(), memory.limit()))
    }

    /// Versions of which an instance is to be started ahead, and from when on.
    pub(super) fn ahead(&self, now: Instant) -> Vec<(VersionKey, Instant)> {
        let inner = self.scheduler.lock().upgrade();
        inner.map_or_else(Vec::new, |inner| inner.keep.ahead(now))
    }

    pub(super) fn log(&self, text: impl FnOnce() -> String) {
        self.books.lock().log(text());
    }

    pub(super) fn broken(&self, rule: &'static str, text: impl FnOnce() -> String) {
        self.books.lock().broken(rule, text());
    }

    pub(super) fn require(&self, rule: &'static str, holds: bool, text: impl FnOnce() -> String) {
        if !holds {
            self.broken(rule, text);
        }
    }

    pub(super) fn is_broken(&self) -> bool {
        !self.books.lock().broken.is_empty()
    }

    /// Looks at the scheduler, if it still exists.
    pub(super) fn audit(&self) -> Option<Audit> {
        let inner = self.scheduler.lock().upgrade()?;
        let looked = audit::audit(&inner, &self.names);
        match looked {
            Ok(audit) => Some(audit),
            Err(held) => {
                self.broken("locks", || format!("{} is locked", held.0));
                None
            }
        }
    }

    /// Called wherever a sandbox is made, run or dropped: no lock may be held there.
    pub(super) fn unlocked(&self, doing: &str) {
        let Some(inner) = self.scheduler.lock().upgrade() else {
            return;
        };
        if let Err(held) = audit::audit(&inner, &self.names) {
            self.broken("locks", || format!("{} is locked while {doing}", held.0));
        }
    }

    /// Nothing more can happen at this instant: every rule must hold.
    pub(super) fn settled(&self) {
        if self.books.lock().began.is_none() || self.is_broken() {
            return;
        }
        if let Some(audit) = self.audit() {
            super::checks::settled(self, audit);
        }
    }

    /// The clock is about to jump: the load until now is noted.
    pub(super) fn note_load(&self) {
        if let Some(audit) = self.audit() {
            scaling::note(&mut self.books.lock(), &audit);
        }
    }

    /// A start begins; says what becomes of it.
    pub(super) fn start_begins(&self, version: &Arc<Version>) -> (u64, Start) {
        let mut books = self.books.lock();
        books.versions.insert(version.key(), version.clone());
        books.starts += 1;
        let start = self.plan.start(self.life, books.starts, books.calm);
        let number = books.starts;
        books.log(format!(
            "start {number} of {} begins: {:?}",
            version.key(),
            start
        ));
        books.begun.insert(number, (version.key(), None));
        (number, start)
    }

    pub(super) fn planned_panic(&self) -> ! {
        self.books.lock().planned_panics += 1;
        // Unlike `panic!` this prints nothing.
        std::panic::resume_unwind(Box::new("as planned"))
    }
}

impl Books {
    pub(super) fn now(&self) -> Duration {
        self.began.map_or(Duration::ZERO, |began| began.elapsed())
    }

    pub(super) fn log(&mut self, text: String) {
        if self.ended {
            return;
        }
        let now = self.now();
        self.trace.line(now, text);
    }

    pub(super) fn broken(&mut self, rule: &'static str, text: String) {
        self.log(format!("BROKEN {rule}: {text}"));
        self.broken.push(Broken { rule, text });
    }

    pub(super) fn require(
        &mut self,
        rule: &'static str,
        holds: bool,
        text: impl FnOnce() -> String,
    ) {
        if !holds {
            self.broken(rule, text());
        }
    }

    /// A sandbox comes to be.
    pub(super) fn made(&mut self, version: &Arc<Version>, units: usize, start: u64) -> u64 {
        self.next_sandbox += 1;
        let id = self.next_sandbox;
        let live = Live {
            version: version.clone(),
            candidate: is_candidate(version),
            running: BTreeSet::new(),
            failed: None,
            dead: false,
            superseded: self.begun.remove(&start).and_then(|begun| begun.1),
            uses: 0,
            made: Instant::now(),
            free_since: Instant::now(),
            units,
            memory: None,
        };
        self.live.insert(id, live);
        self.log(format!("sandbox {id} of {} made", version.key()));
        id
    }

    /// A sandbox is gone.
    pub(super) fn dropped(&mut self, id: u64) {
        let Some(live) = self.live.remove(&id) else {
            return;
        };
        self.log(format!("sandbox {id} gone"));
        self.require("sandbox", live.running.is_empty(), || {
            format!("sandbox {id} is dropped while it runs {:?}", live.running)
        });
        if live.candidate || self.retiring {
            return;
        }
        if let Some(reaping) = &mut self.reaping {
            let (idle, strict) = (live.free_since.elapsed(), reaping.strict);
            *reaping.gone.entry(live.version.key()).or_default() += 1;
            let least = live.version.config.keep_alive.duration();
            let function = &live.version.function;
            // Another policy may have said how long, when it went idle.
            let strict = strict && self.ledger.was_fixed(function, live.free_since);
            self.require("keep-alive", !strict || idle >= least, || {
                format!("sandbox {id} was reaped after {idle:?}, its keep-alive is {least:?}")
            });
        }
        if live.is_usable() {
            // One that was there at an earlier instant, and that nobody had, is one that was let go.
            let function = &live.version.function;
            let had = self.last.iter().flat_map(|last| &last.lanes);
            let leased = had
                .filter(|lane| lane.function == *function)
                .any(|lane| lane.flows[1].waiting > 0);
            let sure = !self.draining && !leased && live.free_since < Instant::now();
            self.let_go[0] += u64::from(sure);
            self.let_go[1] += 1;
        }
    }

    /// A sandbox begins an invocation.
    pub(super) fn begins(&mut self, id: u64, call: u64, version: &VersionKey) {
        let beside = self.live.get(&id).map_or(0, |live| live.running.len());
        self.log(match beside {
            0 => format!("sandbox {id} begins call {call}"),
            _ => format!("sandbox {id} begins call {call} beside {beside}"),
        });
        let asked_at = self.calls.get(&call).map(|asked| asked.at);
        let mut found = Vec::new();
        let mut begun_in = None;
        if let Some(live) = self.live.get_mut(&id) {
            let most = most_uses(&live.version);
            begun_in = Some((live.uses, live.made));
            if live.failed.is_some() {
                found.push("it has failed before");
            }
            if live.running.len() >= seats(&live.version) {
                found.push("its seats are taken");
            }
            // One that was only starting then may serve whoever waits when it comes.
            let superseded = live.superseded.filter(|since| live.made <= *since);
            let superseded = superseded.zip(asked_at);
            if superseded.is_some_and(|(since, asked)| asked > since) {
                found.push("its version was superseded before anybody asked");
            }
            if live.uses >= most {
                found.push("it is used up");
            }
            if live.candidate || live.version.key() != *version {
                found.push("it is of another version");
            }
            live.running.insert(call);
            live.uses += 1;
        } else {
            found.push("it does not exist");
        }
        for reason in found {
            self.broken(
                "reuse",
                format!("sandbox {id} begins call {call}, but {reason}"),
            );
        }
        self.ledger.called(version);
        let asked = self.calls.get_mut(&call);
        let again = asked.is_none_or(|asked| {
            asked.begun_in = begun_in;
            asked.begun += 1;
            asked.begun > 1
        });
        self.require("once", !again, || {
            format!("call {call} is begun a second time")
        });
    }

    /// A sandbox ends an invocation, or is cut off in it.
    pub(super) fn ends(&mut self, id: u64, call: u64, well: bool) {
        if let Some(live) = self.live.get_mut(&id) {
            live.running.remove(&call);
            live.free_since = Instant::now();
            if !well {
                live.failed.get_or_insert_with(Instant::now);
            }
        }
        let word = if well { "completes" } else { "fails in" };
        self.log(format!("sandbox {id} {word} call {call}"));
        if let Some(asked) = self.calls.get_mut(&call) {
            asked.completed = well;
        }
    }

    /// A sandbox is found to be gone, or closed, before it began a call: the call is handed back.
    pub(super) fn hands_back(&mut self, id: u64, call: u64) {
        self.log(format!("sandbox {id} is found dead before call {call}"));
        let asked = self.calls.get_mut(&call);
        let asked_at = asked.map(|asked| {
            asked.handed_back += 1;
            asked.at
        });
        let Some(live) = self.live.get_mut(&id) else {
            return;
        };
        let since = *live.failed.get_or_insert_with(Instant::now);
        self.require("reuse", asked_at.is_none_or(|at| at <= since), || {
            format!("call {call} is sent to sandbox {id}, which had failed before it was made")
        });
    }

    /// Calls that run in sandboxes of the scheduler's, of one function or of all.
    pub(super) fn running(&self, function: Option<&FunctionName>) -> usize {
        self.live
            .values()
            .filter(|live| function.is_none_or(|name| live.version.function == *name))
            .map(|live| live.running.len())
            .sum()
    }

    /// Sandboxes of the scheduler's.
    pub(super) fn instances(&self) -> usize {
        self.live.values().filter(|live| !live.candidate).count()
    }

    /// Units of the worker that are in use.
    pub(super) fn units(&self) -> usize {
        self.units_taken + self.live.values().map(|live| live.units).sum::<usize>()
    }
}

/// How often a sandbox may be used.
fn most_uses(version: &Version) -> u32 {
    match (version.config.isolation, version.config.max_uses) {
        (Isolation::Request, _) => 1,
        (_, Some(max)) => max.get(),
        (_, None) => u32::MAX,
    }
}

/// How many calls a sandbox may run at the same time.
pub(super) fn seats(version: &Version) -> usize {
    version.config.instance_concurrency.get() as usize
}

/// A version that is being deployed has no number yet.
pub(super) fn is_candidate(version: &Version) -> bool {
    version.number.0 == 0
}

pub(super) fn name(function: usize) -> FunctionName {
    ["alpha", "beta", "gamma"][function].parse().unwrap()
}
