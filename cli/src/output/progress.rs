//! Progress of long work, on stderr: a bar or a spinner while a step runs, a line when it is done.
//!
//! In a pipe and under NO_COLOR there are only the lines; for programs and with --quiet there is nothing.

use super::{Page, Terminal};
use fnctl_core::units::ByteSize;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::fmt::Display;
use std::time::Duration;

/// Tells how long work goes on.
pub(crate) struct Steps {
    terminal: Terminal,
    told: bool,
    current: ProgressBar,
}

impl Steps {
    /// `told` is whether there is anybody to tell.
    pub(super) fn new(terminal: Terminal, told: bool) -> Self {
        Self {
            terminal,
            told,
            current: ProgressBar::hidden(),
        }
    }

    fn bar(&mut self, length: Option<u64>, template: &str) -> ProgressBar {
        self.current.finish_and_clear();
        let target = if self.told && self.terminal.bars {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let (ticks, fill) = if self.terminal.unicode {
            ("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏ ", "━╸─")
        } else {
            ("|/-\\ ", "=> ")
        };
        let style = ProgressStyle::with_template(template)
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .tick_chars(ticks)
            .progress_chars(fill);
        let bar = ProgressBar::with_draw_target(length, target).with_style(style);
        self.current = bar.clone();
        bar
    }

    /// A step of unknown length begins.
    pub(crate) fn begin(&mut self, step: impl Display) {
        let spinner = self.bar(None, "  {spinner} {msg} {elapsed}");
        spinner.set_message(step.to_string());
        spinner.enable_steady_tick(Duration::from_millis(100));
    }

    /// Bytes begin to move; the bar counts them as they pass a reader it wraps.
    pub(crate) fn transfer(&mut self, step: impl Display, bytes: ByteSize) -> ProgressBar {
        let bar = self.bar(
            Some(bytes.0),
            "  {msg} {wide_bar} {bytes}/{total_bytes} {eta}",
        );
        bar.set_message(step.to_string());
        bar
    }

    /// Nothing moves any more.
    pub(crate) fn end(&mut self) {
        self.current.finish_and_clear();
    }

    /// A step is done.
    pub(crate) fn finished(&mut self, step: impl Display, ms: f64, detail: impl Display) {
        self.current.finish_and_clear();
        if !self.told {
            return;
        }
        let mark = if self.terminal.unicode { "✓" } else { " " };
        let mut page = Page::new(self.terminal);
        page.pieces([
            (format!("{mark} "), super::Tone::Good),
            (format!("{:<10} ", step.to_string()), super::Tone::Plain),
            (format!("{ms:>8.1} ms  "), super::Tone::Dim),
            (detail.to_string(), super::Tone::Plain),
        ]);
        super::complain(&page.into_text());
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        self.current.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_drawn_only_where_somebody_looks_and_the_terminal_can() {
        for (bars, told) in [(false, true), (true, false), (false, false)] {
            let terminal = Terminal {
                width: Some(80),
                colours: bars,
                unicode: bars,
                bars,
            };
            let mut steps = Steps::new(terminal, told);
            steps.begin("compile");
            assert!(steps.current.is_hidden());
            assert!(steps.transfer("upload", ByteSize(9)).is_hidden());
        }
    }
}
