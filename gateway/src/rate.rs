//! Token buckets, one per function that asks for one.

use dashmap::DashMap;
use fnctl_core::config::RateLimit;
use fnctl_core::ids::FunctionName;
use governor::clock::{Clock, MonotonicClock};
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use std::sync::Arc;
use std::time::Duration;

type Bucket = RateLimiter<NotKeyed, InMemoryState, MonotonicClock>;

/// The buckets of all functions.
#[derive(Default)]
pub(crate) struct RateLimits {
    buckets: DashMap<(FunctionName, RateLimit), Arc<Bucket>>,
}

impl std::fmt::Debug for RateLimits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RateLimits")
            .field("buckets", &self.buckets.len())
            .finish()
    }
}

impl RateLimits {
    /// Takes a token, or says how long until there is one.
    pub(crate) fn check(&self, function: &FunctionName, limit: RateLimit) -> Result<(), Duration> {
        let bucket = self.bucket(function, limit);
        bucket
            .check()
            .map_err(|not_until| not_until.wait_time_from(MonotonicClock.now()))
    }

    /// The bucket of a function and a limit: two versions with different limits have one each, so that calling them in
    /// turn refills neither.
    fn bucket(&self, function: &FunctionName, limit: RateLimit) -> Arc<Bucket> {
        let key = (function.clone(), limit);
        if let Some(bucket) = self.buckets.get(&key) {
            return bucket.clone();
        }
        let quota = Quota::per_second(limit.requests_per_second).allow_burst(limit.burst);
        self.buckets
            .entry(key)
            .or_insert_with(|| Arc::new(RateLimiter::direct_with_clock(quota, MonotonicClock)))
            .clone()
    }

    /// Forgets a function that was removed.
    pub(crate) fn forget(&self, function: &FunctionName) {
        self.buckets.retain(|(name, _), _| name != function);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU32;

    #[test]
    fn the_burst_passes_and_then_the_wait_is_told() {
        let limits = RateLimits::default();
        let function: FunctionName = "a".parse().unwrap();
        let one = |count| NonZeroU32::new(count).unwrap();
        let limit = RateLimit {
            requests_per_second: one(1),
            burst: one(3),
        };
        for _ in 0..3 {
            assert!(limits.check(&function, limit).is_ok());
        }
        let wait = limits.check(&function, limit).unwrap_err();
        assert!(
            wait > Duration::from_millis(500) && wait <= Duration::from_secs(1),
            "{wait:?}"
        );
        let wider = RateLimit {
            burst: one(4),
            ..limit
        };
        assert!(
            limits.check(&function, wider).is_ok(),
            "a new limit starts with a full bucket"
        );
        assert!(
            limits.check(&function, limit).is_err(),
            "and does not refill the other"
        );
    }
}
