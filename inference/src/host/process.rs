//! One running host, as the platform sees it: its process, its control socket, its computes, and the watch over them.

use super::computes::{Asked, Computes, Gone, InFlight, Work};
use super::death::{self, Death, Reason};
use super::protocol::{Order, Report, Setup, VERSION};
use super::shared::{Figure, Layout, Shared};
use super::spawn::{self, Spawned};
use super::{logs, socket};
use crate::config::Config;
use fnctl_core::inference::{Computed, InferenceError, ModelInfo, SessionId};
use parking_lot::Mutex;
use rustix::event::EventfdFlags;
use rustix::process::{Pid, PidfdFlags};
use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::Child;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, OnceCell, oneshot};
use tokio::time::Instant;

/// How long a host has to say that it is ready.
const START: Duration = Duration::from_secs(20);
/// How long one model may load before the host counts as hung.
const LOAD: Duration = Duration::from_secs(15 * 60);
/// How long an ended process may take to be gone.
const REAP: Duration = Duration::from_secs(5);
/// How long a host that was told to end has before it is killed.
const LINGER: Duration = Duration::from_millis(500);

/// What starting a host needs.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) program: PathBuf,
    pub(crate) config: Config,
}

/// Who is told of a death, before anybody who waits for the host is.
pub(crate) type OnDeath = Box<dyn FnOnce(&Death) + Send>;

struct Loading {
    since: Instant,
    done: oneshot::Sender<Result<(ModelInfo, u64), InferenceError>>,
}

