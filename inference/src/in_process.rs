//! ONNX Runtime in the platform's own process: by choice, for tests, and where the system has no inference host.
//!
//! A fault in native code ends the process here; see `host` for the way that survives it.

use crate::allocator::Shortage;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::room::{self, Idle, Rights};
use crate::runtime::Runtime;
use crate::session::OnnxSession;
use crate::sessions::{Reaped, SessionKey, Sessions, Unclaimed};
use crate::threads::ComputeThreads;
use crate::{allocator, timed_out};
use async_trait::async_trait;
use fnctl_core::ids::FunctionName;
use fnctl_core::inference::{
    Compute, Computed, InferenceError, InferenceErrorKind, KeepWish, LoadModel, LoadedModel,
    SessionId,
};
use fnctl_core::ladder::Over;
use fnctl_core::ports::InferenceHost;
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::sync::{OnceCell, Semaphore, oneshot};
use tokio::time::Instant;

/// ONNX Runtime behind the `InferenceHost` port, in this process.
#[derive(Clone)]
pub(crate) struct OnnxHost(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    config: Config,
    /// Loaded with the first model, so that a platform without models does not pay for it.
    runtime: OnceCell<Arc<Runtime>>,
    pub(crate) sessions: Sessions<OnnxSession>,
    threads: ComputeThreads,
    loads: Arc<Semaphore>,
    rights: Mutex<Rights>,
    metrics: Arc<Metrics>,
}

impl std::fmt::Debug for OnnxHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OnnxHost")
            .field("config", &self.0.config)
            .finish_non_exhaustive()
    }
}

impl OnnxHost {
    /// A host without any session; ONNX Runtime itself is loaded with the first model.
    pub(crate) fn new(config: Config, metrics: Arc<Metrics>) -> Self {
        let threads = ComputeThreads::new(config.compute_threads, config.compute_queue);
        Self(Arc::new(Inner {
            runtime: OnceCell::new(),
            sessions: Sessions::default(),
            threads,
            // Loading is bound by memory traffic: more at once would only make each slower.
            loads: Arc::new(Semaphore::new(config.parallel_loads)),
            rights: Mutex::default(),
            metrics,
            config,
        }))
    }

    /// Sessions in memory and the bytes ONNX Runtime holds for all of them.
    pub(crate) fn resident(&self) -> (usize, u64) {
        (self.0.sessions.len(), allocator::live_bytes())
    }

    /// Unloads the sessions that nobody wants kept any more.
    pub(crate) async fn reap(&self, now: Instant) -> Reaped {
        let ttl = self.0.config.session_ttl.duration();
        let (expired, by_policy) = self.0.sessions.take_unwanted(now, ttl);
        Reaped {
            expired: self.0.unload(expired, Over::TimeToLive.as_str()).await,
            by_policy: self.0.unload(by_policy, Over::Policy.as_str()).await,
            hosts: 0,
        }
    }

    /// Unloads every session without a use, however short that is. Returns how many.
    pub(crate) async fn relieve(&self) -> usize {
        let unused = self.0.sessions.take_unused(|_| true);
        self.0.unload(unused, "memory").await
    }
}

impl Inner {
    fn observe(&self) {
        self.metrics
            .observe(self.sessions.len(), [allocator::live_bytes()]);
    }

    /// Unloads idle sessions for what was refused, if that can help. Says whether it is worth another try.
    async fn make_room(
        &self,
        function: Option<&FunctionName>,
        shortage: Option<Shortage>,
        round: u32,
    ) -> bool {
        let Some(shortage) = shortage else {
            return false;
        };
        let now = Instant::now();
        let others = function.is_none_or(|function| self.rights.lock().may(function, now));
        let unused = self.sessions.unused().into_iter().map(|one| Idle {
            id: one.id,
            bytes: one.session.resident_bytes(),
            own: one.owner.is_some() && one.owner.as_ref() == function,
            since: one.since,
        });
        let budget = self.config.memory.bytes();
        let chosen = match round <= room::ROUNDS {
            true => room::choose(shortage, budget, others, unused.collect()),
            false => Vec::new(),
        };
        let taken = self.sessions.take_unused(|id| chosen.contains(&id));
        if self.unload(taken, "budget").await > 0 {
            return true;
        }
        self.metrics.refused.inc();
        if let Some(function) = function.filter(|_| round > 1) {
            self.rights.lock().in_vain(function, now);
        }
        false
    }

