//! The trace that an invocation belongs to, if it is a sampled one: the steps of its life become spans.
//!
//! Most invocations are not sampled, and for them every call here is one comparison. Words and attributes follow the
//! OpenTelemetry semantic conventions for FaaS and HTTP where they have one.

use opentelemetry::trace::{
    Span as _, SpanContext, SpanKind, Status, TraceContextExt as _, TraceFlags, Tracer as _,
};
use opentelemetry::{Array, Context, KeyValue, StringValue, Value};
use std::sync::Arc;
use std::time::SystemTime;
use tokio::time::Instant;

/// Where the spans of sampled invocations go. The composition root makes it.
pub type Tracer = opentelemetry::global::BoxedTracer;

/// The place of something in a trace, or nowhere.
#[derive(Clone, Default)]
pub struct Trace(Option<Arc<Sampled>>);

struct Sampled {
    tracer: Arc<Tracer>,
    /// Holds the span that is the parent of what begins here.
    context: Context,
}

impl std::fmt::Debug for Trace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Trace").field(&self.traceparent()).finish()
    }
}

impl Trace {
    /// No trace: the invocation is not sampled.
    pub const fn none() -> Self {
        Self(None)
    }

    /// Begins the root span of an invocation, below the caller's span if there is one.
    pub fn begin(tracer: &Arc<Tracer>, name: &'static str, caller: Option<SpanContext>) -> Step {
        let parent = match caller {
            Some(caller) => Context::new().with_remote_span_context(caller),
            None => Context::new(),
        };
        let builder = tracer
            .span_builder(name)
            .with_kind(SpanKind::Server)
            .with_start_time(SystemTime::now());
        let span = builder.start_with_context(tracer.as_ref(), &parent);
        Step(Self(Some(Arc::new(Sampled {
            tracer: tracer.clone(),
            context: parent.with_span(span),
        }))))
    }

    /// Whether anybody records this.
    pub const fn is_sampled(&self) -> bool {
        self.0.is_some()
    }

    /// Begins a step of it.
    pub fn step(&self, name: &'static str) -> Step {
        self.start(name, SpanKind::Internal)
    }

    /// Begins a call to somebody else.
    pub fn call(&self, name: &'static str) -> Step {
        self.start(name, SpanKind::Client)
    }

    fn start(&self, name: &'static str, kind: SpanKind) -> Step {
        let Some(sampled) = &self.0 else {
            return Step(Self::none());
        };
        let builder = sampled.tracer.span_builder(name).with_kind(kind);
        let span = builder.start_with_context(sampled.tracer.as_ref(), &sampled.context);
        Step(Self(Some(Arc::new(Sampled {
            tracer: sampled.tracer.clone(),
            context: sampled.context.with_span(span),
        }))))
    }

    /// Records a step that was measured before anybody knew whose trace it belongs to.
    pub fn record(&self, name: &'static str, from: Instant, to: Instant) {
        let Some(sampled) = &self.0 else { return };
        let (now, clock) = (Instant::now(), SystemTime::now());
        let at = |instant: Instant| {
            clock
                .checked_sub(now.saturating_duration_since(instant))
                .unwrap_or(clock)
        };
        let builder = sampled.tracer.span_builder(name).with_start_time(at(from));
        let mut span = builder.start_with_context(sampled.tracer.as_ref(), &sampled.context);
        span.end_with_timestamp(at(to));
    }

    /// The W3C `traceparent` of this place, for whoever is called from here.
    pub fn traceparent(&self) -> Option<String> {
        let context = self.0.as_ref()?.context.span().span_context().clone();
        Some(format!(
            "00-{}-{}-{:02x}",
            context.trace_id(),
            context.span_id(),
            context.trace_flags().to_u8()
        ))
    }
}

/// A running step of a trace. Its span ends when it is dropped.
#[derive(Debug)]
pub struct Step(Trace);

impl Step {
    /// A step that nobody records.
    pub const fn none() -> Self {
        Self(Trace::none())
    }

