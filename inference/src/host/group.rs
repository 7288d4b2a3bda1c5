//! A place for one host at a time: the shared one, a function's own, or a suspect's.

use super::backoff::Backoff;
use super::process::HostProcess;
use super::quarantine::Suspect;
use crate::sessions::SessionKey;
use fnctl_core::config::InferenceIsolation;
use fnctl_core::ids::FunctionName;
use fnctl_core::inference::InferenceError;
use parking_lot::{Mutex, RwLock};
use std::sync::Arc;
use tokio::time::Instant;

/// Which place.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum GroupKey {
    /// For every function that did not ask for more.
    Shared,
    /// One function's.
    Dedicated(FunctionName),
    /// A suspect's, while it may not be with the others.
    Alone(Suspect),
}

impl GroupKey {
    /// Where a session belongs while nothing is held against it.
    pub(crate) fn usual(key: &SessionKey) -> Self {
        match (key.isolation, &key.owner) {
            (InferenceIsolation::Dedicated, Some(owner)) => Self::Dedicated(owner.clone()),
            _ => Self::Shared,
        }
    }

    /// Whose place it is, if it is one function's.
    pub(crate) fn function(&self) -> Option<&FunctionName> {
        match self {
            Self::Shared => None,
            Self::Dedicated(function) => Some(function),
            Self::Alone(who) => who.function(),
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
    /// The last start that failed.
    failed: Mutex<Option<(Instant, InferenceError)>>,
}

impl Group {
    pub(crate) fn new(key: GroupKey) -> Arc<Self> {
        Arc::new(Self {
            key,
            live: RwLock::default(),
            starting: tokio::sync::Mutex::default(),
            backoff: Mutex::default(),
            failed: Mutex::default(),
        })
    }

    /// A host of this group could not be started.
    pub(crate) fn start_failed(&self, error: InferenceError, now: Instant) {
        self.backoff.lock().died(false, now);
        *self.failed.lock() = Some((now, error));
    }

    /// What came of the last failed start, for somebody who waited for it: since `asked`.
    pub(crate) fn failure_since(&self, asked: Instant) -> Option<InferenceError> {
        let failed = self.failed.lock();
        let (when, error) = failed.as_ref()?;
        (*when >= asked).then(|| error.clone())
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

#[cfg(test)]
mod tests {
    use super::*;
    use fnctl_core::inference::InferenceErrorKind;
    use std::time::Duration;

    #[test]
    fn a_failed_start_is_told_to_who_waited_for_it_and_slows_the_next() {
        let group = Group::new(GroupKey::Shared);
        let second = Duration::from_secs(1);
        let failed = Instant::now() + second;
        let error = InferenceError::new(InferenceErrorKind::Unavailable, "no such program");
        group.start_failed(error.clone(), failed);
        let told = group.failure_since(failed - second).unwrap();
        assert_eq!(told.message, "no such program");
        assert!(group.failure_since(failed + second).is_none());
        group.start_failed(error, failed);
        assert!(group.backoff.lock().next(failed) > failed);
    }
}
