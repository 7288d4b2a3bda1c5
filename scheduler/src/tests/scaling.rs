//! How many instances there are: herds, minimums, provisioned ones, schedules, the autoscaler, memory, and why.

use super::fake::{self, Plan, invocation, version_of, version_with};
use super::{scheduler, scheduler_with, settle};
use crate::Scheduler;
use fnctl_core::config::FunctionConfig;
use fnctl_core::invocation::StartKind;
use fnctl_core::ports::{InstanceStatus, Invoker};
use fnctl_core::scaling::Percent;
use fnctl_core::schedule::ScheduleWindow;
use fnctl_core::units::{ByteSize, Period};
use fnctl_core::version::Version;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Instant;

const fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// Housekeeping as the platform does it, for some time of the paused clock.
async fn pass(scheduler: &Scheduler, time: Duration) {
    let until = Instant::now() + time;
    while Instant::now() < until {
        scheduler.reap(Instant::now());
        tokio::time::sleep(ms(250)).await;
    }
    settle().await;
}

fn call(scheduler: &Scheduler, version: &Arc<Version>) -> JoinHandle<StartKind> {
    let (scheduler, invocation) = (scheduler.clone(), invocation(version));
    tokio::spawn(async move { scheduler.invoke(invocation).await.unwrap().start })
}

