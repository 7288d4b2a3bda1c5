//! What a sandbox of this worker stands on, as its scheduler sees it.

use crate::nn::ModelLease;
use crate::template::Template;
use fnctl_core::ladder::{KeptUntil, LowerRungs, RungCost};
use fnctl_core::ports::Footing;
use std::sync::Arc;

/// The declared models and the template of one sandbox. To go right after it.
pub(crate) struct Standing {
    pub(crate) models: Vec<Arc<ModelLease>>,
    pub(crate) template: Arc<Template>,
}

impl Footing for Standing {
    fn cost(&self) -> LowerRungs {
        let costs = self.models.iter().map(|model| model.cost);
        LowerRungs {
            session: costs.fold(RungCost::default(), RungCost::and),
            template: self.template.cost,
        }
    }

    fn keep(&self, until: KeptUntil) {
        for model in &self.models {
            model.keep(until.session);
        }
        *self.template.kept.lock() = Some(until.template);
    }
}
