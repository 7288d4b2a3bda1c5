//! What was deployed, in memory, with the rules of the real store: numbers are never used twice, old versions that no
//! alias names are forgotten, and a change is visible a little before whoever made it goes on.

use super::plan::Draws;
use async_trait::async_trait;
use fnctl_core::deploy::{Draft, live_alias};
use fnctl_core::ids::{AliasName, Digest, FunctionName};
use fnctl_core::ports::{ArtifactStore, FunctionStore};
use fnctl_core::version::{Alias, Function, Selector, Version, VersionKey};
use fnctl_core::{Body, ErrorKind, Failure, VersionNumber};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Versions kept besides those that an alias names.
const KEEP: usize = 4;

/// Outlives a life of the platform.
#[derive(Default)]
pub(super) struct FakeStore(Mutex<State>);

#[derive(Default)]
struct State {
    functions: BTreeMap<FunctionName, Arc<Function>>,
    next: BTreeMap<FunctionName, u32>,
    writes: u64,
    /// Versions that were removed: somebody may have resolved them just before.
    gone: Vec<Arc<Version>>,
}

impl FakeStore {
    /// Writing to the disk, and waking up whoever waits for it: each takes as long as it takes.
    async fn disk(&self) {
        let ms = {
            let mut state = self.0.lock();
            state.writes += 1;
            Draws::keyed(state.writes, 77, 0).among(1, 9)
        };
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }
}

fn unknown() -> Failure {
    Failure::new(ErrorKind::NotFound, "no such function")
}

impl FakeStore {
    /// A version that has been removed.
    pub(super) fn gone(&self, name: &FunctionName) -> Option<Arc<Version>> {
        let state = self.0.lock();
        let mut gone = state.gone.iter().rev();
        gone.find(|version| version.function == *name).cloned()
    }

    pub(super) fn function(&self, name: &FunctionName) -> Option<Arc<Function>> {
        self.0.lock().functions.get(name).cloned()
    }

    /// Versions that exist.
    pub(super) fn versions(&self) -> BTreeSet<VersionKey> {
        let state = self.0.lock();
        let versions = state
            .functions
            .values()
            .flat_map(|function| function.versions.values());
        versions.map(|version| version.key()).collect()
    }

    fn change<R>(
        &self,
        name: &FunctionName,
        change: impl FnOnce(&mut Function) -> Result<R, Failure>,
    ) -> Result<R, Failure> {
        let mut state = self.0.lock();
        let mut function = state
            .functions
            .get(name)
            .ok_or_else(unknown)?
            .as_ref()
            .clone();
        let changed = change(&mut function)?;
        state.functions.insert(name.clone(), Arc::new(function));
        Ok(changed)
    }
}

/// Whether an alias names a version.
pub(super) fn names(function: &Function, number: VersionNumber) -> bool {
    function.aliases.values().any(|alias| {
        alias.version == number || alias.split.is_some_and(|split| split.version == number)
    })
}

#[async_trait]
impl FunctionStore for FakeStore {
    fn resolve(&self, name: &FunctionName, selector: &Selector, draw: u64) -> Option<Arc<Version>> {
        self.function(name)?.resolve(selector, draw).cloned()
    }

    fn functions(&self, name: Option<&FunctionName>) -> Vec<Arc<Function>> {
        let state = self.0.lock();
        let all = state.functions.values();
        all.filter(|function| name.is_none_or(|name| function.name == *name))
            .cloned()
            .collect()
    }

    async fn commit(&self, draft: Draft) -> Result<Arc<Version>, Failure> {
        self.disk().await;
        let version = {
            let mut state = self.0.lock();
            let name = draft.function.clone();
            let next = state.next.entry(name.clone()).or_insert(0);
            *next += 1;
            let version = Arc::new(Version {
                function: name.clone(),
                number: VersionNumber(*next),
                artifact: draft.artifact,
                models: draft.models,
                config: draft.config,
                created_ms: 0,
            });
            let old = state
                .functions
                .get(&name)
                .map(|function| function.as_ref().clone());
            let mut function = old.unwrap_or_else(|| Function {
                name: name.clone(),
                versions: BTreeMap::new(),
                aliases: BTreeMap::new(),
            });
            function.versions.insert(version.number, version.clone());
            function
                .aliases
                .insert(live_alias()?, Alias::to(version.number));
            let excess = function.versions.len().saturating_sub(KEEP);
            let numbers = function.versions.keys().copied();
            let unnamed = numbers.filter(|number| !names(&function, *number));
            for number in unnamed.take(excess).collect::<Vec<_>>() {
                state.gone.extend(function.versions.remove(&number));
            }
            state.functions.insert(name, Arc::new(function));
            version
        };
        self.disk().await;
        Ok(version)
    }

    async fn set_alias(
        &self,
        name: &FunctionName,
        alias: &AliasName,
        to: Option<Alias>,
    ) -> Result<(), Failure> {
        self.disk().await;
        self.change(name, |function| {
            match to {
                Some(to) => {
                    let known = |number| function.versions.contains_key(&number);
                    if !known(to.version) || to.split.is_some_and(|split| !known(split.version)) {
                        return Err(Failure::new(ErrorKind::Conflict, "the version is gone"));
                    }
                    function.aliases.insert(alias.clone(), to);
                }
                None => drop(function.aliases.remove(alias).ok_or_else(unknown)?),
            }
            Ok(())
        })?;
        self.disk().await;
        Ok(())
    }

    async fn remove(&self, name: &FunctionName) -> Result<Arc<Function>, Failure> {
        self.disk().await;
        let function = {
            let mut state = self.0.lock();
            let function = state.functions.remove(name).ok_or_else(unknown)?;
            state.gone.extend(function.versions.values().cloned());
            function
        };
        self.disk().await;
        Ok(function)
    }
}

/// Has every artifact.
pub(super) struct AllArtifacts;

#[async_trait]
impl ArtifactStore for AllArtifacts {
    async fn put(&self, _body: Body, _limit: u64) -> Result<(Digest, u64), Failure> {
        Err(Failure::internal("nobody uploads here"))
    }

    fn locate(&self, _digest: &Digest) -> Option<(PathBuf, u64)> {
        Some((PathBuf::new(), 1))
    }

    async fn verify(&self, _digest: &Digest) -> Result<PathBuf, Failure> {
        Ok(PathBuf::new())
    }

    async fn collect(&self) -> Result<usize, Failure> {
        Ok(0)
    }
}
