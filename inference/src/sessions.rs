//! The loaded sessions: each model is loaded once, whoever asks, and counted by its uses.

use dashmap::DashMap;
use fnctl_core::config::InferenceIsolation;
use fnctl_core::ids::{Digest, FunctionName};
use fnctl_core::inference::{
    InferenceError, KeepWish, LoadModel, LoadedModel, ModelInfo, ModelSource, SessionId,
};
use fnctl_core::ladder::RungCost;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::OnceCell;
use tokio::time::Instant;

/// The identity of a session. A declared model is shared by every function that declares it; bytes that a guest brought,
/// and the models of a function with a host of its own, are that function's only.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct SessionKey {
    pub(crate) digest: Digest,
    /// Whose it is, if it is not shared.
    pub(crate) owner: Option<FunctionName>,
    /// Whether the owner has a host of its own.
    pub(crate) isolation: InferenceIsolation,
}

impl SessionKey {
    pub(crate) fn of(request: &LoadModel) -> Self {
        let (digest, brought) = match &request.source {
            ModelSource::Artifact { digest, .. } => (*digest, false),
            ModelSource::Bytes(bytes) => (Digest::of(bytes), true),
        };
        let owned = brought || request.isolation == InferenceIsolation::Dedicated;
        Self {
            digest,
            owner: owned.then(|| request.function.clone()),
            isolation: request.isolation,
        }
    }
}

/// What is kept for a session.
pub(crate) trait Loaded {
    /// What the model takes and gives.
    fn info(&self) -> Arc<ModelInfo>;

    /// What loading it took, and the memory it takes.
    fn cost(&self) -> RungCost;
}

struct Entry<S> {
    id: SessionId,
    /// Set once; whoever comes while it is being set waits for the one load.
    cell: OnceCell<Arc<S>>,
    usage: Mutex<Usage>,
}

/// A session without a use.
pub(crate) struct Unused<S> {
    pub(crate) id: SessionId,
    /// Whose it is, if it is not shared.
    pub(crate) owner: Option<FunctionName>,
    pub(crate) session: Arc<S>,
    pub(crate) since: Instant,
}

/// Since when nobody uses a session, and how long it is wanted all the same.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Idleness {
    /// When its last use ended.
    pub(crate) since: Instant,
    /// When the last use ended of a function that leaves it to the time-to-live.
    unsaid: Option<Instant>,
    /// The latest time until which a function wants it kept.
    wished: Option<Instant>,
}

impl Idleness {
    /// Why it is to go now, as a metric's label; nothing while it is wanted.
    pub(crate) fn over(&self, now: Instant, ttl: Duration) -> Option<&'static str> {
        let lasts = |since: Instant| now.saturating_duration_since(since) < ttl;
        match (self.unsaid, self.wished) {
            (Some(unsaid), _) if lasts(unsaid) => None,
            (_, Some(wished)) => (wished <= now).then_some("policy"),
            (None, None) if lasts(self.since) => None,
            (_, None) => Some("ttl"),
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

impl Reaped {
    /// All of them.
    pub fn count(&self) -> usize {
        self.expired + self.by_policy + self.hosts
    }
}

struct Usage {
    uses: usize,
    idle_since: Instant,
    /// The last words of those that used it, and when they were said. No more than functions that use it.
    wishes: Vec<(Instant, KeepWish)>,
    /// Taken out of the map: not to be used again.
    gone: bool,
}

impl Usage {
    fn given_back(&mut self, wish: KeepWish, now: Instant) {
        self.uses = self.uses.saturating_sub(1);
        self.idle_since = now;
        match self
            .wishes
            .iter_mut()
            .find(|(_, known)| known.function == wish.function)
        {
            Some(known) => *known = (now, wish),
            None => self.wishes.push((now, wish)),
        }
    }

    fn idleness(&self) -> Idleness {
        let unsaid = self.wishes.iter().filter(|(_, wish)| wish.until.is_none());
        Idleness {
            since: self.idle_since,
            unsaid: unsaid.map(|(said, _)| *said).max(),
            wished: self.wishes.iter().filter_map(|(_, wish)| wish.until).max(),
        }
    }
}

pub(crate) struct Sessions<S> {
    by_key: Mutex<HashMap<SessionKey, Arc<Entry<S>>>>,
    by_id: DashMap<SessionId, Arc<Entry<S>>>,
    next: AtomicU64,
}

impl<S> Default for Sessions<S> {
    fn default() -> Self {
        Self {
            by_key: Mutex::default(),
            by_id: DashMap::default(),
            next: AtomicU64::default(),
        }
    }
}

impl<S: Loaded> Sessions<S> {
    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// One use of the session of a model, which `load` loads if it is not there.
    pub(crate) async fn acquire<F>(
        &self,
        key: SessionKey,
        load: impl FnOnce(SessionId) -> F,
    ) -> Result<LoadedModel, InferenceError>
    where
        F: Future<Output = Result<S, InferenceError>>,
    {
        let entry = self.enter(&key);
        // The use is counted before the load, so that nobody unloads what is awaited; given back if it comes to nothing.
        let give_back = GiveBack {
            sessions: self,
            entry: &entry,
            key: &key,
        };
        let session = entry
            .cell
            .get_or_try_init(|| async { load(entry.id).await.map(Arc::new) })
            .await?;
        let loaded = LoadedModel {
            session: entry.id,
            info: session.info(),
            cost: session.cost(),
        };
        self.by_id.entry(entry.id).or_insert_with(|| entry.clone());
        std::mem::forget(give_back);
        Ok(loaded)
    }

    fn enter(&self, key: &SessionKey) -> Arc<Entry<S>> {
        let mut by_key = self.by_key.lock();
        if let Some(entry) = by_key.get(key) {
            let mut usage = entry.usage.lock();
            if !usage.gone {
                usage.uses += 1;
                drop(usage);
                return entry.clone();
            }
        }
        let entry = Arc::new(Entry {
            id: SessionId(self.next.fetch_add(1, Ordering::Relaxed)),
            cell: OnceCell::new(),
            usage: Mutex::new(Usage {
                uses: 1,
                idle_since: Instant::now(),
                wishes: Vec::new(),
                gone: false,
            }),
        });
        by_key.insert(key.clone(), entry.clone());
        entry
    }

    pub(crate) fn get(&self, id: SessionId) -> Option<Arc<S>> {
        let entry = self.by_id.get(&id)?.value().clone();
        entry.cell.get().cloned()
    }

    pub(crate) fn release(&self, id: SessionId, wish: KeepWish, now: Instant) {
        let Some(entry) = self.by_id.get(&id).map(|entry| entry.value().clone()) else {
            return;
        };
        entry.usage.lock().given_back(wish, now);
    }

    /// The sessions without a use, and since when.
    pub(crate) fn unused(&self) -> Vec<Unused<S>> {
        let by_key = self.by_key.lock();
        let unused = by_key.iter().filter_map(|(key, entry)| {
            let usage = entry.usage.lock();
            let session = entry.cell.get().filter(|_| usage.uses == 0)?;
            Some(Unused {
                id: entry.id,
                owner: key.owner.clone(),
                session: session.clone(),
                since: usage.idle_since,
            })
        });
        unused.collect()
    }

    /// Takes out the sessions without a use that `expired` says yes to. They are unloaded by being dropped, once the last
    /// run on them has ended.
    pub(crate) fn take_unused(&self, expired: impl Fn(SessionId, Idleness) -> bool) -> Vec<Arc<S>> {
        let mut taken = Vec::new();
        self.by_key.lock().retain(|_, entry| {
            let mut usage = entry.usage.lock();
            if usage.uses > 0 || !expired(entry.id, usage.idleness()) {
                return true;
            }
            usage.gone = true;
            self.by_id.remove(&entry.id);
            taken.extend(entry.cell.get().cloned());
            false
        });
        taken
    }
}

struct GiveBack<'a, S> {
    sessions: &'a Sessions<S>,
    entry: &'a Arc<Entry<S>>,
    key: &'a SessionKey,
}

impl<S> Drop for GiveBack<'_, S> {
    fn drop(&mut self) {
        let mut by_key = self.sessions.by_key.lock();
        let mut usage = self.entry.usage.lock();
        usage.uses = usage.uses.saturating_sub(1);
        // A load that failed and that nobody else waits for leaves nothing behind.
        if usage.uses == 0 && self.entry.cell.get().is_none() {
            usage.gone = true;
            if by_key
                .get(self.key)
                .is_some_and(|entry| Arc::ptr_eq(entry, self.entry))
            {
                by_key.remove(self.key);
            }
        } else if let Some(_loaded) = self.entry.cell.get() {
            // Loaded for somebody who stopped waiting: known by its id, so that it can expire.
            self.sessions
                .by_id
                .entry(self.entry.id)
                .or_insert_with(|| self.entry.clone());
        }
    }
}

