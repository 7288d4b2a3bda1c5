//! Cold starts: of a sandbox, after a restart, and of a model.

use super::http::{Connection, Timed};
use super::report::Report;
use super::server::Server;
use super::{median, percentile};
use anyhow::ensure;
use std::path::Path;
use std::time::Duration;

pub(crate) fn measure(program: &Path, report: &mut Report) -> anyhow::Result<()> {
    sandbox(program, report)?;
    restart(program, report)?;
    model(program, report)
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// From admission to the guest's first instruction, template resident: a fresh sandbox for each of these calls.
fn sandbox(program: &Path, report: &mut Report) -> anyhow::Result<()> {
    let server = Server::fnctl(program, &[])?;
    server.deploy(program, &["examples/echo", "--isolation", "request"])?;
    let mut connection = Connection::open(server.address())?;
    let calls: Vec<Timed> = (0..2_000)
        .map(|_| connection.request("POST", "/fn/echo", "x"))
        .collect::<Result<_, _>>()?;
    ensure!(
        calls.iter().all(|call| call.start == "cold"),
        "every call should be cold"
    );
    let before = sorted(calls.iter().skip(100).map(Timed::before_run));
    report.latency(
        "cold start without a model, template resident, p50",
        percentile(&before, 0.5),
        "0.2 ms",
    );
    report.latency(
        "cold start without a model, template resident, p99",
        percentile(&before, 0.99),
        "1 ms",
    );
    Ok(())
}

/// The first call after a restart, compiled code on disk.
fn restart(program: &Path, report: &mut Report) -> anyhow::Result<()> {
    let mut server = Server::fnctl(program, &[])?;
    server.deploy(program, &["examples/echo"])?;
    let (mut phases, mut whole) = (Vec::new(), Vec::new());
    for _ in 0..7 {
        server = server.restart(program, &[])?;
        let call = Connection::open(server.address())?.request("POST", "/fn/echo", "x")?;
        phases.push(call.before_run());
        whole.push(call.took.as_secs_f64() * 1e3);
    }
    report.latency(
        "first call after a restart, admission to first instruction",
        median(phases),
        "5 ms",
    );
    report.latency(
        "first call after a restart, end to end",
        median(whole),
        "5 ms",
    );
    Ok(())
}

/// `fraud` with instance and session gone, template resident, as its caller sees it.
fn model(program: &Path, report: &mut Report) -> anyhow::Result<()> {
    let body = std::fs::read_to_string(crate::root().join("examples/fraud/request.json"))?;
    let server = Server::fnctl(program, &["inference.session_ttl=1ms"])?;
    server.deploy(program, &["examples/fraud", "--keep-alive", "1ms"])?;
    let (mut whole, mut model, mut init, mut instantiate) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..21 {
        // Two rounds of housekeeping: the instance goes in one, its session in the next.
        std::thread::park_timeout(Duration::from_millis(800));
        let call =
            Connection::open(server.address())?.request("POST", "/fn/fraud", body.trim_end())?;
        // The first one also loads the library.
        if round > 0 {
            ensure!(
                call.start == "cold" && call.phase("model") > 0.3,
                "the session should have been gone"
            );
            whole.push(call.took.as_secs_f64() * 1e3);
            model.push(call.phase("model"));
            init.push(call.phase("init"));
            instantiate.push(call.phase("instantiate"));
        }
    }
    report.latency("fraud cold, end to end", median(whole), "10 ms");
    report.latency("  of that: instantiate", median(instantiate), "");
    report.latency("  of that: model", median(model), "");
    report.latency("  of that: init", median(init), "");
    Ok(())
}
