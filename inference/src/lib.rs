//! How a model runs: the ONNX Runtime library, sessions shared and run side by side, the memory budget that ONNX
//! Runtime cannot exceed, and the ladder's rung below the sandbox (a session goes when unused for its time-to-live).
//!
//! Owns everything that names `ort`. In this process for now; the port it implements is message-shaped, so that it can
//! move to a process of its own. Invariants: nothing native runs on an async thread; a session is loaded once per
//! (model, owner of the bytes) and never locked while it computes; every mistake of a guest is an error value.

mod allocator;
mod check;
mod config;
mod library;
mod metrics;
mod runtime;
mod session;
mod sessions;
mod tensors;
mod threads;

pub use check::ModelCheck;
pub use config::Config;
pub use library::{LIBRARY_NAME, candidates as library_candidates, find as find_library};

use async_trait::async_trait;
use fnctl_core::inference::{Compute, Computed, InferenceError, InferenceErrorKind, LoadModel, LoadedModel, SessionId};
use fnctl_core::ports::InferenceHost;
use metrics::Metrics;
use runtime::Runtime;
use sessions::Sessions;
use std::sync::Arc;
use threads::ComputeThreads;
use tokio::sync::{OnceCell, Semaphore, oneshot};
use tokio::time::Instant;

/// ONNX Runtime behind the `InferenceHost` port, in this process.
pub struct OnnxHost {
    config: Config,
    /// Loaded with the first model, so that a platform without models does not pay for it.
    runtime: OnceCell<Arc<Runtime>>,
    sessions: Sessions,
    threads: ComputeThreads,
    loads: Semaphore,
    metrics: Metrics,
}

impl std::fmt::Debug for OnnxHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OnnxHost").field("config", &self.config).finish_non_exhaustive()
    }
}

impl OnnxHost {
    /// A host without any session; ONNX Runtime itself is loaded with the first model.
    pub fn new(config: Config, registry: &prometheus::Registry) -> prometheus::Result<Arc<Self>> {
        let threads = ComputeThreads::new(config.compute_threads, config.compute_queue);
        Ok(Arc::new(Self {
            runtime: OnceCell::new(),
            sessions: Sessions::default(),
            threads,
            // Loading is bound by memory traffic: more at once would only make each slower.
            loads: Semaphore::new(config.parallel_loads),
            metrics: Metrics::register(registry)?,
            config,
        }))
    }

    /// The check a deploy makes of its models.
    pub fn check(self: &Arc<Self>, artifacts: Arc<dyn fnctl_core::ports::ArtifactStore>) -> Arc<ModelCheck> {
        Arc::new(ModelCheck::new(self.clone(), artifacts))
    }

    /// Sessions in memory and the bytes ONNX Runtime holds for all of them.
    pub fn resident(&self) -> (usize, u64) {
        (self.sessions.len(), allocator::live_bytes())
    }

    /// Unloads the sessions that nobody used for the time-to-live. Returns how many.
    pub async fn reap(&self, now: Instant) -> usize {
        let expired = self.sessions.take_unused(|idle_since| now.saturating_duration_since(idle_since) >= self.config.session_ttl.duration());
        self.unload(expired, "ttl").await
    }

    async fn unload(&self, expired: Vec<Arc<session::OnnxSession>>, reason: &'static str) -> usize {
        let count = expired.len();
        if count > 0 {
            self.metrics.unloads.with_label_values(&[reason]).inc_by(count as u64);
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
                    .unwrap_or_else(|error| Err(InferenceError::new(InferenceErrorKind::Runtime, error.to_string())))
            })
            .await
            .cloned()
    }

    async fn load_session(&self, request: &LoadModel) -> Result<session::OnnxSession, InferenceError> {
        let runtime = self.runtime().await?;
        let permit = tokio::time::timeout_at(request.deadline, self.loads.acquire()).await;
        let Ok(Ok(_permit)) = permit else { return Err(timed_out("the model was not loaded in time: others were before it")) };
        let since = Instant::now();
        let loaded = match runtime.load_session(request).await {
            // Over the budget: give up what is resident but unused, the least recently used first, and try once more.
            Err(error) if error.kind == InferenceErrorKind::TooLarge => {
                let unused = self.sessions.take_unused(|_| true);
                if self.unload(unused, "budget").await == 0 {
                    self.metrics.refused.inc();
                    return Err(error);
                }
                runtime.load_session(request).await.inspect_err(|_| self.metrics.refused.inc())
            }
            other => other,
        }?;
        self.metrics.load_seconds.observe(since.elapsed().as_secs_f64());
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
        let load = self.sessions.acquire(&request, || self.load_session(&request));
        let acquired = tokio::time::timeout_at(deadline, load)
            .await
            .unwrap_or_else(|_| Err(timed_out("the model was not loaded in time; raise start_timeout")))?;
        self.metrics.observe(&self.sessions);
        Ok(acquired)
    }

    async fn compute(&self, request: Compute) -> Result<Computed, InferenceError> {
        let session = self.sessions.get(request.session).ok_or_else(|| {
            InferenceError::new(InferenceErrorKind::NotFound, "this session is not loaded any more")
        })?;
        let run = session.prepare(request.inputs)?;
        // Stops the run when this future is dropped or its deadline passes, whatever thread it is on by then.
        let stop = run.stopper();
        let (tx, rx) = oneshot::channel();
        let timer = self.metrics.compute_seconds.start_timer();
        self.threads.submit(move || {
            let _ = tx.send(run.execute());
        })?;
        let computed = tokio::time::timeout_at(request.deadline, rx).await;
        timer.observe_duration();
        match computed {
            Ok(Ok(computed)) => {
                stop.disarm();
                computed
            }
            Ok(Err(_gone)) => Err(InferenceError::new(InferenceErrorKind::Runtime, "the inference was given up")),
            Err(_elapsed) => Err(timed_out("the inference did not end before the request's deadline")),
        }
    }

    fn release(&self, session: SessionId) {
        self.sessions.release(session, Instant::now());
    }
}
