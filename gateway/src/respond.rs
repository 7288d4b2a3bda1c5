//! The one place where failures become responses, and phases become headers.

use fnctl_core::invocation::{ColdStart, Phase, StartKind};
use fnctl_core::{Body, ErrorKind, Failure, RequestId, VersionNumber, full};
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use serde::Serialize;
use std::fmt::Write as _;
use std::time::Duration;

pub(crate) const START: HeaderName = HeaderName::from_static("x-fnctl-start");
pub(crate) const VERSION: HeaderName = HeaderName::from_static("x-fnctl-version");
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Asks for a report of the invocation in the function's log.
pub(crate) const REPORT: HeaderName = HeaderName::from_static("x-fnctl-report");
pub(crate) const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// The status of a kind of error.
pub fn status_of(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::BadRequest | ErrorKind::InvalidConfig => StatusCode::BAD_REQUEST,
        ErrorKind::Unauthorized => StatusCode::UNAUTHORIZED,
        ErrorKind::Forbidden => StatusCode::FORBIDDEN,
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        ErrorKind::SlowClient => StatusCode::REQUEST_TIMEOUT,
        ErrorKind::Conflict => StatusCode::CONFLICT,
        ErrorKind::PayloadTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        // The client is gone; the code is for the log (nginx's convention).
        ErrorKind::Cancelled => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
        ErrorKind::InvalidArtifact | ErrorKind::InvalidModel | ErrorKind::BudgetExceeded => {
            StatusCode::UNPROCESSABLE_ENTITY
        }
        ErrorKind::RateLimited | ErrorKind::Throttled => StatusCode::TOO_MANY_REQUESTS,
        ErrorKind::StartFailed
        | ErrorKind::Trap
        | ErrorKind::OutOfMemory
        | ErrorKind::CpuExceeded
        | ErrorKind::BadResponse
        | ErrorKind::ResponseTooLarge => StatusCode::BAD_GATEWAY,
        ErrorKind::QueueTimeout
        | ErrorKind::NodeFull
        | ErrorKind::Draining
        | ErrorKind::Overloaded
        | ErrorKind::Unavailable
        | ErrorKind::Quarantined => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::Timeout | ErrorKind::StartTimeout => StatusCode::GATEWAY_TIMEOUT,
        ErrorKind::Corrupt | ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    code: &'static str,
    message: &'a str,
    request_id: &'a str,
}

/// The response to a failure.
pub(crate) fn failure(failure: &Failure, request_id: &RequestId) -> Response<Body> {
    let body = ErrorBody {
        code: failure.kind.code(),
        message: &failure.message,
        request_id: request_id.as_str(),
    };
    let mut response = json(status_of(failure.kind), &body);
    if let Some(after) = failure.retry_after {
        // Whole seconds, at least one: 0 would ask for a retry at once.
        let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
    }
    if failure.kind == ErrorKind::Unauthorized {
        response
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// A JSON response.
pub(crate) fn json<T: Serialize>(status: StatusCode, value: &T) -> Response<Body> {
    // Everything serialised here has string keys and no failing field.
    let mut bytes = serde_json::to_vec(value).unwrap_or_else(|_| b"{}".to_vec());
    bytes.push(b'\n');
    let mut response = Response::new(full(bytes));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
}

/// A plain text response.
pub(crate) fn text(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<bytes::Bytes>,
) -> Response<Body> {
    let mut response = Response::new(full(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Adds the id of the request.
pub(crate) fn with_request_id(response: &mut Response<Body>, request_id: &RequestId) {
    if let Ok(value) = HeaderValue::from_str(request_id.as_str()) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
}

/// Adds how an invocation was started and what it took.
pub(crate) fn with_anatomy(
    response: &mut Response<Body>,
    version: VersionNumber,
    start: Option<StartKind>,
    phases: &ColdStart,
    run: Option<Duration>,
) {
    let headers = response.headers_mut();
    headers.insert(VERSION, HeaderValue::from(version.0));
    if let Some(start) = start {
        headers.insert(START, HeaderValue::from_static(start.as_str()));
    }
    if let Ok(value) = HeaderValue::from_str(&server_timing(phases, run)) {
        headers.insert(SERVER_TIMING, value);
    }
}

/// The `Server-Timing` value (W3C Server Timing): every phase in order, in milliseconds.
fn server_timing(phases: &ColdStart, run: Option<Duration>) -> String {
    let mut value = String::with_capacity(192);
    let mut entry = |name: &str, took: Duration| {
        let separator = if value.is_empty() { "" } else { ", " };
        value.push_str(separator);
        value.push_str(name);
        let micros = took.as_micros();
        if micros == 0 {
            // Most phases of most requests: nothing to format.
            value.push_str(";dur=0.000");
        } else {
            // Writing to a String does not fail.
            let _ = write!(value, ";dur={}.{:03}", micros / 1000, micros % 1000);
        }
    };
    for phase in Phase::ALL {
        entry(phase.as_str(), phases.get(phase));
    }
    if let Some(run) = run {
        entry("run", run);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use fnctl_core::Fault;

    #[test]
    fn every_kind_has_a_status_that_fits_its_fault() {
        for kind in ErrorKind::ALL {
            let status = status_of(*kind);
            match kind.fault() {
                Fault::Caller => assert!(status.is_client_error(), "{kind}"),
                Fault::Platform => assert!(status.is_server_error(), "{kind}"),
                Fault::Guest => assert!(
                    status.is_server_error() || status == StatusCode::UNPROCESSABLE_ENTITY,
                    "{kind}"
                ),
            }
        }
    }

    #[test]
    fn the_phases_are_told_in_milliseconds_and_in_order() {
        let phases = ColdStart {
            queue: Duration::from_micros(12),
            model: Duration::from_millis(3),
            ..ColdStart::default()
        };
        assert_eq!(
            server_timing(&phases, Some(Duration::from_micros(1500))),
            "queue;dur=0.012, artifact;dur=0.000, compile;dur=0.000, instantiate;dur=0.000, model;dur=3.000, init;dur=0.000, run;dur=1.500"
        );
    }

    #[test]
    fn retry_after_is_rounded_up_to_a_whole_second() {
        let throttled =
            Failure::new(ErrorKind::Throttled, "x").retry_after(Duration::from_millis(1200));
        let response = failure(&throttled, &RequestId::generate(0));
        assert_eq!(response.headers()[header::RETRY_AFTER], "2");
        assert_eq!(response.status(), 429);
    }
}
