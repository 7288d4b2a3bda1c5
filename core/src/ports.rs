//! The ports: the few traits through which sibling crates meet. They are message-shaped: plain data in, plain data out,
//! bodies streamed, so that what is behind a port may move to another process or machine.

use crate::error::Failure;
use crate::hosts::InferenceStatus;
use crate::ids::{AliasName, Digest, FunctionName, VersionNumber};
use crate::inference::{
    Compute, Computed, InferenceError, KeepWish, LoadModel, LoadedModel, SessionId,
};
use crate::invocation::{ColdStart, Invocation, Reply, ReplySender, RunReport, Unanswered};
use crate::ladder::{KeptUntil, LowerRungs};
use crate::version::{Alias, Function, Selector, Version, VersionKey};
use async_trait::async_trait;
use std::path::PathBuf;
use std::sync::Arc;

/// Answers invocations. The gateway calls it, the scheduler implements it.
#[async_trait]
pub trait Invoker: Send + Sync {
    /// Runs one invocation on some instance of its version. Dropping the future cancels the invocation.
    async fn invoke(&self, invocation: Invocation) -> Result<Reply, Unanswered>;

    /// Takes note that `version` now answers for its function: provisioned instances start, and the idle instances of
    /// versions in `retired` go. Returns when the provisioned instances are ready.
    async fn activate(
        &self,
        version: Arc<Version>,
        retired: Vec<VersionKey>,
    ) -> Result<(), Failure>;

    /// Drops everything that is held for these versions; running invocations finish.
    fn retire(&self, versions: &[VersionKey]);

    /// Claims what `version` reserves, for a version that is to become live: while the claim lives nobody else gets it.
    /// To be kept until the version is activated, or will not be.
    fn claim(&self, version: &Version) -> Result<Claim, Failure>;

    /// What runs now.
    fn status(&self, function: &FunctionName) -> Vec<InstanceStatus>;
}

/// A part of the platform that is kept free for a version; given back when dropped. What is behind it is the invoker's.
pub struct Claim(#[allow(dead_code, reason = "it is there to be dropped")] Box<dyn Send + Sync>);

impl Claim {
    /// A claim that lives as long as `held`.
    pub fn new(held: impl Send + Sync + 'static) -> Self {
        Self(Box::new(held))
    }
}

impl std::fmt::Debug for Claim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Claim")
    }
}

/// One instance, for `fnctl get`.
#[derive(Debug, Clone, serde::Serialize)]
pub struct InstanceStatus {
    /// Its id.
    pub id: crate::ids::InstanceId,
    /// Of which version.
    pub version: VersionNumber,
    /// `starting`, `idle` or `busy`.
    pub state: &'static str,
    /// Invocations served so far.
    pub uses: u64,
    /// Milliseconds since it became idle; nothing while it is not.
    pub idle_ms: Option<u64>,
    /// Why it exists, for people: provisioned, kept by keep-alive, busy, started for who waits.
    pub why: String,
    /// Milliseconds until keep-alive lets it go; nothing if that is not what it waits for.
    pub expires_in_ms: Option<u64>,
}

/// Makes sandboxes. The scheduler calls it, the worker implements it.
#[async_trait]
pub trait SandboxFactory: Send + Sync {
    /// Makes an initialised sandbox of `version`: template, sandbox, models, init. The phases say what it took.
    async fn create(&self, version: &Arc<Version>) -> Result<Created, Failure>;

    /// What was said about how long something is kept for a function does not hold any more: it has another version, or is
    /// gone.
    fn forget(&self, _function: &FunctionName) {}
}

/// A new sandbox and what making it took (`queue` stays zero: that is the scheduler's).
pub struct Created {
    /// The sandbox.
    pub sandbox: Box<dyn Sandbox>,
    /// The measured phases.
    pub phases: ColdStart,
    /// What it stands on.
    pub footing: Box<dyn Footing>,
}

/// What a sandbox stands on. It holds nothing by itself beyond the sandbox's life.
pub trait Footing: Send + Sync {
    /// What the rungs below the sandbox cost.
    fn cost(&self) -> LowerRungs;

    /// Until when they are kept once the sandbox has gone and nobody else uses them. To be said before it goes; unsaid,
    /// the platform's times decide.
    fn keep(&self, until: KeptUntil);
}

