//! A log stream of the admin API: read on a thread of its own, so that silence is noticed; many lines are handed over at
//! once; and a stream that breaks off is taken up again where it was.

use crate::client::{Client, ClientError};
use anyhow::Context;
use fnctl_core::log::LogLine;
use serde::Deserialize;
use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, BufRead, BufReader, Read};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// The platform says every 15 seconds that a stream is alive: after three times that it is not.
pub(crate) const SILENCE: Duration = Duration::from_secs(45);
/// How long a stream that broke off is tried again, and the longest pause between two tries.
const RETRY_FOR: Duration = Duration::from_secs(120);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);
/// Lines are written by many threads, so a later one may carry an earlier time, but not by more than this.
const DISORDER_MS: u64 = 100;
/// Batches of lines between the reading thread and this one.
const QUEUE: usize = 4;
/// Bytes from which on a batch takes no more.
const BATCH: usize = 256 << 10;

/// A line of the stream with a digest of it, or word of what it left out.
#[derive(Debug)]
pub(crate) enum Item {
    Line(Box<LogLine>, u64),
    Skipped(u64),
}

#[derive(Deserialize)]
struct Skipped {
    skipped: u64,
}

impl Item {
    fn parse(text: &str) -> Result<Self, serde_json::Error> {
        // Nearly all are lines, and there may be many of them.
        match serde_json::from_str(text) {
            Ok(line) => Ok(Self::Line(Box::new(line), digest(text))),
            Err(error) => serde_json::from_str(text)
                .map(|Skipped { skipped }| Self::Skipped(skipped))
                .map_err(|_| error),
        }
    }
}

