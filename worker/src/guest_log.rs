//! Guest output becomes log lines of the invocation it belongs to, up to a limit of bytes: they go to the function's
//! ring, and to the platform's own log.

use bytes::Bytes;
use fnctl_core::ids::RequestId;
use fnctl_core::log::{LogLevel, LogLine, LogSink, LogSource, now_ms};
use fnctl_core::version::VersionKey;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

/// Longest line before it is cut into several.
const MAX_LINE: usize = 8 << 10;

/// Longest context of a line.
const MAX_CONTEXT: usize = 128;

/// The first `max` bytes of a text, or a little less, so that it stays text.
fn cut(text: &str, max: usize) -> &str {
    text.get(..text.floor_char_boundary(max)).unwrap_or(text)
}

/// Which of the guest's two streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    /// Programs write to stderr what somebody should see.
    const fn level(self) -> LogLevel {
        match self {
            Self::Stdout => LogLevel::Info,
            Self::Stderr => LogLevel::Warn,
        }
    }

    const fn source(self) -> LogSource {
        match self {
            Self::Stdout => LogSource::Stdout,
            Self::Stderr => LogSource::Stderr,
        }
    }
}

/// The log of one sandbox; both streams and all their handles share it.
#[derive(Clone)]
pub(crate) struct GuestLog(Arc<Mutex<LogState>>);

struct LogState {
    sink: Arc<dyn LogSink>,
    version: VersionKey,
    limit: u64,
    /// Whose lines are written now: a request's by its number, or nobody's.
    turn: Option<u64>,
    account: Account,
    /// Of a guest that serves several requests at once: those whose turn it is not.
    others: BTreeMap<Option<u64>, Account>,
}

/// What one invocation has written.
struct Account {
    request: Option<RequestId>,
    left: u64,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Account {
    const fn new(request: Option<RequestId>, left: u64) -> Self {
        Self {
            request,
            left,
            stdout: Vec::new(),
            stderr: Vec::new(),
        }
    }

    fn buffer(&mut self, stream: Stream) -> &mut Vec<u8> {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }
}

impl GuestLog {
    pub(crate) fn new(version: VersionKey, limit: u64, sink: Arc<dyn LogSink>) -> Self {
        let state = LogState {
            sink,
            version,
            limit,
            turn: None,
            account: Account::new(None, limit),
            others: BTreeMap::new(),
        };
        Self(Arc::new(Mutex::new(state)))
    }

    /// A log for another sandbox of the same instance.
    pub(crate) fn fork(&self) -> Self {
        let state = self.0.lock();
        Self::new(state.version.clone(), state.limit, state.sink.clone())
    }

    /// From now on the lines belong to this invocation, which has the whole limit to itself.
    pub(crate) fn begin(&self, request: &RequestId) {
        let mut state = self.0.lock();
        state.account.request = Some(request.clone());
        state.account.left = state.limit;
    }

    /// One of several requests begins; it has the whole limit to itself, and so have lines that are nobody's.
    pub(crate) fn open(&self, key: u64, request: &RequestId) {
        let state = &mut *self.0.lock();
        let account = Account::new(Some(request.clone()), state.limit);
        state.others.insert(Some(key), account);
        match state.others.get_mut(&None) {
            Some(nobodys) => nobodys.left = state.limit,
            None if state.turn.is_none() => state.account.left = state.limit,
            None => {}
        }
    }

    /// From now on the lines belong to the request that is open with this key, or to nobody.
    pub(crate) fn turn(&self, key: Option<u64>) {
        self.0.lock().turn(key);
    }

    /// Whose turn it is.
    fn whose(&self) -> Option<u64> {
        self.0.lock().turn
    }

    /// Writes out the lines of a request that have no end yet.
    pub(crate) fn flush(&self, key: u64) {
        self.0.lock().flush(key);
    }

    /// A request that was opened is forgotten: what is still written for it is nobody's.
    pub(crate) fn forget(&self, key: u64) {
        let mut state = self.0.lock();
        state.flush(key);
        if state.turn == Some(key) {
            state.turn(None);
        }
        state.others.remove(&Some(key));
    }

    /// Requests that are open.
    #[cfg(test)]
    pub(crate) fn open_requests(&self) -> usize {
        let state = self.0.lock();
        let others = state.others.keys().filter(|key| key.is_some()).count();
        others + usize::from(state.turn.is_some())
    }

    /// Writes out lines that have no end yet.
    pub(crate) fn end(&self) {
        self.0.lock().end();
    }

    pub(crate) fn stream(&self, stream: Stream) -> LogStream {
        LogStream {
            log: self.clone(),
            stream,
            owner: Owner::InTurn,
        }
    }

    /// A line of the platform's own among the guest's; it counts towards the limit.
    pub(crate) fn note(&self, text: &str) {
        self.write(Stream::Stderr, text.as_bytes());
        self.write(Stream::Stderr, b"\n");
    }

    /// A line of `wasi:logging`. It counts towards the limit, and its line ends do not make it several.
    pub(crate) fn levelled(&self, level: LogLevel, context: &str, message: &str) {
        let mut state = self.0.lock();
        if state.account.left == 0 {
            return;
        }
        let context = cut(context, MAX_CONTEXT);
        let allowed = usize::try_from(state.account.left).unwrap_or(usize::MAX);
        let message = cut(message, MAX_LINE.min(allowed));
        // At least one byte each, or empty lines would be free.
        let cost = (context.len() + message.len()).max(1) as u64;
        state.account.left = state.account.left.saturating_sub(cost);
        state.line(level, LogSource::Logging, context, message);
        state.note_cut();
    }

