//! How many instances there are and who is let in, on a whole platform.

use fnctl_tests::{Deployment, TestPlatform, probe};
use serde_json::{Value, json};
use std::time::Duration;

async fn instances(platform: &TestPlatform, name: &str) -> Vec<Value> {
    let path = format!("/api/v1/functions/{name}");
    let details = platform.client.get(&path).await.ok().json();
    details["instances"].as_array().cloned().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_is_turned_off_and_on_by_its_reserved_concurrency() {
    let platform = TestPlatform::start().await;
    platform
        .deploy(Deployment::new("probe", probe()).with("reserved_concurrency", 0))
        .await;
    let refused = platform.call("probe/count").await;
    assert_eq!(
        (refused.status.as_u16(), refused.code().as_str()),
        (429, "throttled")
    );
    assert!(refused.text().contains("reserved_concurrency is 0"));
    assert_eq!(platform.platform().instances(), 0);
    platform
        .deploy(Deployment::new("probe", probe()).with("reserved_concurrency", 1))
        .await;
    platform.call("probe/count").await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deploy_that_reserves_too_much_is_refused_with_what_is_left() {
    let platform = TestPlatform::start_with(|config| config.scheduler.max_concurrency = 20).await;
    platform
        .deploy(Deployment::new("a", probe()).with("reserved_concurrency", 10))
        .await;
    let wanted = Deployment::new("b", probe()).with("reserved_concurrency", 9);
    let refused = platform.try_deploy(&wanted).await;
    assert_eq!(
        (&refused["event"], &refused["code"]),
        (&json!("failed"), &json!("invalid_config"))
    );
    let message = refused["message"].as_str().expect("a message");
    assert!(message.contains("at most 8"), "{message}");
    // It holds after a restart, too.
    let platform = platform.restart().await;
    let refused = platform.try_deploy(&wanted).await;
    assert_eq!(refused["event"], "failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_window_provisions_at_deploy_and_after_a_restart() {
    let platform = TestPlatform::start().await;
    // Opens every minute for an hour: always open.
    let window = json!([{ "cron": "* * * * *", "time_zone": "Europe/Berlin", "duration": "1h", "provisioned": 2 }]);
    platform
        .deploy(Deployment::new("probe", probe()).with("schedule", window))
        .await;
    let started = instances(&platform, "probe").await;
    assert_eq!(started.len(), 2, "{started:?}");
    for one in &started {
        assert_eq!(one["why"], "provisioned by a schedule");
    }
    assert_eq!(platform.call("probe/count").await.ok().start(), "prewarmed");
    let platform = platform.restart().await;
    let ready = async {
        while platform.client.get("/readyz").await.status != 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), ready)
        .await
        .expect("it becomes ready");
    assert_eq!(instances(&platform, "probe").await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_be_answered_in_time_is_told_at_once_when_to_come_back() {
    let platform = TestPlatform::start().await;
    platform
        .deploy(
            Deployment::new("probe", probe())
                .with("concurrency", 1)
                .with("queue_timeout", "500ms"),
        )
        .await;
    for _ in 0..9 {
        platform.call("probe/sleep?100").await.ok();
    }
    // Ten a second: in half a second five are served.
    let replies =
        futures::future::join_all((0..30).map(|_| platform.call("probe/sleep?100"))).await;
    let served = replies.iter().filter(|reply| reply.status == 200).count();
    let refused: Vec<_> = replies
        .iter()
        .filter(|reply| reply.status == 429 && reply.code() == "throttled")
        .collect();
    assert!((2..=8).contains(&served), "{served}");
    assert!(refused.len() >= 20, "{}", refused.len());
    for reply in refused {
        let after: u64 = reply.header("retry-after").parse().expect("seconds");
        assert!((1..=4).contains(&after), "{after}");
    }
    let late = platform
        .metric("fnctl_drops_total{function=\"probe\",reason=\"too_late\",version=\"1\"}")
        .await;
    assert!(late >= 20.0, "{late}");
}

#[tokio::test(flavor = "multi_thread")]
async fn several_requests_in_one_instance_are_refused_at_deploy_with_the_reason() {
    let platform = TestPlatform::start().await;
    let wanted = Deployment::new("probe", probe()).with("instance_concurrency", 4);
    let refused = platform.try_deploy(&wanted).await;
    assert_eq!(refused["code"], "invalid_config", "{refused}");
    let message = refused["message"].as_str().expect("a message");
    assert!(message.contains("only a WASI 0.3 component"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_instance_says_when_it_goes() {
    let platform = TestPlatform::start().await;
    platform.deploy(Deployment::new("probe", probe())).await;
    platform.call("probe/count").await.ok();
    let idle = instances(&platform, "probe").await;
    let left = idle[0]["expires_in_ms"].as_u64().expect("a time");
    assert!((50_000..=60_000).contains(&left), "{left}");
    assert!(
        idle[0]["why"]
            .as_str()
            .expect("a reason")
            .starts_with("keep-alive")
    );
}
