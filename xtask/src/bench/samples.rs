//! Single cold starts, phase by phase, and the file that keeps them so that their plot can be drawn again.

use super::http::{Connection, Timed};
use super::server::Server;
use super::{load, percentile};
use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Duration;

/// The phases before the guest's first instruction, in their order; docs/request.md says what each is.
pub(crate) const PHASES: [&str; 6] = [
    "queue",
    "artifact",
    "compile",
    "instantiate",
    "model",
    "init",
];

/// What was measured, and where.
#[derive(Serialize, Deserialize)]
pub(crate) struct ColdStarts {
    /// The day, UTC.
    pub(crate) measured: String,
    pub(crate) cores: usize,
    pub(crate) processor: String,
    /// How many runs there were; the one with the middle p50 of the last function is kept.
    pub(crate) runs: usize,
    pub(crate) functions: Vec<Function>,
}

/// One function's cold starts, in the order they were measured; milliseconds.
#[derive(Serialize, Deserialize)]
pub(crate) struct Function {
    pub(crate) name: String,
    /// What was gone when each call came.
    pub(crate) gone: String,
    /// The part of the machine's CPU time that went to other programs meanwhile, 0 to 1.
    pub(crate) others: f64,
    /// As the caller saw it.
    pub(crate) end_to_end: Vec<f64>,
    /// One list for each of the phases.
    pub(crate) phases: Vec<Vec<f64>>,
}

impl Function {
    fn new(name: &str, gone: &str, calls: &[Timed], others: f64) -> Self {
        Self {
            name: name.to_owned(),
            gone: gone.to_owned(),
            others,
            end_to_end: calls
                .iter()
                .map(|call| (call.took.as_secs_f64() * 1e6).round() / 1e3)
                .collect(),
            phases: PHASES
                .iter()
                .map(|phase| calls.iter().map(|call| call.phase(phase)).collect())
                .collect(),
        }
    }

    /// Admission to first instruction, ascending.
    pub(crate) fn before_run(&self) -> Vec<f64> {
        let mut sums: Vec<f64> = (0..self.end_to_end.len())
            .map(|call| self.phases.iter().filter_map(|phase| phase.get(call)).sum())
            .collect();
        sums.sort_by(f64::total_cmp);
        sums
    }
}

impl ColdStarts {
    /// Measures some runs and keeps the middle one.
    pub(crate) fn measure(program: &Path, runs: usize) -> anyhow::Result<Self> {
        let mut measured = Vec::new();
        for run in 1..=runs.max(1) {
            let functions = vec![echo(program, 1_100)?, fraud(program, 101)?];
            for function in &functions {
                let sorted = function.before_run();
                println!(
                    "run {run}: {:<6} p50 {:.3} ms, p99 {:.3} ms, other programs {:.0} %",
                    function.name,
                    percentile(&sorted, 0.5),
                    percentile(&sorted, 0.99),
                    function.others * 100.0
                );
            }
            measured.push(functions);
        }
        measured.sort_by(|one, other| middle(one).total_cmp(&middle(other)));
        let functions = measured.swap_remove((measured.len() - 1) / 2);
        Ok(Self {
            measured: jiff::Timestamp::now().strftime("%Y-%m-%d").to_string(),
            cores: std::thread::available_parallelism()?.get(),
            processor: processor()?,
            runs: runs.max(1),
            functions,
        })
    }

    /// Reads what `write` wrote.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| {
            format!(
                "{} cannot be read; `cargo xtask bench --plot` without --from measures and writes it",
                path.display()
            )
        })?;
        let kept: Self = serde_json::from_str(&text)
            .with_context(|| format!("{} is not a file of cold starts", path.display()))?;
        for function in &kept.functions {
            let calls = function.end_to_end.len();
            ensure!(
                calls > 1
                    && function.phases.len() == PHASES.len()
                    && function.phases.iter().all(|phase| phase.len() == calls),
                "{}: '{}' needs two calls or more and a value of each phase for each",
                path.display(),
                function.name
            );
        }
        Ok(kept)
    }

    /// Keeps every sample, so that the plot can be drawn again.
    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        std::fs::write(path, serde_json::to_string(self)? + "\n")
            .with_context(|| format!("{} cannot be written", path.display()))?;
        println!("kept in {}", path.display());
        Ok(())
    }
}

