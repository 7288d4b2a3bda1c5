//! The check a deploy makes of its Wasm: it compiles, links, and exports what it must.

use crate::templates::Templates;
use async_trait::async_trait;

use fnctl_core::deploy::Step;
use fnctl_core::ports::ArtifactCheck;
use fnctl_core::version::Version;
use fnctl_core::{ErrorKind, Failure};
use std::sync::Arc;

/// Compiles and links the artifact of a candidate.
pub struct WasmCheck {
    templates: Arc<Templates>,
}

impl std::fmt::Debug for WasmCheck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WasmCheck").finish_non_exhaustive()
    }
}

impl WasmCheck {
    pub(crate) fn new(templates: Arc<Templates>) -> Self {
        Self { templates }
    }
}

#[async_trait]
impl ArtifactCheck for WasmCheck {
    fn step(&self) -> Step {
        Step::Compile
    }

    async fn check(&self, version: &Arc<Version>) -> Result<String, Failure> {
        let loaded = self.templates.get(version).await?;
        let kind = Templates::describe(&loaded.template.kind);
        let wanted = version.config.instance_concurrency;
        if wanted.get() > 1 && !loaded.template.kind.can_share() {
            return Err(Failure::new(
                ErrorKind::InvalidConfig,
                format!(
                    "instance_concurrency: {wanted} is not possible for a {kind}: only a WASI 0.3 component can serve several requests at once; set it to 1, and raise concurrency for more instances"
                ),
            ));
        }
        Ok(if loaded.compile.is_zero() {
            format!("{kind}, already compiled")
        } else {
            kind.to_owned()
        })
    }
}
