//! What comes of something that is asked of a host.

use crate::allocator::Shortage;
use fnctl_core::inference::{InferenceError, InferenceErrorKind};

/// The host died, or is about to, before it answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gone;

/// The outcome of something asked of a host.
pub(crate) type Asked<T> = Result<Result<T, Refusal>, Gone>;

/// Why a host that lives did not do what was asked.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    pub(crate) error: InferenceError,
    /// What its memory lacked, as it says; none if less of other things in it would not help.
    pub(crate) shortage: Option<Shortage>,
}

impl From<InferenceError> for Refusal {
    fn from(error: InferenceError) -> Self {
        Self {
            error,
            shortage: None,
        }
    }
}

pub(super) fn refused<T>(kind: InferenceErrorKind, message: impl Into<String>) -> Asked<T> {
    Ok(Err(InferenceError::new(kind, message).into()))
}
