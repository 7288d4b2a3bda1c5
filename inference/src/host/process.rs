//! One running host, as the platform sees it: its process, its control socket, its computes, and the watch over them.

use super::computes::{Asked, Computes, Gone, Refusal, Work};
use super::death::{self, Death, Reason};
use super::lanes::Pace;
use super::metrics::resident_bytes;
use super::model::Wanted;
use super::protocol::{Order, Report, Setup, VERSION};
use super::quarantine::Inhabitants;
use super::shared::{Figure, Layout, Shared};
use super::spawn::{self, Spawned};
use super::watch::Guard;
use super::{logs, socket};
use crate::config::Config;
use crate::sessions::SessionKey;
use fnctl_core::inference::{Computed, InferenceError, InferenceErrorKind, ModelInfo, SessionId};
use parking_lot::Mutex;
use rustix::event::EventfdFlags;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, OnceCell, Semaphore, oneshot};
use tokio::time::Instant;

/// How long a host has to say that it is ready.
const START: Duration = Duration::from_secs(20);
/// How long an ended process may take to be gone.
pub(super) const REAP: Duration = Duration::from_secs(5);
/// How long the smallest model may load before its host counts as hung.
const LOAD: Duration = Duration::from_secs(60);
/// What a larger one has more: as slow a disk as anybody serves models from.
const LOAD_BYTES_PER_SECOND: u64 = 16 << 20;
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

pub(super) struct Loading {
    pub(super) since: Instant,
    /// How long it may take.
    pub(super) limit: Duration,
    pub(super) key: Arc<SessionKey>,
    pub(super) done: oneshot::Sender<Result<(ModelInfo, u64), Refusal>>,
}

/// A session in one host, by one load.
#[derive(Debug)]
pub(crate) struct Resident {
    /// What the host knows it by: never used twice, so that the end of one load cannot be taken for another's.
    pub(super) number: u64,
    pub(super) key: Arc<SessionKey>,
    pub(super) info: OnceCell<ModelInfo>,
    /// Set under the lock of `residents`, and only while this is what is in there: from then on who takes it out tells
    /// the host, until then who loads it does.
    pub(super) loaded: AtomicBool,
    /// Bytes that it took, as the host says.
    pub(super) bytes: AtomicU64,
    /// What its computes take.
    pub(super) pace: Pace,
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
    pub(super) residents: Residents,
    loads: AtomicU64,
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
    pub(super) stuck: Mutex<Option<SessionKey>>,
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
            computes: Computes::new(shared.clone(), config.compute_queue, config.compute_threads),
            shared,
            socket,
            loading: Mutex::default(),
            turns: Semaphore::new(config.parallel_loads.max(1)),
            residents: Mutex::default(),
            loads: AtomicU64::new(0),
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
        });
        let watch = process.clone().watch(guard, signal, config.clone());
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
    pub(crate) async fn load(self: &Arc<Self>, wanted: &Arc<Wanted>) -> Asked<ModelInfo> {
        let resident = {
            let mut residents = self.residents.lock();
            // Looked at under the lock: who retires a session comes here afterwards to take it out.
            if wanted.is_retired() {
                return Ok(Err(not_loaded().into()));
            }
            let number = || self.loads.fetch_add(1, Ordering::Relaxed);
            residents
                .entry(wanted.id)
                .or_insert_with(|| {
                    Arc::new(Resident {
                        number: number(),
                        key: Arc::new(wanted.key.clone()),
                        info: OnceCell::new(),
                        loaded: AtomicBool::new(false),
                        bytes: AtomicU64::new(0),
                        pace: Pace::default(),
                    })
                })
                .clone()
        };
        if let Some(info) = resident.info.get() {
            return Ok(Ok(info.clone()));
        }
        self.inhabitants.lock().add(&wanted.key);
        let (process, wanted) = (self.clone(), wanted.clone());
        let load = tokio::spawn(async move {
            let loaded = resident
                .info
                .get_or_try_init(|| process.load_now(&wanted, &resident))
                .await
                .cloned();
            match loaded {
                Ok(info) => Ok(Ok(info)),
                Err(None) => Err(Gone),
                Err(Some(refusal)) => {
                    forget_failed(&process.residents, wanted.id, resident);
                    Ok(Err(refusal))
                }
            }
        });
        load.await.unwrap_or(Err(Gone))
    }

    /// None stands for a host that is gone.
    async fn load_now(
        &self,
        wanted: &Wanted,
        resident: &Arc<Resident>,
    ) -> Result<ModelInfo, Option<Refusal>> {
        let _turn = self.turns.acquire().await.map_err(|_closed| None)?;
        let (done, loaded) = oneshot::channel();
        let loading = Loading {
            since: Instant::now(),
            limit: load_limit(wanted.file.length),
            key: resident.key.clone(),
            done,
        };
        self.loading.lock().insert(resident.number, loading);
        if self.dead.get().is_some() {
            self.loading.lock().clear();
            return Err(None);
        }
        let order = Order::Load {
            session: resident.number,
            length: wanted.file.length,
        };
        self.order_in_turn(&order, &[wanted.file.descriptor.as_fd()])
            .await
            .map_err(|_| None)?;
        match loaded.await {
            Ok(Ok((info, bytes))) => {
                tracing::debug!(session = wanted.id.0, bytes, pid = self.pid, "model loaded");
                resident.bytes.store(bytes, Ordering::Relaxed);
                if self.settle(wanted.id, resident) {
                    return Ok(info);
                }
                // Taken out while it was loading: nobody else tells the host.
                let session = resident.number;
                let _ = self.order_in_turn(&Order::Unload { session }, &[]).await;
                Err(Some(not_loaded().into()))
            }
            Ok(Err(refusal)) => Err(Some(refusal)),
            Err(_gone) => Err(None),
        }
    }

    /// A load has come to its end in the host. Says whether it is still wanted.
    fn settle(&self, session: SessionId, resident: &Arc<Resident>) -> bool {
        let residents = self.residents.lock();
        let wanted = residents
            .get(&session)
            .is_some_and(|one| Arc::ptr_eq(one, resident));
        if wanted {
            resident.loaded.store(true, Ordering::Relaxed);
        }
        wanted
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
            let taken = self.residents.lock().remove(session);
            let Some(taken) = taken else { continue };
            count += 1;
            if !taken.loaded.load(Ordering::Relaxed) {
                // It is loading: who does that finds it gone, and tells the host then.
                continue;
            }
            let order = Order::Unload {
                session: taken.number,
            };
            let told = self.order_in_turn(&order, &[]);
            if self.is_alive() && tokio::time::timeout(self.patience, told).await.is_err() {
                self.finish(self.silent(NO_ORDERS));
            }
        }
        if count > 0 && self.is_empty() {
            *self.empty_since.lock() = now;
        }
        count
    }

    /// One inference.
    pub(crate) async fn compute(
        &self,
        resident: &Resident,
        info: &ModelInfo,
        room: &std::sync::atomic::AtomicUsize,
        inputs: &[crate::inputs::Resolved],
    ) -> Asked<Computed> {
        let cancel = |slot, run| {
            // Lost if the host takes no frames now; the watch says it again.
            let _ = self.order(&Order::Cancel { slot, run }, &[]);
        };
        let work = Work {
            session: resident.number,
            key: &resident.key,
            pace: &resident.pace,
            info,
            room,
            inputs,
            cancel: &cancel,
        };
        self.computes.run(&work).await
    }
}

