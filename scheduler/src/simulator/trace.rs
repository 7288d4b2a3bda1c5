//! Traces of invocations, read line by line from either of two formats, kept compactly.
//!
//! - The public Azure Functions 2019 invocation counts: `HashOwner,HashApp,HashFunction,Trigger,1,...,1440`, a line for
//!   each function and day (github.com/Azure/AzurePublicDataset, CC-BY). Several day files follow each other. A file may
//!   have another number of minutes.
//! - `timestamp,function,duration`, in seconds, sorted by time, as `fnctl trace export` writes it.
//!
//! Counts do not say when within its minute a call came. Calls of a timer come at the same second of every minute, which
//! depends on the function, several at equal distances; others anywhere, by a generator seeded with the function and the
//! minute. Memory grows with the active minutes (8 bytes each) or the listed invocations (16 bytes each).

use super::random::{Random, hash};
use crate::policy::Moment;
use std::collections::HashMap;
use std::io::BufRead;

/// What calls a function: the groups of the ATC 2020 paper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Trigger {
    /// A client.
    Http,
    /// A schedule.
    Timer,
    /// A message in a queue.
    Queue,
    /// An event hub or grid.
    Event,
    /// A change in a store.
    Storage,
    /// A workflow.
    Orchestration,
    /// Anything else.
    Other,
    /// Not told.
    Unknown,
}

impl Trigger {
    /// Every trigger.
    pub const ALL: [Self; 8] = [
        Self::Http,
        Self::Timer,
        Self::Queue,
        Self::Event,
        Self::Storage,
        Self::Orchestration,
        Self::Other,
        Self::Unknown,
    ];

    /// The word in traces and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Timer => "timer",
            Self::Queue => "queue",
            Self::Event => "event",
            Self::Storage => "storage",
            Self::Orchestration => "orchestration",
            Self::Other => "others",
            Self::Unknown => "unknown",
        }
    }

    fn of(word: &str) -> Self {
        Self::ALL
            .into_iter()
            .find(|trigger| trigger.as_str().eq_ignore_ascii_case(word))
            .unwrap_or(Self::Other)
    }
}

/// A line that is not as it should be.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct TraceError {
    /// Its number, from 1 on.
    pub line: u64,
    /// What is wrong.
    pub problem: String,
}

/// An invocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Call {
    /// When it arrives.
    pub at: Moment,
    /// Which function, by its place in [`Trace::functions`].
    pub function: u32,
    /// How long it runs, in microseconds; unset = what the simulation says.
    pub micros: Option<u32>,
}

/// A function of a trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// A number for its name.
    pub hash: u64,
    /// What calls it.
    pub trigger: Trigger,
    /// Invocations in the trace.
    pub calls: u64,
}

/// Most functions of a trace.
const MAX_FUNCTIONS: usize = 2_000_000;
/// Most active minutes and listed invocations of a trace: 3.2 GB.
const MAX_ENTRIES: usize = 200_000_000;
/// Longest line.
const MAX_LINE: usize = 1 << 20;
/// Most calls of a function in a minute.
const MAX_COUNT: u32 = 10_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Cell {
    minute: u32,
    function: u32,
    count: u32,
}

/// A trace.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    functions: Vec<Function>,
    names: HashMap<u64, u32>,
    cells: Vec<Cell>,
    calls: Vec<Call>,
    minutes: u32,
    seed: u64,
}

