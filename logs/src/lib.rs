//! What functions said: a bounded ring of log lines on disk for each, written by one thread, read and followed by many.
//!
//! Owns the files below its folder and nothing else. Invariants: writing a line never waits, whoever writes it; one
//! function's flood costs only its own lines; a follower gets each line at most once and is told what it missed; the
//! rings stay within their size and age.

mod config;
mod feed;
mod reader;
mod ring;
#[cfg(test)]
mod tests;
mod writer;

pub use config::Config;

use async_trait::async_trait;
use dashmap::DashMap;
use feed::{FeedEnd, Taken};
use fnctl_core::ids::{FunctionName, VersionNumber};
use fnctl_core::log::{LogItem, LogLine, LogQuery, LogSink, LogStore};
use fnctl_core::task::Tasks;
use fnctl_core::{ErrorKind, Failure};
use prometheus::{IntCounter, IntGauge, Registry};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, oneshot};
use writer::{Command, Reading, Writer};

/// Commands that wait for the writer.
const QUEUE: usize = 8_192;
/// Lines of one function that wait for the writer, so that one flood leaves room for everybody else.
const QUEUE_PER_FUNCTION: usize = 1_024;
/// Lines that a function may have waiting whatever the others do.
const QUEUE_OF_QUIET: usize = 64;
/// Readers at once.
const MAX_READERS: usize = 64;
/// Items on their way to one reader. Each may be a chunk of many lines.
const READER_QUEUE: usize = 4;
/// A follower hears that its stream is alive after this much silence.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// A reader that takes nothing for so long has lost its place. Whoever reads over HTTP/2 can keep a connection alive and
/// its window closed; the heartbeat makes sure that there is something to take.
const STALLED: Duration = Duration::from_secs(60);

/// The log rings of a platform. Clones share them.
#[derive(Clone)]
pub struct Logs {
    commands: mpsc::Sender<Command>,
    shared: Arc<Shared>,
    readers: Arc<Semaphore>,
    tasks: Tasks,
}

impl std::fmt::Debug for Logs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Logs").finish_non_exhaustive()
    }
}

pub(crate) struct Shared {
    config: Config,
    metrics: Metrics,
    queues: DashMap<FunctionName, Arc<Queue>>,
}

/// One function's share of the writer's queue. Each line carries it, so that forgetting it upsets no count.
#[derive(Default)]
pub(crate) struct Queue {
    waiting: AtomicUsize,
    dropped: AtomicU64,
}

impl Queue {
    /// A line has left the queue. Returns how many were dropped since the last time.
    fn taken(&self) -> u64 {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        self.dropped.swap(0, Ordering::Relaxed)
    }
}

struct Metrics {
    written: IntCounter,
    dropped: IntCounter,
    failed: IntCounter,
    bytes: IntGauge,
}

impl Metrics {
    fn register(registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Self {
            written: IntCounter::new("fnctl_log_lines_total", "Log lines of functions, stored.")?,
            dropped: IntCounter::new(
                "fnctl_log_lines_dropped_total",
                "Log lines of functions that were lost: too fast to be stored, or refused by the disk.",
            )?,
            failed: IntCounter::new(
                "fnctl_log_write_failures_total",
                "Times that the disk refused log lines.",
            )?,
            bytes: IntGauge::new("fnctl_log_bytes", "Log lines on disk, in bytes.")?,
        };
        registry.register(Box::new(metrics.written.clone()))?;
        registry.register(Box::new(metrics.dropped.clone()))?;
        registry.register(Box::new(metrics.failed.clone()))?;
        registry.register(Box::new(metrics.bytes.clone()))?;
        Ok(metrics)
    }
}

impl Shared {
    fn queue(&self, function: &FunctionName) -> Arc<Queue> {
        if let Some(queue) = self.queues.get(function) {
            return queue.value().clone();
        }
        self.queues.entry(function.clone()).or_default().clone()
    }

    fn forget_queue(&self, function: &FunctionName) {
        self.queues.remove(function);
    }
}

impl Logs {
    /// Starts the thread that writes. What serves readers is spawned as `tasks`.
    pub fn start(config: Config, registry: &Registry, tasks: Tasks) -> Result<Self, StartError> {
        std::fs::create_dir_all(&config.folder).map_err(|source| StartError::Folder {
            folder: config.folder.display().to_string(),
            source,
        })?;
        let (commands, rx) = mpsc::channel(QUEUE);
        let shared = Arc::new(Shared {
            config,
            metrics: Metrics::register(registry)?,
            queues: DashMap::new(),
        });
        let writer = Writer::new(shared.clone());
        std::thread::Builder::new()
            .name("fnctl-logs".into())
            .spawn(move || writer.run(rx))
            .map_err(StartError::Thread)?;
        let logs = Self {
            commands,
            shared,
            readers: Arc::new(Semaphore::new(MAX_READERS)),
            tasks,
        };
        logs.expire();
        Ok(logs)
    }

    /// Has what is too old removed. To be called from time to time.
    pub fn expire(&self) {
        // A queue that is full now is not full the next time.
        let _ = self.commands.try_send(Command::Expire);
    }

