//! One request on its way through the platform, and what came of it.

use crate::body::Body;
use crate::error::{ErrorKind, Failure};
use crate::ids::RequestId;
use crate::trace::Trace;
use crate::version::Version;
use parking_lot::Mutex;
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A resolved request: everything the scheduler and the worker need to answer it.
#[derive(Debug)]
pub struct Invocation {
    /// The version that answers.
    pub version: Arc<Version>,
    /// Its id in responses and logs.
    pub request_id: RequestId,
    /// The request as the guest shall see it: path and query behind `/fn/{name}`, hop-by-hop headers removed.
    pub request: http::Request<Body>,
    /// When the gateway had read its head.
    pub received: Instant,
    /// When it must have been answered.
    pub deadline: Instant,
    /// Set when nobody waits for the answer any more; stops the guest and its inference.
    pub cancelled: CancellationToken,
    /// Where it stands in a trace, if it is sampled.
    pub trace: Trace,
    /// Whether what it took is to be told as a line of the function's log.
    pub report: bool,
}

impl Invocation {
    /// Whether somebody wants to know what it takes, so that measuring is worth its price.
    pub const fn is_observed(&self) -> bool {
        self.report || self.trace.is_sampled()
    }
}

/// How the instance that served an invocation came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StartKind {
    /// Started because of this invocation, or of others that waited with it.
    Cold,
    /// Started ahead of demand, and not used before.
    Prewarmed,
    /// Used before.
    Warm,
}

impl StartKind {
    /// The word in headers and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Prewarmed => "prewarmed",
            Self::Warm => "warm",
        }
    }
}

/// A phase of a cold start, in the order in which they happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Waiting for a permit.
    Queue,
    /// Reading and verifying the artifact.
    Artifact,
    /// Compiling, or loading compiled code.
    Compile,
    /// Building the sandbox.
    Instantiate,
    /// Loading the declared models.
    Model,
    /// The guest's own initialisation.
    Init,
}

impl Phase {
    /// Every phase, in order.
    pub const ALL: [Self; 6] = [
        Self::Queue,
        Self::Artifact,
        Self::Compile,
        Self::Instantiate,
        Self::Model,
        Self::Init,
    ];

    /// The word in `Server-Timing` and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Artifact => "artifact",
            Self::Compile => "compile",
            Self::Instantiate => "instantiate",
            Self::Model => "model",
            Self::Init => "init",
        }
    }
}

/// The measured phases of a start; a phase that did not happen is zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ColdStart {
    /// See [`Phase::Queue`].
    pub queue: Duration,
    /// See [`Phase::Artifact`].
    pub artifact: Duration,
    /// See [`Phase::Compile`].
    pub compile: Duration,
    /// See [`Phase::Instantiate`].
    pub instantiate: Duration,
    /// See [`Phase::Model`].
    pub model: Duration,
    /// See [`Phase::Init`].
    pub init: Duration,
}

impl ColdStart {
    /// The measured time of one phase.
    pub const fn get(&self, phase: Phase) -> Duration {
        match phase {
            Phase::Queue => self.queue,
            Phase::Artifact => self.artifact,
            Phase::Compile => self.compile,
            Phase::Instantiate => self.instantiate,
            Phase::Model => self.model,
            Phase::Init => self.init,
        }
    }
}

/// The answer to an invocation.
#[derive(Debug)]
pub struct Reply {
    /// The guest's response; its body may still be streaming.
    pub response: http::Response<Body>,
    /// How the instance came to be.
    pub start: StartKind,
    /// What the caller waited for, by phase.
    pub phases: ColdStart,
    /// From the guest's first instruction to its response head.
    pub run: Duration,
}

/// An invocation that was not answered by the guest. It still says what was measured on the way.
#[derive(Debug, Clone)]
pub struct Unanswered {
    /// Why.
    pub failure: Failure,
    /// How the instance came to be, if there was one.
    pub start: Option<StartKind>,
    /// What the caller waited for, by phase.
    pub phases: ColdStart,
}

impl From<Failure> for Unanswered {
    fn from(failure: Failure) -> Self {
        Self {
            failure,
            start: None,
            phases: ColdStart::default(),
        }
    }
}

type Head = Result<http::Response<Body>, Failure>;

/// The one right to answer an invocation. Clones share it: whoever sends first answers, later ones are ignored.
#[derive(Debug, Clone)]
pub struct ReplySender(Arc<Mutex<Option<oneshot::Sender<Head>>>>);

impl ReplySender {
    /// A sender and the receiver of the one answer.
    pub fn new() -> (Self, oneshot::Receiver<Head>) {
        let (tx, rx) = oneshot::channel();
        (Self(Arc::new(Mutex::new(Some(tx)))), rx)
    }

    /// Answers; says whether this was the answer.
    pub fn send(&self, head: Head) -> bool {
        match self.0.lock().take() {
            // A receiver that is gone is a caller that is gone: there is nobody left to tell.
            Some(tx) => tx.send(head).is_ok(),
            None => false,
        }
    }

    /// Whether somebody has answered already.
    pub fn is_sent(&self) -> bool {
        self.0.lock().is_none()
    }
}

/// How a run ended.
#[derive(Debug)]
pub enum RunEnd {
    /// The guest returned; its sandbox may be used again.
    Completed,
    /// The guest failed after it had begun; its sandbox must not be used again.
    Failed(Failure),
    /// The request failed, or was given up, before the guest saw anything of it; its sandbox may be used again.
    Unseen(Failure),
    /// The sandbox was found unusable before the guest began: the work is handed back, to be tried once more elsewhere.
    Unbegun(Box<Invocation>),
}

/// What a run took.
#[derive(Debug)]
pub struct RunReport {
    /// How it ended.
    pub end: RunEnd,
    /// Linear memory of the sandbox after the run, in bytes.
    pub memory: u64,
    /// CPU time of the guest, if the invocation was observed; host calls are included, inference is not.
    pub cpu: Option<Duration>,
    /// Wall time inside `compute` calls.
    pub inference: Duration,
    /// Number of `compute` calls.
    pub computes: u32,
}

impl RunReport {
    /// The kind of failure, if it was one.
    pub fn failure(&self) -> Option<ErrorKind> {
        match &self.end {
            RunEnd::Failed(failure) | RunEnd::Unseen(failure) => Some(failure.kind),
            RunEnd::Completed | RunEnd::Unbegun(_) => None,
        }
    }
}
