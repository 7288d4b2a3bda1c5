//! The templates in memory: each artifact is loaded once, whoever asks, and goes when nobody wants it kept any more.

use crate::config::Config;
use crate::engine::Concurrency;
use crate::machine::Machine;
use crate::template::{GuestKind, HandlerIndices, Template, TemplateKind, detect};
use dashmap::DashMap;
use fnctl_core::ids::{Digest, FunctionName};
use fnctl_core::ladder::Over;
use fnctl_core::ports::ArtifactStore;
use fnctl_core::version::Version;
use fnctl_core::{ErrorKind, Failure};
use parking_lot::Mutex;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{OnceCell, Semaphore};
use tokio::time::Instant;

/// A template, and what getting it took this time: nothing if it was in memory.
pub(crate) struct Loaded {
    pub(crate) template: Arc<Template>,
    pub(crate) artifact: Duration,
    pub(crate) compile: Duration,
}

/// Templates that went because nobody wanted them kept any more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reaped {
    /// Their time-to-live was over.
    pub expired: usize,
    /// The functions' policies wanted them no longer.
    pub by_policy: usize,
}

struct Slot {
    /// Set once; whoever comes while it is being set waits for the one load.
    cell: OnceCell<Arc<Template>>,
    used: Mutex<Instant>,
}

pub(crate) struct Templates {
    /// For commands and components of WASI 0.2.
    plain: Machine,
    /// For components of WASI 0.3.
    concurrent: OnceLock<Machine>,
    making: Mutex<()>,
    config: Config,
    artifacts: Arc<dyn ArtifactStore>,
    slots: DashMap<Digest, Arc<Slot>>,
    compiling: Semaphore,
}

impl Templates {
    pub(crate) fn new(config: Config, artifacts: Arc<dyn ArtifactStore>) -> Result<Self, Failure> {
        Ok(Self {
            plain: Machine::open(&config, Concurrency::Without)?,
            concurrent: OnceLock::new(),
            making: Mutex::new(()),
            config,
            artifacts,
            slots: DashMap::new(),
            compiling: Semaphore::new(2),
        })
    }

    /// The template of a version's artifact.
    pub(crate) async fn get(self: &Arc<Self>, version: &Version) -> Result<Loaded, Failure> {
        let digest = version.artifact;
        let slot = self
            .slots
            .entry(digest)
            .or_insert_with(|| {
                Arc::new(Slot {
                    cell: OnceCell::new(),
                    used: Mutex::new(Instant::now()),
                })
            })
            .value()
            .clone();
        *slot.used.lock() = Instant::now();
        if let Some(template) = slot.cell.get() {
            return Ok(Loaded {
                template: template.clone(),
                artifact: Duration::ZERO,
                compile: Duration::ZERO,
            });
        }
        // In a task of its own: a caller that gives up must not undo the work that the next one waits for.
        let this = self.clone();
        let load = tokio::spawn(async move {
            let mut artifact = Duration::ZERO;
            let load = async {
                let (template, took) = this.load(digest).await?;
                artifact = took;
                Ok::<_, Failure>(template)
            };
            let template = slot.cell.get_or_try_init(|| load).await?.clone();
            *slot.used.lock() = Instant::now();
            Ok::<_, Failure>((template, artifact))
        });
        let since = Instant::now();
        let (template, artifact) = load
            .await
            .unwrap_or_else(|error| Err(Failure::internal(error)))?;
        Ok(Loaded {
            template,
            artifact,
            compile: since.elapsed().saturating_sub(artifact),
        })
    }

    /// Removes compiled code from the disk whose artifact is no longer in the store. Blocks.
    pub(crate) fn collect(&self) -> usize {
        std::iter::once(&self.plain)
            .chain(self.concurrent.get())
            .map(|machine| machine.retain(|digest| self.artifacts.locate(digest).is_some()))
            .sum()
    }

