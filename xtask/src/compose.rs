//! `cargo xtask compose-test`: the image and compose.yaml on a real Docker Engine, from a build to data that survives.
//!
//! Everything happens in a compose project of its own, on free ports, and is removed at the end, whatever came of it.

mod engine;

use crate::{demo, guests, process, setup};
use anyhow::{Context, bail, ensure};
use clap::Args;
use engine::{Engine, Scale};
use serde_json::Value;
use std::path::Path;
use std::time::{Duration, Instant};

/// Most bytes of the image, uncompressed.
const MAX_IMAGE: u64 = 150_000_000;
/// Most time from a container's start to healthy.
const MAX_START: Duration = Duration::from_secs(15);
/// Most time for Prometheus to have scraped; its interval is 15 seconds.
const SCRAPED_WITHIN: Duration = Duration::from_secs(60);
/// The image that is tested; it is kept, so that its layers are there the next time.
const IMAGE: &str = "fnctl:compose-test";
/// The examples in the image, which deploy/Dockerfile builds as well.
const EXAMPLES: [&str; 2] = ["echo", "fraud"];

/// What to test, and with which images.
#[derive(Args, Debug)]
pub(crate) struct ComposeArgs {
    /// Use this machine's release build of fnctl instead of compiling in the image.
    #[arg(long)]
    prebuilt: bool,
    /// Where no image can be pulled: stand-ins made of Debian's packages (needs mmdebstrap), and no Grafana.
    #[arg(long)]
    standin: bool,
}

/// What was measured, and what it may be at most.
struct Row(&'static str, String, &'static str);

pub(crate) fn run(args: &ComposeArgs) -> anyhow::Result<()> {
    ensure!(
        process::succeeds("docker", &["version"])
            && process::succeeds("docker", &["compose", "version"]),
        "this needs a running Docker Engine and the compose plugin: `docker version` and `docker compose version` must both succeed"
    );
    setup::all()?;
    if args.prebuilt {
        put_prebuilt()?;
    }
    if args.standin {
        println!("\n== stand-in images");
        let rust = if args.prebuilt { "" } else { "rust" };
        let sysroot = setup::cache()?.join("wasm-sysroot").display().to_string();
        process::run("bash", &["xtask/compose-standins.sh", rust, &sysroot])?;
    }
    let mut rows = Vec::new();
    build(args, &mut rows)?;
    let engine = Engine::new(IMAGE, args.standin)?;
    let outcome = walk(&engine, &mut rows);
    if outcome.is_err() {
        engine.tell_logs();
    }
    let cleaned = engine.remove();
    println!("\n{:<56} {:>14}   reach", "what", "measured");
    for Row(what, measured, reach) in &rows {
        println!("{what:<56} {measured:>14}   {reach}");
    }
    if args.standin {
        println!(
            "\nNot run: Grafana (no image, nothing to stand in for it). Prometheus and Alertmanager were Debian's, the base images were made here."
        );
    }
    outcome.and(cleaned)
}

/// Puts this machine's release build and the examples where the target `prebuilt` takes them from.
fn put_prebuilt() -> anyhow::Result<()> {
    guests::build_examples()?;
    process::cargo(&["build", "--release", "-p", "fnctl-cli"])?;
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => bail!("there is no image for {other}"),
    };
    let dist = crate::root().join("deploy/dist");
    process::install(
        &demo::program()?,
        &dist.join(format!("fnctl-{architecture}")),
    )?;
    for example in EXAMPLES {
        let from = crate::root().join("examples").join(example);
        let to = dist.join("examples").join(example);
        if to.exists() {
            std::fs::remove_dir_all(&to)?;
        }
        put_example(&from, &to)?;
    }
    Ok(())
}

/// Copies what a deploy needs of an example: not what it was built from.
fn put_example(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (name, place) = (entry.file_name(), to.join(entry.file_name()));
        if name == "src" || name == "Cargo.toml" {
            continue;
        }
        if entry.path().is_dir() {
            put_example(&entry.path(), &place)?;
        } else {
            std::fs::copy(entry.path(), place)?;
        }
    }
    Ok(())
}