    /// What happens within this step belongs here.
    pub const fn trace(&self) -> &Trace {
        &self.0
    }

    /// Notes a fact; `value` is asked for only if somebody records it.
    pub fn set<V: Into<Value>>(&self, key: &'static str, value: impl FnOnce() -> V) {
        if let Some(sampled) = &self.0.0 {
            let span = sampled.context.span();
            span.set_attribute(KeyValue::new(key, value()));
        }
    }

    /// Notes a list of words.
    pub fn set_words(&self, key: &'static str, words: impl Iterator<Item = String>) {
        self.set(key, || {
            Value::Array(Array::String(words.map(StringValue::from).collect()))
        });
    }

    /// Marks the step as failed.
    pub fn fail(&self, why: impl FnOnce() -> String) {
        if let Some(sampled) = &self.0.0 {
            sampled.context.span().set_status(Status::error(why()));
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(sampled) = &self.0.0 {
            sampled.context.span().end();
        }
    }
}

/// Reads a W3C `traceparent` (Trace Context, section 3.2). A malformed one is no one.
pub fn parse_traceparent(text: &str) -> Option<SpanContext> {
    let mut parts = text.split('-');
    let (version, trace, span, flags) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hex = |text: &str, length: usize| {
        text.len() == length
            && text
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    // Version 00 has exactly four parts; a later one may have more (section 3.2.4).
    let fits = hex(version, 2) && version != "ff" && (version != "00" || parts.next().is_none());
    if !fits || text.len() > 128 || !hex(trace, 32) || !hex(span, 16) || !hex(flags, 2) {
        return None;
    }
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED;
    let context = SpanContext::new(
        opentelemetry::TraceId::from_hex(trace).ok()?,
        opentelemetry::SpanId::from_hex(span).ok()?,
        flags,
        true,
        Default::default(),
    );
    context.is_valid().then_some(context)
}

/// Decides whether an invocation is recorded. A caller that records its own part is followed, if `follow` says so;
/// otherwise a share of `ratio` is, chosen by `draw`, which is spread evenly over all values.
pub fn is_sampled(caller: Option<&SpanContext>, follow: bool, ratio: f64, draw: u64) -> bool {
    if follow && let Some(caller) = caller {
        return caller.is_sampled();
    }
    // 53 bits, as many as an f64 holds exactly.
    (draw >> 11) as f64 / (1u64 << 53) as f64 <= ratio && ratio > 0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALLER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_is_read_as_the_standard_says() {
        let context = parse_traceparent(CALLER).unwrap();
        assert_eq!(
            context.trace_id().to_string(),
            "4bf92f3577b34da6a3ce929d0e0e4736"
        );
        assert!(context.is_sampled() && context.is_remote());
        let later = format!("cc{}-what-the-future-adds", &CALLER[2..]);
        assert!(parse_traceparent(&later).is_some());
        for bad in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473ä-00f067aa0ba902b7-01",
        ] {
            assert!(parse_traceparent(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn the_caller_decides_if_followed_and_else_the_draw() {
        let yes = parse_traceparent(CALLER).unwrap();
        let no = parse_traceparent(&CALLER.replace("-01", "-00")).unwrap();
        assert!(is_sampled(Some(&yes), true, 0.0, 0));
        assert!(!is_sampled(Some(&no), true, 1.0, 0));
        assert!(!is_sampled(Some(&yes), false, 0.0, 0));
        assert!(is_sampled(Some(&no), false, 1.0, u64::MAX));
        assert!(!is_sampled(None, true, 0.0, 0));
        assert!(is_sampled(None, true, 0.01, u64::MAX / 101));
        assert!(!is_sampled(None, true, 0.01, u64::MAX / 99));
    }

    #[test]
    fn nothing_is_recorded_of_what_is_not_sampled() {
        let trace = Trace::none();
        let step = trace.step("run");
        step.set("key", || -> i64 { unreachable!("nobody records it") });
        assert!(!step.trace().is_sampled());
        assert_eq!(step.trace().traceparent(), None);
    }
}
