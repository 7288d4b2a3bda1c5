//! How a model runs: the ONNX Runtime library, sessions shared and run side by side, the memory budget that ONNX
//! Runtime cannot exceed, and the ladder's rung below the sandbox (a session goes when unused for its time-to-live).
//!
//! Owns everything that names `ort`, and the processes it runs in: `host` supervises them, `in_process` is the way without.
//! Invariants: nothing native runs on an async thread; a session is loaded once per (model, owner of the bytes) and never
//! locked while it computes; every mistake of a guest is an error value.

mod allocator;
mod check;
mod config;
#[cfg(target_os = "linux")]
mod confine;
#[cfg(target_os = "linux")]
mod host;
mod in_process;
mod inputs;
mod library;
mod metrics;
mod room;
mod runtime;
mod session;
mod sessions;
mod tensors;
#[cfg(test)]
mod tests;
mod threads;
mod turns;

pub use check::ModelCheck;
pub use config::{Config, Process};
#[cfg(target_os = "linux")]
pub use host::{SUBCOMMAND, ServeError, serve};
pub use library::{
    LIBRARY_NAME, cache_folder, candidates as library_candidates, find as find_library,
    probe as probe_library,
};
pub use sessions::Reaped;
pub use turns::answer_promptly;

use async_trait::async_trait;
use fnctl_core::hosts::{HostStatus, InferenceStatus, Quarantine};
use fnctl_core::ids::{Digest, FunctionName};
use fnctl_core::inference::{
    Compute, Computed, InferenceError, InferenceErrorKind, KeepWish, LoadModel, LoadedModel,
    ModelInfo, SessionId,
};
use fnctl_core::ports::{ArtifactStore, InferenceControl, InferenceHost};
#[cfg(target_os = "linux")]
use host::SupervisedHost;
use in_process::OnnxHost;
use metrics::Metrics;
use std::sync::Arc;
use tokio::time::Instant;

/// ONNX Runtime behind the `InferenceHost` port, wherever it runs.
#[derive(Clone)]
pub struct Inference(Kind);

#[derive(Clone)]
enum Kind {
    InProcess(OnnxHost),
    #[cfg(target_os = "linux")]
    Host(SupervisedHost),
}

impl std::fmt::Debug for Inference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inference").finish_non_exhaustive()
    }
}

impl Inference {
    /// Without any session. ONNX Runtime is loaded with the first model, or with the spare host.
    pub fn new(config: Config, registry: &prometheus::Registry) -> prometheus::Result<Self> {
        let metrics = Arc::new(Metrics::register(registry)?);
        #[cfg(target_os = "linux")]
        if config.process == Process::Host {
            let host = SupervisedHost::new(config, metrics, registry)?;
            return Ok(Self(Kind::Host(host)));
        }
        Ok(Self(Kind::InProcess(OnnxHost::new(config, metrics))))
    }

    fn port(&self) -> &dyn InferenceHost {
        match &self.0 {
            Kind::InProcess(host) => host,
            #[cfg(target_os = "linux")]
            Kind::Host(host) => host,
        }
    }

    /// The check a deploy makes of its models.
    pub fn check(&self, artifacts: Arc<dyn ArtifactStore>) -> Arc<ModelCheck> {
        Arc::new(ModelCheck::new(self.clone(), artifacts))
    }

    /// Sessions in memory and the bytes ONNX Runtime holds for all of them.
    pub fn resident(&self) -> (usize, u64) {
        match &self.0 {
            Kind::InProcess(host) => host.resident(),
            #[cfg(target_os = "linux")]
            Kind::Host(host) => host.resident(),
        }
    }

    /// Process ids of the inference hosts that run; none in-process.
    pub fn hosts(&self) -> Vec<u32> {
        match &self.0 {
            Kind::InProcess(_) => Vec::new(),
            #[cfg(target_os = "linux")]
            Kind::Host(host) => host.pids(),
        }
    }

    /// The inference hosts that run; none in-process.
    pub fn host_status(&self) -> Vec<HostStatus> {
        match &self.0 {
            Kind::InProcess(_) => Vec::new(),
            #[cfg(target_os = "linux")]
            Kind::Host(host) => host.status(),
        }
    }

    /// What is kept away from hosts at the moment; nothing in-process.
    pub fn quarantined(&self, now: Instant) -> Vec<Quarantine> {
        match &self.0 {
            Kind::InProcess(_) => Vec::new(),
            #[cfg(target_os = "linux")]
            Kind::Host(host) => host.quarantined(now),
        }
    }

