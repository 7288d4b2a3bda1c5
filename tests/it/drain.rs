//! Redeploys and shutdowns lose nothing.

use fnctl_tests::{Deployment, TestPlatform, eventually, probe};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread")]
async fn a_redeploy_under_load_fails_no_request_and_the_old_instances_go() {
    let platform = TestPlatform::start().await;
    platform
        .deploy(Deployment::new("probe", probe()).with("concurrency", 4))
        .await;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let answered = Arc::new(AtomicUsize::new(0));
    let load: Vec<_> = (0..4)
        .map(|_| {
            let (client, stopped) = (platform.client.clone(), stopped.clone());
            let answered = answered.clone();
            tokio::spawn(async move {
                let mut versions = Vec::new();
                while !*stopped.borrow() {
                    versions.push(
                        client
                            .get("/fn/probe/sleep?3")
                            .await
                            .ok()
                            .header("x-fnctl-version")
                            .to_owned(),
                    );
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                versions
            })
        })
        .collect();
    let under_load = async || {
        let enough = answered.load(Ordering::Relaxed) + 40;
        eventually("the load is answered", || {
            answered.load(Ordering::Relaxed) >= enough
        })
        .await;
    };
    for round in 0..5 {
        under_load().await;
        platform
            .deploy(
                Deployment::new("probe", probe())
                    .with("concurrency", 4)
                    .with("description", format!("round {round}")),
            )
            .await;
    }
    under_load().await;
    stop.send(true).unwrap();
    for caller in load {
        let versions = caller.await.unwrap();
        assert!(
            versions.is_sorted_by_key(|version| version.parse::<u32>().unwrap()),
            "{versions:?}"
        );
        assert_eq!(versions.last().unwrap(), "6");
    }
    let status = platform
        .client
        .get("/api/v1/functions/probe")
        .await
        .ok()
        .json();
    let old = status["instances"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|instance| instance["version"] != 6)
        .count();
    assert_eq!(old, 0, "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_finishes_what_runs_and_refuses_what_is_new() {
    let mut platform = TestPlatform::start().await;
    platform.deploy(Deployment::new("probe", probe())).await;
    let client = platform.client.clone();
    let running = tokio::spawn({
        let client = client.clone();
        async move { client.get("/fn/probe/sleep?800").await }
    });
    eventually("it runs", || platform.platform().in_flight() == 1).await;
    let drained = tokio::spawn(platform.take().drain());
    let until = Instant::now() + Duration::from_secs(10);
    while client.get("/readyz").await.status != 503 {
        assert!(Instant::now() < until, "it does not begin to drain");
    }
    let refused = client.get("/fn/probe/count").await;
    assert_eq!(
        (refused.status.as_u16(), refused.code().as_str()),
        (503, "draining")
    );
    assert_eq!(refused.header("retry-after"), "5");
    assert_eq!(client.get("/readyz").await.status, 503);
    assert_eq!(running.await.unwrap().ok().text(), "slept\n");
    assert!(drained.await.unwrap(), "everything finished");
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_the_program_with_success_after_its_requests() {
    let folder = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let address: std::net::SocketAddr = ([127, 0, 0, 1], port).into();
    let mut process = std::process::Command::new(crate::cli::program())
        .args(["serve", "--listen", &address.to_string(), "--data"])
        .arg(folder.path())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    while tokio::net::TcpStream::connect(address).await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(process.try_wait().unwrap().is_none());
    }
    let client = fnctl_tests::Client::new(address);
    let digest = client.post("/api/v1/artifacts", probe()).await.ok().json()["digest"]
        .as_str()
        .unwrap()
        .to_owned();
    client
        .post(
            "/api/v1/functions/probe/versions",
            format!("{{\"artifact\":\"{digest}\"}}"),
        )
        .await
        .ok();
    let caller = client.clone();
    let running = tokio::spawn(async move { caller.get("/fn/probe/sleep?700").await });
    let busy = "fnctl_instances{function=\"probe\",state=\"busy\",version=\"1\"} 1";
    let until = Instant::now() + Duration::from_secs(10);
    while !client.get("/metrics").await.text().contains(busy) {
        assert!(Instant::now() < until, "the request does not begin");
    }
    let kill = std::process::Command::new("kill")
        .arg(process.id().to_string())
        .status()
        .unwrap();
    assert!(kill.success());
    assert_eq!(running.await.unwrap().ok().text(), "slept\n");
    let status = tokio::task::spawn_blocking(move || process.wait().unwrap())
        .await
        .unwrap();
    assert!(status.success(), "{status}");
}
