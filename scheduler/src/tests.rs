//! The scheduler with fake sandboxes on a paused clock, and its pure states against naive models.

mod activator;
mod fake;
mod models;
mod overload;
mod returns;
mod rungs;
mod scaling;
mod seats;

use crate::{Clock, Config, Scheduler};
use fake::{Plan, factory, invocation, version, version_with};
use fnctl_core::invocation::StartKind;
use fnctl_core::ports::Invoker;
use fnctl_core::task::Tasks;
use fnctl_core::{ErrorKind, Isolation, Period};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

fn scheduler(plan: &Arc<Plan>) -> Scheduler {
    scheduler_with(plan, |_| {})
}

/// A scheduler whose time of day goes with the paused clock, from midnight of 2026-01-05, a Monday.
fn scheduler_with(plan: &Arc<Plan>, change: impl FnOnce(&mut Config)) -> Scheduler {
    let began = Instant::now();
    let midnight = std::time::UNIX_EPOCH + Duration::from_secs(1_767_571_200);
    let mut config = Config {
        max_instances: 16,
        // Whoever runs the tests: the same for all.
        max_running: 16,
        clock: Clock::new(move || midnight + began.elapsed()),
        ..Config::default()
    };
    change(&mut config);
    Scheduler::new(
        config,
        factory(plan),
        Tasks::default(),
        &prometheus::Registry::new(),
        Arc::new(fnctl_core::log::NoLogs),
    )
    .unwrap()
}

