//! How a guest runs: engine, compile cache, templates, sandboxes, limits, WASI, and the wasi-nn bindings.
//!
//! Owns everything that names Wasmtime. Knows the store only as a path to a verified artifact, and inference only as
//! the `InferenceHost` port. Invariants: compilation and deserialisation never run on an async thread; a guest can
//! spin, trap, allocate or flood without harming anyone else; a sandbox that failed is never handed back as usable.

mod attribution;
mod cache;
mod check;
mod config;
mod cpu;
mod engine;
mod failure;
mod footing;
mod guest_log;
mod limits;
mod logging;
mod machine;
mod nn;
mod outgoing;
mod sandbox;
mod sharing;
mod state;
mod template;
mod templates;
mod thread_time;

pub use check::WasmCheck;
pub use config::Config;
pub use templates::Reaped;

use async_trait::async_trait;
use fnctl_core::ids::FunctionName;
use fnctl_core::invocation::ColdStart;
use fnctl_core::log::LogSink;
use fnctl_core::ports::{ArtifactStore, Created, InferenceHost, Sandbox, SandboxFactory};
use fnctl_core::version::Version;
use fnctl_core::{ErrorKind, Failure};
use footing::SandboxFooting;
use guest_log::GuestLog;
use nn::ModelLease;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use template::TemplateKind;
use templates::Templates;
use tokio::time::Instant;

/// Makes sandboxes of versions.
#[derive(Clone)]
pub struct Worker {
    templates: Arc<Templates>,
    inference: Arc<dyn InferenceHost>,
    artifacts: Arc<dyn ArtifactStore>,
    logs: Arc<dyn LogSink>,
}

/// Makes an engine with a worker's settings and throws it away: whether its address space can be had on this machine.
pub fn probe_engine(config: &Config) -> Result<(), Failure> {
    engine::GuestEngine::new(config, engine::Concurrency::Without).map(drop)
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").finish_non_exhaustive()
    }
}

impl Worker {
    /// A worker with its own engines. The compile cache lies under `config.cache`.
    pub fn new(
        config: Config,
        artifacts: Arc<dyn ArtifactStore>,
        inference: Arc<dyn InferenceHost>,
        logs: Arc<dyn LogSink>,
    ) -> Result<Self, Failure> {
        let templates = Arc::new(Templates::new(config, artifacts.clone())?);
        Ok(Self {
            templates,
            inference,
            artifacts,
            logs,
        })
    }

    /// The check a deploy makes of its Wasm artifact.
    pub fn check(&self) -> Arc<WasmCheck> {
        Arc::new(WasmCheck::new(self.templates.clone()))
    }

    /// Drops templates that nobody wants kept any more.
    pub fn reap(&self, now: Instant) -> Reaped {
        self.templates.reap(now)
    }

    /// Removes compiled code that nobody can ask for again. Returns how many files.
    pub async fn collect(&self) -> usize {
        let templates = self.templates.clone();
        tokio::task::spawn_blocking(move || templates.collect())
            .await
            .unwrap_or(0)
    }

    /// Templates in memory now.
    pub fn resident_templates(&self) -> usize {
        self.templates.len()
    }

    /// Loads the declared models. They stay in use for as long as the sandbox lives.
    async fn load_models(
        &self,
        version: &Version,
        deadline: Instant,
    ) -> Result<BTreeMap<String, Arc<ModelLease>>, Failure> {
        let mut leases = BTreeMap::new();
        for (name, model) in &version.models {
            let (path, _) = self.artifacts.locate(&model.digest).ok_or_else(|| {
                Failure::new(
                    ErrorKind::Corrupt,
                    "a model of this version is missing from the store; deploy it again",
                )
            })?;
            let lease = ModelLease::of_artifact(
                &self.inference,
                model.digest,
                path,
                (&version.function, version.config.inference_isolation),
                deadline,
            )
            .await
            .map_err(|error| model_failure(name, &version.function, &error))?;
            leases.insert(name.clone(), Arc::new(lease));
        }
        Ok(leases)
    }
}

fn model_failure(
    name: &str,
    function: &FunctionName,
    error: &fnctl_core::inference::InferenceError,
) -> Failure {
    Failure::new(
        error.error_kind(),
        format!("model '{name}' of '{function}' could not be loaded"),
    )
    .because(error)
}

#[async_trait]
impl SandboxFactory for Worker {
    async fn create(&self, version: &Arc<Version>) -> Result<Created, Failure> {
        let limit = version.config.start_timeout.duration();
        let start = self.start(version, Instant::now() + limit);
        tokio::time::timeout(limit, start)
            .await
            .unwrap_or_else(|_| Err(start_timeout(limit)))
    }

    fn forget(&self, function: &FunctionName) {
        self.templates.forget(function, Instant::now());
        self.inference.forget(function);
    }
}

fn start_timeout(limit: Duration) -> Failure {
    Failure::new(
        ErrorKind::StartTimeout,
        format!(
            "the instance did not start within {}s; raise start_timeout or make init shorter",
            limit.as_secs_f64()
        ),
    )
}

impl Worker {
    async fn start(&self, version: &Arc<Version>, deadline: Instant) -> Result<Created, Failure> {
        let mut phases = ColdStart::default();
        // The models load while the code is compiled: on a cold start the two have nothing to wait for in each other.
        let models_since = Instant::now();
        let (template, models) = tokio::try_join!(self.templates.get(version), async {
            self.load_models(version, deadline)
                .await
                .map(|models| (models, models_since.elapsed()))
        },)?;
        phases.artifact = template.artifact;
        phases.compile = template.compile;
        let (models, models_took) = models;
        if !version.models.is_empty() {
            phases.model = models_took;
        }
        let footing = Box::new(SandboxFooting::new(
            &version.function,
            models.values().cloned(),
            template.template.clone(),
        ));
        let nn = nn::NnContext::new(self.inference.clone(), models, version);
        let limit = version.config.log_bytes.bytes();
        let log = GuestLog::new(version.key(), limit, self.logs.clone());
        let sandbox: Box<dyn Sandbox> = match &template.template.kind {
            TemplateKind::Command(command) => Box::new(sandbox::command::CommandSandbox::new(
                command.clone(),
                template.template.clone(),
                version.clone(),
                nn,
                log,
            )),
            TemplateKind::Component(component) => {
                let since = Instant::now();
                let mut sandbox = sandbox::component::ComponentSandbox::instantiate(
                    component,
                    template.template.clone(),
                    version.clone(),
                    nn,
                    log,
                )
                .await?;
                phases.instantiate = since.elapsed();
                let since = Instant::now();
                sandbox.init(component, deadline).await?;
                phases.init = since.elapsed();
                sandbox.into_sandbox()
            }
        };
        Ok(Created {
            sandbox,
            phases,
            footing,
        })
    }
}
