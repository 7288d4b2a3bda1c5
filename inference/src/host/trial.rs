//! A throw-away host for the models of a deploy: what happens in it happens to nobody else.

use super::model::Wanted;
use super::process::HostProcess;
use super::supervisor::Supervisor;
use crate::sessions::SessionKey;
use fnctl_core::inference::{InferenceError, InferenceErrorKind, LoadModel, ModelInfo, SessionId};
use std::sync::Arc;
use tokio::time::Instant;

/// A host that tries models, one after another.
pub(crate) struct Trial {
    supervisor: Arc<Supervisor>,
    host: Arc<HostProcess>,
    next: u64,
}

impl Trial {
    pub(crate) async fn start(supervisor: &Arc<Supervisor>) -> Result<Self, InferenceError> {
        let host = supervisor.fresh().await?;
        Ok(Self {
            supervisor: supervisor.clone(),
            host,
            next: 0,
        })
    }

    /// Loads a model.
    pub(crate) async fn load(&mut self, request: LoadModel) -> Result<ModelInfo, InferenceError> {
        let deadline = request.deadline;
        let (key, function) = (SessionKey::of(&request), request.function.clone());
        let file = self.supervisor.open(request).await?;
        self.next += 1;
        let wanted = Wanted::new(SessionId(self.next), key, function, file);
        let loaded = self.load_wanted(&wanted, deadline);
        tokio::time::timeout_at(deadline, loaded)
            .await
            .map_err(|_elapsed| {
                crate::timed_out("the model was not loaded in time; raise start_timeout")
            })?
    }

    async fn load_wanted(
        &self,
        wanted: &Arc<Wanted>,
        deadline: Instant,
    ) -> Result<ModelInfo, InferenceError> {
        match self.host.load(wanted, &wanted.function, deadline).await {
            Ok(Ok(info)) => Ok(info),
            Ok(Err(refusal)) => {
                if refusal.error.kind == InferenceErrorKind::TooLarge {
                    self.supervisor.metrics.refused.inc();
                }
                Err(refusal.error)
            }
            Err(_gone) => Err(InferenceError::new(
                InferenceErrorKind::InvalidEncoding,
                format!(
                    "the inference host that tried the model died: {}",
                    self.host
                        .dead
                        .get()
                        .map_or_else(|| "it did not say why".to_owned(), ToString::to_string)
                ),
            )),
        }
    }

    /// Ends the host.
    pub(crate) async fn end(self) {
        self.host.stop().await;
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        self.host.finish(super::death::Reason::Stopped);
    }
}
