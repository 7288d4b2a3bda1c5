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
    /// Models that killed their hosts too often.
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
    /// Its resident memory in bytes.
    pub resident_bytes: u64,
    /// What the system enforces on it, measure by measure.
    pub confinement: String,
    /// What it does not enforce, or not wholly, although it should, each with the reason.
    pub unconfined: Vec<String>,
}

/// A model that is kept away from inference hosts for a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantine {
    /// The model; none if it is every model of `function`.
    pub model: Option<Digest>,
    /// Whose it is; none for a deployed model that functions share.
    pub function: Option<FunctionName>,
    /// Deaths of hosts that are proven against it.
    pub deaths: u32,
    /// Milliseconds until it may try again.
    pub for_ms: u64,
}

impl InferenceStatus {
    /// What keeps a declared model of `function` from computing, if anything does. Its models are its own only where it
    /// has a host of its own: otherwise they are everybody's who declares them.
    pub fn quarantine_of(
        &self,
        model: &Digest,
        function: &FunctionName,
        isolation: InferenceIsolation,
    ) -> Option<&Quarantine> {
        let owner = (isolation == InferenceIsolation::Dedicated).then_some(function);
        self.quarantined.iter().find(|quarantine| {
            quarantine.model.is_none_or(|one| one == *model)
                && quarantine.function.as_ref() == owner
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarantine_is_of_a_model_or_of_an_owner() {
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
        assert!(asks(None, Some("a"), dedicated), "each of its own");
        assert!(!asks(None, Some("a"), shared), "of those its guest brings");
        assert!(!asks(Some(b"bad"), None, dedicated), "in other hosts");
        assert!(!asks(Some(b"bad"), Some("b"), dedicated));
        assert!(!asks(Some(b"good"), None, shared));
    }
}
