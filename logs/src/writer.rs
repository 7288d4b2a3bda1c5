//! The one thread that writes: it owns every ring, and is the one point where lines, readers and removals have an order.
//! So a reader that follows gets each line once: what is stored before it came from the files, the rest live.

use crate::feed::{self, Feed, FeedEnd};
use crate::ring::{Ring, Snapshot};
use crate::{Queue, Shared};
use fnctl_core::ids::{FunctionName, VersionNumber};
use fnctl_core::log::{LogLevel, LogLine, LogQuery, LogSource, now_ms};
use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Files kept open; further rings open theirs again for each batch.
const MAX_OPEN: usize = 64;
/// Most commands taken at once, so that a flood is written in few calls.
const BATCH: usize = 1024;
/// How long lines gather before they are written together. A follower sees them that much later.
const GATHER: Duration = Duration::from_millis(5);
/// How long a removed function is remembered, so that invocations which end meanwhile leave nothing.
const REMEMBER_REMOVED: Duration = Duration::from_secs(3600);
/// Most removed functions that are remembered.
const MAX_REMOVED: usize = 10_000;
/// How often a failing disk is complained about.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

pub(crate) enum Command {
    Line(Box<LogLine>, Arc<Queue>),
    Read(LogQuery, oneshot::Sender<io::Result<Reading>>),
    Forget(FunctionName, VersionNumber),
    /// Ends the stream of whoever follows.
    EndFollowers,
    Expire,
    Stop,
}

/// What a reader starts from.
pub(crate) struct Reading {
    pub(crate) stored: Snapshot,
    /// The lines after the stored ones, if the query follows.
    pub(crate) live: Option<FeedEnd>,
}

struct Follower {
    query: LogQuery,
    feed: Feed,
}

/// A function that was removed.
struct Removed {
    /// Its last version.
    newest: VersionNumber,
    at: Instant,
}

pub(crate) struct Writer {
    shared: Arc<Shared>,
    rings: HashMap<FunctionName, Ring>,
    /// Those of the rings that may have their file open.
    open: HashSet<FunctionName>,
    /// Lines of the running batch that are not yet written, by function.
    pending: HashMap<FunctionName, Vec<u8>>,
    followers: HashMap<FunctionName, Vec<Follower>>,
    removed: HashMap<FunctionName, Removed>,
    complained: Option<Instant>,
}

