//! The HTTP edge: listener, identity, routing, limits, the invocation path and the admin API, and the one place where
//! errors become responses.
//!
//! The only crate that names the HTTP server. Knows the rest of the platform as ports. Invariants: every read from and
//! write to a client is bounded in time and size; no header or body of a client can panic or hang the platform; a
//! response carries the id of its request.

mod access;
mod api;
mod client_body;
mod config;
mod identity;
mod invoke;
mod io;
mod listener;
mod metrics;
mod rate;
mod respond;
mod router;
mod service;
mod trace;

pub use config::Config;
pub use respond::status_of;
pub use trace::Tracing;

use fnctl_core::deploy::Deployer;
use fnctl_core::log::LogStore;
use fnctl_core::ports::{ArtifactStore, FunctionStore, InferenceControl, Invoker};
use fnctl_core::task::Tasks;
use metrics::Metrics;
use prometheus::Registry;
use rate::RateLimits;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// What the gateway needs of the rest of the platform.
#[derive(Clone)]
pub struct Backend {
    /// Answers invocations.
    pub invoker: Arc<dyn Invoker>,
    /// Knows the functions.
    pub functions: Arc<dyn FunctionStore>,
    /// Keeps the artifacts.
    pub artifacts: Arc<dyn ArtifactStore>,
    /// Deploys, rolls back and removes.
    pub deployer: Deployer,
    /// Shows and replaces inference hosts.
    pub inference: Arc<dyn InferenceControl>,
    /// Keeps what functions said.
    pub logs: Arc<dyn LogStore>,
    /// Records invocations, if somebody wants them recorded.
    pub tracing: Option<Tracing>,
    /// What was invoked lately.
    pub recorder: fnctl_core::record::Recorder,
    /// Everything that `/metrics` shows.
    pub registry: Registry,
}

impl std::fmt::Debug for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backend").finish_non_exhaustive()
    }
}

/// A running gateway.
#[derive(Debug)]
pub struct Gateway {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop_accepting: CancellationToken,
    close_connections: CancellationToken,
}

/// Whether the platform is as warm as it was configured to be. Requests are answered before, too.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<AtomicBool>);

impl Readiness {
    /// It is from now on.
    pub fn set(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// What every connection uses.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) backend: Backend,
    pub(crate) metrics: Metrics,
    pub(crate) rates: RateLimits,
    pub(crate) tasks: Tasks,
    pub(crate) draining: AtomicBool,
    /// Whether what is to be started with the platform has been.
    pub(crate) ready: Readiness,
    /// Makes generated request ids differ between processes.
    pub(crate) seed: u64,
}

impl Gateway {
    /// Serves on a bound listener until stopped.
    pub fn start(
        config: Config,
        backend: Backend,
        listener: TcpListener,
        tasks: Tasks,
    ) -> Result<Self, GatewayError> {
        let address = listener.local_addr().map_err(GatewayError::Listen)?;
        let metrics = Metrics::register(&backend.registry).map_err(GatewayError::Metrics)?;
        let shared = Arc::new(Shared {
            config,
            backend,
            metrics,
            rates: RateLimits::default(),
            tasks: tasks.clone(),
            draining: AtomicBool::new(false),
            ready: Readiness::default(),
            seed: random_seed(),
        });
        let stop_accepting = CancellationToken::new();
        let close_connections = CancellationToken::new();
        tasks.spawn(
            "accept",
            listener::accept(
                listener,
                shared.clone(),
                stop_accepting.clone(),
                close_connections.clone(),
            ),
        );
        Ok(Self {
            address,
            shared,
            stop_accepting,
            close_connections,
        })
    }

    /// The address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What `/readyz` waits for.
    pub fn readiness(&self) -> Readiness {
        self.shared.ready.clone()
    }

    /// Says on `/readyz` that traffic should go elsewhere, while everything is still answered.
    pub fn set_draining(&self) {
        self.shared.draining.store(true, Ordering::SeqCst);
    }

    /// Takes no new connection; idle ones are closed, busy ones after their answer.
    pub fn stop(&self) {
        self.stop_accepting.cancel();
        self.close_connections.cancel();
    }
}

/// A seed from the system's randomness, by way of the standard library's hasher keys.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new()
        .build_hasher()
        .finish()
}

/// Why a gateway could not start.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The listener has no address.
    #[error("the listener is unusable: {0}")]
    Listen(std::io::Error),
    /// A metric is registered twice.
    #[error("the metrics: {0}")]
    Metrics(prometheus::Error),
}