/// How long a model of this many bytes may load before its host counts as hung.
fn load_limit(length: u64) -> Duration {
    LOAD + Duration::from_secs(length / LOAD_BYTES_PER_SECOND)
}

fn not_loaded() -> InferenceError {
    InferenceError::new(
        InferenceErrorKind::NotFound,
        "this session is not loaded any more",
    )
}

/// Sessions that are in a host, each by the one load.
pub(super) type Residents = Mutex<HashMap<SessionId, Arc<Resident>>>;

/// Forgets a load that failed, unless somebody else tries the same one: then the session stays, so that there is never a
/// second load of it at the same time.
fn forget_failed(residents: &Residents, session: SessionId, mine: Arc<Resident>) {
    let mut residents = residents.lock();
    let here = residents.get(&session);
    if !here.is_some_and(|one| Arc::ptr_eq(one, &mine)) {
        return;
    }
    drop(mine);
    let unwanted = here.is_some_and(|one| Arc::strong_count(one) == 1 && one.info.get().is_none());
    if unwanted {
        residents.remove(&session);
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

    fn resident() -> Arc<Resident> {
        let key = SessionKey {
            digest: fnctl_core::ids::Digest::of(b"model"),
            owner: None,
            isolation: fnctl_core::config::InferenceIsolation::Shared,
        };
        Arc::new(Resident {
            number: 1,
            key: Arc::new(key),
            info: OnceCell::new(),
            loaded: AtomicBool::new(false),
            bytes: AtomicU64::new(0),
            pace: Pace::default(),
        })
    }

    #[test]
    fn a_failed_load_stays_known_while_somebody_tries_again() {
        let residents = Residents::default();
        let id = SessionId(1);
        let one = resident();
        residents.lock().insert(id, one.clone());
        let other = one.clone();
        forget_failed(&residents, id, one);
        let known = residents.lock().get(&id).cloned().unwrap();
        assert!(Arc::ptr_eq(&other, &known), "the other one's load goes on");
        drop(known);
        forget_failed(&residents, id, other);
        assert!(residents.lock().is_empty());
        // Taken out meanwhile, and loaded anew: not this one's to forget.
        residents.lock().insert(id, resident());
        forget_failed(&residents, id, resident());
        assert_eq!(residents.lock().len(), 1);
    }

    #[test]
    fn a_load_has_a_minute_and_what_its_size_takes() {
        assert_eq!(load_limit(9_000), Duration::from_secs(60));
        assert_eq!(load_limit(2 << 30), Duration::from_secs(60 + 128));
    }
}
