//! Sandboxes that do as a plan says.

use async_trait::async_trait;
use fnctl_core::config::FunctionConfig;
use fnctl_core::invocation::ColdStart;
use fnctl_core::ladder::{KeptUntil, LowerRungs};
use fnctl_core::ports::{Created, Footing, Sandbox, SandboxFactory};
use fnctl_core::trace::Trace;
use fnctl_core::version::Version;
use fnctl_core::{
    Digest, ErrorKind, Failure, FunctionName, Invocation, ReplySender, RequestId, RunEnd,
    RunReport, VersionNumber,
};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What a start takes unless the plan says otherwise.
pub(super) const START: Duration = Duration::from_millis(100);

/// What the fakes do, and what they have seen.
pub(super) struct Plan {
    pub(super) start: Duration,
    pub(super) run: Duration,
    /// Linear memory that a run reports, in bytes.
    pub(super) memory: u64,
    /// What is said to be below a sandbox.
    pub(super) below: LowerRungs,
    /// What was said about how long that is kept, of each sandbox that went because its time had come.
    pub(super) kept: Mutex<Vec<KeptUntil>>,
    /// Functions of which what was said holds no longer.
    pub(super) forgotten: Mutex<Vec<FunctionName>>,
    pub(super) fail_starts: AtomicUsize,
    pub(super) panic_starts: AtomicUsize,
    pub(super) fail_runs: AtomicUsize,
    pub(super) unbegun: AtomicUsize,
    pub(super) attempts: AtomicUsize,
    pub(super) created: AtomicUsize,
    pub(super) alive: AtomicUsize,
    pub(super) running: AtomicUsize,
    pub(super) peak: AtomicUsize,
}

impl Default for Plan {
    fn default() -> Self {
        let zero = || AtomicUsize::new(0);
        Self {
            start: START,
            run: Duration::ZERO,
            memory: 0,
            below: LowerRungs::default(),
            kept: Mutex::default(),
            forgotten: Mutex::default(),
            fail_starts: zero(),
            panic_starts: zero(),
            fail_runs: zero(),
            unbegun: zero(),
            attempts: zero(),
            created: zero(),
            alive: zero(),
            running: zero(),
            peak: zero(),
        }
    }
}

/// Takes one off a count, if there is one.
fn take(count: &AtomicUsize) -> bool {
    count
        .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| {
            count.checked_sub(1)
        })
        .is_ok()
}

struct Factory(Arc<Plan>);

pub(super) fn factory(plan: &Arc<Plan>) -> Arc<dyn SandboxFactory> {
    Arc::new(Factory(plan.clone()))
}

#[async_trait]
impl SandboxFactory for Factory {
    async fn create(&self, _version: &Arc<Version>) -> Result<Created, Failure> {
        self.0.attempts.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(self.0.start).await;
        assert!(!take(&self.0.panic_starts), "the plan says: panic");
        if take(&self.0.fail_starts) {
            return Err(Failure::new(ErrorKind::StartFailed, "as planned"));
        }
        self.0.created.fetch_add(1, Ordering::SeqCst);
        self.0.alive.fetch_add(1, Ordering::SeqCst);
        let phases = ColdStart {
            instantiate: self.0.start,
            ..ColdStart::default()
        };
        Ok(Created {
            sandbox: Box::new(Fake {
                plan: self.0.clone(),
                failed: false,
            }),
            phases,
            footing: Box::new(Ground(self.0.clone())),
        })
    }

    fn forget(&self, function: &FunctionName) {
        self.0.forgotten.lock().push(function.clone());
    }
}

struct Ground(Arc<Plan>);

impl Footing for Ground {
    fn cost(&self) -> LowerRungs {
        self.0.below
    }

    fn keep(&self, until: KeptUntil) {
        assert!(
            self.0.alive.load(Ordering::SeqCst) > 0,
            "said after the sandbox went"
        );
        self.0.kept.lock().push(until);
    }
}

struct Fake {
    plan: Arc<Plan>,
    failed: bool,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.plan.alive.fetch_sub(1, Ordering::SeqCst);
    }
}

struct Running<'a>(&'a Plan);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Sandbox for Fake {
    async fn run(&mut self, invocation: Invocation, reply: ReplySender) -> RunReport {
        assert!(!self.failed, "a sandbox that failed is used again");
        let report = |end| RunReport {
            end,
            memory: self.plan.memory,
            inference: Duration::ZERO,
            cpu: None,
            computes: 0,
        };
        if take(&self.plan.unbegun) {
            self.failed = true;
            return report(RunEnd::Unbegun(Box::new(invocation)));
        }
        let running = self.plan.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.plan.peak.fetch_max(running, Ordering::SeqCst);
        let _running = Running(&self.plan);
        tokio::select! {
            () = tokio::time::sleep(self.plan.run) => {}
            () = invocation.cancelled.cancelled() => {
                self.failed = true;
                return report(RunEnd::Failed(Failure::new(ErrorKind::Cancelled, "the caller left")));
            }
        }
        if take(&self.plan.fail_runs) {
            self.failed = true;
            let failure = Failure::new(ErrorKind::Trap, "as planned");
            reply.send(Err(failure.clone()));
            return report(RunEnd::Failed(failure));
        }
        reply.send(Ok(http::Response::new(fnctl_core::empty())));
        report(RunEnd::Completed)
    }
}

pub(super) fn version() -> Arc<Version> {
    version_with(|_| {})
}

pub(super) fn version_with(change: impl FnOnce(&mut FunctionConfig)) -> Arc<Version> {
    version_of("fake", change)
}

pub(super) fn version_of(function: &str, change: impl FnOnce(&mut FunctionConfig)) -> Arc<Version> {
    let mut config = FunctionConfig::default();
    change(&mut config);
    Arc::new(Version {
        function: function.parse().unwrap(),
        number: VersionNumber(1),
        artifact: Digest::of(b"fake"),
        models: BTreeMap::new(),
        config,
        created_ms: 0,
    })
}

pub(super) fn invocation(version: &Arc<Version>) -> Invocation {
    let now = Instant::now();
    Invocation {
        version: version.clone(),
        request_id: RequestId::generate(0),
        request: http::Request::new(fnctl_core::empty()),
        received: now,
        deadline: now + version.config.timeout.duration(),
        cancelled: CancellationToken::new(),
        trace: Trace::none(),
        report: false,
    }
}
