//! What comes back: a version whose numbers are just being forgotten, and a platform after a restart.

use super::fake::{self, Plan, factory, invocation, version};
use super::{scheduler, settle};
use crate::{Config, Inner, MeasuredVersion, Scheduler};
use fnctl_core::VersionNumber;
use fnctl_core::ports::Invoker;
use fnctl_core::task::Tasks;
use fnctl_core::version::Version;
use prometheus::{Registry, TextEncoder};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::Instant;

fn scheduler_with(registry: &Registry) -> Scheduler {
    let logs = Arc::new(fnctl_core::log::NoLogs);
    let factory = factory(&Arc::new(Plan::default()));
    Scheduler::new(Config::default(), factory, Tasks::default(), registry, logs).unwrap()
}

#[test]
fn a_version_that_comes_back_while_it_is_forgotten_keeps_its_numbers() {
    let registry = Registry::new();
    let (scheduler, version) = (scheduler_with(&registry), version());
    let inner = &scheduler.inner;
    let told = || {
        let text = TextEncoder::new().encode_to_string(&registry.gather());
        text.unwrap()
            .contains("fnctl_throttles_total{function=\"fake\",version=\"1\"} 1")
    };
    // It is not live, and went to zero: its numbers are to be forgotten. Before they are, somebody calls it.
    let (_, pool) = inner.pool_of(&version);
    inner.forget_at_zero(&version.key());
    pool.metrics.throttled();
    assert!(told());
    // Nobody wants it, and it goes, and its numbers with it.
    drop(pool);
    scheduler.reap(Instant::now());
    assert!(!told() && inner.lanes.is_empty());
}

/// Whether a pool that calls find counts where nobody looks.
fn is_parted(inner: &Arc<Inner>, version: &Arc<Version>) -> bool {
    let (lane, pool) = inner.pool_of(version);
    let is_told = inner.metrics.tells(&version.key(), &pool.metrics);
    let current = lane.existing(version.number);
    let is_found = current.is_some_and(|current| Arc::ptr_eq(&current, &pool));
    is_found && !is_told
}

#[test]
fn forgetting_and_coming_back_at_once_never_part_a_pool_from_its_numbers() {
    let scheduler = scheduler_with(&Registry::new());
    let (reaped, done) = (scheduler.clone(), Arc::new(AtomicBool::new(false)));
    let over = done.clone();
    let reaper = std::thread::spawn(move || {
        while !over.load(Ordering::Relaxed) {
            reaped.reap(Instant::now());
        }
    });
    let version = version();
    let parted = (0..20_000).any(|_| is_parted(&scheduler.inner, &version));
    done.store(true, Ordering::Relaxed);
    reaper.join().unwrap();
    assert!(!parted);
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_starts_while_its_version_is_replaced_serves_who_waits_and_goes() {
    let plan = Arc::new(Plan::default());
    let scheduler = scheduler(&plan);
    let old = version();
    let mut new = old.as_ref().clone();
    new.number = VersionNumber(2);
    let new = Arc::new(new);
    scheduler.configure(&old);
    let call = |leaves: Duration| {
        let (scheduler, invocation) = (scheduler.clone(), invocation(&old));
        tokio::spawn(async move {
            let answer = scheduler.invoke(invocation);
            tokio::time::timeout(leaves, answer)
                .await
                .is_ok_and(|it| it.is_ok())
        })
    };
    let (stays, leaves) = (call(Duration::from_secs(5)), call(fake::START / 2));
    settle().await;
    assert_eq!(plan.attempts.load(Ordering::SeqCst), 2);
    let replaced = scheduler.activate(new, vec![old.key()]).await;
    assert!(replaced.is_ok());
    assert!(stays.await.unwrap() && !leaves.await.unwrap());
    settle().await;
    let is_there = (scheduler.instances(), plan.alive.load(Ordering::SeqCst));
    assert_eq!(is_there, (0, 0), "nobody is sent to it any more");
}

/// Instances that a herd of forty gets which finds the function at zero.
async fn started_for_a_herd(measured: Vec<MeasuredVersion>) -> usize {
    let plan = Arc::new(Plan {
        run: Duration::from_millis(10),
        ..Plan::default()
    });
    let scheduler = scheduler(&plan);
    scheduler.restore_measured(measured);
    let version = version();
    scheduler.configure(&version);
    let calls: Vec<_> = (0..40)
        .map(|_| {
            let (scheduler, invocation) = (scheduler.clone(), invocation(&version));
            tokio::spawn(async move { scheduler.invoke(invocation).await.is_ok() })
        })
        .collect();
    for call in calls {
        assert!(call.await.unwrap());
    }
    plan.created.load(Ordering::SeqCst)
}

#[tokio::test(start_paused = true)]
async fn a_herd_after_a_restart_gets_what_it_needs_by_what_was_measured_before() {
    // A start takes 100 ms and a run 10: one instance serves ten in the time that another needs to start.
    assert_eq!(fake::START, Duration::from_millis(100));
    let plan = Arc::new(Plan {
        run: Duration::from_millis(10),
        memory: 3 << 20,
        ..Plan::default()
    });
    let before = scheduler(&plan);
    let version = version();
    before.configure(&version);
    assert!(before.measured().is_empty());
    before.invoke(invocation(&version)).await.unwrap();
    settle().await;
    let written = |scheduler: &Scheduler| serde_json::to_string(&scheduler.measured()).unwrap();
    let there = written(&before);
    // The same whether an instance is there or the function is at zero.
    before.reap(Instant::now() + Duration::from_secs(3_600));
    assert_eq!(before.active_functions(), 0);
    assert_eq!(written(&before), there);
    let measured: Vec<MeasuredVersion> = serde_json::from_str(&there).unwrap();
    assert_eq!(measured[0].2.footprint.known(), Some(3 << 20));

    assert_eq!(started_for_a_herd(Vec::new()).await, 16, "all that may be");
    assert_eq!(started_for_a_herd(measured).await, 4);
    // What is not live any more is not written again.
    before.retire(&[version.key()]);
    assert!(before.measured().is_empty());
}
