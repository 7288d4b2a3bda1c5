//! Cold starts: of a sandbox, after a restart, and of a model.

use super::http::{Connection, Timed};
use super::report::Report;
use super::server::Server;
use super::{median, percentile, samples};
use std::path::Path;

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
    let (calls, _) = samples::fresh_sandboxes(program, 2_000)?;
    let before = sorted(calls.iter().map(Timed::before_run));
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
    let (calls, _) = samples::fresh_models(program, 21)?;
    let phase = |name| median(calls.iter().map(|call| call.phase(name)).collect());
    let whole = calls.iter().map(|call| call.took.as_secs_f64() * 1e3);
    report.latency("fraud cold, end to end", median(whole.collect()), "10 ms");
    report.latency("  of that: instantiate", phase("instantiate"), "");
    report.latency("  of that: model", phase("model"), "");
    report.latency("  of that: init", phase("init"), "");
    Ok(())
}
