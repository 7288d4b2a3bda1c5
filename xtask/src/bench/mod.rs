//! `cargo xtask bench`: the numbers of docs/specification.md, measured on this machine, peers in the same run.
//!
//! Every figure is a median over rounds; throughput comes from wrk beside the server, so both share the machine's cores.

mod cold;
mod http;
mod inference_host;
mod load;
mod many;
mod memory;
mod overhead;
mod overload;
mod plot;
mod report;
mod samples;
pub(crate) mod server;

use crate::{demo, guests, process, setup};
use anyhow::{Context, ensure};
use clap::Args;
use report::Report;
use samples::ColdStarts;
use server::Server;
use std::path::PathBuf;

/// What to measure.
#[derive(Args)]
#[command(
    after_help = "Needs wrk, but not for --plot. Peers are measured if they are there: --wasmtime PATH, and --node for fastify + onnxruntime-node (npm).\n\nExamples:\n  cargo xtask bench\n  cargo xtask bench --rounds 5 --seconds 5 --wasmtime ~/.cargo/bin/wasmtime --node\n  cargo xtask bench --only cold,many\n  cargo xtask bench --inference-host\n  cargo xtask bench --plot\n  cargo xtask bench --plot --from bench/cold-start.json"
)]
pub(crate) struct BenchArgs {
    /// Seconds of load per round.
    #[arg(long, default_value_t = 4)]
    seconds: u32,
    /// Seconds of overload.
    #[arg(long, default_value_t = 60)]
    overload_seconds: u32,
    /// Rounds per figure; the median is reported.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// A wasmtime program, to measure `wasmtime serve` beside fnctl.
    #[arg(long)]
    wasmtime: Option<PathBuf>,
    /// Measure Node with fastify and onnxruntime-node on the same model.
    #[arg(long)]
    node: bool,
    /// Measure these parts alone; the table is printed and not kept.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Measure cold starts alone, one by one; keep them in bench/cold-start.json and draw docs/images/cold-start.svg.
    #[arg(long, conflicts_with_all = ["wasmtime", "node"])]
    plot: bool,
    /// Measure the inference host alone: against in-process, and killed.
    #[arg(long, conflicts_with_all = ["wasmtime", "node", "plot"])]
    inference_host: bool,
    /// Draw these samples again instead of measuring.
    #[arg(long, requires = "plot", conflicts_with = "program")]
    from: Option<PathBuf>,
    /// Measure this release build of fnctl, with the examples as they lie there, instead of building both.
    #[arg(long)]
    program: Option<PathBuf>,
}

/// A part of the measurements.
#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Requests a second beside the peers.
    Throughput,
    /// What logs and traces cost.
    Overhead,
    /// Cold starts.
    Cold,
    /// Resident memory.
    Memory,
    /// Ten thousand functions.
    Many,
    /// Five times the capacity of a function.
    Overload,
}

pub(crate) fn run(args: &BenchArgs) -> anyhow::Result<()> {
    if args.plot {
        return plot(args);
    }
    ensure!(
        process::succeeds("sh", &["-c", "command -v wrk"]),
        "wrk is missing; install it with your package manager (Debian: apt-get install wrk)"
    );
    let program = program(args)?;
    let mut report = Report::default();

    let wanted = |part: Part| args.only.is_empty() || args.only.contains(&part);
    if wanted(Part::Throughput) {
        if args.inference_host {
            inference_host::measure(&program, args.rounds, args.seconds, &mut report)?;
            report.print();
            return report.write(&crate::root().join("bench/inference-host.json"));
        }
        throughput(args, &program, &mut report)?;
    }
    if wanted(Part::Overhead) {
        overhead::measure(&program, args.rounds, args.seconds, &mut report)?;
    }
    if wanted(Part::Cold) {
        cold::measure(&program, &mut report)?;
    }
    if wanted(Part::Memory) {
        memory::measure(&program, &mut report)?;
    }
    if wanted(Part::Many) {
        many::measure(&program, &mut report)?;
    }
    if wanted(Part::Overload) {
        overload::measure(&program, args.overload_seconds, &mut report)?;
    }
    report.print();
    // A part of the rows does not replace all of them.
    if args.only.is_empty() {
        report.write(&crate::root().join("bench/results.json"))?;
    }
    Ok(())
}

