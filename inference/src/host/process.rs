//! One running host, as the platform sees it: its process, its control socket, its computes, and the watch over them.

use super::asked::Asked;
use super::computes::{Computes, Work};
use super::death::{self, Death, Reason};
use super::lanes::Lane;
use super::loads::{Loading, Resident, Residents};
use super::metrics::resident_bytes;
use super::protocol::{Order, Report, Setup, VERSION};
use super::quarantine::{Inhabitants, Suspect};
use super::shared::{Figure, Layout, Shared};
use super::spawn::{self, Spawned};
use super::unloads::Unloads;
use super::watch::Guard;
use super::{logs, socket};
use crate::config::Config;
use fnctl_core::ids::FunctionName;
use fnctl_core::inference::{Computed, InferenceError, InferenceErrorKind, ModelInfo, SessionId};
use parking_lot::Mutex;
use rustix::event::EventfdFlags;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

/// How long a host has to say that it is ready.
const START: Duration = Duration::from_secs(20);
/// How long an ended process may take to be gone.
pub(super) const REAP: Duration = Duration::from_secs(5);
/// A host that does not empty its socket.
pub(super) const NO_ORDERS: &str = "it takes no orders";

/// What starting a host needs.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) program: PathBuf,
    pub(crate) config: Config,
}

impl Plan {
    /// The program is this very one, unless the settings say otherwise.
    pub(crate) fn new(config: Config) -> Self {
        let program = config
            .program
            .clone()
            .or_else(|| std::env::current_exe().ok())
            .unwrap_or_default();
        Self { program, config }
    }
}

/// Who is told of a death, before anybody who waits for the host is.
pub(crate) type OnDeath = Box<dyn FnOnce(&Death) + Send>;

/// A running host.
pub(crate) struct HostProcess {
    pub(crate) pid: u32,
    pub(crate) confinement: String,
    /// What of it is not in force.
    pub(crate) unconfined: Vec<String>,
    pub(super) shared: Arc<Shared>,
    pub(super) computes: Arc<Computes>,
    pub(super) socket: Arc<AsyncFd<OwnedFd>>,
    pub(super) loading: Mutex<HashMap<u64, Loading>>,
    /// Loads that may be in the host at once; closed when it is gone.
    pub(super) turns: Semaphore,
    pub(super) residents: Residents,
    /// Loads so far.
    pub(super) loads: AtomicU64,
    pub(super) unloads: Unloads,
    /// Who ever was in it.
    pub(super) inhabitants: Mutex<Inhabitants>,
    pub(crate) dead: OnceLock<Reason>,
    /// How many processes the system had killed for memory at the last look.
    pub(super) oom_kills: Mutex<Option<u64>>,
    pub(super) on_death: Mutex<Option<OnDeath>>,
    pub(super) end: Notify,
    /// Why the platform ends it, if it does.
    pub(super) ending: OnceLock<Reason>,
    /// A run or a load that did not end: the one suspect of a hang.
    pub(super) stuck: Mutex<Option<Suspect>>,
    pub(super) heard: Mutex<Instant>,
    pub(super) pings: AtomicU64,
    pub(super) ponged: AtomicU64,
    /// Since when no session is in it.
    pub(super) empty_since: Mutex<Instant>,
    pub(super) gone: Notify,
    /// How long it may take no order, or give no sign of life.
    pub(super) patience: Duration,
    /// Bytes that it may hold for tensors.
    budget: u64,
}

impl std::fmt::Debug for HostProcess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostProcess")
            .field("pid", &self.pid)
            .finish_non_exhaustive()
    }
}

/// A host that has said that it is ready.
pub(super) struct Ready {
    pub(super) pid: u32,
    pub(super) confinement: String,
    pub(super) unconfined: Vec<String>,
    pub(super) shared: Arc<Shared>,
    pub(super) socket: Arc<AsyncFd<OwnedFd>>,
}

/// Why a host did not start.
#[derive(Debug)]
pub(crate) enum StartFailure {
    /// It says why; trying again would not help.
    Told(InferenceError),
    /// It died, hung, or could not be started at all.
    Died(String),
}

impl From<io::Error> for StartFailure {
    fn from(error: io::Error) -> Self {
        Self::Died(error.to_string())
    }
}

