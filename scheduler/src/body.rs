//! Cancels an invocation whose caller went away, until its answer has been read to the end.

use bytes::Bytes;
use fnctl_core::body::{Body, BodyError};
use http::{StatusCode, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio_util::sync::CancellationToken;

/// Cancels when dropped, unless disarmed.
pub(crate) struct CancelGuard(Option<CancellationToken>);

impl CancelGuard {
    pub(crate) fn new(token: CancellationToken) -> Self {
        Self(Some(token))
    }

    pub(crate) fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for CancelGuard {
    fn drop(&mut self) {
        if let Some(token) = &self.0 {
            token.cancel();
        }
    }
}

/// Ties the guard to the response's body: dropping an unread rest cancels, reading all of it does not.
pub(crate) fn guarded(
    response: http::Response<Body>,
    guard: CancelGuard,
    is_head: bool,
) -> http::Response<Body> {
    let bodiless = is_head
        || matches!(
            response.status(),
            StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
        );
    let length = response
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse().ok());
    if bodiless || length == Some(0) || response.body().is_end_stream() {
        // Nobody will read a body, so not reading it means nothing.
        guard.disarm();
        return response;
    }
    response.map(|inner| {
        GuardedBody {
            inner,
            guard: Some(guard),
            left: length,
        }
        .boxed_unsync()
    })
}

struct GuardedBody {
    /// Dropped first: whoever sees that the body is gone sees why.
    guard: Option<CancelGuard>,
    inner: Body,
    /// Bytes of the declared length that have not been read: at zero a server stops reading, although the body has not
    /// said that it ended.
    left: Option<u64>,
}

impl GuardedBody {
    fn finish(&mut self) {
        if let Some(guard) = self.guard.take() {
            guard.disarm();
        }
    }
}

impl HttpBody for GuardedBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        match &polled {
            Poll::Ready(None) => self.finish(),
            Poll::Ready(Some(Ok(frame))) => {
                let read = frame.data_ref().map_or(0, |data| data.len() as u64);
                if let Some(left) = &mut self.left {
                    *left = left.saturating_sub(read);
                }
                if self.left == Some(0) || self.inner.is_end_stream() {
                    self.finish();
                }
            }
            Poll::Ready(Some(Err(_))) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
