//! Runs a plan: one runtime with a paused clock for each life, the real scheduler and deploy code in it, and the rules
//! checked whenever nothing more can happen at an instant.

use super::callers;
use super::checks::TICK;
use super::host;
use super::kept::{self, Before};
use super::plan::{End, Event, Life, Plan, What};
use super::quiet::quiet;
use super::sandboxes::Factory;
use super::store::{AllArtifacts, FakeStore};
use super::watched::Watched;
use super::world::{Broken, Reaping, Trace, World};
use crate::{Clock, Config, Scheduler};
use fnctl_core::ErrorKind;
use fnctl_core::deploy::{DeployRequest, Deployer, live_alias};
use fnctl_core::ids::{AliasName, Digest, FunctionName};
use fnctl_core::ports::{FunctionStore, Invoker};
use fnctl_core::task::Tasks;
use fnctl_core::units::ByteSize;
use fnctl_core::version::{Alias, Selector, Split};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

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
    pub(super) store: Arc<FakeStore>,
    deployer: Deployer,
    registry: prometheus::Registry,
    /// The tasks of callers and of the driver, none of which may panic.
    pub(super) outside: Tasks,
}

async fn live(
    life: &Life,
    world: &Arc<World>,
    store: &Arc<FakeStore>,
    sabotage: Option<&Sabotage>,
) {
    let registry = prometheus::Registry::new();
    let plan = &world.plan;
    let time = world.clone();
    let config = Config {
        max_instances: plan.slots,
        max_concurrency: plan.max_concurrency,
        max_running: plan.max_running,
        memory: ByteSize(plan.memory).into(),
        keep_alive_policy: plan.policy,
        clock: Clock::new(move || time.time_of_day()),
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
    // So that the rules are checked once more, whatever the clock jumped over.
    tokio::time::sleep(TICK).await;
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
            self.world
                .books
                .lock()
                .ledger
                .activated(&self.world, version);
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
        let world = &self.world;
        let shift = Duration::from_millis(skew.unsigned_abs());
        let now = Instant::now();
        let then = if skew < 0 {
            now.checked_sub(shift).unwrap_or(now)
        } else {
            now + shift
        };
        let Some(before) = Before::look(world, then) else {
            return;
        };
        let strict = before.is_strict(world);
        world.books.lock().reaping = Some(Reaping {
            strict,
            gone: BTreeMap::new(),
        });
        let reaped = self.scheduler.reap(then);
        let reaping = world.books.lock().reaping.take();
        let may_start = !self.scheduler.inner.draining.load(Ordering::SeqCst);
        if let (Some(after), Some(reaping)) = (world.audit(), reaping) {
            kept::reaped(world, &before, &after, &reaping.gone, may_start);
        }
        if reaped > 0 {
            world.log(|| format!("{reaped} reaped"));
        }
    }

    fn drain(&self, at: u64, grace: u64) -> tokio::task::JoinHandle<()> {
        let (this, grace) = (self.clone(), Duration::from_millis(grace));
        self.outside.spawn("drain", async move {
            tokio::time::sleep(Duration::from_millis(at)).await;
            this.world.log(|| format!("drain within {grace:?}"));
            this.world.books.lock().draining = true;
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
            .invoke(callers::invocation(&version, 0, request))
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
                self.world.note_load();
                tokio::time::advance(Duration::from_millis(*ms)).await;
            }
            What::SetClock { ms } => {
                self.world
                    .log(|| format!("the time of day is set by {ms} ms"));
                self.world.skew.fetch_add(*ms, Ordering::Relaxed);
            }
            What::Sessions { mib } => {
                self.world.log(|| format!("sessions take {mib} MiB"));
                self.world.books.lock().sessions = mib << 20;
                self.scheduler.set_session_memory(mib << 20);
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

    pub(super) fn name(&self, function: usize) -> FunctionName {
        self.world.names[function].clone()
    }

    /// The version so many before the newest, or the oldest.
    pub(super) fn back(&self, function: usize, back: usize) -> fnctl_core::VersionNumber {
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

    /// Nobody calls any more. What is in flight ends, what is idle goes, and what is left is checked.
    async fn quiet(&self) {
        self.world.log(|| "quiet".into());
        self.world.books.lock().calm = true;
        // Deadlines, starts, keep-alives and the longest wait after failed starts are over by then.
        for _ in 0..26 {
            tokio::time::sleep(Duration::from_secs(5)).await;
            self.reap(0);
        }
        // What policies keep goes, and comes and goes again as often as they want; what is started for a window has come.
        let mut turns = 0;
        while let Some(next) = self.next_change() {
            tokio::time::sleep_until(next + TICK).await;
            self.reap(0);
            turns += 1;
            if turns > 200 {
                self.world
                    .broken("quiet", || "it does not come to rest".into());
                return;
            }
        }
        if self.world.is_broken() {
            return;
        }
        if let Some(audit) = self.world.audit() {
            quiet(&self.world, &audit, &self.store, &self.tracked());
        }
        self.world.books.lock().draining = true;
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

    /// When something is still to happen that nobody asks for: an instance goes or comes, a window closes.
    fn next_change(&self) -> Option<Instant> {
        let world = &self.world;
        let now = Instant::now();
        let soon = now + Duration::from_secs(3);
        let asked = |back: u64| {
            let books = world.books.lock();
            let live = |name| books.ledger.live(name).cloned();
            let live: Vec<_> = world.names.iter().filter_map(live).collect();
            drop(books);
            let at = world.time_of_day() - Duration::from_secs(back);
            let asked = live.iter().map(|version| kept::asked(&version.config, at));
            asked.collect::<Vec<_>>()
        };
        if asked(0) != asked(10) {
            return Some(soon);
        }
        let audit = world.audit()?;
        let pools = audit.pools.iter().filter(|pool| pool.listed);
        let next = pools
            .filter(|pool| pool.idle.len() > pool.floor)
            .filter_map(|pool| {
                let until = kept::until(&world.books.lock(), pool);
                until.into_iter().min()
            })
            // What is kept until its room is needed stays.
            .filter(|until| *until < now + Duration::from_secs(86_400 * 200));
        let ahead = world.ahead(now).into_iter().map(|(_, due)| due);
        let ahead = ahead.filter(|due| *due > now);
        next.chain(ahead).min()
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

pub(super) fn other_alias() -> AliasName {
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
        What::Deploy { function, config } => {
            let asked = (config.provisioned, config.min_instances);
            let policy = config.keep_alive_policy;
            let mut text = format!(
                "deploy {function}: {asked:?}, limit {}",
                kept::limit(config)
            );
            text += &format!(
                " queue {} keep {:?}",
                config.queue_size, config.keep_alive.0
            );
            text += &format!(" {policy:?} reserved {:?}", config.reserved_concurrency);
            text += &format!(" seats {}", config.instance_concurrency);
            if let Some(target) = config.target_concurrency {
                let windows = (config.stable_window.0, config.panic_window.0);
                let delay = config.scale_down_delay.0;
                text += &format!(" target {target} {windows:?} delay {delay:?}");
            }
            for window in &config.schedule {
                let asked = (window.provisioned, window.min_instances);
                let times = (window.duration.0, window.ramp_down.0);
                text += &format!(" window {asked:?} {times:?}");
            }
            text
        }
        other => format!("{other:?}"),
    }
}
