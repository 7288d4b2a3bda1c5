//! The check a deploy makes of its models: each one loads, within the budget.

use crate::{Inference, Trial};
use async_trait::async_trait;
use fnctl_core::deploy::Step;
use fnctl_core::inference::{LoadModel, ModelInfo, ModelSource, Port};
use fnctl_core::ports::{ArtifactCheck, ArtifactStore};
use fnctl_core::version::Version;
use fnctl_core::{ErrorKind, Failure};
use std::sync::Arc;
use tokio::time::Instant;

/// Loads every model of a candidate.
pub struct ModelCheck {
    host: Inference,
    artifacts: Arc<dyn ArtifactStore>,
}

impl std::fmt::Debug for ModelCheck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ModelCheck").finish_non_exhaustive()
    }
}

impl ModelCheck {
    pub(crate) fn new(host: Inference, artifacts: Arc<dyn ArtifactStore>) -> Self {
        Self { host, artifacts }
    }
}

#[async_trait]
impl ArtifactCheck for ModelCheck {
    fn step(&self) -> Step {
        Step::LoadModel
    }

    async fn check(&self, version: &Arc<Version>) -> Result<String, Failure> {
        if version.models.is_empty() {
            self.host.forgive_function(&version.function);
            return Ok("no models".to_owned());
        }
        let mut trial = self.host.trial().await.map_err(|error| {
            Failure::new(
                error.error_kind(),
                "there is nothing to try the models with",
            )
            .because(error)
        })?;
        let found = self.try_models(version, &mut trial).await;
        trial.end().await;
        // Only now: one that loads says nothing for one that does not, and a deploy that is refused nothing at all.
        if found.is_ok() {
            self.host.forgive_function(&version.function);
            for model in version.models.values() {
                self.host.forgive(&model.digest, &version.function);
            }
        }
        found
    }
}

impl ModelCheck {
    async fn try_models(&self, version: &Version, trial: &mut Trial) -> Result<String, Failure> {
        let mut found = Vec::new();
        for (name, model) in &version.models {
            let (path, _) = self.artifacts.locate(&model.digest).ok_or_else(|| {
                Failure::new(
                    ErrorKind::Corrupt,
                    "an uploaded model has vanished; upload it again",
                )
            })?;
            let request = LoadModel {
                source: ModelSource::Artifact {
                    digest: model.digest,
                    path,
                },
                function: version.function.clone(),
                isolation: version.config.inference_isolation,
                deadline: Instant::now() + version.config.start_timeout.duration(),
            };
            let info = trial.load(request).await.map_err(|error| {
                Failure::new(
                    error.error_kind(),
                    format!("model '{name}' cannot be loaded"),
                )
                .because(error)
            })?;
            found.push(format!("{name}: {}", describe(&info)));
        }
        Ok(found.join("; "))
    }
}

fn describe(info: &ModelInfo) -> String {
    let ports = |ports: &[Port]| {
        let each: Vec<_> = ports
            .iter()
            .map(|port| format!("{} {}{:?}", port.name, port.ty.as_str(), port.shape))
            .collect();
        each.join(", ")
    };
    let mut text = format!("{} -> {}", ports(&info.inputs), ports(&info.outputs));
    if !info.unsupported_outputs.is_empty() {
        text.push_str(&format!(
            " (not computed, no wasi-nn type: {})",
            info.unsupported_outputs.join(", ")
        ));
    }
    text
}
