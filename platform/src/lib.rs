//! The composition root: builds the parts, wires them, keeps their housekeeping going, and drains them. Nothing else.

mod config;
mod histories;
mod housekeeping;
pub mod machine;
mod metrics;
pub mod settings;
pub mod token_file;
pub mod traces;

pub use config::Config;
pub use fnctl_inference::{
    ServeError, answer_promptly, cache_folder, probe_host, probe_library, serve as serve_inference,
};
pub use fnctl_scheduler::{MemoryLimit, policy, simulator};
/// Inference alone, for tests that need no whole platform.
pub mod inference {
    pub use fnctl_inference::{Config, Inference, Process};
}
pub use fnctl_store::{PauseAt, WriteSteps};
pub use fnctl_worker::probe_engine;

use fnctl_core::Failure;
use fnctl_core::deploy::Deployer;
use fnctl_core::inference::InferenceError;
use fnctl_core::ports::{FunctionStore, InferenceControl};
use fnctl_core::task::Tasks;
use fnctl_gateway::{Backend, Gateway};
use fnctl_inference::Inference;
use fnctl_logs::Logs;
use fnctl_scheduler::Scheduler;
use fnctl_store::Store;
use fnctl_worker::Worker;
use prometheus::Registry;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use traces::Traces;

/// Why a platform could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address is taken or not ours.
    #[error("cannot listen on {address}: {source}; choose another with --listen")]
    Listen {
        /// What was asked for.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The data folder is unusable.
    #[error("cannot open the store in {folder}: {source}; is another fnctl using this folder?")]
    Store {
        /// The data folder.
        folder: String,
        /// What is wrong.
        source: fnctl_store::StoreError,
    },
    /// The token file is unusable.
    #[error("the token file {path}: {source}; repair it, or set gateway.token instead")]
    TokenFile {
        /// The file.
        path: String,
        /// What is wrong.
        source: std::io::Error,
    },
    /// A part did not start.
    #[error(transparent)]
    Part(#[from] Failure),
    /// A metric is registered twice.
    #[error("the metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// The logs did not start.
    #[error(transparent)]
    Logs(#[from] fnctl_logs::StartError),
    /// Spans cannot be sent.
    #[error(
        "traces cannot be sent to {endpoint}: {source}; correct traces.endpoint or traces.protocol"
    )]
    Traces {
        /// Where to.
        endpoint: String,
        /// What is wrong.
        source: opentelemetry_otlp::ExporterBuildError,
    },
    /// The gateway did not start.
    #[error(transparent)]
    Gateway(#[from] fnctl_gateway::GatewayError),
}

/// A running platform.
#[derive(Debug)]
pub struct Platform {
    gateway: Gateway,
    scheduler: Scheduler,
    inference: Inference,
    worker: Worker,
    store: Store,
    logs: Logs,
    traces: Option<Traces>,
    tasks: Tasks,
    stop: CancellationToken,
    grace: Duration,
    /// Where what keep-alive policies learned is kept.
    histories: std::path::PathBuf,
    evictions: metrics::Evictions,
}

impl Platform {
    /// Starts everything. The platform answers requests when this returns; provisioned instances start behind it, and
    /// `/readyz` says when they have.
    pub async fn start(mut config: Config) -> Result<Self, StartError> {
        if let (None, Some(path)) = (&config.gateway.token, config.token_file.take()) {
            let token =
                token_file::read_or_create(&path).map_err(|source| StartError::TokenFile {
                    path: path.display().to_string(),
                    source,
                })?;
            config.gateway.token = Some(token);
        }
        config.scheduler.memory = machine::settle_here(config.scheduler.memory);
        let tasks = Tasks::default();
        let registry = Registry::new();
        metrics::register_process(&registry)?;
        metrics::register_limits(&registry, &config)?;
        let folder = config.store.folder.clone();
        let evictions = metrics::Evictions::register(&registry)?;
        let store = tokio::task::spawn_blocking(move || Store::open(config.store))
            .await
            .map_err(Failure::internal)?
            .map_err(|source| StartError::Store {
                folder: folder.display().to_string(),
                source,
            })?;
        metrics::register_store(&registry, &store)?;
        metrics::register_disk(&registry, &folder)?;
        let store_port = Arc::new(store.clone());
        let logs = Logs::start(config.logs, &registry, tasks.clone())?;
        let traces = Traces::start(&config.traces)?;
        let inference = Inference::new(config.inference, &registry)?;
        let worker_config = config.worker;
        let max_memory = worker_config.max_memory;
        let (artifacts, host) = (store_port.clone(), Arc::new(inference.clone()));
        let log_sink = Arc::new(logs.clone());
        let guest_logs = log_sink.clone();
        // Reserving the engine's address space takes a moment.
        let worker = tokio::task::spawn_blocking(move || {
            Worker::new(worker_config, artifacts, host, guest_logs)
        })
        .await
        .map_err(Failure::internal)??;
        let sandboxes = Arc::new(worker.clone());
        let scheduler = Scheduler::new(
            config.scheduler,
            sandboxes.clone(),
            tasks.clone(),
            &registry,
            log_sink.clone(),
        )?;
        let histories = histories::path(&folder);
        histories::restore(&histories, &scheduler);
        let invoker = Arc::new(scheduler.clone());
        let deployer = Deployer {
            functions: store_port.clone(),
            artifacts: store_port.clone(),
            checks: vec![worker.check(), inference.check(store_port.clone())],
            sandboxes,
            invoker: invoker.clone(),
            max_memory,
            turns: Default::default(),
        };
        let listener = TcpListener::bind(&config.gateway.listen)
            .await
            .map_err(|source| StartError::Listen {
                address: config.gateway.listen.clone(),
                source,
            })?;
        let restorer = deployer.clone();
        let backend = Backend {
            invoker,
            functions: store_port.clone(),
            artifacts: store_port,
            deployer,
            inference: Arc::new(inference.clone()),
            logs: log_sink,
            recorder: scheduler.recorder().clone(),
            tracing: traces.as_ref().map(Traces::tracing),
            registry,
        };
        let gateway = Gateway::start(config.gateway, backend, listener, tasks.clone())?;
        let stop = CancellationToken::new();
        let platform = Self {
            gateway,
            scheduler,
            inference,
            worker,
            store,
            logs,
            traces,
            tasks,
            stop,
            grace: config.grace.duration(),
            histories,
            evictions,
        };
        platform.start_housekeeping();
        platform.restore(restorer);
        Ok(platform)
    }

    /// The address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.gateway.address()
    }

    /// Invocations in flight, queued ones included.
    pub fn in_flight(&self) -> usize {
        self.scheduler.in_flight()
    }

    /// Instances that exist now.
    pub fn instances(&self) -> usize {
        self.scheduler.instances()
    }

    /// Model sessions in memory, and the bytes ONNX Runtime holds.
    pub fn sessions(&self) -> (usize, u64) {
        self.inference.resident()
    }

    /// Templates in memory.
    pub fn templates(&self) -> usize {
        self.worker.resident_templates()
    }

    /// Process ids of the inference hosts that run.
    pub fn inference_hosts(&self) -> Vec<u32> {
        self.inference.hosts()
    }

    /// Replaces every inference host by a new one with the same sessions, while requests go on. Returns how many.
    pub async fn replace_inference_hosts(&self) -> Result<usize, InferenceError> {
        self.inference.replace_hosts().await
    }

    /// Tasks that panicked; always zero, or there is a defect.
    pub fn panics(&self) -> u64 {
        self.tasks.panics()
    }

    /// Stops taking work, lets running invocations finish within the grace period, and ends. Says whether all of them
    /// finished.
    pub async fn drain(self) -> bool {
        tracing::info!(grace_seconds = self.grace.as_secs_f64(), "draining");
        // While invocations finish, whoever asks is still answered: `/readyz` says so, new invocations are sent elsewhere.
        self.gateway.set_draining();
        let finished = self.scheduler.drain(self.grace).await;
        let (path, scheduler) = (self.histories.clone(), self.scheduler.clone());
        let _ = tokio::task::spawn_blocking(move || histories::save(&path, &scheduler)).await;
        self.logs.end_followers().await;
        self.gateway.stop();
        self.stop.cancel();
        if !finished {
            tracing::warn!("the grace period is over; invocations that still run are ended");
        }
        self.inference.shut_down().await;
        // What is left are responses on their way out.
        let _ = tokio::time::timeout(Duration::from_secs(2), self.tasks.join()).await;
        self.logs.stop().await;
        if let Some(traces) = self.traces {
            traces.stop().await;
        }
        finished
    }

    fn start_housekeeping(&self) {
        let keeper = housekeeping::Keeper {
            scheduler: self.scheduler.clone(),
            worker: self.worker.clone(),
            inference: self.inference.clone(),
            store: self.store.clone(),
            logs: self.logs.clone(),
            histories: self.histories.clone(),
            evictions: self.evictions.clone(),
        };
        self.tasks
            .spawn("housekeeping", keeper.run(self.stop.clone()));
    }

    /// Takes up what was live before this start: limits, reservations and schedules at once, then the provisioned
    /// instances. `/readyz` waits for those: until each function's are all started, or have failed to.
    fn restore(&self, deployer: Deployer) {
        let live: Vec<_> = FunctionStore::functions(&self.store, None)
            .iter()
            .filter_map(|function| {
                function
                    .live()
                    .and_then(|alias| function.versions.get(&alias.version))
                    .cloned()
            })
            .collect();
        for version in &live {
            self.scheduler.configure(version);
        }
        let kept: Vec<_> = live
            .into_iter()
            .filter(|version| version.config.is_kept())
            .collect();
        let ready = self.gateway.readiness();
        if kept.is_empty() {
            ready.set();
            return;
        }
        // Side by side: one that hangs until its start_timeout holds up no other.
        let starts: Vec<_> = kept
            .into_iter()
            .map(|version| {
                let deployer = deployer.clone();
                self.tasks.spawn("restore-provisioned", async move {
                    deployer.restore(&version.function).await;
                })
            })
            .collect();
        self.tasks.spawn("become-ready", async move {
            for start in starts {
                // One that panicked was counted; it is over, too.
                let _ = start.await;
            }
            ready.set();
        });
    }
}
