//! What the inference host costs and what it survives: the same load with it and without it, in turns, and kill -9.

use super::http::Connection;
use super::load::{self, Target};
use super::report::Report;
use super::server::Server;
use super::{median, percentile};
use crate::process;
use anyhow::{Context, ensure};
use std::path::Path;
use std::time::Duration;

/// How often the host is killed.
const KILLS: usize = 20;

/// Measures all of it.
pub(crate) fn measure(
    program: &Path,
    rounds: usize,
    seconds: u32,
    report: &mut Report,
) -> anyhow::Result<()> {
    let host = server(program, "host")?;
    let inside = server(program, "in-process")?;
    let fraud = std::fs::read_to_string(crate::root().join("examples/fraud/request.json"))
        .context("the sample request")?;
    let image = "data_0;f32;1x3x224x224;zeros".to_owned();
    for (what, path, connections, body) in [
        ("fraud", "/fn/fraud", 16, &fraud),
        ("fraud", "/fn/fraud", 1, &fraud),
        (
            "light_squeezenet",
            "/fn/squeezenet/nn/run?model=m",
            4,
            &image,
        ),
    ] {
        let target = |server: &Server| Target {
            url: server.url(path),
            connections,
            body: Some(body.clone()),
            pid: server.pid(),
        };
        let (ours, theirs) = (target(&host), target(&inside));
        load::run(&theirs, 1)?;
        let figures = load::side_by_side(
            rounds,
            seconds,
            |seconds| load::run(&ours, seconds),
            Some(&theirs),
        )?;
        report.throughput(
            &format!("inference host, {what}, {connections} connection(s)"),
            &figures,
            "in-process",
        );
    }
    kills(&host, &fraud, report)
}

fn server(program: &Path, process: &str) -> anyhow::Result<Server> {
    let server = Server::fnctl(program, &[&format!("inference.process={process}")])?;
    server.deploy(program, &["examples/fraud"])?;
    let model = "m=tests/fixtures/models/light_squeezenet.onnx";
    let probe = "tests/fixtures/guests/probe.wasm";
    server.deploy(program, &[probe, "--name", "squeezenet", "--model", model])?;
    Ok(server)
}

/// The first request after each kill -9.
fn kills(server: &Server, body: &str, report: &mut Report) -> anyhow::Result<()> {
    let mut connection = Connection::open(server.address())?;
    let mut took = Vec::with_capacity(KILLS);
    for _ in 0..KILLS {
        connection.request("POST", "/fn/fraud", body)?;
        let hosts = process::output("pgrep", &["-P", &server.pid().to_string()])?;
        let host = hosts.lines().next().unwrap_or_default().to_owned();
        ensure!(!host.is_empty(), "no inference host runs");
        process::run("kill", &["-9", &host])?;
        let timed = connection.request("POST", "/fn/fraud", body)?;
        took.push(timed.took.as_secs_f64() * 1e3);
        std::thread::park_timeout(Duration::from_millis(50));
    }
    took.sort_by(f64::total_cmp);
    report.latency(
        "request right after kill -9 of its host, median of 20",
        median(took.clone()),
        "",
    );
    report.latency(
        "request right after kill -9 of its host, worst of 20",
        percentile(&took, 1.0),
        "cold start of the model + 100 ms",
    );
    Ok(())
}
