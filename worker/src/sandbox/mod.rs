//! The two kinds of sandboxes, and what running them has in common.

mod cgi;
pub(crate) mod command;
pub(crate) mod component;
mod crew;
mod p2;
mod p3;
mod shared;

use crate::failure;
use bytes::Bytes;
use fnctl_core::body::{Body, BodyError};
use fnctl_core::{Failure, Invocation, ReplySender};
use futures::task::AtomicWaker;
use http_body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Why a guest was stopped from outside.
pub(crate) enum Stopped {
    Deadline,
    Cancelled,
}

/// Runs a guest until it returns, its deadline passes, or nobody waits any more. Dropping the guest's future is what
/// stops it: a spinning guest yields at every epoch tick, so the drop happens within one.
pub(crate) async fn bounded<T>(
    guest: impl Future<Output = T>,
    deadline: Instant,
    cancelled: &CancellationToken,
) -> Result<T, Stopped> {
    tokio::select! {
        biased;
        done = guest => Ok(done),
        () = cancelled.cancelled() => Err(Stopped::Cancelled),
        () = tokio::time::sleep_until(deadline) => Err(Stopped::Deadline),
    }
}

impl Stopped {
    pub(crate) fn failure(&self, invocation_timeout: std::time::Duration) -> Failure {
        match self {
            Self::Deadline => failure::timeout(invocation_timeout),
            Self::Cancelled => failure::cancelled(),
        }
    }
}

/// What a run keeps of its invocation after the request moved into the guest.
pub(crate) struct RunBounds {
    pub(crate) deadline: Instant,
    pub(crate) cancelled: CancellationToken,
}

impl RunBounds {
    pub(crate) fn of(invocation: &Invocation) -> Self {
        Self {
            deadline: invocation.deadline,
            cancelled: invocation.cancelled.clone(),
        }
    }
}

/// What a run and the response body it produces must know of each other, since the body outlives neither and is read
/// by somebody else.
#[derive(Debug, Clone, Default)]
pub(crate) struct BodyFate(Arc<Fate>);

#[derive(Debug, Default)]
struct Fate {
    flags: AtomicU8,
    /// Whoever reads the body and has nothing to read.
    reader: AtomicWaker,
}

const RUN_ENDED: u8 = 1;
const RUN_FAILED: u8 = 2;
const TOO_LARGE: u8 = 4;

impl BodyFate {
    /// The guest returned: what it has not written by now does not come.
    pub(crate) fn run_ended(&self) {
        self.set(RUN_ENDED);
        self.0.reader.wake();
    }

    /// The guest failed: a body that ends now was cut off, whatever it looks like.
    pub(crate) fn run_failed(&self) {
        self.set(RUN_FAILED);
        self.run_ended();
    }

    /// Tells the body's reader how the run ended, and the caller, if there is no answer yet, that it failed.
    pub(super) fn settle(&self, outcome: &Result<(), Failure>, reply: &ReplySender) {
        match outcome {
            Ok(()) => self.run_ended(),
            Err(failure) => {
                self.run_failed();
                reply.send(Err(failure.clone()));
            }
        }
    }

    fn set(&self, flag: u8) {
        self.0.flags.fetch_or(flag, Ordering::SeqCst);
    }

    fn has(&self, flag: u8) -> bool {
        self.0.flags.load(Ordering::SeqCst) & flag != 0
    }

    /// Whether the body was ended because of its size.
    pub(crate) fn was_too_large(&self) -> bool {
        self.has(TOO_LARGE)
    }
}

/// A guest's response body: ends with an error once it is larger than its limit, or when its guest has returned or
/// failed without finishing it. No wait of its own: the run that writes it is bounded.
///
/// The error comes one poll after what precedes it. A server drops what it has buffered when a body fails, and without
/// a turn to flush that would be the response's head: the caller would see a connection that closed without an answer.
pub(crate) struct GuestBody<B> {
    inner: B,
    left: u64,
    limit: u64,
    fate: BodyFate,
    /// How the body ended early; told with the next poll.
    broken: Option<BodyError>,
    /// Tells whoever waits for it that the body is gone, read or not.
    _gone: Option<DropGuard>,
}

