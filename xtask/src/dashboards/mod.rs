//! `cargo xtask dashboards-check`: every expression of deploy/grafana and deploy/prometheus against a real Prometheus that
//! scrapes a real platform under load. Grafana itself is not run: docs/dashboards.md.

mod alerts;
mod breaker;
mod evaluate;
mod files;
mod load;
mod prometheus;
mod promql;

use crate::bench::server::Server;
use crate::{demo, guests, process, setup};
use anyhow::{Context, ensure};
use clap::Args;
use evaluate::{Outcome, Problem};
use files::Dashboard;
use prometheus::{Prometheus, Window};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where the dashboards are.
const DASHBOARDS: &str = "deploy/grafana/dashboards";
/// How long the load may take until every panel has something to show.
const WARM_UP: Duration = Duration::from_secs(45);

/// What to check.
#[derive(Args)]
#[command(
    after_help = "Needs Prometheus and promtool (Debian: apt-get install prometheus); with apt they are unpacked into the cache folder if missing.\n\nExamples:\n  cargo xtask dashboards-check\n  cargo xtask dashboards-check --program target/release/fnctl\n  cargo xtask dashboards-check --dashboards my-dashboards"
)]
pub(crate) struct CheckArgs {
    /// A folder of dashboards to check instead of the repository's.
    #[arg(long)]
    dashboards: Option<PathBuf>,
    /// A built fnctl to run; without it, one is built. The guests are expected to be built then.
    #[arg(long)]
    program: Option<PathBuf>,
}

pub(crate) fn run(args: &CheckArgs) -> anyhow::Result<()> {
    let since = Instant::now();
    let folder = match &args.dashboards {
        Some(folder) => folder.clone(),
        None => crate::root().join(DASHBOARDS),
    };
    let dashboards = files::read(&folder)?;
    let problems = files::problems(&dashboards);
    ensure!(problems.is_empty(), "{}", listed(&problems));
    let programs = prometheus::programs()?;
    alerts::check_files(&programs)?;
    let program = match &args.program {
        Some(program) => program.canonicalize().context("--program")?,
        None => build()?,
    };

    println!("\n== a platform under load, scraped once a second");
    let platform = Server::fnctl(&program, load::SETTINGS)?;
    load::deploy(&platform, &program)?;
    let scratch = tempfile::tempdir()?;
    let rules = scratch.path().join("alerts.yml");
    alerts::write_impatient(&rules)?;
    let prometheus = Prometheus::start(&programs, platform.address(), &rules)?;
    let load = load::Load::start(&platform, &program)?;
    let (window, outcomes) = settled(&prometheus, &dashboards);
    print(&outcomes);
    let mut problems = problems_of(&outcomes);
    report(&dashboards, &outcomes);

    let (rules, wrong) = alerts::check_rules(&prometheus, window)?;
    problems.extend(wrong);
    ensure!(problems.is_empty(), "{}", listed(&problems));
    println!("{} rules name only series that exist", rules.len());
    let fired = alerts::wait_for_load(&prometheus, &rules)?;
    println!("{fired} alerts fired under this load");

    self_test(&prometheus, &dashboards, &folder, window)?;

    drop(load);
    drop(platform);
    alerts::wait_until_firing(
        &prometheus,
        &BTreeSet::from([alerts::DOWN]),
        Duration::from_secs(15),
    )?;
    println!("{} fired when the platform was stopped", alerts::DOWN);
    println!("\nevery expression holds, {} s", since.elapsed().as_secs());
    Ok(())
}

/// The debug build, which the tests use as well.
fn build() -> anyhow::Result<PathBuf> {
    setup::all()?;
    guests::build_examples()?;
    guests::build_fixtures()?;
    process::cargo(&["build", "-p", "fnctl-cli"])?;
    let release = demo::program()?;
    let target = release.ancestors().nth(2).context("a target folder")?;
    Ok(target.join("debug/fnctl"))
}

