//! How long to wait before a host is started again. Pure: history and `now` in, a decision out.

use std::time::Duration;
use tokio::time::Instant;

/// The wait after the second death in a row without any work done; it doubles with each further one.
const FIRST: Duration = Duration::from_millis(50);
/// The longest wait.
const MOST: Duration = Duration::from_secs(5);

/// The deaths of the hosts in one place.
#[derive(Debug, Clone, Default)]
pub(crate) struct Backoff {
    /// Deaths in a row of hosts that had answered nothing.
    useless: u32,
    last: Option<Instant>,
}

impl Backoff {
    /// A host died, or did not start. `useful` says whether it had answered anything.
    pub(crate) fn died(&mut self, useful: bool, now: Instant) {
        self.useless = if useful {
            0
        } else {
            self.useless.saturating_add(1)
        };
        self.last = Some(now);
    }

    /// A host started, where that alone is of use.
    pub(crate) fn worked(&mut self) {
        self.useless = 0;
    }

    /// When the next start may begin.
    pub(crate) fn next(&self, now: Instant) -> Instant {
        let wait = match self.useless {
            // The first restart is at once: callers are waiting.
            0 | 1 => Duration::ZERO,
            more => FIRST.saturating_mul(1 << (more - 2).min(16)).min(MOST),
        };
        self.last.map_or(now, |last| (last + wait).max(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_restart_is_at_once_and_useless_ones_wait_longer_and_longer() {
        let now = Instant::now();
        let mut backoff = Backoff::default();
        assert_eq!(backoff.next(now), now);
        let mut waits = Vec::new();
        for _ in 0..12 {
            backoff.died(false, now);
            waits.push(backoff.next(now).duration_since(now).as_millis());
        }
        assert_eq!(
            waits,
            [
                0, 50, 100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000, 5000
            ]
        );
        assert_eq!(
            backoff.next(now + Duration::from_secs(9)),
            now + Duration::from_secs(9),
            "time that has passed is not waited for again"
        );
        backoff.died(true, now);
        assert_eq!(backoff.next(now), now);
    }
}
