//! The inference host itself: what `fnctl inference-host` runs. It is started by a platform, which is its standard input,
//! and ends with it.
//!
//! It loads ONNX Runtime, gives up everything it does not need, then loads models from descriptors and computes on what
//! lies in the shared memory. It is not trusted with anything: it checks what it is told, because that is cheap, but the
//! platform must not depend on it doing so.

use super::bound::Learned;
use super::child_threads::Express;
use super::lanes::Lane;
use super::protocol::{Order, Report, Setup, VERSION};
use super::rings::Taker;
use super::shared::{Figure, Shared};
use super::socket;
use crate::config::Config;
use crate::runtime::Runtime;
use crate::session::{OnnxSession, Stopper};
use crate::{allocator, purge_allocator, turns};
use fnctl_core::inference::{Computed, InferenceError, InferenceErrorKind};
use fnctl_core::units::ByteSize;
use parking_lot::{Mutex, RwLock};
use rustix::mm::{MapFlags, ProtFlags};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Why a host could not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// It was started by hand.
    #[error(
        "inference-host is started by `fnctl serve`, not by hand: standard input is no control socket ({0})"
    )]
    NoPlatform(io::Error),
    /// The platform is of another version.
    #[error("the platform and this program are of different versions; start the platform again")]
    Version,
    /// What came with the first frame is not usable.
    #[error("the platform's first frame is not usable: {0}")]
    Setup(String),
    /// ONNX Runtime cannot be used.
    #[error(transparent)]
    Runtime(#[from] InferenceError),
    /// The socket broke.
    #[error("the control socket: {0}")]
    Socket(io::Error),
}

/// What a slot is doing.
#[derive(Default)]
pub(super) struct SlotState {
    /// The run inside ONNX Runtime, and what stops it.
    pub(super) running: Option<(u32, Stopper)>,
    /// Outputs of a run that had no room yet.
    pub(super) held: Option<(u32, Computed)>,
}

/// A session, and what its runs have taught.
pub(super) struct Hosted {
    pub(super) session: Arc<OnnxSession>,
    pub(super) learned: Learned,
}

pub(super) struct Host {
    pub(super) shared: Arc<Shared>,
    pub(super) signal: OwnedFd,
    pub(super) bulk: Taker,
    pub(super) express: Taker,
    pub(super) answerer: super::rings::Answerer,
    pub(super) slots: Vec<Mutex<SlotState>>,
    pub(super) sessions: RwLock<HashMap<u64, Arc<Hosted>>>,
    runtime: Runtime,
    socket: OwnedFd,
    loading: AtomicUsize,
}

/// A supervisor that stops the service, or a terminal that closes, tells every process of it. The platform drains then,
/// for which it needs its hosts; it ends them itself.
fn leave_signals_to_the_platform() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: ignoring a signal installs no handler, so that no code runs at an unexpected time.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Serves the platform that started this process, until one of the two ends.
pub fn serve() -> Result<(), ServeError> {
    leave_signals_to_the_platform();
    // Whatever happens to the platform, nothing of it stays behind. The socket's end says the same, but not to a process
    // that is stuck.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(|error| ServeError::Socket(error.into()))?;
    let socket = io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map_err(ServeError::NoPlatform)?;
    use_one_heap();
    let express = Express::start().map_err(ServeError::Socket)?;
    turns::compute_patiently();
    let mut buffer = Vec::new();
    let first = socket::receive::<Order>(&socket, &mut buffer).map_err(ServeError::NoPlatform)?;
    let Some((Order::Setup(setup), descriptors)) = first else {
        return Err(ServeError::Setup("it is not the set-up".to_owned()));
    };
    if setup.version != VERSION {
        return Err(ServeError::Version);
    }
    let Ok([memory, signal]) = <[OwnedFd; 2]>::try_from(descriptors) else {
        return Err(ServeError::Setup("it has no shared memory".to_owned()));
    };
    let shared =
        Shared::open(memory, setup.layout).map_err(|error| ServeError::Setup(error.to_string()))?;
    let runtime = match prepare(&setup) {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = socket::send(&socket, &Report::Failed(error.clone()), &[]);
            return Err(error.into());
        }
    };
    let confinement = match super::confinement(&setup) {
        Ok(confinement) => confinement,
        Err(error) => {
            let _ = socket::send(&socket, &Report::Failed(error.clone()), &[]);
            return Err(error.into());
        }
    };
    let ready = Report::Ready {
        version: VERSION,
        confinement: confinement.to_string(),
        unconfined: confinement.gaps(),
    };
    socket::send(&socket, &ready, &[]).map_err(ServeError::Socket)?;
    let host = Arc::new(Host {
        slots: (0..setup.layout.slots).map(|_| Mutex::default()).collect(),
        shared: Arc::new(shared),
        signal,
        bulk: Taker::new(Lane::Bulk),
        express: Taker::new(Lane::Express),
        answerer: super::rings::Answerer::default(),
        sessions: RwLock::default(),
        runtime,
        socket,
        loading: AtomicUsize::new(0),
    });
    host.obey(&setup, express, &mut buffer)
}

