//! Guest output becomes log lines of the invocation it belongs to, up to a limit of bytes: they go to the function's
//! ring, and to the platform's own log.

use bytes::Bytes;
use fnctl_core::ids::RequestId;
use fnctl_core::log::{LogLevel, LogLine, LogSink, LogSource, now_ms};
use fnctl_core::version::VersionKey;
use parking_lot::Mutex;
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
    request: Option<RequestId>,
    limit: u64,
    left: u64,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl GuestLog {
    pub(crate) fn new(version: VersionKey, limit: u64, sink: Arc<dyn LogSink>) -> Self {
        let state = LogState {
            sink,
            version,
            request: None,
            limit,
            left: limit,
            stdout: Vec::new(),
            stderr: Vec::new(),
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
        state.request = Some(request.clone());
        state.left = state.limit;
    }

    /// Writes out lines that have no end yet.
    pub(crate) fn end(&self) {
        let mut state = self.0.lock();
        for stream in [Stream::Stdout, Stream::Stderr] {
            let rest = std::mem::take(state.buffer(stream));
            if !rest.is_empty() {
                state.output(stream, &rest);
            }
        }
    }

    pub(crate) fn stream(&self, stream: Stream) -> LogStream {
        LogStream {
            log: self.clone(),
            stream,
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
        if state.left == 0 {
            return;
        }
        let context = cut(context, MAX_CONTEXT);
        let allowed = usize::try_from(state.left).unwrap_or(usize::MAX);
        let message = cut(message, MAX_LINE.min(allowed));
        // At least one byte each, or empty lines would be free.
        let cost = (context.len() + message.len()).max(1) as u64;
        state.left = state.left.saturating_sub(cost);
        state.line(level, LogSource::Logging, context, message);
        state.note_cut();
    }

    fn write(&self, stream: Stream, bytes: &[u8]) {
        self.0.lock().write(stream, bytes);
    }
}

impl LogState {
    fn buffer(&mut self, stream: Stream) -> &mut Vec<u8> {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    fn write(&mut self, stream: Stream, bytes: &[u8]) {
        if self.left == 0 {
            return;
        }
        let allowed = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        self.left -= allowed as u64;
        for piece in bytes
            .get(..allowed)
            .unwrap_or_default()
            .split_inclusive(|byte| *byte == b'\n')
        {
            let mut buffer = std::mem::take(self.buffer(stream));
            for part in piece.chunks(MAX_LINE) {
                buffer.extend_from_slice(part);
                if buffer.ends_with(b"\n") || buffer.len() >= MAX_LINE {
                    self.output(stream, &buffer);
                    buffer.clear();
                }
            }
            *self.buffer(stream) = buffer;
        }
        self.note_cut();
    }

    /// Says once, when the limit is met, that nothing more will come.
    fn note_cut(&self) {
        if self.left == 0 {
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
            request_id = self.request.as_ref().map(RequestId::as_str), stream = source.as_str(),
            level = level.as_str(), "{shown}"
        );
        self.sink.write(LogLine {
            time_ms: now_ms(),
            level,
            source,
            function: self.version.function.clone(),
            version: self.version.number,
            request_id: self.request.clone(),
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
}

impl IsTerminal for LogStream {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for LogStream {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
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
        self.log.write(self.stream, &bytes);
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
        self.log.write(self.stream, bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
