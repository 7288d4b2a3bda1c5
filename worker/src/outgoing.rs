//! Outgoing HTTP of guests: denied, but for the hosts that the function's configuration names.

use std::future::Future;
use std::sync::Arc;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

/// The allow-list of one version.
#[derive(Debug, Clone)]
pub(crate) struct AllowedHosts(pub(crate) Arc<[String]>);

impl AllowedHosts {
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
        self.0.iter().any(|entry| {
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
        request: http::Request<WasiBody>,
        options: Option<RequestOptions>,
        _sent: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<dyn Future<Output = Sent> + Send> {
        if !self.allows(request.uri()) {
            return Box::new(async { Err(Error::HttpRequestDenied) });
        }
        Box::new(async move {
            let (response, io) = wasmtime_wasi_http::default_send_request(request, options).await?;
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
        let list = AllowedHosts(
            ["api.example.com", "*.internal.example", "localhost:9000"]
                .map(String::from)
                .to_vec()
                .into(),
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
