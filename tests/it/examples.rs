//! The examples, each with its sample request and the expected answer.

use fnctl_tests::{Exchange, TestPlatform, file};

#[tokio::test(flavor = "multi_thread")]
async fn echo_and_counter() {
    let platform = TestPlatform::start().await;
    platform.deploy_example("echo", "echo.wasm", None).await;
    platform
        .deploy_example("counter", "counter.wasm", None)
        .await;
    let reply = platform
        .client
        .send(
            http::Method::POST,
            "/fn/echo",
            &[("content-type", "text/x-test")],
            "hello",
        )
        .await
        .ok();
    assert_eq!(
        (reply.text().as_str(), reply.header("content-type")),
        ("hello", "text/x-test")
    );
    assert_eq!(platform.call("counter").await.ok().text(), "{\"count\":1}");
    assert_eq!(platform.call("counter").await.ok().text(), "{\"count\":2}");
}

#[tokio::test(flavor = "multi_thread")]
async fn fraud() {
    let platform = TestPlatform::start().await;
    platform
        .deploy_example(
            "fraud",
            "fraud.wasm",
            Some(("fraud", "models/fraud_mlp16.onnx")),
        )
        .await;
    let reply = platform
        .client
        .post("/fn/fraud", file("examples/fraud/request.json"))
        .await
        .ok()
        .json();
    assert!(
        (reply["probability"].as_f64().unwrap() - 0.996_293).abs() < 1e-5,
        "{reply}"
    );
    assert_eq!(reply["fraud"], true);
    let honest = "{\"features\":[1.6726589,-0.4566842,-0.5862138,5.5978441,4.0,10.0,2.3799934,0.8965879,0.0334226,0.0,0.0,1.1779577,8.19203,0.0,0.0,0.2175653]}";
    let reply = platform.client.post("/fn/fraud", honest).await.ok().json();
    assert!(
        (reply["probability"].as_f64().unwrap() - 0.000_123).abs() < 1e-5,
        "{reply}"
    );
    let wrong = platform
        .client
        .post("/fn/fraud", "{\"features\":[1]}")
        .await;
    assert_eq!(
        (wrong.status.as_u16(), wrong.text().contains("16 numbers")),
        (400, true)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn fraud_stream() {
    let platform = TestPlatform::start().await;
    platform
        .deploy_example(
            "fraud-stream",
            "fraud_stream.wasm",
            Some(("fraud", "../fraud/models/fraud_mlp16.onnx")),
        )
        .await;
    let sample = String::from_utf8(file("examples/fraud-stream/requests.ndjson")).unwrap();
    let whole = platform
        .client
        .post("/fn/fraud-stream", sample.clone())
        .await
        .ok();
    assert_eq!(whole.header("content-type"), "application/x-ndjson");
    // Line by line over one request: each is answered before the next is sent.
    let mut exchange = Exchange::open(&platform, "POST /fn/fraud-stream HTTP/1.1").await;
    let mut answers = Vec::new();
    for line in sample.lines() {
        exchange.send(format!("{line}\n").as_bytes()).await;
        answers.push(exchange.line().await);
    }
    assert_eq!(whole.text(), format!("{}\n", answers.join("\n")));
    let answers: Vec<serde_json::Value> = answers
        .iter()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    for (answer, (id, expected)) in answers
        .iter()
        .zip([("payment-1", 0.996_293), ("payment-2", 0.000_123)])
    {
        assert_eq!(answer["id"], id);
        let probability = answer["probability"].as_f64().unwrap();
        assert!((probability - expected).abs() < 1e-5, "{answer}");
        assert_eq!(answer["fraud"], expected > 0.5);
    }
    assert_eq!(answers[2]["error"], "features must be 16 numbers, not 3");
    exchange.finish().await;
    let warm = platform.client.post("/fn/fraud-stream", sample).await.ok();
    assert_eq!(warm.start(), "warm", "a stream leaves its instance usable");
}

#[tokio::test(flavor = "multi_thread")]
async fn file_type() {
    let platform = TestPlatform::start().await;
    platform
        .deploy_example(
            "file-type",
            "file_type.wasm",
            Some(("magika", "models/magika_standard_v3_3.onnx")),
        )
        .await;
    for (label, score) in [
        ("python", 0.999_813),
        ("rust", 0.999_571),
        ("png", 0.999_965),
    ] {
        let sample = file(&format!("examples/file-type/samples/magika_{label}.bin"));
        let reply = platform
            .client
            .post("/fn/file-type", sample)
            .await
            .ok()
            .json();
        assert_eq!(reply["label"], label);
        assert!(
            (reply["score"].as_f64().unwrap() - score).abs() < 1e-4,
            "{reply}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn embeddings() {
    let platform = TestPlatform::start().await;
    platform
        .deploy_example(
            "embeddings",
            "embeddings.wasm",
            Some(("minilm", "models/all-minilm-l6-v2-int8.onnx")),
        )
        .await;
    let reply = platform
        .client
        .post("/fn/embeddings", file("examples/embeddings/request.json"))
        .await
        .ok()
        .json();
    let first: Vec<f64> = reply["embeddings"][0]
        .as_array()
        .unwrap()
        .iter()
        .take(8)
        .map(|n| n.as_f64().unwrap())
        .collect();
    let expected = [
        0.01694, 0.11793, 0.16168, 0.06635, 0.0501, -0.0262, 0.05961, -0.09093,
    ];
    assert!(
        first
            .iter()
            .zip(expected)
            .all(|(a, b)| (a - b).abs() < 2e-3),
        "{first:?}"
    );
    let texts = "{\"texts\":[\"The weather is lovely today.\",\"It's so sunny outside!\",\"He drove to the stadium.\"]}";
    let reply = platform
        .client
        .post("/fn/embeddings", texts)
        .await
        .ok()
        .json();
    let vector = |i: usize| -> Vec<f64> {
        reply["embeddings"][i]
            .as_array()
            .unwrap()
            .iter()
            .map(|n| n.as_f64().unwrap())
            .collect()
    };
    let cosine = |a: usize, b: usize| {
        vector(a)
            .iter()
            .zip(vector(b))
            .map(|(a, b)| a * b)
            .sum::<f64>()
    };
    // Published for the unquantised model: 0.6660 and 0.1046; for this file 0.6763 and 0.1055 one text at a time.
    assert!(
        (cosine(0, 1) - 0.676).abs() < 0.03 && (cosine(0, 2) - 0.106).abs() < 0.03,
        "{} {}",
        cosine(0, 1),
        cosine(0, 2)
    );
}
