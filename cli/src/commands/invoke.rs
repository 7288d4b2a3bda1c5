//! `fnctl invoke`.

use crate::app::App;
use crate::args::InvokeArgs;
use crate::client::{Client, ClientError};
use crate::commands::logs;
use crate::exit::usage;
use anyhow::Context;
use fnctl_core::Phase;
use fnctl_core::log::{InvocationReport, LogLine};
use fnctl_core::units::ByteSize;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Read;
use ureq::http::HeaderMap;

/// Most bytes of an answer that becomes part of JSON or YAML; a plain answer is streamed and has no limit here.
const MAX_BODY: u64 = 64 << 20;

/// What one invocation came to, for programs.
#[derive(Serialize)]
struct Invocation {
    status: u16,
    version: Option<u64>,
    /// `cold`, `prewarmed` or `warm`.
    start: Option<String>,
    request_id: Option<String>,
    content_type: Option<String>,
    /// The phases of `Server-Timing` in milliseconds.
    timing: BTreeMap<String, f64>,
    /// What the guest took, with `--stats`.
    #[serde(skip_serializing_if = "Option::is_none")]
    stats: Option<InvocationReport>,
    /// Length of the answer.
    bytes: usize,
    /// JSON as it is, other text as a string; null if it is neither.
    body: Value,
}

impl Invocation {
    fn new(status: u16, headers: &HeaderMap, body: &[u8]) -> Self {
        let header = |name: &str| {
            headers
                .get(name)
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned)
        };
        let timing = header("server-timing").unwrap_or_default();
        let phase = |entry: &str| {
            let (name, duration) = entry.trim().split_once(";dur=")?;
            Some((name.to_owned(), duration.parse().ok()?))
        };
        let text = std::str::from_utf8(body).ok();
        Self {
            status,
            version: header("x-fnctl-version").and_then(|version| version.parse().ok()),
            start: header("x-fnctl-start"),
            request_id: header("x-request-id"),
            content_type: header("content-type"),
            timing: timing.split(',').filter_map(phase).collect(),
            stats: None,
            bytes: body.len(),
            body: serde_json::from_slice(body)
                .unwrap_or_else(|_| text.map_or(Value::Null, Value::from)),
        }
    }
}

pub(crate) fn run(app: &App, args: &InvokeArgs) -> anyhow::Result<()> {
    let body = body(args.data.as_deref())?;
    let mut headers = Vec::new();
    for header in &args.header {
        let Some((name, value)) = header.split_once(':') else {
            return Err(usage(format!(
                "--header '{header}' has no colon; write it like 'Accept: text/plain'"
            )));
        };
        headers.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
    }
    if !body.is_empty() && !headers.iter().any(|(name, _)| name == "content-type") {
        let kind = if std::str::from_utf8(&body).is_ok() {
            "application/json"
        } else {
            "application/octet-stream"
        };
        headers.push(("content-type".to_owned(), kind.to_owned()));
    }
    let method = args
        .method
        .clone()
        .unwrap_or_else(|| if body.is_empty() { "GET" } else { "POST" }.to_owned());
    let path = if args.path.starts_with('/') {
        args.path.clone()
    } else {
        format!("/{}", args.path)
    };
    let client = app.client()?;
    if args.stats {
        headers.push(("x-fnctl-report".to_owned(), "1".to_owned()));
        // The report is for those who may read the function's log.
        let named = headers.iter().any(|(name, _)| name == "authorization");
        headers.extend(client.authorization().filter(|_| !named));
    }
    let mut response = client.invoke(&args.target, &path, &method, &headers, body)?;
    if args.verbose {
        measured(app, response.status().as_u16(), response.headers());
    }
    let (status, head) = (response.status().as_u16(), response.headers().clone());
    if response.status().is_success() {
        if app.out.is_for_programs() {
            let body = response
                .body_mut()
                .with_config()
                .limit(MAX_BODY)
                .read_to_vec()
                .context(
                    "the answer broke off, or is too long for JSON; without --json it is streamed",
                )?;
            let mut told = Invocation::new(status, &head, &body);
            if args.stats {
                told.stats = report(&client, &args.target, &head)?.report;
            }
            return app.out.show(&told, |_| {});
        }
        stream(app, &mut response.body_mut().as_reader())?;
        if args.stats {
            app.out.break_line();
            stats(app, &client, &args.target, &head)?;
        }
        return Ok(());
    }
    let failed = client.invocation_failed(&args.target, response);
    if let ClientError::FunctionAnswered { body, .. } = &failed {
        // The function's own error answer is its answer all the same.
        if app.out.is_for_programs() {
            app.out
                .show(&Invocation::new(status, &head, body), |_| {})?;
        } else {
            app.out.raw(body)?;
            if !body.is_empty() && !body.ends_with(b"\n") {
                app.out.break_line();
            }
        }
    }
    if args.stats && !app.out.is_for_programs() {
        stats(app, &client, &args.target, &head)?;
    }
    Err(failed.into())
}

