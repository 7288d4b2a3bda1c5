//! Keep-alive policies from outside: the simulator's command line, traces of a running platform, and a periodic function
//! that is started before it is called.

use crate::cli::{fnctl, stderr, stdout};
use fnctl_core::Period;
use fnctl_tests::{Deployment, TestPlatform, eventually, file, probe};
use serde_json::Value;
use std::time::Duration;

fn address(platform: &TestPlatform) -> String {
    format!("http://{}", platform.platform().address())
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_are_simulated_on_a_generated_trace() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("T.csv").display().to_string();
    let picture = folder.path().join("out.svg").display().to_string();
    // No platform is asked.
    let nobody = "http://127.0.0.1:9";
    let made = fnctl(
        nobody,
        &[
            "policy",
            "generate",
            "--seed",
            "5",
            "--functions",
            "30",
            "--hours",
            "10",
            "--out",
            &file,
            "--json",
        ],
    )
    .await;
    assert_eq!(json(&stdout(&made))["minutes"], 600);
    let arguments = [
        "policy",
        "simulate",
        "--trace",
        &file,
        "--policy",
        "fixed:10m",
        "--policy",
        "histogram",
        "--policy",
        "adaptive",
        "--json",
        "--plot",
        &picture,
    ];
    let results = json(&stdout(&fnctl(nobody, &arguments).await));
    let results = results.as_array().unwrap();
    let policies: Vec<_> = results
        .iter()
        .map(|result| result["policy"].as_str().unwrap())
        .collect();
    assert_eq!(policies, ["fixed:10m", "histogram", "adaptive"]);
    for result in results {
        for key in [
            "cold_starts",
            "evictions",
            "invocations",
            "p99_added_ms",
            "p50_added_ms",
            "idle_gb_hours",
            "cold_percent",
        ] {
            assert!(result[key].is_number(), "{key} in {result}");
        }
        assert!(result["cold_starts"].as_u64().unwrap() > 0, "{result}");
        assert!(result["idle_gb_hours"].as_f64().unwrap() > 0.0, "{result}");
    }
    // The same again gives the same.
    assert_eq!(
        json(&stdout(&fnctl(nobody, &arguments).await)),
        Value::Array(results.clone())
    );
    let picture = std::fs::read_to_string(&picture).unwrap();
    assert!(picture.starts_with("<svg") && picture.contains("adaptive, by patience"));
    let table = stdout(&fnctl(nobody, &arguments[..10]).await);
    assert!(
        table.contains("IDLE GB-HOURS") && table.contains("histogram"),
        "{table}"
    );
}

