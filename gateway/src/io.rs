//! A stream that gives up on a client which does not read.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// What a client of HTTP/2 begins with (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Ends a connection on which a write makes no progress for too long, or which does not say in time what it speaks.
pub(crate) struct StallTimeout<S> {
    stream: S,
    /// How much of the preface has been read, until it is known whether it is one. The server waits for that without a
    /// limit of its own.
    greeting: Option<usize>,
    greeted_by: Pin<Box<Sleep>>,
    limit: Duration,
    /// Made with the first write that has to wait: most connections never need one.
    stalled: Option<Pin<Box<Sleep>>>,
    waiting: bool,
}

impl<S> StallTimeout<S> {
    pub(crate) fn new(stream: S, greeting: Duration, limit: Duration) -> Self {
        Self {
            stream,
            greeting: Some(0),
            greeted_by: Box::pin(sleep(greeting)),
            limit,
            stalled: None,
            waiting: false,
        }
    }

    /// Takes note of the first bytes that came in.
    fn greeted(&mut self, bytes: &[u8]) {
        let Some(known) = self.greeting else { return };
        let expected = PREFACE.get(known..).unwrap_or_default();
        let same = bytes
            .iter()
            .zip(expected)
            .take_while(|(a, b)| a == b)
            .count();
        let undecided = same == bytes.len() && same < expected.len();
        self.greeting = undecided.then_some(known + same);
    }

    fn watch<T>(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.waiting = false;
            return polled;
        }
        let limit = self.limit;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(limit)));
        if !self.waiting {
            self.waiting = true;
            stalled.as_mut().reset(Instant::now() + limit);
        }
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the client does not read",
        )))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for StallTimeout<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if self.greeting.is_some() {
            match &polled {
                Poll::Ready(Ok(())) => {
                    self.greeted(buffer.filled().get(before..).unwrap_or_default())
                }
                Poll::Ready(Err(_)) => {}
                Poll::Pending => {
                    ready!(self.greeted_by.as_mut().poll(cx));
                    return Poll::Ready(Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        "the client says nothing",
                    )));
                }
            }
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for StallTimeout<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watch(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.watch(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        self.watch(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.watch(cx, polled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_is_given_up() {
        let (near, _far) = tokio::io::duplex(16);
        let mut stream = StallTimeout::new(near, Duration::from_secs(9), Duration::from_secs(5));
        let since = Instant::now();
        let error = stream.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(since.elapsed().as_secs(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_says_nothing_or_half_a_preface_is_given_up() {
        for said in [&b""[..], b"P", b"PRI * HTTP/2.0"] {
            let (near, mut far) = tokio::io::duplex(64);
            far.write_all(said).await.unwrap();
            let mut stream =
                StallTimeout::new(near, Duration::from_secs(3), Duration::from_secs(60));
            let error = stream.read_to_end(&mut Vec::new()).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        }
        for said in [&b"GET / HTTP/1.1"[..], PREFACE] {
            let (near, mut far) = tokio::io::duplex(64);
            far.write_all(said).await.unwrap();
            let mut stream =
                StallTimeout::new(near, Duration::from_secs(3), Duration::from_secs(60));
            let read =
                tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut Vec::new()))
                    .await;
            assert!(read.is_err(), "the server's own limits apply from here on");
        }
    }
}