    fn write(&self, stream: Stream, bytes: &[u8]) {
        self.0.lock().write(stream, bytes);
    }
}

impl LogState {
    fn turn(&mut self, key: Option<u64>) {
        // One that was forgotten gets no account again: nobody would take it away.
        let key = key.filter(|key| self.is_open(*key));
        if self.turn == key {
            return;
        }
        let next = self.others.remove(&key);
        let next = next.unwrap_or_else(|| Account::new(None, self.limit));
        let before = std::mem::replace(&mut self.account, next);
        let key = std::mem::replace(&mut self.turn, key);
        self.others.insert(key, before);
    }

    fn is_open(&self, key: u64) -> bool {
        self.turn == Some(key) || self.others.contains_key(&Some(key))
    }

    fn flush(&mut self, key: u64) {
        if !self.is_open(key) {
            return;
        }
        let before = self.turn;
        self.turn(Some(key));
        self.end();
        self.turn(before);
    }

    fn end(&mut self) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let rest = std::mem::take(self.account.buffer(stream));
            if !rest.is_empty() {
                self.output(stream, &rest);
            }
        }
    }

    fn write(&mut self, stream: Stream, bytes: &[u8]) {
        if self.account.left == 0 {
            return;
        }
        let allowed = usize::try_from(self.account.left)
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        self.account.left -= allowed as u64;
        for piece in bytes
            .get(..allowed)
            .unwrap_or_default()
            .split_inclusive(|byte| *byte == b'\n')
        {
            let mut buffer = std::mem::take(self.account.buffer(stream));
            for part in piece.chunks(MAX_LINE) {
                buffer.extend_from_slice(part);
                if buffer.ends_with(b"\n") || buffer.len() >= MAX_LINE {
                    self.output(stream, &buffer);
                    buffer.clear();
                }
            }
            *self.account.buffer(stream) = buffer;
        }
        self.note_cut();
    }

    /// Says once, when the limit is met, that nothing more will come.
    fn note_cut(&self) {
        if self.account.left == 0 {
            let text = format!(
                "the output of this invocation is cut off after log_bytes ({} bytes)",
                self.limit
            );
            self.line(LogLevel::Warn, LogSource::Platform, "", &text);
        }
    }

    fn output(&self, stream: Stream, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes);
        self.line(stream.level(), stream.source(), "", text.trim_end());
    }

    fn line(&self, level: LogLevel, source: LogSource, context: &str, text: &str) {
        // One line stays one line there, whatever the guest puts into it.
        let shown = text.replace(['\n', '\r'], "\\n");
        tracing::info!(
            target: "guest", function = %self.version.function, version = self.version.number.0,
            request_id = self.account.request.as_ref().map(RequestId::as_str), stream = source.as_str(),
            level = level.as_str(), "{shown}"
        );
        self.sink.write(LogLine {
            time_ms: now_ms(),
            level,
            source,
            function: self.version.function.clone(),
            version: self.version.number,
            request_id: self.account.request.clone(),
            context: context.to_owned(),
            text: text.to_owned(),
            report: None,
        });
    }
}

/// One handle of a guest on its stdout or stderr.
#[derive(Clone)]
pub(crate) struct LogStream {
    log: GuestLog,
    stream: Stream,
    owner: Owner,
}

/// Whose lines a handle writes.
#[derive(Debug, Clone, Copy)]
enum Owner {
    /// Those of whoever's turn it is.
    InTurn,
    /// Those of whoever's turn it was when the handle was made; it is written to at any time.
    Fixed(Option<u64>),
}

impl LogStream {
    fn write_now(&self, bytes: &[u8]) {
        match self.owner {
            Owner::InTurn => self.log.write(self.stream, bytes),
            Owner::Fixed(owner) => {
                let mut state = self.log.0.lock();
                let before = state.turn;
                state.turn(owner);
                state.write(self.stream, bytes);
                state.turn(before);
            }
        }
    }
}

impl IsTerminal for LogStream {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for LogStream {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(Self {
            owner: Owner::Fixed(self.log.whose()),
            ..self.clone()
        })
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[async_trait::async_trait]
impl Pollable for LogStream {
    async fn ready(&mut self) {}
}

impl OutputStream for LogStream {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.write_now(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(64 << 10)
    }
}

impl AsyncWrite for LogStream {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        self.write_now(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fnctl_core::ids::VersionNumber;

    #[derive(Default)]
    struct Lines(Mutex<Vec<(Option<RequestId>, String)>>);

    impl LogSink for Lines {
        fn write(&self, line: LogLine) {
            self.0.lock().push((line.request_id, line.text));
        }
    }

    #[test]
    fn a_request_that_was_forgotten_leaves_no_account_and_gets_none_again() {
        let lines = Arc::new(Lines::default());
        let version = VersionKey {
            function: "f".parse().unwrap(),
            number: VersionNumber(1),
        };
        let log = GuestLog::new(version, 1 << 20, lines.clone());
        for key in 0..100 {
            log.open(key, &RequestId::generate(key));
            log.turn(Some(key));
            let mut late = LogStream {
                log: log.clone(),
                stream: Stream::Stdout,
                owner: Owner::Fixed(Some(key)),
            };
            log.write(Stream::Stdout, b"unfinished");
            log.forget(key);
            // Whatever comes afterwards is nobody's.
            OutputStream::write(&mut late, Bytes::from_static(b"late\n")).unwrap();
            log.flush(key);
            log.turn(Some(key));
            assert_eq!(log.open_requests(), 0);
        }
        let lines = lines.0.lock();
        let count = |text: &str, has_id: bool| {
            let same =
                |line: &&(Option<RequestId>, String)| line.1 == text && line.0.is_some() == has_id;
            lines.iter().filter(same).count()
        };
        assert_eq!(
            (count("unfinished", true), count("late", false)),
            (100, 100)
        );
        assert_eq!(lines.len(), 200);
    }
}
