//! `cargo xtask`: everything a newcomer runs. Installs what is missing into a cache folder outside the repository.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command for people"
)]

mod bench;
mod ci;
mod compose;
mod dashboards;
mod demo;
mod drawing;
mod flows;
mod gates;
mod guest_languages;
mod guests;
mod process;
mod record;
mod setup;

use clap::{Parser, Subcommand};
use std::path::PathBuf;

/// fnctl's development tasks.
#[derive(Parser)]
#[command(
    name = "cargo xtask",
    after_help = "Examples:\n  cargo xtask demo\n  cargo xtask test\n  cargo xtask test -- scale_to_zero"
)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what is missing: ONNX Runtime, a Wasm target, models. Nothing system-wide.
    Setup,
    /// Build the example functions and put each beside its function.toml.
    BuildExamples {
        /// Rust alone by default; Python, JavaScript and C need python3 and Node.js, and fetch their compilers once.
        #[arg(long, value_enum, default_value = "rust")]
        language: guest_languages::Language,
    },
    /// Set up, build, start a platform, deploy the examples, invoke them, and leave it running.
    Demo {
        /// Where the platform listens.
        #[arg(long, default_value = "127.0.0.1:8080")]
        listen: String,
        /// Stop the platform at the end instead of leaving it running.
        #[arg(long)]
        stop: bool,
    },
    /// Set up, build, and run the whole test suite.
    Test {
        /// Passed on to the test runner.
        #[arg(last = true)]
        rest: Vec<String>,
    },
    /// What CI runs: fmt, clippy, doc, deny, the gates, then the tests.
    Ci,
    /// The gates of the house style alone.
    Gates,
    /// The image and compose.yaml on a real Docker Engine: up, healthy, deploy, invoke, scraped, down, up, data there.
    ComposeTest(compose::ComposeArgs),
    /// Measure against the numbers in docs/specification.md and print a table.
    Bench(bench::BenchArgs),
    /// Record a terminal session with a real platform as docs/images/terminal.svg.
    Record(record::RecordArgs),
    /// Draw the flows of docs/scheduling.md from a real platform under scripted loads.
    Flows(flows::FlowsArgs),
    /// Check the dashboards and alerts with a real Prometheus on a platform under load.
    DashboardsCheck(dashboards::CheckArgs),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().task {
        Task::Setup => setup::all(),
        Task::BuildExamples { language } => build_examples(language),
        Task::Demo { listen, stop } => demo::run(&listen, stop),
        Task::Test { rest } => test(&rest),
        Task::Ci => ci::run(),
        Task::Gates => gates::run(),
        Task::ComposeTest(args) => compose::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Record(args) => record::run(&args),
        Task::Flows(args) => flows::run(&args),
        Task::DashboardsCheck(args) => dashboards::run(&args),
    }
}

/// The repository's root.
fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map(PathBuf::from)
        .unwrap_or_default()
}

fn build_examples(language: guest_languages::Language) -> anyhow::Result<()> {
    use guest_languages::Language;
    if matches!(language, Language::Rust | Language::All) {
        setup::all()?;
        guests::build_examples()?;
    }
    guest_languages::build_examples(language)
}

fn test(rest: &[String]) -> anyhow::Result<()> {
    setup::all()?;
    guests::build_examples()?;
    guests::build_fixtures()?;
    guest_languages::build_examples(guest_languages::Language::All)?;
    guest_languages::install_tools()?;
    // The tests start the real program; it must be there and be this one.
    process::cargo(&["build", "-p", "fnctl-cli"])?;
    let rest: Vec<_> = rest.iter().map(String::as_str).collect();
    if rest.is_empty() {
        guest_languages::test()?;
        process::cargo(&["test", "--doc", "-p", "fnctl-sdk"])?;
        process::cargo(&["test", "--manifest-path", "examples/Cargo.toml", "--lib"])?;
    }
    if process::succeeds("cargo", &["nextest", "--version"]) {
        process::cargo(&[&["nextest", "run", "--workspace"], rest.as_slice()].concat())
    } else {
        process::cargo(
            &[
                &["test", "--workspace", "--lib", "--bins", "--tests"],
                rest.as_slice(),
            ]
            .concat(),
        )
    }
}
