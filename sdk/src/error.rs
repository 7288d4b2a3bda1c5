//! Errors that become responses.

use crate::http::Response;
use std::fmt;

/// A failed request: a status and a text for the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    status: u16,
    message: String,
}

impl Error {
    /// An error with any status from 400 to 599; another number becomes 500.
    pub fn new(status: u16, message: impl Into<String>) -> Self {
        let status = if (400..600).contains(&status) {
            status
        } else {
            500
        };
        Self {
            status,
            message: message.into(),
        }
    }

    /// 400: the caller's input is wrong.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, message)
    }

    /// 404: there is no such thing.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(404, message)
    }

    /// 413: the input is larger than this function takes.
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(413, message)
    }

    /// 415: the body is of another format than this function takes.
    pub fn unsupported_media_type(message: impl Into<String>) -> Self {
        Self::new(415, message)
    }

    /// 422: the body has the right format, and what it holds cannot be used.
    pub fn unprocessable(message: impl Into<String>) -> Self {
        Self::new(422, message)
    }

    /// 500: the function failed.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(500, message)
    }

    /// The status.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The text.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The response: `{"error": "..."}`.
    pub fn into_response(self) -> Response {
        let body = serde_json::json!({ "error": self.message }).to_string();
        Response::new(self.status)
            .with_header("content-type", "application/json")
            .with_body(body)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        Self::bad_request(format!("the JSON is not what this function takes: {error}"))
    }
}

impl From<std::string::FromUtf8Error> for Error {
    fn from(_: std::string::FromUtf8Error) -> Self {
        Self::bad_request("the body is not UTF-8")
    }
}
