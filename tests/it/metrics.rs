//! What Prometheus scrapes.

use fnctl_tests::{Deployment, TestPlatform, probe, root};
use std::collections::BTreeSet;

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_is_documented_and_every_documented_one_exists() {
    let platform = TestPlatform::start().await;
    platform
        .deploy(
            Deployment::new("probe", probe())
                .with("concurrency", 1)
                .with("queue_size", 0),
        )
        .await;
    platform.call("probe/count").await.ok();
    platform.call("probe/trap").await;
    let _ = tokio::join!(
        platform.call("probe/sleep?200"),
        platform.call("probe/sleep?200")
    );
    let text = platform.client.get("/metrics").await.ok().text();
    let scraped: BTreeSet<String> = text
        .lines()
        .filter_map(|line| {
            line.strip_prefix("# TYPE fnctl_")?
                .split(' ')
                .next()
                .map(|name| format!("fnctl_{name}"))
        })
        .collect();
    let documented = std::fs::read_to_string(root().join("docs/metrics.md")).unwrap();
    for name in &scraped {
        assert!(
            documented.contains(&format!("`{name}`")),
            "{name} is not in docs/metrics.md"
        );
    }
    for sample in [
        "fnctl_starts_total{function=\"probe\",kind=\"cold\",version=\"1\"}",
        "fnctl_invocation_errors_total{function=\"probe\",kind=\"trap\",version=\"1\"} 1",
        "fnctl_throttles_total{function=\"probe\",version=\"1\"} 1",
        "fnctl_cold_start_seconds_count{function=\"probe\",phase=\"instantiate\",version=\"1\"}",
        "fnctl_instances{function=\"probe\",state=\"busy\",version=\"1\"} 0",
        "process_resident_memory_bytes",
    ] {
        assert!(text.contains(sample), "{sample}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_function_leaves_no_series() {
    let platform = TestPlatform::start().await;
    platform.deploy(Deployment::new("probe", probe())).await;
    platform.call("probe/count").await.ok();
    platform.call("probe/trap").await;
    platform
        .client
        .send(http::Method::DELETE, "/api/v1/functions/probe", &[], "")
        .await
        .ok();
    let text = platform.client.get("/metrics").await.ok().text();
    assert!(
        !text.contains("probe"),
        "{}",
        text.lines()
            .filter(|line| line.contains("probe"))
            .collect::<Vec<_>>()
            .join("\n")
    );
}
