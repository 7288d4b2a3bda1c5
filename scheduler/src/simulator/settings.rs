//! What is simulated: the policy, and what differs between functions.

use super::below::RungSettings;
use super::random::Random;
use crate::policy::Spec;
use std::time::Duration;

/// A value that differs between functions: each octave between the two ends is as likely, and a function always has the
/// same one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The least.
    pub from: f64,
    /// The most.
    pub to: f64,
}

impl Spread {
    /// The value of one function.
    pub(super) fn of(&self, function: u64, seed: u64) -> f64 {
        Random::of(seed, function).log_uniform(self.from.max(1e-9), self.to.max(1e-9))
    }
}

/// What is simulated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// The policy of every function.
    pub policy: Spec,
    /// What `fixed` without a time means.
    pub keep_alive: Duration,
    /// Seconds of a cold start; without those of the rungs below, if there are any.
    pub cold: Spread,
    /// Bytes of an instance; without those of the rungs below, if there are any.
    pub bytes: Spread,
    /// The session of each function's model, if that is told apart from the instance.
    pub session: Option<RungSettings>,
    /// Each function's compiled code, if that is told apart from the instance.
    pub template: Option<RungSettings>,
    /// How long an invocation runs that the trace tells no duration of.
    pub duration: Duration,
    /// Bytes of the node; unset = no limit.
    pub node_bytes: Option<u64>,
    /// Instances of the node; unset = no limit.
    pub node_instances: Option<u64>,
    /// Invocations of a function at once.
    pub concurrency: usize,
    /// Waiting invocations of a function.
    pub queue: usize,
    /// Decides about what differs between functions.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            policy: Spec::Fixed(None),
            keep_alive: Duration::from_secs(60),
            cold: Spread {
                from: 0.05,
                to: 1.0,
            },
            bytes: Spread {
                from: f64::from(64 << 20),
                to: f64::from(512 << 20),
            },
            session: None,
            template: None,
            duration: Duration::from_millis(100),
            node_bytes: None,
            node_instances: None,
            concurrency: 1000,
            queue: 10_000,
            seed: 1,
        }
    }
}
