//! Many callers at once.

use fnctl_tests::{Deployment, TestPlatform, probe};
use std::collections::HashMap;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_first_requests_start_no_more_instances_than_the_limit_and_lose_none() {
    let platform = TestPlatform::start().await;
    platform
        .deploy(
            Deployment::new("probe", probe())
                .with("concurrency", 8)
                .with("queue_timeout", "30s"),
        )
        .await;
    let calls = (0..200).map(|_| platform.call("probe/sleep?5"));
    let replies = futures::future::join_all(calls).await;
    let mut starts: HashMap<String, usize> = HashMap::new();
    for reply in replies {
        assert_eq!(reply.text(), "slept\n");
        *starts.entry(reply.start().to_owned()).or_default() += 1;
    }
    assert!(starts["cold"] <= 8, "{starts:?}");
    assert_eq!(starts.values().sum::<usize>(), 200);
    assert!(platform.platform().instances() <= 8);
    assert_eq!(
        platform
            .metric("fnctl_invocations_total{function=\"probe\",version=\"1\"}")
            .await,
        200.0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_at_once_and_says_when_to_come_back() {
    let platform = TestPlatform::start().await;
    platform
        .deploy(
            Deployment::new("probe", probe())
                .with("concurrency", 1)
                .with("queue_size", 1)
                .with("queue_timeout", "5s"),
        )
        .await;
    let replies = futures::future::join_all((0..5).map(|_| platform.call("probe/sleep?500"))).await;
    let (served, refused): (Vec<_>, Vec<_>) =
        replies.into_iter().partition(|reply| reply.status == 200);
    assert_eq!((served.len(), refused.len()), (2, 3));
    for reply in refused {
        assert_eq!(
            (reply.status.as_u16(), reply.code().as_str()),
            (429, "throttled")
        );
        assert_eq!(reply.header("retry-after"), "1");
    }
    assert_eq!(
        platform
            .metric("fnctl_throttles_total{function=\"probe\",version=\"1\"}")
            .await,
        3.0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_in_the_queue_is_bounded() {
    let platform = TestPlatform::start().await;
    platform
        .deploy(
            Deployment::new("probe", probe())
                .with("concurrency", 1)
                .with("queue_timeout", "200ms"),
        )
        .await;
    let (busy, waiting) = tokio::join!(platform.call("probe/sleep?1500"), async {
        let running = || platform.platform().in_flight() == 1;
        fnctl_tests::eventually("the first runs", running).await;
        platform.call("probe/count").await
    });
    assert_eq!(busy.status, 200);
    assert_eq!(
        (waiting.status.as_u16(), waiting.code().as_str()),
        (503, "queue_timeout")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_node_makes_room_by_retiring_what_is_worth_least() {
    let platform = TestPlatform::start_with(|config| {
        config.worker.max_instances = 2;
        config.scheduler.max_instances = 2;
    })
    .await;
    for name in ["a", "b", "c"] {
        platform.deploy(Deployment::new(name, probe())).await;
    }
    // What one is worth is the number of its calls times its measured cold start, by its size. They are of one artifact:
    // no cold start takes hundreds of times as long as another.
    platform.call("a/count").await.ok();
    for _ in 0..300 {
        platform.call("b/count").await.ok();
    }
    platform.call("c/count").await.ok();
    assert_eq!(platform.platform().instances(), 2);
    assert_eq!(platform.call("c/count").await.ok().start(), "warm");
    assert_eq!(platform.call("a/count").await.ok().start(), "cold");
    assert_eq!(
        platform
            .metric("fnctl_reaps_total{function=\"a\",reason=\"node_full\",version=\"1\"}")
            .await,
        1.0
    );
    let (x, y, z) = tokio::join!(
        platform.call("a/sleep?1500"),
        platform.call("b/sleep?1500"),
        async {
            let all_busy = async || {
                for name in ["a", "b"] {
                    while !is_busy(&platform, name).await {}
                }
            };
            tokio::time::timeout(Duration::from_secs(10), all_busy())
                .await
                .unwrap();
            platform.client.get("/fn/c/count").await
        }
    );
    assert_eq!(
        (x.status, y.status),
        (http::StatusCode::OK, http::StatusCode::OK)
    );
    assert_eq!((z.status.as_u16(), z.code().as_str()), (503, "node_full"));
}

/// Whether an instance of the function is at work.
async fn is_busy(platform: &TestPlatform, name: &str) -> bool {
    let told = platform
        .client
        .get(&format!("/api/v1/functions/{name}"))
        .await;
    told.text().contains("\"busy\"")
}
