//! The loaded library: one environment with one global thread pool and the budgeted allocator.

use crate::allocator::{self, Account, Shortage};
use crate::config::Config;
use crate::library::{self, API_VERSION};
use crate::session::OnnxSession;
use fnctl_core::ids::Digest;
use fnctl_core::inference::{InferenceError, InferenceErrorKind, LoadModel, ModelSource};
use ort::AsPointer;
use ort::environment::{Environment, GlobalThreadPoolOptions};
use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use parking_lot::Mutex;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::Arc;

pub(crate) struct Runtime {
    environment: Environment,
    constant_folding: bool,
    folder: PathBuf,
}

/// ONNX Runtime has one environment per process; so has this crate, however many hosts a test makes.
static LOADED: Mutex<Option<Environment>> = Mutex::new(None);

impl Runtime {
    pub(crate) fn load(config: &Config) -> Result<Self, InferenceError> {
        let mut loaded = LOADED.lock();
        if let Some(environment) = loaded.as_ref() {
            return Ok(Self::of(environment.clone(), config));
        }
        let (path, _version) = library::probe(config)?;
        let unavailable = |error: String| {
            InferenceError::new(
                InferenceErrorKind::Unavailable,
                format!(
                    "the ONNX Runtime library {} cannot be used: {error}",
                    path.display()
                ),
            )
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = if config.intra_threads == 0 {
            cores
        } else {
            config.intra_threads
        };
        let build = || -> Result<Environment, String> {
            // First, because everything else of `ort` would look for a library of its own choice.
            let builder = ort::init_from(&path).map_err(|error| error.to_string())?;
            let pool = GlobalThreadPoolOptions::default()
                .with_intra_threads(threads)
                .and_then(|pool| pool.with_inter_threads(1))
                // Spinning workers would burn a core for every model that just ran.
                .and_then(|pool| pool.with_spin_control(false))
                .map_err(|error| error.to_string())?;
            builder
                .with_name("fnctl")
                .with_telemetry(false)
                .with_logger(Arc::new(log))
                .with_global_thread_pool(pool)
                .build()
                .map_err(|error| error.to_string())
        };
        let environment = build().map_err(unavailable)?;
        register_allocator(&environment, config.memory.bytes()).map_err(unavailable)?;
        tracing::info!(library = %path.display(), threads, budget = %config.memory, "ONNX Runtime loaded");
        *loaded = Some(environment.clone());
        Ok(Self::of(environment, config))
    }

    fn of(environment: Environment, config: &Config) -> Self {
        Self {
            environment,
            constant_folding: config.constant_folding,
            folder: config.scratch.clone(),
        }
    }

    /// Loads a model from bytes, on this thread. External data cannot be had this way: the bytes have no folder, and a
    /// process that may open no file finds none in its working folder either.
    #[cfg(target_os = "linux")]
    pub(crate) fn load_bytes(&self, model: &[u8]) -> Result<OnnxSession, InferenceError> {
        build(|| {
            builder(&self.environment, self.constant_folding)?
                .commit_from_memory(model)
                .map_err(|error| error.to_string())
        })
    }

    /// Loads a model on a thread that may block. Not cut off: what was begun is worth having for the next caller.
    pub(crate) async fn load_session(
        &self,
        request: &LoadModel,
    ) -> Result<OnnxSession, (InferenceError, Option<Shortage>)> {
        let environment = self.environment.clone();
        let source = request.source.clone();
        let (folding, folder) = (self.constant_folding, self.folder.clone());
        let task = tokio::task::spawn_blocking(move || {
            let loaded = verify(&source)
                .and_then(|()| build(|| open(&environment, &source, folding, &folder)));
            loaded.map_err(|error| {
                let lacking = allocator::shortage_of(&error, 1);
                (error, lacking)
            })
        });
        let loaded = task.await.unwrap_or_else(|panic| {
            let error = InferenceError::new(InferenceErrorKind::Runtime, panic.to_string());
            Err((error, None))
        });
        if let Ok(session) = &loaded {
            tracing::info!(function = %request.function, bytes = session.resident_bytes(), "model loaded");
        }
        loaded
    }
}

/// Opens a session and keeps account of what it takes.
fn build(open: impl FnOnce() -> Result<Session, String>) -> Result<OnnxSession, InferenceError> {
    let account = Arc::new(Account::default());
    let refusals = allocator::refusals();
    match allocator::charged(&account, open) {
        Ok(session) => OnnxSession::new(session, account),
        Err(error) if allocator::refusals() > refusals || met_limit(&error) => {
            Err(over_budget(&error))
        }
        Err(error) => Err(InferenceError::new(
            InferenceErrorKind::InvalidEncoding,
            error,
        )),
    }
}

/// Checks the bytes on disk against the digest they are known by, each time they are about to be loaded.
fn verify(source: &ModelSource) -> Result<(), InferenceError> {
    let ModelSource::Artifact { digest, path } = source else {
        return Ok(());
    };
    let found = std::fs::File::open(path).and_then(|mut file| Digest::of_reader(&mut file));
    match found {
        Ok(found) if found == *digest => Ok(()),
        Ok(found) => Err(InferenceError::new(
            InferenceErrorKind::NotFound,
            format!("the model on disk has digest {found}, not {digest}; deploy it again"),
        )),
        Err(error) => Err(InferenceError::new(
            InferenceErrorKind::NotFound,
            format!("the model cannot be read: {error}"),
        )),
    }
}

/// Whether the process was given no more memory. What ONNX Runtime takes past its allocator (weights as it reads them,
/// folded constants) is not in the budget, but in the limit of an inference host, which grows with it.
fn met_limit(cause: &str) -> bool {
    cause.contains("std::bad_alloc")
}

fn over_budget(cause: &str) -> InferenceError {
    InferenceError::new(
        InferenceErrorKind::TooLarge,
        format!(
            "the model needs more memory than inference.memory leaves; raise it, or unload other models ({})",
            cause.trim()
        ),
    )
}

fn builder(environment: &Environment, folding: bool) -> Result<SessionBuilder, String> {
    let mut builder = Session::builder(environment)
        .map_err(|error| error.to_string())?
        .with_optimization_level(GraphOptimizationLevel::Level3)
        .map_err(|error| error.to_string())?
        .with_env_allocators()
        .map_err(|error| error.to_string())?;
    if !folding {
        builder = builder
            .with_disabled_optimizers("ConstantFolding")
            .map_err(|error| error.to_string())?;
    }
    Ok(builder)
}

fn open(
    environment: &Environment,
    source: &ModelSource,
    folding: bool,
    folder: &Path,
) -> Result<Session, String> {
    let mut builder = builder(environment, folding)?;
    // A model may name files beside it as external data, and ONNX Runtime reads them for it: each artifact lies in a folder
    // of its own, and bytes without a path would be taken to lie in the process's working folder.
    let private;
    let path = match source {
        ModelSource::Artifact { path, .. } => path.clone(),
        ModelSource::Bytes(bytes) => {
            let write = || -> std::io::Result<_> {
                let private = tempfile::tempdir_in(folder)?;
                std::fs::write(private.path().join("model.onnx"), bytes)?;
                Ok(private)
            };
            private = write().map_err(|error| {
                format!("the model cannot be written to a folder of its own: {error}")
            })?;
            private.path().join("model.onnx")
        }
    };
    builder
        .commit_from_file(path)
        .map_err(|error| error.to_string())
}

fn register_allocator(environment: &Environment, budget: u64) -> Result<(), String> {
    let api = ort::api();
    let check = |status: ort::sys::OrtStatusPtr| {
        crate::tensors::status(status).map_err(|error| error.message)
    };
    let mut memory_info = ptr::null_mut();
    // SAFETY: plain calls of the C API with valid arguments; the memory info and the allocator live as long as the
    // process, and so does the environment, which `LOADED` keeps.
    unsafe {
        check((api.CreateMemoryInfo)(
            c"Cpu".as_ptr(),
            ort::sys::OrtAllocatorType::OrtDeviceAllocator,
            0,
            ort::sys::OrtMemType::OrtMemTypeDefault,
            &mut memory_info,
        ))?;
        let allocator = allocator::install(budget, memory_info, API_VERSION);
        check((api.RegisterAllocator)(
            environment.ptr().cast_mut(),
            allocator,
        ))
    }
}

fn log(level: ort::logging::LogLevel, category: &str, id: &str, location: &str, message: &str) {
    use ort::logging::LogLevel;
    match level {
        // What ONNX Runtime calls an error is, here, a model that cannot be loaded or run: the guest's fault, and
        // reported as such by whoever asked for it.
        LogLevel::Fatal | LogLevel::Error | LogLevel::Warning => {
            tracing::warn!(target: "onnxruntime", category, id, location, "{}", message.trim_end());
        }
        LogLevel::Info | LogLevel::Verbose => {}
    }
}
