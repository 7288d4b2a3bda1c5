//! What an operator may set about scheduling.

/// The scheduler's settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// Most instances on this node, over all functions.
    pub max_instances: usize,
    /// Most versions with metrics of their own; what is beyond shares one set called `_other`.
    pub max_tracked_versions: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_instances: 1_000,
            max_tracked_versions: 2_000,
        }
    }
}
