//! What has to happen from time to time: reaping instances, templates and sessions, giving memory back, collecting
//! artifacts, forgetting old log lines.

use fnctl_core::ports::ArtifactStore;
use fnctl_inference::Inference;
use fnctl_logs::Logs;
use fnctl_scheduler::Scheduler;
use fnctl_store::Store;
use fnctl_worker::Worker;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

/// How often to look. Keep-alives are seconds, so nobody misses the difference.
const ROUND: Duration = Duration::from_millis(250);
/// How often to collect artifacts.
const COLLECT: Duration = Duration::from_secs(600);

pub(crate) struct Keeper {
    pub(crate) scheduler: Scheduler,
    pub(crate) worker: Worker,
    pub(crate) inference: Inference,
    pub(crate) store: Store,
    pub(crate) logs: Logs,
    pub(crate) histories: std::path::PathBuf,
    pub(crate) evictions: crate::metrics::Evictions,
}

impl Keeper {
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut rounds = tokio::time::interval(ROUND);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut collected = Instant::now();
        let mut freed = false;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = rounds.tick() => {}
            }
            let now = Instant::now();
            self.scheduler
                .set_session_memory(self.inference.resident().1);
            // An idle session may come back in milliseconds; a function that cannot start does not answer at all. Before
            // idle instances are looked at, which are to make room only for sessions that are in use.
            let relieved = if self.scheduler.is_short_of_memory() {
                let relieved = self.inference.relieve().await;
                self.scheduler
                    .set_session_memory(self.inference.resident().1);
                relieved
            } else {
                0
            };
            self.evictions.relieved(relieved);
            freed |= self.scheduler.reap(now) > 0;
            let sessions = self.inference.reap(now).await;
            let templates = self.worker.reap(now);
            self.evictions.reaped(sessions, templates);
            freed |= sessions.count() + templates.expired + templates.by_policy + relieved > 0;
            // Once nothing runs: trimming takes the allocator's lock, which a busy platform would feel.
            if freed && self.scheduler.instances() == 0 {
                freed = false;
                let _ = tokio::task::spawn_blocking(fnctl_inference::purge_allocator).await;
            }
            if now.duration_since(collected) >= COLLECT {
                collected = now;
                self.logs.expire();
                let (path, scheduler) = (self.histories.clone(), self.scheduler.clone());
                let _ = tokio::task::spawn_blocking(move || {
                    crate::histories::save(&path, &scheduler);
                })
                .await;
                let removed = self.worker.collect().await;
                if removed > 0 {
                    tracing::info!(removed, "compiled code of removed artifacts deleted");
                }
                match self.store.collect().await {
                    Ok(0) => {}
                    Ok(count) => tracing::info!(count, "unused artifacts removed"),
                    Err(failure) => tracing::warn!(
                        cause = failure.cause,
                        "artifacts were not collected: {}",
                        failure.message
                    ),
                }
            }
        }
    }
}
