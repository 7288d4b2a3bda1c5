//! Counts the requests that this one instance has answered: it makes reuse, and a fresh start, visible.

use fnctl_sdk::{Error, Request};
use serde::Serialize;
use std::sync::atomic::{AtomicU64, Ordering};

static COUNT: AtomicU64 = AtomicU64::new(0);

/// The answer.
#[derive(Serialize)]
pub struct Output {
    /// Requests that this instance has answered, this one included.
    count: u64,
}

/// Counts. The instance's memory lives from request to request; with `isolation = "request"` it does not.
#[fnctl_sdk::handler]
fn handle(_request: Request) -> Result<Output, Error> {
    Ok(Output {
        count: COUNT.fetch_add(1, Ordering::Relaxed) + 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_counts() {
        assert_eq!(__fnctl_answer(Request::post("")).body, b"{\"count\":1}");
        assert_eq!(__fnctl_answer(Request::post("")).body, b"{\"count\":2}");
    }
}