fn digest(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// What comes of a stream next.
#[derive(Debug)]
pub(crate) enum Next {
    /// Lines; none are a sign of life.
    Items(Vec<Item>),
    /// The platform ended the stream.
    Ended,
    /// The connection is dead: why.
    Broken(String),
}

/// Each text has whole lines.
pub(crate) struct LogStream(Receiver<io::Result<String>>);

impl LogStream {
    /// Opens a stream by its path under `/api/v1/`.
    pub(crate) fn open(client: &Client, path: &str) -> anyhow::Result<Self> {
        let response = client.stream(path)?;
        let (tx, rx) = sync_channel(QUEUE);
        let reader = BufReader::with_capacity(64 << 10, response.into_body().into_reader());
        // It ends with the stream, or when nobody takes what it reads; behind a dead connection it ends with the process.
        std::thread::Builder::new()
            .name("log stream".into())
            .spawn(move || read(reader, &tx))
            .context("no thread can be started")?;
        Ok(Self(rx))
    }

    /// Waits for what comes next, for at most `silence`.
    pub(crate) fn next(&self, silence: Duration) -> anyhow::Result<Next> {
        match self.0.recv_timeout(silence) {
            Ok(Ok(lines)) => {
                // Empty lines say that the stream is alive.
                let items: Result<Vec<_>, _> = lines
                    .lines()
                    .filter(|line| !line.trim().is_empty())
                    .map(Item::parse)
                    .collect();
                Ok(Next::Items(items.context("the platform sent a log line that this fnctl does not understand; are both of the same version?")?))
            }
            Ok(Err(error)) => Ok(Next::Broken(error.to_string())),
            Err(RecvTimeoutError::Timeout) => {
                Ok(Next::Broken(format!("no word for {} s", silence.as_secs())))
            }
            Err(RecvTimeoutError::Disconnected) => Ok(Next::Ended),
        }
    }
}

/// Reads lines and sends them on, those that came together in one batch.
fn read(mut reader: BufReader<impl Read>, tx: &SyncSender<io::Result<String>>) {
    let mut batch = String::new();
    loop {
        match reader.read_line(&mut batch) {
            Ok(0) => {
                let _ = tx.send(Ok(batch));
                return;
            }
            Ok(_) => {}
            Err(error) => {
                // Half a line is none.
                batch.truncate(batch.rfind('\n').map_or(0, |end| end + 1));
                let _ = tx.send(Ok(batch));
                let _ = tx.send(Err(error));
                return;
            }
        }
        let more_is_here = reader.buffer().contains(&b'\n') && batch.len() < BATCH;
        if !more_is_here && tx.send(Ok(std::mem::take(&mut batch))).is_err() {
            return;
        }
    }
}

/// What was shown last, so that a stream that is opened again shows nothing twice.
#[derive(Default)]
struct Shown {
    newest_ms: u64,
    /// Times and digests of the last lines.
    lines: VecDeque<(u64, u64)>,
}

impl Shown {
    /// Since when to ask, if anything was shown.
    fn since(&self) -> Option<u64> {
        (self.newest_ms > 0).then(|| self.newest_ms.saturating_sub(DISORDER_MS))
    }

    fn note(&mut self, time_ms: u64, digest: u64) {
        self.newest_ms = self.newest_ms.max(time_ms);
        self.lines.push_back((time_ms, digest));
        while let (Some(oldest), Some(since)) = (self.lines.front(), self.since())
            && oldest.0 < since
        {
            self.lines.pop_front();
        }
    }
}

/// Follows until the platform ends the stream. `open` opens it, from a time on if it is not the first time; `show` is
/// given what is new; `note` is told of a broken connection.
pub(crate) fn follow(
    silence: Duration,
    open: impl Fn(Option<u64>) -> anyhow::Result<LogStream>,
    mut show: impl FnMut(&[Item]) -> anyhow::Result<()>,
    note: impl Fn(&str),
) -> anyhow::Result<()> {
    let mut stream = open(None)?;
    let mut shown = Shown::default();
    // Shown before the break; they come again.
    let mut again: Vec<u64> = Vec::new();
    loop {
        match stream.next(silence)? {
            Next::Ended => return Ok(()),
            Next::Items(mut items) => {
                items.retain(|item| {
                    let Item::Line(line, digest) = item else {
                        return true;
                    };
                    if let Some(at) = again.iter().position(|known| known == digest) {
                        again.swap_remove(at);
                        return false;
                    }
                    shown.note(line.time_ms, *digest);
                    true
                });
                show(&items)?;
            }
            Next::Broken(why) => {
                note(&format!(
                    "the log stream broke off ({why}); connecting again"
                ));
                stream = reopen(&open, shown.since(), &why)?;
                again = shown.lines.iter().map(|(_, digest)| *digest).collect();
            }
        }
    }
}

/// Opens a stream again, trying for a while.
fn reopen(
    open: &impl Fn(Option<u64>) -> anyhow::Result<LogStream>,
    since: Option<u64>,
    why: &str,
) -> anyhow::Result<LogStream> {
    let began = Instant::now();
    let mut pause = Duration::from_millis(500);
    loop {
        match open(since) {
            Ok(stream) => return Ok(stream),
            // The platform's no is an answer; that nobody answers may pass.
            Err(error)
                if began.elapsed() > RETRY_FOR
                    || !matches!(error.downcast_ref(), Some(ClientError::Unreachable { .. })) =>
            {
                return Err(error.context(format!("the log stream broke off: {why}")));
            }
            Err(_) => std::thread::park_timeout(pause),
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::{Origin, Target};
    use std::cell::RefCell;
    use std::io::Write;
    use std::net::TcpListener;

    fn line(time_ms: u64, text: &str) -> String {
        serde_json::json!({"time_ms": time_ms, "level": "info", "source": "stdout", "function": "a", "version": 1, "text": text})
            .to_string()
    }

    /// Takes a connection's request, and begins to answer.
    fn accept(listener: &TcpListener) -> (BufReader<std::net::TcpStream>, String) {
        let (stream, _) = listener.accept().unwrap();
        let mut reader = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(reader.read_line(&mut head).unwrap() > 0);
        }
        let answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n";
        reader.get_mut().write_all(answer).unwrap();
        (reader, head)
    }

    fn chunk(to: &mut impl Write, text: &str) {
        write!(to, "{:x}\r\n{text}\r\n", text.len()).unwrap();
    }

    #[test]
    fn a_stream_that_falls_silent_is_opened_again_and_nothing_is_shown_twice() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap());
        let platform = std::thread::spawn(move || {
            let (mut silent, first) = accept(&listener);
            chunk(
                silent.get_mut(),
                &format!("{}\n{}\n\n", line(1_000, "one"), line(5_000, "two")),
            );
            // The first one says nothing more, and is not closed either.
            let (mut stream, second) = accept(&listener);
            let text = [
                line(5_000, "two"),
                line(4_990, "late"),
                line(5_001, "three"),
            ]
            .join("\n");
            chunk(stream.get_mut(), &format!("{text}\n"));
            stream.get_mut().write_all(b"0\r\n\r\n").unwrap();
            (first, second, silent)
        });
        let client = Client::new(&Target {
            server,
            token: None,
            ca_file: None,
            origin: Origin::Default,
        })
        .unwrap();
        let open = |since: Option<u64>| {
            LogStream::open(&client, &format!("functions/a/logs?since={since:?}"))
        };
        let (mut texts, notes) = (Vec::new(), RefCell::new(Vec::new()));
        let show = |items: &[Item]| {
            texts.extend(items.iter().map(|item| match item {
                Item::Line(line, _) => line.text.clone(),
                Item::Skipped(count) => count.to_string(),
            }));
            Ok(())
        };
        let note = |text: &str| notes.borrow_mut().push(text.to_owned());
        follow(Duration::from_millis(400), open, show, note).unwrap();
        assert_eq!(texts, ["one", "two", "late", "three"]);
        assert_eq!(notes.borrow().len(), 1, "{notes:?}");
        let (first, second, _) = platform.join().unwrap();
        assert!(first.contains("since=None"), "{first}");
        assert!(second.contains("since=Some(4900)"), "{second}");
    }
}
