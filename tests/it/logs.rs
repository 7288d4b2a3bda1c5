//! What functions say: stored, streamed, filtered, bounded.

use fnctl_tests::{Deployment, TestPlatform, probe};
use serde_json::Value;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

async fn with_probe() -> TestPlatform {
    let platform = TestPlatform::start().await;
    platform.deploy(Deployment::new("probe", probe())).await;
    platform
}

/// The stored lines that a query finds.
async fn lines(platform: &TestPlatform, query: &str) -> Vec<Value> {
    let path = format!("/api/v1/functions/probe/logs?{query}");
    let text = platform.client.get(&path).await.ok().text();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The lines that a query finds, once there are `count`.
async fn soon(platform: &TestPlatform, query: &str, count: usize) -> Vec<Value> {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let found = lines(platform, query).await;
        if found.len() >= count || Instant::now() > until {
            return found;
        }
        tokio::task::yield_now().await;
    }
}

fn texts(lines: &[Value]) -> Vec<&str> {
    lines
        .iter()
        .map(|line| line["text"].as_str().unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_carry_their_request_version_and_level() {
    let platform = with_probe().await;
    let id = [("x-request-id", "first")];
    platform
        .client
        .send(http::Method::GET, "/fn/probe/log", &id, "")
        .await
        .ok();
    let of_request = soon(&platform, "request=first", 3).await;
    assert_eq!(of_request.len(), 3, "{of_request:#?}");
    let cold = &of_request[0];
    assert_eq!(cold["source"], "platform");
    assert!(
        cold["text"].as_str().unwrap().starts_with("cold start: "),
        "{cold}"
    );
    assert_eq!(of_request[1]["source"], "stdout");
    assert_eq!(of_request[1]["level"], "info");
    assert_eq!(of_request[1]["text"], "a line of stdout");
    assert_eq!(of_request[2]["source"], "stderr");
    assert_eq!(of_request[2]["level"], "warn");
    for line in &of_request {
        assert_eq!(line["version"], 1);
        assert_eq!(line["function"], "probe");
        assert_eq!(line["request_id"], "first");
    }

    let id = [("x-request-id", "second")];
    platform
        .client
        .send(http::Method::GET, "/fn/probe/levels", &id, "")
        .await
        .ok();
    let levels = soon(&platform, "request=second", 8).await;
    let told: Vec<_> = levels
        .iter()
        .map(|line| line["level"].as_str().unwrap())
        .collect();
    assert_eq!(
        told,
        [
            "trace", "debug", "info", "warn", "error", "critical", "info", "info"
        ]
    );
    assert_eq!(levels[6]["text"], "red \u{1b}[31m and two\nlines");
    assert_eq!(levels[0]["context"], "probe");
    assert_eq!(levels[7]["context"].as_str().unwrap().len(), 128);
    let serious = lines(&platform, "request=second&level=error").await;
    assert_eq!(texts(&serious), ["an error line", "a critical line"]);
    assert_eq!(lines(&platform, "tail=2").await.len(), 2);
    assert!(lines(&platform, "version=7").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_and_its_cause_stand_in_the_log() {
    let platform = with_probe().await;
    let id = [("x-request-id", "doomed")];
    let reply = platform
        .client
        .send(http::Method::GET, "/fn/probe/trap", &id, "")
        .await;
    assert_eq!(reply.status, 502);
    let errors = soon(&platform, "request=doomed&level=error", 1).await;
    assert_eq!(errors.len(), 1, "{errors:#?}");
    let text = errors[0]["text"].as_str().unwrap();
    assert!(
        text.starts_with("trap: ") && text.contains("cause: "),
        "{text}"
    );
    // What the guest said before it died is there as well.
    let all = lines(&platform, "request=doomed").await;
    assert!(
        texts(&all)
            .iter()
            .any(|text| text.contains("a trap on purpose")),
        "{all:#?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_sees_lines_as_they_come_and_is_let_go_at_the_end() {
    let mut platform = with_probe().await;
    let stream = tokio::net::TcpStream::connect(platform.platform().address())
        .await
        .unwrap();
    let (read, mut write) = stream.into_split();
    write
        .write_all(b"GET /api/v1/functions/probe/logs?follow=true&level=warn HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await
        .unwrap();
    let mut reader = BufReader::new(read).lines();
    let mut next_json = async || -> Option<Value> {
        loop {
            let line = tokio::time::timeout(Duration::from_secs(10), reader.next_line())
                .await
                .expect("a line in time")
                .unwrap()?;
            if line.starts_with('{') {
                return Some(serde_json::from_str(&line).unwrap());
            }
        }
    };
    // Whether the follower is there yet or not: lines are in the ring or come live, never both.
    for _ in 0..5 {
        platform.call("probe/log").await.ok();
    }
    for _ in 0..5 {
        assert_eq!(next_json().await.unwrap()["text"], "a line of stderr");
    }
    let drained = Instant::now();
    assert!(platform.take().drain().await);
    assert!(drained.elapsed() < Duration::from_secs(5));
    assert_eq!(next_json().await, None, "the stream ends with the platform");
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_are_cut_off_and_the_ring_stays_within_its_size() {
    let platform = TestPlatform::start_with(|config| {
        config.logs.max_bytes = fnctl_core::ByteSize::kib(64);
    })
    .await;
    platform
        .deploy(Deployment::new("probe", probe()).with("log_bytes", "32KiB"))
        .await;
    for path in ["probe/flood", "probe/log-flood"] {
        let reply = platform.call(path).await.ok();
        let id = reply.headers["x-request-id"].to_str().unwrap().to_owned();
        let cut = soon(&platform, &format!("request={id}&level=warn"), 1).await;
        assert!(
            texts(&cut).iter().any(|text| text.contains("log_bytes")),
            "{path}: {cut:#?}"
        );
    }
    for _ in 0..3 {
        platform.call("probe/flood").await.ok();
    }
    platform.call("probe/log").await.ok();
    let all = soon(&platform, "tail=1&level=warn", 1).await;
    assert_eq!(texts(&all), ["a line of stderr"]);
    let folder = platform.data().join("logs/probe");
    let bytes: u64 = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    assert!(bytes <= 64 << 10, "{bytes} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_survive_a_restart_and_go_with_their_function() {
    let platform = with_probe().await;
    platform.call("probe/log").await.ok();
    soon(&platform, "level=warn", 1).await;
    let platform = platform.restart().await;
    assert_eq!(
        texts(&lines(&platform, "level=warn").await),
        ["a line of stderr"]
    );
    platform
        .client
        .send(
            http::Method::DELETE,
            "/api/v1/functions/probe",
            &[("host", "localhost")],
            "",
        )
        .await
        .ok();
    let reply = platform.client.get("/api/v1/functions/probe/logs").await;
    assert_eq!(reply.status, 404);
    let until = Instant::now() + Duration::from_secs(10);
    while platform.data().join("logs/probe").exists() {
        assert!(Instant::now() < until, "the folder goes");
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_is_made_for_whoever_may_read_it() {
    let platform = with_probe().await;
    let call = async |id: &str, more: Option<(&str, &str)>| {
        let mut headers = vec![("x-request-id", id), ("x-fnctl-report", "1")];
        headers.extend(more);
        platform
            .client
            .send(http::Method::GET, "/fn/probe/burn?30", &headers, "")
            .await
            .ok();
    };
    let reports = async |id: &str| {
        let mut found = lines(&platform, &format!("request={id}")).await;
        found.retain(|line| !line["report"].is_null());
        found
    };
    // Without a token the admin API is for this machine, not for web pages nor for whoever is behind a proxy.
    call("page", Some(("origin", "http://example.com"))).await;
    call("proxied", Some(("x-forwarded-for", "192.0.2.1"))).await;
    call("owner", None).await;
    let until = Instant::now() + Duration::from_secs(10);
    let report = loop {
        if let [line] = reports("owner").await.as_slice() {
            break line["report"].clone();
        }
        assert!(Instant::now() < until, "the report comes");
    };
    assert_eq!(report["outcome"], "ok");
    let (run, cpu) = (
        report["run_ms"].as_f64().unwrap(),
        report["cpu_ms"].as_f64().unwrap(),
    );
    // It burns 30 ms by the clock; how much of that it has a core is the machine's.
    assert!(run >= 30.0, "{report}");
    assert!(cpu > 1.0 && cpu <= run + 1.0, "{report}");
    assert!(report["memory_bytes"].as_u64().unwrap() >= 1 << 16);
    assert!(reports("page").await.is_empty());
    assert!(reports("proxied").await.is_empty());
}
