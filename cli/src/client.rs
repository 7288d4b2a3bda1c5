//! The admin API and invocations, as the commands use them.

use crate::target::{Origin, Secret, Target};
use anyhow::Context;
use fnctl_core::ErrorKind as Kind;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::io::{Cursor, ErrorKind, Read};
use std::time::Duration;
use ureq::http::{HeaderMap, Request, Response};
use ureq::tls::{PemItem, RootCerts, TlsConfig};
use ureq::{Agent, Body, SendBody};

/// Most time that a suggestion may take.
const SUGGESTION: Duration = Duration::from_secs(2);
/// Most time until a stream begins.
const STREAM_BEGINS: Duration = Duration::from_secs(30);
/// Most bytes of an error's body that are read.
const MAX_ERROR: u64 = 1 << 20;

/// A request that did not succeed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// Nobody listens there, or not as the address says.
    #[error("no platform answers at {server}: {cause}")]
    Unreachable { server: String, cause: String },
    /// The platform said no.
    #[error("{}", .0.message)]
    Refused(Box<Refusal>),
    /// The function itself answered with an error.
    #[error("the function answered with status {status}")]
    FunctionAnswered {
        status: u16,
        function: Option<String>,
        request_id: Option<String>,
        body: Vec<u8>,
    },
    /// Something else answered.
    #[error("{server} answered with status {status}, but not as fnctl does")]
    NotFnctl { server: String, status: u16 },
}

/// An error as the platform tells it.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    pub(crate) code: String,
    /// The code's kind, if this fnctl knows it.
    pub(crate) kind: Option<Kind>,
    pub(crate) message: String,
    pub(crate) request_id: String,
    /// Seconds, from `Retry-After`.
    pub(crate) retry_after: Option<u64>,
    /// What was asked about.
    pub(crate) subject: Option<Subject>,
}

/// The function, and the version or alias, that a request names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Subject {
    pub(crate) function: String,
    pub(crate) selector: Option<String>,
}

impl Subject {
    /// Of a path under `/api/v1/`.
    fn of_api(path: &str) -> Option<Self> {
        let mut parts = path.split('?').next()?.split('/');
        if parts.next() != Some("functions") {
            return None;
        }
        let function = parts.next()?.to_owned();
        let selector = match parts.next() {
            Some("aliases") => parts.next().map(str::to_owned),
            _ => None,
        };
        Some(Self { function, selector })
    }

    /// Of what stands behind `/fn/`.
    fn of_target(target: &str) -> Self {
        let (function, selector) = match target.split_once(':') {
            Some((function, selector)) => (function, Some(selector.to_owned())),
            None => (target, None),
        };
        Self {
            function: function.to_owned(),
            selector,
        }
    }
}

#[derive(Deserialize)]
struct ErrorBody {
    code: String,
    message: String,
    request_id: String,
}

#[derive(Deserialize)]
struct Name {
    name: String,
}

#[derive(Deserialize)]
struct Selectors {
    versions: Vec<u64>,
    aliases: std::collections::BTreeMap<String, serde_json::Value>,
}

pub(crate) struct Client {
    agent: Agent,
    server: String,
    token: Option<Secret>,
    origin: Origin,
}

impl Client {
    pub(crate) fn new(target: &Target) -> anyhow::Result<Self> {
        let roots = match &target.ca_file {
            None => RootCerts::WebPki,
            Some(file) => {
                let pem = std::fs::read(file).with_context(|| {
                    format!("the certificates in {} cannot be read", file.display())
                })?;
                let certificates: Vec<_> = ureq::tls::parse_pem(&pem)
                    .filter_map(|item| match item {
                        Ok(PemItem::Certificate(certificate)) => Some(certificate),
                        _ => None,
                    })
                    .collect();
                anyhow::ensure!(
                    !certificates.is_empty(),
                    "{} holds no PEM certificate; it begins with -----BEGIN CERTIFICATE-----",
                    file.display()
                );
                RootCerts::from(certificates)
            }
        };
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .timeout_connect(Some(Duration::from_secs(10)))
            // A deploy may compile for a while; the platform bounds it.
            .timeout_recv_response(Some(Duration::from_secs(1000)))
            .build();
        Ok(Self {
            agent: config.new_agent(),
            server: target.server.clone(),
            token: target.token.clone(),
            origin: target.origin.clone(),
        })
    }

    /// The platform's address, without a slash at the end.
    pub(crate) fn server(&self) -> &str {
        &self.server
    }

