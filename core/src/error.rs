//! The closed list of error kinds: metric label, log field and API `code` are this one word.
//!
//! Statuses are not here: the gateway owns the one mapping to HTTP.

use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

/// Whose fault an error is. Only the platform's faults are logged at error level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The one who sent the request.
    Caller,
    /// The function's code, model or configuration.
    Guest,
    /// fnctl or the machine it runs on.
    Platform,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident, $code:literal, $fault:ident, $retryable:literal;)*) => {
        /// What went wrong, as one word that code, metrics, logs and the API share.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum ErrorKind { $($(#[$doc])* $name,)* }

        impl ErrorKind {
            /// Every kind, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The word used as metric label, log field and API code.
            pub const fn code(self) -> &'static str {
                match self { $(Self::$name => $code,)* }
            }

            /// Who has to act.
            pub const fn fault(self) -> Fault {
                match self { $(Self::$name => Fault::$fault,)* }
            }

            /// Whether the same request may succeed later without anybody changing anything.
            pub const fn retryable(self) -> bool {
                match self { $(Self::$name => $retryable,)* }
            }
        }
    };
}

kinds! {
    /// The request is malformed.
    BadRequest, "bad_request", Caller, false;
    /// A token is needed and missing, or wrong.
    Unauthorized, "unauthorized", Caller, false;
    /// The token is right, or none was asked, but this is not allowed from here.
    Forbidden, "forbidden", Caller, false;
    /// No such function, version, alias, artifact or path.
    NotFound, "not_found", Caller, false;
    /// The method is not one this path has.
    MethodNotAllowed, "method_not_allowed", Caller, false;
    /// The request contradicts the present state.
    Conflict, "conflict", Caller, false;
    /// The request body is over its limit.
    PayloadTooLarge, "payload_too_large", Caller, false;
    /// The caller took too long to send its request.
    SlowClient, "slow_client", Caller, true;
    /// The function's rate limit is used up.
    RateLimited, "rate_limited", Caller, true;
    /// The function's concurrency limit and its queue are full.
    Throttled, "throttled", Caller, true;
    /// The caller went away before the answer.
    Cancelled, "cancelled", Caller, true;
    /// The configuration of a function is invalid.
    InvalidConfig, "invalid_config", Caller, false;
    /// The artifact is no Wasm module or component that can run here.
    InvalidArtifact, "invalid_artifact", Guest, false;
    /// The model cannot be loaded.
    InvalidModel, "invalid_model", Guest, false;
    /// The model kept killing its inference host and is kept away from one for a while.
    Quarantined, "quarantined", Guest, true;
    /// The guest could not be instantiated, or its init failed.
    StartFailed, "start_failed", Guest, false;
    /// The guest trapped.
    Trap, "trap", Guest, false;
    /// The guest wanted more memory than its limit.
    OutOfMemory, "out_of_memory", Guest, false;
    /// The guest used more CPU time than its limit.
    CpuExceeded, "cpu_exceeded", Guest, false;
    /// The guest answered nothing, or nothing that is HTTP.
    BadResponse, "bad_response", Guest, false;
    /// The response body is over its limit.
    ResponseTooLarge, "response_too_large", Guest, false;
    /// The request's deadline passed while the guest ran.
    Timeout, "timeout", Guest, false;
    /// The request waited in the queue for as long as it may.
    QueueTimeout, "queue_timeout", Platform, true;
    /// An instance did not start in time.
    StartTimeout, "start_timeout", Guest, true;
    /// A memory budget of the platform is used up.
    BudgetExceeded, "budget_exceeded", Guest, false;
    /// Every instance slot of the node is taken.
    NodeFull, "node_full", Platform, true;
    /// The platform is shutting down.
    Draining, "draining", Platform, true;
    /// Too many of something are open at once, for instance log streams.
    Overloaded, "overloaded", Platform, true;
    /// Stored data is missing or does not match its digest.
    Corrupt, "corrupt", Platform, false;
    /// Something the platform needs is missing, for instance the ONNX Runtime library.
    Unavailable, "unavailable", Platform, false;
    /// A defect of the platform.
    Internal, "internal", Platform, false;
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// A failed operation as it crosses a port: a kind, a text that is safe to show the caller and says what to do next,
/// and the cause for the log.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The kind; decides status, fault and metric label.
    pub kind: ErrorKind,
    /// Stable and safe to show to anyone.
    pub message: Cow<'static, str>,
    /// The chain of causes; for the log only, as it may name paths or a guest's text.
    pub cause: Option<String>,
    /// When trying again makes sense.
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// Most bytes of a cause.
    pub const MAX_CAUSE: usize = 8 << 10;

    /// A failure with its public message.
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind,
            message: message.into(),
            cause: None,
            retry_after: None,
        }
    }

    /// Adds the cause for the log. Guests make some of these texts: what is longer than [`Self::MAX_CAUSE`] is cut.
    #[must_use]
    pub fn because(mut self, cause: impl fmt::Display) -> Self {
        let mut cause = cause.to_string();
        cause.truncate(cause.floor_char_boundary(Self::MAX_CAUSE));
        self.cause = Some(cause);
        self
    }

    /// Says when trying again makes sense.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// A defect of the platform; the caller learns no detail.
    pub fn internal(cause: impl fmt::Display) -> Self {
        Self::new(
            ErrorKind::Internal,
            "an internal error; the platform's log has the details under this request id",
        )
        .because(cause)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.message)?;
        match &self.cause {
            Some(cause) => write!(f, " ({cause})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_cut_to_a_length_that_a_log_can_hold() {
        let failure = Failure::internal("\u{e4}".repeat(1 << 20));
        let cause = failure.cause.unwrap();
        assert!(cause.len() <= Failure::MAX_CAUSE && cause.len() > Failure::MAX_CAUSE - 4);
    }

    #[test]
    fn codes_are_unique_and_match_their_serialised_form() {
        let mut codes: Vec<_> = ErrorKind::ALL.iter().map(|kind| kind.code()).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), ErrorKind::ALL.len());
    }
}
