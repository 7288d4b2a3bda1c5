//! A line that a function wrote, or that the platform wrote about it, and the ports through which such lines travel.

use crate::error::Failure;
use crate::ids::{FunctionName, RequestId, VersionNumber};
use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::str::FromStr;
use tokio::sync::mpsc;

/// How serious a line is: the levels of `wasi:logging`, least serious first.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Every step.
    Trace,
    /// For whoever looks for a defect.
    Debug,
    /// What happens. Lines on stdout count as this.
    #[default]
    Info,
    /// What may need somebody. Lines on stderr count as this.
    Warn,
    /// What failed.
    Error,
    /// What made going on impossible.
    Critical,
}

impl LogLevel {
    /// Every level, least serious first.
    pub const ALL: [Self; 6] = [
        Self::Trace,
        Self::Debug,
        Self::Info,
        Self::Warn,
        Self::Error,
        Self::Critical,
    ];

    /// The word in files, queries and output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
            Self::Critical => "critical",
        }
    }
}

impl FromStr for LogLevel {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|level| level.as_str() == text)
            .ok_or_else(|| {
                let known = Self::ALL.map(Self::as_str).join(", ");
                format!(
                    "'{}' is no log level; choose one of {known}",
                    text.chars().take(40).collect::<String>().escape_debug()
                )
            })
    }
}

/// Who wrote a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogSource {
    /// The guest, on its stdout.
    Stdout,
    /// The guest, on its stderr.
    Stderr,
    /// The guest, by `wasi:logging`.
    Logging,
    /// The platform, about the guest.
    Platform,
}

impl LogSource {
    /// The word in files and output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Logging => "logging",
            Self::Platform => "platform",
        }
    }
}

/// One line of a function's log. Its JSON form is what the ring stores and the admin API streams.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// When it was written: milliseconds since 1970, UTC.
    pub time_ms: u64,
    /// How serious it is.
    pub level: LogLevel,
    /// Who wrote it.
    pub source: LogSource,
    /// Of which function.
    pub function: FunctionName,
    /// By which version.
    pub version: VersionNumber,
    /// During which invocation; none for what happens outside of one, such as `init`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<RequestId>,
    /// The `context` of a `wasi:logging` line.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub context: String,
    /// The text, without its line end. A guest's own words: escape it before it reaches a terminal.
    pub text: String,
    /// What one invocation took, on the line that reports it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<InvocationReport>,
}

/// What one invocation took. Times are in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InvocationReport {
    /// From the guest's first instruction to its return.
    pub run_ms: f64,
    /// CPU time of the guest, host calls included, inference not.
    pub cpu_ms: Option<f64>,
    /// Wall time inside `compute` calls.
    pub inference_ms: f64,
    /// Number of `compute` calls.
    pub computes: u32,
    /// Linear memory after the run, in bytes; it never shrinks, so this is also its peak.
    pub memory_bytes: u64,
    /// How the run ended: `ok`, or the kind of its failure.
    pub outcome: String,
}

// Every number of a report comes from a `Duration`: there is no NaN.
impl Eq for InvocationReport {}

/// The wall clock of log lines: milliseconds since 1970.
pub fn now_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
}

/// Takes log lines. Worker and scheduler call it, the logs crate implements it.
pub trait LogSink: Send + Sync {
    /// Takes a line. Never waits: a line that finds no room is dropped and counted.
    fn write(&self, line: LogLine);
}

/// A sink for where nobody reads: every line is dropped.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoLogs;

impl LogSink for NoLogs {
    fn write(&self, _: LogLine) {}
}

/// Which lines a reader wants.
#[derive(Debug, Clone)]
pub struct LogQuery {
    /// Of which function.
    pub function: FunctionName,
    /// Not before this time, in milliseconds since 1970.
    pub since_ms: u64,
    /// Of this invocation only.
    pub request_id: Option<RequestId>,
    /// Of this version only.
    pub version: Option<VersionNumber>,
    /// At least this serious.
    pub level: LogLevel,
    /// Of what is stored, the last so many lines; none = all.
    pub tail: Option<usize>,
    /// Go on with new lines as they come.
    pub follow: bool,
}

impl LogQuery {
    /// Everything that is stored of `function`.
    pub fn all(function: FunctionName) -> Self {
        Self {
            function,
            since_ms: 0,
            request_id: None,
            version: None,
            level: LogLevel::Trace,
            tail: None,
            follow: false,
        }
    }

    /// Whether the reader wants this line.
    pub fn wants(&self, line: &LogLine) -> bool {
        line.level >= self.level
            && line.time_ms >= self.since_ms
            && self.version.is_none_or(|version| version == line.version)
            && self
                .request_id
                .as_ref()
                .is_none_or(|id| line.request_id.as_ref() == Some(id))
    }
}

/// What a reader gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogItem {
    /// One or more whole lines, each the JSON of a [`LogLine`] with a line end behind it: as they are stored.
    Lines(Bytes),
    /// So many lines were left out here, because the reader was slower than they came.
    Skipped(u64),
    /// Nothing was written for a while, and the stream goes on.
    Alive,
}

/// Keeps the lines of every function, within bounds. The gateway calls it, the logs crate implements it.
#[async_trait]
pub trait LogStore: Send + Sync {
    /// Streams what fits the query, oldest first, each line once. The stream ends after what is stored, or, when
    /// following, when the reader goes or the platform stops.
    async fn read(&self, query: LogQuery) -> Result<mpsc::Receiver<LogItem>, Failure>;

    /// Removes everything that is stored of a function, and takes no more lines of its versions up to `newest`: an
    /// invocation may end after the removal. Numbers are never used twice, so a new version's lines are taken.
    fn forget(&self, function: &FunctionName, newest: VersionNumber);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(level: LogLevel, time_ms: u64, request: Option<&str>) -> LogLine {
        LogLine {
            time_ms,
            level,
            source: LogSource::Stdout,
            function: "a".parse().unwrap(),
            version: VersionNumber(1),
            request_id: request.and_then(RequestId::from_caller),
            context: String::new(),
            text: "x".to_owned(),
            report: None,
        }
    }

    #[test]
    fn a_query_is_the_conjunction_of_its_parts() {
        let all = LogQuery::all("a".parse().unwrap());
        let asked = LogQuery {
            since_ms: 10,
            level: LogLevel::Warn,
            request_id: RequestId::from_caller("r1"),
            ..all.clone()
        };
        assert!(all.wants(&line(LogLevel::Trace, 0, None)));
        assert!(asked.wants(&line(LogLevel::Warn, 10, Some("r1"))));
        assert!(!asked.wants(&line(LogLevel::Info, 10, Some("r1"))));
        assert!(!asked.wants(&line(LogLevel::Error, 9, Some("r1"))));
        assert!(!asked.wants(&line(LogLevel::Error, 10, Some("r2"))));
        assert!(!asked.wants(&line(LogLevel::Error, 10, None)));
        let other = LogQuery {
            version: Some(VersionNumber(2)),
            ..all
        };
        assert!(!other.wants(&line(LogLevel::Error, 0, None)));
    }

    #[test]
    fn levels_are_read_as_written_and_an_unknown_one_names_them_all() {
        for level in LogLevel::ALL {
            assert_eq!(level.as_str().parse(), Ok(level));
        }
        let error = "loud".parse::<LogLevel>().unwrap_err();
        assert!(error.contains("warn"), "{error}");
    }
}
