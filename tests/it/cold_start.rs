//! How instances come to be, and that it is told.

use fnctl_tests::{Deployment, TestPlatform, file, probe};

#[tokio::test(flavor = "multi_thread")]
async fn the_first_call_is_cold_the_second_warm_and_memory_lives_on() {
    let platform = TestPlatform::start().await;
    platform.deploy(Deployment::new("probe", probe())).await;
    let first = platform.call("probe/count").await.ok();
    assert_eq!((first.start(), first.text().as_str()), ("cold", "1"));
    assert!(first.phase("instantiate") > 0.0);
    let second = platform.call("probe/count").await.ok();
    assert_eq!((second.start(), second.text().as_str()), ("warm", "2"));
    assert_eq!(second.phase("instantiate"), 0.0);
    assert_eq!(second.header("x-fnctl-version"), "1");
    for phase in [
        "queue",
        "artifact",
        "compile",
        "instantiate",
        "model",
        "init",
        "run",
    ] {
        first.phase(phase);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_request_isolation_every_call_has_fresh_memory_and_the_model_stays() {
    let platform = TestPlatform::start().await;
    let model = file("examples/fraud/models/fraud_mlp16.onnx");
    platform
        .deploy(
            Deployment::new("probe", probe())
                .with("isolation", "request")
                .model("fraud", model),
        )
        .await;
    for _ in 0..3 {
        let reply = platform.call("probe/count").await.ok();
        assert_eq!((reply.start(), reply.text().as_str()), ("cold", "1"));
    }
    assert_eq!(platform.platform().sessions().0, 1);
    assert_eq!(
        platform.metric("fnctl_inference_load_seconds_count").await,
        1.0,
        "the model was loaded once"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn provisioned_instances_are_there_before_the_first_call_and_stay() {
    let platform = TestPlatform::start().await;
    platform
        .deploy(
            Deployment::new("probe", probe())
                .with("provisioned", 2)
                .with("keep_alive", "1ms"),
        )
        .await;
    assert_eq!(platform.platform().instances(), 2);
    assert_eq!(platform.call("probe/count").await.ok().start(), "prewarmed");
    // Housekeeping has looked at least twice by then.
    tokio::time::sleep(std::time::Duration::from_millis(700)).await;
    assert_eq!(
        platform.platform().instances(),
        2,
        "keep-alive does not touch them"
    );
    // One that dies is replaced.
    assert_eq!(platform.call("probe/trap").await.status, 502);
    fnctl_tests::eventually("the dead instance is replaced", || {
        platform.platform().instances() == 2
    })
    .await;
    let platform = platform.restart().await;
    let idle = "fnctl_instances{function=\"probe\",state=\"idle\",version=\"1\"}";
    platform.metric_becomes(idle, 2.0).await;
    assert_eq!(
        platform.metric(idle).await,
        2.0,
        "they are back after a restart"
    );
    assert_eq!(platform.call("probe/count").await.ok().start(), "prewarmed");
}

#[tokio::test(flavor = "multi_thread")]
async fn max_uses_replaces_an_instance() {
    let platform = TestPlatform::start().await;
    platform
        .deploy(Deployment::new("probe", probe()).with("max_uses", 2))
        .await;
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(platform.call("probe/count").await.ok().text());
    }
    assert_eq!(seen, ["1", "2", "1", "2"]);
}
