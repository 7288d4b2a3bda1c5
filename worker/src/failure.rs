//! Turns what Wasmtime says into the platform's error kinds.

use crate::state::GuestState;
use fnctl_core::{ErrorKind, Failure, RequestId};
use wasmtime::Trap;

/// Raised by the epoch callback when the guest's CPU time is used up.
#[derive(Debug, thiserror::Error)]
#[error("the CPU time limit is used up")]
pub(crate) struct CpuExceeded;

/// Raised by the epoch callback when a request that should have ended holds up the others of its instance.
#[derive(Debug, thiserror::Error)]
#[error("request {0} went on computing after it should have ended")]
pub(crate) struct Overdue(pub(crate) RequestId);

/// Why a running guest failed.
pub(crate) fn run_failure(error: &wasmtime::Error, guest: &GuestState) -> Failure {
    if error.downcast_ref::<CpuExceeded>().is_some() {
        return Failure::new(
            ErrorKind::CpuExceeded,
            "the function used more CPU time than its limit; raise cpu or do less work",
        )
        .because(format!("{error:#}"));
    }
    if error.downcast_ref::<Overdue>().is_some() {
        return Failure::new(
            ErrorKind::Trap,
            "another request of this instance went on computing past its deadline, and the instance was ended",
        )
        .because(format!("{error:#}"));
    }
    if guest.met_limit() {
        return Failure::new(
            ErrorKind::OutOfMemory,
            "the function needed more memory than its limit; raise memory (or table_elements) in function.toml",
        )
        .because(format!("{error:#}"));
    }
    let what = match error.downcast_ref::<Trap>() {
        Some(Trap::StackOverflow) => "the function overflowed its stack",
        Some(Trap::UnreachableCodeReached) => "the function panicked or reached unreachable code",
        Some(_) => "the function trapped",
        None => "the function failed",
    };
    Failure::new(
        ErrorKind::Trap,
        format!("{what}; its log lines carry this request id"),
    )
    .because(format!("{error:#}"))
}

/// What is told to each of `calls` requests that an instance died with.
pub(crate) fn died_with(failure: Failure, calls: usize) -> Failure {
    if calls < 2 {
        return failure;
    }
    let message = format!(
        "the instance died while it served {calls} requests, and all of them failed; it cannot be told which was the cause: {}",
        failure.message
    );
    Failure {
        message: message.into(),
        ..failure
    }
}

/// Why a sandbox could not be made.
pub(crate) fn start_failure(error: &wasmtime::Error, guest: Option<&GuestState>) -> Failure {
    if error
        .downcast_ref::<wasmtime::PoolConcurrencyLimitError>()
        .is_some()
    {
        return node_full().because(format!("{error:#}"));
    }
    if guest.is_some_and(GuestState::met_limit) {
        return Failure::new(
            ErrorKind::OutOfMemory,
            "the function needs more memory to start than its limit; raise memory",
        )
        .because(format!("{error:#}"));
    }
    Failure::new(
        ErrorKind::StartFailed,
        "the function could not be started; its log (`fnctl logs`) says why under this request id",
    )
    .because(format!("{error:#}"))
}

/// Every slot of the pool is taken.
pub(crate) fn node_full() -> Failure {
    Failure::new(
        ErrorKind::NodeFull,
        "every instance slot of this node is in use; try again soon, or raise worker.max_instances",
    )
    .retry_after(std::time::Duration::from_secs(1))
}

/// The deadline passed while the guest ran.
pub(crate) fn timeout(limit: std::time::Duration) -> Failure {
    Failure::new(
        ErrorKind::Timeout,
        format!(
            "the function did not finish within its timeout of {}s; raise timeout or do less work",
            limit.as_secs_f64()
        ),
    )
}

/// The caller went away.
pub(crate) fn cancelled() -> Failure {
    Failure::new(
        ErrorKind::Cancelled,
        "the caller went away before the answer",
    )
}

/// The guest answered, but met a limit on its way: its sandbox is not used again.
pub(crate) fn over_limit() -> Failure {
    Failure::new(
        ErrorKind::OutOfMemory,
        "the function met its memory limit while it answered",
    )
}

/// The response body was larger than its limit and was cut off.
pub(crate) fn response_too_large() -> Failure {
    Failure::new(
        ErrorKind::ResponseTooLarge,
        "the function's answer is larger than response_body; raise it or answer less",
    )
}
