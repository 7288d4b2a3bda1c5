//! Versions, aliases, rollbacks, restarts.

use fnctl_tests::{Deployment, TestPlatform, probe};
use http::Method;
use serde_json::json;

async fn three_versions() -> TestPlatform {
    let platform = TestPlatform::start().await;
    for number in 1..=3 {
        let deployed = platform
            .deploy(
                Deployment::new("probe", probe()).with("env", json!({ "N": number.to_string() })),
            )
            .await;
        assert_eq!(deployed, number);
    }
    platform
}

async fn seen(platform: &TestPlatform, target: &str) -> String {
    let reply = platform.call(&format!("{target}/env")).await.ok();
    assert_eq!(
        reply.text(),
        format!("N={}", reply.header("x-fnctl-version"))
    );
    reply.header("x-fnctl-version").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_version_stays_callable_and_rollback_moves_live() {
    let platform = three_versions().await;
    for (target, version) in [
        ("probe", "3"),
        ("probe:1", "1"),
        ("probe:2", "2"),
        ("probe:latest", "3"),
        ("probe:live", "3"),
    ] {
        assert_eq!(seen(&platform, target).await, version, "{target}");
    }
    let back = platform
        .client
        .post("/api/v1/functions/probe/rollback", "")
        .await
        .ok()
        .json();
    assert_eq!(back["version"], 2);
    assert_eq!(seen(&platform, "probe").await, "2");
    assert_eq!(seen(&platform, "probe:latest").await, "3");
    platform
        .client
        .post("/api/v1/functions/probe/rollback", "{\"to\":1}")
        .await
        .ok();
    assert_eq!(seen(&platform, "probe").await, "1");
    let none = platform
        .client
        .post("/api/v1/functions/probe/rollback", "")
        .await;
    assert_eq!(
        (none.status.as_u16(), none.code().as_str()),
        (409, "conflict")
    );
    let unknown = platform.call("probe:9/env").await;
    assert_eq!(
        (unknown.status.as_u16(), unknown.code().as_str()),
        (404, "not_found")
    );

    let platform = platform.restart().await;
    assert_eq!(
        seen(&platform, "probe").await,
        "1",
        "where live points survives"
    );
    assert_eq!(seen(&platform, "probe:3").await, "3");
    assert_eq!(platform.deploy(Deployment::new("probe", probe())).await, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alias_may_split_calls_between_two_versions() {
    let platform = three_versions().await;
    let path = "/api/v1/functions/probe/aliases/canary";
    let split = json!({ "version": 1, "split": { "version": 3, "percent": 25 } }).to_string();
    platform
        .client
        .send(Method::PUT, path, &[], split)
        .await
        .ok();
    let mut third = 0;
    for number in 0..200 {
        let id = format!("request-{number}");
        let reply = platform
            .client
            .send(
                Method::GET,
                "/fn/probe:canary/env",
                &[("x-request-id", &id)],
                "",
            )
            .await
            .ok();
        third += usize::from(reply.header("x-fnctl-version") == "3");
    }
    assert!(
        (30..70).contains(&third),
        "{third} of 200 calls went to a version that should get a quarter"
    );
    for (wrong, status) in [
        ("{\"version\":9}", 404),
        (
            "{\"version\":1,\"split\":{\"version\":2,\"percent\":0}}",
            400,
        ),
    ] {
        assert_eq!(
            platform
                .client
                .send(Method::PUT, path, &[], wrong)
                .await
                .status,
            status,
            "{wrong}"
        );
    }
    platform
        .client
        .send(Method::DELETE, path, &[], "")
        .await
        .ok();
    assert_eq!(platform.call("probe:canary/env").await.status, 404);
    assert_eq!(
        platform
            .client
            .send(
                Method::DELETE,
                "/api/v1/functions/probe/aliases/live",
                &[],
                ""
            )
            .await
            .status,
        409
    );
    assert_eq!(
        platform
            .client
            .send(
                Method::PUT,
                "/api/v1/functions/probe/aliases/latest",
                &[],
                "{\"version\":1}"
            )
            .await
            .status,
        400
    );
}