impl Trace {
    /// An empty trace; `seed` decides where in a minute calls come.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            ..Self::default()
        }
    }

    /// The functions that are called.
    pub fn functions(&self) -> &[Function] {
        &self.functions
    }

    /// Invocations.
    pub fn invocations(&self) -> u64 {
        self.functions.iter().map(|function| function.calls).sum()
    }

    /// How long it lasts, in seconds: whole minutes, or until the last listed call.
    pub fn seconds(&self) -> f64 {
        let listed = self.calls.last().map_or(0.0, |call| call.at.0 as f64 / 1e6);
        listed.max(f64::from(self.minutes) * 60.0)
    }

    /// Reads a file behind what was read before; its first line says which format it has.
    pub fn read(&mut self, mut file: impl BufRead) -> Result<(), TraceError> {
        let mut line = String::new();
        let mut number = 0;
        let mut columns = None;
        let start = self.minutes;
        let mut origin = None;
        while read_line(&mut file, &mut line, &mut number)? {
            let text = line.trim_end_matches(['\r', '\n']);
            if text.is_empty() {
                continue;
            }
            let fail = |problem: String| TraceError {
                line: number,
                problem,
            };
            match columns {
                None => {
                    columns = Some(heading(text).map_err(fail)?);
                    if let Some(Some(minutes)) = columns {
                        self.minutes = start.saturating_add(minutes);
                    }
                }
                Some(Some(minutes)) => self.counts(text, start, minutes).map_err(fail)?,
                Some(None) => self.listed(text, &mut origin).map_err(fail)?,
            }
            if self.cells.len() + self.calls.len() > MAX_ENTRIES {
                return Err(fail(format!(
                    "more than {MAX_ENTRIES} active minutes or invocations; simulate fewer days or functions at once"
                )));
            }
        }
        if columns.is_none() {
            return Err(TraceError {
                line: 1,
                problem: "the file is empty".to_owned(),
            });
        }
        self.cells.sort_unstable();
        Ok(())
    }

    fn function(&mut self, hash: u64, trigger: Trigger) -> Result<u32, String> {
        if let Some(known) = self.names.get(&hash) {
            return Ok(*known);
        }
        if self.functions.len() >= MAX_FUNCTIONS {
            return Err(format!("more than {MAX_FUNCTIONS} functions"));
        }
        let index = u32::try_from(self.functions.len()).unwrap_or(u32::MAX);
        self.functions.push(Function {
            hash,
            trigger,
            calls: 0,
        });
        self.names.insert(hash, index);
        Ok(index)
    }

    fn called(&mut self, function: u32, count: u64) {
        if let Some(function) = self.functions.get_mut(function as usize) {
            function.calls += count;
        }
    }

    /// A line of counts.
    fn counts(&mut self, text: &str, start: u32, minutes: u32) -> Result<(), String> {
        let mut fields = text.split(',');
        let (Some(owner), Some(app), Some(name), Some(trigger)) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            return Err("owner, app, function and trigger are missing".to_owned());
        };
        let id = hash(format!("{owner},{app},{name}").as_bytes());
        let function = self.function(id, Trigger::of(trigger))?;
        let mut seen = 0;
        let mut sum = 0;
        for field in fields {
            if seen == minutes {
                return Err(format!("more than {minutes} counts"));
            }
            let count: u32 = match field {
                "0" => 0,
                field => field
                    .trim()
                    .parse()
                    .ok()
                    .filter(|count| *count <= MAX_COUNT)
                    .ok_or_else(|| {
                        format!(
                            "'{}' is no count",
                            field.escape_debug().take(40).collect::<String>()
                        )
                    })?,
            };
            if count > 0 {
                self.cells.push(Cell {
                    minute: start + seen,
                    function,
                    count,
                });
                sum += u64::from(count);
            }
            seen += 1;
        }
        if seen != minutes {
            return Err(format!("{seen} counts instead of {minutes}"));
        }
        self.called(function, sum);
        Ok(())
    }

    /// A line of `timestamp,function,duration`.
    fn listed(&mut self, text: &str, origin: &mut Option<f64>) -> Result<(), String> {
        let mut fields = text.split(',').map(str::trim);
        let (Some(at), Some(name), Some(duration)) = (fields.next(), fields.next(), fields.next())
        else {
            return Err("it is not timestamp,function,duration".to_owned());
        };
        let second = |field: &str, what: &str, most: f64| {
            field
                .parse::<f64>()
                .ok()
                .filter(|value| (0.0..=most).contains(value))
                .ok_or_else(|| {
                    format!(
                        "'{}' is no {what} in seconds",
                        field.escape_debug().take(40).collect::<String>()
                    )
                })
        };
        let at = second(at, "timestamp", 1e11)?;
        let duration = second(duration, "duration", 4_000.0)?;
        // The trace begins at midnight of its first day, so that hours of the day stay what they are.
        let origin = *origin.get_or_insert((at / 86_400.0).floor() * 86_400.0);
        let at = Moment(0).after_seconds(at - origin);
        if self.calls.last().is_some_and(|last| last.at > at) {
            return Err("it is earlier than the line before; sort the file by time".to_owned());
        }
        let function = self.function(hash(name.as_bytes()), Trigger::Unknown)?;
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a saturating conversion is meant"
        )]
        let micros = (duration * 1e6) as u32;
        self.calls.push(Call {
            at,
            function,
            micros: Some(micros),
        });
        self.called(function, 1);
        Ok(())
    }

    /// The invocations in order of time.
    pub fn calls(&self) -> impl Iterator<Item = Call> {
        let mut minutes = self.cells.chunk_by(|a, b| a.minute == b.minute);
        let mut ready: std::vec::IntoIter<Call> = Vec::new().into_iter();
        let counted = std::iter::from_fn(move || {
            loop {
                if let Some(call) = ready.next() {
                    return Some(call);
                }
                let mut calls = Vec::new();
                for cell in minutes.next()? {
                    self.spread(cell, &mut calls);
                }
                calls.sort_unstable();
                ready = calls.into_iter();
            }
        });
        let mut counted = counted.peekable();
        let mut listed = self.calls.iter().copied().peekable();
        std::iter::from_fn(move || match (counted.peek(), listed.peek()) {
            (Some(a), Some(b)) if b < a => listed.next(),
            (Some(_), _) => counted.next(),
            (None, _) => listed.next(),
        })
    }

    /// Places the calls of a minute within it.
    fn spread(&self, cell: &Cell, calls: &mut Vec<Call>) {
        const MINUTE: u64 = 60_000_000;
        let Some(function) = self.functions.get(cell.function as usize) else {
            return;
        };
        let start = u64::from(cell.minute) * MINUTE;
        let mut random = Random::of(
            self.seed ^ function.hash,
            u64::from(cell.minute).wrapping_add(1),
        );
        let phase = Random::of(self.seed ^ function.hash, 0).next() % MINUTE;
        for nth in 0..u64::from(cell.count) {
            let within = if function.trigger == Trigger::Timer {
                // Schedulers are late by some milliseconds.
                let late = random.next() % 200_000;
                (phase + nth * MINUTE / u64::from(cell.count) + late) % MINUTE
            } else {
                random.next() % MINUTE
            };
            calls.push(Call {
                at: Moment(start + within),
                function: cell.function,
                micros: None,
            });
        }
    }
}