/// A small trace without timers: what the policies promise, by the numbers of the table.
#[tokio::test(flavor = "multi_thread")]
async fn policies_are_compared_at_equal_memory() {
    let arguments = [
        "policy",
        "compare",
        "--seed",
        "3",
        "--functions",
        "60",
        "--hours",
        "48",
        "--mix",
        "no-timers",
    ];
    let output = fnctl(
        "http://127.0.0.1:9",
        &[arguments.as_slice(), &["--json"]].concat(),
    )
    .await;
    assert!(
        stderr(&output).contains("seed 3: ") && stderr(&output).contains("simulating"),
        "{}",
        stderr(&output)
    );
    let rows = json(&stdout(&output));
    let rows = rows.as_array().unwrap();
    let number = |row: &Value, key: &str| {
        row[key]
            .as_f64()
            .unwrap_or_else(|| panic!("{key} in {row}"))
    };
    let all = rows.iter().find(|row| row["class"] == "all").unwrap();
    let histogram = number(all, "histogram_to_fixed_10m");
    let adaptive = number(all, "adaptive_to_histogram");
    let both = number(all, "adaptive_to_fixed_10m");
    assert!(histogram < 1.0 && adaptive < 0.9 && both < 0.6, "{all}");
    assert!((histogram * adaptive - both).abs() < 0.005, "{all}");
    assert!(number(all, "adaptive_to_best_fixed") < 1.0, "{all}");
    // Classes are parts of the whole, by rate and by trigger.
    for key in ["functions", "fixed_10m_cold_starts", "idle_gb_hours"] {
        let sum = |by_rate: bool| -> f64 {
            rows.iter()
                .filter(|row| row["class"] != "all")
                .filter(|row| row["class"].as_str().unwrap().starts_with("called") == by_rate)
                .map(|row| number(row, key))
                .sum()
        };
        for by_rate in [true, false] {
            assert!(
                (sum(by_rate) - number(all, key)).abs() < 1.0,
                "{key}: {} of {all}",
                sum(by_rate)
            );
        }
    }
    assert!(rows.iter().all(|row| row["class"] != "timer"));
    let table = stdout(&fnctl("http://127.0.0.1:9", &arguments).await);
    assert!(
        table.contains("ADAPTIVE/HISTOGRAM") && table.contains("called 6 to 60/h"),
        "{table}"
    );
    // Only the adaptive policy has variants.
    let output = fnctl(
        "http://127.0.0.1:9",
        &["policy", "compare", "--adaptive", "histogram"],
    )
    .await;
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("--adaptive histogram is not the adaptive policy"),
        "{}",
        stderr(&output)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_trace_or_policy_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("T.csv");
    std::fs::write(&file, "timestamp,function,duration\n1,f,1\n2,f,much\n").unwrap();
    let file = file.display().to_string();
    let output = fnctl(
        "http://127.0.0.1:9",
        &[
            "policy", "simulate", "--trace", &file, "--policy", "fixed:1m",
        ],
    )
    .await;
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("line 3: 'much' is no duration"),
        "{}",
        stderr(&output)
    );
    let output = fnctl(
        "http://127.0.0.1:9",
        &["policy", "simulate", "--trace", &file, "--policy", "lru"],
    )
    .await;
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("'lru' is no policy"),
        "{}",
        stderr(&output)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_invoked_is_exported_and_simulated() {
    let platform = TestPlatform::start().await;
    platform.deploy(Deployment::new("probe", probe())).await;
    for _ in 0..5 {
        platform.call("probe/count").await.ok();
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("T.csv").display().to_string();
    let server = address(&platform);
    let exported = fnctl(&server, &["trace", "export", "--out", &file, "--json"]).await;
    assert_eq!(
        json(&stdout(&exported))["invocations"],
        5,
        "{}",
        stderr(&exported)
    );
    let text = stdout(&fnctl(&server, &["trace", "export"]).await);
    assert!(
        text.starts_with("timestamp,function,duration,start\n"),
        "{text}"
    );
    assert_eq!(
        text.lines().filter(|line| line.contains(",probe,")).count(),
        5,
        "{text}"
    );
    let simulated = fnctl(
        &server,
        &[
            "policy",
            "simulate",
            "--trace",
            &file,
            "--policy",
            "fixed:60s",
            // Shorter than between two calls, however fast they were.
            "--cold-cost",
            "1ms",
            "--json",
        ],
    )
    .await;
    let result = &json(&stdout(&simulated))[0];
    assert_eq!(
        (
            result["invocations"].as_u64(),
            result["cold_starts"].as_u64()
        ),
        (Some(5), Some(1)),
        "{result}"
    );
}

/// Called every three seconds, by a policy that finds a second of idle memory dear: it is let go in between, and one is
/// started before the next call.
#[tokio::test(flavor = "multi_thread")]
async fn a_periodic_function_is_started_ahead() {
    let platform = TestPlatform::start_with(|config| {
        config.scheduler.keep_alive_policy = "adaptive:1s,start=0.001,no-guard".parse().unwrap();
    })
    .await;
    platform
        .deploy(Deployment::new("probe", probe()).with("keep_alive", "100ms"))
        .await;
    let mut starts = Vec::new();
    for _ in 0..12 {
        let reply = platform.call("probe/count").await.ok();
        starts.push(reply.start().to_owned());
        if starts.last().is_some_and(|start| start == "prewarmed") {
            break;
        }
        // Its period, which is what is learned.
        tokio::time::sleep(Duration::from_millis(3050)).await;
    }
    assert_eq!(starts.first().map(String::as_str), Some("cold"));
    assert_eq!(
        starts.last().map(String::as_str),
        Some("prewarmed"),
        "{starts:?}"
    );
    let count = platform
        .metric("fnctl_starts_total{function=\"probe\",kind=\"prewarmed\",version=\"1\"}")
        .await;
    assert_eq!(count, 1.0);
    assert!(
        platform
            .metric("fnctl_evictions_total{reason=\"policy\",rung=\"sandbox\"}")
            .await
            >= 1.0
    );
}

/// A policy that finds memory dear lets the model and the code go within seconds of their sandbox, long before the times
/// of the platform.
#[tokio::test(flavor = "multi_thread")]
async fn the_adaptive_policy_lets_models_and_code_go_as_well() {
    let platform = TestPlatform::start_with(|config| {
        // So dear that even a model of a few kilobytes is not worth a second.
        config.scheduler.keep_alive_policy = "adaptive:20ms".parse().unwrap();
        config.inference.session_ttl = Period::secs(3600);
        config.worker.template_ttl = Period::secs(3600);
    })
    .await;
    let request = file("examples/fraud/request.json");
    platform
        .deploy(
            Deployment::new("fraud", file("examples/fraud/fraud.wasm"))
                .model("fraud", file("examples/fraud/models/fraud_mlp16.onnx"))
                .with("keep_alive", "100ms"),
        )
        .await;
    for _ in 0..4 {
        platform
            .client
            .post("/fn/fraud", request.clone())
            .await
            .ok();
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    eventually("the session is unloaded", || {
        platform.platform().sessions() == (0, 0)
    })
    .await;
    eventually("the template is dropped", || {
        platform.platform().templates() == 0
    })
    .await;
    let gone = |rung: &str, reason: &str| {
        let name = format!("fnctl_evictions_total{{reason=\"{reason}\",rung=\"{rung}\"}}");
        let platform = &platform;
        async move { platform.metric(&name).await }
    };
    assert!(gone("session", "policy").await >= 1.0);
    assert!(gone("template", "policy").await >= 1.0);
    let by_time = (gone("session", "ttl").await, gone("template", "ttl").await);
    assert_eq!(by_time, (0.0, 0.0));
}
