//! What an operator may set about inference.

use fnctl_core::units::{ByteSize, Period};
use std::path::PathBuf;

/// Where ONNX Runtime runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Process {
    /// In inference hosts: processes of their own, which may die.
    #[default]
    Host,
    /// In the platform's process.
    InProcess,
}

impl Process {
    /// The word in the settings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::InProcess => "in-process",
        }
    }
}

impl std::fmt::Display for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Process {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "host" => Ok(Self::Host),
            "in-process" => Ok(Self::InProcess),
            _ => Err("must be host or in-process".to_owned()),
        }
    }
}

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
    /// Where ONNX Runtime runs.
    pub process: Process,
    /// The program whose subcommand `inference-host` is a host; unset = this very program.
    pub program: Option<PathBuf>,
    /// How long a host without a session stays.
    pub host_ttl: Period,
    /// Whether a host must not serve unless every measure of its confinement is in force.
    pub require_confinement: bool,
    /// Whether a bare host is kept ready.
    pub spare_host: bool,
    /// How often a host that has work is asked for a sign of life.
    pub heartbeat: Period,
    /// How long it may not answer, and how long a run may go on after it was to end.
    pub hang_after: Period,
    /// Most bytes of tensors that lie in the memory shared with one host.
    pub shared_memory: ByteSize,
    /// Most hosts besides the shared one.
    pub max_hosts: usize,
    /// Proven deaths of hosts after which a model is quarantined; each counts half as much every three hours.
    pub quarantine_after: u32,
    /// How long a model is quarantined the first time; twice as long each further time.
    pub quarantine: Period,
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
            process: Process::default(),
            program: None,
            host_ttl: Period::secs(60),
            require_confinement: false,
            spare_host: false,
            heartbeat: Period::secs(1),
            hang_after: Period::secs(5),
            shared_memory: ByteSize::mib(1024),
            max_hosts: 16,
            quarantine_after: 3,
            quarantine: Period::secs(600),
        }
    }
}
