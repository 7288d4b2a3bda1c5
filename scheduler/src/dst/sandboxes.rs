//! Fake sandboxes: they start, run, fail, hang and panic as the plan says, keep to the port's promises as the worker
//! does, and write down what is done to them.

use super::host::FakeHost;
use super::plan::{Call, Fate, StartFault};
use super::world::{Answer, World, is_candidate, seats};
use async_trait::async_trait;
use bytes::Bytes;
use fnctl_core::body::{Body, BodyError};
use fnctl_core::ids::FunctionName;
use fnctl_core::inference::{Compute, LoadModel, ModelSource, SessionId, Tensor, TensorType};
use fnctl_core::invocation::ColdStart;
use fnctl_core::ports::{Created, InferenceHost, Sandbox, SandboxFactory};
use fnctl_core::version::Version;
use fnctl_core::{ErrorKind, Failure, Invocation, ReplySender, RunEnd, RunReport};
use http_body::Frame;
use http_body_util::BodyExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub(super) struct Factory(pub(super) Arc<World>);

/// The plan's call, as it travels with the request.
#[derive(Clone)]
pub(super) struct Planned(pub(super) Arc<Call>);

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// Counts a start of the scheduler's for as long as it is under way.
struct Starting<'a>(&'a World);

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        self.0.books.lock().starting -= 1;
    }
}

/// Units that a start has taken.
struct Units<'a>(&'a World, usize);

impl Drop for Units<'_> {
    fn drop(&mut self) {
        self.0.books.lock().units_taken -= self.1;
    }
}

/// A use of a session.
struct Use(Arc<World>, SessionId, FunctionName);

impl Drop for Use {
    fn drop(&mut self) {
        FakeHost(self.0.clone()).give_back(self.1);
    }
}

#[async_trait]
impl SandboxFactory for Factory {
    async fn create(&self, version: &Arc<Version>) -> Result<Created, Failure> {
        let world = &self.0;
        world.unlocked("a sandbox is made");
        let memory = world.memory().filter(|_| !is_candidate(version));
        if let Some(([instances, sessions], limit)) = memory {
            // What sessions leave; and a quarter, whatever they take.
            let most = limit.saturating_sub(sessions).max(limit / 4);
            world.require("memory", limit == 0 || instances <= most, || {
                format!("a start begins with {instances} bytes of instances, of {most} at most")
            });
        }
        let _starting = (!is_candidate(version)).then(|| {
            world.books.lock().starting += 1;
            Starting(world)
        });
        let limit = version.config.start_timeout.duration();
        let start = self.start(version, Instant::now() + limit);
        let made = tokio::time::timeout(limit, start)
            .await
            .unwrap_or_else(|_| {
                Err(Failure::new(
                    ErrorKind::StartTimeout,
                    "the instance did not start in time",
                ))
            });
        if let Err(failure) = &made {
            world.log(|| format!("a start of {} fails: {}", version.key(), failure.kind));
        }
        made
    }
}

impl Factory {
    async fn start(&self, version: &Arc<Version>, deadline: Instant) -> Result<Created, Failure> {
        let world = &self.0;
        let (number, start) = world.start_begins(version);
        let word = |key: &str| version.config.env.get(key).map_or("", String::as_str);
        let (units, has_model) = (word("units").parse().unwrap_or(1), word("model") == "yes");
        let (mut taken, mut session) = (None, None);
        for (phase, time) in start.phases.into_iter().enumerate() {
            tokio::time::sleep(ms(time)).await;
            match start.fault {
                Some((at, StartFault::Fails)) if at == phase => {
                    return Err(Failure::new(ErrorKind::StartFailed, "as planned"));
                }
                Some((at, StartFault::Hangs)) if at == phase => std::future::pending().await,
                Some((at, StartFault::Panics)) if at == phase => {
                    if is_candidate(version) {
                        return Err(Failure::internal("as planned"));
                    }
                    world.planned_panic();
                }
                _ => {}
            }
            if phase == 2 && has_model {
                session = Some(self.load(version, deadline).await?);
            }
            if phase == 3 {
                let mut books = world.books.lock();
                if books.units() + units > world.plan.units {
                    return Err(Failure::new(ErrorKind::NodeFull, "the worker has no room"));
                }
                books.units_taken += units;
                taken = Some(Units(world, units));
            }
        }
        drop(taken);
        let id = world.books.lock().made(version, units, number);
        let phases = ColdStart {
            instantiate: ms(start.phases[3]),
            ..ColdStart::default()
        };
        let sandbox = Box::new(Fake(Arc::new(Guest {
            world: world.clone(),
            id,
            session,
            is_shared: seats(version) > 1,
            died: CancellationToken::new(),
        })));
        Ok(Created {
            sandbox,
            phases,
            footing: Box::new(fnctl_core::ports::NoFooting),
        })
    }

