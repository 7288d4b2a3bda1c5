//! The activator against a naive one: who starts how many instances for those who wait, who gets each, and who is told
//! when there will be none.
//!
//! The real scheduler runs on a paused clock that only the test moves; every start and every run ends when, and as, the
//! test says. After each step the naive model, a list of who waits, of starts and of instances, must agree with what the
//! callers were told and with what the factory was asked for.

use super::fake::{invocation, version_with};
use super::settle;
use crate::service_rate::{Demand, Pace, starts};
use crate::{Config, Scheduler};
use async_trait::async_trait;
use fnctl_core::invocation::{ColdStart, StartKind};
use fnctl_core::ports::{Created, Invoker, Sandbox, SandboxFactory};
use fnctl_core::task::Tasks;
use fnctl_core::version::Version;
use fnctl_core::{ErrorKind, Failure, Invocation, Period, ReplySender, RunEnd, RunReport};
use parking_lot::Mutex;
use proptest::prelude::*;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

#[derive(Debug, Clone)]
enum Step {
    /// So many callers at once.
    Arrive(usize),
    StartSucceeds(usize),
    StartFails(usize),
    /// The node has no room for a start.
    StartRefused(usize),
    LeaveWaiting(usize),
    LeaveRunning(usize),
    Finish(usize),
    Trap(usize),
    Advance(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let which = 0usize..8;
    prop_oneof![
        5 => Just(Step::Arrive(1)),
        1 => (2usize..12).prop_map(Step::Arrive),
        5 => which.clone().prop_map(Step::StartSucceeds),
        2 => which.clone().prop_map(Step::StartFails),
        1 => which.clone().prop_map(Step::StartRefused),
        2 => which.clone().prop_map(Step::LeaveWaiting),
        1 => which.clone().prop_map(Step::LeaveRunning),
        5 => which.clone().prop_map(Step::Finish),
        1 => which.prop_map(Step::Trap),
        3 => (1u64..300).prop_map(Step::Advance),
    ]
}

/// How a caller was answered.
type Told = Result<StartKind, ErrorKind>;

/// A start or a run that waits for what the test decides.
type Pending<T> = Mutex<VecDeque<(u64, oneshot::Sender<T>)>>;

/// What the test has in its hands.
#[derive(Default)]
struct Hands {
    starts: Pending<Result<(), ErrorKind>>,
    /// By caller.
    runs: Pending<bool>,
    asked: Mutex<u64>,
    told: Mutex<BTreeMap<u64, Told>>,
}

struct Factory(Arc<Hands>);

#[async_trait]
impl SandboxFactory for Factory {
    async fn create(&self, _version: &Arc<Version>) -> Result<Created, Failure> {
        let (tx, rx) = oneshot::channel();
        let number = {
            let mut asked = self.0.asked.lock();
            *asked += 1;
            *asked
        };
        self.0.starts.lock().push_back((number, tx));
        match rx.await.unwrap() {
            Ok(()) => Ok(Created {
                sandbox: Box::new(Guest(self.0.clone())),
                phases: ColdStart::default(),
                footing: Box::new(fnctl_core::ports::NoFooting),
            }),
            Err(kind) => Err(Failure::new(kind, "as decided")),
        }
    }
}

struct Guest(Arc<Hands>);

/// The number of a caller, in its request.
#[derive(Clone, Copy)]
struct Caller(u64);

#[async_trait]
impl Sandbox for Guest {
    async fn run(&mut self, invocation: Invocation, reply: ReplySender) -> RunReport {
        let Caller(caller) = *invocation.request.extensions().get().unwrap();
        let (tx, rx) = oneshot::channel();
        self.0.runs.lock().push_back((caller, tx));
        let well = tokio::select! {
            biased;
            () = invocation.cancelled.cancelled() => None,
            well = rx => Some(well.unwrap()),
        };
        let failed = |kind| RunEnd::Failed(Failure::new(kind, "as decided"));
        let end = match well {
            Some(true) => {
                reply.send(Ok(http::Response::new(fnctl_core::empty())));
                RunEnd::Completed
            }
            Some(false) => {
                reply.send(Err(Failure::new(ErrorKind::Trap, "as decided")));
                failed(ErrorKind::Trap)
            }
            None => failed(ErrorKind::Cancelled),
        };
        RunReport {
            end,
            memory: 0,
            cpu: None,
            inference: Duration::ZERO,
            computes: 0,
        }
    }
}

/// The naive activator.
#[derive(Default)]
struct Model {
    waiting: VecDeque<u64>,
    /// Starts under way, by the number of the factory's call, and when each began.
    starting: VecDeque<(u64, Instant)>,
    /// How often each idle instance was used; the last was used last.
    idle: Vec<u32>,
    /// Who runs since when, on an instance used so often before.
    busy: VecDeque<(u64, Instant, u32)>,
    /// How each who runs came to an instance.
    kinds: BTreeMap<u64, StartKind>,
    told: BTreeMap<u64, Told>,
    pace: Pace,
    asked: u64,
}

impl Model {
    fn needs(&self) -> usize {
        let (waiting, starting) = (self.waiting.len(), self.starting.len());
        let demand = Demand {
            waiting,
            busy: self.busy.len(),
            starting,
            seats: 1,
            uses: None,
        };
        starts(&demand, &self.pace).min(waiting.saturating_sub(starting))
    }

