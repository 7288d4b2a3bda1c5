//! `fnctl logs`: what a function said, and what the platform said about it.

use crate::app::App;
use crate::client::Client;
use crate::exit::usage;
use crate::log_stream::{self, Item, LogStream, Next, SILENCE};
use crate::output::{Page, Tone};
use anyhow::bail;
use clap::Args;
use fnctl_core::FunctionName;
use fnctl_core::log::{LogLevel, LogLine, LogSource, now_ms};
use fnctl_core::units::Period;
use jiff::Timestamp;
use std::fmt::{self, Display};
use std::time::{Duration, Instant};

/// Lines shown where nothing else says how many.
const DEFAULT_TAIL: usize = 200;
/// Most time to wait for the report of an invocation whose answer is here: its guest may still be at work.
const REPORT_WAIT: Duration = Duration::from_secs(10);

#[derive(Args, Debug)]
#[command(
    // --version is a version of the function here.
    disable_version_flag = true,
    after_help = "Stdout counts as info, stderr as warn; wasi:logging has levels of its own. What the platform says (cold starts, failures with \
their causes) stands among the lines.\n\nExamples:\n  fnctl logs fraud\n  fnctl logs fraud -f --since 10m\n  fnctl logs fraud --request 7f3a52c0d1e84b96    # the id is in X-Request-Id and in every error\n  fnctl logs fraud --level warn --json | jq -r .text"
)]
pub(crate) struct LogsArgs {
    /// The function.
    name: FunctionName,
    /// Go on with new lines as they come.
    #[arg(short, long)]
    follow: bool,
    /// Lines since then: a period back from now, as in 10m, or a time, as in 2026-11-22T03:00:00Z.
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Lines of one invocation.
    #[arg(long, value_name = "ID")]
    request: Option<String>,
    /// Lines of at least this level: trace, debug, info, warn, error or critical.
    #[arg(long, value_name = "LEVEL")]
    level: Option<LogLevel>,
    /// Lines of one version.
    #[arg(long, value_name = "VERSION")]
    version: Option<u32>,
    /// The last so many stored lines; 200 unless --since or --request is given.
    #[arg(short = 'n', long, value_name = "COUNT")]
    tail: Option<usize>,
}

pub(crate) fn run(app: &App, args: &LogsArgs) -> anyhow::Result<()> {
    let now = now_ms();
    // A mistake in the flags is told before anything is opened.
    path(args, now, None)?;
    let client = app.client()?;
    let open = |resume| LogStream::open(&client, &path(args, now, resume)?);
    let mut shown = false;
    let mut show = |items: &[Item]| {
        shown |= !items.is_empty();
        for part in items.chunk_by(|a, b| is_line(a) && is_line(b)) {
            if let [Item::Skipped(skipped)] = part {
                app.out.note(format!(
                    "{skipped} lines were left out here: they came faster than they were read"
                ));
                continue;
            }
            let lines: Vec<_> = part.iter().filter_map(line_of).collect();
            app.out.items(&lines, |page, line| write(page, line))?;
        }
        Ok(())
    };
    if args.follow {
        log_stream::follow(SILENCE, open, show, |text| app.out.note(text))?;
        app.out
            .note("the stream ended: the platform stops, or the function was removed");
        return Ok(());
    }
    let stream = open(None)?;
    loop {
        match stream.next(SILENCE)? {
            Next::Items(items) => show(&items)?,
            Next::Ended => break,
            Next::Broken(why) => bail!("the log stream broke off: {why}"),
        }
    }
    if !shown {
        app.out.note(format!(
            "no lines; invoke it, or follow with `fnctl logs {} -f`",
            args.name
        ));
    }
    Ok(())
}

fn is_line(item: &Item) -> bool {
    line_of(item).is_some()
}

fn line_of(item: &Item) -> Option<&LogLine> {
    match item {
        Item::Line(line, _) => Some(line),
        Item::Skipped(_) => None,
    }
}

/// The line that reports what one invocation took, once its guest has returned.
pub(crate) fn report_of(
    client: &Client,
    function: &str,
    request_id: &str,
) -> anyhow::Result<Option<LogLine>> {
    let until = Instant::now() + REPORT_WAIT;
    let path = format!("functions/{function}/logs?follow=true&request={request_id}");
    let stream = LogStream::open(client, &path)?;
    loop {
        match stream.next(until.saturating_duration_since(Instant::now()))? {
            Next::Items(items) => {
                let report = items
                    .iter()
                    .filter_map(line_of)
                    .find(|line| line.report.is_some());
                if let Some(line) = report {
                    return Ok(Some(line.clone()));
                }
            }
            Next::Ended => return Ok(None),
            Next::Broken(why) => bail!("the report did not come: {why}"),
        }
    }
}

