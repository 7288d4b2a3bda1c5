//! How a model runs: the ONNX Runtime library, sessions shared and run side by side, the memory budget that ONNX
//! Runtime cannot exceed, and the ladder's rung below the sandbox (a session goes when unused for its time-to-live).
//!
//! Owns everything that names `ort`. In this process for now; the port it implements is message-shaped, so that it can
//! move to a process of its own. Invariants: nothing native runs on an async thread; a session is loaded once per
//! (model, owner of the bytes) and never locked while it computes; every mistake of a guest is an error value.

mod allocator;
mod check;
mod config;
#[allow(dead_code, reason = "the inference host process is its only caller")]
mod confine;
mod library;
mod metrics;
mod runtime;
mod session;
mod sessions;
mod tensors;
#[cfg(test)]
mod tests;
mod threads;

pub use check::ModelCheck;
pub use config::Config;
pub use library::{
    LIBRARY_NAME, cache_folder, candidates as library_candidates, find as find_library,
    probe as probe_library,
};

use async_trait::async_trait;
use fnctl_core::inference::{
    Compute, Computed, InferenceError, InferenceErrorKind, LoadModel, LoadedModel, SessionId,
};
use fnctl_core::ports::InferenceHost;
use metrics::Metrics;
use runtime::Runtime;
use sessions::Sessions;
use std::sync::Arc;
use threads::ComputeThreads;
use tokio::sync::{OnceCell, Semaphore, oneshot};
use tokio::time::Instant;

/// ONNX Runtime behind the `InferenceHost` port, in this process.
#[derive(Clone)]
pub struct OnnxHost(Arc<Inner>);

struct Inner {
    config: Config,
    /// Loaded with the first model, so that a platform without models does not pay for it.
    runtime: OnceCell<Arc<Runtime>>,
    sessions: Sessions,
    threads: ComputeThreads,
    loads: Arc<Semaphore>,
    metrics: Metrics,
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
    pub fn new(config: Config, registry: &prometheus::Registry) -> prometheus::Result<Self> {
        let threads = ComputeThreads::new(config.compute_threads, config.compute_queue);
        Ok(Self(Arc::new(Inner {
            runtime: OnceCell::new(),
            sessions: Sessions::default(),
            threads,
            // Loading is bound by memory traffic: more at once would only make each slower.
            loads: Arc::new(Semaphore::new(config.parallel_loads)),
            metrics: Metrics::register(registry)?,
            config,
        })))
    }

    /// The check a deploy makes of its models.
    pub fn check(&self, artifacts: Arc<dyn fnctl_core::ports::ArtifactStore>) -> Arc<ModelCheck> {
        Arc::new(ModelCheck::new(self.clone(), artifacts))
    }

    /// Sessions in memory and the bytes ONNX Runtime holds for all of them.
    pub fn resident(&self) -> (usize, u64) {
        (self.0.sessions.len(), allocator::live_bytes())
    }

    /// Unloads the sessions that nobody used for the time-to-live. Returns how many.
    pub async fn reap(&self, now: Instant) -> usize {
        let ttl = self.0.config.session_ttl.duration();
        let expired = self
            .0
            .sessions
            .take_unused(|idle_since| now.saturating_duration_since(idle_since) >= ttl);
        self.0.unload(expired, "ttl").await
    }
}

impl Inner {
    async fn unload(&self, expired: Vec<Arc<session::OnnxSession>>, reason: &'static str) -> usize {
        let count = expired.len();
        if count > 0 {
            self.metrics
                .unloads
                .with_label_values(&[reason])
                .inc_by(count as u64);
            // Releasing a session frees its weights: too long for an async thread.
            let _ = tokio::task::spawn_blocking(move || drop(expired)).await;
        }
        self.metrics.observe(&self.sessions);
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

    async fn load_session(
        &self,
        request: &LoadModel,
    ) -> Result<session::OnnxSession, InferenceError> {
        let runtime = self.runtime().await?;
        // Never closed; how long a caller waits for its turn is bounded by the caller's deadline.
        let _permit = self.loads.clone().acquire_owned().await;
        let since = Instant::now();
        let loaded = match runtime.load_session(request).await {
            // Over the budget: give up what is resident but unused, and try once more.
            Err(error) if error.kind == InferenceErrorKind::TooLarge => {
                let unused = self.sessions.take_unused(|_| true);
                if self.unload(unused, "budget").await == 0 {
                    self.metrics.refused.inc();
                    return Err(error);
                }
                runtime
                    .load_session(request)
                    .await
                    .inspect_err(|_| self.metrics.refused.inc())
            }
            other => other,
        }?;
        self.metrics
            .load_seconds
            .observe(since.elapsed().as_secs_f64());
        Ok(loaded)
    }
}

/// Gives freed memory back to the system. ONNX Runtime allocates with the C library's malloc, which keeps what is freed.
pub fn purge_allocator() {
    #[cfg(target_env = "gnu")]
    // SAFETY: `malloc_trim` may be called at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

fn timed_out(message: &str) -> InferenceError {
    InferenceError::new(InferenceErrorKind::Timeout, message)
}

#[async_trait]
impl InferenceHost for OnnxHost {
    async fn load(&self, request: LoadModel) -> Result<LoadedModel, InferenceError> {
        let deadline = request.deadline;
        let inner = self.0.clone();
        let (tx, rx) = oneshot::channel();
        // In a task of its own: a caller that gives up must not undo the load that the next one waits for.
        tokio::spawn(async move {
            let acquired = inner
                .sessions
                .acquire(&request, || inner.load_session(&request))
                .await;
            inner.metrics.observe(&inner.sessions);
            if let Err(Ok(unwanted)) = tx.send(acquired) {
                inner.sessions.release(unwanted.session, Instant::now());
            }
        });
        match tokio::time::timeout_at(deadline, rx).await {
            Ok(Ok(acquired)) => acquired,
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
                let _ = tx.send(run.execute());
            }
        })?;
        let computed = tokio::time::timeout_at(request.deadline, rx).await;
        timer.observe_duration();
        match computed {
            Ok(Ok(computed)) => {
                stop.disarm();
                if computed
                    .as_ref()
                    .is_err_and(|error| error.kind == InferenceErrorKind::TooLarge)
                {
                    // The next one shall find the room that sessions without a use take.
                    inner
                        .unload(inner.sessions.take_unused(|_| true), "budget")
                        .await;
                }
                computed
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

    fn release(&self, session: SessionId) {
        self.0.sessions.release(session, Instant::now());
    }
}