    fn start(&mut self, count: usize, now: Instant) {
        for _ in 0..count {
            self.asked += 1;
            self.starting.push_back((self.asked, now));
        }
    }

    fn arrive(&mut self, caller: u64, now: Instant) {
        match self.idle.pop() {
            Some(0) => self.run(caller, 0, StartKind::Prewarmed, now),
            Some(uses) => self.run(caller, uses, StartKind::Warm, now),
            None => {
                self.waiting.push_back(caller);
                // One for each who comes, at most.
                self.start(self.needs().min(1), now);
            }
        }
    }

    fn run(&mut self, caller: u64, uses: u32, kind: StartKind, now: Instant) {
        self.busy.push_back((caller, now, uses));
        self.kinds.insert(caller, kind);
    }

    /// An instance is free: for the one who waits longest.
    fn free(&mut self, uses: u32, kind: StartKind, now: Instant) {
        match self.waiting.pop_front() {
            Some(caller) => self.run(caller, uses, kind, now),
            None => self.idle.push(uses),
        }
    }

    fn tell(&mut self, count: usize, kind: ErrorKind) {
        for caller in self.waiting.drain(..count) {
            self.told.insert(caller, Err(kind));
        }
    }

    /// A start ends; the others are under way still.
    fn start_ends(&mut self, number: u64, now: Instant) -> Duration {
        let place = self.starting.iter().position(|(other, _)| *other == number);
        let (_, began) = self.starting.remove(place.unwrap()).unwrap();
        now - began
    }

    fn start_fails(&mut self, now: Instant) {
        let left = self.starting.len() + self.busy.len();
        let waiting = self.waiting.len();
        // One failure is not everybody's, unless nothing else could serve them; nobody waits for nothing.
        let told = match left {
            0 => waiting.div_ceil(2),
            _ if waiting > self.starting.len() => waiting.div_ceil(left + 1),
            _ => 0,
        };
        self.tell(told, ErrorKind::StartFailed);
        self.start(self.needs(), now);
    }

    fn start_refused(&mut self, now: Instant) {
        if !self.idle.is_empty() {
            // The one that has been idle longest makes room, and it is tried again.
            self.idle.remove(0);
            self.start(1, now);
        } else if self.starting.is_empty() && self.busy.is_empty() {
            self.tell(self.waiting.len(), ErrorKind::NodeFull);
        }
    }

    fn run_ends(&mut self, place: usize, now: Instant) -> (u64, u32) {
        let (caller, since, uses) = self.busy.remove(place).unwrap();
        self.pace.service.add(now - since);
        (caller, uses + 1)
    }
}

fn take<T>(pending: &Pending<T>, number: u64) -> oneshot::Sender<T> {
    let mut pending = pending.lock();
    let place = pending.iter().position(|(other, _)| *other == number);
    pending.remove(place.unwrap()).unwrap().1
}

struct Bench {
    hands: Arc<Hands>,
    scheduler: Scheduler,
    version: Arc<Version>,
    callers: BTreeMap<u64, tokio::task::JoinHandle<()>>,
    model: Model,
}

impl Bench {
    fn new() -> Self {
        let hands = Arc::new(Hands::default());
        let config = Config {
            max_instances: 10_000,
            max_concurrency: 10_000,
            max_running: 10_000,
            ..Config::default()
        };
        let scheduler = Scheduler::new(
            config,
            Arc::new(Factory(hands.clone())),
            Tasks::default(),
            &prometheus::Registry::new(),
            Arc::new(fnctl_core::log::NoLogs),
        );
        Self {
            hands,
            scheduler: scheduler.unwrap(),
            version: version_with(|config| {
                config.concurrency = std::num::NonZeroU32::new(1_000).unwrap();
                config.timeout = Period::secs(900);
            }),
            callers: BTreeMap::new(),
            model: Model::default(),
        }
    }

    fn arrive(&mut self) {
        let number = self.callers.len() as u64;
        let mut invocation = invocation(&self.version);
        invocation.request.extensions_mut().insert(Caller(number));
        let (scheduler, hands) = (self.scheduler.clone(), self.hands.clone());
        let caller = tokio::spawn(async move {
            let answer = scheduler.invoke(invocation).await;
            let told = match answer {
                Ok(reply) => Ok(reply.start),
                Err(refused) => Err(refused.failure.kind),
            };
            hands.told.lock().insert(number, told);
        });
        self.callers.insert(number, caller);
        self.model.arrive(number, Instant::now());
    }

