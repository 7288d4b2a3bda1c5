//! `fnctl status` and `fnctl token`. The first is also the health check of the image, which has no shell and no curl.

use crate::app::App;
use crate::client::ClientError;
use crate::exit::UnavailableError;
use anyhow::Context;
use clap::Args;
use fnctl_core::units::Period;
use serde::Serialize;
use std::time::{Duration, Instant};

/// Most time for one question; a platform that is alive answers in a millisecond.
const QUESTION: Duration = Duration::from_secs(3);
/// Time between two questions of `--wait`.
const PAUSE: Duration = Duration::from_millis(50);

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  fnctl status\n  fnctl status --wait 15s\n  fnctl status --json | jq -r .state"
)]
pub(crate) struct StatusArgs {
    /// Wait until it is ready, for at most this long.
    #[arg(long, value_name = "TIME")]
    wait: Option<Period>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    /// It takes invocations.
    Ready,
    /// It answers, but not all provisioned instances are there yet.
    Starting,
    /// It answers, but takes none: it is stopping.
    Draining,
    /// Nobody answers.
    Unreachable,
    /// Something else answers.
    NotFnctl,
}

#[derive(Debug, Serialize)]
struct Status<'a> {
    server: &'a str,
    state: State,
    /// Milliseconds from the question to the answer.
    answer_ms: f64,
    /// Only with access to the admin API.
    version: Option<String>,
    /// Only with access to the admin API.
    functions: Option<u64>,
}

pub(crate) fn run(app: &App, args: &StatusArgs) -> anyhow::Result<()> {
    let client = app.client()?;
    let until = args.wait.map(|wait| Instant::now() + wait.duration());
    let (state, took, refusal) = loop {
        let limit = until.map_or(QUESTION, |until| {
            let left = until.saturating_duration_since(Instant::now());
            // Even a question asked at the last moment gets the time to be answered.
            left.clamp(Duration::from_millis(250), QUESTION)
        });
        let asked = Instant::now();
        let answer = client.probe("/readyz", limit);
        let took = asked.elapsed();
        let (state, refusal) = judge(client.server(), answer);
        match until {
            Some(until) if state != State::Ready && Instant::now() < until => {
                std::thread::park_timeout(PAUSE);
            }
            _ => break (state, took, refusal),
        }
    };
    let details: Option<serde_json::Value> = (state == State::Ready)
        .then(|| client.probe("/api/v1/status", QUESTION).ok())
        .flatten()
        .and_then(|(_, text)| serde_json::from_str(&text).ok());
    let detail = |key: &str| details.as_ref().and_then(|value| value.get(key));
    let status = Status {
        server: client.server(),
        state,
        answer_ms: (took.as_secs_f64() * 1e6).round() / 1e3,
        version: detail("version")
            .and_then(serde_json::Value::as_str)
            .map(str::to_owned),
        functions: detail("functions").and_then(serde_json::Value::as_u64),
    };
    if state == State::Ready || app.out.is_for_programs() {
        app.out.show(&status, |page| page.line(sentence(&status)))?;
    }
    refusal.map_or(Ok(()), Err)
}

/// What an answer of `/readyz` means, and the error unless it means ready.
fn judge(server: &str, answer: anyhow::Result<(u16, String)>) -> (State, Option<anyhow::Error>) {
    match answer {
        Ok((200, text)) if text.trim() == "ready" => (State::Ready, None),
        Ok((503, text)) if text.contains("draining") => (
            State::Draining,
            Some(
                UnavailableError(format!(
                    "{server} is draining: it finishes what runs and then stops; ask another one, or wait for its restart with --wait"
                ))
                .into(),
            ),
        ),
        Ok((503, text)) if text.starts_with("starting") => (
            State::Starting,
            Some(
                UnavailableError(format!(
                    "{server} is starting its provisioned instances; wait for them with --wait"
                ))
                .into(),
            ),
        ),
        Ok((status, _)) => (
            State::NotFnctl,
            Some(
                ClientError::NotFnctl {
                    server: server.to_owned(),
                    status,
                }
                .into(),
            ),
        ),
        Err(error) => {
            let error = match error.downcast::<ClientError>() {
                Ok(known) => known,
                Err(other) => ClientError::Unreachable {
                    server: server.to_owned(),
                    cause: other.to_string(),
                },
            };
            (State::Unreachable, Some(error.into()))
        }
    }
}

fn sentence(status: &Status<'_>) -> String {
    let mut text = format!("{} is ready", status.server);
    if let Some(version) = &status.version {
        text.push_str(&format!(": fnctl {version}"));
    }
    match status.functions {
        Some(1) => text.push_str(", 1 function"),
        Some(functions) => text.push_str(&format!(", {functions} functions")),
        None => {}
    }
    text
}

/// Prints the token that the admin API of this folder or container asks for.
pub(crate) fn token(app: &App) -> anyhow::Result<()> {
    let client = app.client()?;
    let token = client.token().context(
        "no token is known here: set FNCTL_TOKEN_FILE to the platform's token file (gateway.token_file), or FNCTL_TOKEN",
    )?;
    app.out.raw(format!("{token}\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;
    use crate::report::Report;

    fn state(answer: anyhow::Result<(u16, &str)>) -> (State, bool) {
        let answer = answer.map(|(status, text)| (status, text.to_owned()));
        let (state, refusal) = judge("http://x", answer);
        (state, refusal.is_none())
    }

    #[test]
    fn only_the_words_of_a_ready_platform_are_success() {
        assert_eq!(state(Ok((200, "ready\n"))), (State::Ready, true));
        assert_eq!(state(Ok((503, "draining\n"))), (State::Draining, false));
        assert_eq!(state(Ok((503, "starting: x\n"))), (State::Starting, false));
        assert_eq!(state(Ok((200, "<html>"))), (State::NotFnctl, false));
        assert_eq!(state(Ok((404, "ready"))), (State::NotFnctl, false));
        assert_eq!(
            state(Err(anyhow::anyhow!("timeout"))),
            (State::Unreachable, false)
        );
    }

    #[test]
    fn a_platform_that_is_not_reached_has_its_own_exit_code() {
        let (_, refusal) = judge("http://x", Err(anyhow::anyhow!("timeout")));
        let report = Report::of(&refusal.unwrap());
        assert_eq!(report.exit, Exit::Unavailable);
        let (_, refusal) = judge("http://x", Ok((503, "draining".to_owned())));
        let report = Report::of(&refusal.unwrap());
        assert_eq!(report.exit, Exit::Unavailable);
    }
}
