//! CPU time of an async guest.
//!
//! An async guest comes and goes: it waits for its next record, works on it, and waits again. Epoch ticks would charge
//! each of these visits a whole step, however short, and a guest that answers a slow stream would run out of CPU time
//! that it never used. So the time is taken around each poll of the run, and the tick only looks at the sum.

use parking_lot::Mutex;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The CPU account of one invocation, or of all that a guest serves at the same time. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct CpuMeter(Arc<Mutex<Account>>);

#[derive(Debug)]
struct Account {
    limit: Duration,
    /// What each invocation brings, and how many there are.
    each: Duration,
    invocations: u32,
    spent: Duration,
    /// Since when the guest runs, while it does.
    running: Option<Instant>,
}

impl CpuMeter {
    pub(crate) fn new(limit: Duration) -> Self {
        let meter = Self::shared(limit);
        meter.begin();
        meter
    }

    /// An account for any number of invocations: those in flight may spend together what each of them may. Nobody knows
    /// which of them spends it.
    pub(crate) fn shared(each: Duration) -> Self {
        Self(Arc::new(Mutex::new(Account {
            limit: Duration::ZERO,
            each,
            invocations: 0,
            spent: Duration::ZERO,
            running: None,
        })))
    }

    /// One more is in flight.
    pub(crate) fn begin(&self) {
        let account = &mut *self.0.lock();
        account.invocations += 1;
        account.limit = account.limit.saturating_add(account.each);
    }

    /// One less. What it did not spend goes with it: what is left is at most what the others brought.
    pub(crate) fn end(&self) {
        let account = &mut *self.0.lock();
        account.invocations = account.invocations.saturating_sub(1);
        let others = account.each.saturating_mul(account.invocations);
        account.limit = account.limit.min(account.total().saturating_add(others));
    }

    /// Runs a future and counts the time in which it is polled.
    pub(crate) async fn measure<F: Future>(&self, run: F) -> F::Output {
        let mut run = pin!(run);
        poll_fn(|ctx| {
            self.0.lock().running = Some(Instant::now());
            let polled = run.as_mut().poll(ctx);
            self.0.lock().pause();
            polled
        })
        .await
    }

    /// Whether the limit is passed.
    pub(crate) fn is_used_up(&self) -> bool {
        let account = self.0.lock();
        account.total() > account.limit
    }
}

impl Account {
    fn total(&self) -> Duration {
        self.spent + self.running.map_or(Duration::ZERO, |since| since.elapsed())
    }

    fn pause(&mut self) {
        self.spent = self.total();
        self.running = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waiting_is_free_and_running_is_not() {
        let meter = CpuMeter::new(Duration::from_millis(100));
        meter
            .measure(async {
                tokio::time::sleep(Duration::from_secs(60)).await;
                assert!(!meter.is_used_up(), "a minute of waiting");
            })
            .await;
        // With its clock paused, a poll takes the time that the test says it takes.
        let work = |ms| {
            let mut advance = Box::pin(tokio::time::advance(Duration::from_millis(ms)));
            let meter = meter.clone();
            async move {
                meter
                    .measure(poll_fn(|ctx| {
                        let _ = advance.as_mut().poll(ctx);
                        std::task::Poll::Ready(())
                    }))
                    .await;
            }
        };
        work(60).await;
        assert!(!meter.is_used_up());
        work(60).await;
        assert!(meter.is_used_up());
    }

    #[test]
    fn those_in_flight_may_spend_together_what_each_may() {
        let meter = CpuMeter::shared(Duration::from_millis(100));
        let spend = |ms| meter.0.lock().spent += Duration::from_millis(ms);
        let left = || {
            let account = meter.0.lock();
            account.limit.checked_sub(account.spent)
        };
        meter.begin();
        meter.begin();
        spend(150);
        assert_eq!(left(), Some(Duration::from_millis(50)));
        meter.end();
        assert_eq!(left(), Some(Duration::from_millis(50)));
        // What one did not spend is not left to those that come later.
        meter.begin();
        meter.begin();
        meter.end();
        assert_eq!(left(), Some(Duration::from_millis(200)));
        meter.end();
        meter.end();
        assert_eq!(left(), Some(Duration::ZERO));
        spend(1);
        assert!(meter.is_used_up());
    }
}
