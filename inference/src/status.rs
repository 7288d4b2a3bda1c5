//! What an operator is told about inference hosts: which run, how they are confined, and what is kept away from them.

use fnctl_core::hosts;
use fnctl_core::ids::{Digest, FunctionName};
use std::time::Duration;

/// A host that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostStatus {
    /// Its process.
    pub pid: u32,
    /// Why there is one: shared, dedicated, alone, spare.
    pub kind: &'static str,
    /// Whose it is, if it is one function's.
    pub function: Option<FunctionName>,
    /// Models loaded in it.
    pub sessions: usize,
    /// Inferences that are in it.
    pub in_flight: usize,
    /// Bytes of the shared memory that tensors take, besides small ones.
    pub shared_bytes: u64,
    /// Its resident memory in bytes.
    pub resident_bytes: u64,
    /// What the system enforces upon it, measure by measure, as a sentence for people.
    pub confinement: String,
    /// Measures that are not, or not fully, in force, each with its reason. Empty = fully confined.
    pub unconfined: Vec<String>,
}

/// Something that killed too many hosts and is kept away from them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    /// The model; none if it is every model that a function brings.
    pub model: Option<Digest>,
    /// Whose model it is; none for a deployed model that functions share.
    pub function: Option<FunctionName>,
    /// Hosts that it killed and that nobody else can have killed, as far as that is remembered.
    pub deaths: u32,
    /// How long it stays away. The next try after that is in a host of its own.
    pub left: Duration,
}

impl From<HostStatus> for hosts::HostStatus {
    fn from(host: HostStatus) -> Self {
        Self {
            pid: host.pid,
            kind: host.kind.to_owned(),
            function: host.function,
            sessions: host.sessions,
            resident_bytes: host.resident_bytes,
            confinement: host.confinement,
            unconfined: host.unconfined,
        }
    }
}

impl From<Quarantined> for hosts::Quarantine {
    fn from(quarantined: Quarantined) -> Self {
        Self {
            model: quarantined.model,
            function: quarantined.function,
            deaths: quarantined.deaths,
            for_ms: u64::try_from(quarantined.left.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// What went because nobody wanted it kept any more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reaped {
    /// Sessions whose time-to-live was over.
    pub expired: usize,
    /// Sessions that the functions' policies wanted no longer.
    pub by_policy: usize,
    /// Inference hosts.
    pub hosts: usize,
}