    /// Ends the streams of whoever follows, so that their connections can be closed.
    pub async fn end_followers(&self) {
        let _ = tokio::time::timeout(
            Duration::from_secs(1),
            self.commands.send(Command::EndFollowers),
        )
        .await;
    }

    /// Stores what is queued, and ends.
    pub async fn stop(&self) {
        let _ =
            tokio::time::timeout(Duration::from_secs(1), self.commands.send(Command::Stop)).await;
        // The thread drops its end of the queue when it is done.
        let _ = tokio::time::timeout(Duration::from_secs(1), self.commands.closed()).await;
    }
}

impl LogSink for Logs {
    fn write(&self, line: LogLine) {
        let queue = self.shared.queue(&line.function);
        let waiting = queue.waiting.fetch_add(1, Ordering::Relaxed);
        // The last half of the queue is for functions that have little waiting: many floods at once leave it free.
        let fits = waiting < QUEUE_OF_QUIET
            || (waiting < QUEUE_PER_FUNCTION && self.commands.capacity() > QUEUE / 2);
        let sent = fits
            && self
                .commands
                .try_send(Command::Line(Box::new(line), queue.clone()))
                .is_ok();
        if !sent {
            queue.waiting.fetch_sub(1, Ordering::Relaxed);
            queue.dropped.fetch_add(1, Ordering::Relaxed);
            self.shared.metrics.dropped.inc();
        }
    }
}

#[async_trait]
impl LogStore for Logs {
    async fn read(&self, query: LogQuery) -> Result<mpsc::Receiver<LogItem>, Failure> {
        let place = self.readers.clone().try_acquire_owned().map_err(|_| {
            Failure::new(
                ErrorKind::Overloaded,
                format!("{MAX_READERS} log streams are open already; close one, or try again"),
            )
            .retry_after(Duration::from_secs(5))
        })?;
        let (answer, reading) = oneshot::channel();
        let asked = async {
            self.commands
                .send(Command::Read(query.clone(), answer))
                .await
                .ok()?;
            reading.await.ok()
        };
        let Reading { stored, live } = tokio::time::timeout(Duration::from_secs(10), asked)
            .await
            .ok()
            .flatten()
            .ok_or_else(|| {
                Failure::new(
                    ErrorKind::Overloaded,
                    "the logs cannot be read now; try again",
                )
                .retry_after(Duration::from_secs(1))
            })?
            .map_err(|error| {
                Failure::new(ErrorKind::Unavailable, "the stored logs cannot be read")
                    .because(error)
            })?;
        let (tx, rx) = mpsc::channel(READER_QUEUE);
        self.tasks.spawn("log reader", async move {
            let _place = place;
            let out = tx.clone();
            let runtime = tokio::runtime::Handle::current();
            let sent = tokio::task::spawn_blocking(move || {
                reader::send_stored(stored, &query, |lines| {
                    runtime.block_on(send(&out, LogItem::Lines(lines)))
                })
            })
            .await;
            if let Ok(Err(error)) = sent {
                tracing::warn!(%error, "stored log lines cannot be read");
            }
            if let Some(live) = live {
                follow(live, &tx).await;
            }
        });
        Ok(rx)
    }

    fn forget(&self, function: &FunctionName, newest: VersionNumber) {
        let commands = self.commands.clone();
        if let Err(mpsc::error::TrySendError::Full(command)) =
            commands.try_send(Command::Forget(function.clone(), newest))
        {
            // Rare: the queue is full of lines. It empties by itself.
            self.tasks.spawn("forgetting a log", async move {
                let _ = tokio::time::timeout(Duration::from_secs(10), commands.send(command)).await;
            });
        }
    }
}

/// Hands an item over. Says whether the reader is there and reads.
async fn send(tx: &mpsc::Sender<LogItem>, item: LogItem) -> bool {
    matches!(
        tokio::time::timeout(STALLED, tx.send(item)).await,
        Ok(Ok(()))
    )
}

/// Passes live lines on until the log or the reader ends, or the reader reads no more.
async fn follow(mut live: FeedEnd, tx: &mpsc::Sender<LogItem>) {
    loop {
        let taken = tokio::select! {
            taken = tokio::time::timeout(HEARTBEAT, live.take()) => taken,
            () = tx.closed() => return,
        };
        let is_read = match taken {
            Err(_) => send(tx, LogItem::Alive).await,
            Ok(None) => return,
            Ok(Some(Taken { lines, skipped })) => {
                (lines.is_empty() || send(tx, LogItem::Lines(lines)).await)
                    && (skipped == 0 || send(tx, LogItem::Skipped(skipped)).await)
            }
        };
        if !is_read {
            return;
        }
    }
}

/// Why the logs could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The folder cannot be made.
    #[error("cannot keep logs in {folder}: {source}; is the folder writable?")]
    Folder {
        /// Where.
        folder: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// No thread can be started.
    #[error("cannot start the thread that writes logs: {0}")]
    Thread(std::io::Error),
    /// A metric is registered twice.
    #[error("the metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}
