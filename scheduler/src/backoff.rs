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
    /// A start failed. Those of one batch count as one: the others were under way when the first failed.
    pub(crate) fn failed(&mut self, now: Instant) {
        if !self.allows(now) {
            return;
        }
        let seconds = 1u64 << self.failures.min(6);
        self.failures = self.failures.saturating_add(1);
        self.until = Some(now + Duration::from_secs(seconds.min(60)));
    }

    /// Whether the next may be tried.
    pub(crate) fn allows(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| now >= until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_that_fails_counts_once_and_the_wait_doubles() {
        let mut backoff = Backoff::default();
        let mut now = Instant::now();
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert!(backoff.allows(now));
            for _ in 0..10 {
                backoff.failed(now);
            }
            let wait = Duration::from_secs(seconds);
            assert!(!backoff.allows(now + wait - Duration::from_millis(1)));
            now += wait;
        }
        assert!(backoff.allows(now));
    }
}
