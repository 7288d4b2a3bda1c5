//! `fnctl policy`: keep-alive policies on traces, simulated by the scheduler's own code. No platform is asked.

use crate::app::App;
use crate::exit::usage;
use crate::output::{Table, Tone};
use crate::policy_plot;
use crate::trace_file::read;
use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use fnctl_core::units::{ByteSize, Period};
use fnctl_platform::policy::{Spec, adaptive};
use fnctl_platform::simulator::generate::{Mix, Recipe};
use fnctl_platform::simulator::sweep::{Family, Sweep};
use fnctl_platform::simulator::trace::{Trace, Trigger};
use fnctl_platform::simulator::{Band, Outcome, RungSettings, Settings, Spread, simulate};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Arguments of `fnctl policy`.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  fnctl policy generate --seed 1 --out T.csv\n  fnctl policy simulate --trace T.csv --policy fixed:10m --policy histogram --policy adaptive\n  fnctl policy compare --trace T.csv\n\ndocs/policies.md says what each policy does."
)]
pub(crate) struct PolicyArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// Replay a trace under each policy: cold starts, added latency, idle memory, evictions.
    #[command(
        after_help = "A policy is fixed:TIME, histogram, adaptive or greedy-dual; docs/policies.md has their parameters.\nTraces: the Azure Functions 2019 invocation counts (day files in order), or timestamp,function,duration.\n\nExamples:\n  fnctl policy simulate --trace T.csv --policy fixed:60s --policy histogram --policy adaptive\n  fnctl policy simulate --trace T.csv --policy adaptive:20m --json\n  fnctl policy simulate --trace d01.csv.gz --trace d02.csv.gz --policy fixed:10m --plot out.svg\n  fnctl policy simulate --trace T.csv --policy greedy-dual --node-memory 8GiB\n  fnctl policy simulate --trace T.csv --cold-cost 2ms --memory 8MiB --session-cost 20ms..2s --session-memory 16MiB..512MiB --policy adaptive --policy adaptive:no-rungs"
    )]
    Simulate(SimulateArgs),
    /// Compare policies at equal idle memory, by class of function.
    #[command(
        after_help = "Every policy is simulated over a range of its parameter; its curve is read at the idle memory of fixed:10m.\n\nExamples:\n  fnctl policy compare --trace T.csv\n  fnctl policy compare --seed 11 --seed 12 --mix azure --functions 400 --hours 96\n  fnctl policy compare --trace T.csv --adaptive adaptive:no-cost --json"
    )]
    Compare(CompareArgs),
    /// Make a seeded trace of the published shape.
    #[command(
        after_help = "The shape is that of \"Serverless in the Wild\" (ATC 2020): docs/policies.md names the figures.\n\nExamples:\n  fnctl policy generate --seed 1 --functions 10000 --hours 24 --out T.csv\n  fnctl policy generate --seed 2 --functions 400 --hours 168 --mix timers --out timers.csv"
    )]
    Generate(GenerateArgs),
}

/// What instances cost, and what holds them.
#[derive(Args, Debug)]
struct World {
    /// Time of a cold start; a range differs between functions, each octave as likely.
    #[arg(long, value_name = "TIME[..TIME]", default_value = "50ms..1s", value_parser = times)]
    cold_cost: Spread,
    /// Memory of an instance; a range differs between functions, each octave as likely.
    #[arg(long, value_name = "SIZE[..SIZE]", default_value = "64MiB..512MiB", value_parser = sizes)]
    memory: Spread,
    /// Time to load a function's model, on top of --cold-cost: tells its session apart from the instance.
    #[arg(long, value_name = "TIME[..TIME]", value_parser = times, requires = "session_memory")]
    session_cost: Option<Spread>,
    /// Memory of a function's model, on top of --memory.
    #[arg(long, value_name = "SIZE[..SIZE]", value_parser = sizes, requires = "session_cost")]
    session_memory: Option<Spread>,
    /// How long a session is kept where the policy leaves that open.
    #[arg(long, value_name = "TIME", default_value = "5m")]
    session_ttl: Period,
    /// Time to load a function's compiled code, on top of --cold-cost: tells its template apart from the instance.
    #[arg(long, value_name = "TIME[..TIME]", value_parser = times, requires = "template_memory")]
    template_cost: Option<Spread>,
    /// Memory of a function's compiled code, on top of --memory.
    #[arg(long, value_name = "SIZE[..SIZE]", value_parser = sizes, requires = "template_cost")]
    template_memory: Option<Spread>,
    /// How long a template is kept where the policy leaves that open.
    #[arg(long, value_name = "TIME", default_value = "10m")]
    template_ttl: Period,
    /// How long an invocation runs that the trace tells no duration of.
    #[arg(long, value_name = "TIME", default_value = "100ms")]
    duration: Period,
    /// Memory of the node; on a full one instances are evicted (greedy-dual). Of instances only: not with --session-cost or
    /// --template-cost.
    #[arg(long, value_name = "SIZE", conflicts_with_all = ["session_cost", "template_cost"])]
    node_memory: Option<ByteSize>,
    /// Most instances of the node.
    #[arg(long, value_name = "COUNT")]
    node_instances: Option<u64>,
}

