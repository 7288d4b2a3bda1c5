//! Runs a plan: one runtime with a paused clock for each life, the real scheduler and deploy code in it, and the rules
//! checked whenever nothing more can happen at an instant.

use super::checks::{self, TICK};
use super::host;
use super::plan::{Call, End, Event, Life, Plan, Reads, Target, What};
use super::sandboxes::{Factory, Planned};
use super::store::{AllArtifacts, FakeStore};
use super::watched::Watched;
use super::world::{Answer, Asked, Broken, Trace, World};
use crate::{Config, Scheduler};
use fnctl_core::deploy::{DeployRequest, Deployer, live_alias};
use fnctl_core::ids::{AliasName, Digest, FunctionName};
use fnctl_core::ports::{FunctionStore, Invoker};
use fnctl_core::task::Tasks;
use fnctl_core::trace::Trace as Spans;
use fnctl_core::units::ByteSize;
use fnctl_core::version::{Alias, Selector, Split, Version};
use fnctl_core::{ErrorKind, Invocation, RequestId};
use http_body_util::BodyExt;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What came of a plan.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) hash: u64,
    pub(super) broken: Vec<Broken>,
    pub(super) lines: Vec<String>,
    /// How often the rules were checked.
    pub(super) checks: u64,
}

/// Something a test does to the scheduler, or to the fakes, behind everybody's back.
pub(super) type Sabotage = Arc<dyn Fn(&Platform) + Send + Sync>;

/// Runs a plan from its first life to its last.
pub(super) fn run(plan: &Arc<Plan>, keep_lines: bool, sabotage: Option<&Sabotage>) -> Outcome {
    let store = Arc::new(FakeStore::default());
    let mut outcome = Outcome {
        hash: 0,
        broken: Vec::new(),
        lines: Vec::new(),
        checks: 0,
    };
    let mut trace = Trace::new(keep_lines);
    for (number, life) in plan.lives.iter().enumerate() {
        let world = World::new(plan.clone(), number, std::mem::take(&mut trace));
        let park = world.clone();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .on_thread_park(move || park.settled())
            .build()
            .unwrap();
        runtime.block_on(live(life, &world, &store, sabotage));
        // What is still running is cut off wherever it waits, as by the end of the process.
        world.books.lock().ended = true;
        drop(runtime);
        let mut books = world.books.lock();
        books.ended = false;
        let left = books.live.len();
        books.require("end", left == 0, || {
            format!("{left} sandboxes outlive the process")
        });
        let (starting, uses) = (books.starting, world.host.uses());
        books.require("end", starting == 0, || {
            format!("{starting} starts outlive the process")
        });
        books.require("end", uses == 0, || {
            format!("{uses} sessions outlive the process")
        });
        trace = std::mem::take(&mut books.trace);
        outcome.checks += books.checks;
        outcome.broken.append(&mut books.broken);
        if !outcome.broken.is_empty() {
            break;
        }
    }
    outcome.hash = trace.hash();
    outcome.lines = trace.lines.unwrap_or_default();
    outcome
}

/// The parts of one life.
#[derive(Clone)]
pub(super) struct Platform {
    pub(super) world: Arc<World>,
    pub(super) scheduler: Scheduler,
    store: Arc<FakeStore>,
    deployer: Deployer,
    registry: prometheus::Registry,
    /// The tasks of callers and of the driver, none of which may panic.
    outside: Tasks,
}

async fn live(
    life: &Life,
    world: &Arc<World>,
    store: &Arc<FakeStore>,
    sabotage: Option<&Sabotage>,
) {
    let registry = prometheus::Registry::new();
    let config = Config {
        max_instances: world.plan.slots,
        ..Config::default()
    };
    let factory = Arc::new(Factory(world.clone()));
    let logs = Arc::new(fnctl_core::log::NoLogs);
    let scheduler =
        Scheduler::new(config, factory.clone(), Tasks::default(), &registry, logs).unwrap();
    world.begin(&scheduler.inner);
    let deployer = Deployer {
        functions: store.clone(),
        artifacts: Arc::new(AllArtifacts),
        checks: Vec::new(),
        sandboxes: factory,
        invoker: Arc::new(Watched(scheduler.clone(), world.clone())),
        max_memory: ByteSize::mib(1024),
        turns: Default::default(),
    };
    let platform = Platform {
        world: world.clone(),
        scheduler,
        store: store.clone(),
        deployer,
        registry,
        outside: Tasks::default(),
    };
    platform.restore();
    let reaper = platform.reaper(life.reap_every);
    let drain = match life.end {
        End::Drain { at, grace } => Some(platform.drain(at, grace)),
        End::Quiet | End::Kill => None,
    };
    let began = Instant::now();
    for (number, event) in life.events.iter().enumerate() {
        tokio::time::sleep_until(began + Duration::from_millis(event.at)).await;
        if world.is_broken() {
            return;
        }
        if number == life.events.len() / 2
            && let Some(sabotage) = sabotage
        {
            sabotage(&platform);
        }
        platform.happen(event).await;
    }
    match (drain, &life.end) {
        (Some(drain), _) => drop(drain.await),
        (None, End::Kill) => tokio::time::sleep(Duration::from_millis(20)).await,
        (None, _) => {
            reaper.abort();
            platform.quiet().await;
        }
    }
    let panics = platform.outside.panics();
    world.require("panics", panics == 0, || {
        format!("{panics} callers panicked")
    });
}

