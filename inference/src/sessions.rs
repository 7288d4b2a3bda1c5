//! The loaded sessions: each model is loaded once, whoever asks, and counted by its uses.

use dashmap::DashMap;
use fnctl_core::config::InferenceIsolation;
use fnctl_core::ids::{Digest, FunctionName};
use fnctl_core::inference::{
    InferenceError, KeepWish, LoadModel, LoadedModel, ModelInfo, ModelSource, SessionId,
};
use fnctl_core::ladder::{Over, RungCost, Wishes};
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
    wishes: Wishes,
    /// Taken out of the map: not to be used again.
    gone: bool,
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
                wishes: Wishes::default(),
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
        let mut usage = entry.usage.lock();
        usage.uses = usage.uses.saturating_sub(1);
        usage.idle_since = now;
        usage.wishes.say(&wish.function, wish.until, now);
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

    /// What a function said about how long its sessions are kept does not hold any more.
    pub(crate) fn forget(&self, function: &FunctionName, now: Instant) {
        for entry in self.by_key.lock().values() {
            entry.usage.lock().wishes.forget(function, now);
        }
    }

    /// Takes out the sessions without a use that `chosen` says yes to. They are unloaded by being dropped, once the last
    /// run on them has ended.
    pub(crate) fn take_unused(&self, chosen: impl Fn(SessionId) -> bool) -> Vec<Arc<S>> {
        self.take(|id, _| chosen(id).then_some(()))
            .into_iter()
            .map(|(session, ())| session)
            .collect()
    }

    /// Takes out the sessions without a use that nobody wants kept any more: those whose time-to-live is over, and those
    /// that a policy let go.
    pub(crate) fn take_unwanted(&self, now: Instant, ttl: Duration) -> (Vec<Arc<S>>, Vec<Arc<S>>) {
        let (mut expired, mut by_policy) = (Vec::new(), Vec::new());
        for (session, why) in self.take(|_, usage| usage.wishes.over(usage.idle_since, now, ttl)) {
            match why {
                Over::TimeToLive => expired.push(session),
                Over::Policy => by_policy.push(session),
            }
        }
        (expired, by_policy)
    }

    fn take<R>(&self, chosen: impl Fn(SessionId, &mut Usage) -> Option<R>) -> Vec<(Arc<S>, R)> {
        let mut taken = Vec::new();
        self.by_key.lock().retain(|_, entry| {
            let mut usage = entry.usage.lock();
            // Asked of those in use as well, as wishes whose time has passed are forgotten on the way.
            let Some(why) = chosen(entry.id, &mut usage).filter(|_| usage.uses == 0) else {
                return true;
            };
            usage.gone = true;
            self.by_id.remove(&entry.id);
            taken.extend(entry.cell.get().cloned().map(|session| (session, why)));
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