impl HostProcess {
    /// Starts a host and waits until it is ready.
    pub(crate) async fn start(plan: &Plan) -> Result<Arc<Self>, StartFailure> {
        let library = plan.config.clone();
        let library = tokio::task::spawn_blocking(move || crate::library::find(&library))
            .await
            .map_err(|error| StartFailure::Died(error.to_string()))?
            .map_err(StartFailure::Told)?;
        let config = &plan.config;
        let layout = Layout::new(config.compute_threads, config.shared_memory.bytes());
        let shared = Arc::new(Shared::create(layout)?);
        let signal = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(io::Error::from)?;
        let Spawned { mut child, socket } = spawn::spawn(&plan.program).await?;
        let pid = child.id();
        let stderr = child.stderr.take();
        // From here on the child ends with `guard`, whatever goes wrong.
        let guard = Guard(Some(child));
        let setup = Order::Setup(Setup {
            version: VERSION,
            layout,
            parent: std::process::id(),
            library: library.display().to_string(),
            memory: config.memory.bytes(),
            constant_folding: config.constant_folding,
            intra_threads: config.intra_threads,
            compute_threads: Lane::Bulk.threads(config.compute_threads),
            express_threads: Lane::Express.threads(config.compute_threads),
            parallel_loads: config.parallel_loads,
        });
        if let Some(stderr) = stderr {
            logs::forward(OwnedFd::from(stderr), pid)?;
        }
        socket::send(&socket, &setup, &[shared.descriptor(), signal.as_fd()])?;
        let socket = Arc::new(watched(socket)?);
        let ready = tokio::time::timeout(START, receive(&socket)).await;
        let (confinement, unconfined) = match ready {
            Ok(Ok(Some(Report::Ready {
                version: VERSION,
                confinement,
                unconfined,
            }))) => (confinement, unconfined),
            Ok(Ok(Some(Report::Failed(error)))) => return Err(StartFailure::Told(error)),
            Ok(Ok(Some(_))) => {
                return Err(StartFailure::Died(
                    "it is of another version; start the platform again".to_owned(),
                ));
            }
            Ok(Ok(None)) => {
                return Err(StartFailure::Died(format!(
                    "it ended before it was ready; does {} have the subcommand {}?",
                    plan.program.display(),
                    spawn::SUBCOMMAND
                )));
            }
            Ok(Err(error)) => return Err(error.into()),
            Err(_elapsed) => {
                return Err(StartFailure::Died(format!(
                    "it was not ready after {}s",
                    START.as_secs()
                )));
            }
        };
        if config.require_confinement && !unconfined.is_empty() {
            return Err(StartFailure::Told(InferenceError::new(
                InferenceErrorKind::Unavailable,
                format!(
                    "the system does not confine inference hosts as inference.require_confinement wants it: {}; use a newer kernel, or turn the setting off",
                    unconfined.join("; ")
                ),
            )));
        }
        let ready = Ready {
            pid,
            confinement,
            unconfined,
            shared,
            socket,
        };
        let process = Arc::new(Self::new(ready, config));
        let watch = process.clone().watch(guard, signal, config.clone());
        tokio::spawn(watch);
        Ok(process)
    }

    pub(super) fn new(ready: Ready, config: &Config) -> Self {
        Self {
            pid: ready.pid,
            confinement: ready.confinement,
            unconfined: ready.unconfined,
            computes: Computes::new(
                ready.shared.clone(),
                config.compute_queue,
                config.compute_threads,
            ),
            shared: ready.shared,
            socket: ready.socket,
            loading: Mutex::default(),
            turns: Semaphore::new(config.parallel_loads.max(1)),
            residents: Mutex::default(),
            loads: AtomicU64::new(0),
            unloads: Unloads::default(),
            inhabitants: Mutex::default(),
            dead: OnceLock::new(),
            oom_kills: Mutex::new(death::oom_kills()),
            on_death: Mutex::new(None),
            end: Notify::new(),
            ending: OnceLock::new(),
            stuck: Mutex::new(None),
            heard: Mutex::new(Instant::now()),
            pings: AtomicU64::new(0),
            ponged: AtomicU64::new(0),
            empty_since: Mutex::new(Instant::now()),
            gone: Notify::new(),
            patience: config.hang_after.duration(),
            budget: config.memory.bytes(),
        }
    }

    /// From now on a death is told to `tell`. Says no if the host is dead already.
    pub(crate) fn on_death(&self, tell: OnDeath) -> bool {
        *self.on_death.lock() = Some(tell);
        self.dead.get().is_none()
    }

    /// Whether it takes work.
    pub(crate) fn is_alive(&self) -> bool {
        self.dead.get().is_none() && self.ending.get().is_none()
    }

    /// Whether nothing computes or loads in it.
    pub(crate) fn is_idle(&self) -> bool {
        self.computes.is_idle() && self.loading.lock().is_empty()
    }

