//! A screen of its own on the terminal, redrawn in place, with keys; the shell's screen comes back when it is dropped.

use super::{Page, Terminal};
use anyhow::Context;
use crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use crossterm::{cursor, queue, style, terminal};
use std::io::{self, Write};
use std::time::{Duration, Instant};

/// The alternate screen, with keys read one by one.
pub(crate) struct Screen {
    terminal: Terminal,
}

/// What happened while the screen stood.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Wake {
    /// The time is over.
    Elapsed,
    /// The window has another size: draw again.
    Resized,
    /// A key.
    Key(char),
    /// Ctrl-C, Escape, or the terminal is gone.
    Quit,
}

impl Screen {
    pub(crate) fn open(terminal: Terminal) -> anyhow::Result<Self> {
        terminal::enable_raw_mode().context("this terminal does not give its keys one by one")?;
        // From here on, dropping it puts things right.
        let screen = Self { terminal };
        let mut out = io::stdout().lock();
        queue!(out, terminal::EnterAlternateScreen, cursor::Hide)?;
        out.flush()?;
        Ok(screen)
    }

    /// Draws a page from the top; what does not fit the window is left out.
    pub(crate) fn draw(&self, human: impl FnOnce(&mut Page)) -> anyhow::Result<()> {
        // Some terminals do not tell, or say zero.
        let (columns, rows) = terminal::size()
            .ok()
            .filter(|(columns, rows)| *columns > 0 && *rows > 0)
            .unwrap_or((self.terminal.width.unwrap_or(80), 24));
        let mut page = Page::new(Terminal {
            width: Some(columns),
            ..self.terminal
        });
        human(&mut page);
        let mut out = io::stdout().lock();
        queue!(out, cursor::MoveTo(0, 0))?;
        for (row, line) in (0..rows).zip(page.into_text().lines()) {
            queue!(
                out,
                cursor::MoveTo(0, row),
                style::Print(line),
                terminal::Clear(terminal::ClearType::UntilNewLine)
            )?;
        }
        queue!(out, terminal::Clear(terminal::ClearType::FromCursorDown))?;
        Ok(out.flush()?)
    }

    /// Waits for a key, at most until `until`.
    pub(crate) fn wait(&self, until: Instant) -> Wake {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match event::poll(left) {
                Ok(false) if left == Duration::ZERO || Instant::now() >= until => {
                    return Wake::Elapsed;
                }
                Ok(false) => {}
                Ok(true) => match event::read() {
                    Ok(Event::Key(key)) => {
                        if let Some(wake) = meaning(key) {
                            return wake;
                        }
                    }
                    Ok(Event::Resize(..)) => return Wake::Resized,
                    Ok(_) => {}
                    Err(_) => return Wake::Quit,
                },
                Err(_) => return Wake::Quit,
            }
        }
    }
}

fn meaning(key: KeyEvent) -> Option<Wake> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    match key.code {
        KeyCode::Char('c' | 'd') if key.modifiers.contains(KeyModifiers::CONTROL) => {
            Some(Wake::Quit)
        }
        KeyCode::Esc => Some(Wake::Quit),
        KeyCode::Char(letter) => Some(Wake::Key(letter)),
        _ => None,
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let mut out = io::stdout().lock();
        // Nobody is left to tell if the terminal has gone.
        let _ = queue!(out, cursor::Show, terminal::LeaveAlternateScreen);
        let _ = out.flush();
        let _ = terminal::disable_raw_mode();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_c_and_escape_quit_and_letters_are_keys() {
        let key = |code, modifiers| meaning(KeyEvent::new(code, modifiers));
        assert_eq!(
            key(KeyCode::Char('c'), KeyModifiers::CONTROL),
            Some(Wake::Quit)
        );
        assert_eq!(key(KeyCode::Esc, KeyModifiers::NONE), Some(Wake::Quit));
        assert_eq!(
            key(KeyCode::Char('c'), KeyModifiers::NONE),
            Some(Wake::Key('c'))
        );
        assert_eq!(key(KeyCode::F(1), KeyModifiers::NONE), None);
    }
}
