//! HTTP as clients speak it.

use fnctl_tests::{Client, Deployment, TestPlatform, eventually, probe};
use http::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn with_probe() -> TestPlatform {
    let platform = TestPlatform::start().await;
    platform.deploy(Deployment::new("probe", probe())).await;
    platform
}

/// Sends raw bytes and reads until the connection ends.
async fn raw(platform: &TestPlatform, request: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(platform.platform().address())
        .await
        .unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = Vec::new();
    let read = tokio::time::timeout(
        std::time::Duration::from_secs(10),
        stream.read_to_end(&mut text),
    )
    .await;
    assert!(read.is_ok(), "the connection ends");
    String::from_utf8_lossy(&text).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn http_2_without_tls() {
    let platform = with_probe().await;
    let client = Client::h2c(platform.platform().address());
    let replies =
        futures::future::join_all((0..20).map(|_| client.get("/fn/probe/sleep?10"))).await;
    assert!(replies.iter().all(|reply| reply.text() == "slept\n"));
    assert_eq!(
        client
            .post("/fn/probe/upload", vec![0; 1_000_000])
            .await
            .ok()
            .text(),
        "1000000"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_stream_both_ways() {
    let platform = with_probe().await;
    let mut stream = tokio::net::TcpStream::connect(platform.platform().address())
        .await
        .unwrap();
    stream
        .write_all(b"POST /fn/probe/echo-stream HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        .await
        .unwrap();
    let mut seen = String::new();
    let mut buffer = [0; 4096];
    while !seen.contains("first") {
        let count = stream.read(&mut buffer).await.unwrap();
        assert!(count > 0, "{seen}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    // The answer to the first piece came before the second was sent.
    stream.write_all(b"6\r\nsecond\r\n0\r\n\r\n").await.unwrap();
    while !seen.contains("second") {
        let count = stream.read(&mut buffer).await.unwrap();
        assert!(count > 0, "{seen}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    let pieces = platform.call("probe/stream").await.ok();
    assert_eq!(pieces.text().lines().count(), 5);
    assert_eq!(
        platform.call("probe/count").await.ok().start(),
        "warm",
        "after all that it is the same instance"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_its_guest_did_not_finish_is_not_passed_off_as_whole() {
    let platform = TestPlatform::start().await;
    platform
        .deploy(Deployment::new("probe", probe()).with("timeout", "400ms"))
        .await;
    let reply = platform.call("probe/endless").await;
    assert_eq!(reply.status, 200);
    assert!(
        !reply.complete,
        "the client must see that the answer broke off"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_returns_with_its_body_open_keeps_nobody_waiting() {
    let platform = with_probe().await;
    let since = std::time::Instant::now();
    let request = "GET /fn/probe/forget HTTP/1.1\r\nHost: x\r\n\r\n";
    let seen = raw(&platform, request).await;
    assert!(
        !seen.contains("\r\n0\r\n"),
        "it is not passed off as whole: {seen}"
    );
    assert!(
        since.elapsed() < std::time::Duration::from_secs(5),
        "{:?}",
        since.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn head_requests_and_bodiless_answers_keep_their_instance() {
    let platform = with_probe().await;
    for method in [Method::HEAD, Method::GET] {
        let reply = platform
            .client
            .send(method, "/fn/probe/status?204", &[], "")
            .await;
        assert_eq!(reply.status, 204);
    }
    platform
        .client
        .send(Method::HEAD, "/fn/probe/stream", &[], "")
        .await
        .ok();
    // The guest notices that nobody reads with its next piece.
    eventually("the guest is done", || platform.platform().in_flight() == 0).await;
    let next = platform.call("probe/count").await.ok();
    assert_eq!((next.start(), next.text().as_str()), ("warm", "1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guest_sees_the_request_and_nothing_of_the_connection() {
    let platform = with_probe().await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let headers = [
        ("traceparent", trace),
        ("connection", "x-hop"),
        ("x-hop", "1"),
        ("x-custom", "2"),
        ("x-request-id", "abc"),
    ];
    let seen = platform
        .client
        .send(Method::GET, "/fn/probe/headers", &headers, "")
        .await
        .ok()
        .text();
    for line in [
        format!("traceparent: {trace}").as_str(),
        "x-custom: 2",
        "x-request-id: abc",
        "x-forwarded-for: 127.0.0.1",
    ] {
        assert!(seen.lines().any(|found| found == line), "{line} in {seen}");
    }
    assert!(
        !seen.contains("x-hop") && !seen.contains("connection"),
        "{seen}"
    );
    let bad_id = platform
        .client
        .send(
            Method::GET,
            "/fn/probe/headers",
            &[("x-request-id", "a b")],
            "",
        )
        .await
        .ok();
    assert_eq!(
        bad_id.header("x-request-id").len(),
        16,
        "an unusable id is replaced"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_requests_are_answered_or_ended_and_nobody_is_harmed() {
    let platform = with_probe().await;
    assert_eq!(platform.call("probe/count").await.ok().text(), "1");
    for (request, expected) in [
        ("GARBAGE\r\n\r\n".to_owned(), "HTTP/1.1 400"),
        ("GET /fn/probe/count HTTP/1.1\r\nHost: \u{ff}\u{fe}\r\nConnection: close\r\n\r\n".to_owned(), "HTTP/1.1 400"),
        ("POST /fn/probe/upload HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n".to_owned(), "HTTP/1.1 400"),
        (format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "y".repeat(100_000)), "HTTP/1.1 431"),
        ("GET /fn/probe/count HTTP/1.0\r\n\r\n".to_owned(), "HTTP/1.0 200"),
    ] {
        let answer = raw(&platform, &request).await;
        assert!(answer.starts_with(expected), "{} -> {answer}", &request[..request.len().min(80)]);
    }
    let after = platform.call("probe/count").await.ok();
    assert_eq!(
        (after.start(), after.text().as_str()),
        ("warm", "3"),
        "the instance was not lost to any of them"
    );
}
