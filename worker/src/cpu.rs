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

/// The CPU account of one invocation. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct CpuMeter(Arc<Mutex<Account>>);

#[derive(Debug)]
struct Account {
    limit: Duration,
    spent: Duration,
    /// Since when the guest runs, while it does.
    running: Option<Instant>,
}

impl CpuMeter {
    pub(crate) fn new(limit: Duration) -> Self {
        Self(Arc::new(Mutex::new(Account {
            limit,
            spent: Duration::ZERO,
            running: None,
        })))
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
}
