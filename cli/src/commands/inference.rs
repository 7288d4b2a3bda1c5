//! `fnctl inference`: the processes that models compute in, and the models that are kept away from them.

use crate::app::App;
use crate::output::{Page, Table, Tone, bytes};
use clap::{Args, Subcommand};
use fnctl_core::hosts::{HostStatus, InferenceStatus};
use serde::{Deserialize, Serialize};

/// Arguments of `fnctl inference`.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  fnctl inference show\n  fnctl inference show --json | jq '.quarantined'\n  fnctl inference restart    # after ONNX Runtime was updated; no request fails"
)]
pub(crate) struct InferenceArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// Show the inference hosts, what is in them, and the models in quarantine.
    #[command(
        after_help = "Examples:\n  fnctl inference show\n  fnctl inference show --json | jq '.hosts[] | {pid, confinement}'"
    )]
    Show,
    /// Replace every inference host by a new one with the same sessions, while requests go on.
    #[command(
        after_help = "The old hosts finish what is in them, for at most a minute. SIGHUP to `fnctl serve` does the same.\n\nExamples:\n  fnctl inference restart\n  fnctl inference restart --json | jq .replaced"
    )]
    Restart,
}

#[derive(Serialize, Deserialize)]
struct Replaced {
    replaced: usize,
}

pub(crate) fn run(app: &App, args: &InferenceArgs) -> anyhow::Result<()> {
    let client = app.client()?;
    match args.action {
        Action::Show => {
            let status: InferenceStatus = client.json("GET", "inference", None)?;
            app.out.show(&status, |page| show(page, &status))
        }
        Action::Restart => {
            let replaced: Replaced = client.json("POST", "inference/restart", None)?;
            app.out.show(&replaced, |page| match replaced.replaced {
                0 => page.line("no inference host runs; the next model starts one"),
                1 => page.done("1 inference host replaced"),
                count => page.done(format!("{count} inference hosts replaced")),
            })
        }
    }
}

fn show(page: &mut Page, status: &InferenceStatus) {
    match (status.process.as_str(), status.hosts.len()) {
        ("in-process", _) => page.line(format!(
            "models compute in the platform's own process: {} sessions",
            status.sessions
        )),
        (_, 0) => page.line("no inference host runs; the next model starts one"),
        _ => page.table(hosts(&status.hosts)),
    }
    for host in &status.hosts {
        for missing in &host.unconfined {
            page.pieces([
                (format!("host {}: not confined: ", host.pid), Tone::Warn),
                (missing.clone(), Tone::Plain),
            ]);
        }
    }
    for quarantine in &status.quarantined {
        let what = match (&quarantine.model, &quarantine.function) {
            (Some(model), Some(function)) => format!("model {model} of {function}"),
            (Some(model), None) => format!("model {model}"),
            (None, Some(function)) => format!("every model of {function}"),
            (None, None) => "every model".to_owned(),
        };
        page.pieces([
            ("in quarantine: ".to_owned(), Tone::Bad),
            (
                format!(
                    "{what}, after {} dead hosts; tried again in {}s, or when it is deployed again",
                    quarantine.deaths,
                    quarantine.for_ms.div_ceil(1000)
                ),
                Tone::Plain,
            ),
        ]);
    }
}

fn hosts(hosts: &[HostStatus]) -> Table {
    let mut table = Table::new(&["PID", "FOR", "SESSIONS", "MEMORY", "CONFINED"]);
    for host in hosts {
        let whose = match &host.function {
            Some(function) => format!("{} ({function})", host.kind),
            None => host.kind.clone(),
        };
        let (confined, tone) = if host.unconfined.is_empty() {
            ("wholly", Tone::Good)
        } else {
            ("in part", Tone::Warn)
        };
        table.row([
            (host.pid.to_string(), Tone::Strong),
            (whose, Tone::Plain),
            (host.sessions.to_string(), Tone::Plain),
            (bytes(host.resident_bytes), Tone::Plain),
            (confined.to_owned(), tone),
        ]);
    }
    table
}
