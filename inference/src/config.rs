//! What an operator may set about inference.

use fnctl_core::units::{ByteSize, Period};
use std::path::PathBuf;

/// The inference host's settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// The ONNX Runtime library; unset = looked for, see [`crate::find_library`].
    pub library: Option<PathBuf>,
    /// Folder for models that guests bring themselves, each for the moment of its loading.
    pub scratch: PathBuf,
    /// Whether ONNX Runtime computes constant parts of a graph while it loads it. It does so outside the memory budget, so
    /// a hostile model can use it to take any amount; without it most models run slower.
    pub constant_folding: bool,
    /// Most bytes that ONNX Runtime may allocate for the tensors of all sessions and their runs together.
    pub memory: ByteSize,
    /// How long an unused session stays loaded.
    pub session_ttl: Period,
    /// Most inferences at once.
    pub compute_threads: usize,
    /// Most inferences waiting for a thread.
    pub compute_queue: usize,
    /// Threads of ONNX Runtime's one global pool, which splits single operators; 0 = as many as cores.
    pub intra_threads: usize,
    /// Most models loading at once.
    pub parallel_loads: usize,
}

impl Default for Config {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            library: None,
            scratch: std::env::temp_dir(),
            constant_folding: true,
            memory: ByteSize::mib(4096),
            session_ttl: Period::secs(300),
            compute_threads: cores.max(8),
            compute_queue: 4_096,
            intra_threads: 0,
            parallel_loads: 2,
        }
    }
}
