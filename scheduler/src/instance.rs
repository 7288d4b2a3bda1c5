//! Instances: sandboxes with an id, within the node's slots.

use crate::memory::{Budget, Share};
use fnctl_core::ids::InstanceId;
use fnctl_core::invocation::ColdStart;
use fnctl_core::ports::{Sandbox, SandboxFactory};
use fnctl_core::version::Version;
use fnctl_core::{ErrorKind, Failure};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// One started sandbox.
pub(crate) struct Instance {
    pub(crate) id: InstanceId,
    pub(crate) sandbox: Box<dyn Sandbox>,
    pub(crate) uses: u64,
    /// What starting it took.
    pub(crate) phases: ColdStart,
    /// When its start began.
    pub(crate) began: Instant,
    /// The pool's generation when its start ended.
    pub(crate) generation: u64,
    /// Until when it is kept while it is idle.
    pub(crate) until: Instant,
    /// Its part of the node's memory.
    pub(crate) memory: Share,
    /// Its slot on the node.
    _slot: OwnedSemaphorePermit,
}

/// A finished start.
pub(crate) struct Started {
    pub(crate) id: InstanceId,
    sandbox: Box<dyn Sandbox>,
    pub(crate) phases: ColdStart,
    pub(crate) began: Instant,
    memory: Share,
    slot: OwnedSemaphorePermit,
}

impl Started {
    pub(crate) fn into_instance(self, generation: u64) -> Instance {
        Instance {
            id: self.id,
            sandbox: self.sandbox,
            uses: 0,
            phases: self.phases,
            began: self.began,
            generation,
            until: self.began,
            memory: self.memory,
            _slot: self.slot,
        }
    }
}

/// Starts instances.
pub(crate) struct Instances {
    factory: Arc<dyn SandboxFactory>,
    slots: Arc<Semaphore>,
    max: usize,
    memory: Arc<Budget>,
    next: AtomicU64,
}

impl Instances {
    pub(crate) fn new(factory: Arc<dyn SandboxFactory>, max: usize, memory: Arc<Budget>) -> Self {
        Self {
            factory,
            slots: Arc::new(Semaphore::new(max)),
            max,
            memory,
            next: AtomicU64::new(1),
        }
    }

    /// Instances that exist or are being started.
    pub(crate) fn count(&self) -> usize {
        self.max - self.slots.available_permits()
    }

    /// Starts an instance that will take about `expected` bytes. On a full node `evict` may make room.
    pub(crate) async fn start(
        &self,
        version: &Arc<Version>,
        expected: u64,
        evict: impl Fn() -> bool,
    ) -> Result<Started, Failure> {
        let (created, began, memory, slot) = loop {
            let began = Instant::now();
            let room = match self.slots.clone().try_acquire_owned() {
                Ok(slot) => match self.memory.take(expected) {
                    Some(memory) => Ok((memory, slot)),
                    None => Err(memory_full()),
                },
                Err(_) => Err(node_full()),
            };
            let attempt = match room {
                Ok((memory, slot)) => self
                    .factory
                    .create(version)
                    .await
                    .map(|created| (created, began, memory, slot)),
                Err(failure) => Err(failure),
            };
            match attempt {
                // The node's slots or memory, or the worker's own slots: a component may take more of those than one.
                // For what could never fit nobody's instance is to go.
                Err(failure)
                    if failure.kind == ErrorKind::NodeFull
                        && self.memory.could_fit(expected)
                        && evict() => {}
                other => break other?,
            }
        };
        let id = InstanceId(self.next.fetch_add(1, Ordering::Relaxed));
        Ok(Started {
            id,
            sandbox: created.sandbox,
            phases: created.phases,
            began,
            memory,
            slot,
        })
    }
}

fn memory_full() -> Failure {
    Failure::new(
        ErrorKind::NodeFull,
        "the memory of this node is in use; try again soon, or raise scheduler.memory",
    )
    .retry_after(Duration::from_secs(1))
}

fn node_full() -> Failure {
    Failure::new(
        ErrorKind::NodeFull,
        "every instance slot of this node is in use; try again soon, or raise worker.max_instances",
    )
    .retry_after(Duration::from_secs(1))
}
