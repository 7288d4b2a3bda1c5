//! What an operator may set about workers.

use fnctl_core::units::{ByteSize, Period};
use std::path::PathBuf;

/// The worker's settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// Folder of the compile cache.
    pub cache: PathBuf,
    /// Most sandboxes at once on this node, over all functions: the slots of the pooling allocator.
    pub max_instances: u32,
    /// Largest linear memory that a function may ask for.
    pub max_memory: ByteSize,
    /// Wall time between two epoch ticks: the step of CPU limits and of yielding.
    pub epoch_tick: Period,
    /// Bytes from the beginning of a linear memory that stay resident when its slot is free, for the next sandbox. They
    /// stay for each slot that was ever used, and are cleared whether or not the guest touched them.
    pub keep_resident: ByteSize,
    /// How long an unused template stays in memory.
    pub template_ttl: Period,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            cache: PathBuf::from("cache"),
            max_instances: 1_000,
            max_memory: ByteSize::mib(1024),
            epoch_tick: Period(std::time::Duration::from_millis(2)),
            keep_resident: ByteSize(0),
            template_ttl: Period::secs(600),
        }
    }
}