#[derive(Args, Debug)]
struct SimulateArgs {
    /// A trace, packed with gzip or not; several are read one behind the other: consecutive days.
    #[arg(long, value_name = "FILE", required = true)]
    trace: Vec<PathBuf>,
    /// A policy; may be repeated.
    #[arg(long, value_name = "POLICY", required = true)]
    policy: Vec<String>,
    #[command(flatten)]
    world: World,
    /// Decides what differs between functions, and where in their minute calls come.
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,
    /// Draw cold starts against idle memory, each policy over a range of its parameter.
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

#[derive(Args, Debug)]
struct CompareArgs {
    /// A trace, packed with gzip or not; several are consecutive days. Without one, traces are generated.
    #[arg(long, value_name = "FILE")]
    trace: Vec<PathBuf>,
    /// Seeds of generated traces; with --trace, of what differs between functions.
    #[arg(long, value_name = "NUMBER", default_values_t = [1])]
    seed: Vec<u64>,
    #[command(flatten)]
    shape: Shape,
    #[command(flatten)]
    world: World,
    /// The adaptive policy's other parameters; may be repeated.
    #[arg(long, value_name = "POLICY", default_value = "adaptive")]
    adaptive: Vec<String>,
}

#[derive(Args, Debug)]
struct GenerateArgs {
    /// The same seed makes the same trace.
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    shape: Shape,
    /// Where to write.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// The shape of generated traces.
#[derive(Args, Debug)]
struct Shape {
    /// Functions.
    #[arg(long, value_name = "COUNT", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    functions: u32,
    /// Hours.
    #[arg(long, value_name = "COUNT", default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..=1_600))]
    hours: u32,
    /// Cut the busiest functions to about this many invocations (timers come on top); 100 per function and day if unset.
    #[arg(long, value_name = "COUNT")]
    invocations: Option<u64>,
    /// Which functions there are.
    #[arg(long, value_enum, default_value_t = MixName::Azure)]
    mix: MixName,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum MixName {
    /// As in the paper.
    Azure,
    /// Timers only.
    Timers,
    /// Half timers, half as in the paper.
    HalfTimers,
    /// Nothing on a schedule.
    NoTimers,
}

impl Shape {
    fn recipe(&self, seed: u64) -> Recipe {
        let days = f64::from(self.hours) / 24.0;
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a saturating conversion is meant"
        )]
        let usual = (f64::from(self.functions) * days * 100.0) as u64;
        Recipe {
            seed,
            functions: self.functions,
            hours: self.hours,
            invocations: self.invocations.unwrap_or(usual),
            mix: match self.mix {
                MixName::Azure => Mix::Azure,
                MixName::Timers => Mix::Timers,
                MixName::HalfTimers => Mix::Half,
                MixName::NoTimers => Mix::NoTimers,
            },
        }
    }
}

impl World {
    fn settings(&self, seed: u64) -> Settings {
        Settings {
            cold: self.cold_cost,
            bytes: self.memory,
            session: rung(self.session_cost, self.session_memory, self.session_ttl),
            template: rung(self.template_cost, self.template_memory, self.template_ttl),
            duration: self.duration.duration(),
            node_bytes: self.node_memory.map(ByteSize::bytes),
            node_instances: self.node_instances,
            seed,
            ..Settings::default()
        }
    }
}

/// A rung below the instance, if it is told apart.
fn rung(cold: Option<Spread>, bytes: Option<Spread>, ttl: Period) -> Option<RungSettings> {
    Some(RungSettings {
        cold: cold?,
        bytes: bytes?,
        ttl: ttl.duration(),
    })
}

/// One value, or two with dots between them.
fn spread(text: &str, one: impl Fn(&str) -> Result<f64, String>) -> Result<Spread, String> {
    let (from, to) = text.split_once("..").unwrap_or((text, text));
    let spread = Spread {
        from: one(from)?,
        to: one(to)?,
    };
    if spread.from > 0.0 && spread.from <= spread.to {
        Ok(spread)
    } else {
        Err("it must be more than zero, the smaller end first".to_owned())
    }
}

fn times(text: &str) -> Result<Spread, String> {
    spread(text, |one| {
        one.parse::<Period>()
            .map(|period| period.duration().as_secs_f64())
            .map_err(|error| error.to_string())
    })
}

fn sizes(text: &str) -> Result<Spread, String> {
    spread(text, |one| {
        one.parse::<ByteSize>()
            .map(|size| size.bytes() as f64)
            .map_err(|error| error.to_string())
    })
}

pub(crate) fn run(app: &App, args: &PolicyArgs) -> anyhow::Result<()> {
    match &args.action {
        Action::Simulate(args) => simulate_all(app, args),
        Action::Compare(args) => compare(app, args),
        Action::Generate(args) => generate(app, args),
    }
}

fn specs(names: &[String]) -> anyhow::Result<Vec<Spec>> {
    names
        .iter()
        .map(|name| {
            name.parse()
                .map_err(|error: fnctl_platform::policy::SpecError| usage(error.to_string()))
        })
        .collect()
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn simulate_all(app: &App, args: &SimulateArgs) -> anyhow::Result<()> {
    let specs = specs(&args.policy)?;
    let trace = read(&args.trace, args.seed)?;
    app.out.note(format!(
        "{} invocations of {} functions over {:.1} hours",
        trace.invocations(),
        trace.functions().len(),
        trace.seconds() / 3600.0
    ));
    let settings = args.world.settings(args.seed);
    let mut results = Vec::new();
    for (name, spec) in args.policy.iter().zip(&specs) {
        let outcome = simulate(
            &trace,
            &Settings {
                policy: *spec,
                ..settings
            },
        );
        results.push((name.clone(), outcome));
    }
    if let Some(path) = &args.plot {
        plot(app, path, &trace, &settings, &results)?;
    }
    let values: Vec<Value> = results
        .iter()
        .map(|(name, outcome)| value(name, outcome))
        .collect();
    app.out.show(&values, |page| {
        let mut table = Table::new(&[
            "POLICY",
            "COLD",
            "COLD %",
            "P50 ADDED",
            "P99 ADDED",
            "IDLE GB-HOURS",
            "EVICTIONS",
            "AHEAD",
            "REFUSED",
        ]);
        for (name, outcome) in &results {
            let all = &outcome.all;
            table.row([
                (name.clone(), Tone::Strong),
                (all.cold_starts.to_string(), Tone::Plain),
                (
                    format!("{:.2}", part(all.cold_starts, all.invocations) * 100.0),
                    Tone::Plain,
                ),
                (millis(outcome.added(0.5)), Tone::Plain),
                (millis(outcome.added(0.99)), Tone::Plain),
                (format!("{:.1}", all.idle_gb_hours()), Tone::Plain),
                (all.evictions.to_string(), Tone::Plain),
                (all.started_ahead.to_string(), Tone::Dim),
                (all.refused.to_string(), Tone::Dim),
            ]);
        }
        page.table(table);
    })
}

fn part(some: u64, all: u64) -> f64 {
    some as f64 / all.max(1) as f64
}

fn millis(time: Duration) -> String {
    format!("{:.1}ms", time.as_secs_f64() * 1e3)
}

fn value(name: &str, outcome: &Outcome) -> Value {
    let all = &outcome.all;
    let rounded = |value: f64| (value * 1e3).round() / 1e3;
    json!({
        "policy": name,
        "invocations": all.invocations,
        "functions": all.functions,
        "cold_starts": all.cold_starts,
        "cold_percent": rounded(part(all.cold_starts, all.invocations) * 100.0),
        "made_below": all.made_below,
        "prewarmed_starts": all.prewarmed_starts,
        "started_ahead": all.started_ahead,
        "p50_added_ms": rounded(outcome.added(0.5).as_secs_f64() * 1e3),
        "p99_added_ms": rounded(outcome.added(0.99).as_secs_f64() * 1e3),
        "mean_added_ms": rounded(all.added_seconds * 1e3 / all.invocations.max(1) as f64),
        "idle_gb_hours": rounded(all.idle_gb_hours()),
        "expired": all.expired,
        "evictions": all.evictions,
        "refused": all.refused,
        "peak_bytes": outcome.peak_bytes,
        "history_bytes": outcome.history_bytes,
    })
}

fn plot(
    app: &App,
    path: &Path,
    trace: &Trace,
    settings: &Settings,
    named: &[(String, Outcome)],
) -> anyhow::Result<()> {
    let mut curves = Vec::new();
    for family in Family::ALL {
        let mut sweep = Sweep::default();
        let members = family.members(&adaptive::Params::default());
        sweep.add(&members, trace, settings, threads());
        curves.push((family, sweep));
    }
    let picture = policy_plot::draw(trace, &curves, named)?;
    std::fs::write(path, picture).with_context(|| format!("cannot write {}", path.display()))?;
    app.out.note(format!("drawn in {}", path.display()));
    Ok(())
}

/// A class of functions and its name.
type Class = (String, Box<dyn Fn(Trigger, Band) -> bool>);

fn classes() -> Vec<Class> {
    let mut classes: Vec<Class> = vec![("all".to_owned(), Box::new(|_, _| true))];
    for wanted in Band::ALL {
        let name = format!("called {}", wanted.as_str());
        classes.push((name, Box::new(move |_, band| band == wanted)));
    }
    for wanted in Trigger::ALL {
        let name = wanted.as_str().to_owned();
        classes.push((name, Box::new(move |trigger, _| trigger == wanted)));
    }
    classes
}

fn compare(app: &App, args: &CompareArgs) -> anyhow::Result<()> {
    let variants = specs(&args.adaptive)?;
    let mut bases = Vec::new();
    for (name, spec) in args.adaptive.iter().zip(variants) {
        match spec {
            Spec::Adaptive(params) => bases.push((name.clone(), params)),
            _ => {
                return Err(usage(format!(
                    "--adaptive {name} is not the adaptive policy"
                )));
            }
        }
    }
    let ten = [Spec::Fixed(Some(Duration::from_secs(600)))];
    let (mut reference, mut fixed, mut histogram) =
        (Sweep::default(), Sweep::default(), Sweep::default());
    let mut adaptive: Vec<Sweep> = vec![Sweep::default(); bases.len()];
    let plain = adaptive::Params::default();
    for seed in &args.seed {
        let trace = if args.trace.is_empty() {
            let mut trace = Trace::new(*seed);
            let lines: String = args.shape.recipe(*seed).lines().collect();
            trace
                .read(lines.as_bytes())
                .context("the generated trace")?;
            trace
        } else {
            read(&args.trace, *seed)?
        };
        app.out.note(format!(
            "seed {seed}: {} invocations of {} functions over {:.0} hours; simulating {} policies",
            trace.invocations(),
            trace.functions().len(),
            trace.seconds() / 3600.0,
            1 + Family::Fixed.members(&plain).len()
                + Family::Histogram.members(&plain).len()
                + Family::Adaptive.members(&plain).len() * bases.len()
        ));
        let settings = args.world.settings(*seed);
        let threads = threads();
        reference.add(&ten, &trace, &settings, threads);
        fixed.add(&Family::Fixed.members(&plain), &trace, &settings, threads);
        histogram.add(
            &Family::Histogram.members(&plain),
            &trace,
            &settings,
            threads,
        );
        for (sweep, (_, params)) in adaptive.iter_mut().zip(&bases) {
            sweep.add(
                &Family::Adaptive.members(params),
                &trace,
                &settings,
                threads,
            );
        }
    }
    let ten = reference
        .members()
        .first()
        .context("nothing was simulated")?;
    let all_memory = ten.of(|_, _| true).idle_gb_hours();
    let mut rows = Vec::new();
    for (sweep, (name, _)) in adaptive.iter().zip(&bases) {
        for (class, which) in classes() {
            let counts = ten.of(&which);
            if counts.functions == 0 {
                continue;
            }
            let memory = counts.idle_gb_hours();
            let ratio = |a: Option<f64>, b: Option<f64>| match (a, b) {
                (Some(a), Some(b)) if b > 0.0 => Some((a / b * 1e3).round() / 1e3),
                _ => None,
            };
            let cold = Some(counts.cold_starts as f64);
            let (by_fixed, by_histogram, by_adaptive) = (
                fixed.curve(&which).at(memory),
                histogram.curve(&which).at(memory),
                sweep.curve(&which).at(memory),
            );
            rows.push(json!({
                "adaptive": name,
                "class": class,
                "functions": counts.functions,
                "idle_gb_hours": (memory * 10.0).round() / 10.0,
                "fixed_10m_cold_starts": counts.cold_starts,
                "histogram_to_fixed_10m": ratio(by_histogram, cold),
                "adaptive_to_histogram": ratio(by_adaptive, by_histogram),
                "adaptive_to_fixed_10m": ratio(by_adaptive, cold),
                "adaptive_to_best_fixed": ratio(by_adaptive, by_fixed),
                "adaptive_to_fixed_10m_one_price": ratio(sweep.shared(all_memory, &which), cold),
                "adaptive_to_histogram_waiting": ratio(
                    sweep.waits(&which).at(memory),
                    histogram.waits(&which).at(memory),
                ),
            }));
        }
    }
    app.out.show(&rows, |page| {
        page.line("Cold starts at the idle memory of fixed:10m, as ratios; '-' where a policy needs more memory than that.");
        let mut table = Table::new(&[
            "ADAPTIVE",
            "CLASS",
            "FUNCTIONS",
            "GB-HOURS",
            "FIXED:10M",
            "HISTOGRAM/FIXED",
            "ADAPTIVE/HISTOGRAM",
            "ADAPTIVE/FIXED",
            "ONE PRICE/FIXED",
            "WAITING",
        ]);
        for row in &rows {
            table.row(
                [
                    "adaptive",
                    "class",
                    "functions",
                    "idle_gb_hours",
                    "fixed_10m_cold_starts",
                    "histogram_to_fixed_10m",
                    "adaptive_to_histogram",
                    "adaptive_to_fixed_10m",
                    "adaptive_to_fixed_10m_one_price",
                    "adaptive_to_histogram_waiting",
                ]
                .map(|key| match row.get(key) {
                    Some(Value::String(text)) => text.clone(),
                    Some(Value::Null) | None => "-".to_owned(),
                    Some(other) => other.to_string(),
                }),
            );
        }
        page.table(table);
    })
}

fn generate(app: &App, args: &GenerateArgs) -> anyhow::Result<()> {
    let recipe = args.shape.recipe(args.seed);
    let failed = || format!("cannot write {}", args.out.display());
    let mut file = BufWriter::new(File::create(&args.out).with_context(failed)?);
    for line in recipe.lines() {
        file.write_all(line.as_bytes()).with_context(failed)?;
    }
    file.flush().with_context(failed)?;
    let value = json!({
        "file": args.out.display().to_string(),
        "seed": args.seed,
        "functions": args.shape.functions,
        "minutes": recipe.minutes(),
        "mix": recipe.mix.as_str(),
    });
    app.out.show(&value, |page| {
        page.done(format!(
            "{}: {} functions, {} minutes",
            args.out.display(),
            args.shape.functions,
            recipe.minutes()
        ))
    })
}
