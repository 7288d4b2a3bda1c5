//! What a warm request costs in the scheduler: admit, checkout, release. `cargo bench -p fnctl-scheduler`.
//!
//! `decision` is the pure states alone, `warm` the whole of it as a request meets it, with a sandbox that does nothing:
//! look-ups, locks, gates, gauges, lease, the task's own spawn, and the reply. Both at one function and among many.
#![allow(
    clippy::unwrap_used,
    reason = "a benchmark that cannot be set up has to stop"
)]

use async_trait::async_trait;
use criterion::{Criterion, criterion_group, criterion_main};
use fnctl_core::config::FunctionConfig;
use fnctl_core::invocation::ColdStart;
use fnctl_core::ports::{Created, Invoker, Sandbox, SandboxFactory};
use fnctl_core::task::Tasks;
use fnctl_core::trace::Trace;
use fnctl_core::version::Version;
use fnctl_core::{
    Digest, Failure, Invocation, ReplySender, RequestId, RunEnd, RunReport, VersionNumber,
};
use fnctl_scheduler::{Config, Scheduler};
use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

struct Nothing;

#[async_trait]
impl SandboxFactory for Nothing {
    async fn create(&self, _version: &Arc<Version>) -> Result<Created, Failure> {
        Ok(Created {
            sandbox: Box::new(Nothing),
            phases: ColdStart::default(),
            footing: Box::new(fnctl_core::ports::NoFooting),
        })
    }
}

#[async_trait]
impl Sandbox for Nothing {
    async fn run(&mut self, _invocation: Invocation, reply: ReplySender) -> RunReport {
        reply.send(Ok(http::Response::new(fnctl_core::empty())));
        RunReport {
            end: RunEnd::Completed,
            memory: 1 << 20,
            cpu: None,
            inference: Duration::ZERO,
            computes: 0,
        }
    }
}

fn version(name: &str) -> Arc<Version> {
    Arc::new(Version {
        function: name.parse().unwrap(),
        number: VersionNumber(1),
        artifact: Digest::of(b"nothing"),
        models: BTreeMap::new(),
        config: FunctionConfig::default(),
        created_ms: 0,
    })
}

fn invocation(version: &Arc<Version>) -> Invocation {
    let now = Instant::now();
    Invocation {
        version: version.clone(),
        request_id: RequestId::generate(0),
        request: http::Request::new(fnctl_core::empty()),
        received: now,
        deadline: now + Duration::from_secs(30),
        cancelled: CancellationToken::new(),
        trace: Trace::none(),
        report: false,
    }
}

fn scheduler() -> Scheduler {
    Scheduler::new(
        Config::default(),
        Arc::new(Nothing),
        Tasks::default(),
        &prometheus::Registry::new(),
        Arc::new(fnctl_core::log::NoLogs),
    )
    .unwrap()
}

fn warm(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let mut group = criterion.benchmark_group("warm");
    for functions in [1usize, 10_000] {
        let scheduler = scheduler();
        let versions: Vec<_> = (0..functions)
            .map(|number| version(&format!("f{number}")))
            .collect();
        for version in &versions {
            scheduler.configure(version);
        }
        runtime.block_on(async {
            for version in versions.iter().take(1_000) {
                scheduler.invoke(invocation(version)).await.unwrap();
            }
            tokio::task::yield_now().await;
        });
        let mut turn = 0;
        let warm = versions.len().min(1_000);
        group.bench_function(
            format!("checkout and release, {functions} function(s)"),
            |bencher| {
                bencher.iter(|| {
                    turn = (turn + 1) % warm;
                    let version = versions.get(turn).unwrap();
                    black_box(scheduler.try_warm(version));
                });
            },
        );
        group.bench_function(
            format!("whole invocation, {functions} function(s)"),
            |bencher| {
                bencher.iter(|| {
                    turn = (turn + 1) % warm;
                    let version = versions.get(turn).unwrap();
                    runtime.block_on(async {
                        let reply = scheduler.invoke(invocation(version)).await;
                        black_box(reply.is_ok());
                        // The run's end gives the lease back.
                        tokio::task::yield_now().await;
                    });
                });
            },
        );
        group.bench_function(format!("making an invocation, {functions}"), |bencher| {
            bencher.iter(|| black_box(invocation(versions.first().unwrap())));
        });
    }
    group.finish();
}

criterion_group!(benches, warm);
criterion_main!(benches);