fn middle(functions: &[Function]) -> f64 {
    functions
        .last()
        .map_or(f64::NAN, |function| percentile(&function.before_run(), 0.5))
}

/// A fresh sandbox for each call, compiled code in memory. The first hundred warm the program up and are not counted.
pub(crate) fn fresh_sandboxes(program: &Path, calls: usize) -> anyhow::Result<(Vec<Timed>, f64)> {
    let server = Server::fnctl(program, &[])?;
    server.deploy(program, &["examples/echo", "--isolation", "request"])?;
    let mut connection = Connection::open(server.address())?;
    let meter = Meter::start(server.pid())?;
    let mut calls: Vec<Timed> = (0..calls)
        .map(|_| connection.request("POST", "/fn/echo", "x"))
        .collect::<Result<_, _>>()?;
    ensure!(
        calls.iter().all(|call| call.start == "cold"),
        "every call should be cold"
    );
    calls.drain(..calls.len().min(100));
    Ok((calls, meter.others()?))
}

/// `fraud` with instance and session gone at each call, compiled code in memory. The first one is not counted.
pub(crate) fn fresh_models(program: &Path, calls: usize) -> anyhow::Result<(Vec<Timed>, f64)> {
    let body = std::fs::read_to_string(crate::root().join("examples/fraud/request.json"))?;
    let server = Server::fnctl(program, &["inference.session_ttl=1ms"])?;
    server.deploy(program, &["examples/fraud", "--keep-alive", "1ms"])?;
    let meter = Meter::start(server.pid())?;
    let mut kept = Vec::new();
    for call in 0..calls {
        // Two rounds of housekeeping: the instance goes in one, its session in the next.
        std::thread::park_timeout(Duration::from_millis(800));
        let timed =
            Connection::open(server.address())?.request("POST", "/fn/fraud", body.trim_end())?;
        // The first one also loads the library.
        if call > 0 {
            ensure!(
                timed.start == "cold" && timed.phase("model") > 0.3,
                "the session should have been gone"
            );
            kept.push(timed);
        }
    }
    Ok((kept, meter.others()?))
}

fn echo(program: &Path, calls: usize) -> anyhow::Result<Function> {
    let (calls, others) = fresh_sandboxes(program, calls)?;
    Ok(Function::new("echo", "sandbox", &calls, others))
}

fn fraud(program: &Path, calls: usize) -> anyhow::Result<Function> {
    let (calls, others) = fresh_models(program, calls)?;
    Ok(Function::new("fraud", "sandbox and model", &calls, others))
}

/// The processor's name as Linux tells it.
fn processor() -> anyhow::Result<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").context("/proc/cpuinfo")?;
    Ok(text
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map(|name| name.trim_start_matches([' ', '\t', ':']).to_owned())
        .unwrap_or_else(|| std::env::consts::ARCH.to_owned()))
}

/// How much of the machine other programs take while a server and this program measure.
struct Meter {
    server: u32,
    ours: f64,
    busy: f64,
    all: f64,
}

impl Meter {
    fn start(server: u32) -> anyhow::Result<Self> {
        let (busy, all) = machine_seconds()?;
        let ours = load::cpu_seconds(server)? + load::cpu_seconds(std::process::id())?;
        Ok(Self {
            server,
            ours,
            busy,
            all,
        })
    }

    fn others(&self) -> anyhow::Result<f64> {
        let now = Self::start(self.server)?;
        let others = (now.busy - self.busy) - (now.ours - self.ours);
        Ok((others / (now.all - self.all).max(0.01)).clamp(0.0, 1.0))
    }
}

/// Busy and all CPU seconds since the machine started: the first line of /proc/stat, in clock ticks of 10 ms.
fn machine_seconds() -> anyhow::Result<(f64, f64)> {
    let stat = std::fs::read_to_string("/proc/stat").context("/proc/stat")?;
    // user, nice, system, idle, iowait, irq, softirq, steal; what guests of ours take is in user already.
    let ticks: Vec<f64> = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .take(8)
        .filter_map(|field| field.parse().ok())
        .collect();
    let all: f64 = ticks.iter().sum();
    let idle: f64 = ticks.iter().skip(3).take(2).sum();
    Ok(((all - idle) / 100.0, all / 100.0))
}
