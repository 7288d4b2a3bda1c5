//! The one way to spawn a task: named, joined at shutdown, and with a panic turned into a counted error.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio_util::task::TaskTracker;

/// Spawns tasks and remembers them until they end.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    panics: Arc<AtomicU64>,
}

/// Says so in the log and counts, when the task that holds it unwinds.
struct PanicWatch {
    name: &'static str,
    panics: Arc<AtomicU64>,
}

impl Drop for PanicWatch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.panics.fetch_add(1, Ordering::Relaxed);
            tracing::error!(
                task = self.name,
                "a task panicked; please report this as a defect"
            );
        }
    }
}

impl Tasks {
    /// Spawns `future` under `name`.
    pub fn spawn<F>(&self, name: &'static str, future: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let watch = PanicWatch {
            name,
            panics: self.panics.clone(),
        };
        self.tracker.spawn(async move {
            let _watch = watch;
            future.await
        })
    }

    /// How many tasks panicked so far.
    pub fn panics(&self) -> u64 {
        self.panics.load(Ordering::Relaxed)
    }

    /// Waits until every task has ended. Callers bound the wait.
    pub async fn join(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_counted_and_does_not_hold_up_shutdown() {
        let tasks = Tasks::default();
        let outcome = tasks.spawn("doomed", async { panic!("on purpose") }).await;
        assert!(outcome.is_err());
        tasks.join().await;
        assert_eq!(tasks.panics(), 1);
    }
}