/// What is measured.
fn program(args: &BenchArgs) -> anyhow::Result<PathBuf> {
    if let Some(program) = &args.program {
        return program
            .canonicalize()
            .with_context(|| format!("{} is not there", program.display()));
    }
    setup::all()?;
    guests::build_examples()?;
    process::cargo(&["build", "--release", "-p", "fnctl-cli"])?;
    demo::program()
}

/// The plot of cold starts, measured now or before.
fn plot(args: &BenchArgs) -> anyhow::Result<()> {
    let samples = if let Some(path) = &args.from {
        ColdStarts::read(path)?
    } else {
        let samples = ColdStarts::measure(&program(args)?, args.rounds)?;
        samples.write(&crate::root().join("bench/cold-start.json"))?;
        samples
    };
    let path = crate::root().join("docs/images/cold-start.svg");
    std::fs::create_dir_all(path.parent().context("a path without a folder")?)?;
    std::fs::write(&path, plot::draw(&samples)?)
        .with_context(|| format!("{} cannot be written", path.display()))?;
    println!("drawn in {}", path.display());
    Ok(())
}

fn throughput(
    args: &BenchArgs,
    program: &std::path::Path,
    report: &mut Report,
) -> anyhow::Result<()> {
    let server = Server::fnctl(program, &[])?;
    server.deploy(program, &["examples/echo"])?;
    server.deploy(
        program,
        &[
            "examples/echo",
            "--name",
            "echo-fresh",
            "--isolation",
            "request",
        ],
    )?;
    server.deploy(program, &["examples/fraud"])?;
    let peer = match &args.wasmtime {
        Some(wasmtime) => Some((
            Server::wasmtime(wasmtime, &["--max-instance-reuse-count", "1000"])?,
            Server::wasmtime(wasmtime, &[])?,
        )),
        None => None,
    };
    let node = if args.node {
        Some(Server::node()?)
    } else {
        None
    };

    for (name, path, connections) in [
        ("echo, reuse", "/fn/echo", 32),
        ("echo, reuse", "/fn/echo", 1),
        ("echo, fresh sandbox", "/fn/echo-fresh", 32),
        ("echo, fresh sandbox", "/fn/echo-fresh", 1),
    ] {
        let target = load::Target {
            url: server.url(path),
            connections,
            body: None,
            pid: server.pid(),
        };
        let ours = |seconds| load::run(&target, seconds);
        let theirs = peer
            .as_ref()
            .map(|(reuse, fresh)| if name.contains("fresh") { fresh } else { reuse })
            .map(|peer| load::Target {
                url: peer.url("/"),
                connections,
                body: None,
                pid: peer.pid(),
            });
        let figures = load::side_by_side(args.rounds, args.seconds, ours, theirs.as_ref())?;
        report.throughput(
            &format!("{name}, {connections} connection(s)"),
            &figures,
            "wasmtime serve",
        );
    }
    let body = std::fs::read_to_string(crate::root().join("examples/fraud/request.json"))
        .context("the sample request")?;
    for connections in [1, 16] {
        let target = load::Target {
            url: server.url("/fn/fraud"),
            connections,
            body: Some(body.clone()),
            pid: server.pid(),
        };
        let theirs = node.as_ref().map(|node| load::Target {
            url: node.url("/"),
            connections,
            body: Some(body.clone()),
            pid: node.pid(),
        });
        let figures = load::side_by_side(
            args.rounds,
            args.seconds,
            |seconds| load::run(&target, seconds),
            theirs.as_ref(),
        )?;
        report.throughput(
            &format!("fraud, warm, {connections} connection(s)"),
            &figures,
            "fastify + onnxruntime-node",
        );
    }
    Ok(())
}

/// The middle value, or the lower of the two in the middle.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    percentile(&values, 0.5)
}

/// The value below which this part of the sorted values lies.
pub(crate) fn percentile(sorted: &[f64], part: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index into a short list"
    )]
    let index = (last as f64 * part).floor() as usize;
    sorted.get(index).copied().unwrap_or(f64::NAN)
}
