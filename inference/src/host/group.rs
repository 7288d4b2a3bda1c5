//! A place for one host at a time: the shared one, a function's own, or a suspect's.

use super::backoff::Backoff;
use super::process::HostProcess;
use crate::sessions::SessionKey;
use fnctl_core::config::InferenceIsolation;
use fnctl_core::ids::FunctionName;
use parking_lot::{Mutex, RwLock};
use std::sync::Arc;

/// Which place.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum GroupKey {
    /// For every function that did not ask for more.
    Shared,
    /// One function's.
    Dedicated(FunctionName),
    /// One model's, while it is suspected of killing hosts.
    Alone(SessionKey),
}

impl GroupKey {
    /// Where a session belongs while nothing is held against it.
    pub(crate) fn usual(key: &SessionKey) -> Self {
        match (key.isolation, &key.owner) {
            (InferenceIsolation::Dedicated, Some(owner)) => Self::Dedicated(owner.clone()),
            _ => Self::Shared,
        }
    }

    /// The metric label.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Dedicated(_) => "dedicated",
            Self::Alone(_) => "alone",
        }
    }
}

#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) key: GroupKey,
    pub(crate) live: RwLock<Option<Arc<HostProcess>>>,
    /// Held while a host is started, so that there is one start for all who wait.
    pub(crate) starting: tokio::sync::Mutex<()>,
    pub(crate) backoff: Mutex<Backoff>,
}

impl Group {
    pub(crate) fn new(key: GroupKey) -> Arc<Self> {
        Arc::new(Self {
            key,
            live: RwLock::default(),
            starting: tokio::sync::Mutex::default(),
            backoff: Mutex::default(),
        })
    }

    /// The host that takes work now.
    pub(crate) fn alive(&self) -> Option<Arc<HostProcess>> {
        self.live
            .read()
            .as_ref()
            .filter(|host| host.is_alive())
            .cloned()
    }

    /// Takes the host out if it is still this one: nobody new comes to it.
    pub(crate) fn take(&self, host: &HostProcess) -> Option<Arc<HostProcess>> {
        let mut live = self.live.write();
        if live.as_deref().is_some_and(|one| std::ptr::eq(one, host)) {
            live.take()
        } else {
            None
        }
    }
}
