//! The gateway's metrics; docs/metrics.md lists them.

use fnctl_core::ids::FunctionName;
use http::StatusCode;
use prometheus::{Encoder, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};

pub(crate) struct Metrics {
    connections: IntGauge,
    requests: IntCounterVec,
    rate_limited: IntCounterVec,
    /// The children for `fn` by class of status, looked up once: they are counted on the hot path.
    invocations: [IntCounter; 5],
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// Counts a connection for as long as it lives.
pub(crate) struct OpenConnection<'a>(&'a IntGauge);

impl Drop for OpenConnection<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

fn class(status: StatusCode) -> usize {
    (usize::from(status.as_u16()) / 100).clamp(1, 5) - 1
}

impl Metrics {
    pub(crate) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let connections = IntGauge::new("fnctl_http_connections", "Open client connections.")?;
        let requests = IntCounterVec::new(
            Opts::new(
                "fnctl_http_requests_total",
                "Requests by route (fn, api, other) and class of status.",
            ),
            &["route", "status"],
        )?;
        let rate_limited = IntCounterVec::new(
            Opts::new(
                "fnctl_rate_limited_total",
                "Invocations refused by the function's rate limit.",
            ),
            &["function"],
        )?;
        registry.register(Box::new(connections.clone()))?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(rate_limited.clone()))?;
        let invocations = CLASSES.map(|class| requests.with_label_values(&["fn", class]));
        Ok(Self {
            connections,
            requests,
            rate_limited,
            invocations,
        })
    }

    pub(crate) fn connection(&self) -> OpenConnection<'_> {
        self.connections.inc();
        OpenConnection(&self.connections)
    }

    pub(crate) fn answered(&self, route: &'static str, status: StatusCode) {
        let class = class(status);
        if route == "fn" {
            if let Some(counter) = self.invocations.get(class) {
                counter.inc();
            }
        } else if let Some(class) = CLASSES.get(class) {
            self.requests.with_label_values(&[route, class]).inc();
        }
    }

    pub(crate) fn rate_limited(&self, function: &FunctionName) {
        self.rate_limited
            .with_label_values(&[function.as_str()])
            .inc();
    }

    pub(crate) fn forget(&self, function: &FunctionName) {
        let _ = self.rate_limited.remove_label_values(&[function.as_str()]);
    }
}

/// The text that Prometheus scrapes (text format 0.0.4).
pub(crate) fn render(registry: &Registry) -> Result<Vec<u8>, prometheus::Error> {
    let mut text = Vec::new();
    TextEncoder::new().encode(&registry.gather(), &mut text)?;
    Ok(text)
}
