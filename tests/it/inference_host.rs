//! Inference hosts under a whole platform: killed, replaced, retired, and never left behind.

use crate::cli::program;
use fnctl_tests::{Client, Deployment, TestPlatform, eventually, file, onnx, probe};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

fn fraud() -> Deployment {
    Deployment::new("fraud", file("examples/fraud/fraud.wasm"))
        .model("fraud", file("examples/fraud/models/fraud_mlp16.onnx"))
}

fn signal(pid: u32, name: &str) {
    let status = Command::new("kill")
        .args([&format!("-{name}"), &pid.to_string()])
        .status()
        .unwrap();
    assert!(status.success(), "{name} to {pid}");
}

fn exists(pid: u32) -> bool {
    // A zombie has no memory any more: its status lacks a size.
    std::fs::read_to_string(format!("/proc/{pid}/status"))
        .is_ok_and(|status| status.contains("VmRSS"))
}

/// Callers of `fraud` that fail at the first request that fails.
struct Load {
    stop: Arc<AtomicBool>,
    callers: Vec<JoinHandle<usize>>,
}

impl Load {
    fn start(client: &Client, callers: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let callers = (0..callers)
            .map(|_| {
                let (client, stop) = (client.clone(), stop.clone());
                tokio::spawn(async move {
                    let mut answered = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let reply = client
                            .post("/fn/fraud", file("examples/fraud/request.json"))
                            .await
                            .ok();
                        assert!(reply.text().contains("probability"), "{}", reply.text());
                        answered += 1;
                    }
                    answered
                })
            })
            .collect();
        Self { stop, callers }
    }

    async fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        let mut answered = 0;
        for caller in self.callers {
            answered += caller.await.unwrap();
        }
        answered
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_dash_nine_twenty_times_under_load_fails_no_request() {
    let platform = TestPlatform::start().await;
    platform.deploy(fraud()).await;
    let load = Load::start(&platform.client, 6);
    let mut killed = 0;
    let mut last = 0;
    while killed < 20 {
        tokio::time::sleep(Duration::from_millis(60)).await;
        let hosts = platform.platform().inference_hosts();
        if let [pid] = hosts[..]
            && pid != last
        {
            signal(pid, "KILL");
            last = pid;
            killed += 1;
        }
    }
    let restarts = "fnctl_inference_host_restarts_total{reason=\"killed\"}";
    platform.metric_becomes(restarts, 20.0).await;
    let answered = load.end().await;
    assert!(answered > 100, "{answered}");
    assert_eq!(platform.metric(restarts).await, 20.0);
    assert_eq!(
        platform.metric("fnctl_inference_quarantined_models").await,
        0.0,
        "a kill from outside is nobody's fault"
    );
    assert!(platform.metric("fnctl_inference_reruns_total").await > 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_are_replaced_under_load_without_a_failed_request() {
    let platform = TestPlatform::start().await;
    platform.deploy(fraud()).await;
    let load = Load::start(&platform.client, 6);
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(150)).await;
        let before = platform.platform().inference_hosts();
        assert_eq!(before.len(), 1);
        seen.extend(before.clone());
        let replaced = platform.client.post("/api/v1/inference/restart", "").await;
        assert_eq!(replaced.ok().json()["replaced"], 1);
        assert!(!exists(before[0]), "the old one is gone");
    }
    assert_eq!(seen.len(), 5);
    load.end().await;
    let restarts = "fnctl_inference_host_restarts_total{reason=\"killed\"}";
    assert_eq!(platform.metric(restarts).await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_crashes_is_quarantined_and_only_its_function_notices() {
    let platform = TestPlatform::start().await;
    platform.deploy(fraud()).await;
    let probe = || Deployment::new("probe", probe()).model("division", onnx::division());
    platform.deploy(probe()).await;
    let divide = |by: &str| {
        let inputs = format!("x;i64;4;8,6,4,{}\ny;i64;4;{by}", i64::MIN);
        platform
            .client
            .post("/fn/probe/nn/run?model=division", inputs)
    };
    assert!(
        divide("1,2,4,1")
            .await
            .ok()
            .text()
            .contains(";8,3,1,-9223372036854775808")
    );
    let load = Load::start(&platform.client, 4);
    let crashed = divide("1,1,1,-1").await;
    assert_eq!(crashed.status, 422, "{}", crashed.text());
    assert!(
        crashed.text().contains("RuntimeError"),
        "{}",
        crashed.text()
    );
    assert!(load.end().await > 0);
    let quarantined = "fnctl_inference_quarantined_models";
    platform.metric_becomes(quarantined, 1.0).await;
    let restarts = "fnctl_inference_host_restarts_total{reason=\"crashed\"}";
    assert!(platform.metric(restarts).await >= 3.0);
    // Whoever looks at the function, or at inference, sees it.
    let seen = platform.client.get("/api/v1/functions/probe").await;
    let quarantine = seen.ok().json()["version"]["models"]["division"]["quarantine"].clone();
    assert!(quarantine["deaths"].as_u64() >= Some(3), "{quarantine}");
    let left = quarantine["for_ms"].as_u64().unwrap();
    assert!((1..=600_000).contains(&left), "{left}");
    let seen = platform.client.get("/api/v1/functions/fraud").await;
    let innocent = seen.ok().json()["version"]["models"]["fraud"].clone();
    assert!(innocent.get("digest").is_some(), "{innocent}");
    assert!(innocent.get("quarantine").is_none(), "{innocent}");
    let inference = platform.client.get("/api/v1/inference").await.ok().json();
    assert_eq!(inference["process"], "host");
    assert_eq!(inference["quarantined"].as_array().unwrap().len(), 1);
    let hosts = inference["hosts"].as_array().unwrap();
    assert!(
        hosts.iter().any(|host| host["kind"] == "shared"
            && host["resident_bytes"].as_u64() > Some(1 << 20)
            && host["confinement"].as_str().unwrap().contains("seccomp")),
        "{inference}"
    );
    // A new instance is refused as well, with a clear code.
    platform.deploy(probe()).await;
    assert!(
        divide("1,2,4,1")
            .await
            .ok()
            .text()
            .contains(";8,3,1,-9223372036854775808"),
        "a deploy lifts it"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_crashes_while_it_loads_is_refused_at_deploy() {
    let platform = TestPlatform::start().await;
    platform.deploy(fraud()).await;
    platform
        .client
        .post("/fn/fraud", file("examples/fraud/request.json"))
        .await
        .ok();
    let hosts = platform.platform().inference_hosts();
    let load = Load::start(&platform.client, 2);
    let event = platform
        .try_deploy(&Deployment::new("probe", probe()).model("bad", onnx::division_at_load()))
        .await;
    assert_eq!(
        (&event["step"], &event["code"]),
        (&"load_model".into(), &"invalid_model".into()),
        "{event}"
    );
    load.end().await;
    assert_eq!(platform.platform().inference_hosts(), hosts, "untouched");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spare_host_is_there_before_it_is_needed_and_is_replaced() {
    let platform = TestPlatform::start_with(|config| config.inference.spare_host = true).await;
    eventually("a spare host", || {
        platform.platform().inference_hosts().len() == 1
    })
    .await;
    let spare = platform.platform().inference_hosts();
    platform.deploy(fraud()).await;
    platform
        .client
        .post("/fn/fraud", file("examples/fraud/request.json"))
        .await
        .ok();
    eventually("the next spare", || {
        platform.platform().inference_hosts().len() == 2
    })
    .await;
    assert!(!platform.platform().inference_hosts().contains(&spare[0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_ends_the_hosts() {
    let mut platform = TestPlatform::start().await;
    platform.deploy(fraud()).await;
    platform
        .client
        .post("/fn/fraud", file("examples/fraud/request.json"))
        .await
        .ok();
    let pids = platform.platform().inference_hosts();
    assert_eq!(pids.len(), 1);
    assert!(platform.take().drain().await);
    assert!(!exists(pids[0]));
}

fn children(parent: u32) -> Vec<u32> {
    let stat = |entry: std::fs::DirEntry| -> Option<u32> {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let rest = stat.rsplit_once(") ")?.1.to_owned();
        (rest.split(' ').nth(1)?.parse::<u32>().ok()? == parent).then_some(pid)
    };
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(stat)
        .collect()
}

/// `fnctl serve` as a process, with `fraud` deployed.
struct Serving {
    process: Child,
    client: Client,
    server: String,
    _folder: tempfile::TempDir,
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Serving {
    async fn start(settings: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let mut command = Command::new(program());
        command
            .args(["serve", "--listen", &address.to_string(), "--data"])
            .arg(folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // As a shell starts it: the group's signals reach the hosts too.
            .process_group(0);
        for setting in settings {
            command.args(["--set", setting]);
        }
        let serving = Self {
            process: command.spawn().unwrap(),
            client: Client::new(address),
            server: format!("http://{address}"),
            _folder: folder,
        };
        let until = Instant::now() + Duration::from_secs(20);
        while tokio::net::TcpStream::connect(address).await.is_err() {
            assert!(Instant::now() < until, "the platform does not start");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let deployed = Command::new(program())
            .args(["--server", &serving.server, "deploy"])
            .arg(fnctl_tests::root().join("examples/fraud"))
            .args(["--keep-alive", "50ms"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(deployed.success());
        serving
    }

    async fn call(&self) {
        self.client
            .post("/fn/fraud", file("examples/fraud/request.json"))
            .await
            .ok();
    }

    fn hosts(&self) -> Vec<u32> {
        children(self.process.id())
    }

    /// Descriptors of memory that is shared with a host.
    fn shared_memory(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.process.id()))
            .unwrap()
            .flatten()
            .filter_map(|entry| std::fs::read_link(entry.path()).ok())
            .filter(|link| link.to_string_lossy().contains("memfd:fnctl-"))
            .count()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_without_sessions_goes_to_the_last_page_and_descriptor() {
    let settings = ["inference.session_ttl=200ms", "inference.host_ttl=200ms"];
    let serving = Serving::start(&settings).await;
    for _ in 0..2 {
        serving.call().await;
        let hosts = serving.hosts();
        assert_eq!(hosts.len(), 1, "{hosts:?}");
        assert_eq!(serving.shared_memory(), 1);
        eventually("the host is gone, and what was shared with it", || {
            serving.hosts().is_empty() && serving.shared_memory() == 0
        })
        .await;
        assert!(!exists(hosts[0]));
    }
}

/// The platform is killed the hard way, its host stopped so that it cannot even notice the end of its socket. SIGHUP
/// before that has the host replaced.
#[tokio::test(flavor = "multi_thread")]
async fn no_host_outlives_its_platform() {
    let mut serving = Serving::start(&[]).await;
    serving.call().await;
    let first = serving.hosts();
    assert_eq!(first.len(), 1, "{first:?}");
    signal(serving.process.id(), "HUP");
    eventually("the host is replaced", || {
        let now = serving.hosts();
        now.len() == 1 && now != first
    })
    .await;
    serving.call().await;
    let hosts = serving.hosts();
    signal(hosts[0], "STOP");
    serving.process.kill().unwrap();
    serving.process.wait().unwrap();
    eventually("the host is gone", || !exists(hosts[0])).await;
}

/// `fnctl inference`, as an operator uses it.
#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sees_the_hosts_and_replaces_them() {
    let serving = Serving::start(&["inference.require_confinement=false"]).await;
    serving.call().await;
    let run = |arguments: &[&str]| {
        let output = Command::new(program())
            .args(["--server", &serving.server, "inference"])
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let first = serving.hosts();
    let shown = run(&["show"]);
    assert!(shown.contains("PID"), "{shown}");
    assert!(shown.contains(&first[0].to_string()), "{shown}");
    assert!(shown.contains("shared"), "{shown}");
    let status: serde_json::Value = serde_json::from_str(&run(&["show", "--json"])).unwrap();
    assert_eq!(status["sessions"], 1);
    assert_eq!(status["hosts"][0]["pid"], first[0]);
    assert!(run(&["restart"]).contains("1 inference host replaced"));
    let second = serving.hosts();
    assert!(second.len() == 1 && second != first, "{second:?}");
    serving.call().await;
}

/// Ctrl-C on a terminal is a signal to the platform and to its hosts at once: what was taken is computed all the same.
#[tokio::test(flavor = "multi_thread")]
async fn signals_to_the_whole_group_end_no_host_before_the_drain() {
    for name in ["INT", "TERM"] {
        let mut serving = Serving::start(&[]).await;
        serving.call().await;
        let hosts = serving.hosts();
        let body = file("examples/fraud/request.json");
        let address = serving.server.trim_start_matches("http://");
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let head = format!(
            "POST /fn/fraud HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let (first, rest) = body.split_at(8);
        stream.write_all(first).await.unwrap();
        // The guest has begun, and waits for the rest.
        let busy = "fnctl_instances{function=\"fraud\",state=\"busy\",version=\"1\"} 1";
        let until = Instant::now() + Duration::from_secs(10);
        while !serving.client.get("/metrics").await.text().contains(busy) {
            assert!(Instant::now() < until, "the request does not begin");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let group = format!("-{}", serving.process.id());
        let sent = Command::new("kill")
            .args([&format!("-{name}"), "--", &group])
            .status()
            .unwrap();
        assert!(sent.success());
        // Long enough for one that does not wait to be gone.
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(exists(hosts[0]), "{name}: the host waits for its platform");
        stream.write_all(rest).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{name}: {answer}");
        let status = serving.process.wait().unwrap();
        assert!(status.success(), "{name}: {status}");
        assert!(!exists(hosts[0]));
    }
}