    /// Unloads what nobody wants kept any more, and ends hosts that are empty for their time-to-live.
    pub async fn reap(&self, now: Instant) -> Reaped {
        match &self.0 {
            Kind::InProcess(host) => host.reap(now).await,
            #[cfg(target_os = "linux")]
            Kind::Host(host) => host.reap(now).await,
        }
    }

    /// Unloads every session that nobody uses now: the node has no memory for instances. Returns how many.
    pub async fn relieve(&self) -> usize {
        match &self.0 {
            Kind::InProcess(host) => host.relieve().await,
            #[cfg(target_os = "linux")]
            Kind::Host(host) => host.relieve().await,
        }
    }

    /// Ends every inference host. Nothing can be computed afterwards.
    pub async fn shut_down(&self) {
        match &self.0 {
            Kind::InProcess(_) => {}
            #[cfg(target_os = "linux")]
            Kind::Host(host) => host.shut_down().await,
        }
    }

    /// Something to try the models of a deploy with.
    async fn trial(&self) -> Result<Trial, InferenceError> {
        Ok(match &self.0 {
            Kind::InProcess(host) => Trial::InProcess(host.clone()),
            #[cfg(target_os = "linux")]
            Kind::Host(host) => Trial::Host(host::Trial::start(&host.0).await?),
        })
    }

    /// A function was deployed: what its own models did before does not count any more.
    fn forgive_function(&self, function: &FunctionName) {
        match &self.0 {
            Kind::InProcess(_) => {}
            #[cfg(target_os = "linux")]
            Kind::Host(host) => host.forgive_function(function),
        }
    }

    /// A model was deployed: what it did before does not count any more.
    fn forgive(&self, digest: &Digest, function: &FunctionName) {
        match &self.0 {
            Kind::InProcess(_) => {}
            #[cfg(target_os = "linux")]
            Kind::Host(host) => host.forgive(digest, function),
        }
    }
}

/// Where the models of a deploy are tried.
enum Trial {
    InProcess(OnnxHost),
    #[cfg(target_os = "linux")]
    Host(host::Trial),
}

impl Trial {
    async fn load(&mut self, request: LoadModel) -> Result<Arc<ModelInfo>, InferenceError> {
        match self {
            Self::InProcess(host) => {
                let wish = KeepWish::none(request.function.clone());
                let loaded = host.load(request).await?;
                host.release(loaded.session, wish);
                Ok(loaded.info)
            }
            #[cfg(target_os = "linux")]
            Self::Host(trial) => trial.load(request).await.map(Arc::new),
        }
    }

    async fn end(self) {
        match self {
            Self::InProcess(_) => {}
            #[cfg(target_os = "linux")]
            Self::Host(trial) => trial.end().await,
        }
    }
}

#[async_trait]
impl InferenceHost for Inference {
    async fn load(&self, request: LoadModel) -> Result<LoadedModel, InferenceError> {
        self.port().load(request).await
    }

    async fn compute(&self, request: Compute) -> Result<Computed, InferenceError> {
        self.port().compute(request).await
    }

    fn release(&self, session: SessionId, wish: KeepWish) {
        self.port().release(session, wish);
    }

    fn forget(&self, function: &FunctionName) {
        self.port().forget(function);
    }
}

#[async_trait]
impl InferenceControl for Inference {
    fn status(&self) -> InferenceStatus {
        let process = match &self.0 {
            Kind::InProcess(_) => Process::InProcess,
            #[cfg(target_os = "linux")]
            Kind::Host(_) => Process::Host,
        };
        InferenceStatus {
            process: process.to_string(),
            sessions: self.resident().0,
            hosts: self.host_status(),
            quarantined: self.quarantined(Instant::now()),
        }
    }

    async fn replace_hosts(&self) -> Result<usize, InferenceError> {
        match &self.0 {
            Kind::InProcess(_) => Ok(0),
            #[cfg(target_os = "linux")]
            Kind::Host(host) => host.replace().await,
        }
    }
}

/// What came of starting an inference host to look at it.
#[derive(Debug, Clone)]
pub struct ProbedHost {
    /// From the order to start to the report that it is ready.
    pub took: std::time::Duration,
    /// What the system does not enforce of its confinement.
    pub unconfined: Vec<String>,
}

/// Starts an inference host as a platform with these settings would, and ends it. Blocks; not to be called on an async
/// thread.
#[cfg(target_os = "linux")]
pub fn probe_host(config: &Config) -> Result<ProbedHost, InferenceError> {
    let failed = |cause: String| InferenceError::new(InferenceErrorKind::Unavailable, cause);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| failed(error.to_string()))?;
    runtime.block_on(host::probe(config)).map_err(failed)
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
