//! A fake inference host: a supervised process that may die or hang. The port's promise is kept as a supervisor would:
//! it comes back after a moment, sessions are loaded again, and computes that were in flight are run again, three times
//! at most.

use super::world::World;
use async_trait::async_trait;
use fnctl_core::inference::{
    Compute, Computed, InferenceError, InferenceErrorKind, KeepWish, LoadModel, LoadedModel,
    ModelInfo, SessionId,
};
use fnctl_core::ladder::RungCost;
use fnctl_core::ports::InferenceHost;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// How long a new process takes to come up.
const RESTART: Duration = Duration::from_millis(50);
/// How long a missed heartbeat goes unnoticed.
const HEARTBEAT: Duration = Duration::from_millis(200);
const LOAD: Duration = Duration::from_millis(15);
const ATTEMPTS: u32 = 3;

#[derive(Default)]
pub(super) struct Host {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    process: u64,
    up_at: Option<Instant>,
    hangs: bool,
    next: u64,
    /// Uses of each session, and the process that has it loaded.
    sessions: BTreeMap<u64, (usize, Option<u64>)>,
    computing: usize,
}

impl Host {
    pub(super) fn uses(&self) -> usize {
        self.state
            .lock()
            .sessions
            .values()
            .map(|session| session.0)
            .sum()
    }

    pub(super) fn computing(&self) -> usize {
        self.state.lock().computing
    }

    fn die(&self) {
        let mut state = self.state.lock();
        state.process += 1;
        state.hangs = false;
        state.up_at = Some(Instant::now() + RESTART);
        drop(state);
        self.changed.notify_waiters();
    }
}

/// The process is killed.
pub(super) fn dies(world: &World) {
    world.log(|| "the inference host dies".into());
    world.host.die();
}

/// The process answers nothing, until its heartbeats are missed.
pub(super) async fn hangs(world: Arc<World>) {
    world.log(|| "the inference host hangs".into());
    let process = {
        let mut state = world.host.state.lock();
        state.hangs = true;
        state.process
    };
    world.host.changed.notify_waiters();
    tokio::time::sleep(HEARTBEAT).await;
    if world.host.state.lock().process == process {
        dies(&world);
    }
}

/// The port's fake.
pub(super) struct FakeHost(pub(super) Arc<World>);

impl FakeHost {
    /// Waits until a process is up; says which.
    async fn up(&self) -> u64 {
        loop {
            let until = self.0.host.state.lock().up_at;
            match until {
                Some(until) if until > Instant::now() => tokio::time::sleep_until(until).await,
                _ => return self.0.host.state.lock().process,
            }
        }
    }

    /// Works for a time; false if the process ended in between.
    async fn work(&self, process: u64, time: Duration) -> bool {
        let host = &self.0.host;
        let done = tokio::time::sleep(time);
        tokio::pin!(done);
        loop {
            let changed = host.changed.notified();
            let (current, hangs) = {
                let state = host.state.lock();
                (state.process, state.hangs)
            };
            if current != process {
                return false;
            }
            tokio::select! {
                biased;
                () = changed => {}
                () = &mut done, if !hangs => return host.state.lock().process == process,
            }
        }
    }

    async fn computed(&self, session: u64, time: Duration) -> Result<Computed, InferenceError> {
        for _ in 0..ATTEMPTS {
            let process = self.up().await;
            let loaded = self
                .0
                .host
                .state
                .lock()
                .sessions
                .get(&session)
                .and_then(|it| it.1);
            if loaded != Some(process) && !self.work(process, LOAD).await {
                continue;
            }
            if let Some(session) = self.0.host.state.lock().sessions.get_mut(&session) {
                session.1 = Some(process);
            }
            if self.work(process, time).await {
                return Ok(Vec::new());
            }
            self.0
                .log(|| format!("a compute of session {session} is run again"));
        }
        let text = "the inference host died three times in this compute";
        Err(InferenceError::new(InferenceErrorKind::Runtime, text))
    }
}

struct Computing<'a>(&'a Host);

impl<'a> Computing<'a> {
    fn new(host: &'a Host) -> Self {
        host.state.lock().computing += 1;
        Self(host)
    }
}

impl Drop for Computing<'_> {
    fn drop(&mut self) {
        self.0.state.lock().computing -= 1;
    }
}

fn late() -> InferenceError {
    InferenceError::new(InferenceErrorKind::Timeout, "the deadline passed")
}

#[async_trait]
impl InferenceHost for FakeHost {
    async fn load(&self, request: LoadModel) -> Result<LoadedModel, InferenceError> {
        let loading = async {
            loop {
                let process = self.up().await;
                if self.work(process, LOAD).await {
                    return process;
                }
            }
        };
        let process = tokio::time::timeout_at(request.deadline, loading)
            .await
            .map_err(|_| late())?;
        let mut state = self.0.host.state.lock();
        state.next += 1;
        let id = state.next;
        state.sessions.insert(id, (1, Some(process)));
        Ok(LoadedModel {
            session: SessionId(id),
            info: Arc::new(ModelInfo::default()),
            cost: RungCost::default(),
        })
    }

    /// The first dimension of the first input says how many milliseconds it takes.
    async fn compute(&self, request: Compute) -> Result<Computed, InferenceError> {
        let _computing = Computing::new(&self.0.host);
        if !self
            .0
            .host
            .state
            .lock()
            .sessions
            .contains_key(&request.session.0)
        {
            self.0.broken("sessions", || {
                format!("{:?} is used after its release", request.session)
            });
        }
        let ms = request
            .inputs
            .first()
            .and_then(|input| input.1.dimensions.first().copied());
        let time = Duration::from_millis(ms.unwrap_or(0).into());
        let computed = self.computed(request.session.0, time);
        tokio::time::timeout_at(request.deadline, computed)
            .await
            .unwrap_or_else(|_| Err(late()))
    }

    fn release(&self, session: SessionId, _wish: KeepWish) {
        self.give_back(session);
    }

    fn forget(&self, _function: &fnctl_core::FunctionName) {}
}

impl FakeHost {
    /// A use of a session has ended.
    pub(super) fn give_back(&self, session: SessionId) {
        let found = self.0.host.state.lock().sessions.remove(&session.0);
        self.0.require("sessions", found.is_some(), || {
            format!("{session:?} is released twice")
        });
    }
}
