//! Instances: sandboxes with an id, within the node's slots.

use crate::memory::{Budget, Share};
use crate::seats::Shareable;
use fnctl_core::ids::{FunctionName, InstanceId};
use fnctl_core::invocation::ColdStart;
use fnctl_core::ladder::{KeptUntil, LowerRungs};
use fnctl_core::ports::{Footing, Sandbox, SandboxFactory};
use fnctl_core::version::Version;
use fnctl_core::{ErrorKind, Failure};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// One started sandbox, or a handle of one that serves several callers at once.
pub(crate) struct Instance {
    pub(crate) id: InstanceId,
    /// Which of its handles this is.
    pub(crate) handle: u64,
    pub(crate) sandbox: Box<dyn Sandbox>,
    /// Whether the lease that it is out on has served.
    pub(crate) served: bool,
    /// What starting it took.
    pub(crate) phases: ColdStart,
    /// When its start began.
    pub(crate) began: Instant,
    /// The pool's generation when its start began.
    pub(crate) generation: u64,
    /// Until when it is kept while it is idle.
    pub(crate) until: Instant,
    // Declared after the sandbox: what it takes is given back when the last handle of it is gone.
    held: Arc<Held>,
}

/// What all handles of an instance have together.
struct Held {
    /// Invocations that it has begun to serve.
    uses: AtomicU64,
    handles: AtomicU64,
    /// What it stands on.
    footing: Box<dyn Footing>,
    /// Its part of the node's memory.
    memory: Mutex<Share>,
    /// Its slot on the node.
    _slot: OwnedSemaphorePermit,
}

impl Instance {
    /// It serves one more.
    pub(crate) fn serve(&mut self) {
        self.served = true;
        self.held.uses.fetch_add(1, Ordering::Relaxed);
    }

    /// Until when what it stands on is kept, when it goes.
    pub(crate) fn leave(&self, until: KeptUntil) {
        self.held.footing.keep(until);
    }

    /// It was measured to have this much linear memory.
    pub(crate) fn measured(&self, memory: u64) {
        self.held.memory.lock().measured(memory);
    }
}

impl Shareable for Instance {
    fn id(&self) -> u64 {
        self.id.0
    }

    fn share(&self) -> Option<Self> {
        Some(Self {
            id: self.id,
            handle: self.held.handles.fetch_add(1, Ordering::Relaxed),
            sandbox: self.sandbox.share()?,
            served: false,
            phases: self.phases,
            began: self.began,
            generation: self.generation,
            until: self.until,
            held: self.held.clone(),
        })
    }

    fn uses(&self) -> u64 {
        self.held.uses.load(Ordering::Relaxed)
    }
}

/// A finished start.
pub(crate) struct Started {
    pub(crate) id: InstanceId,
    sandbox: Box<dyn Sandbox>,
    footing: Box<dyn Footing>,
    pub(crate) phases: ColdStart,
    pub(crate) began: Instant,
    memory: Share,
    slot: OwnedSemaphorePermit,
}

impl Started {
    /// What the rungs below it cost.
    pub(crate) fn below(&self) -> LowerRungs {
        self.footing.cost()
    }

    pub(crate) fn into_instance(self, generation: u64) -> Instance {
        Instance {
            id: self.id,
            handle: 0,
            sandbox: self.sandbox,
            served: false,
            phases: self.phases,
            began: self.began,
            generation,
            until: self.began,
            held: Arc::new(Held {
                uses: AtomicU64::new(0),
                handles: AtomicU64::new(1),
                footing: self.footing,
                memory: Mutex::new(self.memory),
                _slot: self.slot,
            }),
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

    /// What was said about how long something is kept for a function does not hold any more.
    pub(crate) fn forget(&self, function: &FunctionName) {
        self.factory.forget(function);
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
                Err(failure) if failure.kind == ErrorKind::NodeFull && evict() => {}
                other => break other?,
            }
        };
        let id = InstanceId(self.next.fetch_add(1, Ordering::Relaxed));
        Ok(Started {
            id,
            sandbox: created.sandbox,
            footing: created.footing,
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
