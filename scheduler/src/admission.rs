//! Whether a request that has to wait can still be answered in time, and when the next try makes sense.
//!
//! Pure: queue, measured time per request and limits in, a verdict out.

use std::time::Duration;

/// What is known when a request finds no free permit.
#[derive(Debug, Clone, Copy)]
pub struct Queue {
    /// Requests that wait before it.
    pub ahead: usize,
    /// Requests that are served side by side.
    pub limit: usize,
    /// Measured time for which a request holds its place, if there were enough.
    pub holds: Option<Duration>,
}

/// What is to be done with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may wait.
    Wait,
    /// It would be answered too late; this is how long it would have waited.
    TooLate(Duration),
}

/// Longest and shortest time that a caller is told to stay away: an estimate of hours is no promise.
const LEAST: Duration = Duration::from_secs(1);
const MOST: Duration = Duration::from_secs(60);

impl Queue {
    /// How long one who joins the queue now waits, by what was measured.
    pub fn expected_wait(&self) -> Option<Duration> {
        let rounds = self.ahead.saturating_add(1);
        #[allow(clippy::cast_precision_loss, reason = "counts of requests")]
        let turns = rounds as f64 / self.limit.max(1) as f64;
        let seconds = self.holds?.as_secs_f64() * turns;
        Some(Duration::from_secs_f64(seconds.min(86_400.0)))
    }

    /// Decides for a request that must be answered in `remaining` and may wait for `patience`.
    pub fn judge(&self, remaining: Duration, patience: Duration) -> Verdict {
        let (Some(wait), Some(holds)) = (self.expected_wait(), self.holds) else {
            return Verdict::Wait;
        };
        if wait >= patience || wait + holds > remaining {
            Verdict::TooLate(wait)
        } else {
            Verdict::Wait
        }
    }

    /// When the queue as it is now will have been served: what a refused caller is told.
    pub fn retry_after(&self) -> Duration {
        self.expected_wait().unwrap_or(LEAST).clamp(LEAST, MOST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    fn queue(ahead: usize, limit: usize, holds: u64) -> Queue {
        Queue {
            ahead,
            limit,
            holds: Some(ms(holds)),
        }
    }

    #[test]
    fn who_cannot_be_answered_in_time_is_told_at_once() {
        for (queue, remaining, patience, verdict) in [
            (queue(0, 1, 100), 1000, 1000, Verdict::Wait),
            (queue(7, 1, 100), 1000, 1000, Verdict::Wait),
            (queue(9, 1, 100), 9000, 1000, Verdict::TooLate(ms(1000))),
            // Its turn comes after 1000 ms, its answer after 1100.
            (queue(9, 1, 100), 1099, 2000, Verdict::TooLate(ms(1000))),
            (queue(9, 1, 100), 1100, 2000, Verdict::Wait),
            (queue(9, 1, 100), 9000, 999, Verdict::TooLate(ms(1000))),
            // Ten at a time.
            (queue(9, 10, 100), 1000, 1000, Verdict::Wait),
            (queue(99, 10, 100), 1000, 1000, Verdict::TooLate(ms(1000))),
        ] {
            assert_eq!(
                queue.judge(ms(remaining), ms(patience)),
                verdict,
                "{queue:?} {remaining} {patience}"
            );
        }
    }

    #[test]
    fn what_was_never_measured_may_wait() {
        let unknown = Queue {
            ahead: 10_000,
            limit: 1,
            holds: None,
        };
        assert_eq!(unknown.judge(ms(10), ms(10)), Verdict::Wait);
        assert_eq!(unknown.retry_after(), LEAST);
    }

    #[test]
    fn the_time_to_stay_away_is_the_queues() {
        assert_eq!(queue(79, 8, 500).retry_after(), Duration::from_secs(5));
        assert_eq!(queue(0, 8, 1).retry_after(), LEAST);
        assert_eq!(queue(10_000, 1, 10_000).retry_after(), MOST);
    }
}
