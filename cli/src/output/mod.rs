//! All that the command prints. A command hands over one serialisable value and says how people read it; the format
//! decides which of the two is printed.
//!
//! Results go to stdout, notes, progress and errors to stderr. What the platform or a file says may hold anything, so
//! control characters never reach a terminal. A reader of a pipe that has gone away ends a command quietly.

mod page;
mod progress;
mod screen;
mod size;
mod terminal;

pub(crate) use page::{Page, Table, Tone};
pub(crate) use progress::Steps;
pub(crate) use screen::{Screen, Wake};
pub(crate) use size::bytes;
pub(crate) use terminal::{Terminal, variable};

use crate::report::Report;
use clap::{Args, ValueEnum};
use serde::Serialize;
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

/// How results are printed.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// JSON; one object a line where there are many.
    Json,
    /// YAML; one document each where there are many.
    Yaml,
}

/// Whoever read stdout has gone, as `head` does: the command ends, and that is no failure.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads the output any more")]
pub(crate) struct PipeGone;

/// The flags about printing, on every command.
#[derive(Args, Debug, Clone, Copy, Default)]
#[command(next_help_heading = "Global options")]
pub(crate) struct OutputArgs {
    /// How results are printed.
    #[arg(short, long, global = true, value_enum, value_name = "FORMAT")]
    output: Option<Format>,
    /// Print JSON; the same as `-o json`.
    #[arg(long, global = true, conflicts_with = "output")]
    json: bool,
    /// Print results and errors only: no progress, no notes.
    #[arg(short, long, global = true)]
    quiet: bool,
}

/// Prints for one run of the command.
#[derive(Clone, Copy)]
pub(crate) struct Output {
    format: Format,
    quiet: bool,
    stdout: Terminal,
    stderr: Terminal,
}

impl Output {
    pub(crate) fn new(args: OutputArgs) -> Self {
        let format = match args.output {
            None if args.json => Format::Json,
            other => other.unwrap_or_default(),
        };
        Self {
            format,
            quiet: args.quiet,
            stdout: Terminal::of(&io::stdout()),
            stderr: Terminal::of(&io::stderr()),
        }
    }

    /// Whether programs read the result rather than people.
    pub(crate) fn is_for_programs(&self) -> bool {
        self.format != Format::Table
    }

    /// Prints the command's one result: `value` for programs, `human` for people.
    pub(crate) fn show<T: Serialize + ?Sized>(
        &self,
        value: &T,
        human: impl FnOnce(&mut Page),
    ) -> anyhow::Result<()> {
        match self.format {
            Format::Table => self.raw(self.page(human).as_bytes()),
            Format::Json => {
                self.raw(format!("{}\n", serde_json::to_string_pretty(value)?).as_bytes())
            }
            Format::Yaml => self.raw(yaml(value)?.as_bytes()),
        }
    }

    /// Prints one of a stream of results, as soon as it is there.
    pub(crate) fn item<T: Serialize + ?Sized>(
        &self,
        value: &T,
        human: impl FnOnce(&mut Page),
    ) -> anyhow::Result<()> {
        match self.format {
            Format::Table => self.raw(self.page(human).as_bytes()),
            Format::Json => self.raw(format!("{}\n", serde_json::to_string(value)?).as_bytes()),
            Format::Yaml => self.raw(format!("---\n{}", yaml(value)?).as_bytes()),
        }
    }

    /// A screen to redraw, where people look at a terminal that can.
    pub(crate) fn screen(&self) -> anyhow::Result<Option<Screen>> {
        let moves =
            self.stdout.width.is_some() && variable("TERM").is_some_and(|term| term != "dumb");
        if self.is_for_programs() || !moves || !io::stdin().is_terminal() {
            return Ok(None);
        }
        Screen::open(self.stdout).map(Some)
    }