fn why(scheduler: &Scheduler) -> Vec<InstanceStatus> {
    scheduler.status(&"fake".parse().unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_call_that_a_busy_instance_serves_sooner_starts_none() {
    let plan = Arc::new(Plan {
        start: Duration::from_secs(1),
        run: ms(10),
        ..Plan::default()
    });
    let scheduler = scheduler(&plan);
    let version = version_with(|_| {});
    scheduler.invoke(invocation(&version)).await.unwrap();
    settle().await;
    let held = call(&scheduler, &version);
    settle().await;
    let second = scheduler.invoke(invocation(&version)).await.unwrap();
    assert_eq!(
        (held.await.unwrap(), second.start),
        (StartKind::Warm, StartKind::Warm)
    );
    assert_eq!(plan.created.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_herd_starts_what_its_queue_needs_by_what_was_measured() {
    // A start takes 100 ms and a run 10: one instance serves ten in the time that another needs to start.
    let plan = Arc::new(Plan {
        run: ms(10),
        ..Plan::default()
    });
    let scheduler = scheduler(&plan);
    let version = version_with(|config| config.keep_alive = Period::secs(0));
    scheduler.configure(&version);
    scheduler.invoke(invocation(&version)).await.unwrap();
    settle().await;
    scheduler.reap(Instant::now());
    let before = plan.created.load(Ordering::SeqCst);
    assert_eq!(
        (scheduler.instances(), scheduler.active_functions()),
        (0, 0)
    );
    // What was measured outlives the pool, so the herd meets it at zero.
    let calls: Vec<_> = (0..40).map(|_| call(&scheduler, &version)).collect();
    for call in calls {
        call.await.unwrap();
    }
    assert_eq!(plan.created.load(Ordering::SeqCst) - before, 4);
}

#[tokio::test(start_paused = true)]
async fn a_slow_call_does_not_hold_up_those_behind_it() {
    // Runs were short until now; one that is long must not keep the next from an instance of its own.
    let plan = Arc::new(Plan {
        run: Duration::from_secs(3600),
        ..Plan::default()
    });
    let scheduler = scheduler(&plan);
    let version = version_with(|config| config.timeout = Period::secs(10));
    let pool = scheduler.inner.pool_of(&version).1;
    for _ in 0..20 {
        pool.teach(ms(1), Duration::from_secs(1));
    }
    for _ in 0..2 {
        drop(tokio::spawn({
            let (scheduler, invocation) = (scheduler.clone(), invocation(&version));
            async move { scheduler.invoke(invocation).await.is_ok() }
        }));
        tokio::time::sleep(ms(200)).await;
    }
    assert_eq!(
        scheduler.instances(),
        1,
        "by what was measured one is enough"
    );
    pass(&scheduler, Duration::from_secs(2)).await;
    assert_eq!(plan.running.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn an_instance_whose_caller_left_is_prewarmed_for_the_next() {
    let plan = Arc::new(Plan::default());
    let scheduler = scheduler(&plan);
    let version = version_with(|_| {});
    let left = tokio::time::timeout(fake::START / 2, scheduler.invoke(invocation(&version))).await;
    assert!(left.is_err());
    tokio::time::sleep(fake::START).await;
    let next = scheduler.invoke(invocation(&version)).await.unwrap();
    assert_eq!(next.start, StartKind::Prewarmed);
}

#[tokio::test(start_paused = true)]
async fn a_minimum_holds_from_the_first_call_on_and_is_nothing_before() {
    let plan = Arc::new(Plan::default());
    let scheduler = scheduler(&plan);
    let version = version_with(|config| config.min_instances = 2);
    scheduler
        .activate(version.clone(), Vec::new())
        .await
        .unwrap();
    pass(&scheduler, Duration::from_secs(5)).await;
    assert_eq!(scheduler.instances(), 0);
    scheduler.invoke(invocation(&version)).await.unwrap();
    pass(&scheduler, Duration::from_secs(1)).await;
    assert_eq!(scheduler.instances(), 2);
    pass(&scheduler, Duration::from_secs(600)).await;
    let kept = why(&scheduler);
    assert!(
        kept.iter().all(|one| one.why == "min_instances"),
        "{kept:?}"
    );
    assert_eq!(kept.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn no_more_than_max_instances_are_started_and_callers_take_turns() {
    let plan = Arc::new(Plan {
        run: ms(200),
        ..Plan::default()
    });
    let scheduler = scheduler(&plan);
    let version = version_with(|config| config.max_instances = NonZeroU32::new(3));
    let calls: Vec<_> = (0..12).map(|_| call(&scheduler, &version)).collect();
    for call in calls {
        call.await.unwrap();
    }
    assert_eq!(plan.created.load(Ordering::SeqCst), 3);
}

fn office(config: &mut FunctionConfig) {
    config.schedule = vec![ScheduleWindow {
        cron: "0 8 * * *".into(),
        time_zone: "UTC".into(),
        duration: Period::secs(3600),
        provisioned: 4,
        min_instances: 0,
        ramp_down: Period::secs(400),
    }];
    config.keep_alive = Period::secs(10);
}

#[tokio::test(start_paused = true)]
async fn a_schedule_provisions_while_it_is_open_and_lets_go_one_after_the_other() {
    let plan = Arc::new(Plan::default());
    let scheduler = scheduler(&plan);
    let version = version_with(office);
    scheduler.configure(&version);
    const HOUR: Duration = Duration::from_secs(3600);
    pass(&scheduler, HOUR * 8 - Duration::from_secs(2)).await;
    assert_eq!(
        (scheduler.instances(), scheduler.active_functions()),
        (0, 0)
    );
    pass(&scheduler, Duration::from_secs(4)).await;
    assert_eq!(scheduler.instances(), 4);
    let open = why(&scheduler);
    assert!(
        open.iter()
            .all(|one| one.why == "provisioned by a schedule"),
        "{open:?}"
    );
    pass(&scheduler, HOUR - Duration::from_secs(10)).await;
    assert_eq!(scheduler.instances(), 4);
    let mut seen = Vec::new();
    for _ in 0..5 {
        pass(&scheduler, Duration::from_secs(100)).await;
        seen.push(scheduler.instances());
    }
    assert_eq!(seen, [4, 3, 2, 1, 0]);
    pass(&scheduler, Duration::from_secs(1)).await;
    assert_eq!(scheduler.active_functions(), 0, "nothing of it is left");
}

#[tokio::test(start_paused = true)]
async fn a_deploy_within_a_window_waits_for_its_instances() {
    let plan = Arc::new(Plan::default());
    let scheduler = scheduler(&plan);
    tokio::time::advance(Duration::from_secs(8 * 3600 + 60)).await;
    let version = version_with(office);
    scheduler.activate(version, Vec::new()).await.unwrap();
    assert_eq!(scheduler.instances(), 4);
}

#[tokio::test(start_paused = true)]
async fn the_autoscaler_starts_ahead_of_demand_and_keeps_what_the_load_needs() {
    let plan = Arc::new(Plan {
        run: Duration::from_secs(1),
        ..Plan::default()
    });
    let scheduler = scheduler(&plan);
    let version = version_with(|config| {
        config.target_concurrency = Some(Percent(50));
        config.keep_alive = Period::secs(5);
    });
    // Two at a time, all the time: at half use that is four instances.
    let load = tokio::spawn({
        let (scheduler, version) = (scheduler.clone(), version.clone());
        async move {
            for _ in 0..150 {
                let calls = [call(&scheduler, &version), call(&scheduler, &version)];
                for call in calls {
                    call.await.unwrap();
                }
            }
        }
    });
    pass(&scheduler, Duration::from_secs(140)).await;
    assert_eq!(scheduler.instances(), 4);
    let reasons: Vec<_> = why(&scheduler).into_iter().map(|one| one.why).collect();
    assert!(
        reasons.iter().any(|why| why == "target_concurrency"),
        "{reasons:?}"
    );
    load.await.unwrap();
    pass(&scheduler, Duration::from_secs(90)).await;
    assert_eq!(
        (scheduler.instances(), scheduler.active_functions()),
        (0, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn memory_is_admitted_by_what_was_measured_and_idle_ones_make_room() {
    const MIB: u64 = 1 << 20;
    let plan = Arc::new(Plan {
        run: Duration::from_secs(1),
        memory: 14 * MIB,
        ..Plan::default()
    });
    let scheduler = scheduler_with(&plan, |config| config.memory = ByteSize::mib(60).into());
    // Declared as 128 MiB each: by that not one would fit.
    let (a, b) = (version_of("a", |_| {}), version_of("b", |_| {}));
    for _ in 0..2 {
        scheduler.invoke(invocation(&a)).await.unwrap();
    }
    settle().await;
    let four: Vec<_> = (0..4).map(|_| call(&scheduler, &a)).collect();
    for call in four {
        call.await.unwrap();
    }
    settle().await;
    assert_eq!(scheduler.instances(), 4, "4 x 14.25 MiB of 60");
    // Nothing is known of b, so it is taken for 15 MiB, the most that a start counts as: one of a goes for it.
    scheduler.invoke(invocation(&b)).await.unwrap();
    settle().await;
    assert_eq!(scheduler.instances(), 4);
    assert!(!scheduler.is_short_of_memory());
    // Sessions take their part, but for a quarter.
    scheduler.set_session_memory(50 * MIB);
    assert!(scheduler.is_short_of_memory());
    scheduler.reap(Instant::now());
    assert_eq!(scheduler.instances(), 1);
    scheduler.invoke(invocation(&a)).await.unwrap();
    settle().await;
    assert_eq!(scheduler.instances(), 1, "b's went for it");
    let busy = call(&scheduler, &a);
    settle().await;
    let refused = scheduler.invoke(invocation(&b)).await.unwrap_err().failure;
    assert_eq!(refused.kind, fnctl_core::ErrorKind::NodeFull);
    assert!(refused.message.contains("scheduler.memory"), "{refused}");
    busy.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn status_says_why_an_instance_exists_and_when_it_goes() {
    let plan = Arc::new(Plan {
        run: Duration::from_secs(5),
        ..Plan::default()
    });
    let scheduler = scheduler(&plan);
    let version = version_with(|config| config.provisioned = 1);
    scheduler
        .activate(version.clone(), Vec::new())
        .await
        .unwrap();
    let calls = [call(&scheduler, &version), call(&scheduler, &version)];
    settle().await;
    let starting: Vec<_> = why(&scheduler)
        .into_iter()
        .map(|one| (one.state, one.why))
        .collect();
    assert_eq!(
        starting,
        [
            ("busy", "busy for 0.0s".to_owned()),
            ("starting", "starting for 1 waiting".to_owned())
        ]
    );
    for call in calls {
        call.await.unwrap();
    }
    settle().await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    let idle = why(&scheduler);
    // The second one ended 100 ms later; the first to be idle is the first to go.
    assert_eq!(idle[0].why, "keep-alive, goes in 39.9s", "{idle:?}");
    assert_eq!(idle[0].expires_in_ms, Some(39_900));
    assert_eq!(
        (idle[1].why.as_str(), idle[1].expires_in_ms),
        ("provisioned", None)
    );
}

#[tokio::test(start_paused = true)]
async fn a_function_at_zero_holds_nothing_but_its_name() {
    let plan = Arc::new(Plan::default());
    let scheduler = scheduler(&plan);
    for number in 0..50 {
        let version = version_of(&format!("f{number}"), |config| {
            config.keep_alive = Period::secs(1)
        });
        scheduler.configure(&version);
        scheduler.invoke(invocation(&version)).await.unwrap();
        settle().await;
        pass(&scheduler, Duration::from_secs(2)).await;
        assert_eq!(scheduler.active_functions(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_is_not_kept_goes_with_its_request() {
    let plan = Arc::new(Plan::default());
    let scheduler = scheduler(&plan);
    let version = version_of("f", |config| {
        config.keep_alive = Period::secs(0);
        config.min_instances = 1;
    });
    scheduler.configure(&version);
    let other = version_of("g", |config| config.keep_alive = Period::secs(0));
    for number in 1..=3 {
        let reply = scheduler.invoke(invocation(&other)).await.unwrap();
        assert_eq!(reply.start, StartKind::Cold);
        settle().await;
        assert_eq!(scheduler.instances(), 0, "{number}");
    }
    // Those that a look did not retire count at the next one, for whoever gives memory back then.
    assert_eq!(scheduler.reap(Instant::now()), 3);
    assert_eq!(scheduler.active_functions(), 0);
    // What is kept by another rule stays.
    scheduler.invoke(invocation(&version)).await.unwrap();
    settle().await;
    scheduler.reap(Instant::now());
    scheduler.invoke(invocation(&version)).await.unwrap();
    settle().await;
    assert_eq!(scheduler.instances(), 1);
}

#[tokio::test(start_paused = true)]
async fn limits_are_the_live_versions_also_after_zero() {
    let plan = Arc::new(Plan {
        run: Duration::from_secs(1),
        ..Plan::default()
    });
    let scheduler = scheduler(&plan);
    let old = version_with(|config| config.concurrency = NonZeroU32::new(5).unwrap());
    let mut new = (*old).clone();
    new.number = fnctl_core::VersionNumber(2);
    new.config.concurrency = NonZeroU32::new(2).unwrap();
    scheduler.configure(&Arc::new(new));
    let calls: Vec<_> = (0..6).map(|_| call(&scheduler, &old)).collect();
    for call in calls {
        call.await.unwrap();
    }
    assert_eq!(plan.peak.load(Ordering::SeqCst), 2);
}
