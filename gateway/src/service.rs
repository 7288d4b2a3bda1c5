//! From a request's head to its response: id, routing, identity; the work is done in `invoke` and `api`.

use crate::Shared;
use crate::access::{self, AccessLine};
use crate::router::{self, Route, RouteError};
use crate::{api, identity, invoke, metrics, respond, trace};
use fnctl_core::invocation::StartKind;
use fnctl_core::trace::Step;
use fnctl_core::{Body, ErrorKind, Failure, FunctionName, RequestId, VersionNumber};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::time::Instant;

/// What is known of a request besides itself.
pub(crate) struct Context {
    pub(crate) peer: SocketAddr,
    pub(crate) request_id: RequestId,
    pub(crate) received: Instant,
    /// The root span of an invocation that is recorded.
    pub(crate) root: Step,
}

/// A response, and what its log line says of it.
pub(crate) struct Answer {
    pub(crate) response: Response<Body>,
    pub(crate) route: &'static str,
    pub(crate) function: Option<(FunctionName, VersionNumber)>,
    pub(crate) start: Option<StartKind>,
    pub(crate) code: Option<&'static str>,
}

impl Answer {
    pub(crate) fn new(route: &'static str, response: Response<Body>) -> Self {
        Self {
            response,
            route,
            function: None,
            start: None,
            code: None,
        }
    }

    pub(crate) fn failed(route: &'static str, failure: &Failure, request_id: &RequestId) -> Self {
        let response = respond::failure(failure, request_id);
        Self {
            code: Some(failure.kind.code()),
            ..Self::new(route, response)
        }
    }
}

pub(crate) async fn handle_request(
    shared: Arc<Shared>,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let request_id = request_id(request.headers(), shared.seed);
    let root = trace::begin(
        &shared,
        request.method(),
        request.uri().path(),
        request.headers(),
    );
    let context = Context {
        peer,
        request_id,
        received: Instant::now(),
        root,
    };
    let method = request.method().clone();
    let traceparent = traceparent(request.headers());
    let answer = dispatch(&shared, &context, request).await;
    trace::note(&context.root, &context, &answer);
    let mut response = answer.response;
    respond::with_request_id(&mut response, &context.request_id);
    shared.metrics.answered(answer.route, response.status());
    let line = AccessLine {
        method,
        function: answer.function,
        request_id: context.request_id,
        traceparent,
        status: response.status(),
        start: answer.start,
        code: answer.code,
        received: context.received,
        respond: context.root.trace().step("respond"),
        root: context.root,
    };
    Ok(access::logged(response, line))
}

async fn dispatch(shared: &Arc<Shared>, context: &Context, request: Request<Incoming>) -> Answer {
    // Copied, because the request moves on while the route borrows from its path.
    let path = request.uri().path().to_owned();
    let only_get = |answer: Answer| {
        if matches!(*request.method(), Method::GET | Method::HEAD) {
            answer
        } else {
            let failure = Failure::new(ErrorKind::MethodNotAllowed, "this path answers GET only");
            Answer::failed("other", &failure, &context.request_id)
        }
    };
    match router::route(&path) {
        Ok(Route::Invoke {
            function,
            selector,
            rest,
        }) => invoke::invoke(shared, context, function, selector, rest, request).await,
        Ok(Route::Api(route)) => match identity::admin(
            &shared.config,
            context.peer.ip(),
            request.uri().authority().map(http::uri::Authority::as_str),
            request.headers(),
        ) {
            Ok(()) => api::handle(shared, context, route, request).await,
            Err(failure) => Answer::failed("api", &failure, &context.request_id),
        },
        Ok(Route::Healthz) => only_get(Answer::new(
            "other",
            respond::text(StatusCode::OK, "text/plain", "ok\n"),
        )),
        Ok(Route::Readyz) => only_get(readyz(shared)),
        Ok(Route::Metrics) => only_get(render_metrics(shared, context)),
        Ok(Route::Root) => only_get(Answer::new(
            "other",
            respond::text(StatusCode::OK, "text/plain; charset=utf-8", WELCOME),
        )),
        Err(RouteError::Unknown) => {
            let failure = Failure::new(
                ErrorKind::NotFound,
                "no such path; functions are invoked at /fn/{name}",
            );
            Answer::failed("other", &failure, &context.request_id)
        }
        Err(RouteError::Name(error)) => {
            let failure = Failure::new(ErrorKind::BadRequest, error.to_string());
            Answer::failed("other", &failure, &context.request_id)
        }
    }
}

const WELCOME: &str = "fnctl: functions are invoked at /fn/{name}, health is at /healthz and /readyz, metrics at /metrics\n";

fn readyz(shared: &Shared) -> Answer {
    let response = if shared.draining.load(Ordering::SeqCst) {
        respond::text(StatusCode::SERVICE_UNAVAILABLE, "text/plain", "draining\n")
    } else if !shared.ready.is_set() {
        respond::text(
            StatusCode::SERVICE_UNAVAILABLE,
            "text/plain",
            "starting: provisioned instances are on their way\n",
        )
    } else {
        respond::text(StatusCode::OK, "text/plain", "ready\n")
    };
    Answer::new("other", response)
}

fn render_metrics(shared: &Shared, context: &Context) -> Answer {
    match metrics::render(&shared.backend.registry) {
        Ok(text) => Answer::new(
            "other",
            respond::text(StatusCode::OK, "text/plain; version=0.0.4", text),
        ),
        Err(error) => Answer::failed("other", &Failure::internal(error), &context.request_id),
    }
}

/// The caller's id, if it is harmless, or a new one.
fn request_id(headers: &HeaderMap, seed: u64) -> RequestId {
    headers
        .get(respond::REQUEST_ID)
        .and_then(|value| RequestId::from_caller(value.to_str().ok()?))
        .unwrap_or_else(|| RequestId::generate(seed))
}

/// A well-formed W3C `traceparent`, for the log.
fn traceparent(headers: &HeaderMap) -> Option<String> {
    let text = headers.get("traceparent")?.to_str().ok()?;
    let well_formed = (55..=128).contains(&text.len())
        && text
            .bytes()
            .all(|b| b == b'-' || b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    well_formed.then(|| text.to_owned())
}
