//! An HTTP client for tests.

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use std::net::SocketAddr;

/// Talks to one platform over kept connections.
#[derive(Debug, Clone)]
pub struct Client {
    http: HyperClient<HttpConnector, Full<Bytes>>,
    address: SocketAddr,
}

/// A response that has been read to the end.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body; what came of it if it broke off.
    pub body: Bytes,
    /// Whether the body came to its end.
    pub complete: bool,
}

impl Client {
    /// A client of the platform at `address`.
    pub fn new(address: SocketAddr) -> Self {
        Self {
            http: HyperClient::builder(TokioExecutor::new()).build_http(),
            address,
        }
    }

    /// A client that speaks HTTP/2 without TLS.
    pub fn h2c(address: SocketAddr) -> Self {
        Self {
            http: HyperClient::builder(TokioExecutor::new())
                .http2_only(true)
                .build_http(),
            address,
        }
    }

    /// Sends a request and reads the response to its end.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Reply {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request
            .body(Full::new(body.into()))
            .expect("a valid request");
        let response = self
            .http
            .request(request)
            .await
            .unwrap_or_else(|error| panic!("{path}: no response: {error:?}"));
        let (parts, mut incoming) = response.into_parts();
        let mut body = Vec::new();
        let complete = loop {
            match incoming.frame().await {
                None => break true,
                Some(Err(_)) => break false,
                Some(Ok(frame)) => {
                    body.extend_from_slice(frame.data_ref().map_or(&[], |data| data))
                }
            }
        };
        Reply {
            status: parts.status,
            headers: parts.headers,
            body: body.into(),
            complete,
        }
    }

    /// `GET`
    pub async fn get(&self, path: &str) -> Reply {
        self.send(Method::GET, path, &[], Bytes::new()).await
    }

    /// `POST`
    pub async fn post(&self, path: &str, body: impl Into<Bytes>) -> Reply {
        self.send(Method::POST, path, &[], body).await
    }
}

impl Reply {
    /// A header as text, empty if it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().expect("a text header"))
    }

    /// `cold`, `prewarmed` or `warm`.
    pub fn start(&self) -> &str {
        self.header("x-fnctl-start")
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The `code` of an error; checks that the rest of the error is there too.
    pub fn code(&self) -> String {
        let error = self.json();
        assert!(!error["message"].as_str().expect("a message").is_empty());
        assert_eq!(error["request_id"], self.header("x-request-id"));
        error["code"].as_str().expect("a code").to_owned()
    }

    /// A phase of `Server-Timing` in milliseconds.
    pub fn phase(&self, name: &str) -> f64 {
        let entry = self
            .header("server-timing")
            .split(", ")
            .find_map(|entry| entry.strip_prefix(&format!("{name};dur=")));
        entry
            .unwrap_or_else(|| panic!("no phase {name} in {:?}", self.header("server-timing")))
            .parse()
            .expect("a number")
    }

    /// Asserts success and hands the reply on.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert!(self.status.is_success(), "{}: {}", self.status, self.text());
        self
    }
}
