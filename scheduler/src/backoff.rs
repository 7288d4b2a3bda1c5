//! When starts that nobody waits for are tried again after they failed.

use std::time::Duration;
use tokio::time::Instant;

/// Waits between failed starts that no caller asked for: one second, doubled each time, at most a minute.
#[derive(Default)]
pub(crate) struct Backoff {
    failures: u32,
    until: Option<Instant>,
}

impl Backoff {
    /// A start failed.
    pub(crate) fn failed(&mut self, now: Instant) {
        let seconds = 1u64 << self.failures.min(6);
        self.failures = self.failures.saturating_add(1);
        self.until = Some(now + Duration::from_secs(seconds.min(60)));
    }

    /// Whether the next may be tried.
    pub(crate) fn allows(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| now >= until)
    }
}
