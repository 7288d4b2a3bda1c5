//! The root of an invocation's trace: whether it is recorded, and what its span says.

use crate::Shared;
use crate::service::{Answer, Context};
use fnctl_core::ids::next_draw;
use fnctl_core::invocation::StartKind;
use fnctl_core::trace::{self, Step, Trace, Tracer};
use http::{HeaderMap, HeaderName, Method};
use std::sync::Arc;

/// W3C Trace Context, section 3.2.
pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Most characters of a path on a span.
const MAX_PATH: usize = 256;

/// Which invocations are recorded, and by whom. None are without it.
#[derive(Clone)]
pub struct Tracing {
    /// Makes the spans.
    pub tracer: Arc<Tracer>,
    /// Share of invocations that are recorded, from 0 to 1.
    pub ratio: f64,
    /// Whether a caller's own decision, in its `traceparent`, is followed.
    pub follow_caller: bool,
}

impl std::fmt::Debug for Tracing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tracing")
            .field("ratio", &self.ratio)
            .field("follow_caller", &self.follow_caller)
            .finish_non_exhaustive()
    }
}

/// Begins the span of an invocation, if it is to be recorded.
pub(crate) fn begin(shared: &Shared, method: &Method, path: &str, headers: &HeaderMap) -> Step {
    let Some(tracing) = &shared.backend.tracing else {
        return Step::none();
    };
    if !path.starts_with("/fn/") {
        return Step::none();
    }
    let caller = headers
        .get(TRACEPARENT)
        .and_then(|value| trace::parse_traceparent(value.to_str().ok()?));
    // Not the request's id: a caller may choose that, and the choice between an alias's two versions hangs on it.
    let draw = next_draw(shared.seed);
    if !trace::is_sampled(caller.as_ref(), tracing.follow_caller, tracing.ratio, draw) {
        return Step::none();
    }
    let root = Trace::begin(&tracing.tracer, "invoke", caller);
    root.set("http.request.method", || method.to_string());
    root.set("url.path", || {
        path.chars().take(MAX_PATH).collect::<String>()
    });
    root.set("faas.trigger", || "http");
    root
}

/// Puts what came of the invocation on its span.
pub(crate) fn note(root: &Step, context: &Context, answer: &Answer) {
    if !root.trace().is_sampled() {
        return;
    }
    let status = answer.response.status();
    root.set("http.response.status_code", || i64::from(status.as_u16()));
    root.set("faas.invocation_id", || context.request_id.to_string());
    if let Some((function, version)) = &answer.function {
        root.set("faas.name", || function.to_string());
        root.set("faas.version", || version.to_string());
    }
    if let Some(start) = answer.start {
        root.set("faas.coldstart", || start == StartKind::Cold);
        root.set("fnctl.start", || start.as_str());
    }
    if let Some(code) = answer.code {
        root.set("error.type", || code);
    }
    if status.is_server_error() {
        root.fail(|| answer.code.unwrap_or("5xx").to_owned());
    }
}