impl Platform {
    /// As the platform does when it starts.
    fn restore(&self) {
        let mut live: Vec<_> = FunctionStore::functions(self.store.as_ref(), None)
            .iter()
            .filter_map(|function| function.versions.get(&function.live()?.version).cloned())
            .collect();
        for version in &live {
            self.scheduler.configure(version);
        }
        live.retain(|version| version.config.provisioned > 0);
        let deployer = self.deployer.clone();
        self.outside.spawn("restore", async move {
            for version in live {
                deployer.restore(&version.function).await;
            }
        });
    }

    fn reaper(&self, every: Duration) -> tokio::task::JoinHandle<()> {
        let this = self.clone();
        self.outside.spawn("reaper", async move {
            loop {
                tokio::time::sleep(every).await;
                this.reap(0);
            }
        })
    }

    fn reap(&self, skew: i64) {
        let shift = Duration::from_millis(skew.unsigned_abs());
        let now = Instant::now();
        let then = if skew < 0 {
            now.checked_sub(shift).unwrap_or(now)
        } else {
            now + shift
        };
        self.world.books.lock().reaping = skew <= 0;
        let reaped = self.scheduler.reap(then);
        self.world.books.lock().reaping = false;
        let next = self.scheduler.next_expiry();
        self.world
            .require("reaped", next.is_none_or(|next| next > then), || {
                format!(
                    "an instance is overdue by {:?}",
                    next.map(|next| then - next)
                )
            });
        if reaped > 0 {
            self.world.log(|| format!("{reaped} reaped"));
        }
    }

    fn drain(&self, at: u64, grace: u64) -> tokio::task::JoinHandle<()> {
        let (this, grace) = (self.clone(), Duration::from_millis(grace));
        self.outside.spawn("drain", async move {
            tokio::time::sleep(Duration::from_millis(at)).await;
            this.world.log(|| format!("drain within {grace:?}"));
            let since = Instant::now();
            let done = this.scheduler.drain(grace).await;
            let (took, left) = (since.elapsed(), this.scheduler.in_flight());
            this.world.log(|| format!("drained: {done} after {took:?}"));
            // A jump of the clock may pass the end of the grace period.
            let jumps = this.world.plan.trouble.jumps > 0;
            this.world
                .require("drain", jumps || took <= grace + TICK, || {
                    format!("it took {took:?} of {grace:?}")
                });
            this.world.require("drain", !done || left == 0, || {
                format!("it is done, and {left} invocations are in flight")
            });
            this.world.require("drain", done || left > 0, || {
                "it gave up with nothing in flight".into()
            });
            this.world.require("drain", done || took >= grace, || {
                format!("it gave up after {took:?} of {grace:?}")
            });
            let late = this.ask_after_drain().await;
            this.world
                .require("drain", late, || "a call is taken after it".to_owned());
        })
    }

    /// Whether a call is refused because the platform shuts down.
    async fn ask_after_drain(&self) -> bool {
        let live = Selector::Live;
        let names = &self.world.names;
        let version = names
            .iter()
            .find_map(|name| self.store.resolve(name, &live, 0));
        let Some(version) = version else {
            return true;
        };
        let request = http::Request::new(fnctl_core::empty());
        let asked = self
            .scheduler
            .invoke(invocation(&version, 0, request))
            .await;
        asked.is_err_and(|refused| refused.failure.kind == ErrorKind::Draining)
    }

    async fn happen(&self, event: &Event) {
        match &event.what {
            What::Call(call) => self.call(call),
            What::Reap { skew } => {
                self.world.log(|| format!("reap, off by {skew} ms"));
                self.reap(*skew);
            }
            What::Jump { ms } => {
                self.world.log(|| format!("the clock jumps by {ms} ms"));
                tokio::time::advance(Duration::from_millis(*ms)).await;
            }
            What::HostDies => host::dies(&self.world),
            What::HostHangs => {
                self.outside.spawn("hang", host::hangs(self.world.clone()));
            }
            other => self.change(other.clone()),
        }
    }

