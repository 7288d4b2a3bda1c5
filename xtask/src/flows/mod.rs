//! `cargo xtask flows`: the pictures of docs/scheduling.md. Each is a real platform under a scripted load, watched
//! through `GET activity` as `fnctl top` does.

mod caller;
mod picture;
mod scenario;

use crate::bench::server::Server;
use crate::{guests, process};
use anyhow::Context;
use caller::{Answer, Callers};
use clap::Args;
use scenario::{SCENARIOS, Scenario};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Time between two looks at the platform.
const LOOK: Duration = Duration::from_millis(50);

/// What to draw.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  cargo xtask flows\n  cargo xtask flows --only burst --program target/release/fnctl"
)]
pub(crate) struct FlowsArgs {
    /// A built fnctl to run; without it, one is built, and the guests too.
    #[arg(long)]
    program: Option<PathBuf>,
    /// One scenario alone.
    #[arg(long)]
    only: Option<String>,
}

/// What was seen of a scenario.
pub(crate) struct Seen {
    pub(crate) looks: Vec<Look>,
    pub(crate) answers: Vec<Answer>,
}

/// The function at one moment.
pub(crate) struct Look {
    /// Seconds since the scenario began.
    pub(crate) at: f64,
    pub(crate) idle: u64,
    pub(crate) busy: u64,
    pub(crate) starting: u64,
    pub(crate) queued: u64,
}

pub(crate) fn run(args: &FlowsArgs) -> anyhow::Result<()> {
    let program = match &args.program {
        Some(program) => program.canonicalize().context("--program")?,
        None => {
            crate::setup::all()?;
            guests::build_fixtures()?;
            process::cargo(&["build", "--release", "-p", "fnctl-cli"])?;
            crate::root().join("target/release/fnctl")
        }
    };
    let wanted: Vec<_> = SCENARIOS
        .iter()
        .filter(|scenario| args.only.as_ref().is_none_or(|only| only == scenario.name))
        .collect();
    anyhow::ensure!(!wanted.is_empty(), "no scenario has this name");
    for scenario in wanted {
        let seen = watch(&program, scenario)?;
        let path = crate::root().join(format!("docs/images/flow-{}.svg", scenario.name));
        std::fs::write(&path, picture::draw(scenario, &seen)?)?;
        println!("{}: {}", scenario.name, picture::summary(&seen));
    }
    Ok(())
}

/// Runs a scenario against a platform of its own.
fn watch(program: &Path, scenario: &Scenario) -> anyhow::Result<Seen> {
    let platform = Server::fnctl(program, &["worker.max_instances=64"])?;
    let folder = tempfile::tempdir()?;
    let guest = crate::root().join("tests/fixtures/guests/probe.wasm");
    std::fs::write(
        folder.path().join("function.toml"),
        format!(
            "name = \"probe\"\nartifact = {:?}\n{}",
            guest.display().to_string(),
            scenario.config
        ),
    )?;
    platform.deploy(program, &[&folder.path().display().to_string()])?;
    if scenario.begins_warm {
        let _ = ureq::get(platform.url("/fn/probe/count")).call()?;
    }
    let activity = platform.url("/api/v1/activity");
    let began = Instant::now();
    let callers = Callers::start(&platform.url("/fn/probe"), scenario, began);
    let mut looks = Vec::new();
    let whole = scenario.length();
    while began.elapsed() < whole {
        let at = began.elapsed().as_secs_f64();
        let text = ureq::get(&activity).call()?.body_mut().read_to_string()?;
        let value: serde_json::Value = serde_json::from_str(&text)?;
        let count = |path: &str| {
            let count = value.pointer(&format!("/functions/probe/{path}"));
            count.and_then(serde_json::Value::as_u64).unwrap_or(0)
        };
        looks.push(Look {
            at,
            idle: count("instances/idle"),
            busy: count("instances/busy"),
            starting: count("instances/starting"),
            queued: count("queued"),
        });
        std::thread::park_timeout(LOOK);
    }
    Ok(Seen {
        looks,
        answers: callers.join(),
    })
}
