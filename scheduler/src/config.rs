//! What an operator may set about scheduling.

use crate::policy::Spec;
use fnctl_core::units::ByteSize;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::SystemTime;

/// Where the time of day comes from: the system, or a test.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> SystemTime + Send + Sync>);

impl Clock {
    /// A clock that answers with what `now` says.
    pub fn new(now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    pub(crate) fn now(&self) -> SystemTime {
        (self.0)()
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new(SystemTime::now)
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// How much memory instances and sessions may take together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MemoryLimit {
    /// A part of what there is. The platform works it out before it starts a scheduler; to a scheduler it is no limit.
    #[default]
    Auto,
    /// No limit.
    Off,
    /// This much.
    At(ByteSize),
}

impl MemoryLimit {
    /// In bytes; 0 = none.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Auto | Self::Off => 0,
            Self::At(size) => size.bytes(),
        }
    }
}

impl From<ByteSize> for MemoryLimit {
    fn from(size: ByteSize) -> Self {
        match size.bytes() {
            0 => Self::Off,
            _ => Self::At(size),
        }
    }
}

impl FromStr for MemoryLimit {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "auto" => Ok(Self::Auto),
            text => text
                .parse::<ByteSize>()
                .map(Self::from)
                .map_err(|error| format!("{error}, or \"auto\"")),
        }
    }
}

impl fmt::Display for MemoryLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Off => ByteSize(0).fmt(f),
            Self::At(size) => size.fmt(f),
        }
    }
}

/// Two for each processor: one that computes, and one that is ready when it stops to wait.
fn max_running() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (2 * cores).max(4)
}

/// The scheduler's settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// Most instances on this node, over all functions.
    pub max_instances: usize,
    /// Most invocations in flight over all functions; what functions reserve is taken out of it.
    pub max_concurrency: usize,
    /// Most invocations that use a processor at once. One that waits for something outside does not count.
    pub max_running: usize,
    /// Most that instances and sessions of models may take, as they were measured.
    pub memory: MemoryLimit,
    /// The time of day, for schedule windows.
    pub clock: Clock,
    /// Most versions with metrics of their own; what is beyond shares one set called `_other`.
    pub max_tracked_versions: usize,
    /// What decides how long idle instances are kept, of functions that do not say it themselves.
    pub keep_alive_policy: Spec,
    /// Invocations that are remembered for `fnctl trace export`.
    pub trace_size: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_instances: 1_000,
            max_concurrency: 1_000,
            max_running: max_running(),
            memory: MemoryLimit::Auto,
            clock: Clock::default(),
            max_tracked_versions: 2_000,
            keep_alive_policy: Spec::Fixed(None),
            trace_size: 100_000,
        }
    }
}
