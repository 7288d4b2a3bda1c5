//! The one thread that writes: it owns every ring, and is the one point where lines, readers and removals have an order.
//! So a reader that follows gets each line once: what is stored before it came from the files, the rest live.

use crate::ring::{Ring, Snapshot};
use crate::{Queue, Shared};
use fnctl_core::ids::FunctionName;
use fnctl_core::log::{LogItem, LogLevel, LogLine, LogQuery, LogSource, now_ms};
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Live lines that wait for one follower.
const FOLLOWER_QUEUE: usize = 1024;
/// Files kept open; further rings open theirs again for each batch.
const MAX_OPEN: usize = 64;
/// Most commands taken at once, so that a flood is written in few calls.
const BATCH: usize = 1024;
/// How long lines gather before they are written together. A follower sees them that much later.
const GATHER: Duration = Duration::from_millis(2);
/// How often a failing disk is complained about.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

pub(crate) enum Command {
    Line(Box<LogLine>, Arc<Queue>),
    Read(LogQuery, oneshot::Sender<io::Result<Reading>>),
    Forget(FunctionName),
    /// Ends the stream of whoever follows.
    EndFollowers,
    Expire,
    Stop,
}

/// What a reader starts from.
pub(crate) struct Reading {
    pub(crate) stored: Snapshot,
    /// The lines after the stored ones, if the query follows.
    pub(crate) live: Option<mpsc::Receiver<LogItem>>,
}

struct Follower {
    query: LogQuery,
    tx: mpsc::Sender<LogItem>,
    skipped: u64,
}

pub(crate) struct Writer {
    shared: Arc<Shared>,
    rings: HashMap<FunctionName, Ring>,
    /// Lines of the running batch that are not yet written, by function.
    pending: HashMap<FunctionName, Vec<u8>>,
    followers: HashMap<FunctionName, Vec<Follower>>,
    complained: Option<Instant>,
}

impl Writer {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            rings: HashMap::new(),
            pending: HashMap::new(),
            followers: HashMap::new(),
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
                    Command::Forget(function) => {
                        self.write_pending();
                        self.forget(&function);
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
        if let Some(followers) = self.followers.get_mut(&line.function) {
            followers.retain_mut(|follower| follower.offer(line));
            if followers.is_empty() {
                self.followers.remove(&line.function);
            }
        }
        let buffer = match self.pending.get_mut(&line.function) {
            Some(buffer) => buffer,
            None => self.pending.entry(line.function.clone()).or_default(),
        };
        // Writing JSON to memory does not fail.
        if serde_json::to_writer(&mut *buffer, line).is_ok() {
            buffer.push(b'\n');
        }
    }

    fn write_pending(&mut self) {
        let now = now_ms();
        for (function, lines) in std::mem::take(&mut self.pending) {
            let mut grown = 0;
            let written = self.ring(&function).and_then(|ring| {
                let before = ring.bytes();
                let outcome = ring.append(&lines, now);
                grown = signed(ring.bytes()) - signed(before);
                outcome
            });
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
        if self
            .rings
            .values()
            .filter(|ring| ring.has_open_file())
            .count()
            > MAX_OPEN
        {
            self.rings.values_mut().for_each(Ring::close);
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
            let (tx, rx) = mpsc::channel(FOLLOWER_QUEUE);
            let function = query.function.clone();
            let follower = Follower {
                query,
                tx,
                skipped: 0,
            };
            let followers = self.followers.entry(function).or_default();
            followers.retain(|other| !other.tx.is_closed());
            followers.push(follower);
            rx
        });
        Ok(Reading { stored, live })
    }

    fn forget(&mut self, function: &FunctionName) {
        self.followers.remove(function);
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
            followers.retain(|follower| !follower.tx.is_closed());
            !followers.is_empty()
        });
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

impl Follower {
    /// Hands a line over, without waiting. Says whether the follower is still there.
    fn offer(&mut self, line: &LogLine) -> bool {
        if self.tx.is_closed() {
            return false;
        }
        if !self.query.wants(line) {
            return true;
        }
        if self.skipped > 0 && self.tx.try_send(LogItem::Skipped(self.skipped)).is_ok() {
            self.skipped = 0;
        }
        if self.skipped > 0
            || self
                .tx
                .try_send(LogItem::Line(Box::new(line.clone())))
                .is_err()
        {
            self.skipped += 1;
        }
        true
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
