//! Guests that trap, spin, allocate, flood, answer garbage or nothing: a clear error, nobody else harmed, and the
//! sandbox is never used again.

use fnctl_tests::{Deployment, Reply, TestPlatform, eventually, probe};
use std::time::{Duration, Instant};

async fn platform_with(configure: impl FnOnce(Deployment) -> Deployment) -> TestPlatform {
    let platform = TestPlatform::start().await;
    platform
        .deploy(configure(Deployment::new("probe", probe())))
        .await;
    platform
}

/// The failure is told, and the next caller finds a fresh instance.
async fn fails_and_is_replaced(
    platform: &TestPlatform,
    path: &str,
    status: u16,
    code: &str,
) -> Reply {
    assert_eq!(platform.call("probe/count").await.ok().text(), "1");
    let reply = platform.call(path).await;
    assert_eq!(
        (reply.status.as_u16(), reply.code().as_str()),
        (status, code),
        "{path}"
    );
    let next = platform.call("probe/count").await.ok();
    assert_eq!(
        (next.start(), next.text().as_str()),
        ("cold", "1"),
        "{path}: the sandbox is not used again"
    );
    let sample = format!(
        "fnctl_invocation_errors_total{{function=\"probe\",kind=\"{code}\",version=\"1\"}}"
    );
    assert_eq!(platform.metric(&sample).await, 1.0);
    reply
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trap_is_the_guests_fault() {
    let platform = platform_with(|probe| probe).await;
    let reply = fails_and_is_replaced(&platform, "probe/trap", 502, "trap").await;
    assert!(
        !reply.text().contains("wasm backtrace"),
        "internals stay in the log"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn endless_recursion_is_a_trap() {
    let platform = platform_with(|probe| probe).await;
    fails_and_is_replaced(&platform, "probe/overflow", 502, "trap").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spinning_guest_is_stopped_by_its_deadline_and_others_go_on() {
    let platform = platform_with(|probe| probe.with("timeout", "3s")).await;
    let since = Instant::now();
    let spinning = tokio::spawn({
        let client = platform.client.clone();
        async move { futures::future::join_all((0..4).map(|_| client.get("/fn/probe/spin"))).await }
    });
    eventually("all of them are under way", || {
        platform.platform().in_flight() == 4
    })
    .await;
    // More spinning guests than threads, and still everybody is served.
    assert_eq!(
        platform.client.get("/fn/probe/count").await.ok().text(),
        "1"
    );
    assert!(
        !spinning.is_finished(),
        "the answer came while the others spun"
    );
    for reply in spinning.await.unwrap() {
        assert_eq!(
            (reply.status.as_u16(), reply.code().as_str()),
            (504, "timeout")
        );
    }
    assert!(since.elapsed() < Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn cpu_time_has_a_limit_of_its_own() {
    let platform = platform_with(|probe| probe.with("cpu", "100ms").with("timeout", "20s")).await;
    fails_and_is_replaced(&platform, "probe/spin", 502, "cpu_exceeded").await;
    // Waiting is no CPU time.
    assert_eq!(platform.call("probe/sleep?400").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn allocating_without_end_meets_the_memory_limit() {
    let platform = platform_with(|probe| probe.with("memory", "16MiB")).await;
    fails_and_is_replaced(&platform, "probe/alloc", 502, "out_of_memory").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_output_is_cut_off_and_told() {
    let platform = platform_with(|probe| probe.with("log_bytes", "4KiB")).await;
    assert_eq!(platform.call("probe/flood").await.ok().text(), "flooded\n");
    let lines = platform.guest_lines();
    let bytes: usize = lines.iter().map(String::len).sum();
    assert!(bytes < 16 << 10, "{bytes} bytes in {} lines", lines.len());
    assert!(
        lines
            .iter()
            .any(|line| line.contains("cut off after log_bytes"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn output_becomes_log_lines_of_its_invocation() {
    let platform = platform_with(|probe| probe).await;
    let reply = platform
        .client
        .send(
            http::Method::GET,
            "/fn/probe/log",
            &[("x-request-id", "my-id-7")],
            "",
        )
        .await
        .ok();
    assert_eq!(reply.header("x-request-id"), "my-id-7");
    let lines = platform.guest_lines();
    for (stream, text) in [
        ("stdout", "a line of stdout"),
        ("stderr", "a line of stderr"),
    ] {
        let found = lines
            .iter()
            .any(|line| line.contains(stream) && line.contains(text) && line.contains("my-id-7"));
        assert!(found, "{stream} in {lines:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_and_a_wrong_answer_are_told_apart_from_a_crash() {
    let platform = platform_with(|probe| probe).await;
    let silent = platform.call("probe/silent").await;
    assert_eq!(
        (silent.status.as_u16(), silent.code().as_str()),
        (502, "bad_response")
    );
    let error = platform.call("probe/error").await;
    assert_eq!(
        (error.status.as_u16(), error.code().as_str()),
        (502, "bad_response")
    );
    // Each counts as a failure, and the function's log says which error it was.
    let failed =
        "fnctl_invocation_errors_total{function=\"probe\",kind=\"bad_response\",version=\"1\"}";
    assert_eq!(platform.metric(failed).await, 2.0);
    let path = "/api/v1/functions/probe/logs?level=error";
    let log = platform.client.get(path).await.ok().text();
    assert!(
        log.contains("answered with an error instead of a response; cause: "),
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_never_answers_is_ended_by_its_deadline() {
    let platform = platform_with(|probe| probe.with("timeout", "300ms")).await;
    fails_and_is_replaced(&platform, "probe/hang", 504, "timeout").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_leaves_stops_the_guest() {
    let platform = platform_with(|probe| {
        probe
            .with("timeout", "60s")
            .with("cpu", "60s")
            .with("concurrency", 1)
    })
    .await;
    for path in ["/fn/probe/spin", "/fn/probe/hang", "/fn/probe/endless"] {
        let gone =
            tokio::time::timeout(Duration::from_millis(300), platform.client.get(path)).await;
        assert!(gone.is_err(), "{path} does not answer");
        // With one permit, this waits until the abandoned guest is gone.
        let next = tokio::time::timeout(Duration::from_secs(5), platform.call("probe/count")).await;
        let next = next.unwrap_or_else(|_| panic!("{path} still runs")).ok();
        // One that writes learns that nobody reads and may end by itself; the others are ended.
        assert!(
            next.start() == "cold" || path == "/fn/probe/endless",
            "{path}: {}",
            next.start()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_the_host_can_be_reached() {
    let platform =
        platform_with(|probe| probe.with("env", serde_json::json!({ "GREETING": "hello" }))).await;
    assert_eq!(
        platform.call("probe/files").await.ok().text(),
        "list denied\nread denied\nwrite denied\nconnect denied\n"
    );
    assert_eq!(
        platform.call("probe/env").await.ok().text(),
        "GREETING=hello",
        "its own variables and no other"
    );
    let refused = platform.call("probe/fetch?127.0.0.1:1").await.ok().text();
    assert!(refused.contains("HttpRequestDenied"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn outgoing_http_reaches_the_hosts_that_are_allowed() {
    let other = TestPlatform::start().await;
    let address = other.platform().address().to_string();
    let platform = platform_with(|probe| probe.with("allow_hosts", vec![address.clone()])).await;
    assert_eq!(
        platform
            .call(&format!("probe/fetch?{address}"))
            .await
            .ok()
            .text(),
        "status 200"
    );
    let refused = platform.call("probe/fetch?127.0.0.1:1").await.ok().text();
    assert!(refused.contains("HttpRequestDenied"), "{refused}");
}
