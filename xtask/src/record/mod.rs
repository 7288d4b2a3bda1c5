//! `cargo xtask record`: a terminal session with a real platform, as the picture docs/images/terminal.svg.
//!
//! Every command runs in a pseudo-terminal of its own (`script` of util-linux), and what it wrote is what is drawn; only the
//! prompt in front of it and the pace of the animation are ours.

mod screen;
mod svg;

use crate::{demo, guests, process, setup};
use anyhow::{Context, bail, ensure};
use clap::Args;
use screen::Line;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Columns of the terminal.
pub(crate) const COLUMNS: u16 = 100;
/// More rows than any of the commands prints.
const ROWS: u16 = 60;
/// The address that the pictures show.
const LISTEN: &str = "127.0.0.1:8080";

/// The session: what is typed, and whether it is to succeed.
const SESSION: &[(&str, bool)] = &[
    ("fnctl deploy examples/fraud", true),
    (
        "fnctl invoke fraud -d @examples/fraud/request.json --stats",
        true,
    ),
    (
        "fnctl deploy examples/fraud --env THRESHOLD=0.999 --quiet",
        true,
    ),
    ("fnctl invoke fraud -d @examples/fraud/request.json", true),
    ("fnctl rollback fraud", true),
    ("fnctl ls", true),
    ("fnctl logs fraud --tail 2", true),
    ("fnctl invoke frad", false),
];

/// What to record.
#[derive(Args)]
#[command(
    after_help = "Needs `script` of util-linux (part of every Linux distribution) and port 8080 for a moment.\n\nExamples:\n  cargo xtask record\n  cargo xtask record --program target/debug/fnctl --output /tmp/terminal.svg"
)]
pub(crate) struct RecordArgs {
    /// Record this build of fnctl, with the examples as they lie there, instead of building both.
    #[arg(long)]
    program: Option<PathBuf>,
    /// Where the picture goes.
    #[arg(long, default_value = "docs/images/terminal.svg")]
    output: PathBuf,
}

/// A command of the session and what it printed.
pub(crate) struct Step {
    pub(crate) command: &'static str,
    pub(crate) took: Duration,
    pub(crate) lines: Vec<Line>,
}

pub(crate) fn run(args: &RecordArgs) -> anyhow::Result<()> {
    ensure!(
        process::succeeds("script", &["--version"]),
        "`script` is missing; install util-linux with your package manager"
    );
    let address: SocketAddr = LISTEN.parse()?;
    if TcpStream::connect_timeout(&address, Duration::from_millis(300)).is_ok() {
        bail!("something listens on {LISTEN} already; stop it, as the picture shows that address");
    }
    let program = match &args.program {
        Some(program) => program
            .canonicalize()
            .with_context(|| format!("{} is not there", program.display()))?,
        None => {
            setup::all()?;
            guests::build_examples()?;
            process::cargo(&["build", "--release", "-p", "fnctl-cli"])?;
            demo::program()?
        }
    };
    let folder = tempfile::tempdir()?;
    let mut platform = demo::start(&program, LISTEN, folder.path())?;
    let session = record(&program, folder.path());
    demo::terminate(&mut platform)?;
    let session = session?;
    tells_nothing_of_this_machine(&session, folder.path())?;
    let output = crate::root().join(&args.output);
    std::fs::create_dir_all(output.parent().context("a path without a folder")?)?;
    std::fs::write(&output, svg::draw(&session))
        .with_context(|| format!("{} cannot be written", output.display()))?;
    println!("kept in {}", output.display());
    Ok(())
}

fn record(program: &Path, folder: &Path) -> anyhow::Result<Vec<Step>> {
    // Commands are typed as a user types them: by name, with no flag for the address.
    let programs = folder.join("bin");
    std::fs::create_dir_all(&programs)?;
    std::os::unix::fs::symlink(program, programs.join("fnctl"))?;
    SESSION
        .iter()
        .map(|(command, succeeds)| step(command, *succeeds, &programs, folder))
        .collect()
}

fn step(
    command: &'static str,
    succeeds: bool,
    programs: &Path,
    folder: &Path,
) -> anyhow::Result<Step> {
    println!("$ {command}");
    let mut paths = vec![programs.to_owned()];
    paths.extend(
        std::env::var_os("PATH")
            .iter()
            .flat_map(std::env::split_paths),
    );
    let in_terminal = format!("stty cols {COLUMNS} rows {ROWS} && {command}");
    let since = Instant::now();
    let output = Command::new("script")
        .args(["--quiet", "--return", "--command", &in_terminal])
        .arg(folder.join("typescript"))
        .current_dir(crate::root())
        .env_clear()
        .env("PATH", std::env::join_paths(paths)?)
        .env("HOME", folder)
        .env("SHELL", "/bin/sh")
        .env("TERM", "xterm-256color")
        .env("LANG", "C.UTF-8")
        .env("CLICOLOR_FORCE", "1")
        .stdin(Stdio::null())
        .output()
        .context("script cannot be started")?;
    let took = since.elapsed();
    let lines = screen::lines(&output.stdout, ROWS, COLUMNS)?;
    let text: Vec<_> = lines.iter().map(Line::text).collect();
    println!("{}", text.join("\n"));
    ensure!(
        output.status.success() == succeeds,
        "`{command}` ended with {}, which is not what the session is about",
        output.status
    );
    Ok(Step {
        command,
        took,
        lines,
    })
}

/// A picture that everybody sees shows no folder and no name of the machine it was made on.
fn tells_nothing_of_this_machine(session: &[Step], folder: &Path) -> anyhow::Result<()> {
    let mut private = vec![
        folder.display().to_string(),
        std::env::temp_dir().display().to_string(),
        crate::root().display().to_string(),
    ];
    private.extend(std::env::var("HOME"));
    private.extend(
        std::fs::read_to_string("/proc/sys/kernel/hostname")
            .map(|name| name.trim().to_owned())
            .ok(),
    );
    // "localhost" is a name that any machine has.
    private.retain(|word| word.len() > 1 && word != "localhost");
    for step in session {
        for line in &step.lines {
            let text = line.text();
            if let Some(word) = private.iter().find(|word| text.contains(*word)) {
                bail!(
                    "`{}` printed '{word}', which is of this machine",
                    step.command
                );
            }
        }
    }
    Ok(())
}