/// A running host.
pub(crate) struct HostProcess {
    pub(crate) pid: u32,
    pub(crate) confinement: String,
    shared: Arc<Shared>,
    computes: Arc<Computes>,
    socket: Arc<AsyncFd<OwnedFd>>,
    loading: Mutex<HashMap<u64, Loading>>,
    /// Sessions that are loaded here, each by the one load.
    loaded: Mutex<HashMap<SessionId, Arc<OnceCell<ModelInfo>>>>,
    /// Sessions that ever were.
    seen: Mutex<HashSet<SessionId>>,
    pub(crate) dead: OnceLock<Reason>,
    on_death: Mutex<Option<OnDeath>>,
    end: Notify,
    /// Why the platform ends it, if it does.
    ending: OnceLock<Reason>,
    /// A run that did not end: the one suspect of a hang.
    stuck: Mutex<Option<SessionId>>,
    heard: Mutex<Instant>,
    pings: AtomicU64,
    ponged: AtomicU64,
    /// Since when no session is in it.
    empty_since: Mutex<Instant>,
    gone: Notify,
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
        let confinement = match ready {
            Ok(Ok(Some(Report::Ready {
                version: VERSION,
                confinement,
            }))) => confinement,
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
        let process = Arc::new(Self {
            pid,
            confinement,
            computes: Computes::new(shared.clone(), config.compute_queue),
            shared,
            socket,
            loading: Mutex::default(),
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

    /// Bytes that ONNX Runtime holds in it, as it says.
    pub(crate) fn live_bytes(&self) -> u64 {
        self.shared.figure(Figure::Live).load(Ordering::Relaxed)
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

    fn order(&self, order: &Order, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
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
                    process.loaded.lock().remove(&session);
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

    /// Forgets sessions. Says how many were here.
    pub(crate) async fn unload(&self, sessions: &[SessionId], now: Instant) -> usize {
        let mut count = 0;
        for session in sessions {
            let here = self.loaded.lock().remove(session).is_some();
            if here {
                count += 1;
                let order = Order::Unload { session: session.0 };
                let _ = self.order_in_turn(&order, &[]).await;
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

    /// Looks after the host until it has ended, and tells everybody.
    async fn watch(
        self: Arc<Self>,
        mut guard: Guard,
        signal: OwnedFd,
        config: Config,
        oom: Option<u64>,
    ) {
        let reason = match watched(signal) {
            Ok(signal) => tokio::select! {
                reason = self.listen() => reason,
                reason = self.attend(&signal) => reason,
                reason = self.beat(&config) => reason,
                () = self.computes.lied.notified() => Some(Reason::Lied(
                    self.computes.take_lie().map_or("an answer", |lie| lie.0),
                )),
                () = self.end.notified() => None,
            },
            Err(_) => None,
        };
        let _ = reason.map(|reason| self.ending.set(reason));
        let status = guard
            .end(self.ending.get() == Some(&Reason::Stopped), &self.socket)
            .await;
        let reason = match (self.ending.get().cloned(), status) {
            (Some(reason), _) => reason,
            (None, Some(status)) => {
                let oom_now = death::oom_kills();
                Reason::of_exit(status, oom.is_some() && oom_now > oom)
            }
            (None, None) => Reason::Hung("its process does not end"),
        };
        self.mourn(reason);
    }

    fn mourn(&self, reason: Reason) {
        let stuck = *self.stuck.lock();
        let suspects: Vec<SessionId> = match stuck {
            Some(stuck) => vec![stuck],
            None => {
                let computing = self.computes.in_flight().into_iter().map(|run| run.session);
                let loading: Vec<_> = self
                    .loading
                    .lock()
                    .keys()
                    .map(|id| SessionId(*id))
                    .collect();
                let suspects: HashSet<_> = computing.chain(loading).collect();
                suspects.into_iter().collect()
            }
        };
        let death = Death {
            reason: reason.clone(),
            alone: self.seen.lock().len() <= 1,
            suspects,
            answered: self.computes.answered(),
        };
        let _ = self.dead.set(reason);
        let tell = self.on_death.lock().take();
        if let Some(tell) = tell {
            tell(&death);
        }
        // Only now: whoever starts again shall find the verdict.
        self.computes.close();
        self.loading.lock().clear();
        self.gone.notify_waiters();
    }

    /// Takes what the host reports. None at its end.
    async fn listen(&self) -> Option<Reason> {
        loop {
            match receive(&self.socket).await {
                Ok(Some(Report::Loaded {
                    session,
                    result,
                    bytes,
                })) => {
                    let Some(loading) = self.loading.lock().remove(&session) else {
                        return Some(Reason::Lied("a model that nobody asked for"));
                    };
                    *self.heard.lock() = Instant::now();
                    let _ = loading.done.send(result.map(|info| (info, bytes)));
                }
                Ok(Some(Report::Pong(number))) => {
                    let asked = self.pings.load(Ordering::Relaxed);
                    if number != asked || self.ponged.swap(number, Ordering::Relaxed) == number {
                        return Some(Reason::Lied("an answer to a question nobody asked"));
                    }
                    *self.heard.lock() = Instant::now();
                }
                Ok(Some(_)) => return Some(Reason::Lied("a frame out of turn")),
                Ok(None) => return None,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    return Some(Reason::Lied("a frame that cannot be read"));
                }
                Err(_) => return None,
            }
        }
    }

    /// Takes answers when the host signals them.
    async fn attend(&self, signal: &AsyncFd<OwnedFd>) -> Option<Reason> {
        loop {
            self.computes.collect_and_arm();
            match signal.readable().await {
                // Every write is an event of its own, so that the counter needs no reading.
                Ok(mut ready) => ready.clear_ready(),
                Err(_) => return None,
            }
        }
    }

    /// Asks from time to time whether the host is still there, while something depends on it.
    async fn beat(&self, config: &Config) -> Option<Reason> {
        let mut beats = tokio::time::interval(config.heartbeat.duration());
        beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let limit = config.hang_after.duration();
        let mut asked_at: Option<Instant> = None;
        loop {
            beats.tick().await;
            let now = Instant::now();
            if let Some(asked) = asked_at {
                if self.ponged.load(Ordering::Relaxed) == self.pings.load(Ordering::Relaxed) {
                    asked_at = None;
                } else if now.duration_since(asked) >= limit {
                    return Some(if death::is_stopped(self.pid) {
                        Reason::Killed
                    } else {
                        Reason::Hung("no sign of life")
                    });
                }
            }
            let runs = self.computes.in_flight();
            if let Some(stuck) = runs.iter().find(|run| is_stuck(run, now, limit)) {
                *self.stuck.lock() = Some(stuck.session);
                return Some(Reason::Hung("a run goes on after it was to end"));
            }
            for run in runs.iter().filter(|run| run.cancelled.is_some()) {
                let (slot, run) = (run.slot, run.run);
                let _ = self.order(&Order::Cancel { slot, run }, &[]);
            }
            let overdue = {
                let loading = self.loading.lock();
                let mut overdue = loading.iter().filter(|(_, one)| now - one.since >= LOAD);
                overdue.next().map(|(session, _)| SessionId(*session))
            };
            if let Some(session) = overdue {
                *self.stuck.lock() = Some(session);
                return Some(Reason::Hung(
                    "a model does not come to the end of its loading",
                ));
            }
            if asked_at.is_none() && !(runs.is_empty() && self.loading.lock().is_empty()) {
                let number = self.pings.fetch_add(1, Ordering::Relaxed) + 1;
                if self.order(&Order::Ping(number), &[]).is_ok() {
                    asked_at = Some(now);
                } else {
                    // Its socket is full: it will be asked again, and the silence counts from here.
                    self.ponged.store(number, Ordering::Relaxed);
                }
            }
        }
    }
}

/// A descriptor that tokio watches.
fn watched(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` names one open descriptor, the same for as long as it lives, and nothing takes it out while it
    // is registered.
    unsafe { AsyncFd::register(descriptor) }.map_err(io::Error::from)
}

fn is_stuck(run: &InFlight, now: Instant, limit: Duration) -> bool {
    run.cancelled
        .is_some_and(|since| now.saturating_duration_since(since) >= limit)
}

async fn receive(socket: &AsyncFd<OwnedFd>) -> io::Result<Option<Report>> {
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

/// A process that does not outlive this value.
struct Guard(Option<Child>);

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            // It is dead by now, or will be in a moment; without a wait it would stay as a zombie.
            let _ = std::thread::Builder::new()
                .name("fnctl-reap".into())
                .spawn(move || child.wait());
        }
    }
}

impl Guard {
    /// Ends the process, gently if that is wanted, and says how it ended.
    async fn end(
        &mut self,
        gently: bool,
        socket: &AsyncFd<OwnedFd>,
    ) -> Option<std::process::ExitStatus> {
        let child = self.0.as_mut()?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw)?;
        let descriptor = rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK).ok()?;
        let exited = watched(descriptor).ok()?;
        if gently {
            // The end of the socket is the order to end.
            let _ = rustix::net::shutdown(socket.get_ref(), rustix::net::Shutdown::Both);
            if tokio::time::timeout(LINGER, exited.readable())
                .await
                .is_err()
            {
                let _ = child.kill();
            }
        } else if tokio::time::timeout(Duration::from_millis(20), exited.readable())
            .await
            .is_err()
        {
            // Not dead by itself: it closed its socket, hangs, or lied.
            let _ = child.kill();
        }
        let _ = tokio::time::timeout(REAP, exited.readable()).await.ok()?;
        let status = child.try_wait().ok().flatten();
        if status.is_some() {
            self.0 = None;
        }
        status
    }
}
