//! `fnctl trace`: what was invoked on a platform, as a trace for `fnctl policy simulate`.

use crate::app::App;
use anyhow::Context;
use clap::{Args, Subcommand};
use serde_json::json;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::PathBuf;

/// Arguments of `fnctl trace`.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  fnctl trace export --out T.csv\n  fnctl trace export | fnctl policy simulate --trace /dev/stdin --policy fixed:60s --policy adaptive"
)]
pub(crate) struct TraceArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// Write the invocations that the platform remembers: timestamp,function,duration.
    #[command(
        after_help = "The platform remembers the last scheduler.trace_size invocations, until it stops.\n\nExamples:\n  fnctl trace export --out T.csv\n  fnctl trace export | head"
    )]
    Export {
        /// Where to write; without it, stdout.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

pub(crate) fn run(app: &App, args: &TraceArgs) -> anyhow::Result<()> {
    let Action::Export { out } = &args.action;
    let client = app.client()?;
    let mut response = client.stream("trace")?;
    let mut lines = BufReader::new(response.body_mut().as_reader());
    let Some(path) = out else {
        let mut text = Vec::new();
        while lines.read_until(b'\n', &mut text)? > 0 {
            app.out.raw(&text)?;
            text.clear();
        }
        return Ok(());
    };
    let failed = || format!("cannot write {}", path.display());
    let mut file = BufWriter::new(File::create(path).with_context(failed)?);
    let mut text = Vec::new();
    let mut count = 0u64;
    while lines.read_until(b'\n', &mut text)? > 0 {
        file.write_all(&text).with_context(failed)?;
        text.clear();
        count += 1;
    }
    file.flush().with_context(failed)?;
    let invocations = count.saturating_sub(1);
    let value = json!({ "file": path.display().to_string(), "invocations": invocations });
    app.out.show(&value, |page| {
        page.done(format!("{}: {invocations} invocations", path.display()));
    })
}
