//! Outgoing HTTP of guests: denied, but for the hosts that the function's configuration names.

use fnctl_core::trace::{Step, Trace};
use http::HeaderName;
use std::future::Future;
use std::sync::Arc;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

/// W3C Trace Context, section 3.2.
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The allow-list of one version, and the trace that calls belong to.
#[derive(Debug, Clone)]
pub(crate) struct AllowedHosts {
    patterns: Arc<[String]>,
    trace: Trace,
}

impl AllowedHosts {
    pub(crate) fn new(patterns: &[String]) -> Self {
        Self {
            patterns: patterns.into(),
            trace: Trace::none(),
        }
    }

    /// From now on calls belong to this trace.
    pub(crate) fn begin(&mut self, trace: Trace) {
        self.trace = trace;
    }

    /// Whether the list lets a request to this host and port through. An entry without a port means the scheme's own.
    fn allows(&self, uri: &http::Uri) -> bool {
        let Some(host) = uri.host() else { return false };
        let host = host.to_ascii_lowercase();
        let default_port = if uri.scheme_str() == Some("http") {
            80
        } else {
            443
        };
        let port = uri.port_u16().unwrap_or(default_port);
        self.patterns.iter().any(|entry| {
            let (pattern, wanted) = match entry.rsplit_once(':') {
                Some((pattern, wanted)) => (pattern, wanted.parse().ok()),
                None => (entry.as_str(), Some(default_port)),
            };
            let host_fits = match pattern.strip_prefix("*.") {
                Some(domain) => host
                    .strip_suffix(domain)
                    .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.')),
                None => host == pattern,
            };
            host_fits && wanted == Some(port)
        })
    }
}

/// Begins the span of a call, and tells the one who is called of it, unless the guest has a trace of its own.
fn begin_call<B>(trace: &Trace, request: &mut http::Request<B>) -> Step {
    let step = trace.call("outgoing");
    step.set("http.request.method", || request.method().to_string());
    step.set("server.address", || {
        request
            .uri()
            .authority()
            .map_or_else(String::new, ToString::to_string)
    });
    let Some(own) = step.trace().traceparent() else {
        return step;
    };
    let trace_id = |text: &str| text.split('-').nth(1).map(str::to_owned);
    let given = request.headers().get(TRACEPARENT);
    let foreign = given
        .and_then(|given| trace_id(given.to_str().ok()?))
        .is_some_and(|given| Some(given) != trace_id(&own));
    if !foreign && let Ok(own) = http::HeaderValue::from_str(&own) {
        request.headers_mut().insert(TRACEPARENT, own);
    }
    step
}

type Sent = Result<
    (
        http::Response<WasiBody>,
        Box<dyn Future<Output = Result<(), Error>> + Send>,
    ),
    Error,
>;

impl WasiHttpHooks for AllowedHosts {
    fn send_request(
        &mut self,
        mut request: http::Request<WasiBody>,
        options: Option<RequestOptions>,
        _sent: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<dyn Future<Output = Sent> + Send> {
        if !self.allows(request.uri()) {
            return Box::new(async { Err(Error::HttpRequestDenied) });
        }
        let step = begin_call(&self.trace, &mut request);
        Box::new(async move {
            let sent = wasmtime_wasi_http::default_send_request(request, options).await;
            match &sent {
                Ok((response, _)) => {
                    let status = i64::from(response.status().as_u16());
                    step.set("http.response.status_code", || status);
                }
                Err(error) => step.fail(|| format!("{error:?}")),
            }
            drop(step);
            let (response, io) = sent?;
            let response = response.map(http_body_util::BodyExt::boxed_unsync);
            Ok((
                response,
                Box::new(io) as Box<dyn Future<Output = Result<(), Error>> + Send>,
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_named_hosts_and_ports_are_allowed() {
        let list = AllowedHosts::new(
            &["api.example.com", "*.internal.example", "localhost:9000"].map(String::from),
        );
        for yes in [
            "https://api.example.com/v1",
            "http://api.example.com/",
            "https://API.example.com/",
            "https://a.internal.example/",
            "https://a.b.internal.example/",
            "http://localhost:9000/x",
        ] {
            assert!(list.allows(&yes.parse().unwrap()), "{yes}");
        }
        for no in [
            "https://api.example.com:8443/",
            "https://evil-api.example.com/",
            "https://api.example.com.evil.org/",
            "https://internal.example/",
            "https://xinternal.example/",
            "http://localhost/",
            "http://127.0.0.1:9000/",
            "/relative",
        ] {
            assert!(!list.allows(&no.parse().unwrap()), "{no}");
        }
    }
}