impl<B> GuestBody<B> {
    pub(crate) fn new(inner: B, limit: u64, fate: BodyFate, gone: Option<DropGuard>) -> Self {
        Self {
            inner,
            left: limit,
            limit,
            fate,
            broken: None,
            _gone: gone,
        }
    }
}

impl<B> GuestBody<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    /// The next frame, or the error that ends the body.
    fn poll_inner(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let aborted = |why: &str| Poll::Ready(Some(Err(BodyError::Aborted(why.to_owned()))));
        let mut polled = Pin::new(&mut self.inner).poll_frame(cx);
        if polled.is_pending() {
            self.fate.0.reader.register(cx.waker());
            if !self.fate.has(RUN_ENDED) {
                return Poll::Pending;
            }
            // What was written before the guest returned is there by now.
            polled = Pin::new(&mut self.inner).poll_frame(cx);
        }
        let frame = match polled {
            Poll::Pending => return aborted("the function returned without finishing its body"),
            Poll::Ready(None) if self.fate.has(RUN_FAILED) => {
                return aborted("the function failed");
            }
            // What is left of the length that the guest declared.
            Poll::Ready(None) if self.inner.size_hint().lower() > 0 => {
                return aborted("the body is shorter than its content-length");
            }
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Ready(Some(Err(error))) => return aborted(&error.to_string()),
            Poll::Ready(Some(Ok(frame))) => frame,
        };
        let length = frame.data_ref().map_or(0, |data| data.len() as u64);
        Poll::Ready(Some(match self.left.checked_sub(length) {
            Some(left) => {
                self.left = left;
                Ok(frame)
            }
            None => {
                self.fate.set(TOO_LARGE);
                Err(BodyError::TooLarge(self.limit))
            }
        }))
    }
}

impl<B> HttpBody for GuestBody<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if let Some(error) = this.broken.take() {
            return Poll::Ready(Some(Err(error)));
        }
        match this.poll_inner(cx) {
            Poll::Ready(Some(Err(error))) => {
                this.broken = Some(error);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            polled => polled,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.broken.is_none() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Makes a body `Sync`, which WASI asks of a stdin: access is exclusive anyway.
pub(crate) struct SyncBody(Mutex<Body>);

impl SyncBody {
    pub(crate) fn new(body: Body) -> Self {
        Self(Mutex::new(body))
    }
}

impl futures::Stream for SyncBody {
    type Item = Result<Bytes, std::io::Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let body = self.0.get_mut();
        loop {
            return match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(None) => Poll::Ready(None),
                Poll::Ready(Some(Err(error))) => {
                    Poll::Ready(Some(Err(std::io::Error::other(error))))
                }
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => Poll::Ready(Some(Ok(data))),
                    // Trailers mean nothing to a command.
                    Err(_) => continue,
                },
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::task::noop_waker_ref;
    use http_body_util::StreamBody;

    type Piece = Result<Frame<Bytes>, std::io::Error>;

    fn body_of(pieces: Vec<Piece>) -> impl HttpBody<Data = Bytes, Error = BodyError> + Unpin {
        let inner = StreamBody::new(futures::stream::iter(pieces));
        GuestBody::new(inner, 4, BodyFate::default(), None)
    }

    #[test]
    fn a_body_that_breaks_off_leaves_a_turn_to_flush_what_came_before() {
        let piece = |bytes: &'static [u8]| Ok(Frame::data(Bytes::from_static(bytes)));
        let broken = Err(std::io::Error::other("broken"));
        for last in [broken, piece(b"345")] {
            let mut body = body_of(vec![piece(b"12"), last]);
            let mut poll =
                || Pin::new(&mut body).poll_frame(&mut Context::from_waker(noop_waker_ref()));
            assert!(matches!(poll(), Poll::Ready(Some(Ok(_)))));
            assert!(poll().is_pending());
            assert!(matches!(poll(), Poll::Ready(Some(Err(_)))));
        }
    }
}