/// Builds the image, and again to see what the layers save.
fn build(args: &ComposeArgs, rows: &mut Vec<Row>) -> anyhow::Result<()> {
    let mut arguments = vec![
        "build",
        "--quiet",
        "--file",
        "deploy/Dockerfile",
        "--tag",
        IMAGE,
    ];
    if args.standin {
        arguments.extend([
            "--build-arg",
            "DEBIAN_IMAGE=fnctl-standin/debian",
            "--build-arg",
            "RUST_IMAGE=fnctl-standin/rust",
        ]);
    }
    if args.prebuilt {
        arguments.extend(["--target", "prebuilt"]);
    }
    arguments.push(".");
    let from = if args.prebuilt {
        "this machine's binary"
    } else {
        "source"
    };
    println!("\n== the image, from {from}");
    for what in [
        "build of the image, as found",
        "build of the image, layers cached",
    ] {
        let started = Instant::now();
        process::run("docker", &arguments)?;
        rows.push(Row(what, seconds(started.elapsed()), ""));
    }
    Ok(())
}

fn walk(engine: &Engine, rows: &mut Vec<Row>) -> anyhow::Result<()> {
    let size: u64 = engine
        .docker(&["image", "inspect", "--format", "{{.Size}}", IMAGE])?
        .parse()?;
    rows.push(Row(
        "size of the image",
        format!("{:.1} MB", size as f64 / 1e6),
        "at most 150 MB",
    ));
    ensure!(
        size <= MAX_IMAGE,
        "the image has {size} bytes, more than {MAX_IMAGE}"
    );

    println!("\n== what README.md says under \"With Docker\"");
    let started = Instant::now();
    let [up, rest @ ..] = &readme()?[..] else {
        bail!("README.md has no commands under \"With Docker\"");
    };
    engine.types(up)?;
    rows.push(Row(
        "up, until every service is healthy",
        seconds(started.elapsed()),
        "",
    ));
    healthy(engine, "start of fnctl to healthy, empty", rows)?;
    let mut answers = Vec::new();
    for command in rest {
        answers.push(engine.types(command)?);
    }
    rows.push(Row(
        "first command to the last one's answer",
        seconds(started.elapsed()),
        "",
    ));
    let is_fraud = |answer: &String| {
        serde_json::from_str(answer)
            .is_ok_and(|answer: Value| answer.get("fraud").and_then(Value::as_bool) == Some(true))
    };
    ensure!(
        answers.iter().filter(|answer| is_fraud(answer)).count() >= 2,
        "a payment that is a fraud, sent with curl and with fnctl, was answered with {answers:?}"
    );
    locked(engine)?;

    println!("\n== deploy and invoke");
    let token = engine.fnctl(&["token"])?;
    let refused = engine.stranger(&["/usr/bin/fnctl", "deploy", "/examples/echo"])?;
    ensure!(
        refused.status.code() == Some(4),
        "a deploy without the token was not refused: {refused:?}"
    );
    engine.fnctl(&["deploy", "/examples/echo"])?;
    let echoed = engine.fnctl(&["invoke", "echo", "-d", "hello"])?;
    ensure!(echoed == "hello", "echo answered {echoed}");
    let invoke = || engine.fnctl(&["invoke", "fraud", "-d", "@/examples/fraud/request.json"]);
    let first = invoke()?;
    println!("{first}");

    println!("\n== Prometheus");
    let took = scraped(engine, 1)?;
    rows.push(Row(
        "fraud's invocations in Prometheus, after",
        seconds(took),
        "",
    ));
    let rules = engine.prometheus("rules")?;
    let alerts = rules
        .pointer("/data/groups")
        .and_then(Value::as_array)
        .map_or(0, Vec::len);
    ensure!(alerts > 0, "Prometheus has no rules: {rules}");
    let managers = engine.prometheus("alertmanagers")?;
    let active = managers
        .pointer("/data/activeAlertmanagers")
        .and_then(Value::as_array)
        .map_or(0, Vec::len);
    ensure!(
        active == 1,
        "Prometheus does not know Alertmanager: {managers}"
    );
    println!("{alerts} groups of rules, {active} Alertmanager");

    println!("\n== down and up again");
    let started = Instant::now();
    engine.compose(&["down"])?;
    rows.push(Row("down", seconds(started.elapsed()), ""));
    engine.up(Scale::One)?;
    healthy(engine, "start of fnctl to healthy, with data", rows)?;
    let again = invoke()?;
    ensure!(
        again == first,
        "after a restart the answer is {again}, before it was {first}"
    );
    ensure!(
        engine.fnctl(&["token"])? == token,
        "the restart changed the token"
    );
    println!("{again}");
    rows.push(Row(
        "function, answer and token after down and up",
        "the same".into(),
        "",
    ));

    println!("\n== two of them");
    engine.compose(&["down"])?;
    engine.up(Scale::Two)?;
    let found = scraped_targets(engine, 2)?;
    rows.push(Row(
        "targets that Prometheus finds with --scale fnctl=2",
        found.to_string(),
        "2",
    ));
    Ok(())
}

