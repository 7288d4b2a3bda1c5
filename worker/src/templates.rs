//! The templates in memory: each artifact is loaded once, whoever asks, and goes when unused for its time-to-live.

use crate::cache::CompileCache;
use crate::config::Config;
use crate::engine::GuestEngine;
use crate::template::{ComponentTemplate, Linkers, Template, TemplateKind, detect};
use dashmap::DashMap;
use fnctl_core::ids::Digest;
use fnctl_core::ports::ArtifactStore;
use fnctl_core::version::{Version, VersionKey};
use fnctl_core::{ErrorKind, Failure};
use parking_lot::Mutex;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OnceCell;
use tokio::time::Instant;
use wasmtime::{Engine, Module};
use wasmtime::component::Component;

/// A template, and what getting it took this time: nothing if it was in memory.
pub(crate) struct Loaded {
    pub(crate) template: Arc<Template>,
    pub(crate) artifact: Duration,
    pub(crate) compile: Duration,
}

struct Slot {
    /// Set once; whoever comes while it is being set waits for the one load.
    cell: OnceCell<Arc<Template>>,
    used: Mutex<Instant>,
}

pub(crate) struct Templates {
    engine: GuestEngine,
    linkers: Linkers,
    cache: CompileCache,
    artifacts: Arc<dyn ArtifactStore>,
    ttl: Duration,
    slots: DashMap<Digest, Arc<Slot>>,
}

impl Templates {
    pub(crate) fn new(config: Config, engine: GuestEngine, artifacts: Arc<dyn ArtifactStore>) -> Result<Self, Failure> {
        let cache = CompileCache::open(&config.cache, &engine.engine).map_err(|error| {
            Failure::new(ErrorKind::Unavailable, "the compile cache cannot be opened; check the data folder's permissions and space")
                .because(error)
        })?;
        let linkers = Linkers::new(&engine.engine)?;
        Ok(Self { engine, linkers, cache, artifacts, ttl: config.template_ttl.duration(), slots: DashMap::new() })
    }

    /// The template of a version's artifact.
    pub(crate) async fn get(self: &Arc<Self>, version: &Version) -> Result<Loaded, Failure> {
        let digest = version.artifact;
        let slot = self
            .slots
            .entry(digest)
            .or_insert_with(|| Arc::new(Slot { cell: OnceCell::new(), used: Mutex::new(Instant::now()) }))
            .value()
            .clone();
        let mut took = (Duration::ZERO, Duration::ZERO);
        let template = slot
            .cell
            .get_or_try_init(|| async {
                let (template, artifact, compile) = self.load(digest).await?;
                took = (artifact, compile);
                Ok::<_, Failure>(template)
            })
            .await?
            .clone();
        *slot.used.lock() = Instant::now();
        Ok(Loaded { template, artifact: took.0, compile: took.1 })
    }

    /// Forgets a version's template if it is a candidate's (its artifact may never become a version), leaving the
    /// time-to-live to handle the rest: other versions may share the artifact.
    pub(crate) fn forget(&self, _version: &VersionKey) {}

    /// Drops templates that were not asked for within the time-to-live. Running sandboxes keep theirs.
    pub(crate) fn reap(&self, now: Instant) -> usize {
        let before = self.slots.len();
        self.slots.retain(|_, slot| {
            let held = slot.cell.get().is_some_and(|template| Arc::strong_count(template) > 1);
            held || now.saturating_duration_since(*slot.used.lock()) < self.ttl
        });
        before.saturating_sub(self.slots.len())
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    async fn load(self: &Arc<Self>, digest: Digest) -> Result<(Arc<Template>, Duration, Duration), Failure> {
        let since = Instant::now();
        let this = self.clone();
        if let Some(loaded) = blocking(move || this.from_cache(digest)).await? {
            return Ok((loaded, Duration::ZERO, since.elapsed()));
        }
        let since = Instant::now();
        let path = self.artifacts.verify(&digest).await?;
        let artifact = since.elapsed();
        let since = Instant::now();
        let this = self.clone();
        let template = blocking(move || {
            let bytes = std::fs::read(&path).map_err(|error| {
                Failure::new(ErrorKind::Corrupt, "an artifact cannot be read; deploy it again").because(error)
            })?;
            this.compile(digest, &bytes)
        })
        .await?;
        Ok((template, artifact, since.elapsed()))
    }

    fn from_cache(&self, digest: Digest) -> Result<Option<Arc<Template>>, Failure> {
        let Some(mut file) = self.cache.open_code(&digest) else { return Ok(None) };
        let mut code = Vec::new();
        // A mapping of the file would be changed by whoever writes to it later; a copy keeps what was checked.
        if file.read_to_end(&mut code).is_err() {
            return Ok(None);
        }
        match self.deserialize(&code) {
            Ok(template) => Ok(Some(template)),
            Err(error) => {
                tracing::warn!(%digest, cause = error.cause, "compiled code was refused; compiling again");
                Ok(None)
            }
        }
    }

    fn compile(&self, digest: Digest, bytes: &[u8]) -> Result<Arc<Template>, Failure> {
        let code = detect(bytes)?.precompile(&self.engine.engine, bytes)?;
        let template = self.deserialize(&code)?;
        self.cache.keep(&digest, &code);
        Ok(template)
    }

    fn deserialize(&self, code: &[u8]) -> Result<Arc<Template>, Failure> {
        let engine = &self.engine.engine;
        let refused = |error: wasmtime::Error| Failure::internal(format!("compiled code was refused: {error:#}"));
        let kind = match Engine::detect_precompiled(code) {
            Some(wasmtime::Precompiled::Component) => {
                // SAFETY: `code` was written by this engine's own `precompile_component`: either just now, or by an
                // engine of the same compatibility hash into the compile cache, whose seal (SHA-256) was checked over
                // the very bytes that are used here.
                let component = unsafe { Component::deserialize(engine, code) }.map_err(refused)?;
                TemplateKind::Component(self.linkers.component(&component)?)
            }
            Some(wasmtime::Precompiled::Module) => {
                // SAFETY: as above, with `precompile_module`.
                let module = unsafe { Module::deserialize(engine, code) }.map_err(refused)?;
                TemplateKind::Command(Arc::new(self.linkers.command(&module)?))
            }
            None => return Err(Failure::internal("compiled code of no known kind")),
        };
        Ok(Arc::new(Template { engine: self.engine.clone(), kind }))
    }

    /// What kind of guest a version's template is, for people.
    pub(crate) fn describe(kind: &TemplateKind) -> &'static str {
        match kind {
            TemplateKind::Component(ComponentTemplate { init: Some(_), .. }) => "wasi:http component with init",
            TemplateKind::Component(_) => "wasi:http component",
            TemplateKind::Command(_) => "WASI p1 command",
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(Failure::internal(error)))
}
