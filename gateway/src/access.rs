//! The one log line of a request, written when its response has been sent or given up.
//!
//! Failures and cold starts are told at info, warm successes at debug: at 30,000 requests a second they would be the
//! platform's main work.

use bytes::Bytes;
use fnctl_core::body::{Body, BodyError};
use fnctl_core::invocation::StartKind;
use fnctl_core::trace::Step;
use fnctl_core::{FunctionName, RequestId, VersionNumber};
use http::{Method, StatusCode, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::time::Instant;

/// What the line says.
pub(crate) struct AccessLine {
    pub(crate) method: Method,
    pub(crate) function: Option<(FunctionName, VersionNumber)>,
    pub(crate) request_id: RequestId,
    pub(crate) traceparent: Option<String>,
    pub(crate) status: StatusCode,
    pub(crate) start: Option<StartKind>,
    pub(crate) code: Option<&'static str>,
    pub(crate) received: Instant,
    /// The span of the whole, and of answering: both end with the body.
    pub(crate) root: Step,
    pub(crate) respond: Step,
}

impl AccessLine {
    fn is_ordinary(&self) -> bool {
        !self.status.is_server_error() && self.start != Some(StartKind::Cold) && self.code.is_none()
    }

    fn write(&self, bytes: u64, complete: bool) {
        let ms = self.received.elapsed().as_secs_f64() * 1e3;
        let function = self
            .function
            .as_ref()
            .map(|(function, _)| function.as_str());
        let version = self.function.as_ref().map(|(_, version)| version.0);
        let start = self.start.map(StartKind::as_str);
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    target: "access", method = %self.method, function, version, request_id = %self.request_id,
                    traceparent = self.traceparent, status = self.status.as_u16(), code = self.code, start, ms, bytes,
                    complete, "request"
                )
            };
        }
        if self.is_ordinary() {
            line!(debug)
        } else {
            line!(info)
        }
    }
}

/// Ties the line to the response's body.
pub(crate) fn logged(response: http::Response<Body>, line: AccessLine) -> http::Response<Body> {
    // `enabled!` asks once for each place of the code, so the level has to be written out.
    let is_written = if line.is_ordinary() {
        tracing::enabled!(target: "access", tracing::Level::DEBUG)
    } else {
        tracing::enabled!(target: "access", tracing::Level::INFO)
    };
    if !is_written && !line.root.trace().is_sampled() {
        return response;
    }
    let length = response
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse().ok());
    response.map(|inner| {
        LoggedBody {
            inner,
            line,
            bytes: 0,
            length,
            complete: false,
        }
        .boxed_unsync()
    })
}

struct LoggedBody {
    inner: Body,
    line: AccessLine,
    bytes: u64,
    /// The declared length: a server stops reading there, although the body has not said that it ended.
    length: Option<u64>,
    complete: bool,
}

impl HttpBody for LoggedBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                self.bytes += frame.data_ref().map_or(0, |data| data.len() as u64)
            }
            Poll::Ready(None) => self.complete = true,
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

impl Drop for LoggedBody {
    fn drop(&mut self) {
        let complete =
            self.complete || self.inner.is_end_stream() || self.length == Some(self.bytes);
        self.line.write(self.bytes, complete);
        let (root, respond) = (&self.line.root, &self.line.respond);
        respond.set("http.response.body.size", || {
            i64::try_from(self.bytes).unwrap_or(i64::MAX)
        });
        if !complete {
            respond.fail(|| "the response was cut off".to_owned());
            root.fail(|| "the response was cut off".to_owned());
        }
    }
}
