//! Sizes and rates.

use fnctl_tests::{Deployment, TestPlatform, probe};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a_request_body_over_its_limit_is_refused_whether_or_not_it_says_its_length() {
    let platform = TestPlatform::start().await;
    platform
        .deploy(Deployment::new("probe", probe()).with("request_body", "100KiB"))
        .await;
    assert_eq!(
        platform
            .client
            .post("/fn/probe/upload", vec![0; 100 << 10])
            .await
            .ok()
            .text(),
        "102400"
    );
    let told = platform
        .client
        .post("/fn/probe/upload", vec![0; (100 << 10) + 1])
        .await;
    assert_eq!(
        (told.status.as_u16(), told.code().as_str()),
        (413, "payload_too_large")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_body_over_its_limit_is_cut_off() {
    let platform = TestPlatform::start().await;
    platform
        .deploy(Deployment::new("probe", probe()).with("response_body", "1MiB"))
        .await;
    let fits = platform.call("probe/big?1048576").await.ok();
    assert_eq!((fits.body.len(), fits.complete), (1 << 20, true));
    let cut = platform.call("probe/big?2097152").await;
    assert!(
        !cut.complete && cut.body.len() <= 1 << 20,
        "{}",
        cut.body.len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_limit_is_told_with_the_time_to_wait() {
    let platform = TestPlatform::start().await;
    let limit = json!({ "requests_per_second": 1, "burst": 2 });
    platform
        .deploy(Deployment::new("probe", probe()).with("rate_limit", limit))
        .await;
    platform.call("probe/count").await.ok();
    platform.call("probe/count").await.ok();
    let refused = platform.call("probe/count").await;
    assert_eq!(
        (refused.status.as_u16(), refused.code().as_str()),
        (429, "rate_limited")
    );
    assert_eq!(refused.header("retry-after"), "1");
    assert_eq!(
        platform
            .metric("fnctl_rate_limited_total{function=\"probe\"}")
            .await,
        1.0
    );
    // What it was told to wait, and a little.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    platform.call("probe/count").await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_have_a_limit_and_slow_clients_a_deadline() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let platform = TestPlatform::start_with(|config| {
        config.gateway.header_timeout = fnctl_core::Period(std::time::Duration::from_millis(300));
        config.gateway.body_timeout = fnctl_core::Period(std::time::Duration::from_millis(300));
        config.gateway.max_connections = 3;
    })
    .await;
    platform.deploy(Deployment::new("probe", probe())).await;
    let address = platform.platform().address();
    let connect = || async { tokio::net::TcpStream::connect(address).await.unwrap() };
    // One says nothing, one says half a head, one sends half a body.
    let (mut mute, mut half, mut slow) = (connect().await, connect().await, connect().await);
    half.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
        .await
        .unwrap();
    slow.write_all(b"POST /fn/probe/upload HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")
        .await
        .unwrap();
    let read = |stream: &'static mut tokio::net::TcpStream| async move {
        let mut text = Vec::new();
        let ended = tokio::time::timeout(
            std::time::Duration::from_secs(5),
            stream.read_to_end(&mut text),
        )
        .await;
        assert!(ended.is_ok(), "the platform ends the connection");
        String::from_utf8_lossy(&text).into_owned()
    };
    let (mute, half, slow): (&'static mut _, &'static mut _, &'static mut _) = (
        Box::leak(Box::new(std::mem::replace(&mut mute, connect().await))),
        Box::leak(Box::new(half)),
        Box::leak(Box::new(slow)),
    );
    let (mute, half, slow) = tokio::join!(read(mute), read(half), read(slow));
    assert_eq!(mute, "");
    assert!(
        half.is_empty() || half.starts_with("HTTP/1.1 408"),
        "{half}"
    );
    assert!(
        slow.starts_with("HTTP/1.1 408") && slow.contains("slow_client"),
        "{slow}"
    );
    // The places are free again.
    assert_eq!(platform.client.get("/healthz").await.status, 200);
}
