//! The ladder of what an instance stands on: its sandbox on the template of its code and the sessions of its models, which
//! others may share. What each rung took to make, and until when it is kept when nobody uses it.

use std::time::Duration;
use tokio::time::Instant;

/// What one rung costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RungCost {
    /// How long making it took the last time that it was made from what is on the disk.
    pub took: Duration,
    /// Bytes of memory that it takes.
    pub bytes: u64,
}

impl RungCost {
    /// Of two that are made one after the other.
    pub fn and(self, other: Self) -> Self {
        Self {
            took: self.took.saturating_add(other.took),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }
}

/// What the rungs below a sandbox cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LowerRungs {
    /// The sessions of its models.
    pub session: RungCost,
    /// Its compiled code.
    pub template: RungCost,
}

/// Until when the rungs below a sandbox are kept after it has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeptUntil {
    /// The sessions of its models.
    pub session: Instant,
    /// Its compiled code.
    pub template: Instant,
}