    async fn load(&self, version: &Version, deadline: Instant) -> Result<Use, Failure> {
        let request = LoadModel {
            source: ModelSource::Bytes(Bytes::new()),
            function: version.function.clone(),
            deadline,
            isolation: version.config.inference_isolation,
        };
        let loaded = FakeHost(self.0.clone()).load(request).await;
        loaded
            .map(|loaded| Use(self.0.clone(), loaded.session, version.function.clone()))
            .map_err(|error| Failure::new(error.error_kind(), "the model could not be loaded"))
    }
}

/// A handle of a guest.
struct Fake(Arc<Guest>);

struct Guest {
    world: Arc<World>,
    id: u64,
    session: Option<Use>,
    /// Several calls may run in it, each on a handle. As the worker's: a trap ends them all; one that is given up closes
    /// it for others, and those that run go on.
    is_shared: bool,
    died: CancellationToken,
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.world.unlocked("a sandbox is dropped");
        self.world.books.lock().dropped(self.id);
    }
}

/// A run that has begun; cut off, it has failed.
struct Begun<'a> {
    world: &'a World,
    id: u64,
    call: u64,
    well: bool,
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        self.world.books.lock().ends(self.id, self.call, self.well);
    }
}

#[async_trait]
impl Sandbox for Fake {
    fn share(&self) -> Option<Box<dyn Sandbox>> {
        let shared = self.0.is_shared;
        shared.then(|| Box::new(Self(self.0.clone())) as Box<dyn Sandbox>)
    }

    async fn run(&mut self, invocation: Invocation, reply: ReplySender) -> RunReport {
        let this = &self.0;
        let world = this.world.clone();
        world.unlocked("a sandbox is run");
        let Some(Planned(call)) = invocation.request.extensions().get().cloned() else {
            world.broken("once", || "a request arrives that nobody sent".into());
            let end = RunEnd::Failed(Failure::internal("nobody's"));
            return RunReport {
                end,
                memory: 0,
                cpu: None,
                inference: Duration::ZERO,
                computes: 0,
            };
        };
        if this.is_dead(&call) {
            return report(RunEnd::Unbegun(Box::new(invocation)), &call, 0);
        }
        world
            .books
            .lock()
            .begins(this.id, call.id, &invocation.version.key());
        let mut begun = Begun {
            world: &world,
            id: this.id,
            call: call.id,
            well: false,
        };
        let (chunks, body) = Chunks::new();
        let answering = Answering {
            world: &world,
            call: &call,
            reply: &reply,
        };
        let guest = this.guest(invocation.deadline, &answering, (&chunks, body));
        let end = tokio::select! {
            biased;
            () = this.died.cancelled() => Err(trap()),
            done = guest => done,
            () = invocation.cancelled.cancelled() => {
                Err(Failure::new(ErrorKind::Cancelled, "the caller left"))
            }
            () = tokio::time::sleep_until(invocation.deadline) => {
                Err(Failure::new(ErrorKind::Timeout, "the deadline passed"))
            }
        };
        if matches!(&end, Err(failure) if failure.kind == ErrorKind::Trap) {
            this.dies();
        }
        begun.well = end.is_ok();
        drop(begun);
        let memory = this.grown();
        match end {
            Ok(()) => report(RunEnd::Completed, &call, memory),
            Err(failure) => {
                chunks.fail();
                answering.send(Err(failure.clone()));
                report(RunEnd::Failed(failure), &call, memory)
            }
        }
    }
}

impl Guest {
    /// What runs in it ends with it.
    fn dies(&self) {
        if !self.is_shared || self.died.is_cancelled() {
            return;
        }
        let mut books = self.world.books.lock();
        if let Some(live) = books.live.get_mut(&self.id) {
            live.failed.get_or_insert_with(Instant::now);
            live.dead = true;
            let with = live.running.clone();
            books.log(format!("sandbox {} dies with {with:?}", self.id));
        }
        drop(books);
        self.died.cancel();
    }

    /// Its linear memory after a run: it doubles with the second and the third, as far as it may.
    fn grown(&self) -> u64 {
        let mut books = self.world.books.lock();
        let Some(live) = books.live.get_mut(&self.id) else {
            return 0;
        };
        let config = &live.version.config;
        let mib = config.env.get("mib").map_or(1, |mib| mib.parse().unwrap());
        let grown = (mib << 20u64) << live.uses.saturating_sub(1).min(2);
        *live.memory.insert(grown.min(config.memory.bytes()))
    }