/// The commands of README.md's first block under "With Docker".
fn readme() -> anyhow::Result<Vec<String>> {
    let text = std::fs::read_to_string(crate::root().join("README.md"))?;
    let (_, section) = text
        .split_once("## With Docker")
        .context("README.md has no section \"With Docker\"")?;
    let block = section
        .split("```sh\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next())
        .context("the section has no commands")?;
    Ok(block.lines().map(str::to_owned).collect())
}

/// Notes how long the platform's container took, by the Engine's own clock.
fn healthy(engine: &Engine, what: &'static str, rows: &mut Vec<Row>) -> anyhow::Result<()> {
    let id = engine.container("fnctl")?;
    let state = engine.docker(&["inspect", "--format", "{{json .State}}", &id])?;
    let state: Value = serde_json::from_str(&state)?;
    let first = state
        .pointer("/Health/Log")
        .and_then(Value::as_array)
        .and_then(|log| {
            log.iter()
                .find(|probe| probe.get("ExitCode") == Some(&Value::from(0)))
        })
        .with_context(|| format!("no health check succeeded: {state}"))?;
    let time = |value: Option<&Value>| -> anyhow::Result<f64> {
        let text = value.and_then(Value::as_str).context("a time is missing")?;
        process::output("date", &["--date", text, "+%s.%N"])?
            .trim()
            .parse()
            .context("no time")
    };
    let took = time(first.get("End"))? - time(state.get("StartedAt"))?;
    let took = Duration::from_secs_f64(took.max(0.0));
    rows.push(Row(what, seconds(took), "at most 15 s"));
    ensure!(
        took <= MAX_START,
        "fnctl took {took:?} until it was healthy"
    );
    Ok(())
}

/// The container has no rights: shown by what it cannot do, not by what it was told.
fn locked(engine: &Engine) -> anyhow::Result<()> {
    println!("\n== the container's rights");
    let id = engine.container("fnctl")?;
    let user = engine.docker(&["inspect", "--format", "{{.Config.User}}", &id])?;
    let uid = user.split(':').next().unwrap_or_default().to_owned();
    ensure!(
        uid.parse::<u32>().is_ok_and(|uid| uid > 0),
        "the image's user is {user}, no number above 0"
    );
    let processes = engine.docker(&["top", &id, "-o", "uid,pid,args"])?;
    ensure!(
        processes
            .lines()
            .skip(1)
            .all(|line| line.split_whitespace().next() == Some(uid.as_str())),
        "a process of the container has another user: {processes}"
    );
    for (folder, must) in [("/elsewhere", false), ("/tmp/elsewhere", true)] {
        // `serve` makes its data folder before it listens; here the address is one that it cannot have.
        let output = engine.exec(&[
            "/usr/bin/fnctl",
            "serve",
            "--data",
            folder,
            "--listen",
            "192.0.2.1:1",
        ])?;
        let readonly = output.contains("Read-only file system");
        ensure!(readonly != must, "writing to {folder}: {output}");
    }
    println!("uid {uid}, root file system read-only, /tmp writable");
    Ok(())
}

/// Waits until Prometheus knows an invocation of fraud, and says how long it took.
fn scraped(engine: &Engine, targets: usize) -> anyhow::Result<Duration> {
    let started = Instant::now();
    scraped_targets(engine, targets)?;
    loop {
        let found =
            engine.query("sum(fnctl_invocations_total{job=\"fnctl\",function=\"fraud\"})")?;
        if found.first().is_some_and(|count| *count >= 1.0) {
            return Ok(started.elapsed());
        }
        ensure!(
            started.elapsed() < SCRAPED_WITHIN,
            "Prometheus has no invocation of fraud after {SCRAPED_WITHIN:?}"
        );
        std::thread::park_timeout(Duration::from_millis(500));
    }
}

/// Waits until so many platforms are up for Prometheus.
fn scraped_targets(engine: &Engine, targets: usize) -> anyhow::Result<usize> {
    let started = Instant::now();
    loop {
        let up = engine.query("up{job=\"fnctl\"} == 1")?.len();
        if up == targets {
            return Ok(up);
        }
        ensure!(
            started.elapsed() < SCRAPED_WITHIN,
            "Prometheus sees {up} platform(s), not {targets}, after {SCRAPED_WITHIN:?}"
        );
        std::thread::park_timeout(Duration::from_millis(500));
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}