/// Lets every task that can run do so.
async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn cold_then_warm_then_zero() {
    let plan = Arc::new(Plan::default());
    let scheduler = scheduler(&plan);
    let version = version();
    let first = scheduler.invoke(invocation(&version)).await.unwrap();
    assert_eq!(first.start, StartKind::Cold);
    assert_eq!(first.phases.instantiate, fake::START);
    settle().await;
    let second = scheduler.invoke(invocation(&version)).await.unwrap();
    assert_eq!(
        (second.start, second.phases.instantiate),
        (StartKind::Warm, Duration::ZERO)
    );
    settle().await;
    let idle_since = Instant::now();
    let keep_alive = version.config.keep_alive.duration();
    assert_eq!(
        scheduler.reap(idle_since + keep_alive - Duration::from_millis(1)),
        0
    );
    assert_eq!(scheduler.next_expiry(), Some(idle_since + keep_alive));
    assert_eq!(scheduler.reap(idle_since + keep_alive), 1);
    assert_eq!(
        (scheduler.instances(), plan.alive.load(Ordering::SeqCst)),
        (0, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn a_herd_starts_no_more_instances_than_the_limit_and_all_are_answered() {
    let plan = Arc::new(Plan {
        run: Duration::from_millis(20),
        ..Plan::default()
    });
    let scheduler = scheduler(&plan);
    let version = version_with(|config| config.concurrency = NonZeroU32::new(5).unwrap());
    let calls = (0..100).map(|_| {
        let (scheduler, invocation) = (scheduler.clone(), invocation(&version));
        tokio::spawn(async move { scheduler.invoke(invocation).await.map(|reply| reply.start) })
    });
    let mut cold = 0;
    for call in calls.collect::<Vec<_>>() {
        cold += usize::from(call.await.unwrap().unwrap() == StartKind::Cold);
    }
    assert!(cold <= 5, "{cold}");
    assert!(plan.created.load(Ordering::SeqCst) <= 5);
    assert_eq!(plan.peak.load(Ordering::SeqCst), 5, "and the limit is used");
}

#[tokio::test(start_paused = true)]
async fn a_failed_start_is_told_and_the_next_call_tries_again() {
    let plan = Arc::new(Plan::default());
    plan.fail_starts.store(1, Ordering::SeqCst);
    let scheduler = scheduler(&plan);
    let version = version();
    let failed = scheduler.invoke(invocation(&version)).await.unwrap_err();
    assert_eq!(failed.failure.kind, ErrorKind::StartFailed);
    assert_eq!(
        scheduler.invoke(invocation(&version)).await.unwrap().start,
        StartKind::Cold
    );
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_start_does_not_block_the_function() {
    let plan = Arc::new(Plan::default());
    plan.panic_starts.store(1, Ordering::SeqCst);
    let scheduler = scheduler(&plan);
    let version = version();
    let failed = scheduler.invoke(invocation(&version)).await.unwrap_err();
    assert_eq!(failed.failure.kind, ErrorKind::Internal);
    assert_eq!(
        scheduler.invoke(invocation(&version)).await.unwrap().start,
        StartKind::Cold
    );
}

#[tokio::test(start_paused = true)]
async fn an_instance_found_dead_before_the_guest_began_costs_a_retry_and_no_error() {
    let plan = Arc::new(Plan::default());
    let scheduler = scheduler(&plan);
    let version = version();
    plan.unbegun.store(1, Ordering::SeqCst);
    scheduler.invoke(invocation(&version)).await.unwrap();
    assert_eq!(plan.created.load(Ordering::SeqCst), 2);
    // Twice in a row is given up: the work may be what kills them.
    plan.unbegun.store(2, Ordering::SeqCst);
    settle().await;
    let failed = scheduler.invoke(invocation(&version)).await.unwrap_err();
    assert_eq!(failed.failure.kind, ErrorKind::Internal);
}

#[tokio::test(start_paused = true)]
async fn a_failed_run_costs_its_instance() {
    let plan = Arc::new(Plan::default());
    let scheduler = scheduler(&plan);
    let version = version();
    plan.fail_runs.store(1, Ordering::SeqCst);
    assert_eq!(
        scheduler
            .invoke(invocation(&version))
            .await
            .unwrap_err()
            .failure
            .kind,
        ErrorKind::Trap
    );
    settle().await;
    assert_eq!(scheduler.instances(), 0);
    assert_eq!(
        scheduler.invoke(invocation(&version)).await.unwrap().start,
        StartKind::Cold
    );
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_gives_everything_back() {
    let plan = Arc::new(Plan {
        run: Duration::from_secs(3600),
        ..Plan::default()
    });
    let scheduler = scheduler(&plan);
    let version = version_with(|config| config.concurrency = NonZeroU32::MIN);
    for phase in [fake::START / 2, fake::START * 2] {
        let left = tokio::time::timeout(phase, scheduler.invoke(invocation(&version))).await;
        assert!(left.is_err());
        settle().await;
        tokio::time::sleep(fake::START * 2).await;
        assert_eq!(
            plan.running.load(Ordering::SeqCst),
            0,
            "the guest is stopped"
        );
    }
    let waiting = tokio::time::timeout(
        Duration::from_secs(1),
        scheduler.invoke(invocation(&version)),
    )
    .await;
    assert!(waiting.is_err());
    settle().await;
    assert!(
        scheduler.drain(Duration::from_secs(1)).await,
        "no permit and no count is left behind"
    );
}

#[tokio::test(start_paused = true)]
async fn queue_and_deadline_bound_every_wait() {
    let plan = Arc::new(Plan {
        run: Duration::from_secs(3600),
        start: Duration::from_secs(3600),
        ..Plan::default()
    });
    let scheduler = scheduler(&plan);
    let version = version_with(|config| {
        config.concurrency = NonZeroU32::MIN;
        config.queue_size = 1;
        config.queue_timeout = Period::secs(2);
        config.timeout = Period::secs(5);
    });
    let spawn = || {
        tokio::spawn({
            let (scheduler, invocation) = (scheduler.clone(), invocation(&version));
            async move { scheduler.invoke(invocation).await.unwrap_err().failure.kind }
        })
    };
    let since = Instant::now();
    let starting = spawn();
    settle().await;
    let queued = spawn();
    settle().await;
    assert_eq!(spawn().await.unwrap(), ErrorKind::Throttled);
    assert_eq!(since.elapsed(), Duration::ZERO);
    assert_eq!(queued.await.unwrap(), ErrorKind::QueueTimeout);
    assert_eq!(since.elapsed(), Duration::from_secs(2));
    assert_eq!(starting.await.unwrap(), ErrorKind::StartTimeout);
    assert_eq!(since.elapsed(), Duration::from_secs(5));
}

#[tokio::test(start_paused = true)]
async fn provisioned_instances_are_kept_replaced_and_let_go_with_their_version() {
    let plan = Arc::new(Plan::default());
    let scheduler = scheduler(&plan);
    let old = version_with(|config| config.provisioned = 3);
    scheduler.activate(old.clone(), Vec::new()).await.unwrap();
    assert_eq!(scheduler.instances(), 3);
    assert_eq!(
        scheduler.invoke(invocation(&old)).await.unwrap().start,
        StartKind::Prewarmed
    );
    settle().await;
    assert_eq!(
        scheduler.reap(Instant::now() + Duration::from_secs(86_400)),
        0
    );
    plan.fail_runs.store(1, Ordering::SeqCst);
    scheduler.invoke(invocation(&old)).await.unwrap_err();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(scheduler.instances(), 3);
    let mut new = (*old).clone();
    new.number = fnctl_core::VersionNumber(2);
    new.config.provisioned = 1;
    scheduler
        .activate(Arc::new(new), vec![old.key()])
        .await
        .unwrap();
    settle().await;
    assert_eq!(scheduler.instances(), 1);
}

#[tokio::test(start_paused = true)]
async fn provisioned_starts_that_fail_are_told_and_tried_again_later_not_at_once() {
    let plan = Arc::new(Plan::default());
    plan.fail_starts.store(usize::MAX, Ordering::SeqCst);
    let scheduler = scheduler(&plan);
    let version = version_with(|config| config.provisioned = 1);
    assert_eq!(
        scheduler
            .activate(version, Vec::new())
            .await
            .unwrap_err()
            .kind,
        ErrorKind::StartFailed
    );
    for _ in 0..40 {
        scheduler.reap(Instant::now());
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    // Ten seconds: after 1, 2 and 4 more.
    let attempts = plan.attempts.load(Ordering::SeqCst);
    assert!((3..=5).contains(&attempts), "{attempts}");
}

#[tokio::test(start_paused = true)]
async fn a_deploy_does_not_wait_for_a_pool_that_was_closed() {
    for drains in [true, false] {
        let plan = Arc::new(Plan {
            start: Duration::from_secs(8),
            ..Plan::default()
        });
        let scheduler = scheduler(&plan);
        let version = version_with(|config| config.provisioned = 2);
        let began = Instant::now();
        let deploy = {
            let (scheduler, version) = (scheduler.clone(), version.clone());
            tokio::spawn(async move { scheduler.activate(version, Vec::new()).await })
        };
        settle().await;
        assert!(!deploy.is_finished());
        let expected = if drains {
            scheduler.drain(Duration::ZERO).await;
            ErrorKind::Draining
        } else {
            scheduler.retire(&[version.key()]);
            ErrorKind::Conflict
        };
        assert_eq!(deploy.await.unwrap().unwrap_err().kind, expected);
        assert!(began.elapsed() < Duration::from_secs(1));
    }
}

#[tokio::test(start_paused = true)]
async fn request_isolation_never_reuses() {
    let plan = Arc::new(Plan::default());
    let scheduler = scheduler(&plan);
    let version = version_with(|config| config.isolation = Isolation::Request);
    for made in 1..=3 {
        assert_eq!(
            scheduler.invoke(invocation(&version)).await.unwrap().start,
            StartKind::Cold
        );
        settle().await;
        assert_eq!(
            (plan.created.load(Ordering::SeqCst), scheduler.instances()),
            (made, 0)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn draining_waits_for_what_runs_and_refuses_the_rest() {
    let plan = Arc::new(Plan {
        run: Duration::from_secs(5),
        ..Plan::default()
    });
    let scheduler = scheduler(&plan);
    let version = version();
    let running = tokio::spawn({
        let (scheduler, invocation) = (scheduler.clone(), invocation(&version));
        async move { scheduler.invoke(invocation).await.is_ok() }
    });
    settle().await;
    let draining = tokio::spawn({
        let scheduler = scheduler.clone();
        async move { scheduler.drain(Duration::from_secs(30)).await }
    });
    settle().await;
    assert_eq!(
        scheduler
            .invoke(invocation(&version))
            .await
            .unwrap_err()
            .failure
            .kind,
        ErrorKind::Draining
    );
    assert!(running.await.unwrap() && draining.await.unwrap());
    assert_eq!(scheduler.instances(), 0);
}

/// A timer of 15 minutes under the adaptive policy, with somebody who looks every 250 ms around each firing: soon no
/// firing is cold, and between firings nothing is kept.
#[tokio::test(start_paused = true)]
async fn a_periodic_function_is_started_before_it_is_called() {
    let plan = Arc::new(Plan::default());
    let scheduler = scheduler(&plan);
    let version = version_with(|config| {
        config.keep_alive_policy = Some(fnctl_core::config::KeepAlivePolicy::Adaptive);
    });
    // Only of the live version anything is started ahead.
    scheduler.configure(&version);
    let mut starts = Vec::new();
    for firing in 0..14 {
        let reply = scheduler.invoke(invocation(&version)).await.unwrap();
        starts.push(reply.start);
        settle().await;
        let since = Instant::now();
        let period = Duration::from_secs(900);
        while since.elapsed() < period - Duration::from_secs(200) {
            tokio::time::advance(Duration::from_secs(5)).await;
            scheduler.reap(Instant::now());
            settle().await;
        }
        if firing > 8 {
            assert_eq!(scheduler.instances(), 0, "before firing {firing}");
        }
        while since.elapsed() < period {
            tokio::time::advance(Duration::from_millis(250)).await;
            scheduler.reap(Instant::now());
            settle().await;
        }
    }
    assert_eq!(starts[0], StartKind::Cold);
    assert_eq!(starts[9..], [StartKind::Prewarmed; 5], "{starts:?}");
    // What was learned is kept over a restart.
    let histories = scheduler.histories();
    assert_eq!(histories.len(), 1);
    let text = serde_json::to_string(&histories).unwrap();
    let again = self::scheduler(&plan);
    again.restore_histories(serde_json::from_str(&text).unwrap());
    again.configure(&version);
    again.invoke(invocation(&version)).await.unwrap();
    settle().await;
    tokio::time::advance(Duration::from_secs(120)).await;
    again.reap(Instant::now());
    settle().await;
    assert_eq!(again.instances(), 0);
    assert!(
        again.next_expiry().is_some(),
        "the next firing is still expected"
    );
}
