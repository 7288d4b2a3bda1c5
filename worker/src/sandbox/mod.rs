//! The two kinds of sandboxes, and what running them has in common.

pub(crate) mod command;
pub(crate) mod component;

use crate::failure;
use bytes::Bytes;
use fnctl_core::body::{Body, BodyError};
use fnctl_core::{Failure, Invocation};
use http_body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

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
        Self { deadline: invocation.deadline, cancelled: invocation.cancelled.clone() }
    }
}

/// Ends a response body with an error once it is larger than its limit.
pub(crate) struct LimitedBody<B> {
    inner: B,
    left: u64,
    limit: u64,
}

impl<B> LimitedBody<B> {
    pub(crate) fn new(inner: B, limit: u64) -> Self {
        Self { inner, left: limit, limit }
    }
}

impl<B> HttpBody for LimitedBody<B>
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
        let frame = match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(BodyError::Aborted(error.to_string())))),
            Poll::Ready(Some(Ok(frame))) => frame,
        };
        let length = frame.data_ref().map_or(0, |data| data.len() as u64);
        Poll::Ready(Some(match self.left.checked_sub(length) {
            Some(left) => {
                self.left = left;
                Ok(frame)
            }
            None => Err(BodyError::TooLarge(self.limit)),
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
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
                Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(std::io::Error::other(error)))),
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => Poll::Ready(Some(Ok(data))),
                    // Trailers mean nothing to a command.
                    Err(_) => continue,
                },
            };
        }
    }
}