/// Lets every thread allocate from the one heap that `malloc_trim` gives back whole. Of the heaps that the C library
/// makes for threads it leaves the end, which may be twice the largest block that was ever freed: tens of MiB for each
/// thread that ran a model, for as long as the host lives. Models ask for few and large blocks, and the small ones come
/// from each thread's own cache: the shared lock is no place where they meet.
fn use_one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number of the allocator, before there is a second thread.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

fn prepare(setup: &Setup) -> Result<Runtime, InferenceError> {
    let config = Config {
        library: Some(PathBuf::from(&setup.library)),
        memory: ByteSize(setup.memory),
        constant_folding: setup.constant_folding,
        intra_threads: setup.intra_threads,
        ..Config::default()
    };
    Runtime::load(&config)
}

impl Host {
    /// Takes orders until the platform is gone.
    fn obey(
        self: &Arc<Self>,
        setup: &Setup,
        express: Express,
        buffer: &mut Vec<u8>,
    ) -> Result<(), ServeError> {
        let mut express = Some(express);
        loop {
            let received =
                socket::receive::<Order>(&self.socket, buffer).map_err(ServeError::Socket)?;
            let Some((order, mut descriptors)) = received else {
                // At once: threads may be inside ONNX Runtime, whose destructors would run under them.
                // SAFETY: ends the process; nothing of it is needed any more.
                unsafe { libc::_exit(0) }
            };
            match order {
                Order::Setup(_) => return Err(ServeError::Setup("it came twice".to_owned())),
                Order::Load { session, length } => {
                    // A bare host shall be small: its threads come with the first model.
                    if let Some(express) = express.take() {
                        self.start_threads(setup, express)
                            .map_err(ServeError::Socket)?;
                    }
                    if let Some(model) = descriptors.pop() {
                        self.load(session, model, length, setup.parallel_loads);
                    }
                }
                Order::Unload { session } => {
                    let gone = self.sessions.write().remove(&session);
                    drop(gone);
                    purge_allocator();
                    self.note();
                    self.report(&Report::Unloaded { session });
                }
                Order::Cancel { slot, run } => self.cancel(slot, run),
                Order::Ping(number) => self.report(&Report::Pong(number)),
            }
        }
    }

    fn report(&self, report: &Report) {
        // An error means that the platform is gone; the next receive ends this process.
        let _ = socket::send(&self.socket, report, &[]);
    }

    pub(super) fn note(&self) {
        self.shared
            .figure(Figure::Live)
            .store(allocator::live_bytes(), Ordering::Relaxed);
    }

    fn cancel(&self, slot: u32, run: u32) {
        if let Some(state) = self.slots.get(slot as usize) {
            let mut state = state.lock();
            if state.running.as_ref().is_some_and(|(now, _)| *now == run) {
                // Dropping the stopper stops the run.
                state.running = None;
            }
            let unfetched = state.held.take_if(|(held, _)| *held == run);
            drop(state);
            if unfetched.is_some() {
                drop(unfetched);
                self.note();
            }
        }
    }