    /// Whether this sandbox is found dead before the guest begins.
    fn is_dead(&self, call: &Call) -> bool {
        let mut books = self.world.books.lock();
        let live = books.live.get(&self.id);
        let is_closed = self.is_shared && live.is_some_and(|live| live.failed.is_some());
        let asked = books.calls.get_mut(&call.id);
        let is_found_dead = asked.is_some_and(|asked| {
            let is_next = asked.unbegun_left > 0;
            asked.unbegun_left -= u64::from(is_next);
            is_next
        });
        if is_closed || is_found_dead {
            books.hands_back(self.id, call.id);
        }
        is_closed || is_found_dead
    }

    async fn guest(
        &self,
        deadline: Instant,
        answering: &Answering<'_>,
        (chunks, body): (&Chunks, Body),
    ) -> Result<(), Failure> {
        let run = &answering.call.run;
        tokio::time::sleep(ms(run.before)).await;
        for time in &run.computes {
            self.compute(deadline, *time).await?;
        }
        match run.fate {
            Fate::TrapsBeforeHead => return Err(trap()),
            Fate::HangsBeforeHead => std::future::pending().await,
            Fate::PanicsBeforeHead => self.panics(),
            Fate::NoAnswer => return Ok(()),
            _ => {}
        }
        let body = if run.chunks == 0 {
            fnctl_core::empty()
        } else {
            body
        };
        let response = http::Response::builder().header("x-call", answering.call.id);
        answering.send(Ok(response.body(body).unwrap()));
        for _ in 0..run.chunks {
            tokio::time::sleep(ms(run.gap)).await;
            // A guest that nobody reads goes on all the same.
            let _ = chunks.0.send(Ok(Bytes::from_static(b"chunk"))).await;
        }
        tokio::time::sleep(ms(run.gap)).await;
        match run.fate {
            Fate::TrapsAfterHead => Err(trap()),
            Fate::HangsAfterHead => std::future::pending().await,
            Fate::PanicsAfterHead => self.panics(),
            _ => Ok(()),
        }
    }

    fn panics(&self) -> ! {
        self.dies();
        self.world.planned_panic()
    }

    async fn compute(&self, deadline: Instant, time: u64) -> Result<(), Failure> {
        let Some(session) = &self.session else {
            return Ok(());
        };
        let input = Tensor {
            dimensions: vec![time as u32],
            ty: TensorType::U8,
            data: Bytes::new(),
        };
        let request = Compute {
            session: session.1,
            function: session.2.clone(),
            inputs: vec![("time".into(), input)],
            deadline,
        };
        let _computing = fnctl_core::activity::computing();
        let computed = FakeHost(self.world.clone()).compute(request).await;
        computed.map(drop).map_err(|error| trap().because(error))
    }
}

fn trap() -> Failure {
    Failure::new(ErrorKind::Trap, "as planned")
}

fn report(end: RunEnd, call: &Call, memory: u64) -> RunReport {
    RunReport {
        end,
        memory,
        cpu: None,
        // As it was to be, so that it does not depend on how the run ended.
        inference: ms(call.run.computes.iter().sum()),
        computes: 0,
    }
}

/// Sends the answer, and writes down which was the first.
struct Answering<'a> {
    world: &'a World,
    call: &'a Call,
    reply: &'a ReplySender,
}

impl Answering<'_> {
    fn send(&self, head: Result<http::Response<Body>, Failure>) {
        let answer = match &head {
            Ok(_) => Answer::Response,
            Err(failure) => Answer::Failure(failure.kind),
        };
        let first = self.reply.send(head);
        let mut books = self.world.books.lock();
        if first && let Some(asked) = books.calls.get_mut(&self.call.id) {
            asked.sent = Some(answer);
        }
    }
}

/// The guest's end of a response body.
struct Chunks(mpsc::Sender<Result<Bytes, BodyError>>);

impl Chunks {
    fn new() -> (Self, Body) {
        let (tx, rx) = mpsc::channel(1);
        (Self(tx), Streamed(rx).boxed_unsync())
    }

    /// Tells the reader, if there is room to.
    fn fail(&self) {
        let _ = self
            .0
            .try_send(Err(BodyError::Aborted("the guest failed".into())));
    }
}

struct Streamed(mpsc::Receiver<Result<Bytes, BodyError>>);

impl http_body::Body for Streamed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.0
            .poll_recv(cx)
            .map(|chunk| chunk.map(|chunk| chunk.map(Frame::data)))
    }
}
