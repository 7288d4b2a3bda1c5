//! kill -9 between any two writes of a deploy: afterwards the platform starts, what was acknowledged is there, and what
//! was not is either all there or not at all.

use crate::cli::program;
use fnctl_tests::{Client, file};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

struct Serving {
    process: Child,
    address: std::net::SocketAddr,
}

impl Drop for Serving {
    fn drop(&mut self) {
        // SIGKILL, to this very process.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

async fn serve(data: &Path, pause: Option<(u64, &Path)>) -> Serving {
    let address: std::net::SocketAddr = ([127, 0, 0, 1], free_port()).into();
    let mut command = Command::new(program());
    command
        .args(["serve", "--listen", &address.to_string(), "--data"])
        .arg(data)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if let Some((write, marker)) = pause {
        command.env("FNCTL_TEST_PAUSE", format!("{write}:{}", marker.display()));
    }
    let mut serving = Serving {
        process: command.spawn().unwrap(),
        address,
    };
    let until = Instant::now() + Duration::from_secs(20);
    while tokio::net::TcpStream::connect(address).await.is_err() {
        if pause.is_some_and(|(_, marker)| marker.exists()) {
            break;
        }
        assert!(
            Instant::now() < until && serving.process.try_wait().unwrap().is_none(),
            "the platform does not start"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    serving
}

/// Uploads and deploys the echo example; `Some(version)` once that was acknowledged.
async fn deploy(client: &Client) -> Option<u64> {
    let uploaded = client
        .post("/api/v1/artifacts", file("examples/echo/echo.wasm"))
        .await;
    let digest = uploaded.json()["digest"].as_str()?.to_owned();
    let reply = client
        .post(
            "/api/v1/functions/echo/versions",
            format!("{{\"artifact\":\"{digest}\"}}"),
        )
        .await;
    let last: serde_json::Value = serde_json::from_str(reply.text().lines().last()?).ok()?;
    (last["event"] == "deployed")
        .then(|| last["version"].as_u64())
        .flatten()
}

async fn live(client: &Client) -> Option<u64> {
    let reply = client.get("/api/v1/functions/echo").await;
    (reply.status == 200)
        .then(|| reply.json()["live"].as_u64())
        .flatten()
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_between_any_two_writes_of_a_deploy() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut acknowledged = None;
    let mut crashes = 0;
    for write in 1..40 {
        let marker = folder.path().join(format!("paused-{write}"));
        let serving = serve(&data, Some((write, &marker))).await;
        let client = Client::new(serving.address);
        let paused = async {
            while !marker.exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let finished = tokio::select! {
            // First: a platform that paused before it listens cannot be deployed to.
            biased;
            () = paused => None,
            version = deploy(&client) => Some(version),
        };
        drop(serving);
        match finished {
            None => crashes += 1,
            Some(version) => acknowledged = version.or(acknowledged),
        }

        // On the same data, without a pause: it starts, and everything acknowledged answers.
        let serving = serve(&data, None).await;
        let client = Client::new(serving.address);
        let found = live(&client).await;
        assert!(
            found >= acknowledged,
            "write {write}: acknowledged {acknowledged:?}, found {found:?}"
        );
        if found.is_some() {
            let answer = client.post("/fn/echo", "still here").await;
            assert_eq!(
                (answer.status.as_u16(), answer.text().as_str()),
                (200, "still here"),
                "write {write}"
            );
        }
        acknowledged = found;
        let leftover = std::fs::read_dir(data.join("incoming")).unwrap().count();
        assert_eq!(
            leftover, 0,
            "write {write}: what a crash cut off is removed"
        );
        if finished.is_some() {
            assert!(
                crashes >= 8,
                "only {crashes} writes were seen; the deploy should have more"
            );
            return;
        }
    }
    panic!("a deploy of forty writes? it never came to its end");
}
