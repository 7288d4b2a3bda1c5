//! Throughput by wrk, and the server's CPU time per request.

use anyhow::{Context, ensure};
use std::process::Command;

/// What is loaded.
pub(crate) struct Target {
    pub(crate) url: String,
    pub(crate) connections: u32,
    pub(crate) body: Option<String>,
    pub(crate) pid: u32,
}

/// One measurement.
#[derive(Clone, Copy)]
pub(crate) struct Figure {
    pub(crate) per_second: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) cpu_ms: f64,
}

/// Loads a target for some seconds.
pub(crate) fn run(target: &Target, seconds: u32) -> anyhow::Result<Figure> {
    let script = tempfile::Builder::new().suffix(".lua").tempfile()?;
    if let Some(body) = &target.body {
        let body = body.trim_end();
        let lua = format!(
            "wrk.method = \"POST\"\nwrk.headers[\"Content-Type\"] = \"application/json\"\nwrk.body = [==[{body}]==]\n"
        );
        std::fs::write(script.path(), lua)?;
    }
    let before = cpu_seconds(target.pid)?;
    let output = Command::new("wrk")
        .args([
            "--threads",
            "1",
            "--latency",
            "--connections",
            &target.connections.to_string(),
        ])
        .args(["--duration", &format!("{seconds}s"), "--script"])
        .arg(script.path())
        .arg(&target.url)
        .output()
        .context("wrk")?;
    let cpu = cpu_seconds(target.pid)? - before;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "wrk failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    ensure!(
        !text.contains("Non-2xx"),
        "{} did not always succeed: {text}",
        target.url
    );
    let value = |name: &str| {
        text.lines()
            .find_map(|line| line.trim_start().strip_prefix(name))
            .map(str::trim)
    };
    let per_second: f64 = value("Requests/sec:")
        .context("wrk tells no rate")?
        .parse()?;
    let requests: f64 = text
        .lines()
        .find_map(|line| {
            line.trim_start()
                .split_once(" requests in ")
                .map(|(count, _)| count)
        })
        .context("wrk tells no count")?
        .parse()?;
    let latency = |name| value(name).and_then(milliseconds).unwrap_or(f64::NAN);
    Ok(Figure {
        per_second,
        p50_ms: latency("50%"),
        p99_ms: latency("99%"),
        cpu_ms: cpu * 1e3 / requests.max(1.0),
    })
}

/// Medians of ours and theirs, measured in turn so that both see the same machine.
pub(crate) fn side_by_side(
    rounds: usize,
    seconds: u32,
    ours: impl Fn(u32) -> anyhow::Result<Figure>,
    theirs: Option<&Target>,
) -> anyhow::Result<(Figure, Option<Figure>)> {
    // A warm-up that is not counted.
    ours(1)?;
    let (mut mine, mut others) = (Vec::new(), Vec::new());
    for _ in 0..rounds.max(1) {
        mine.push(ours(seconds)?);
        if let Some(target) = theirs {
            others.push(run(target, seconds)?);
        }
    }
    Ok((middle(&mine), (!others.is_empty()).then(|| middle(&others))))
}

fn middle(figures: &[Figure]) -> Figure {
    let median = |value: fn(&Figure) -> f64| super::median(figures.iter().map(value).collect());
    Figure {
        per_second: median(|figure| figure.per_second),
        p50_ms: median(|figure| figure.p50_ms),
        p99_ms: median(|figure| figure.p99_ms),
        cpu_ms: median(|figure| figure.cpu_ms),
    }
}

/// `1.23ms`, `456.00us` or `1.00s` in milliseconds.
fn milliseconds(text: &str) -> Option<f64> {
    let (number, factor) = if let Some(number) = text.strip_suffix("ms") {
        (number, 1.0)
    } else if let Some(number) = text.strip_suffix("us") {
        (number, 1e-3)
    } else {
        (text.strip_suffix('s')?, 1e3)
    };
    number.parse::<f64>().ok().map(|value| value * factor)
}

/// User and system time of a process, from fields 14 and 15 of /proc/PID/stat, in clock ticks of 10 ms.
pub(crate) fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat =
        std::fs::read_to_string(format!("/proc/{pid}/stat")).context("the server is gone")?;
    let (_, after_name) = stat.rsplit_once(')').context("/proc/PID/stat")?;
    let ticks: f64 = after_name
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<f64>().ok())
        .sum();
    Ok(ticks / 100.0)
}
