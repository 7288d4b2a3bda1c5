//! What happens when more is asked for than there is: refusals, fairness, reservations.

use super::fake::{Plan, invocation, version_of, version_with};
use super::{scheduler, scheduler_with, settle};
use crate::Scheduler;
use fnctl_core::ports::Invoker;
use fnctl_core::units::Period;
use fnctl_core::version::Version;
use fnctl_core::{ErrorKind, Failure};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Instant;

fn concurrency(count: u32) -> NonZeroU32 {
    NonZeroU32::new(count).unwrap()
}

/// A call: how long it took, and what came of it.
fn call(scheduler: &Scheduler, version: &Arc<Version>) -> JoinHandle<(Duration, Option<Failure>)> {
    let (scheduler, invocation) = (scheduler.clone(), invocation(version));
    tokio::spawn(async move {
        let since = Instant::now();
        let answer = scheduler.invoke(invocation).await;
        (
            since.elapsed(),
            answer.err().map(|unanswered| unanswered.failure),
        )
    })
}

#[tokio::test(start_paused = true)]
async fn who_cannot_be_answered_in_time_is_refused_at_once_with_the_measured_time() {
    let plan = Arc::new(Plan {
        run: Duration::from_millis(100),
        ..Plan::default()
    });
    let scheduler = scheduler(&plan);
    let version = version_with(|config| {
        config.concurrency = concurrency(2);
        config.queue_timeout = Period::secs(2);
    });
    for _ in 0..10 {
        scheduler.invoke(invocation(&version)).await.unwrap();
        settle().await;
    }
    // Twenty a second: in two seconds forty are served.
    let calls: Vec<_> = (0..100).map(|_| call(&scheduler, &version)).collect();
    let (mut served, mut refused, mut late) = (0, 0, 0);
    for call in calls {
        match call.await.unwrap() {
            (took, None) => {
                served += 1;
                assert!(took <= Duration::from_millis(2150), "{took:?}");
            }
            // The second instance had to start: an estimate knows nothing of that.
            (_, Some(failure)) if failure.kind == ErrorKind::QueueTimeout => late += 1,
            (took, Some(failure)) => {
                refused += 1;
                assert_eq!((took, failure.kind), (Duration::ZERO, ErrorKind::Throttled));
                let after = failure.retry_after.unwrap();
                assert!(
                    (Duration::from_secs(1)..Duration::from_secs(3)).contains(&after),
                    "{after:?}"
                );
            }
        }
    }
    assert!(
        (37..=44).contains(&served) && late <= 3,
        "{served} served, {refused} refused, {late} late"
    );
}

