//! `cargo xtask demo`: from nothing to answers.

use crate::{guests, process, setup};
use anyhow::{Context, bail};
use std::fs::File;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What the demo deploys: folder, and the arguments of the invocation it shows.
const EXAMPLES: &[(&str, &[&str])] = &[
    ("echo", &["-d", "hello"]),
    ("counter", &[]),
    ("fraud", &["-d", "@examples/fraud/request.json"]),
    (
        "fraud-stream",
        &["-d", "@examples/fraud-stream/requests.ndjson"],
    ),
    (
        "file-type",
        &["-d", "@examples/file-type/samples/magika_python.bin"],
    ),
    ("embeddings", &["-d", "@examples/embeddings/request.json"]),
    ("sentiment", &["-d", "@examples/sentiment/request.json"]),
    (
        "image-orientation",
        &["-d", "@examples/image-orientation/samples/ocr_line_180.png"],
    ),
    ("speech", &["-d", "@examples/speech/samples/speech16k.wav"]),
];

pub(crate) fn run(listen: &str, stop: bool) -> anyhow::Result<()> {
    let address: SocketAddr = listen
        .parse()
        .context("--listen takes an address and a port, as in 127.0.0.1:8080")?;
    if TcpStream::connect_timeout(&address, Duration::from_millis(300)).is_ok() {
        bail!(
            "something listens on {listen} already; stop it, or choose another address with --listen"
        );
    }
    setup::all()?;
    guests::build_examples()?;
    process::cargo(&["build", "--release", "-p", "fnctl-cli"])?;
    let program = program()?;
    let folder = crate::root().join(".fnctl");
    std::fs::create_dir_all(&folder)?;
    let mut platform = start(&program, listen, &folder)?;
    let shown = show(&program, listen);
    if shown.is_err() || stop {
        terminate(&mut platform)?;
        return shown;
    }
    println!(
        "\nThe platform goes on at http://{listen} as process {}; its log is {}.",
        platform.id(),
        folder.join("serve.log").display()
    );
    println!("Try:   curl -d @examples/fraud/request.json http://{listen}/fn/fraud");
    println!("       {} --server http://{listen} ls", program.display());
    println!("Stop:  kill {}", platform.id());
    Ok(())
}

/// The release build of fnctl.
pub(crate) fn program() -> anyhow::Result<PathBuf> {
    let metadata = process::output("cargo", &["metadata", "--format-version", "1", "--no-deps"])?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata)?;
    let target = metadata
        .get("target_directory")
        .and_then(serde_json::Value::as_str)
        .context("cargo names no target folder")?;
    Ok(Path::new(target).join("release/fnctl"))
}

/// Starts a platform and waits until it answers.
pub(crate) fn start(program: &Path, listen: &str, folder: &Path) -> anyhow::Result<Child> {
    let log = File::create(folder.join("serve.log"))?;
    let mut platform = Command::new(program)
        .args(["serve", "--listen", listen, "--data"])
        .arg(folder.join("data"))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("{} cannot be started", program.display()))?;
    let until = Instant::now() + Duration::from_secs(30);
    while !process::succeeds(
        "curl",
        &[
            "--silent",
            "--fail",
            "--max-time",
            "1",
            &format!("http://{listen}/readyz"),
        ],
    ) {
        if let Some(status) = platform.try_wait()? {
            bail!(
                "the platform ended with {status}; see {}",
                folder.join("serve.log").display()
            );
        }
        if Instant::now() > until {
            terminate(&mut platform)?;
            bail!(
                "the platform was not ready within 30 seconds; see {}",
                folder.join("serve.log").display()
            );
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
    Ok(platform)
}

/// Asks a platform to stop and waits for it.
pub(crate) fn terminate(platform: &mut Child) -> anyhow::Result<()> {
    process::run("kill", &[&platform.id().to_string()])?;
    platform.wait()?;
    Ok(())
}

fn show(program: &Path, listen: &str) -> anyhow::Result<()> {
    let program = program.display().to_string();
    let server = format!("http://{listen}");
    for (example, _) in EXAMPLES {
        println!("\n$ fnctl deploy examples/{example}");
        process::run(
            &program,
            &[
                "--server",
                &server,
                "deploy",
                &format!("examples/{example}"),
            ],
        )?;
    }
    let mut rows = Vec::new();
    for (example, arguments) in EXAMPLES {
        println!("\n$ fnctl invoke {example} {}", arguments.join(" "));
        let invoke = [&["--server", &server, "invoke", "-v", example], *arguments].concat();
        let mut times = Vec::new();
        for turn in 0..2 {
            let output = Command::new(&program)
                .args(&invoke)
                .current_dir(crate::root())
                .output()?;
            let notes = String::from_utf8_lossy(&output.stderr).into_owned();
            if !output.status.success() {
                bail!("{example} did not answer: {notes}");
            }
            if turn == 0 {
                let answer = String::from_utf8_lossy(&output.stdout).into_owned();
                let short: String = answer.trim_end().chars().take(120).collect();
                println!(
                    "{short}{}",
                    if short.len() < answer.trim_end().len() {
                        "..."
                    } else {
                        ""
                    }
                );
            }
            times.push(anatomy(&notes));
        }
        rows.push((*example, times));
    }
    println!(
        "\n{:<18} {:>10} {:>12}   phases of the cold start (ms)",
        "function", "cold (ms)", "warm (ms)"
    );
    for (example, times) in rows {
        let [(_, cold, phases), (_, warm, _)] = times.as_slice() else {
            continue;
        };
        println!("{example:<18} {cold:>10.2} {warm:>12.2}   {phases}");
    }
    Ok(())
}

/// Start kind, total milliseconds and the phases that took any time, from `fnctl invoke -v`.
fn anatomy(notes: &str) -> (String, f64, String) {
    let value = |name: &str| {
        notes
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let timing = value("server-timing");
    let phases: Vec<(&str, f64)> = timing
        .split(", ")
        .filter_map(|entry| {
            entry
                .split_once(";dur=")
                .and_then(|(name, ms)| Some((name, ms.parse().ok()?)))
        })
        .collect();
    let total = phases.iter().map(|(_, ms)| ms).sum();
    let text: Vec<_> = phases
        .iter()
        .filter(|(_, ms)| *ms >= 0.001)
        .map(|(name, ms)| format!("{name} {ms:.2}"))
        .collect();
    (value("x-fnctl-start"), total, text.join(", "))
}
