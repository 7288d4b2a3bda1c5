//! Ten thousand functions at zero: the memory that each takes, and a cold start among them beside one among ten.

use super::http::{Connection, Timed};
use super::percentile;
use super::report::Report;
use super::server::Server;
use anyhow::{Context, ensure};
use std::path::Path;
use std::time::{Duration, Instant};

const MANY: usize = 10_000;
const FEW: usize = 10;
/// Cold starts measured on each.
const CALLS: usize = 200;
/// Connections that deploy side by side; a deploy waits for the disk.
const DEPLOYERS: usize = 8;

pub(crate) fn measure(program: &Path, report: &mut Report) -> anyhow::Result<()> {
    let few = platform(program, FEW)?;
    let many = platform(program, FEW)?;
    let before = settled(&many)?;
    let since = Instant::now();
    deploy(&many, FEW..MANY)?;
    println!(
        "{MANY} functions deployed in {:.0} s",
        since.elapsed().as_secs_f64()
    );
    let each = (MANY - FEW) as f64;
    let deployed = settled(&many)?;
    report.count(
        "memory of a deployed function that was never called",
        (deployed - before) / each,
        "bytes",
        "4096",
    );
    let (ten, ten_faults) = cold_calls(&few, FEW)?;
    let (first, first_faults) = cold_calls(&many, MANY)?;
    // Among ten all but ten of the calls are to functions that were called before, among ten thousand none was.
    let (again, again_faults) = cold_calls(&many, MANY)?;
    // The same few again and again, among as many: what differs from ten alone grows with their number.
    let (few_of_many, few_faults) = cold_calls(&many, FEW)?;
    let middle = |calls: &[Timed]| percentile(&sorted(calls), 0.5);
    report.latency("cold start among ten functions, p50", middle(&ten), "");
    report.count("  ... pages that came into being", ten_faults, "a call", "");
    for (calls, faults, name, reach) in [
        (
            &first,
            first_faults,
            "each for the first time",
            "as among ten",
        ),
        (&again, again_faults, "the same ones again", ""),
        (&few_of_many, few_faults, "ten of them over and over", ""),
    ] {
        report.latency(
            &format!("cold start among {MANY}, {name}, p50"),
            middle(calls),
            reach,
        );
        let ratio = middle(calls) / middle(&ten);
        report.ratio(
            "  ratio to ten",
            ratio,
            if reach.is_empty() { "" } else { "1" },
        );
        let mut queue: Vec<_> = calls.iter().map(|call| call.phase("queue")).collect();
        queue.sort_by(f64::total_cmp);
        report.latency("  ... in the queue", percentile(&queue, 0.5), "");
        report.count("  ... pages that came into being", faults, "a call", "");
    }
    call_all(&many)?;
    let called = settled(&many)?;
    report.count(
        "memory of a function that was called and is at zero again",
        (called - before) / each,
        "bytes",
        "4096",
    );
    Ok(())
}

/// A platform with its first functions; their instances go at once.
fn platform(program: &Path, functions: usize) -> anyhow::Result<Server> {
    let server = Server::fnctl(program, &[])?;
    server.deploy(program, &["examples/echo", "--keep-alive", "0s"])?;
    deploy(&server, 0..functions)?;
    Ok(server)
}

fn name(index: usize) -> String {
    format!("f{index}")
}

/// Deploys the echo example under more names, through the API: its artifact is there already.
fn deploy(server: &Server, indices: std::ops::Range<usize>) -> anyhow::Result<()> {
    let text = ureq::get(server.url("/api/v1/functions/echo/versions"))
        .call()?
        .body_mut()
        .read_to_string()?;
    let versions: serde_json::Value = serde_json::from_str(&text)?;
    let artifact = versions
        .pointer("/0/artifact")
        .and_then(serde_json::Value::as_str)
        .context("the example's digest")?;
    let body =
        serde_json::json!({ "artifact": artifact, "config": { "keep_alive": "0s" } }).to_string();
    let names: Vec<_> = indices.map(name).collect();
    std::thread::scope(|scope| {
        let deployers: Vec<_> = names
            .chunks(names.len().div_ceil(DEPLOYERS).max(1))
            .map(|names| {
                let body = &body;
                scope.spawn(move || -> anyhow::Result<()> {
                    let agent = ureq::Agent::new_with_defaults();
                    for name in names {
                        let url = server.url(&format!("/api/v1/functions/{name}/versions"));
                        let mut answer = agent.post(&url).send(body)?;
                        let events = answer.body_mut().read_to_string()?;
                        ensure!(events.contains("\"deployed\""), "{name}: {events}");
                    }
                    Ok(())
                })
            })
            .collect();
        deployers.into_iter().try_for_each(|deployer| {
            deployer
                .join()
                .map_err(|_| anyhow::anyhow!("a deployer panicked"))?
        })
    })
}

/// Cold starts, spread evenly over the functions, and page faults of the platform for each. Never the same function twice
/// in a row, however few there are: what the scheduler keeps of a function goes a quarter of a second after its last call,
/// and who comes before that is 10 microseconds faster.
fn cold_calls(server: &Server, functions: usize) -> anyhow::Result<(Vec<Timed>, f64)> {
    let before = page_faults(server.pid())?;
    let mut connection = Connection::open(server.address())?;
    let mut calls = Vec::new();
    for turn in 0..CALLS {
        let index = turn * (functions / CALLS).max(1) % functions;
        let call = connection.request("POST", &format!("/fn/{}", name(index)), "x")?;
        if call.start == "cold" {
            calls.push(call);
        }
        // Past the round in which instances without a keep-alive go.
        std::thread::park_timeout(Duration::from_millis(30));
    }
    ensure!(
        calls.len() >= FEW,
        "only {} of the calls were cold",
        calls.len()
    );
    let faults = page_faults(server.pid())? - before;
    Ok((calls, faults / CALLS as f64))
}

/// Pages that the system had to find for a process so far: field 10 of /proc/PID/stat.
fn page_faults(pid: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, after_name) = stat.rsplit_once(')').context("/proc/PID/stat")?;
    let count = after_name.split_whitespace().nth(7);
    Ok(count.context("/proc/PID/stat")?.parse()?)
}

/// Calls each function once.
fn call_all(server: &Server) -> anyhow::Result<()> {
    let mut connection = Connection::open(server.address())?;
    for index in 0..MANY {
        connection.request("POST", &format!("/fn/{}", name(index)), "x")?;
    }
    Ok(())
}

fn sorted(calls: &[Timed]) -> Vec<f64> {
    let mut values: Vec<_> = calls.iter().map(Timed::before_run).collect();
    values.sort_by(f64::total_cmp);
    values
}

/// Resident bytes once the platform is at zero and has given back what it can.
fn settled(server: &Server) -> anyhow::Result<f64> {
    std::thread::park_timeout(Duration::from_secs(3));
    Ok(super::memory::resident(server.pid())? * 1e6)
}
