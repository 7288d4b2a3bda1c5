//! `fnctl top` with the real program: numbers that agree with what was sent, a screen that is given back.

use crate::cli::{program, stderr, stdout};
use fnctl_tests::{Deployment, TestPlatform, probe};
use serde_json::Value;
use std::process::{Command, Stdio};

#[tokio::test(flavor = "multi_thread")]
async fn a_reading_counts_what_was_sent_meanwhile() {
    let platform = TestPlatform::start().await;
    platform.deploy(Deployment::new("busy", probe())).await;
    platform.deploy(Deployment::new("quiet", probe())).await;
    platform.call("busy/count").await.ok();
    let address = format!("http://{}", platform.platform().address());
    let top = Command::new(program())
        .args(["top", "--interval", "2s", "--json", "--server", &address])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let ended = tokio::task::spawn_blocking(move || top.wait_with_output().unwrap());
    // Until it has ended, so some of them fall between its two readings.
    let mut sent = 0u32;
    while !ended.is_finished() {
        platform.call("busy/count").await.ok();
        sent += 1;
    }
    let output = ended.await.unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let reading: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let busy = &reading["functions"][0];
    assert_eq!(busy["name"], "busy", "{reading}");
    let counted = busy["per_second"].as_f64().unwrap() * reading["seconds"].as_f64().unwrap();
    assert!(
        counted >= 1.0 && counted <= f64::from(sent),
        "{counted} of {sent} in {reading}"
    );
    assert_eq!(busy["cold_rate"], 0.0, "{reading}");
    assert!(
        busy["memory_bytes"].as_u64().unwrap() >= 1 << 16,
        "{reading}"
    );
    assert!(busy["p95_ms"].as_f64().unwrap() > 0.0, "{reading}");
    assert_eq!(
        (&reading["deployed"], &reading["at_zero"]),
        (&2.into(), &1.into())
    );
    // No model was ever needed.
    assert_eq!(reading["hosts"]["running"], 0, "{reading}");
    assert_eq!(reading["memory"]["host_bytes"], 0, "{reading}");
}

#[test]
fn the_terminal_is_given_back_as_it_was() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let platform = runtime.block_on(TestPlatform::start());
    let line = format!(
        "fnctl top --count 2 --interval 100ms --server http://{} && stty -a",
        platform.platform().address()
    );
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":");
    path.push(program().parent().unwrap());
    let output = Command::new("script")
        .args(["--quiet", "--return", "--command", &line, "/dev/null"])
        .env("PATH", path)
        .env("TERM", "xterm-256color")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let shown = stdout(&output);
    assert!(output.status.success(), "{shown}{}", stderr(&output));
    let (screen, after) = shown
        .split_once("\u{1b}[?1049l")
        .expect("it left its screen");
    assert!(
        screen.contains("\u{1b}[?1049h") && screen.contains("q quit"),
        "{screen}"
    );
    // Raw mode would say "-echo" and "-icanon".
    assert!(
        after.contains(" echo ") && after.contains(" icanon "),
        "{after}"
    );
    runtime.block_on(async { drop(platform) });
}