    /// Prints several of a stream of results that came together, in one write.
    pub(crate) fn items<T: Serialize>(
        &self,
        values: &[T],
        human: impl Fn(&mut Page, &T),
    ) -> anyhow::Result<()> {
        let mut text = String::new();
        match self.format {
            Format::Table => {
                text = self.page(|page| values.iter().for_each(|value| human(page, value)));
            }
            Format::Json => {
                for value in values {
                    text += &serde_json::to_string(value)?;
                    text.push('\n');
                }
            }
            Format::Yaml => {
                for value in values {
                    text += "---\n";
                    text += &yaml(value)?;
                }
            }
        }
        self.raw(text.as_bytes())
    }

    /// Writes bytes to stdout as they are: an answer's body, a script, a man page.
    pub(crate) fn raw(&self, bytes: &[u8]) -> anyhow::Result<()> {
        let mut out = io::stdout().lock();
        match out.write_all(bytes).and_then(|()| out.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(PipeGone.into()),
            other => Ok(other?),
        }
    }

    /// Tells people something beside the result, on stderr.
    pub(crate) fn note(&self, text: impl Display) {
        if !self.quiet {
            let mut page = Page::new(self.stderr);
            page.line(text);
            complain(&page.into_text());
        }
    }

    /// Begins a new line on a terminal where a result has not ended its last one.
    pub(crate) fn break_line(&self) {
        if self.stdout.width.is_some() {
            complain("\n");
        }
    }

    /// The steps of long work, on stderr.
    pub(crate) fn steps(&self) -> Steps {
        let told = !self.quiet && !self.is_for_programs();
        Steps::new(self.stderr, told)
    }

    /// Says what went wrong and what to do next, on stderr.
    pub(crate) fn fail(&self, report: &Report) {
        let text = match self.format {
            Format::Table => {
                let mut page = Page::new(self.stderr);
                report.write(&mut page);
                Ok(page.into_text())
            }
            Format::Json => serde_json::to_string(&report.value())
                .map(|text| text + "\n")
                .map_err(anyhow::Error::from),
            Format::Yaml => yaml(&report.value()),
        };
        complain(&text.unwrap_or_else(|_| format!("error: {}\n", report.message)));
    }

    fn page(&self, human: impl FnOnce(&mut Page)) -> String {
        let mut page = Page::new(self.stdout);
        human(&mut page);
        page.into_text()
    }
}

fn yaml<T: Serialize + ?Sized>(value: &T) -> anyhow::Result<String> {
    let mut text = serde_saphyr::to_string(&value)?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// Stderr for a child's stdout: what a compiler says is no result.
pub(crate) fn for_children() -> io::Result<std::os::fd::OwnedFd> {
    use std::os::fd::AsFd;
    io::stderr().as_fd().try_clone_to_owned()
}

/// Writes to stderr; there is nobody to tell if that fails.
fn complain(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn yaml_keeps_types_and_quotes_what_would_change_them() {
        let text = yaml(&json!({"on": "yes", "count": 1, "list": [{"a": null}], "text": "a: b\nc", "number": "1.0"})).unwrap();
        assert!(text.ends_with('\n'), "{text}");
        assert!(text.contains("count: 1\n"), "{text}");
        assert!(
            text.contains("number: \"1.0\"\n") || text.contains("number: '1.0'\n"),
            "{text}"
        );
    }

    #[test]
    fn only_this_module_writes_to_the_standard_streams() {
        let mut folders = vec![std::path::PathBuf::from(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/src"
        ))];
        let mut seen = 0;
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                seen += 1;
                // The log of `serve` is no result.
                if path.components().any(|part| part.as_os_str() == "output")
                    || path.ends_with("logging.rs")
                {
                    continue;
                }
                let text = std::fs::read_to_string(&path).unwrap();
                for stream in [concat!("std", "out()"), concat!("std", "err()")] {
                    assert!(
                        !text.contains(stream),
                        "{} prints past output/",
                        path.display()
                    );
                }
            }
        }
        assert!(seen > 10, "{seen} files were looked at");
    }
}
