//! A component that lies to wasi-nn gets errors, and nothing else happens.

use fnctl_tests::{Deployment, TestPlatform, file, probe};

#[tokio::test(flavor = "multi_thread")]
async fn every_lie_is_an_error_for_the_guest() {
    let platform = TestPlatform::start().await;
    let fraud = file("examples/fraud/models/fraud_mlp16.onnx");
    platform
        .deploy(
            Deployment::new("probe", probe())
                .model("fraud", fraud)
                .with("memory", "64MiB"),
        )
        .await;
    for (lie, code) in [
        ("wrong-name", "InvalidArgument"),
        ("wrong-shape", "InvalidArgument"),
        ("wrong-type", "InvalidArgument"),
        ("wrong-length", "InvalidArgument"),
        ("absurd", "InvalidArgument"),
        ("overflow", "InvalidArgument"),
        ("missing", "InvalidArgument"),
        ("twice", "InvalidArgument"),
        ("undeclared", "NotFound"),
    ] {
        let reply = platform.call(&format!("probe/nn/{lie}")).await;
        assert_eq!(reply.status, 422, "{lie}: {}", reply.text());
        assert!(reply.text().contains(code), "{lie}: {}", reply.text());
    }
    let by_index = platform.call("probe/nn/by-index").await.ok();
    assert!(
        by_index
            .text()
            .starts_with("fraud_probability;TensorType::Fp32;1x1;"),
        "{}",
        by_index.text()
    );
    let empty = platform.call("probe/nn/empty").await.ok();
    assert_eq!(empty.text(), "fraud_probability;TensorType::Fp32;0x1;");
    assert_eq!(
        platform.call("probe/count").await.ok().start(),
        "warm",
        "no lie cost the sandbox"
    );
    // Two hundred thousand graphs are more handles than a sandbox may have.
    let many = platform.call("probe/nn/many").await;
    assert_eq!((many.status.as_u16(), many.code().as_str()), (502, "trap"));
    assert_eq!(platform.call("probe/count").await.ok().start(), "cold");
}