    /// Carries a step out, on the scheduler and on the model.
    async fn step(&mut self, step: &Step) {
        let now = Instant::now();
        let (hands, model) = (&self.hands, &mut self.model);
        let start = |model: &Model, which: usize| {
            let starts = &model.starting;
            (!starts.is_empty()).then(|| starts[which % starts.len()].0)
        };
        let run = |model: &Model, which: usize| {
            let runs = model.busy.len();
            (runs > 0).then(|| which % runs)
        };
        match *step {
            Step::Arrive(count) => (0..count).for_each(|_| self.arrive()),
            Step::StartSucceeds(which) => {
                if let Some(number) = start(model, which) {
                    let took = model.start_ends(number, now);
                    model.pace.start.add(took);
                    model.free(0, StartKind::Cold, now);
                    take(&hands.starts, number).send(Ok(())).unwrap();
                }
            }
            Step::StartFails(which) => {
                if let Some(number) = start(model, which) {
                    model.start_ends(number, now);
                    model.start_fails(now);
                    let kind = ErrorKind::StartFailed;
                    take(&hands.starts, number).send(Err(kind)).unwrap();
                }
            }
            Step::StartRefused(which) => {
                if let Some(number) = start(model, which) {
                    model.start_ends(number, now);
                    model.start_refused(now);
                    let kind = ErrorKind::NodeFull;
                    take(&hands.starts, number).send(Err(kind)).unwrap();
                }
            }
            Step::LeaveWaiting(which) => {
                if !model.waiting.is_empty() {
                    let caller = model.waiting.remove(which % model.waiting.len());
                    self.callers[&caller.unwrap()].abort();
                }
            }
            Step::LeaveRunning(which) => {
                if let Some(place) = run(model, which) {
                    let (caller, _) = model.run_ends(place, now);
                    model.start(model.needs().min(1), now);
                    self.callers[&caller].abort();
                }
            }
            Step::Finish(which) => {
                if let Some(place) = run(model, which) {
                    let (caller, uses) = model.run_ends(place, now);
                    let kind = model.kinds[&caller];
                    model.told.insert(caller, Ok(kind));
                    model.free(uses, StartKind::Warm, now);
                    take(&hands.runs, caller).send(true).unwrap();
                }
            }
            Step::Trap(which) => {
                if let Some(place) = run(model, which) {
                    let (caller, _) = model.run_ends(place, now);
                    model.told.insert(caller, Err(ErrorKind::Trap));
                    model.start(model.needs().min(1), now);
                    take(&hands.runs, caller).send(false).unwrap();
                }
            }
            Step::Advance(ms) => tokio::time::advance(Duration::from_millis(ms)).await,
        }
        settle().await;
        // Runs of callers that have left are nobody's any more.
        let mut runs = self.hands.runs.lock();
        runs.retain(|(_, run)| !run.is_closed());
    }

    fn agrees(&self) -> Result<(), TestCaseError> {
        let model = &self.model;
        prop_assert_eq!(&*self.hands.told.lock(), &model.told, "who was told what");
        let starts: Vec<_> = self.hands.starts.lock().iter().map(|(n, _)| *n).collect();
        let expected: Vec<_> = model.starting.iter().map(|(n, _)| *n).collect();
        prop_assert_eq!(starts, expected, "starts under way");
        let mut runs: Vec<_> = self.hands.runs.lock().iter().map(|(n, _)| *n).collect();
        let mut expected: Vec<_> = model.busy.iter().map(|(n, _, _)| *n).collect();
        runs.sort_unstable();
        expected.sort_unstable();
        prop_assert_eq!(runs, expected, "who runs");
        let instances = model.idle.len() + model.busy.len() + model.starting.len();
        prop_assert_eq!(self.scheduler.instances(), instances);
        let in_flight = model.waiting.len() + model.busy.len();
        prop_assert_eq!(self.scheduler.in_flight(), in_flight);
        let served = model.starting.len() + model.busy.len();
        prop_assert!(
            model.waiting.is_empty() || served > 0,
            "somebody waits for nothing"
        );
        prop_assert!(model.waiting.is_empty() || model.idle.is_empty());
        Ok(())
    }

    /// The function is removed: whoever waits is told so, and what runs ends.
    async fn remove(&mut self) -> Result<(), TestCaseError> {
        self.scheduler.retire(&[self.version.key()]);
        settle().await;
        let model = &mut self.model;
        model.tell(model.waiting.len(), ErrorKind::NotFound);
        model.idle.clear();
        self.agrees()?;
        for (_, start) in self.hands.starts.lock().drain(..) {
            start.send(Ok(())).unwrap();
        }
        for (_, run) in self.hands.runs.lock().drain(..) {
            run.send(true).unwrap();
        }
        settle().await;
        prop_assert_eq!(self.scheduler.instances(), 0, "what came too late goes");
        prop_assert_eq!(self.scheduler.in_flight(), 0);
        Ok(())
    }
}

fn paused(work: impl Future<Output = Result<(), TestCaseError>>) -> Result<(), TestCaseError> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().unwrap();
    runtime.block_on(work)
}

proptest! {
    /// Starts, hand-overs and refusals are those of the naive activator, step for step.
    #[test]
    fn the_activator_agrees_with_a_naive_one(steps in prop::collection::vec(step(), 1..80)) {
        paused(async move {
            let mut bench = Bench::new();
            for step in &steps {
                bench.step(step).await;
                bench.agrees()?;
            }
            bench.remove().await
        })?;
    }
}
