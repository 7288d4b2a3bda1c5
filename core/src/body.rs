//! The streamed body that travels between gateway, scheduler and worker.

use bytes::Bytes;
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};

/// Why a body ended early.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BodyError {
    /// More bytes than the limit, which is given.
    #[error("the body is larger than {0} bytes")]
    TooLarge(u64),
    /// The sender was too slow.
    #[error("the body did not arrive in time")]
    TimedOut,
    /// The sender stopped in the middle.
    #[error("the body ended early: {0}")]
    Aborted(String),
}

/// A streamed request or response body.
pub type Body = UnsyncBoxBody<Bytes, BodyError>;

/// A body without bytes.
pub fn empty() -> Body {
    http_body_util::Empty::new()
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// A body of bytes at hand.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    http_body_util::Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}
