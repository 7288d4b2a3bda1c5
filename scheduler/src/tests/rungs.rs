//! What is below an instance is kept as long as the policy says, when the instance goes because its time has come.

use super::fake::{Plan, invocation, version, version_with};
use super::{scheduler_with, settle};
use crate::Scheduler;
use fnctl_core::ladder::{KeptUntil, LowerRungs, RungCost};
use fnctl_core::ports::Invoker;
use fnctl_core::version::Version;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const MIB: u64 = 1 << 20;

fn plan(session: RungCost) -> Arc<Plan> {
    Arc::new(Plan {
        start: Duration::from_millis(2),
        memory: 256 * MIB,
        below: LowerRungs {
            session,
            template: RungCost {
                took: Duration::from_micros(100),
                bytes: 64 * MIB,
            },
        },
        ..Plan::default()
    })
}

/// So many seconds pass, with a look at each.
async fn seconds(scheduler: &Scheduler, count: u64) {
    for _ in 0..count {
        tokio::time::advance(Duration::from_secs(1)).await;
        scheduler.reap(Instant::now());
        settle().await;
    }
}

/// Calls a function every 20 to 80 s for a while, then never again. Returns when its instance went, and what was said
/// about the rungs below.
async fn until_gone(
    plan: &Arc<Plan>,
    policy: &str,
    version: &Arc<Version>,
) -> (Instant, Vec<KeptUntil>) {
    let scheduler = scheduler_with(plan, |config| {
        config.keep_alive_policy = policy.parse().unwrap();
    });
    scheduler
        .activate(version.clone(), Vec::new())
        .await
        .unwrap();
    for call in 0..20u64 {
        let reply = scheduler.invoke(invocation(version)).await.unwrap();
        drop(reply);
        settle().await;
        seconds(&scheduler, 20 + call * 7 % 60).await;
    }
    plan.kept.lock().clear();
    scheduler.invoke(invocation(version)).await.unwrap();
    settle().await;
    for _ in 0..200_000 {
        tokio::time::advance(Duration::from_secs(1)).await;
        scheduler.reap(Instant::now());
        settle().await;
        if scheduler.instances() == 0 && scheduler.next_expiry().is_none() {
            break;
        }
    }
    assert_eq!(scheduler.instances(), 0);
    (Instant::now(), std::mem::take(&mut *plan.kept.lock()))
}

#[tokio::test(start_paused = true)]
async fn a_dear_session_outlives_a_large_sandbox_and_a_cheap_template() {
    let dear = plan(RungCost {
        took: Duration::from_secs(3),
        bytes: 2 * MIB,
    });
    let (gone, kept) = until_gone(&dear, "adaptive:2m,cost=1,no-guard", &version()).await;
    let last = kept.last().expect("the policy says how long");
    assert!(
        last.session > gone + Duration::from_secs(60),
        "{:?}",
        last.session.saturating_duration_since(gone)
    );
    assert!(
        last.template <= gone + Duration::from_secs(1),
        "{:?}",
        last.template.saturating_duration_since(gone)
    );
}

#[tokio::test(start_paused = true)]
async fn policies_without_an_opinion_leave_it_to_the_platform() {
    for policy in [
        "fixed:30s",
        "histogram:standard=30s",
        "adaptive:2m,no-rungs",
    ] {
        let plan = plan(RungCost {
            took: Duration::from_secs(3),
            bytes: 2 * MIB,
        });
        let (_, kept) = until_gone(&plan, policy, &version()).await;
        assert_eq!(kept, [], "{policy}");
    }
}

/// A second version of the function went live: what its policy learned is not about this one's models.
#[tokio::test(start_paused = true)]
async fn a_version_that_is_not_live_any_more_leaves_it_to_the_platform() {
    let plan = plan(RungCost {
        took: Duration::from_secs(3),
        bytes: 2 * MIB,
    });
    let scheduler = scheduler_with(&plan, |config| {
        config.keep_alive_policy = "adaptive:2m".parse().unwrap();
    });
    let old = version_with(|config| config.keep_alive = fnctl_core::Period::secs(5));
    let mut next = Version::clone(&old);
    next.number = fnctl_core::VersionNumber(2);
    scheduler.activate(old.clone(), Vec::new()).await.unwrap();
    for _ in 0..20 {
        scheduler.invoke(invocation(&old)).await.unwrap();
        settle().await;
        seconds(&scheduler, 20).await;
    }
    assert!(!plan.kept.lock().is_empty(), "the policy has an opinion");
    scheduler
        .activate(Arc::new(next), Vec::new())
        .await
        .unwrap();
    plan.kept.lock().clear();
    scheduler.invoke(invocation(&old)).await.unwrap();
    settle().await;
    seconds(&scheduler, 20).await;
    assert_eq!(scheduler.instances(), 0);
    assert_eq!(*plan.kept.lock(), []);
    let forgotten = plan.forgotten.lock().clone();
    assert_eq!(forgotten, [old.function.clone(), old.function.clone()]);
}

/// An instance that serves one request goes with it, and what is below stays as long as the policy says.
#[tokio::test(start_paused = true)]
async fn what_is_below_an_instance_of_one_request_is_kept_as_planned() {
    let plan = plan(RungCost {
        took: Duration::from_secs(3),
        bytes: 2 * MIB,
    });
    let version = version_with(|config| config.isolation = fnctl_core::Isolation::Request);
    let (gone, kept) = until_gone(&plan, "adaptive:2m,cost=1,no-guard", &version).await;
    let last = kept.last().expect("the policy says how long");
    assert!(last.session > gone + Duration::from_secs(60));
}