/// A sandbox that stands on nothing.
#[derive(Debug, Clone, Copy)]
pub struct NoFooting;

impl Footing for NoFooting {
    fn cost(&self) -> LowerRungs {
        LowerRungs::default()
    }

    fn keep(&self, _until: KeptUntil) {}
}

impl std::fmt::Debug for Created {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Created")
            .field("phases", &self.phases)
            .finish_non_exhaustive()
    }
}

/// One guest behind its trust boundary.
#[async_trait]
pub trait Sandbox: Send {
    /// Runs one invocation to its end: the response goes out through `reply` as soon as its head is known, the report
    /// comes back when the guest has returned. Bounded by the invocation's deadline and its cancellation.
    async fn run(&mut self, invocation: Invocation, reply: ReplySender) -> RunReport;

    /// Another handle of the same guest, which may run an invocation at the same time; nothing if it runs one at a time.
    fn share(&self) -> Option<Box<dyn Sandbox>> {
        None
    }
}

/// Loads models and computes. The worker calls it, the inference crate implements it.
#[async_trait]
pub trait InferenceHost: Send + Sync {
    /// Loads a model, or finds its session. Each answer is one use, to be given back with [`InferenceHost::release`].
    async fn load(&self, request: LoadModel) -> Result<LoadedModel, InferenceError>;

    /// Runs one inference. Computes of one session run side by side. Dropping the future stops it.
    async fn compute(&self, request: Compute) -> Result<Computed, InferenceError>;

    /// Gives back one use of a session. An unused session is unloaded when nobody wants it kept any more: each function
    /// says until when, or leaves it to the time-to-live.
    fn release(&self, session: SessionId, wish: KeepWish);

    /// What a function said about how long its sessions are kept does not hold any more: they have the time-to-live.
    fn forget(&self, function: &FunctionName);
}

/// Shows operators the processes that compute, and replaces them. The gateway calls it, the inference crate implements it.
#[async_trait]
pub trait InferenceControl: Send + Sync {
    /// What runs, and what is kept away from it.
    fn status(&self) -> InferenceStatus;

    /// Replaces every inference host by a new one with the same sessions; no request fails. Returns how many.
    async fn replace_hosts(&self) -> Result<usize, InferenceError>;
}

/// Knows what was deployed.
#[async_trait]
pub trait FunctionStore: Send + Sync {
    /// The version a caller means; answered from memory.
    fn resolve(&self, name: &FunctionName, selector: &Selector, draw: u64) -> Option<Arc<Version>>;

    /// Every function, or the one that is named.
    fn functions(&self, name: Option<&FunctionName>) -> Vec<Arc<Function>>;

    /// Stores a version under the next number of its function and points `live` at it, in one atomic and durable step.
    async fn commit(&self, draft: crate::deploy::Draft) -> Result<Arc<Version>, Failure>;

    /// Moves an alias, or removes it, durably.
    async fn set_alias(
        &self,
        name: &FunctionName,
        alias: &AliasName,
        to: Option<Alias>,
    ) -> Result<(), Failure>;

    /// Removes a function with its versions and aliases, durably. Returns what it was.
    async fn remove(&self, name: &FunctionName) -> Result<Arc<Function>, Failure>;
}

/// Keeps artifacts, addressed by their SHA-256.
#[async_trait]
pub trait ArtifactStore: Send + Sync {
    /// Stores a streamed body durably and returns its digest and size. Over `limit` bytes it stores nothing.
    async fn put(&self, body: crate::Body, limit: u64) -> Result<(Digest, u64), Failure>;

    /// Where the artifact is, and its size, if it is there.
    fn locate(&self, digest: &Digest) -> Option<(PathBuf, u64)>;

    /// Reads the artifact and checks its bytes against its digest.
    async fn verify(&self, digest: &Digest) -> Result<PathBuf, Failure>;

    /// Removes artifacts that no version names and that are older than the grace period. Returns how many.
    async fn collect(&self) -> Result<usize, Failure>;
}

/// Answers whether an artifact could run, before a deploy is acknowledged. Worker and inference implement it.
#[async_trait]
pub trait ArtifactCheck: Send + Sync {
    /// Which step of a deploy this is.
    fn step(&self) -> crate::deploy::Step;

    /// Checks the draft's artifacts; the text says what was found.
    async fn check(&self, version: &Arc<Version>) -> Result<String, Failure>;
}
