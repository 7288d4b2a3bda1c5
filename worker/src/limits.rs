//! The resource limits of one sandbox, as Wasmtime asks for them.

use fnctl_core::FunctionConfig;
use wasmtime::ResourceLimiter;

/// Counts and limits what a sandbox grows.
#[derive(Debug)]
pub(crate) struct SandboxLimits {
    max_memory: usize,
    max_table: usize,
    /// Linear memory of all memories now, in bytes.
    pub(crate) memory: usize,
    /// What the last growth that was allowed adds, in case it fails all the same.
    growing: usize,
    /// Whether a growth was refused: a trap after that is the limit's doing.
    pub(crate) refused: bool,
}

impl SandboxLimits {
    pub(crate) fn new(config: &FunctionConfig) -> Self {
        Self {
            max_memory: config.memory.as_usize(),
            max_table: usize::try_from(config.table_elements).unwrap_or(usize::MAX),
            memory: 0,
            growing: 0,
            refused: false,
        }
    }
}

impl ResourceLimiter for SandboxLimits {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        // The limit holds for all memories of the sandbox together.
        let total = self.memory.saturating_add(desired.saturating_sub(current));
        if total > self.max_memory {
            self.refused = true;
            return Ok(false);
        }
        self.growing = total - self.memory;
        self.memory = total;
        Ok(true)
    }

    fn memory_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        self.memory = self
            .memory
            .saturating_sub(std::mem::take(&mut self.growing));
        Ok(())
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if desired > self.max_table {
            self.refused = true;
            return Ok(false);
        }
        Ok(true)
    }

    fn instances(&self) -> usize {
        64
    }

    fn tables(&self) -> usize {
        32
    }

    fn memories(&self) -> usize {
        8
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fnctl_core::ByteSize;

    #[test]
    fn the_memory_limit_counts_all_memories_together() {
        let config = FunctionConfig {
            memory: ByteSize::mib(1),
            ..FunctionConfig::default()
        };
        let mut limits = SandboxLimits::new(&config);
        assert!(limits.memory_growing(0, 600 << 10, None).unwrap());
        assert!(!limits.memory_growing(0, 600 << 10, None).unwrap());
        assert!(limits.refused);
        assert!(limits.memory_growing(600 << 10, 1 << 20, None).unwrap());
        assert_eq!(limits.memory, 1 << 20);
    }
}