    /// Drops templates that nobody wants kept any more: not asked for within the time-to-live, or let go by the policies of
    /// the functions that used them. Running sandboxes keep theirs.
    pub(crate) fn reap(&self, now: Instant) -> Reaped {
        let mut reaped = Reaped::default();
        self.slots.retain(|_, slot| {
            let mut used = slot.used.lock();
            let Some(template) = slot.cell.get() else {
                // A load that failed, or that goes on: whoever waits for it has the slot.
                return Arc::strong_count(slot) > 1;
            };
            if Arc::strong_count(template) > 1 {
                // In use by a sandbox: its time-to-live begins when the last one goes.
                *used = now;
                return true;
            }
            let ttl = self.config.template_ttl.duration();
            let over = template.wishes.lock().over(*used, now, ttl);
            match over {
                None => return true,
                Some(Over::TimeToLive) => reaped.expired += 1,
                Some(Over::Policy) => reaped.by_policy += 1,
            }
            false
        });
        reaped
    }

    /// What a function said about how long its templates are kept does not hold any more.
    pub(crate) fn forget(&self, function: &FunctionName, now: Instant) {
        let loaded = |slot: &Arc<Slot>| slot.cell.get().cloned();
        for template in self.slots.iter().filter_map(|slot| loaded(slot.value())) {
            template.wishes.lock().forget(function, now);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Loads a template, and says how long reading and verifying the artifact took.
    async fn load(self: &Arc<Self>, digest: Digest) -> Result<(Arc<Template>, Duration), Failure> {
        let this = self.clone();
        if let Some(loaded) = blocking(move || Ok(this.cached(digest))).await? {
            return Ok((loaded, Duration::ZERO));
        }
        let since = Instant::now();
        let path = self.artifacts.verify(&digest).await?;
        let artifact = since.elapsed();
        // One compilation uses every core already. The semaphore is never closed.
        let _permit = self.compiling.acquire().await;
        let this = self.clone();
        let template = blocking(move || {
            let bytes = std::fs::read(&path).map_err(|error| {
                Failure::new(
                    ErrorKind::Corrupt,
                    "an artifact cannot be read; deploy it again",
                )
                .because(error)
            })?;
            this.compile(digest, &bytes)
        })
        .await?;
        Ok((template, artifact))
    }

    fn cached(&self, digest: Digest) -> Option<Arc<Template>> {
        self.plain
            .cached(digest)
            .or_else(|| self.concurrent.get()?.cached(digest))
    }

    fn compile(&self, digest: Digest, bytes: &[u8]) -> Result<Arc<Template>, Failure> {
        let kind = detect(bytes)?;
        match self.plain.compile(kind, digest, bytes) {
            // What needs WASI 0.3 does not pass the validation of an engine without it.
            Err(refused)
                if refused.kind == ErrorKind::InvalidArtifact && kind == GuestKind::Component =>
            {
                let machine = self.concurrent()?;
                machine
                    .cached(digest)
                    .map_or_else(|| machine.compile(kind, digest, bytes), Ok)
            }
            done => done,
        }
    }

    /// The machine for components of WASI 0.3; made when the first of them comes, since it reserves as much address
    /// space as the other.
    fn concurrent(&self) -> Result<&Machine, Failure> {
        let _one_makes_it = self.making.lock();
        if let Some(machine) = self.concurrent.get() {
            return Ok(machine);
        }
        let machine = Machine::open(&self.config, Concurrency::With)?;
        Ok(self.concurrent.get_or_init(|| machine))
    }

    /// What kind of guest a version's template is, for people.
    pub(crate) fn describe(kind: &TemplateKind) -> &'static str {
        match kind {
            TemplateKind::Component(component) => match (&component.handler, &component.init) {
                (HandlerIndices::P2(_), None) => "wasi:http component",
                (HandlerIndices::P2(_), Some(_)) => "wasi:http component with init",
                (HandlerIndices::P3(_), None) => "wasi:http 0.3 component",
                (HandlerIndices::P3(_), Some(_)) => "wasi:http 0.3 component with init",
            },
            TemplateKind::Command(_) => "WASI p1 command",
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Failure::internal(error)))
}