    /// Bytes that ONNX Runtime holds in it, as it says; never more than it may, whatever it says.
    pub(crate) fn live_bytes(&self) -> u64 {
        let said = self.shared.figure(Figure::Live).load(Ordering::Relaxed);
        said.min(self.budget)
    }

    /// The same, and never more than the system says that the process has: others are refused memory for it.
    pub(crate) fn taken_bytes(&self) -> u64 {
        self.live_bytes().min(resident_bytes(self.pid))
    }

    /// How long ago it was last heard of.
    pub(crate) fn silence(&self, now: Instant) -> Duration {
        now.saturating_duration_since(*self.heard.lock())
    }

    /// A session that is loaded here.
    pub(crate) fn resident(&self, session: SessionId) -> Option<Arc<Resident>> {
        let residents = self.residents.lock();
        let resident = residents.get(&session)?;
        resident
            .loaded
            .load(Ordering::Relaxed)
            .then(|| resident.clone())
    }

    /// Sessions that are loaded or loading here.
    pub(crate) fn sessions(&self) -> Vec<SessionId> {
        self.residents.lock().keys().copied().collect()
    }

    /// Bytes of a session that is loaded here, as the host says; no more than it may have.
    pub(crate) fn bytes_of(&self, session: SessionId) -> Option<u64> {
        let resident = self.resident(session)?;
        Some(resident.bytes.load(Ordering::Relaxed).min(self.budget))
    }

    /// Whether no session is here.
    pub(crate) fn is_empty(&self) -> bool {
        self.residents.lock().is_empty()
    }

    /// For how long no session was here.
    pub(crate) fn empty_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(*self.empty_since.lock())
    }

    /// Gives shared memory back that nothing uses.
    pub(crate) fn trim(&self) {
        self.computes.trim();
    }

    /// Ends the process and waits until it is gone.
    pub(crate) async fn stop(&self) {
        self.finish(Reason::Stopped);
        self.ended(Instant::now() + REAP).await;
    }

    /// Waits until its death is told, no longer than until `limit`.
    pub(super) async fn ended(&self, limit: Instant) {
        // Before the look, so that a death in between is not missed.
        let gone = self.gone.notified();
        if self.dead.get().is_none() {
            let _ = tokio::time::timeout_at(limit, gone).await;
        }
    }

    /// Has the process ended, without waiting for it.
    pub(crate) fn finish(&self, reason: Reason) {
        let _ = self.ending.set(reason);
        self.end.notify_one();
    }

    pub(super) fn order(&self, order: &Order, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        socket::send(self.socket.get_ref(), order, descriptors)
    }

    /// Why a host that does not react has to end: stopped from outside is nobody's fault.
    pub(super) fn silent(&self, how: &'static str) -> Reason {
        if death::is_stopped(self.pid) {
            Reason::Killed
        } else {
            Reason::Hung(how)
        }
    }

    /// One inference of a function's.
    pub(crate) async fn compute(
        &self,
        resident: &Resident,
        function: &FunctionName,
        info: &ModelInfo,
        room: &std::sync::atomic::AtomicUsize,
        inputs: &[crate::inputs::Resolved],
    ) -> Asked<Computed> {
        let cancel = |slot, run| {
            // Lost if the host takes no frames now; the watch says it again.
            let _ = self.order(&Order::Cancel { slot, run }, &[]);
        };
        // Before it is in there: whatever it does, it is known to have been.
        self.inhabitants.lock().computes(function);
        let work = Work {
            session: resident.number,
            key: &resident.key,
            pace: &resident.pace,
            caller: function,
            info,
            room,
            inputs,
            cancel: &cancel,
        };
        self.computes.run(&work).await
    }
}

/// A descriptor that tokio watches.
pub(super) fn watched(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` names one open descriptor, the same for as long as it lives, and nothing takes it out while it
    // is registered.
    unsafe { AsyncFd::register(descriptor) }.map_err(io::Error::from)
}

pub(super) async fn receive(socket: &AsyncFd<OwnedFd>) -> io::Result<Option<Report>> {
    let mut buffer = Vec::new();
    loop {
        let mut ready = socket.readable().await?;
        let received = ready.try_io(|socket| {
            // Descriptors from a host are not wanted; they are closed here.
            socket::receive::<Report>(socket.get_ref(), &mut buffer)
        });
        match received {
            Ok(Ok(frame)) => return Ok(frame.map(|(report, _closed)| report)),
            Ok(Err(error)) => return Err(error),
            Err(_would_block) => {}
        }
    }
}