/// The report of an invocation that was asked for with it.
fn report(client: &Client, target: &str, headers: &HeaderMap) -> anyhow::Result<LogLine> {
    let function = target.split(':').next().unwrap_or(target);
    let id = headers
        .get("x-request-id")
        .and_then(|value| value.to_str().ok())
        .context("the answer carries no X-Request-Id, so its report cannot be found")?;
    logs::report_of(client, function, id)?
        .context("there is no report of this invocation: it did not reach the function, or --stats needs the platform's token (--token)")
}

/// Says what an invocation took, on stderr: what the caller waited for by phase, then what the guest used.
fn stats(app: &App, client: &Client, target: &str, headers: &HeaderMap) -> anyhow::Result<()> {
    let told = Invocation::new(0, headers, b"");
    let line = report(client, target, headers)?;
    let Some(report) = line.report else {
        return Ok(());
    };
    let ms = |value: f64| format!("{value:.3} ms");
    let note = |name: &str, value: String| app.out.note(format!("{name:<12} {value}"));
    note("outcome", report.outcome);
    note(
        "start",
        format!(
            "{} (version {})",
            told.start.unwrap_or_default(),
            line.version
        ),
    );
    for phase in Phase::ALL {
        let took = told.timing.get(phase.as_str()).copied().unwrap_or_default();
        note(phase.as_str(), ms(took));
    }
    note("run", ms(report.run_ms));
    if let Some(cpu) = report.cpu_ms {
        note("cpu", ms(cpu));
    }
    note(
        "inference",
        format!(
            "{} in {} compute call(s)",
            ms(report.inference_ms),
            report.computes
        ),
    );
    note("memory", ByteSize(report.memory_bytes).to_string());
    Ok(())
}

/// What was measured, on stderr.
fn measured(app: &App, status: u16, headers: &HeaderMap) {
    app.out.note(format!("status         {status}"));
    for name in [
        "x-fnctl-start",
        "x-fnctl-version",
        "x-request-id",
        "server-timing",
        "content-type",
    ] {
        if let Some(value) = headers.get(name).and_then(|value| value.to_str().ok()) {
            app.out.note(format!("{name:<15}{value}"));
        }
    }
}

fn body(data: Option<&str>) -> anyhow::Result<Vec<u8>> {
    match data {
        None => Ok(Vec::new()),
        Some("@-") => {
            let mut bytes = Vec::new();
            std::io::stdin().lock().read_to_end(&mut bytes)?;
            Ok(bytes)
        }
        Some(data) => match data.strip_prefix('@') {
            Some(path) => std::fs::read(path).with_context(|| format!("{path} cannot be read")),
            None => Ok(data.as_bytes().to_vec()),
        },
    }
}

fn stream(app: &App, reader: &mut impl Read) -> anyhow::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let count = reader.read(&mut buffer).context("the answer broke off")?;
        match buffer.get(..count) {
            Some(read) if count > 0 => app.out.raw(read)?,
            _ => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invocation_tells_its_measures_and_keeps_json_as_json() {
        let mut headers = HeaderMap::new();
        headers.insert("x-fnctl-version", "3".parse().unwrap());
        headers.insert(
            "server-timing",
            "queue;dur=0.003, model;dur=1.5, odd".parse().unwrap(),
        );
        let told = Invocation::new(200, &headers, b"{\"a\":1}");
        assert_eq!(
            (told.version, told.timing["model"], told.timing.len()),
            (Some(3), 1.5, 2)
        );
        assert_eq!(told.body["a"], 1);
        assert_eq!(Invocation::new(200, &headers, b"plain").body, "plain");
        assert_eq!(
            Invocation::new(200, &headers, &[0xff, 0xfe]).body,
            Value::Null
        );
    }
}
