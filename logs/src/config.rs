//! What an operator may set about logs.

use fnctl_core::units::{ByteSize, Period};
use std::path::PathBuf;

/// The settings of the log rings.
#[derive(Debug, Clone)]
pub struct Config {
    /// Holds one folder for each function.
    pub folder: PathBuf,
    /// Most bytes that are kept of one function's lines; the oldest go first.
    pub max_bytes: ByteSize,
    /// How long a line is kept at most. Lines go by segments, so some stay up to an eighth of the ring longer.
    pub max_age: Period,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            folder: PathBuf::from("logs"),
            max_bytes: ByteSize::mib(16),
            max_age: Period::secs(7 * 24 * 3600),
        }
    }
}
