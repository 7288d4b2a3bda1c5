//! One running host, as the platform sees it: its process, its control socket, its computes, and the watch over them.

use super::computes::{Asked, Computes, Gone, Work};
use super::death::{self, Death, Reason};
use super::protocol::{Order, Report, Setup, VERSION};
use super::shared::{Figure, Layout, Shared};
use super::spawn::{self, Spawned};
use super::watch::Guard;
use super::{logs, socket};
use crate::config::Config;
use fnctl_core::inference::{Computed, InferenceError, InferenceErrorKind, ModelInfo, SessionId};
use parking_lot::Mutex;
use rustix::event::EventfdFlags;
use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, OnceCell, Semaphore, oneshot};
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

/// Who is told of a death, before anybody who waits for the host is.
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

pub(crate) type OnDeath = Box<dyn FnOnce(&Death) + Send>;

pub(super) struct Loading {
    pub(super) since: Instant,
    pub(super) done: oneshot::Sender<Result<(ModelInfo, u64), InferenceError>>,
}

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
    pub(super) loaded: LoadedSessions,
    /// Sessions that ever were.
    pub(super) seen: Mutex<HashSet<SessionId>>,
    pub(crate) dead: OnceLock<Reason>,
    pub(super) on_death: Mutex<Option<OnDeath>>,
    pub(super) end: Notify,
    /// Why the platform ends it, if it does.
    pub(super) ending: OnceLock<Reason>,
    /// A run that did not end: the one suspect of a hang.
    pub(super) stuck: Mutex<Option<SessionId>>,
    pub(super) heard: Mutex<Instant>,
    pub(super) pings: AtomicU64,
    pub(super) ponged: AtomicU64,
    /// Since when no session is in it.
    empty_since: Mutex<Instant>,
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
        let oom = death::oom_kills();
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
            compute_threads: config.compute_threads,
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
        let process = Arc::new(Self {
            pid,
            confinement,
            unconfined,
            computes: Computes::new(shared.clone(), config.compute_queue),
            shared,
            socket,
            loading: Mutex::default(),
            turns: Semaphore::new(config.parallel_loads.max(1)),
            loaded: Mutex::default(),
            seen: Mutex::default(),
            dead: OnceLock::new(),
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
        });
        let watch = process.clone().watch(guard, signal, config.clone(), oom);
        tokio::spawn(watch);
        Ok(process)
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

    /// How long ago it was last heard of.
    pub(crate) fn silence(&self, now: Instant) -> Duration {
        now.saturating_duration_since(*self.heard.lock())
    }

    /// Whether a session is loaded here.
    pub(crate) fn has(&self, session: SessionId) -> bool {
        let loaded = self.loaded.lock();
        loaded
            .get(&session)
            .is_some_and(|cell| cell.get().is_some())
    }

    /// Sessions that are loaded or loading here.
    pub(crate) fn sessions(&self) -> Vec<SessionId> {
        self.loaded.lock().keys().copied().collect()
    }

    /// Whether no session is here.
    pub(crate) fn is_empty(&self) -> bool {
        self.loaded.lock().is_empty()
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
        let gone = self.gone.notified();
        if self.dead.get().is_none() {
            let _ = tokio::time::timeout(REAP, gone).await;
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

    /// Sends an order, and waits while the host does not take any.
    async fn order_in_turn(&self, order: &Order, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        loop {
            let mut ready = self.socket.writable().await?;
            match ready.try_io(|socket| socket::send(socket.get_ref(), order, descriptors)) {
                Ok(sent) => return sent,
                Err(_would_block) => {}
            }
        }
    }

    /// Loads a model, once for everybody who asks. The load goes on if this future is dropped.
    pub(crate) async fn load(
        self: &Arc<Self>,
        session: SessionId,
        file: &Arc<OwnedFd>,
        length: u64,
    ) -> Asked<ModelInfo> {
        let cell = self.loaded.lock().entry(session).or_default().clone();
        if let Some(info) = cell.get() {
            return Ok(Ok(info.clone()));
        }
        self.seen.lock().insert(session);
        let (process, file) = (self.clone(), file.clone());
        let load = tokio::spawn(async move {
            let loaded = cell
                .get_or_try_init(|| process.load_now(session, &file, length))
                .await
                .cloned();
            match loaded {
                Ok(info) => Ok(Ok(info)),
                Err(None) => Err(Gone),
                Err(Some(error)) => {
                    forget_failed(&process.loaded, session, cell);
                    Ok(Err(error))
                }
            }
        });
        load.await.unwrap_or(Err(Gone))
    }

    /// None stands for a host that is gone.
    async fn load_now(
        &self,
        session: SessionId,
        file: &OwnedFd,
        length: u64,
    ) -> Result<ModelInfo, Option<InferenceError>> {
        let _turn = self.turns.acquire().await.map_err(|_closed| None)?;
        let (done, loaded) = oneshot::channel();
        let since = Instant::now();
        self.loading
            .lock()
            .insert(session.0, Loading { since, done });
        if self.dead.get().is_some() {
            self.loading.lock().clear();
            return Err(None);
        }
        let order = Order::Load {
            session: session.0,
            length,
        };
        self.order_in_turn(&order, &[file.as_fd()])
            .await
            .map_err(|_| None)?;
        match loaded.await {
            Ok(Ok((info, bytes))) => {
                tracing::debug!(session = session.0, bytes, pid = self.pid, "model loaded");
                Ok(info)
            }
            Ok(Err(error)) => Err(Some(error)),
            Err(_gone) => Err(None),
        }
    }

    /// Why a host that does not react has to end: stopped from outside is nobody's fault.
    pub(super) fn silent(&self, how: &'static str) -> Reason {
        if death::is_stopped(self.pid) {
            Reason::Killed
        } else {
            Reason::Hung(how)
        }
    }

    /// Forgets sessions. Says how many were here. A host that takes no orders is ended.
    pub(crate) async fn unload(&self, sessions: &[SessionId], now: Instant) -> usize {
        let mut count = 0;
        for session in sessions {
            let here = self.loaded.lock().remove(session).is_some();
            if here {
                count += 1;
                let order = Order::Unload { session: session.0 };
                let told = self.order_in_turn(&order, &[]);
                if self.is_alive() && tokio::time::timeout(self.patience, told).await.is_err() {
                    self.finish(self.silent(NO_ORDERS));
                }
            }
        }
        if count > 0 && self.loaded.lock().is_empty() {
            *self.empty_since.lock() = now;
        }
        count
    }

    /// One inference.
    pub(crate) async fn compute(
        &self,
        session: SessionId,
        info: &ModelInfo,
        room: &std::sync::atomic::AtomicUsize,
        inputs: &[crate::inputs::Resolved],
    ) -> Asked<Computed> {
        let cancel = |slot, run| {
            // Lost if the host takes no frames now; the watch says it again.
            let _ = self.order(&Order::Cancel { slot, run }, &[]);
        };
        let work = Work {
            session,
            info,
            room,
            inputs,
            cancel: &cancel,
        };
        self.computes.run(&work).await
    }
}

/// Sessions that are loaded in a host, each by the one load.
pub(super) type LoadedSessions = Mutex<HashMap<SessionId, Arc<OnceCell<ModelInfo>>>>;

/// Forgets a load that failed, unless somebody else tries with the same cell: then the session stays, so that there is
/// never a second load of it at the same time.
fn forget_failed(sessions: &LoadedSessions, session: SessionId, mine: Arc<OnceCell<ModelInfo>>) {
    let mut sessions = sessions.lock();
    drop(mine);
    let unwanted = |cell: &Arc<_>| Arc::strong_count(cell) == 1 && OnceCell::get(cell).is_none();
    if sessions.get(&session).is_some_and(unwanted) {
        sessions.remove(&session);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_load_stays_known_while_somebody_tries_again() {
        let sessions = LoadedSessions::default();
        let id = SessionId(1);
        let cell = || sessions.lock().entry(id).or_default().clone();
        let (one, other) = (cell(), cell());
        forget_failed(&sessions, id, one);
        assert!(Arc::ptr_eq(&other, &cell()), "the other one's load goes on");
        forget_failed(&sessions, id, other);
        assert!(sessions.lock().is_empty());
    }
}
