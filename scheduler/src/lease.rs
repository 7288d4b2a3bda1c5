//! A lease: the right to use an instance, or a seat in one, for one invocation. Dropped, it gives the instance back.

use crate::instance::Instance;
use crate::version_pool::VersionPool;
use fnctl_core::invocation::{ColdStart, StartKind};
use fnctl_core::{Invocation, ReplySender, RunReport};
use std::sync::Arc;
use tokio::time::Instant;

pub(crate) struct Lease {
    pool: Arc<VersionPool>,
    instance: Option<Instance>,
    kind: StartKind,
    /// False from the moment the guest may have begun until it is known to have ended well: whatever happens in between
    /// (a panic of the task, the runtime's end) must not put the instance back among the idle.
    reusable: bool,
}

impl Lease {
    pub(crate) fn new(pool: Arc<VersionPool>, mut instance: Instance, kind: StartKind) -> Self {
        instance.served = false;
        Self {
            pool,
            instance: Some(instance),
            kind,
            reusable: true,
        }
    }

    pub(crate) fn pool(&self) -> &Arc<VersionPool> {
        &self.pool
    }

    pub(crate) fn start_kind(&self) -> StartKind {
        self.kind
    }

    /// What the caller waited for while the instance started; nothing if it was there.
    pub(crate) fn phases(&self) -> ColdStart {
        match (self.kind, &self.instance) {
            (StartKind::Cold, Some(instance)) => instance.phases,
            _ => ColdStart::default(),
        }
    }

    /// The instance's id.
    pub(crate) fn id(&self) -> u64 {
        self.instance.as_ref().map_or(0, |instance| instance.id.0)
    }

    /// When the instance's start began.
    pub(crate) fn began(&self) -> Option<Instant> {
        self.instance.as_ref().map(|instance| instance.began)
    }

    /// Runs one invocation.
    pub(crate) async fn run(&mut self, invocation: Invocation, reply: ReplySender) -> RunReport {
        self.reusable = false;
        match &mut self.instance {
            Some(instance) => {
                instance.serve();
                let report = instance.sandbox.run(invocation, reply).await;
                if !matches!(report.end, fnctl_core::RunEnd::Unbegun(_)) {
                    instance.measured(report.memory);
                    self.pool.measured(report.memory);
                }
                report
            }
            None => RunReport {
                end: fnctl_core::RunEnd::Unbegun(Box::new(invocation)),
                memory: 0,
                cpu: None,
                inference: std::time::Duration::ZERO,
                computes: 0,
            },
        }
    }

    /// Ends the lease; `reusable` says whether the instance may serve again.
    pub(crate) fn release(mut self, reusable: bool) {
        self.reusable = reusable;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(instance) = self.instance.take() {
            self.pool.give_back(instance, self.reusable);
        }
    }
}