/// Reads the next line; says whether there was one.
fn read_line(
    file: &mut impl BufRead,
    line: &mut String,
    number: &mut u64,
) -> Result<bool, TraceError> {
    line.clear();
    *number += 1;
    let fail = |problem: String| TraceError {
        line: *number,
        problem,
    };
    let limit = u64::try_from(MAX_LINE).unwrap_or(u64::MAX);
    let read = std::io::Read::take(&mut *file, limit)
        .read_line(line)
        .map_err(|error| fail(error.to_string()))?;
    if read == MAX_LINE && !line.ends_with('\n') {
        return Err(fail(format!("it is longer than {MAX_LINE} bytes")));
    }
    Ok(read > 0)
}

/// The number of minutes of a file of counts, or none for a list.
fn heading(text: &str) -> Result<Option<u32>, String> {
    let mut fields = text.split(',').map(str::trim);
    let first = fields.next().unwrap_or_default();
    if first.eq_ignore_ascii_case("HashOwner") {
        let minutes = fields.count().saturating_sub(3);
        return u32::try_from(minutes)
            .ok()
            .filter(|minutes| (1..=100_000).contains(minutes))
            .map(Some)
            .ok_or_else(|| "the heading has no minutes behind Trigger".to_owned());
    }
    let rest: Vec<_> = fields.collect();
    if first.eq_ignore_ascii_case("timestamp")
        && matches!(
            rest.as_slice(),
            ["function", "duration"] | ["function", "duration", "start"]
        )
    {
        return Ok(None);
    }
    Err("the first line must be 'HashOwner,HashApp,HashFunction,Trigger,1,2,...' (the Azure Functions 2019 counts) or 'timestamp,function,duration'".to_owned())
}