    /// An operator does something; it takes its time.
    fn change(&self, what: What) {
        let this = self.clone();
        self.outside.spawn("operator", async move {
            this.world.log(|| format!("operator: {}", short(&what)));
            let done = match &what {
                What::Deploy { function, config } => {
                    let request = DeployRequest {
                        artifact: Digest::of(b"simulated"),
                        models: BTreeMap::new(),
                        config: config.as_ref().clone(),
                    };
                    let (progress, _events) = tokio::sync::mpsc::channel(64);
                    this.deployer
                        .deploy(this.name(*function), request, progress)
                        .await;
                    "done".to_owned()
                }
                What::Rollback { function } => {
                    said(&this.deployer.rollback(&this.name(*function), None).await)
                }
                What::Remove { function } => {
                    said(&this.deployer.remove(&this.name(*function)).await)
                }
                What::Alias {
                    function,
                    live,
                    back,
                    split,
                } => {
                    let to = Alias {
                        version: this.back(*function, *back),
                        split: split.map(|(back, percent)| Split {
                            version: this.back(*function, back),
                            percent,
                        }),
                    };
                    let alias = if *live {
                        live_alias().unwrap()
                    } else {
                        other_alias()
                    };
                    said(
                        &this
                            .deployer
                            .set_alias(&this.name(*function), &alias, Some(to))
                            .await,
                    )
                }
                What::Unalias { function } => {
                    let name = this.name(*function);
                    said(&this.deployer.set_alias(&name, &other_alias(), None).await)
                }
                _ => String::new(),
            };
            this.world
                .log(|| format!("operator: {}: {done}", short(&what)));
        });
    }

    fn name(&self, function: usize) -> FunctionName {
        self.world.names[function].clone()
    }

    /// The version so many before the newest, or the oldest.
    fn back(&self, function: usize, back: usize) -> fnctl_core::VersionNumber {
        let function = self.store.function(&self.name(function));
        let numbers = function
            .iter()
            .flat_map(|function| function.versions.keys().rev());
        numbers
            .take(back + 1)
            .last()
            .copied()
            .unwrap_or(fnctl_core::VersionNumber(1))
    }

    fn call(&self, call: &Call) {
        let name = self.name(call.function);
        let id = RequestId::from_caller(&format!("call-{}", call.id)).unwrap();
        let selector = match call.target {
            Target::Live | Target::Gone => Selector::Live,
            Target::Latest => Selector::Latest,
            Target::Alias => Selector::Alias(other_alias()),
            Target::Back(back) => Selector::Number(self.back(call.function, back)),
        };
        let gone = (call.target == Target::Gone)
            .then(|| self.store.gone(&name))
            .flatten();
        let version = gone.or_else(|| self.store.resolve(&name, &selector, id.draw()));
        let Some(version) = version else {
            return;
        };
        let mut request = http::Request::new(fnctl_core::empty());
        if call.head {
            *request.method_mut() = http::Method::HEAD;
        }
        let call = Arc::new(call.clone());
        request.extensions_mut().insert(Planned(call.clone()));
        let invocation = invocation(&version, call.id, request);
        let this = self.clone();
        self.outside
            .spawn("caller", async move { this.caller(call, invocation).await });
    }

    async fn caller(&self, call: Arc<Call>, invocation: Invocation) {
        let (world, id) = (&self.world, call.id);
        let (deadline, version) = (invocation.deadline, invocation.version.key());
        world.log(|| format!("call {id} of {version}"));
        let asked = Asked {
            deadline,
            unbegun_left: call.run.unbegun,
            begun: 0,
            sent: None,
            completed: false,
            left: false,
            over: false,
        };
        world.books.lock().calls.insert(id, asked);
        let asked = self.scheduler.invoke(invocation);
        let answer = match call.leaves {
            None => asked.await,
            Some(after) => tokio::select! {
                biased;
                answer = asked => answer,
                () = tokio::time::sleep(Duration::from_millis(after)) => {
                    world.log(|| format!("caller {id} leaves"));
                    over(world, id);
                    left(world, id);
                    return;
                }
            },
        };
        over(world, id);
        match answer {
            Ok(reply) => {
                let from = reply.response.headers().get("x-call").cloned();
                let right = from.is_some_and(|from| from.as_bytes() == id.to_string().as_bytes());
                world.require("answer", right, || {
                    format!("call {id} gets another's answer")
                });
                answered(world, &call, Answer::Response);
                read(world, &call, reply.response.into_body()).await;
            }
            Err(refused) => answered(world, &call, Answer::Failure(refused.failure.kind)),
        }
    }