/// Evaluates once a whole window has been scraped, and again until no panel is empty any more or time is up. A value that
/// cannot be true is not waited for.
fn settled(prometheus: &Prometheus, dashboards: &[Dashboard]) -> (Window, Vec<Outcome>) {
    let since = Instant::now();
    std::thread::park_timeout(Window::LENGTH);
    loop {
        let window = Window::now();
        let outcomes = evaluate::all(prometheus, dashboards, window);
        let is_early = outcomes
            .iter()
            .flat_map(|outcome| &outcome.problems)
            .any(|problem| matches!(problem, Problem::Empty(_)));
        if !is_early || since.elapsed() > WARM_UP {
            return (window, outcomes);
        }
        std::thread::park_timeout(Duration::from_secs(1));
    }
}

/// Proves that the check can fail: a copy of the dashboards with one misspelt metric must, and so must every other
/// misspelling of any metric.
fn self_test(
    prometheus: &Prometheus,
    dashboards: &[Dashboard],
    folder: &Path,
    window: Window,
) -> anyhow::Result<()> {
    let (dashboard, panel, expr) = dashboards
        .iter()
        .flat_map(|dashboard| dashboard.panels.iter().map(move |panel| (dashboard, panel)))
        .find_map(|(dashboard, panel)| Some((dashboard, panel, &panel.targets.first()?.expr)))
        .context("no dashboard has an expression")?;
    let misspelt = promql::misspelt(expr).into_iter().next();
    let misspelt = misspelt.with_context(|| format!("{expr} names no metric"))?;
    let name = format!("{}.json", dashboard.name);
    let text = std::fs::read_to_string(folder.join(&name))?;
    let [from, to] = [expr, &misspelt].map(serde_json::to_string);
    let broken = text.replacen(&from?, &to?, 1);
    ensure!(broken != text, "{name} writes {expr} in another way");
    let copy = tempfile::tempdir()?;
    std::fs::write(copy.path().join(&name), broken)?;
    let outcomes = evaluate::all(prometheus, &files::read(copy.path())?, window);
    let found = problems_of(&outcomes);
    ensure!(
        outcomes
            .iter()
            .all(|one| one.problems.is_empty() != (one.name == panel.title)),
        "a copy of {name} says {misspelt} in '{}', and the check finds:\n{}",
        panel.title,
        listed(&found)
    );
    println!(
        "a copy of {name} with one misspelt metric fails, as it must:\n{}",
        listed(&found)
    );
    let (tried, undetected) = evaluate::undetected(prometheus, dashboards, window);
    ensure!(
        undetected.is_empty(),
        "misspelt metrics that the check does not see:\n{}",
        listed(&undetected)
    );
    println!("each of the {tried} metrics in the panels, misspelt, makes its panel fail");
    Ok(())
}

fn problems_of(outcomes: &[Outcome]) -> Vec<String> {
    outcomes
        .iter()
        .flat_map(|outcome| {
            outcome
                .problems
                .iter()
                .map(move |problem| format!("{}: '{}': {problem}", outcome.dashboard, outcome.name))
        })
        .collect()
}

fn listed(problems: &[String]) -> String {
    let lines: Vec<_> = problems.iter().map(|one| format!("  {one}")).collect();
    lines.join("\n")
}

fn report(dashboards: &[Dashboard], outcomes: &[Outcome]) {
    let failed = outcomes
        .iter()
        .filter(|outcome| !outcome.problems.is_empty())
        .count();
    println!(
        "{} panels, annotations and variables of {} dashboards evaluated, {failed} failed",
        outcomes.len(),
        dashboards.len()
    );
}

fn print(outcomes: &[Outcome]) {
    println!(
        "\n{:<10} {:<33} {:>6} {:>24} {:<12} ok",
        "dashboard", "panel", "series", "values", "unit"
    );
    for outcome in outcomes {
        let range = match outcome.range {
            Some((low, high)) => format!("{} .. {}", short(low), short(high)),
            None => "-".to_owned(),
        };
        println!(
            "{:<10} {:<33} {:>6} {:>24} {:<12} {}",
            outcome.dashboard,
            outcome.name,
            outcome.series,
            range,
            outcome.unit,
            if outcome.problems.is_empty() {
                "ok"
            } else {
                "FAILED"
            }
        );
    }
}

/// A number in at most ten letters.
fn short(value: f64) -> String {
    let size = value.abs();
    if size == 0.0 {
        "0".to_owned()
    } else if (1e-3..1e5).contains(&size) {
        let text = format!("{value:.4}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        format!("{value:.2e}")
    }
}
