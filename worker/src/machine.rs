//! An engine with what was made for it: linkers and compile cache. Turns bytes into templates.

use crate::cache::{self, CompileCache};
use crate::config::Config;
use crate::engine::{Concurrency, GuestEngine};
use crate::template::{GuestKind, Linkers, Template, TemplateKind};
use fnctl_core::ids::Digest;
use fnctl_core::ladder::RungCost;
use fnctl_core::{ErrorKind, Failure};
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::time::Instant;
use wasmtime::component::Component;
use wasmtime::{Engine, Module};

/// See the module. Everything here blocks.
pub(crate) struct Machine {
    engine: GuestEngine,
    linkers: Linkers,
    cache: CompileCache,
}

impl Machine {
    pub(crate) fn open(config: &Config, concurrency: Concurrency) -> Result<Self, Failure> {
        let engine = GuestEngine::new(config, concurrency)?;
        let root = match concurrency {
            Concurrency::Without => config.cache.clone(),
            Concurrency::With => config.cache.join(cache::NESTED),
        };
        let cache = CompileCache::open(&root, &engine.engine).map_err(|error| {
            Failure::new(
                ErrorKind::Unavailable,
                "the compile cache cannot be opened; check the data folder's permissions and space",
            )
            .because(error)
        })?;
        let linkers = Linkers::new(&engine.engine, concurrency)?;
        Ok(Self {
            engine,
            linkers,
            cache,
        })
    }

    /// The template of code that was compiled before, if it is there and usable.
    pub(crate) fn cached(&self, digest: Digest) -> Option<Arc<Template>> {
        let since = Instant::now();
        let code = self.cache.read(&digest)?;
        match self.deserialize(&code, since) {
            Ok(template) => Some(template),
            Err(error) => {
                tracing::warn!(%digest, cause = error.cause, "compiled code was refused; compiling again");
                None
            }
        }
    }

    /// Compiles an artifact and keeps the code.
    pub(crate) fn compile(
        &self,
        kind: GuestKind,
        digest: Digest,
        bytes: &[u8],
    ) -> Result<Arc<Template>, Failure> {
        let code = kind.precompile(&self.engine.engine, bytes)?;
        // Compiling is not what comes again when the template is let go: the code is kept.
        let template = self.deserialize(&code, Instant::now())?;
        self.cache.keep(&digest, &code);
        Ok(template)
    }

    /// Removes the code of artifacts that are no longer wanted. Returns how many.
    pub(crate) fn retain(&self, wanted: impl Fn(&Digest) -> bool) -> usize {
        self.cache.retain(wanted)
    }

    /// Makes a template of compiled code; getting it began at `since`.
    fn deserialize(&self, code: &[u8], since: Instant) -> Result<Arc<Template>, Failure> {
        let engine = &self.engine.engine;
        let refused = |error: wasmtime::Error| {
            Failure::internal(format!("compiled code was refused: {error:#}"))
        };
        let kind = match Engine::detect_precompiled(code) {
            Some(wasmtime::Precompiled::Component) => {
                // SAFETY: `code` was written by this engine's own `precompile_component`: either just now, or by an
                // engine of the same compatibility hash into the compile cache, whose seal (SHA-256) was checked over
                // the very bytes in this vector.
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
        Ok(Arc::new(Template {
            engine: self.engine.clone(),
            kind,
            cost: RungCost {
                took: since.elapsed(),
                bytes: code.len() as u64,
            },
            wishes: Mutex::default(),
        }))
    }
}
