//! What a sandbox of this worker stands on, as its scheduler sees it.

use crate::nn::ModelLease;
use crate::template::Template;
use fnctl_core::ids::FunctionName;
use fnctl_core::ladder::{KeptUntil, LowerRungs, RungCost};
use fnctl_core::ports::Footing;
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::time::Instant;

/// The declared models and the template of one sandbox. To go right after it, which is when its function's word about
/// how long they are kept is said.
pub(crate) struct SandboxFooting {
    function: FunctionName,
    models: Vec<Arc<ModelLease>>,
    template: Arc<Template>,
    /// Until when the template is kept, if the policy says so.
    kept: Mutex<Option<Instant>>,
}

impl SandboxFooting {
    pub(crate) fn new(
        function: &FunctionName,
        models: impl Iterator<Item = Arc<ModelLease>>,
        template: Arc<Template>,
    ) -> Self {
        Self {
            function: function.clone(),
            models: models.collect(),
            template,
            kept: Mutex::new(None),
        }
    }
}

impl Drop for SandboxFooting {
    fn drop(&mut self) {
        let until = *self.kept.get_mut();
        self.template
            .wishes
            .lock()
            .say(&self.function, until, Instant::now());
    }
}

impl Footing for SandboxFooting {
    fn cost(&self) -> LowerRungs {
        let mut models: Vec<_> = self.models.iter().collect();
        // Two names may be one model.
        models.sort_unstable_by_key(|model| model.session);
        models.dedup_by_key(|model| model.session);
        let costs = models.into_iter().map(|model| model.cost);
        LowerRungs {
            session: costs.fold(RungCost::default(), RungCost::and),
            template: self.template.cost,
        }
    }

    fn keep(&self, until: KeptUntil) {
        for model in &self.models {
            model.keep(until.session);
        }
        *self.kept.lock() = Some(until.template);
    }
}