#[tokio::test(start_paused = true)]
async fn goodput_under_five_times_the_load_is_the_capacity() {
    let plan = Arc::new(Plan {
        run: Duration::from_millis(100),
        ..Plan::default()
    });
    let scheduler = scheduler(&plan);
    let version = version_with(|config| {
        config.concurrency = concurrency(4);
        config.queue_timeout = Period::secs(1);
        config.timeout = Period::secs(5);
    });
    // Capacity is 40 a second; 200 come, for 30 seconds.
    let mut calls = Vec::new();
    for _ in 0..300 {
        calls.extend((0..20).map(|_| call(&scheduler, &version)));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut times = Vec::new();
    for call in calls {
        if let (took, None) = call.await.unwrap() {
            times.push(took);
        }
    }
    times.sort_unstable();
    let p99 = times[times.len() * 99 / 100];
    assert!(times.len() >= 1080, "{} of 1200", times.len());
    assert!(p99 <= Duration::from_millis(1250), "{p99:?}");
}

#[tokio::test(start_paused = true)]
async fn a_function_that_is_turned_off_refuses_and_starts_nothing() {
    let plan = Arc::new(Plan::default());
    let scheduler = scheduler(&plan);
    let version = version_with(|config| config.reserved_concurrency = Some(0));
    scheduler
        .activate(version.clone(), Vec::new())
        .await
        .unwrap();
    let failure = scheduler
        .invoke(invocation(&version))
        .await
        .unwrap_err()
        .failure;
    assert_eq!(
        (failure.kind, failure.retry_after),
        (ErrorKind::Throttled, None)
    );
    assert!(
        failure.message.contains("reserved_concurrency is 0"),
        "{failure}"
    );
    assert_eq!(plan.attempts.load(Ordering::SeqCst), 0);
    // Turned on again.
    let mut on = (*version).clone();
    on.config.reserved_concurrency = None;
    scheduler.activate(Arc::new(on), Vec::new()).await.unwrap();
    scheduler.invoke(invocation(&version)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_is_reserved_is_nobody_elses_and_the_rest_is_shared() {
    let plan = Arc::new(Plan {
        run: Duration::from_secs(1),
        ..Plan::default()
    });
    let scheduler = scheduler_with(&plan, |config| {
        config.max_concurrency = 10;
        config.max_instances = 100;
    });
    let reserved = version_of("reserved", |config| config.reserved_concurrency = Some(6));
    let claim = scheduler.claim(&reserved).unwrap();
    scheduler
        .activate(reserved.clone(), Vec::new())
        .await
        .unwrap();
    drop(claim);
    let greedy = version_of("greedy", |_| {});
    let calls: Vec<_> = (0..30).map(|_| call(&scheduler, &greedy)).collect();
    settle().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(plan.running.load(Ordering::SeqCst), 4, "10 without the 6");
    // The burst of the other does not touch what is reserved.
    let own: Vec<_> = (0..6).map(|_| call(&scheduler, &reserved)).collect();
    for call in own {
        let (took, failure) = call.await.unwrap();
        assert!(
            failure.is_none() && took < Duration::from_millis(1200),
            "{took:?}"
        );
    }
    for call in calls {
        assert!(call.await.unwrap().1.is_none());
    }
    let too_much = version_of("more", |config| config.reserved_concurrency = Some(4));
    let refused = scheduler.claim(&too_much).unwrap_err();
    assert_eq!(refused.kind, ErrorKind::InvalidConfig);
    assert!(refused.message.contains("at most 3"), "{refused}");
    scheduler.retire(&[reserved.key()]);
    let _claim = scheduler.claim(&too_much).unwrap();
    let another = version_of("another", |config| config.reserved_concurrency = Some(6));
    let refused = scheduler.claim(&another).unwrap_err();
    assert!(refused.message.contains("at most 5"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn one_functions_burst_leaves_the_others_their_turn() {
    let plan = Arc::new(Plan {
        start: Duration::ZERO,
        run: Duration::from_millis(100),
        ..Plan::default()
    });
    let scheduler = scheduler_with(&plan, |config| {
        config.max_concurrency = 4;
        config.max_instances = 100;
    });
    let burst = version_of("burst", |config| config.queue_timeout = Period::secs(600));
    let calm = version_of("calm", |_| {});
    let flood: Vec<_> = (0..50).map(|_| call(&scheduler, &burst)).collect();
    settle().await;
    // Fifty are before it, which take 1.25 seconds; its turn comes in the next round.
    for _ in 0..5 {
        let (took, failure) = call(&scheduler, &calm).await.unwrap();
        assert!(failure.is_none(), "{failure:?}");
        assert!(took <= Duration::from_millis(310), "{took:?}");
    }
    for call in flood {
        assert!(call.await.unwrap().1.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn guests_that_wait_for_something_outside_take_no_turn_from_others() {
    // The fake waits for its timer, as a guest that waits for an answer from the network.
    let plan = Arc::new(Plan {
        run: Duration::from_secs(1),
        ..Plan::default()
    });
    let scheduler = scheduler_with(&plan, |config| config.max_running = 1);
    let version = version_with(|_| {});
    let calls: Vec<_> = (0..10).map(|_| call(&scheduler, &version)).collect();
    for call in calls {
        let (took, failure) = call.await.unwrap();
        assert!(
            failure.is_none() && took < Duration::from_millis(1300),
            "{took:?}"
        );
    }
    assert_eq!(plan.peak.load(Ordering::SeqCst), 10);
}

#[tokio::test(start_paused = true)]
async fn whoever_leaves_while_waiting_for_the_node_leaves_nothing_behind() {
    let plan = Arc::new(Plan {
        run: Duration::from_secs(5),
        ..Plan::default()
    });
    let scheduler = scheduler_with(&plan, |config| config.max_concurrency = 1);
    let (a, b) = (
        version_of("a", |_| {}),
        version_of("b", |config| config.queue_timeout = Period::secs(1)),
    );
    let held = call(&scheduler, &a);
    settle().await;
    let left = tokio::time::timeout(Duration::from_millis(100), scheduler.invoke(invocation(&b)));
    assert!(left.await.is_err());
    let (took, failure) = call(&scheduler, &b).await.unwrap();
    let failure = failure.unwrap();
    assert_eq!(
        (took, failure.kind),
        (Duration::from_secs(1), ErrorKind::Overloaded)
    );
    assert!(failure.retry_after.is_some());
    assert!(held.await.unwrap().1.is_none());
    settle().await;
    assert!(call(&scheduler, &b).await.unwrap().1.is_none());
    settle().await;
    assert!(scheduler.drain(Duration::from_secs(1)).await);
}