/// A use of a session on its way to the caller, who may be gone by the time it arrives: dropped unclaimed, it is given
/// back.
pub(crate) struct Unclaimed<R: FnOnce(SessionId)> {
    loaded: Option<(LoadedModel, R)>,
}

impl<R: FnOnce(SessionId)> Unclaimed<R> {
    pub(crate) fn new(loaded: LoadedModel, release: R) -> Self {
        Self {
            loaded: Some((loaded, release)),
        }
    }

    pub(crate) fn claim(mut self) -> Result<LoadedModel, InferenceError> {
        match self.loaded.take() {
            Some((loaded, _)) => Ok(loaded),
            None => Err(crate::timed_out("the load was given up")),
        }
    }
}

impl<R: FnOnce(SessionId)> Drop for Unclaimed<R> {
    fn drop(&mut self) {
        if let Some((unwanted, release)) = self.loaded.take() {
            release(unwanted.session);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(300);

    fn wish(function: &str, until: Option<Instant>) -> KeepWish {
        KeepWish {
            function: function.parse().unwrap(),
            until,
        }
    }

    #[test]
    fn a_session_goes_when_the_last_of_its_functions_wants_it_no_longer() {
        let now = Instant::now();
        let after = |secs| now + Duration::from_secs(secs);
        let mut usage = Usage {
            uses: 3,
            idle_since: now,
            wishes: Vec::new(),
            gone: false,
        };
        let over = |usage: &Usage, at| usage.idleness().over(at, TTL);
        // By the platform's time, while nobody has said anything.
        assert_eq!(over(&usage, after(299)), None);
        assert_eq!(over(&usage, after(300)), Some("ttl"));
        // Sooner than that, and later.
        usage.given_back(wish("a", Some(after(10))), now);
        assert_eq!(over(&usage, after(9)), None);
        assert_eq!(over(&usage, after(10)), Some("policy"));
        usage.given_back(wish("b", Some(after(1000))), now);
        assert_eq!(over(&usage, after(999)), None);
        // A function's last word counts, not its longest.
        usage.given_back(wish("b", Some(after(20))), after(5));
        assert_eq!(over(&usage, after(20)), Some("policy"));
        // Who has no opinion has the platform's time from its own last use.
        usage.given_back(wish("c", None), after(30));
        assert_eq!(over(&usage, after(329)), None);
        assert_eq!(over(&usage, after(330)), Some("policy"));
        assert_eq!((usage.uses, usage.wishes.len()), (0, 3));
    }
}
