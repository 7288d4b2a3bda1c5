//! What operators see of the processes that compute: which inference hosts run, and which models are kept away from them.

use crate::config::InferenceIsolation;
use crate::ids::{Digest, FunctionName};
use serde::{Deserialize, Serialize};

/// All of inference at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InferenceStatus {
    /// Where models compute: `host` or `in-process`.
    pub process: String,
    /// Model sessions in memory.
    pub sessions: usize,
    /// The hosts that run; none in-process.
    pub hosts: Vec<HostStatus>,
    /// What killed hosts too often.
    pub quarantined: Vec<Quarantine>,
}

/// One inference host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostStatus {
    /// Its process id.
    pub pid: u32,
    /// For whom it is: `shared`, `dedicated`, `alone` (one model that is suspected of killing hosts) or `spare`.
    pub kind: String,
    /// Whose it is, if it is one function's.
    pub function: Option<FunctionName>,
    /// Sessions in it.
    pub sessions: usize,
    /// Inferences in it.
    pub in_flight: usize,
    /// Bytes of the memory it shares with the platform that tensors take, besides small ones.
    pub shared_bytes: u64,
    /// Its resident memory in bytes.
    pub resident_bytes: u64,
    /// What the system enforces on it, measure by measure.
    pub confinement: String,
    /// What it does not enforce, or not wholly, although it should, each with the reason.
    pub unconfined: Vec<String>,
}

/// What is kept away from inference hosts for a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantine {
    /// The model; none if it is every model that `function` computes with.
    pub model: Option<Digest>,
    /// In whose hands; none for a model that kills hosts while it is loaded, which functions share.
    pub function: Option<FunctionName>,
    /// Deaths of hosts that are proven against it.
    pub deaths: u32,
    /// Milliseconds until it may try again.
    pub for_ms: u64,
}

impl InferenceStatus {
    /// What keeps a declared model of `function` from computing, if anything does. A model that kills hosts while it is
    /// loaded is kept from all functions that share it: not from one that has a host of its own.
    pub fn quarantine_of(
        &self,
        model: &Digest,
        function: &FunctionName,
        isolation: InferenceIsolation,
    ) -> Option<&Quarantine> {
        self.quarantined.iter().find(|quarantine| {
            quarantine.model.is_none_or(|one| one == *model)
                && match &quarantine.function {
                    Some(whose) => whose == function,
                    None => isolation == InferenceIsolation::Shared,
                }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarantine_is_of_a_function_or_of_a_models_loading() {
        let asks = |model: Option<&[u8]>, function: Option<&str>, isolation| {
            let status = InferenceStatus {
                quarantined: vec![Quarantine {
                    model: model.map(Digest::of),
                    function: function.map(|name| name.parse().unwrap()),
                    deaths: 3,
                    for_ms: 1,
                }],
                ..InferenceStatus::default()
            };
            let (model, function) = (Digest::of(b"bad"), "a".parse().unwrap());
            status.quarantine_of(&model, &function, isolation).is_some()
        };
        let (shared, dedicated) = (InferenceIsolation::Shared, InferenceIsolation::Dedicated);
        assert!(asks(Some(b"bad"), None, shared), "everybody's");
        assert!(asks(Some(b"bad"), Some("a"), dedicated));
        assert!(asks(Some(b"bad"), Some("a"), shared));
        assert!(asks(None, Some("a"), dedicated), "each that it has");
        assert!(asks(None, Some("a"), shared), "each that it has");
        assert!(!asks(Some(b"bad"), None, dedicated), "in other hosts");
        assert!(!asks(Some(b"bad"), Some("b"), dedicated));
        assert!(
            !asks(Some(b"bad"), Some("b"), shared),
            "another function's doing"
        );
        assert!(!asks(Some(b"good"), None, shared));
    }
}