impl Writer {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            rings: HashMap::new(),
            open: HashSet::new(),
            pending: HashMap::new(),
            followers: HashMap::new(),
            removed: HashMap::new(),
            complained: None,
        }
    }

    /// Works until told to stop, or until nobody is left who could send.
    pub(crate) fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut batch = Vec::new();
        loop {
            if commands.blocking_recv_many(&mut batch, BATCH) == 0 {
                return;
            }
            for command in batch.drain(..) {
                match command {
                    Command::Line(line, queue) => self.take(&line, queue.taken()),
                    Command::Read(query, answer) => {
                        self.write_pending();
                        let reading = self.reading(query);
                        // A reader that left needs no answer; its follower is found gone at the next line.
                        let _ = answer.send(reading);
                    }
                    Command::Forget(function, newest) => {
                        self.write_pending();
                        self.forget(&function, newest);
                    }
                    Command::EndFollowers => self.followers.clear(),
                    Command::Expire => self.expire(),
                    Command::Stop => {
                        self.write_pending();
                        return;
                    }
                }
            }
            self.write_pending();
            // Lines gather meanwhile: waking this thread for each would cost its writer more than the line does.
            std::thread::park_timeout(GATHER);
        }
    }

    /// Takes a line in, and word of those before it that were `dropped`.
    fn take(&mut self, line: &LogLine, dropped: u64) {
        if let Some(removed) = self.removed.get(&line.function) {
            if line.version <= removed.newest {
                // Its invocation outlived its function.
                self.shared.forget_queue(&line.function);
                return;
            }
            self.removed.remove(&line.function);
        }
        if dropped > 0 {
            let notice = LogLine {
                level: LogLevel::Warn,
                source: LogSource::Platform,
                request_id: None,
                context: String::new(),
                text: format!(
                    "{dropped} log lines were dropped: they came faster than they can be stored"
                ),
                report: None,
                ..line.clone()
            };
            self.store(&notice);
        }
        self.store(line);
    }

    fn store(&mut self, line: &LogLine) {
        let buffer = match self.pending.get_mut(&line.function) {
            Some(buffer) => buffer,
            None => self.pending.entry(line.function.clone()).or_default(),
        };
        let start = buffer.len();
        // Writing JSON to memory does not fail.
        if serde_json::to_writer(&mut *buffer, line).is_err() {
            buffer.truncate(start);
            return;
        }
        buffer.push(b'\n');
        if let Some(followers) = self.followers.get_mut(&line.function) {
            let written = buffer.get(start..).unwrap_or_default();
            for follower in followers.iter_mut().filter(|one| one.query.wants(line)) {
                follower.feed.offer(written);
            }
        }
    }

    /// Tells followers of what their feeds hold, once for many lines.
    fn wake_followers(&mut self, function: &FunctionName) {
        if let Some(followers) = self.followers.get_mut(function) {
            followers.retain_mut(|follower| follower.feed.deliver());
            if followers.is_empty() {
                self.followers.remove(function);
            }
        }
    }

    fn write_pending(&mut self) {
        let now = now_ms();
        for (function, lines) in std::mem::take(&mut self.pending) {
            self.wake_followers(&function);
            let mut grown = 0;
            let written = self.ring(&function).and_then(|ring| {
                let before = ring.bytes();
                let outcome = ring.append(&lines, now);
                grown = signed(ring.bytes()) - signed(before);
                outcome
            });
            self.open.insert(function.clone());
            self.shared.metrics.bytes.add(grown);
            // A JSON text holds no line end, so these are the lines.
            let count = lines.iter().filter(|byte| **byte == b'\n').count() as u64;
            match written {
                Ok(()) => self.shared.metrics.written.inc_by(count),
                Err(error) => {
                    self.shared.metrics.dropped.inc_by(count);
                    self.complain(&function, &error);
                }
            }
        }
        // By the few that were written to, not by all that there are: this is done for every batch.
        if self.open.len() > MAX_OPEN {
            for function in self.open.drain() {
                if let Some(ring) = self.rings.get_mut(&function) {
                    ring.close();
                }
            }
        }
    }

    fn ring(&mut self, function: &FunctionName) -> io::Result<&mut Ring> {
        if !self.rings.contains_key(function) {
            let config = &self.shared.config;
            let folder = config.folder.join(function.as_str());
            let ring = Ring::open(folder, config.max_bytes.bytes())?;
            self.rings.insert(function.clone(), ring);
        }
        self.rings
            .get_mut(function)
            .ok_or_else(|| io::Error::other("the ring is gone"))
    }

    fn reading(&mut self, query: LogQuery) -> io::Result<Reading> {
        let stored = self.ring(&query.function)?.snapshot()?;
        let live = query.follow.then(|| {
            let (feed, end) = feed::pair();
            let function = query.function.clone();
            let followers = self.followers.entry(function).or_default();
            followers.retain(|other| !other.feed.is_closed());
            followers.push(Follower { query, feed });
            end
        });
        Ok(Reading { stored, live })
    }

    fn forget(&mut self, function: &FunctionName, newest: VersionNumber) {
        self.followers.remove(function);
        if self.removed.len() < MAX_REMOVED {
            let at = Instant::now();
            self.removed
                .insert(function.clone(), Removed { newest, at });
        }
        self.shared.forget_queue(function);
        let Ok(ring) = self.ring(function) else {
            return;
        };
        let (folder, bytes) = (ring.folder().to_owned(), ring.bytes());
        self.rings.remove(function);
        self.shared.metrics.bytes.sub(signed(bytes));
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                self.complain(function, &error);
            }
            _ => {}
        }
    }

    fn expire(&mut self) {
        // Followers that left while nothing was logged.
        self.followers.retain(|_, followers| {
            followers.retain(|follower| !follower.feed.is_closed());
            !followers.is_empty()
        });
        self.removed
            .retain(|_, removed| removed.at.elapsed() < REMEMBER_REMOVED);
        let max_age =
            u64::try_from(self.shared.config.max_age.duration().as_millis()).unwrap_or(u64::MAX);
        let now = now_ms();
        let mut failed = None;
        let mut bytes = 0;
        for function in stored_functions(&self.shared.config.folder) {
            let mut empty = false;
            let expired = self.ring(&function).and_then(|ring| {
                let outcome = ring.expire(now, max_age);
                bytes += signed(ring.bytes());
                empty = ring.bytes() == 0;
                outcome
            });
            if empty {
                // A function that is gone, or silent for long: nothing of it stays behind. The folder is empty.
                let _ = std::fs::remove_dir(self.shared.config.folder.join(function.as_str()));
                self.rings.remove(&function);
                self.shared.forget_queue(&function);
            }
            if let Err(error) = expired {
                failed = Some((function, error));
            }
        }
        self.shared.metrics.bytes.set(bytes);
        if let Some((function, error)) = failed {
            self.complain(&function, &error);
        }
    }

    fn complain(&mut self, function: &FunctionName, error: &io::Error) {
        self.shared.metrics.failed.inc();
        let now = Instant::now();
        if self
            .complained
            .is_none_or(|last| now.duration_since(last) >= COMPLAIN_EVERY)
        {
            self.complained = Some(now);
            tracing::warn!(%function, %error, "log lines cannot be stored; is the data folder's disk full?");
        }
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn stored_functions(folder: &std::path::Path) -> Vec<FunctionName> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}