    /// Sends a request of the admin API; a refusal is an error.
    pub(crate) fn api(
        &self,
        method: &str,
        path: &str,
        body: SendBody<'_>,
    ) -> anyhow::Result<Response<Body>> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}/api/v1/{path}", self.server));
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {}", token.reveal()));
        }
        let response = self.send(request.body(body)?)?;
        if response.status().is_success() {
            Ok(response)
        } else {
            Err(self.refused(response, Subject::of_api(path), false).into())
        }
    }

    /// Opens a stream of the admin API, which goes on until its end. Its answer begins soon.
    pub(crate) fn stream(&self, path: &str) -> anyhow::Result<Response<Body>> {
        let mut request = self
            .agent
            .get(format!("{}/api/v1/{path}", self.server))
            .config()
            .timeout_recv_response(Some(STREAM_BEGINS))
            .build();
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {}", token.reveal()));
        }
        let response = request.call().map_err(|error| self.unreachable(&error))?;
        if response.status().is_success() {
            Ok(response)
        } else {
            Err(self.refused(response, Subject::of_api(path), false).into())
        }
    }

    /// The token, to show it.
    pub(crate) fn token(&self) -> Option<&str> {
        self.token.as_ref().map(Secret::reveal)
    }

    /// The token, for an invocation that asks for more than its answer.
    pub(crate) fn authorization(&self) -> Option<(String, String)> {
        let token = self.token.as_ref()?;
        Some((
            "authorization".to_owned(),
            format!("Bearer {}", token.reveal()),
        ))
    }

    /// The functions' names, if the platform tells them soon.
    pub(crate) fn function_names(&self) -> Option<Vec<String>> {
        let functions: Vec<Name> = self.soon("functions")?;
        Some(
            functions
                .into_iter()
                .map(|function| function.name)
                .collect(),
        )
    }

    /// A function's versions and aliases, if the platform tells them soon.
    pub(crate) fn selectors(&self, function: &str) -> Option<(Vec<u64>, Vec<String>)> {
        let Selectors {
            mut versions,
            aliases,
        } = self.soon(&format!("functions/{function}"))?;
        versions.sort_unstable();
        Some((versions, aliases.into_keys().collect()))
    }

    fn soon<T: DeserializeOwned>(&self, path: &str) -> Option<T> {
        let mut request = self
            .agent
            .get(format!("{}/api/v1/{path}", self.server))
            .config()
            .timeout_global(Some(SUGGESTION))
            .build();
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {}", token.reveal()));
        }
        let mut response = request
            .call()
            .ok()
            .filter(|response| response.status().is_success())?;
        let text = response
            .body_mut()
            .with_config()
            .limit(16 << 20)
            .read_to_string()
            .ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Sends a request of the admin API that answers with JSON.
    pub(crate) fn json<T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: Option<&serde_json::Value>,
    ) -> anyhow::Result<T> {
        let bytes = body
            .map(serde_json::to_vec)
            .transpose()?
            .unwrap_or_default();
        let mut response = self.api(method, path, owned(bytes))?;
        let mut text = String::new();
        response.body_mut().as_reader().read_to_string(&mut text)?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Whether the platform has an artifact.
    pub(crate) fn has_artifact(&self, digest: &str) -> anyhow::Result<bool> {
        match self.api("GET", &format!("artifacts/{digest}"), SendBody::none()) {
            Ok(_) => Ok(true),
            Err(error) => match error.downcast_ref::<ClientError>() {
                Some(ClientError::Refused(refusal)) if refusal.status == 404 => Ok(false),
                _ => Err(error),
            },
        }
    }

    /// Invokes a function; whatever it answers is an answer.
    pub(crate) fn invoke(
        &self,
        target: &str,
        path: &str,
        method: &str,
        headers: &[(String, String)],
        body: Vec<u8>,
    ) -> anyhow::Result<Response<Body>> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}/fn/{target}{path}", self.server));
        for (name, value) in headers {
            request = request.header(name, value);
        }
        if !body.is_empty() {
            request = request.header("content-length", body.len());
        }
        self.send(request.body(owned(body))?)
    }

    /// Asks a path for at most `limit`: status, and the first bytes of the answer.
    pub(crate) fn probe(&self, path: &str, limit: Duration) -> anyhow::Result<(u16, String)> {
        let mut request = Request::builder().uri(format!("{}{path}", self.server));
        if let (true, Some(token)) = (path.starts_with("/api/"), &self.token) {
            request = request.header("authorization", format!("Bearer {}", token.reveal()));
        }
        let request = self
            .agent
            .configure_request(request.body(SendBody::none())?)
            .timeout_global(Some(limit))
            .build();
        let mut response = self.send(request)?;
        let mut start = Vec::new();
        response
            .body_mut()
            .as_reader()
            .take(1024)
            .read_to_end(&mut start)?;
        let text = String::from_utf8_lossy(&start).into_owned();
        Ok((response.status().as_u16(), text))
    }

    /// The platform's clock, if it tells it within `limit`.
    pub(crate) fn clock(&self, limit: Duration) -> Option<std::time::SystemTime> {
        let response = self
            .agent
            .get(format!("{}/healthz", self.server))
            .config()
            .timeout_global(Some(limit))
            .build()
            .call()
            .ok()?;
        let date = response.headers().get("date")?.to_str().ok()?;
        httpdate::parse_http_date(date).ok()
    }

    /// The error of an invocation that did not succeed.
    pub(crate) fn invocation_failed(&self, target: &str, response: Response<Body>) -> ClientError {
        self.refused(response, Some(Subject::of_target(target)), true)
    }

    fn send(&self, request: Request<SendBody<'_>>) -> anyhow::Result<Response<Body>> {
        self.agent.run(request).map_err(|error| match error {
            ureq::Error::Io(cause)
                if matches!(
                    cause.kind(),
                    ErrorKind::BrokenPipe
                        | ErrorKind::ConnectionReset
                        | ErrorKind::ConnectionAborted
                ) =>
            {
                anyhow::anyhow!(
                    "the platform ended the connection while it was being sent to; \
                     what is sent may be over a limit: gateway.max_artifact for a deploy, the function's request_body for an invocation"
                )
            }
            ureq::Error::Io(cause) => self.unreachable(&cause),
            ureq::Error::HostNotFound
            | ureq::Error::ConnectionFailed
            | ureq::Error::Timeout(_)
            | ureq::Error::Tls(_)
            | ureq::Error::Rustls(_) => self.unreachable(&error),
            other => anyhow::Error::new(other),
        })
    }

    fn unreachable(&self, cause: &dyn std::fmt::Display) -> anyhow::Error {
        ClientError::Unreachable {
            server: format!("{} ({})", self.server, self.origin),
            cause: cause.to_string(),
        }
        .into()
    }

    /// The error that a response tells of. What a guest answers need not look like fnctl's errors.
    fn refused(
        &self,
        mut response: Response<Body>,
        subject: Option<Subject>,
        is_invocation: bool,
    ) -> ClientError {
        let status = response.status().as_u16();
        let header = |headers: &HeaderMap, name: &str| {
            headers
                .get(name)
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned)
        };
        let retry_after =
            header(response.headers(), "retry-after").and_then(|seconds| seconds.parse().ok());
        let of_guest = is_invocation && response.headers().contains_key("x-fnctl-version");
        let request_id = header(response.headers(), "x-request-id");
        let body = response
            .body_mut()
            .with_config()
            .limit(MAX_ERROR)
            .read_to_vec()
            .unwrap_or_default();
        match serde_json::from_slice::<ErrorBody>(&body) {
            Ok(ErrorBody {
                code,
                message,
                request_id,
            }) => ClientError::Refused(Box::new(Refusal {
                status,
                kind: kind_of(&code),
                code,
                message,
                request_id,
                retry_after,
                subject,
            })),
            Err(_) if of_guest => ClientError::FunctionAnswered {
                status,
                function: subject.map(|subject| subject.function),
                request_id,
                body,
            },
            Err(_) => ClientError::NotFnctl {
                server: self.server.clone(),
                status,
            },
        }
    }
}

/// The kind whose code this is.
pub(crate) fn kind_of(code: &str) -> Option<Kind> {
    Kind::ALL.iter().copied().find(|kind| kind.code() == code)
}

/// A body of bytes at hand.
fn owned(bytes: Vec<u8>) -> SendBody<'static> {
    if bytes.is_empty() {
        SendBody::none()
    } else {
        SendBody::from_owned_reader(Cursor::new(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_tells_what_it_is_about() {
        let subject = |function: &str, selector: Option<&str>| Subject {
            function: function.to_owned(),
            selector: selector.map(str::to_owned),
        };
        for (path, expected) in [
            ("functions", None),
            ("status", None),
            ("functions/fraud", Some(subject("fraud", None))),
            ("functions/fraud/versions?x=1", Some(subject("fraud", None))),
            (
                "functions/fraud/aliases/canary",
                Some(subject("fraud", Some("canary"))),
            ),
        ] {
            assert_eq!(Subject::of_api(path), expected, "{path}");
        }
        assert_eq!(
            Subject::of_target("fraud:canary"),
            subject("fraud", Some("canary"))
        );
    }
}