    fn load(self: &Arc<Self>, session: u64, model: OwnedFd, length: u64, most: usize) {
        let refuse = |message: String| {
            self.report(&Report::Loaded {
                session,
                result: Err(InferenceError::new(InferenceErrorKind::Runtime, message)),
                bytes: 0,
                shortage: None,
            });
        };
        if self.loading.fetch_add(1, Ordering::Relaxed) >= most.max(1).saturating_mul(4) {
            self.loading.fetch_sub(1, Ordering::Relaxed);
            return refuse("too many models are loading at once".to_owned());
        }
        let host = self.clone();
        let started = std::thread::Builder::new()
            .name("fnctl-load".into())
            .spawn(move || {
                host.load_now(session, &model, length);
                host.loading.fetch_sub(1, Ordering::Relaxed);
            });
        if let Err(error) = started {
            self.loading.fetch_sub(1, Ordering::Relaxed);
            refuse(format!("the system refuses a thread to load on: {error}"));
        }
    }

    fn load_now(&self, session: u64, model: &OwnedFd, length: u64) {
        let loaded = Mapped::new(model, length)
            .map_err(|error| {
                InferenceError::new(
                    InferenceErrorKind::Runtime,
                    format!("the model cannot be mapped: {error}"),
                )
            })
            .and_then(|mapped| self.runtime.load_bytes(mapped.bytes()));
        let report = match loaded {
            Ok(loaded) => {
                let (info, bytes) = (loaded.info.as_ref().clone(), loaded.resident_bytes());
                let hosted = Hosted {
                    learned: Learned::new(&info),
                    session: Arc::new(loaded),
                };
                self.sessions.write().insert(session, Arc::new(hosted));
                Report::Loaded {
                    session,
                    result: Ok(info),
                    bytes,
                    shortage: None,
                }
            }
            Err(error) => {
                purge_allocator();
                Report::Loaded {
                    session,
                    shortage: allocator::shortage_of(&error, length),
                    result: Err(error),
                    bytes: 0,
                }
            }
        };
        self.note();
        if let Err(error) = socket::send(&self.socket, &report, &[])
            && error.kind() == io::ErrorKind::InvalidData
        {
            self.sessions.write().remove(&session);
            self.report(&Report::Loaded {
                session,
                result: Err(InferenceError::new(
                    InferenceErrorKind::Unsupported,
                    "the model has more inputs and outputs than can be told",
                )),
                bytes: 0,
                shortage: None,
            });
        }
    }
}

/// A model's file, mapped for as long as it is read.
struct Mapped {
    base: *mut std::ffi::c_void,
    length: usize,
}

impl Mapped {
    fn new(file: &OwnedFd, length: u64) -> io::Result<Self> {
        let size = rustix::fs::fstat(file)?.st_size;
        let length = usize::try_from(length).map_err(io::Error::other)?;
        if i64::try_from(length).ok() != Some(size) {
            return Err(io::Error::other(
                "it has another size than it was said to have",
            ));
        }
        if length == 0 {
            return Ok(Self {
                base: ptr::null_mut(),
                length,
            });
        }
        // SAFETY: a new private mapping at an address of the system's choice replaces nothing.
        let base = unsafe {
            rustix::mm::mmap(
                ptr::null_mut(),
                length,
                ProtFlags::READ,
                MapFlags::PRIVATE,
                file,
                0,
            )?
        };
        Ok(Self { base, length })
    }

    fn bytes(&self) -> &[u8] {
        if self.length == 0 {
            return &[];
        }
        // SAFETY: the mapping is readable, has this length, and lives as long as `self`. The file is the platform's: it was
        // checked against its digest, or sealed, and nobody writes to it.
        unsafe { std::slice::from_raw_parts(self.base.cast(), self.length) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        if self.length > 0 {
            // SAFETY: the mapping was made with this length, and what borrowed from it borrowed `self`.
            let _ = unsafe { rustix::mm::munmap(self.base, self.length) };
        }
    }
}
