//! The admin API.

use fnctl_tests::{Deployment, TestPlatform, file, probe};
use http::Method;

#[tokio::test(flavor = "multi_thread")]
async fn functions_are_listed_shown_and_removed() {
    let platform = TestPlatform::start().await;
    assert_eq!(
        platform.client.get("/api/v1/functions").await.ok().text(),
        "[]\n"
    );
    platform
        .deploy(
            Deployment::new("probe", probe())
                .with("description", "a probe")
                .with("memory", "32MiB"),
        )
        .await;
    platform.call("probe/count").await.ok();
    let list = platform.client.get("/api/v1/functions").await.ok().json();
    assert_eq!(
        (&list[0]["name"], &list[0]["live"], &list[0]["instances"]),
        (&"probe".into(), &1.into(), &1.into())
    );
    let one = platform
        .client
        .get("/api/v1/functions/probe")
        .await
        .ok()
        .json();
    assert_eq!(one["version"]["config"]["memory"], "32MiB");
    assert_eq!(one["instances"][0]["state"], "idle");
    platform
        .client
        .send(Method::DELETE, "/api/v1/functions/probe", &[], "")
        .await
        .ok();
    let gone = platform.call("probe/count").await;
    assert_eq!(
        (gone.status.as_u16(), gone.code().as_str()),
        (404, "not_found")
    );
    fnctl_tests::eventually("its instances are gone", || {
        platform.platform().instances() == 0
    })
    .await;
    let again = platform
        .client
        .send(Method::DELETE, "/api/v1/functions/probe", &[], "")
        .await;
    assert_eq!(again.status, 404);
    // Numbers are never given twice.
    assert_eq!(platform.deploy(Deployment::new("probe", probe())).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deploy_that_fails_changes_nothing_and_says_at_which_step() {
    let platform = TestPlatform::start().await;
    platform.deploy(Deployment::new("probe", probe())).await;
    let model = |bytes: &[u8]| Deployment::new("probe", probe()).model("m", bytes.to_vec());
    let cases = [
        (
            Deployment::new("probe", b"not wasm".to_vec()),
            "compile",
            "invalid_artifact",
        ),
        (
            Deployment::new("probe", b"\0asm\x01\0\0\0".to_vec()),
            "compile",
            "invalid_artifact",
        ),
        (
            Deployment::new("probe", probe()).with("memory", "2GiB"),
            "validate",
            "invalid_config",
        ),
        (
            model(b"this is no ONNX file"),
            "load_model",
            "invalid_model",
        ),
        (model(b""), "load_model", "invalid_model"),
        (
            model(&file("examples/fraud/models/fraud_mlp16.onnx")[..5_000]),
            "load_model",
            "invalid_model",
        ),
        (
            Deployment::new("probe", file("examples/fraud/fraud.wasm")),
            "warm_up",
            "start_failed",
        ),
    ];
    for (deployment, step, code) in cases {
        let event = platform.try_deploy(&deployment).await;
        assert_eq!(
            (&event["event"], &event["step"], &event["code"]),
            (&"failed".into(), &step.into(), &code.into()),
            "{event}"
        );
    }
    let versions = platform
        .client
        .get("/api/v1/functions/probe/versions")
        .await
        .ok()
        .json();
    assert_eq!(versions.as_array().unwrap().len(), 1);
    platform.call("probe/count").await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_wrongly_is_told_what_to_do() {
    let platform = TestPlatform::start().await;
    let nowhere = platform.client.get("/nowhere").await;
    assert_eq!(
        (nowhere.status.as_u16(), nowhere.code().as_str()),
        (404, "not_found")
    );
    let name = platform.client.get("/fn/Not_A_Name").await;
    assert_eq!(
        (name.status.as_u16(), name.code().as_str()),
        (400, "bad_request")
    );
    let method = platform.client.post("/healthz", "").await;
    assert_eq!(
        (method.status.as_u16(), method.code().as_str()),
        (405, "method_not_allowed")
    );
    let unknown = platform
        .client
        .post("/api/v1/functions/a/versions", "{\"artefact\":1}")
        .await;
    assert_eq!(
        (unknown.status.as_u16(), unknown.code().as_str()),
        (400, "bad_request")
    );
    assert!(unknown.text().contains("artefact"));
    let page = platform
        .client
        .send(
            Method::GET,
            "/api/v1/functions",
            &[("origin", "https://evil.example")],
            "",
        )
        .await;
    assert_eq!(
        (page.status.as_u16(), page.code().as_str()),
        (403, "forbidden")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_token_the_admin_api_needs_it_and_invocations_do_not() {
    let platform =
        TestPlatform::start_with(|config| config.gateway.token = Some("s3cret".into())).await;
    let without = platform.client.get("/api/v1/functions").await;
    assert_eq!(
        (without.status.as_u16(), without.code().as_str()),
        (401, "unauthorized")
    );
    let with = platform
        .client
        .send(
            Method::GET,
            "/api/v1/functions",
            &[("authorization", "Bearer s3cret")],
            "",
        )
        .await;
    assert_eq!(with.status, 200);
    assert_eq!(platform.call("nobody").await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_platforms_token_never_reaches_a_guest_and_a_callers_own_does() {
    let mut platform = TestPlatform::start().await;
    platform.deploy(Deployment::new("probe", probe())).await;
    platform = platform
        .restart_with(|config| config.gateway.token = Some("s3cret".into()))
        .await;
    let seen = async |authorization: &str| {
        let headers = [("authorization", authorization), ("x-fnctl-report", "1")];
        platform
            .client
            .send(Method::GET, "/fn/probe/headers", &headers, "")
            .await
            .ok()
            .text()
    };
    let owner = seen("Bearer s3cret").await;
    assert!(
        !owner.contains("authorization") && !owner.contains("s3cret"),
        "{owner}"
    );
    let caller = seen("Bearer the guest's own").await;
    assert!(
        caller.contains("authorization: Bearer the guest's own"),
        "{caller}"
    );
    assert!(!caller.contains("x-fnctl-report"), "{caller}");
}
