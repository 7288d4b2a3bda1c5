//! Components of WASI 0.3: what holds for those of 0.2 holds for them.

use fnctl_tests::{Deployment, Exchange, TestPlatform, eventually, file, probe, probe3};
use http::Method;
use std::time::{Duration, Instant};

async fn platform_with(configure: impl FnOnce(Deployment) -> Deployment) -> TestPlatform {
    let platform = TestPlatform::start().await;
    platform
        .deploy(configure(Deployment::new("probe", probe3())))
        .await;
    platform
}

/// The failure is told, and the next caller finds a fresh instance.
async fn fails_and_is_replaced(platform: &TestPlatform, path: &str, status: u16, code: &str) {
    assert_eq!(platform.call("probe/count").await.ok().text(), "1");
    let reply = platform.call(path).await;
    assert_eq!(
        (reply.status.as_u16(), reply.code().as_str()),
        (status, code),
        "{path}"
    );
    is_fresh(platform).await;
}

async fn is_fresh(platform: &TestPlatform) {
    let next = platform.call("probe/count").await.ok();
    assert_eq!((next.start(), next.text().as_str()), ("cold", "1"));
}

async fn is_warm(platform: &TestPlatform, count: &str) {
    let next = platform.call("probe/count").await.ok();
    assert_eq!((next.start(), next.text().as_str()), ("warm", count));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_deploy_says_what_it_is_and_what_a_component_must_export() {
    let platform = TestPlatform::start().await;
    platform.deploy(Deployment::new("probe", probe3())).await;
    // A component that exports nothing: an empty one.
    let empty = b"\0asm\x0d\0\x01\0".to_vec();
    let refused = platform.try_deploy(&Deployment::new("empty", empty)).await;
    let text = refused.to_string();
    assert!(
        text.contains("wasi:http/incoming-handler@0.2") && text.contains("wasi:http/handler@0.3"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_instance_serves_request_after_request() {
    let platform = platform_with(|probe| probe).await;
    assert_eq!(platform.call("probe/count").await.ok().start(), "cold");
    for count in 2..50 {
        is_warm(&platform, &count.to_string()).await;
    }
    let seen = platform
        .client
        .send(Method::PUT, "/fn/probe/headers?x", &[("x-custom", "2")], "")
        .await
        .ok()
        .text();
    let address = platform.platform().address();
    for line in [
        "x-custom: 2".to_owned(),
        "method Method::Put".to_owned(),
        format!("authority Some(\"{address}\")"),
        "scheme Some(Scheme::Http)".to_owned(),
    ] {
        assert!(seen.lines().any(|found| found == line), "{line} in {seen}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_runs_beside_components_of_0_2_and_after_a_restart() {
    let platform = platform_with(|probe| probe).await;
    platform.deploy(Deployment::new("older", probe())).await;
    let platform = platform.restart().await;
    for name in ["probe", "older"] {
        let target = format!("{name}/count");
        assert_eq!(platform.call(&target).await.ok().text(), "1", "{name}");
        assert_eq!(platform.call(&target).await.ok().text(), "2", "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_stream_both_ways_and_are_never_held_whole() {
    // The body is twice what the guest may have.
    let platform = platform_with(|probe| {
        probe
            .with("memory", "16MiB")
            .with("request_body", "128MiB")
            .with("response_body", "128MiB")
    })
    .await;
    let body: Vec<u8> = (0..32usize << 20)
        .map(|i| (i / 4096).to_le_bytes()[0])
        .collect();
    for path in ["echo-stream", "pass"] {
        let path = format!("/fn/probe/{path}");
        let reply = platform.client.post(&path, body.clone()).await.ok();
        assert!(reply.complete && reply.body == body, "{path}");
    }
    let counted = platform.client.post("/fn/probe/upload", body).await.ok();
    assert_eq!(counted.text(), (32 << 20).to_string());

    for path in ["echo-stream", "pass"] {
        let line = format!("POST /fn/probe/{path} HTTP/1.1");
        let mut exchange = Exchange::open(&platform, &line).await;
        for word in ["first", "second", "third"] {
            exchange.send(format!("{word}\n").as_bytes()).await;
            // The answer to a piece comes before the next one is sent.
            assert_eq!(exchange.line().await, word, "{path}");
        }
        exchange.finish().await;
    }
    let pieces = platform.call("probe/stream").await.ok();
    assert_eq!(pieces.text().lines().count(), 5);
    is_warm(&platform, "1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_over_its_limit_is_refused_or_cut_off() {
    let platform = platform_with(|probe| {
        probe
            .with("request_body", "100KiB")
            .with("response_body", "1MiB")
    })
    .await;
    let reply = platform
        .client
        .post("/fn/probe/upload", vec![0; (100 << 10) + 1])
        .await;
    assert_eq!(reply.code(), "payload_too_large");
    let fits = platform.call("probe/big?1048576").await.ok();
    assert_eq!((fits.body.len(), fits.complete), (1 << 20, true));
    let cut = platform.call("probe/big?2097152").await;
    assert!(!cut.complete && cut.body.len() <= 1 << 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn traps_limits_and_errors_are_told_and_the_sandbox_is_not_used_again() {
    let platform = platform_with(|probe| probe.with("memory", "16MiB")).await;
    fails_and_is_replaced(&platform, "probe/trap", 502, "trap").await;
    let platform = platform_with(|probe| probe.with("memory", "16MiB")).await;
    fails_and_is_replaced(&platform, "probe/alloc", 502, "out_of_memory").await;
    let platform = platform_with(|probe| probe.with("cpu", "100ms").with("timeout", "20s")).await;
    fails_and_is_replaced(&platform, "probe/spin", 502, "cpu_exceeded").await;
    let platform = platform_with(|probe| probe.with("timeout", "300ms")).await;
    fails_and_is_replaced(&platform, "probe/spin", 504, "timeout").await;
    let platform = platform_with(|probe| probe.with("timeout", "300ms")).await;
    fails_and_is_replaced(&platform, "probe/hang", 504, "timeout").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_instead_of_a_response_is_a_bad_response() {
    let platform = platform_with(|probe| probe).await;
    platform.call("probe/count").await.ok();
    let reply = platform.call("probe/error").await;
    assert_eq!(
        (reply.status.as_u16(), reply.code().as_str()),
        (502, "bad_response")
    );
    platform.settle().await;
    let failed =
        "fnctl_invocation_errors_total{function=\"probe\",kind=\"bad_response\",version=\"1\"}";
    assert_eq!(platform.metric(failed).await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_short_visits_cost_no_cpu_time_that_was_not_used() {
    // Sixty pieces, each after a wait: in steps of this epoch tick that were 1.2 s.
    let platform = TestPlatform::start_with(|config| {
        config.worker.epoch_tick = fnctl_core::Period(Duration::from_millis(20));
    })
    .await;
    platform
        .deploy(Deployment::new("probe", probe3()).with("cpu", "500ms"))
        .await;
    let mut exchange = Exchange::open(&platform, "POST /fn/probe/echo-stream HTTP/1.1").await;
    for number in 0..60 {
        exchange.send(format!("{number}\n").as_bytes()).await;
        assert_eq!(exchange.line().await, number.to_string());
        // A guest that works a little, often, over thrice the time that it may compute.
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    exchange.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_was_not_finished_is_not_passed_off_as_whole() {
    let platform = platform_with(|probe| probe.with("timeout", "500ms")).await;
    for path in ["trap-later", "endless", "forget", "short"] {
        let since = Instant::now();
        let reply = platform.call(&format!("probe/{path}")).await;
        assert_eq!(reply.status, 200, "{path}");
        assert!(
            !reply.complete,
            "{path}: the client must see that it broke off"
        );
        assert!(since.elapsed() < Duration::from_secs(3), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_leaves_stops_the_guest() {
    let platform = platform_with(|probe| probe.with("concurrency", 1)).await;
    for path in ["hang", "endless", "spin"] {
        let client = platform.client.clone();
        let target = format!("/fn/probe/{path}");
        let calling = tokio::spawn(async move { client.get(&target).await });
        let busy = async || {
            let told = platform.client.get("/api/v1/functions/probe").await;
            told.text().contains("\"busy\"")
        };
        while !busy().await {
            assert!(!calling.is_finished(), "{path} does not return");
        }
        // The lease is taken; now the guest begins.
        tokio::time::sleep(Duration::from_millis(100)).await;
        calling.abort();
        eventually("the guest is stopped", || {
            platform.platform().in_flight() == 0
        })
        .await;
        // A guest that hears of it may end by itself first, and then nothing is wrong with its sandbox.
        if path == "endless" {
            platform.call("probe/count").await.ok();
        } else {
            is_fresh(&platform).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn work_after_the_answer_belongs_to_its_request_and_has_its_deadline() {
    let platform = platform_with(|probe| probe.with("timeout", "1s")).await;
    let answered = platform
        .client
        .send(
            Method::GET,
            "/fn/probe/after",
            &[("x-request-id", "wasi3-after")],
            "",
        )
        .await
        .ok();
    assert_eq!(answered.text(), "answered\n");
    eventually("the line is there", || {
        platform
            .guest_lines()
            .iter()
            .any(|line| line.contains("after the answer") && line.contains("wasi3-after"))
    })
    .await;
    eventually("the guest is done", || platform.platform().in_flight() == 0).await;
    is_warm(&platform, "1").await;
    // A guest that never ends its work loses its instance at the deadline; its caller has had the answer.
    let since = Instant::now();
    assert_eq!(
        platform.client.get("/fn/probe/linger").await.ok().text(),
        "answered\n"
    );
    assert!(since.elapsed() < Duration::from_millis(700));
    eventually("it is stopped", || platform.platform().in_flight() == 0).await;
    is_fresh(&platform).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn output_becomes_log_lines_of_its_invocation() {
    let platform = platform_with(|probe| probe).await;
    for (path, id, expected) in [
        ("log", "wasi3-log", "a line of stderr"),
        ("log", "wasi3-log", "a line of stdout"),
        ("log3", "wasi3-log3", "a line of stdout 0.3"),
    ] {
        platform
            .client
            .send(
                Method::GET,
                &format!("/fn/probe/{path}"),
                &[("x-request-id", id)],
                "",
            )
            .await
            .ok();
        eventually(expected, || {
            platform
                .guest_lines()
                .iter()
                .any(|line| line.contains(expected) && line.contains(id))
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn outgoing_http_reaches_the_hosts_that_are_allowed() {
    let other = TestPlatform::start().await;
    let address = other.platform().address().to_string();
    let platform = platform_with(|probe| probe.with("allow_hosts", vec![address.clone()])).await;
    let target = format!("probe/fetch?{address}");
    assert_eq!(platform.call(&target).await.ok().text(), "status 200");
    let refused = platform.call("probe/fetch?127.0.0.1:1").await.ok().text();
    assert!(refused.contains("HttpRequestDenied"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wasi_nn_computes_and_lies_are_errors() {
    let model = file("examples/fraud/models/fraud_mlp16.onnx");
    let platform = platform_with(|probe| probe.model("fraud", model)).await;
    let sample: serde_json::Value =
        serde_json::from_slice(&file("examples/fraud/request.json")).unwrap();
    let numbers: Vec<String> = sample["features"]
        .as_array()
        .unwrap()
        .iter()
        .map(ToString::to_string)
        .collect();
    let tensor = format!("features;f32;1x16;{}", numbers.join(","));
    let computed = platform
        .client
        .post("/fn/probe/nn/run?model=fraud", tensor)
        .await
        .ok()
        .text();
    let probability: f64 = computed
        .lines()
        .find_map(|line| {
            line.strip_prefix("fraud_probability;")?
                .rsplit(';')
                .next()?
                .parse::<f64>()
                .ok()
        })
        .unwrap_or_else(|| panic!("{computed}"));
    let expected: f64 = 0.996_293;
    assert!((expected - probability).abs() < 1e-5, "{computed}");
    for lie in ["wrong-shape", "wrong-type", "undeclared", "gpu", "missing"] {
        let reply = platform.call(&format!("probe/nn/{lie}")).await;
        assert_eq!(reply.status, 422, "{lie}: {}", reply.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn handles_without_end_are_a_trap_and_not_the_hosts_memory() {
    let platform = platform_with(|probe| probe).await;
    fails_and_is_replaced(&platform, "probe/streams", 502, "trap").await;
}
