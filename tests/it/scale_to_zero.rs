//! Idle instances go, then their models, and the memory goes back to the system.

use fnctl_core::Period;
use fnctl_tests::{Deployment, TestPlatform, eventually, file, probe, resident_bytes};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn idle_instances_go_and_the_next_call_is_cold_again() {
    let platform = TestPlatform::start().await;
    platform
        .deploy(Deployment::new("probe", probe()).with("keep_alive", "100ms"))
        .await;
    platform.call("probe/count").await.ok();
    assert_eq!(platform.platform().instances(), 1);
    eventually("the instance is reaped", || {
        platform.platform().instances() == 0
    })
    .await;
    assert_eq!(
        platform
            .metric("fnctl_reaps_total{function=\"probe\",reason=\"keep_alive\",version=\"1\"}")
            .await,
        1.0
    );
    let again = platform.call("probe/count").await.ok();
    assert_eq!((again.start(), again.text().as_str()), ("cold", "1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_go_after_their_instances_and_come_back() {
    let platform = TestPlatform::start_with(|config| {
        config.inference.session_ttl = Period(Duration::from_millis(600))
    })
    .await;
    let model = file("examples/fraud/models/fraud_mlp16.onnx");
    platform
        .deploy(
            Deployment::new("fraud", file("examples/fraud/fraud.wasm"))
                .model("fraud", model)
                .with("keep_alive", "50ms"),
        )
        .await;
    let request = file("examples/fraud/request.json");
    platform
        .client
        .post("/fn/fraud", request.clone())
        .await
        .ok();
    eventually("the instance is reaped", || {
        platform.platform().instances() == 0
    })
    .await;
    assert_eq!(
        platform.platform().sessions().0,
        1,
        "the session outlives the instance"
    );
    eventually("the session is unloaded", || {
        platform.platform().sessions() == (0, 0)
    })
    .await;
    let again = platform.client.post("/fn/fraud", request).await.ok();
    assert_eq!(again.start(), "cold");
    assert!(again.phase("model") > 0.0);
}

/// 20 concurrent embeddings, then zero: the process is as small as before, within a margin for what the allocator and
/// the library keep.
#[tokio::test(flavor = "multi_thread")]
async fn a_burst_over_minilm_gives_its_memory_back() {
    let platform = TestPlatform::start_with(|config| {
        config.inference.session_ttl = Period(Duration::from_millis(300))
    })
    .await;
    let model = file("examples/embeddings/models/all-minilm-l6-v2-int8.onnx");
    let deployment = Deployment::new("embeddings", file("examples/embeddings/embeddings.wasm"))
        .model("minilm", model);
    platform
        .deploy(
            deployment
                .with("keep_alive", "100ms")
                .with("concurrency", 4),
        )
        .await;
    let at_zero =
        || platform.platform().instances() == 0 && platform.platform().sessions() == (0, 0);
    eventually("deploying leaves nothing behind", at_zero).await;
    let request = file("examples/embeddings/request.json");
    let burst = || async {
        let calls = (0..20).map(|_| platform.client.post("/fn/embeddings", request.clone()));
        for reply in futures::future::join_all(calls).await {
            reply.ok();
        }
    };
    // First to pay for what is loaded only once, and for the arenas that the allocator makes for each thread it sees at
    // work; then to measure. Memory is handed back in the housekeeping round after the last session has gone.
    for _ in 0..2 {
        burst().await;
        eventually("everything is reaped", at_zero).await;
        tokio::time::sleep(Duration::from_millis(600)).await;
    }
    // The models are in an inference host.
    let taken = || {
        let hosts = platform.platform().inference_hosts();
        let pids = hosts.into_iter().chain([std::process::id()]);
        pids.map(resident_bytes).sum::<u64>()
    };
    let before = taken();
    burst().await;
    let during = taken();
    eventually("everything is reaped", at_zero).await;
    assert!(
        during > before + (40 << 20),
        "the burst takes memory: {before} -> {during}"
    );
    let limit = before + before / 5;
    eventually("the memory is given back", || taken() < limit).await;
}