/// The stream's path and query. A stream that is resumed has the lines since then.
fn path(args: &LogsArgs, now_ms: u64, resume: Option<u64>) -> anyhow::Result<String> {
    let mut query = Vec::new();
    if args.follow {
        query.push("follow=true".to_owned());
    }
    let since = args.since.as_ref().map(|since| since_ms(since, now_ms));
    if let Some(since) = resume.or(since.transpose()?) {
        query.push(format!("since_ms={since}"));
    }
    if let Some(request) = &args.request {
        let Some(id) = fnctl_core::RequestId::from_caller(request) else {
            return Err(usage(format!(
                "--request '{request}' is no request id; it is in X-Request-Id and in every error"
            )));
        };
        query.push(format!("request={id}"));
    }
    if let Some(level) = args.level {
        query.push(format!("level={}", level.as_str()));
    }
    if let Some(version) = args.version {
        query.push(format!("version={version}"));
    }
    let default = (args.since.is_none() && args.request.is_none()).then_some(DEFAULT_TAIL);
    if let (Some(tail), None) = (args.tail.or(default), resume) {
        query.push(format!("tail={tail}"));
    }
    Ok(format!("functions/{}/logs?{}", args.name, query.join("&")))
}

fn since_ms(text: &str, now_ms: u64) -> anyhow::Result<u64> {
    if let Ok(period) = text.parse::<Period>() {
        let back = u64::try_from(period.duration().as_millis()).unwrap_or(u64::MAX);
        return Ok(now_ms.saturating_sub(back));
    }
    match text.parse::<Timestamp>() {
        Ok(time) => Ok(u64::try_from(time.as_millisecond()).unwrap_or(0)),
        Err(_) => Err(usage(format!(
            "--since '{text}' is no time; write it like 10m, 2h or 2026-11-22T03:00:00Z"
        ))),
    }
}

/// Milliseconds since 1970 as people read them.
struct Moment(u64);

impl Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let timestamp = i64::try_from(self.0)
            .ok()
            .and_then(|ms| Timestamp::from_millisecond(ms).ok());
        match timestamp {
            Some(timestamp) => write!(f, "{timestamp:.3}"),
            None => write!(f, "{}", self.0),
        }
    }
}

/// One line for people: when, how serious, which version and invocation, and the text.
pub(crate) fn write(page: &mut Page, line: &LogLine) {
    let level = match line.level {
        LogLevel::Trace | LogLevel::Debug => Tone::Dim,
        LogLevel::Info => Tone::Plain,
        LogLevel::Warn => Tone::Warn,
        LogLevel::Error | LogLevel::Critical => Tone::Bad,
    };
    let from = line.request_id.as_ref().map_or("-", |id| id.as_str());
    let text = match line.source {
        LogSource::Platform => Tone::Dim,
        _ => Tone::Plain,
    };
    // There may be many lines: each piece is written where it belongs, and none is a string before.
    let before: &dyn Display = match line.source {
        LogSource::Platform => &format_args!("[{}] ", line.source.as_str()),
        _ if line.context.is_empty() => &"",
        _ => &format_args!("{}: ", line.context),
    };
    let pieces: [(&dyn Display, Tone); 4] = [
        (&Moment(line.time_ms), Tone::Dim),
        (&format_args!(" {:<8}", line.level.as_str()), level),
        (&format_args!(" v{} {from} ", line.version), Tone::Dim),
        (&format_args!("{before}{}", line.text), text),
    ];
    page.pieces(pieces);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> LogsArgs {
        LogsArgs {
            name: "fraud".parse().unwrap(),
            follow: false,
            since: None,
            request: None,
            level: None,
            version: None,
            tail: None,
        }
    }

    #[test]
    fn the_query_says_what_the_flags_say() {
        let path = |change: fn(&mut LogsArgs)| {
            let mut args = args();
            change(&mut args);
            super::path(&args, 1_000_000, None).unwrap()
        };
        assert_eq!(path(|_| {}), "functions/fraud/logs?tail=200");
        let resumed = super::path(&args(), 1_000_000, Some(7)).unwrap();
        assert_eq!(resumed, "functions/fraud/logs?since_ms=7");
        assert_eq!(
            path(|args| {
                args.follow = true;
                args.since = Some("10m".to_owned());
                args.level = Some(LogLevel::Warn);
            }),
            "functions/fraud/logs?follow=true&since_ms=400000&level=warn"
        );
        assert_eq!(
            path(|args| {
                args.request = Some("abc".to_owned());
                args.tail = Some(5);
                args.version = Some(3);
            }),
            "functions/fraud/logs?request=abc&version=3&tail=5"
        );
    }

    #[test]
    fn since_is_a_period_or_a_time() {
        assert_eq!(since_ms("1s", 5_000).unwrap(), 4_000);
        assert_eq!(since_ms("1h", 5_000).unwrap(), 0);
        assert_eq!(since_ms("1970-01-01T00:00:01.5Z", 0).unwrap(), 1_500);
        for bad in ["yesterday", "10", "2026-11-22"] {
            let error = since_ms(bad, 0).unwrap_err().to_string();
            assert!(error.contains("10m"), "{error}");
        }
    }
}