    async fn unload(&self, expired: Vec<Arc<OnnxSession>>, reason: &'static str) -> usize {
        let count = expired.len();
        if count > 0 {
            self.metrics
                .unloads
                .with_label_values(&[reason])
                .inc_by(count as u64);
            // Releasing a session frees its weights: too long for an async thread.
            let _ = tokio::task::spawn_blocking(move || drop(expired)).await;
        }
        self.observe();
        count
    }

    async fn runtime(&self) -> Result<Arc<Runtime>, InferenceError> {
        let config = self.config.clone();
        self.runtime
            .get_or_try_init(|| async move {
                tokio::task::spawn_blocking(move || Runtime::load(&config).map(Arc::new))
                    .await
                    .unwrap_or_else(|error| {
                        Err(InferenceError::new(
                            InferenceErrorKind::Runtime,
                            error.to_string(),
                        ))
                    })
            })
            .await
            .cloned()
    }

    async fn load_session(&self, request: &LoadModel) -> Result<OnnxSession, InferenceError> {
        let runtime = self.runtime().await?;
        // Never closed; how long a caller waits for its turn is bounded by the caller's deadline.
        let _permit = self.loads.clone().acquire_owned().await;
        let since = Instant::now();
        let mut round = 0;
        let mut loaded = loop {
            match runtime.load_session(request).await {
                Ok(loaded) => break loaded,
                Err((error, shortage)) => {
                    round += 1;
                    if !self
                        .make_room(Some(&request.function), shortage, round)
                        .await
                    {
                        return Err(error);
                    }
                }
            }
        };
        loaded.took = since.elapsed();
        self.metrics.loaded(loaded.took);
        Ok(loaded)
    }
}

#[async_trait]
impl InferenceHost for OnnxHost {
    async fn load(&self, request: LoadModel) -> Result<LoadedModel, InferenceError> {
        let deadline = request.deadline;
        let inner = self.0.clone();
        let (tx, rx) = oneshot::channel();
        // In a task of its own: a caller that gives up must not undo the load that the next one waits for.
        tokio::spawn(async move {
            let function = request.function.clone();
            let acquired = inner
                .sessions
                .acquire(SessionKey::of(&request), |_| inner.load_session(&request))
                .await;
            inner.observe();
            // Whoever drops it, sent or not, gives the use back.
            let _ = tx.send(acquired.map(|loaded| {
                Unclaimed::new(loaded, move |session| {
                    let wish = KeepWish::none(function);
                    inner.sessions.release(session, wish, Instant::now());
                })
            }));
        });
        match tokio::time::timeout_at(deadline, rx).await {
            Ok(Ok(acquired)) => acquired.and_then(Unclaimed::claim),
            Ok(Err(_gone)) => Err(InferenceError::new(
                InferenceErrorKind::Runtime,
                "the load was given up",
            )),
            Err(_elapsed) => Err(timed_out(
                "the model was not loaded in time; raise start_timeout",
            )),
        }
    }

    async fn compute(&self, request: Compute) -> Result<Computed, InferenceError> {
        let inner = &self.0;
        let session = inner.sessions.get(request.session).ok_or_else(|| {
            InferenceError::new(
                InferenceErrorKind::NotFound,
                "this session is not loaded any more",
            )
        })?;
        let run = session.prepare(request.inputs)?;
        // Stops the run when this future is dropped or its deadline passes, whatever thread it is on by then.
        let stop = run.stopper();
        let (tx, rx) = oneshot::channel();
        let timer = inner.metrics.compute_seconds.start_timer();
        inner.threads.submit(move || {
            // Nobody waits any more: the thread is worth more to the next one.
            if !tx.is_closed() {
                let _ = tx.send(run.execute().map_err(|error| {
                    let lacking = allocator::shortage_of(&error, 1);
                    (error, lacking)
                }));
            }
        })?;
        let computed = tokio::time::timeout_at(request.deadline, rx).await;
        timer.observe_duration();
        match computed {
            Ok(Ok(computed)) => {
                stop.disarm();
                match computed {
                    Ok(computed) => Ok(computed),
                    Err((error, shortage)) => {
                        // The inputs are gone with the run. The next one shall find the room.
                        inner.make_room(None, shortage, 1).await;
                        Err(error)
                    }
                }
            }
            Ok(Err(_gone)) => Err(InferenceError::new(
                InferenceErrorKind::Runtime,
                "the inference was given up",
            )),
            Err(_elapsed) => Err(timed_out(
                "the inference did not end before the request's deadline",
            )),
        }
    }

    fn release(&self, session: SessionId, wish: KeepWish) {
        self.0.sessions.release(session, wish, Instant::now());
    }

    fn forget(&self, function: &FunctionName) {
        self.0.sessions.forget(function, Instant::now());
    }
}
