//! Models: types, shapes, several outputs, budgets, sharing, and inferences side by side.

use fnctl_core::ByteSize;
use fnctl_tests::{Deployment, TestPlatform, file, probe, resident_bytes};
use std::time::Instant;

fn model(name: &str) -> Vec<u8> {
    file(&format!("tests/fixtures/models/{name}.onnx"))
}

#[tokio::test(flavor = "multi_thread")]
async fn int64_labels_and_two_outputs() {
    let platform = TestPlatform::start().await;
    platform
        .deploy(Deployment::new("probe", probe()).model("gbdt", model("fraud_gbdt16_label_prob")))
        .await;
    let rows = "X;f32;2x16;4.0209107,0.7902846,-0.5677886,6.1367888,1.0,6.0,2.8863897,2.7686369,0.241155,1.0,0.0,0.5379491,4.8986049,2.0,0.0,2.403054,1.6726589,-0.4566842,-0.5862138,5.5978441,4.0,10.0,2.3799934,0.8965879,0.0334226,0.0,0.0,1.1779577,8.19203,0.0,0.0,0.2175653";
    let text = platform
        .client
        .post("/fn/probe/nn/run?model=gbdt", rows)
        .await
        .ok()
        .text();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], "label;TensorType::I64;2;1,0");
    assert!(
        lines[1].starts_with("probabilities;TensorType::Fp32;2x2;0.0055"),
        "{}",
        lines[1]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn three_inputs_one_of_them_an_int64_scalar_however_it_is_written() {
    let platform = TestPlatform::start().await;
    platform
        .deploy(Deployment::new("probe", probe()).model("vad", model("silero_vad_16k_op15")))
        .await;
    for scalar in ["sr;i64;;16000", "sr;i64;1;16000"] {
        let inputs = format!("input;f32;1x576;zeros\nstate;f32;2x1x128;zeros\n{scalar}");
        let text = platform
            .client
            .post("/fn/probe/nn/run?model=vad", inputs)
            .await
            .ok()
            .text();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(
            lines[0].starts_with("output;TensorType::Fp32;1x1;0.0"),
            "silence is no speech: {}",
            lines[0]
        );
        assert!(
            lines[1].starts_with("stateN;TensorType::Fp32;2x1x128;"),
            "{}",
            lines[1]
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_shared_by_every_function_that_declares_the_model() {
    let platform = TestPlatform::start().await;
    for name in ["a", "b"] {
        let fraud = file("examples/fraud/models/fraud_mlp16.onnx");
        platform
            .deploy(Deployment::new(name, file("examples/fraud/fraud.wasm")).model("fraud", fraud))
            .await;
        platform
            .client
            .post(&format!("/fn/{name}"), file("examples/fraud/request.json"))
            .await
            .ok();
    }
    assert_eq!(platform.platform().instances(), 2);
    assert_eq!(platform.platform().sessions().0, 1);
    // Declared by one function, a model is nobody else's.
    platform.deploy(Deployment::new("probe", probe())).await;
    let refused = platform.call("probe/nn/run?model=fraud").await;
    assert_eq!(refused.status, 422);
    assert!(refused.text().contains("NotFound"), "{}", refused.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_over_the_memory_budget_is_refused_and_others_go_on() {
    let platform =
        TestPlatform::start_with(|config| config.inference.memory = ByteSize::mib(256)).await;
    let fraud = file("examples/fraud/models/fraud_mlp16.onnx");
    platform
        .deploy(Deployment::new("fraud", file("examples/fraud/fraud.wasm")).model("fraud", fraud))
        .await;
    let before = resident_bytes(std::process::id());
    let event = platform
        .try_deploy(&Deployment::new("probe", probe()).model("vgg", model("light_vgg19")))
        .await;
    assert_eq!(
        (&event["step"], &event["code"]),
        (&"load_model".into(), &"budget_exceeded".into()),
        "{event}"
    );
    assert!(
        event["message"]
            .as_str()
            .unwrap()
            .contains("inference.memory"),
        "{event}"
    );
    let after = resident_bytes(std::process::id());
    assert!(after < before + (256 << 20), "{before} -> {after}");
    assert_eq!(
        platform
            .metric("fnctl_inference_budget_refusals_total")
            .await,
        1.0
    );
    platform
        .client
        .post("/fn/fraud", file("examples/fraud/request.json"))
        .await
        .ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_stops_a_running_inference() {
    let platform = TestPlatform::start().await;
    platform
        .deploy(
            Deployment::new("probe", probe())
                .model("vgg", model("light_vgg19"))
                .with("timeout", "150ms")
                .with("start_timeout", "60s"),
        )
        .await;
    platform.call("probe/count").await;
    let since = Instant::now();
    let slow = platform
        .client
        .post("/fn/probe/nn/run?model=vgg", "data_0;f32;1x3x224x224;ramp")
        .await;
    // The guest is told, or ended, whichever comes first; either way long before the model would be done.
    assert!(
        slow.status == 504 || slow.text().contains("Timeout"),
        "{} {}",
        slow.status,
        slow.text()
    );
    assert!(since.elapsed().as_millis() < 1500, "{:?}", since.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn models_from_the_guests_own_bytes_need_leave_and_have_a_limit() {
    let platform = TestPlatform::start().await;
    let bytes = file("examples/fraud/models/fraud_mlp16.onnx");
    platform.deploy(Deployment::new("none", probe())).await;
    let refused = platform
        .client
        .post("/fn/none/nn/load", bytes.clone())
        .await;
    assert!(refused.text().contains("TooLarge"), "{}", refused.text());
    platform
        .deploy(Deployment::new("some", probe()).with("guest_model", "64KiB"))
        .await;
    assert_eq!(
        platform
            .client
            .post("/fn/some/nn/load", bytes)
            .await
            .ok()
            .text(),
        "loaded"
    );
    let garbage = platform
        .client
        .post("/fn/some/nn/load", "no model at all")
        .await;
    assert!(
        garbage.text().contains("InvalidEncoding"),
        "{}",
        garbage.text()
    );
    let gpu = platform.client.post("/fn/some/nn/gpu", "x").await;
    assert!(
        gpu.text().contains("UnsupportedOperation"),
        "{}",
        gpu.text()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_was_changed_on_disk_is_not_loaded() {
    fnctl_tests::expect_error("has digest");
    fnctl_tests::expect_error("no longer has its digest");
    let platform = TestPlatform::start_with(|config| {
        config.inference.session_ttl = fnctl_core::Period(std::time::Duration::ZERO)
    })
    .await;
    let fraud = file("examples/fraud/models/fraud_mlp16.onnx");
    let digest = fnctl_core::Digest::of(&fraud);
    platform
        .deploy(Deployment::new("fraud", file("examples/fraud/fraud.wasm")).model("fraud", fraud))
        .await;
    fnctl_tests::eventually("the session is unloaded", || {
        platform.platform().sessions().0 == 0
    })
    .await;
    let blob = platform
        .data()
        .join("artifacts")
        .join(digest.to_string())
        .join("blob");
    std::fs::write(&blob, model("fraud_gbdt16_label_prob")).unwrap();
    let refused = platform
        .client
        .post("/fn/fraud", file("examples/fraud/request.json"))
        .await;
    assert_eq!(
        (refused.status.as_u16(), refused.code().as_str()),
        (500, "corrupt")
    );
}
