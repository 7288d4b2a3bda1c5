//! The admin API and invocations, as the commands use them.

use crate::args::Connection;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::io::{Cursor, ErrorKind, Read};
use std::time::Duration;
use ureq::http::{Request, Response, StatusCode};
use ureq::{Agent, Body, SendBody};

/// A request that did not succeed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// Nobody listens there.
    #[error(
        "no platform answers at {server} ({cause}); start one with `fnctl serve`, or name it with --server or FNCTL_SERVER"
    )]
    Unreachable { server: String, cause: String },
    /// The platform said no.
    #[error("{message} [{code}, request {request_id}]")]
    Refused {
        status: u16,
        code: String,
        message: String,
        request_id: String,
    },
    /// Something else answered.
    #[error("{server} answered {status}, but not as fnctl does; is that address right?")]
    NotFnctl { server: String, status: u16 },
}

impl ClientError {
    /// As `fnctl --help` says.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Unreachable { .. } => 4,
            Self::Refused { status: 404, .. } => 3,
            Self::Refused {
                status: 401 | 403 | 429,
                ..
            } => 5,
            Self::Refused { .. } | Self::NotFnctl { .. } => 1,
        }
    }
}

#[derive(Deserialize)]
struct ErrorBody {
    code: String,
    message: String,
    request_id: String,
}

pub(crate) struct Client {
    agent: Agent,
    server: String,
    token: Option<String>,
}

impl Client {
    pub(crate) fn new(connection: &Connection) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(10)))
            // A deploy may compile for a while; the platform bounds it.
            .timeout_recv_response(Some(Duration::from_secs(1000)))
            .build();
        let server = connection.server.trim_end_matches('/');
        let server = if server.contains("://") {
            server.to_owned()
        } else {
            format!("http://{server}")
        };
        Self {
            agent: config.new_agent(),
            server,
            token: token(connection),
        }
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
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let response = self.send(request.body(body)?)?;
        if response.status().is_success() {
            Ok(response)
        } else {
            Err(self.refused(response).into())
        }
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
                Some(ClientError::Refused { status: 404, .. }) => Ok(false),
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
            request = request.header("authorization", format!("Bearer {token}"));
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

    /// The address it talks to.
    pub(crate) fn server(&self) -> &str {
        &self.server
    }

    fn send(&self, request: Request<SendBody<'_>>) -> anyhow::Result<Response<Body>> {
        self.agent.run(request).map_err(|error| match error {
            ureq::Error::Io(cause) if matches!(cause.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted) => {
                anyhow::anyhow!("the platform ended the connection while it was being sent to; the file may be over its gateway.max_artifact")
            }
            ureq::Error::Io(cause) => ClientError::Unreachable { server: self.server.clone(), cause: cause.to_string() }.into(),
            ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => {
                ClientError::Unreachable { server: self.server.clone(), cause: error.to_string() }.into()
            }
            other => anyhow::Error::new(other),
        })
    }

    /// The error that a response tells of.
    pub(crate) fn refused(&self, mut response: Response<Body>) -> ClientError {
        let status: StatusCode = response.status();
        let body = response
            .body_mut()
            .with_config()
            .limit(1 << 20)
            .read_to_string()
            .unwrap_or_default();
        match serde_json::from_str::<ErrorBody>(&body) {
            Ok(ErrorBody {
                code,
                message,
                request_id,
            }) => ClientError::Refused {
                status: status.as_u16(),
                code,
                message,
                request_id,
            },
            Err(_) => ClientError::NotFnctl {
                server: self.server.clone(),
                status: status.as_u16(),
            },
        }
    }
}

/// The token to show: the given one, else the one in the given file. An empty variable is none.
pub(crate) fn token(connection: &Connection) -> Option<String> {
    connection
        .token
        .clone()
        .filter(|token| !token.is_empty())
        .or_else(|| {
            let path = connection.token_file.as_deref()?;
            fnctl_platform::token_file::read(path).ok()
        })
}

/// A body of bytes at hand.
fn owned(bytes: Vec<u8>) -> SendBody<'static> {
    if bytes.is_empty() {
        SendBody::none()
    } else {
        SendBody::from_owned_reader(Cursor::new(bytes))
    }
}