    /// Nobody calls any more. What is in flight ends, what is idle goes, and what is left is checked.
    async fn quiet(&self) {
        self.world.log(|| "quiet".into());
        self.world.books.lock().calm = true;
        // Deadlines, starts, keep-alives and the longest wait after failed starts are over by then.
        for _ in 0..16 {
            tokio::time::sleep(Duration::from_secs(5)).await;
            self.reap(0);
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
        if self.world.is_broken() {
            return;
        }
        if let Some(audit) = self.world.audit() {
            checks::quiet(&self.world, &audit, &self.store, &self.tracked());
        }
        let drained = self.scheduler.drain(Duration::from_secs(1)).await;
        self.world.require("drain", drained, || {
            "nothing is in flight, and it waits".into()
        });
        tokio::time::sleep(Duration::from_secs(5)).await;
        let left = (
            self.scheduler.instances(),
            self.world.books.lock().instances(),
        );
        self.world.require("drain", left == (0, 0), || {
            format!("{left:?} instances after it")
        });
    }

    /// Versions that have metrics.
    fn tracked(&self) -> BTreeSet<String> {
        let mut tracked = BTreeSet::new();
        for family in self.registry.gather() {
            for metric in family.get_metric() {
                let label = |name: &str| {
                    let found = metric.get_label().iter().find(|label| label.name() == name);
                    found.map(|label| label.value().to_owned())
                };
                if let (Some(function), Some(version)) = (label("function"), label("version")) {
                    tracked.insert(format!("{function}:{version}"));
                }
            }
        }
        tracked
    }
}

fn invocation(
    version: &Arc<Version>,
    id: u64,
    request: http::Request<fnctl_core::Body>,
) -> Invocation {
    let received = Instant::now();
    Invocation {
        version: version.clone(),
        request_id: RequestId::from_caller(&format!("call-{id}")).unwrap(),
        request,
        received,
        deadline: received + version.config.timeout.duration(),
        cancelled: CancellationToken::new(),
        trace: Spans::none(),
        report: false,
    }
}

fn left(world: &World, id: u64) {
    if let Some(asked) = world.books.lock().calls.get_mut(&id) {
        asked.left = true;
    }
}

fn over(world: &World, id: u64) {
    if let Some(asked) = world.books.lock().calls.get_mut(&id) {
        asked.over = true;
    }
}

/// The answer is the guest's, if it gave one; and a defect of the platform's only where one was planned.
fn answered(world: &World, call: &Call, answer: Answer) {
    let mut books = world.books.lock();
    let id = call.id;
    books.log(format!("call {id} is answered: {answer:?}"));
    let Some(asked) = books.calls.get(&id) else {
        return;
    };
    let (sent, begun) = (asked.sent, asked.begun);
    if let Some(sent) = sent {
        books.require("answer", sent == answer, || {
            format!("call {id} is answered {answer:?}, its guest said {sent:?}")
        });
    }
    let internal = answer == Answer::Failure(ErrorKind::Internal);
    let planned = books.planned_panics > 0 || call.run.unbegun > 1 || begun > 0;
    books.require("answer", !internal || planned, || {
        format!("call {id} is answered with a defect that nobody planned")
    });
    books.require(
        "answer",
        sent.is_some() || answer != Answer::Response,
        || format!("call {id} has a response that no guest gave"),
    );
}

async fn read(world: &World, call: &Call, mut body: fnctl_core::Body) {
    let most = match call.reads {
        Reads::All => u64::MAX,
        Reads::Some(chunks) => chunks,
        Reads::Late(after) => {
            tokio::time::sleep(Duration::from_millis(after)).await;
            u64::MAX
        }
    };
    let mut chunks = 0;
    while chunks < most {
        match body.frame().await {
            Some(Ok(_)) => chunks += 1,
            Some(Err(_)) | None => break,
        }
    }
    drop(body);
    let id = call.id;
    if chunks < call.run.chunks && !call.head {
        left(world, id);
    }
    let mut books = world.books.lock();
    books.log(format!("caller {id} has read {chunks} chunks"));
    let completed = books.calls.get(&id).is_some_and(|asked| asked.completed);
    let short = completed && most == u64::MAX && !call.head && chunks != call.run.chunks;
    books.require("answer", !short, || {
        format!(
            "call {id} got {chunks} of {} chunks of a complete answer",
            call.run.chunks
        )
    });
}

fn other_alias() -> AliasName {
    "canary".parse().unwrap()
}

fn said<T>(outcome: &Result<T, fnctl_core::Failure>) -> String {
    match outcome {
        Ok(_) => "done".into(),
        Err(failure) => failure.kind.to_string(),
    }
}

fn short(what: &What) -> String {
    match what {
        What::Deploy { function, config } => format!(
            "deploy {function}: concurrency {} queue {} provisioned {} keep-alive {:?}",
            config.concurrency, config.queue_size, config.provisioned, config.keep_alive.0
        ),
        other => format!("{other:?}"),
    }
}
