//! The settings of a whole platform: each part owns its section.

use fnctl_core::units::Period;
use std::path::PathBuf;

/// The settings of a platform.
#[derive(Debug, Clone)]
pub struct Config {
    /// How long running invocations have to finish when the platform stops.
    pub grace: Period,
    /// Where the admin API's token is kept if `gateway.token` is not set; made with a random one if it is missing.
    pub token_file: Option<PathBuf>,
    /// Listener, admin API and client limits.
    pub gateway: fnctl_gateway::Config,
    /// Admission and warm pools.
    pub scheduler: fnctl_scheduler::Config,
    /// Sandboxes and compiled code.
    pub worker: fnctl_worker::Config,
    /// Models.
    pub inference: fnctl_inference::Config,
    /// What functions said.
    pub logs: fnctl_logs::Config,
    /// Spans of invocations.
    pub traces: crate::traces::Config,
    /// Versions and artifacts.
    pub store: fnctl_store::Config,
}

impl Config {
    /// The defaults, with everything that is kept under `data`.
    pub fn new(data: impl Into<PathBuf>) -> Self {
        let data = data.into();
        Self {
            grace: Period::secs(30),
            token_file: None,
            gateway: fnctl_gateway::Config::default(),
            scheduler: fnctl_scheduler::Config::default(),
            worker: fnctl_worker::Config {
                cache: data.join("cache"),
                ..fnctl_worker::Config::default()
            },
            inference: fnctl_inference::Config::default(),
            logs: fnctl_logs::Config {
                folder: data.join("logs"),
                ..fnctl_logs::Config::default()
            },
            traces: crate::traces::Config::default(),
            store: fnctl_store::Config::new(data),
        }
    }

    /// Moves everything that is kept to another folder.
    pub fn set_data(&mut self, data: impl Into<PathBuf>) {
        let data = data.into();
        self.worker.cache = data.join("cache");
        self.logs.folder = data.join("logs");
        self.store.folder = data;
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::new("fnctl-data")
    }
}
