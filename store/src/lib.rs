//! What was deployed: functions, versions and aliases in sled, artifacts as files addressed by their SHA-256.
//!
//! The only crate that names sled. Invariants: what was acknowledged survives kill -9 and a power failure right after; a
//! half-written deploy is never visible; reads are answered from memory and never touch the disk; no lock is held over
//! an await.

mod artifacts;
mod durable;
mod functions;
mod records;
#[cfg(test)]
mod tests;

pub use durable::{PauseAt, WriteSteps};

use artifacts::Artifacts;
use async_trait::async_trait;
use durable::Durable;
use fnctl_core::deploy::Draft;
use fnctl_core::ids::{AliasName, Digest, FunctionName};
use fnctl_core::ports::{ArtifactStore, FunctionStore};
use fnctl_core::version::{Alias, Function, Selector, Version};
use fnctl_core::{Body, ErrorKind, Failure};
use functions::Functions;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// What an operator may set about the store.
#[derive(Debug, Clone)]
pub struct Config {
    /// The data folder.
    pub folder: PathBuf,
    /// How long an artifact that no version names is kept: the time a deploy has between upload and commit.
    pub artifact_grace: Duration,
    /// Versions kept per function; older ones that no alias names are forgotten.
    pub keep_versions: usize,
    /// For crash tests.
    pub steps: WriteSteps,
}

impl Config {
    /// The defaults for a data folder.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            artifact_grace: Duration::from_secs(3600),
            keep_versions: 50,
            steps: WriteSteps::default(),
        }
    }
}

/// Why a store could not be opened or used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk said no.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// sled said no.
    #[error("the database: {0}")]
    Database(#[from] sled::Error),
    /// An earlier write failed half-way.
    #[error(
        "an earlier write did not reach the disk, so what it left is unknown; free space or repair the disk, and restart"
    )]
    Poisoned,
    /// A record that this version cannot read.
    #[error(
        "record '{key}' is unreadable ({reason}); it was written by a newer fnctl, or the disk is damaged"
    )]
    Record {
        /// Its key.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl StoreError {
    fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { what, source }
    }

    /// The platform's kind.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { .. } | Self::Database(_) | Self::Poisoned => ErrorKind::Internal,
            Self::Record { .. } => ErrorKind::Corrupt,
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Failure::new(
            error.kind(),
            "the store could not do this; check the data folder's disk, then try again",
        )
        .because(error)
    }
}

/// The store of one platform.
#[derive(Debug, Clone)]
pub struct Store {
    functions: Arc<Functions>,
    artifacts: Arc<Artifacts>,
}

impl Store {
    /// Opens the store under the data folder, or makes it.
    pub fn open(config: Config) -> Result<Self, StoreError> {
        std::fs::create_dir_all(&config.folder)
            .map_err(StoreError::io("cannot make the data folder"))?;
        let durable = Arc::new(Durable::new(config.steps.clone()));
        // The database first: it is locked, so that a second platform on the same folder touches nothing.
        let functions = Functions::open(
            &config.folder.join("db"),
            config.keep_versions,
            durable.clone(),
        )?;
        let artifacts = Artifacts::open(&config.folder, config.artifact_grace, durable)?;
        Ok(Self {
            functions: Arc::new(functions),
            artifacts: Arc::new(artifacts),
        })
    }

    /// How many times a file or folder was forced to disk so far.
    pub fn syncs(&self) -> u64 {
        self.functions.syncs()
    }
}

#[async_trait]
impl FunctionStore for Store {
    fn resolve(&self, name: &FunctionName, selector: &Selector, draw: u64) -> Option<Arc<Version>> {
        self.functions.get(name)?.resolve(selector, draw).cloned()
    }

    fn functions(&self, name: Option<&FunctionName>) -> Vec<Arc<Function>> {
        match name {
            Some(name) => self.functions.get(name).into_iter().collect(),
            None => self.functions.all(),
        }
    }

    async fn commit(&self, draft: Draft) -> Result<Arc<Version>, Failure> {
        let functions = self.functions.clone();
        blocking(move || functions.commit(draft)).await
    }

    async fn set_alias(
        &self,
        name: &FunctionName,
        alias: &AliasName,
        to: Option<Alias>,
    ) -> Result<(), Failure> {
        let (functions, name, alias) = (self.functions.clone(), name.clone(), alias.clone());
        blocking(move || functions.set_alias(&name, &alias, to)).await
    }

    async fn remove(&self, name: &FunctionName) -> Result<Arc<Function>, Failure> {
        let (functions, name) = (self.functions.clone(), name.clone());
        blocking(move || functions.remove(&name)).await
    }
}

#[async_trait]
impl ArtifactStore for Store {
    async fn put(&self, body: Body, limit: u64) -> Result<(Digest, u64), Failure> {
        self.artifacts.put(body, limit).await
    }

    fn locate(&self, digest: &Digest) -> Option<(PathBuf, u64)> {
        self.artifacts.locate(digest)
    }

    async fn verify(&self, digest: &Digest) -> Result<PathBuf, Failure> {
        let (artifacts, digest) = (self.artifacts.clone(), *digest);
        blocking(move || artifacts.verify(&digest)).await
    }

    async fn collect(&self) -> Result<usize, Failure> {
        let (artifacts, functions) = (self.artifacts.clone(), self.functions.clone());
        blocking(move || {
            artifacts.collect(|digest| {
                functions.all().iter().any(|function| {
                    function
                        .versions
                        .values()
                        .any(|version| version.artifacts().any(|artifact| artifact == *digest))
                })
            })
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Failure::internal(error)))
}

/// Opens a folder, to force its entries to disk.
fn open_folder(path: &Path) -> std::io::Result<std::fs::File> {
    std::fs::File::open(path)
}
