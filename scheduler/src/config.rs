//! What an operator may set about scheduling.

use crate::policy::Spec;

/// The scheduler's settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// Most instances on this node, over all functions.
    pub max_instances: usize,
    /// Most versions with metrics of their own; what is beyond shares one set called `_other`.
    pub max_tracked_versions: usize,
    /// What decides how long idle instances are kept, of functions that do not say it themselves.
    pub keep_alive_policy: Spec,
    /// Invocations that are remembered for `fnctl trace export`.
    pub trace_size: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_instances: 1_000,
            max_tracked_versions: 2_000,
            keep_alive_policy: Spec::Fixed(None),
            trace_size: 100_000,
        }
    }
}
